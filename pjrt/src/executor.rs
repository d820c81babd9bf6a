//! The runner as the engine's executor.

use sconce_engine::sampler::Workers;
use sconce_engine::{Capabilities, Executor};
use sconce_models::{BatchInput, LoadOptions, Logits, Source};

use crate::runner::{PjrtDevice, PjrtOptions, PjrtRunner};

/// A model on a plugin's device.
pub struct PjrtExecutor {
    runner: PjrtRunner,
}

impl PjrtExecutor {
    /// As [`PjrtRunner::load`]: takes as long as the plugin's compiler.
    pub fn load(on: PjrtDevice, source: &Source, options: LoadOptions, pjrt: PjrtOptions) -> Result<Self, String> {
        let runner = PjrtRunner::load(on, source, options, pjrt).map_err(|why| why.to_string())?;
        Ok(Self { runner })
    }

    pub fn runner(&self) -> &PjrtRunner {
        &self.runner
    }
}

impl Executor for PjrtExecutor {
    /// One part of one prompt, or one token of several sequences.
    fn capabilities(&self) -> Capabilities {
        let buckets = self.runner.buckets();
        Capabilities {
            static_buckets: buckets.rows.clone(),
            token_buckets: buckets.chunks.clone(),
            mixed_batch: false,
            max_prefills_per_step: 1,
            max_tokens_per_step: buckets.chunks.last().copied().unwrap_or(1),
            max_drafts_per_row: 0,
            state_slots: 0,
            preemption: true,
        }
    }

    fn vocab(&self) -> usize {
        self.runner.spec().vocab
    }

    fn workers(&self) -> Workers {
        Workers { count: sconce_kernels::cpu::threads(), run: sconce_kernels::cpu::pool::run }
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        self.runner.forward(batch, logits).map_err(|why| why.to_string())
    }
}
