//! The inference engine: one OS thread that schedules, runs and samples every sequence of one replica.
//!
//! The parts that decide (`scheduler`, `blocks`, `sequence`, `batch`, `sampler`) are pure: same inputs and seed, same
//! outputs. `run` owns them on the engine thread and is the only place where channels and the clock meet them.
//!
//! One step: `Scheduler::schedule` -> `batch::fill` -> `Executor::execute` -> `Sampler::sample_step` ->
//! `Scheduler::commit`, and what came out of it leaves as [`Progress`] through each sequence's own bounded channel.

pub mod batch;
pub mod blocks;
pub mod executor;
pub mod filter;
pub mod handle;
mod run;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod sim;
pub mod stats;

pub use blocks::BlockId;
pub use executor::{Executor, ModelExecutor};
pub use filter::{NextTokens, TokenFilter};
pub use handle::{EngineHandle, Progress, PromptDone, Submit, SubmitError};
pub use sampler::SamplingParams;
pub use scheduler::{Capabilities, EngineConfig};
pub use sequence::{FinishReason, SeqId, Token, TokenLogprobs};
pub use sim::{SimExecutor, SimOptions};
pub use stats::{EngineStats, StepTokens};
