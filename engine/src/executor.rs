//! What turns a batch into logits: the seam between the engine and a device.
//!
//! An executor owns its weights and its KV cache. It is built on the engine thread and never leaves it.

use std::sync::Arc;

use sconce_models::{Adapter, AdapterId, BatchInput, KvCache, KvDtype, Logits, Model};

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

    /// Threads that sample what it computed; asked for each step.
    fn workers(&self) -> Workers {
        Workers::NONE
    }

    /// Puts an adapter at hand for batches that name it, or takes it away again. Called between steps.
    fn set_adapter(&mut self, _id: AdapterId, _adapter: Option<Arc<Adapter>>) -> Result<(), String> {
        Err("this model takes no adapters".to_owned())
    }

    /// Writes the K and V of every token of `batch`, then leaves the logits of `batch.sample_rows` in `logits`.
    ///
    /// All writes of a layer must happen before its attention reads: two sequences of one step may share a block that
    /// this very step fills. An error (or a panic) fails every sequence of the step and nothing else.
    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String>;
}

/// A model of `sconce-models` and its KV cache.
pub struct ModelExecutor {
    model: Box<dyn Model>,
    cache: KvCache,
    draft: Option<Box<dyn Executor>>,
}

impl ModelExecutor {
    /// Allocates the KV cache: `blocks` blocks of `block_size` tokens, the same numbers as in `EngineConfig`.
    pub fn new(model: Box<dyn Model>, blocks: u32, block_size: u32, dtype: KvDtype) -> Result<Self, String> {
        let cache = model.new_kv_cache(blocks, block_size, dtype).map_err(|error| error.to_string())?;
        Ok(Self { model, cache, draft: None })
    }

    /// With another model that guesses ahead, built for the same blocks.
    #[must_use]
    pub fn with_draft(self, draft: Box<dyn Executor>) -> Self {
        Self { draft: Some(draft), ..self }
    }
}

impl Executor for ModelExecutor {
    /// The CPU takes any ragged batch.
    fn capabilities(&self) -> Capabilities {
        Capabilities::any()
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
