// performance-critical: no allocation per token, no lock, no log, no format
//! A model on a GPU as an executor.

use std::sync::Arc;

use sconce_cuda::{Breaker, Communicator};
use sconce_models::cuda::{CudaModel, CudaRunner, CudaSizes};
use sconce_models::{BatchInput, Logits, Sample, SampleRequests};

use super::executor::{DeviceExecutor, Executor, SamplingLimits, WakeError};
use super::ranks::{Link, Rank, RankedExecutor};
use super::sampler::Workers;
use super::scheduler::Capabilities;

/// A model with its KV cache and buffers on a GPU.
pub struct CudaExecutor {
    runner: CudaRunner,
    runs_ahead: bool,
}

impl CudaExecutor {
    /// Allocates cache and buffers: `sizes` has the numbers of `EngineConfig`.
    pub fn new(model: CudaModel, sizes: CudaSizes) -> Result<Self, String> {
        let runner = CudaRunner::new(model, sizes).map_err(|error| error.to_string())?;
        Ok(Self { runner, runs_ahead: true })
    }

    /// With slots for so many states instead of one, if the model keeps a state a sequence.
    pub fn with_state_slots(self, slots: u32) -> Result<Self, String> {
        let runner = self.runner.with_state_slots(slots).map_err(|error| error.to_string())?;
        Ok(Self { runner, ..self })
    }

    /// Whether it takes steps behind steps that are not collected; it does unless this says otherwise.
    #[must_use]
    pub fn with_async_scheduling(self, is_on: bool) -> Self {
        Self { runs_ahead: is_on, ..self }
    }

    #[cold]
    fn warn(&mut self) {
        if let Some(warning) = self.runner.take_warning() {
            tracing::warn!("{warning}");
        }
    }
}

/// A model of which each device has a share, in the order of their ranks: `sizes` are those of each.
pub fn cuda_ranks(
    name: &str,
    ranks: Vec<(CudaModel, Communicator)>,
    sizes: CudaSizes,
) -> Result<RankedExecutor, String> {
    let link = ranks.first().map(|(_, communicator)| communicator.breaker()).ok_or("a model without ranks")?;
    let made = ranks.into_iter().map(|(model, communicator)| CudaRunner::of_rank(model, sizes, communicator));
    let mut made = made.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?.into_iter();
    let first = CudaExecutor { runner: made.next().ok_or("a model without ranks")?, runs_ahead: false };
    let others = made.map(|runner| Box::new(CudaRank { runner }) as Box<dyn Rank>).collect();
    RankedExecutor::start(name, Box::new(first), others, Arc::new(link))
}

/// A rank behind the first.
struct CudaRank {
    runner: CudaRunner,
}

impl Rank for CudaRank {
    fn warm_up(&mut self) -> Result<(), String> {
        self.runner.warm_up(|_, _| {}).map_err(|error| error.to_string())
    }

    fn follow(&mut self, batch: &BatchInput) -> Result<(), String> {
        self.runner.follow(batch).map_err(|error| error.to_string())
    }

    fn sleep(&mut self) -> Result<u64, String> {
        self.runner.sleep().map_err(|error| error.to_string())
    }

    fn wake(&mut self) -> Result<(), WakeError> {
        wake(&mut self.runner)
    }
}

impl Link for Breaker {
    fn break_off(&self, why: &str) {
        Self::break_off(self, why);
    }

    fn failure(&self) -> Option<String> {
        Self::failure(self).map(str::to_owned)
    }
}

fn wake(runner: &mut CudaRunner) -> Result<(), WakeError> {
    runner.wake().map_err(|error| match error.lacks_device_memory() {
        true => WakeError::Memory(error.to_string()),
        false => WakeError::Failed(error.to_string()),
    })
}

impl Executor for CudaExecutor {
    fn capabilities(&self) -> Capabilities {
        let (any, state_slots) = (Capabilities::any(), self.runner.state_slots());
        // A state has no way back from tokens that were guessed wrongly.
        let max_drafts_per_row = if state_slots > 0 { 0 } else { any.max_drafts_per_row };
        Capabilities { state_slots, max_drafts_per_row, ..any }
    }

    fn vocab(&self) -> usize {
        self.runner.spec().vocab
    }

    fn device(&mut self) -> Option<&mut dyn DeviceExecutor> {
        Some(self)
    }

    fn warm_up(&mut self, report: &mut dyn FnMut(usize, usize)) -> Result<(), String> {
        let done = self.runner.warm_up(report);
        if self.runner.has_warning() {
            self.warn();
        }
        done.map_err(|error| error.to_string())
    }

    fn workers(&self) -> Workers {
        Workers { count: sconce_kernels::cpu::threads(), run: sconce_kernels::cpu::pool::run }
    }

    fn sleep(&mut self) -> Result<u64, String> {
        self.runner.sleep().map_err(|error| error.to_string())
    }

    fn wake(&mut self) -> Result<(), WakeError> {
        wake(&mut self.runner)
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        let done = self.runner.forward(batch, logits);
        if self.runner.has_warning() {
            self.warn();
        }
        done.map_err(|error| error.to_string())
    }
}

impl DeviceExecutor for CudaExecutor {
    fn limits(&self) -> SamplingLimits {
        SamplingLimits { top_logprobs_max: CudaRunner::TOP_LOGPROBS_MAX, masks: true }
    }

    fn issue(&mut self, batch: &BatchInput) -> Result<(), String> {
        let issued = self.runner.issue(batch);
        if self.runner.has_warning() {
            self.warn();
        }
        issued.map_err(|error| error.to_string())
    }

    fn choose(&mut self, wanted: &SampleRequests) -> Result<bool, String> {
        self.runner.choose(wanted).map_err(|error| error.to_string())
    }

    fn collect(
        &mut self,
        wanted: &SampleRequests,
        samples: &mut Vec<Sample>,
        logits: &mut Logits,
    ) -> Result<(), String> {
        self.runner.collect(wanted, samples, logits).map_err(|error| error.to_string())
    }

    fn runs_ahead(&self) -> bool {
        self.runs_ahead
    }

    fn issue_behind(&mut self, batch: &BatchInput, sources: &[u32]) -> Result<(), String> {
        let issued = self.runner.issue_behind(batch, sources);
        if self.runner.has_warning() {
            self.warn();
        }
        issued.map_err(|error| error.to_string())
    }
}
