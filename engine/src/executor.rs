//! What turns a batch into logits: the seam between the engine and a device.
//!
//! An executor owns its weights and its KV cache. It is built on the engine thread and never leaves it.

use std::sync::Arc;

use sconce_models::{Adapter, AdapterId, BatchInput, KvCache, KvDtype, Logits, Model, Sample, SampleRequests};

use super::sampler::Workers;
use super::scheduler::Capabilities;

/// Runs one ragged step. Called by one thread only, one step at a time.
pub trait Executor: Send {
    /// What the scheduler must respect. Asked once, when the engine starts.
    fn capabilities(&self) -> Capabilities;

    /// Number of logits a row; every token id must be below it.
    fn vocab(&self) -> usize;

    /// A smaller model with the same vocabulary that guesses ahead, and as many KV blocks. Taken once, when the engine
    /// starts; without one nothing is guessed by a model.
    fn take_draft(&mut self) -> Option<Box<dyn Executor>> {
        None
    }

    /// Its side that works beside the engine thread and samples where it computes; asked for each step. With one, steps go
    /// through it, and `execute` is left to draft models.
    fn device(&mut self) -> Option<&mut dyn DeviceExecutor> {
        None
    }

    /// Threads that sample what it computed; asked for each step.
    fn workers(&self) -> Workers {
        Workers::NONE
    }

    /// Puts an adapter at hand for batches that name it, or takes it away again. Called between steps.
    fn set_adapter(&mut self, _id: AdapterId, _adapter: Option<Arc<Adapter>>) -> Result<(), String> {
        Err("this model takes no adapters".to_owned())
    }

    /// Why no step can succeed any more until the model is loaded again; asked behind a step that failed.
    fn broken(&self) -> Option<String> {
        None
    }

    /// Gives back the memory of its device; the cache's content is lost. Returns the bytes of host memory in which the rest
    /// waits for [`Self::wake`]. Called when nothing is live; an error leaves it awake.
    fn sleep(&mut self) -> Result<u64, String> {
        Err("only a model on a GPU sleeps; unload it instead".to_owned())
    }

    /// Takes the memory of its device again.
    fn wake(&mut self) -> Result<(), WakeError> {
        Ok(())
    }

    /// Writes the K and V of every token of `batch`, then leaves the logits of `batch.sample_rows` in `logits`.
    ///
    /// All writes of a layer must happen before its attention reads: two sequences of one step may share a block that
    /// this very step fills. An error (or a panic) fails every sequence of the step and nothing else.
    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String>;
}

/// Why a model does not wake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WakeError {
    /// Others have taken its device's memory meanwhile; once they are gone it can be tried again.
    #[error("{0}")]
    Memory(String),
    #[error("{0}")]
    Failed(String),
}

/// What a device can do with logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplingLimits {
    /// The most likeliest tokens whose log probabilities it can give.
    pub top_logprobs_max: u32,
    /// Whether it applies masks; without, rows that a filter restricts come back as logits.
    pub masks: bool,
}

/// A step in two halves: while the device computes, the engine thread goes on.
///
/// `issue` begins a step; `collect` is called once for it, before the next `issue`, and waits. In between the engine works out
/// what each row wants (filters answer meanwhile) and hands the tokens of the step before to their clients. An error or a
/// panic of either fails the step, as with [`Executor::execute`]; behind a failed `issue` there is no `collect`, behind a
/// failed or a missing `collect` (the engine started over) the next `issue` begins anew.
///
/// What a later overlap of whole steps would need, with step N + 1 issued before step N is collected:
/// - the token that N samples stays on the device, and N + 1 has a placeholder for it among its inputs;
/// - the scheduler plans N + 1 as if every row that samples in N got one token and went on: it takes a block where that
///   token needs one, and whoever turns out to have ended computes one step for nothing, whose blocks and slots are
///   given back only when N + 1 is collected;
/// - random numbers depend on the place in the output only, which is known; `seen` lists are not: the device counts the
///   token of N itself;
/// - rows with masks, drafts or a client that is parked sit out: what they compute next depends on the token of N;
/// - a block that the token of N fills is registered in the prefix cache when N is committed, not when it is planned.
pub trait DeviceExecutor {
    fn limits(&self) -> SamplingLimits;

    /// Begins the step of `batch`, on the terms of [`Executor::execute`].
    fn issue(&mut self, batch: &BatchInput) -> Result<(), String>;

    /// Samples the step and waits for it: one answer in `samples` for each of `wanted.rows`, which is one for each of the
    /// batch's `sample_rows`. Logits that come back go to `logits` in the order of their rows.
    fn collect(
        &mut self,
        wanted: &SampleRequests,
        samples: &mut Vec<Sample>,
        logits: &mut Logits,
    ) -> Result<(), String>;
}

/// A model of `sconce-models` and its KV cache.
pub struct ModelExecutor {
    model: Box<dyn Model>,
    cache: KvCache,
    state_slots: u32,
    draft: Option<Box<dyn Executor>>,
}

impl ModelExecutor {
    /// Allocates the KV cache: `blocks` blocks of `block_size` tokens, the same numbers as in `EngineConfig`.
    pub fn new(model: Box<dyn Model>, blocks: u32, block_size: u32, dtype: KvDtype) -> Result<Self, String> {
        let cache = model.new_kv_cache(blocks, block_size, dtype).map_err(|error| error.to_string())?;
        let state_slots = u32::from(model.spec().state_bytes() > 0);
        Ok(Self { model, cache, state_slots, draft: None })
    }

    /// With so many slots for states instead of one, if the model keeps a state a sequence: as many sequences run at once,
    /// and what is left of them serves the prefix cache.
    pub fn with_state_slots(self, slots: u32) -> Result<Self, String> {
        let Self { model, cache, draft, .. } = self;
        let cache = cache.with_state_slots(slots, model.spec()).map_err(|error| error.to_string())?;
        let state_slots = if model.spec().state_bytes() > 0 { slots } else { 0 };
        Ok(Self { model, cache, state_slots, draft })
    }

    /// With another model that guesses ahead, built for the same blocks.
    #[must_use]
    pub fn with_draft(self, draft: Box<dyn Executor>) -> Self {
        Self { draft: Some(draft), ..self }
    }
}

impl Executor for ModelExecutor {
    /// The CPU takes any ragged batch. A state that has seen a wrong draft cannot take it back.
    fn capabilities(&self) -> Capabilities {
        let any = Capabilities::any();
        let max_drafts_per_row = if self.state_slots > 0 { 0 } else { any.max_drafts_per_row };
        Capabilities { state_slots: self.state_slots, max_drafts_per_row, ..any }
    }

    fn vocab(&self) -> usize {
        self.model.spec().vocab
    }

    fn take_draft(&mut self) -> Option<Box<dyn Executor>> {
        self.draft.take()
    }

    fn workers(&self) -> Workers {
        Workers { count: sconce_kernels::cpu::threads(), run: sconce_kernels::cpu::pool::run }
    }

    fn set_adapter(&mut self, id: AdapterId, adapter: Option<Arc<Adapter>>) -> Result<(), String> {
        self.model.set_adapter(id, adapter).map_err(|error| error.to_string())
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        self.model.forward(batch, &mut self.cache, logits).map_err(|error| error.to_string())
    }
}
