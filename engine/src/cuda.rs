// performance-critical: no allocation per token, no lock, no log, no format
//! A model on a GPU as an executor.

use sconce_models::cuda::{CudaModel, CudaRunner, CudaSizes};
use sconce_models::{BatchInput, Logits, Sample, SampleRequests};

use super::executor::{DeviceExecutor, Executor, SamplingLimits, WakeError};
use super::sampler::Workers;
use super::scheduler::Capabilities;

/// A model with its KV cache and buffers on a GPU.
pub struct CudaExecutor {
    runner: CudaRunner,
}

impl CudaExecutor {
    /// Allocates cache and buffers: `sizes` has the numbers of `EngineConfig`.
    pub fn new(model: CudaModel, sizes: CudaSizes) -> Result<Self, String> {
        Ok(Self { runner: CudaRunner::new(model, sizes).map_err(|error| error.to_string())? })
    }

    /// With slots for so many states instead of one, if the model keeps a state a sequence.
    pub fn with_state_slots(self, slots: u32) -> Result<Self, String> {
        let runner = self.runner.with_state_slots(slots).map_err(|error| error.to_string())?;
        Ok(Self { runner })
    }

    #[cold]
    fn warn(&mut self) {
        if let Some(warning) = self.runner.take_warning() {
            tracing::warn!("{warning}");
        }
    }
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

    fn workers(&self) -> Workers {
        Workers { count: sconce_kernels::cpu::threads(), run: sconce_kernels::cpu::pool::run }
    }

    fn sleep(&mut self) -> Result<u64, String> {
        self.runner.sleep().map_err(|error| error.to_string())
    }

    fn wake(&mut self) -> Result<(), WakeError> {
        self.runner.wake().map_err(|error| match error.lacks_device_memory() {
            true => WakeError::Memory(error.to_string()),
            false => WakeError::Failed(error.to_string()),
        })
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

    fn collect(
        &mut self,
        wanted: &SampleRequests,
        samples: &mut Vec<Sample>,
        logits: &mut Logits,
    ) -> Result<(), String> {
        self.runner.collect(wanted, samples, logits).map_err(|error| error.to_string())
    }
}
