//! The engines of one model: usually one, or one a device (`--data-parallel-size`), each with weights, a KV cache and a
//! thread of its own. A request runs on one of them, with all its choices.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::chooser::Chooser;
use crate::engine::{EngineHandle, EngineStats, WakeError};

/// At least one engine. They are alike: the same weights, and the same sizes of everything.
pub struct Replicas {
    engines: Vec<EngineHandle>,
    /// Taken once a request, where there is a choice.
    chooser: Mutex<Chooser>,
}

impl Replicas {
    /// # Panics
    /// Without an engine, which is a mistake of the caller.
    pub fn new(engines: Vec<EngineHandle>, block_size: u32, blocks_cached: u32) -> Self {
        let chooser = Mutex::new(Chooser::new(engines.len(), block_size, blocks_cached));
        Self { engines, chooser }
    }

    /// The engine for a prompt.
    pub fn for_prompt(&self, prompt: &[u32], salt: &[u8; 32]) -> &EngineHandle {
        if let [only] = &*self.engines {
            return only;
        }
        let live: Vec<u64> = self.engines.iter().map(EngineHandle::live).collect();
        let mut chooser = self.chooser.lock().unwrap_or_else(PoisonError::into_inner);
        &self.engines[chooser.choose(prompt, salt, &live)]
    }

    /// Why one of them gave up, if one did: all are loaded again then.
    pub fn failure(&self) -> Option<&str> {
        self.engines.iter().find_map(EngineHandle::failure)
    }

    /// How long the longest of the steps that run has been running.
    pub fn in_step_for(&self) -> Option<Duration> {
        self.engines.iter().filter_map(EngineHandle::in_step_for).max()
    }

    pub fn stats(&self) -> impl Iterator<Item = EngineStats> {
        self.engines.iter().map(EngineHandle::stats)
    }

    /// Has all of them give back their devices' memory. Returns the bytes of host memory that they take meanwhile. After an
    /// error some may sleep.
    pub fn sleep(&self) -> Result<u64, String> {
        self.engines.iter().map(EngineHandle::sleep).sum()
    }

    /// Has all of them take memory again. After an error some may be awake, which is no obstacle to another try.
    pub fn wake(&self) -> Result<(), WakeError> {
        std::thread::scope(|scope| {
            let others: Vec<_> = self.engines[1..].iter().map(|engine| scope.spawn(move || engine.wake())).collect();
            let first = self.engines[0].wake();
            let panicked = || WakeError::Failed("the thread that was to wake a replica panicked".to_owned());
            others.into_iter().map(|thread| thread.join().map_err(|_| panicked())?).fold(first, Result::and)
        })
    }

    /// Stops all of them at once: what still runs is cancelled after `grace`. Returns when all have ended.
    pub fn shutdown(&self, grace: Duration) {
        std::thread::scope(|scope| {
            for engine in &self.engines[1..] {
                scope.spawn(move || engine.shutdown(grace));
            }
            self.engines[0].shutdown(grace);
        });
    }
}
