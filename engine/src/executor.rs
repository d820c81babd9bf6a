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

    /// Has it do what its first steps would wait for, before anybody does; says how much of it is done, of how much.
    fn warm_up(&mut self, _report: &mut dyn FnMut(usize, usize)) -> Result<(), String> {
        Ok(())
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

/// A step in three parts: while the device computes, the engine thread goes on.
///
/// `issue` begins a step. `choose` says what each of its rows wants, which the device does when it has computed them; in
/// between the engine asks filters, and hands the tokens of the step before to their clients. `collect` waits for the oldest
/// step that was chosen and not collected. An error or a panic fails the step, as with [`Executor::execute`], and whatever
/// was issued behind it, not what was chosen before; the next `issue` begins anew, whatever was not collected.
///
/// With [`Self::runs_ahead`] there may be one more step, issued behind one that is chosen and not collected, so that the
/// device need not wait for the engine thread at all: `issue`, `choose`, `issue_behind`, `choose`, `collect`,
/// `issue_behind`, `choose`, `collect`, ... Tokens go from step to step on the device.
pub trait DeviceExecutor {
    fn limits(&self) -> SamplingLimits;

    /// Begins the step of `batch`, on the terms of [`Executor::execute`].
    fn issue(&mut self, batch: &BatchInput) -> Result<(), String>;

    /// Samples the step issued last: `wanted.rows` has one for each of its batch's `sample_rows`. True when every row that
    /// wants a token gets it on the device, so that a step can be issued behind this one.
    fn choose(&mut self, wanted: &SampleRequests) -> Result<bool, String>;

    /// Waits for the oldest chosen step: `wanted` is what was chosen, `samples` gets one answer for each of its rows. Logits
    /// that come back go to `logits` in the order of their rows.
    fn collect(
        &mut self,
        wanted: &SampleRequests,
        samples: &mut Vec<Sample>,
        logits: &mut Logits,
    ) -> Result<(), String>;

    /// Whether it takes steps behind steps that are not collected.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Begins a step behind the one chosen last: each row is one token, and token `i` is what row `sources[i]` of that step's
    /// samples gets; `batch.tokens` are placeholders. A row that gets none there computes something, and nobody looks at it.
    fn issue_behind(&mut self, _batch: &BatchInput, _sources: &[u32]) -> Result<(), String> {
        Err("this device takes one step at a time".to_owned())
    }
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
