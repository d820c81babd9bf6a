//! What a member has in memory: a model that answers, none, or one on its way in or out.
//!
//! 1. A request holds the model by a count, taken under the same lock under which a model is taken away: one that nobody
//!    holds can go at once, and nobody gets one that is going.
//! 2. Whoever waits for a model is counted, so that it is not taken away again before they had it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{Embedding, Loaded};
use crate::engine::WakeError;
use crate::pool::member::{EngineSnapshot, ModelCard};

/// A model in memory.
#[derive(Clone)]
pub enum Held {
    Generating(Arc<Loaded>),
    Embedding(Arc<Embedding>),
}

/// What a model takes, as it was planned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    pub weights_bytes: u64,
    pub kv_bytes: u64,
    /// Activations and logits of the largest step.
    pub step_bytes: u64,
}

impl Memory {
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes.saturating_add(self.kv_bytes).saturating_add(self.step_bytes)
    }
}

impl Held {
    pub fn card(&self) -> &ModelCard {
        match self {
            Self::Generating(loaded) => &loaded.card,
            Self::Embedding(embedding) => &embedding.card,
        }
    }

    /// How often it is held, this one included.
    pub fn holders(&self) -> usize {
        match self {
            Self::Generating(loaded) => Arc::strong_count(loaded),
            Self::Embedding(embedding) => Arc::strong_count(embedding),
        }
    }

    /// Why the engine gave up, if it did.
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::Generating(loaded) => loaded.engines.failure(),
            Self::Embedding(embedding) => embedding.engine.failure(),
        }
    }

    /// How long the step that runs has been running.
    pub fn in_step_for(&self) -> Option<Duration> {
        match self {
            Self::Generating(loaded) => loaded.engines.in_step_for(),
            Self::Embedding(embedding) => embedding.engine.in_step_for(),
        }
    }

    /// Stops the engine: what still runs is cancelled after `grace`.
    pub fn shutdown(&self, grace: Duration) {
        match self {
            Self::Generating(loaded) => loaded.engines.shutdown(grace),
            Self::Embedding(embedding) => embedding.engine.shutdown(grace),
        }
    }

    /// Host memory that it would take while it sleeps, in bytes; `None` of a model that cannot.
    pub fn asleep_bytes(&self) -> Option<u64> {
        match self {
            Self::Generating(loaded) => loaded.asleep_bytes,
            Self::Embedding(_) => None,
        }
    }

    /// Gives back its devices' memory; returns the bytes of host memory that it takes instead. Nobody else may hold it.
    /// After an error it must be unloaded. Waits: seconds for a large model.
    pub fn sleep(&self) -> std::result::Result<u64, String> {
        match self {
            Self::Generating(loaded) => loaded.engines.sleep(),
            Self::Embedding(_) => Err("a model that makes vectors or scores does not sleep; unload it".to_owned()),
        }
    }

    /// Takes its devices' memory again. Waits, as above. Where there is too little it can be tried again.
    pub fn wake(&self) -> std::result::Result<(), WakeError> {
        match self {
            Self::Generating(loaded) => loaded.engines.wake(),
            Self::Embedding(_) => Ok(()),
        }
    }

    pub fn snapshot(&self) -> EngineSnapshot {
        match self {
            Self::Generating(loaded) => loaded.snapshot(),
            Self::Embedding(embedding) => embedding.snapshot(),
        }
    }
}

/// What a load has done so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Loading {
    /// For a person.
    pub what: String,
    pub bytes_done: u64,
    pub bytes_total: Option<u64>,
    pub started: Instant,
    /// Set aside for it.
    pub memory: Memory,
}

impl Loading {
    pub fn new(what: &str) -> Self {
        Self {
            what: what.to_owned(),
            bytes_done: 0,
            bytes_total: None,
            started: Instant::now(),
            memory: Memory::default(),
        }
    }

    pub fn told(&self) -> String {
        match self.bytes_total {
            Some(total) if total > 0 => format!("{}, {} %", self.what, self.bytes_done * 100 / total),
            _ => self.what.clone(),
        }
    }
}

pub enum Slot {
    Empty,
    Loading(Loading),
    Holding {
        held: Held,
        memory: Memory,
    },
    /// Its device's memory is free for others: what it needs to go on waits in host memory, of which it takes `memory`.
    /// `awake` is what it takes of it otherwise.
    Sleeping {
        held: Held,
        memory: Memory,
        awake: Memory,
    },
    /// Takes no new requests; those that it has are finished.
    Draining(Memory),
    /// Loading failed; it is not tried again before then.
    Failed {
        why: String,
        again_at: Instant,
    },
    /// It is not served any more.
    Closed,
}

impl Slot {
    /// The model, while its engine is well.
    pub fn held(&self) -> Option<&Held> {
        match self {
            Self::Holding { held, .. } => Some(held).filter(|held| held.failure().is_none()),
            _ => None,
        }
    }

    pub fn memory(&self) -> Memory {
        match self {
            Self::Loading(loading) => loading.memory,
            Self::Holding { memory, .. } | Self::Sleeping { memory, .. } | Self::Draining(memory) => *memory,
            Self::Empty | Self::Failed { .. } | Self::Closed => Memory::default(),
        }
    }
}

/// One that waits, counted as long as it does.
pub struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    pub fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
