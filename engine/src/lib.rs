//! The inference engine: one OS thread that schedules, runs and samples every sequence of one replica.
//!
//! The parts that decide (`scheduler`, `blocks`, `states`, `sequence`, `batch`, `sampler`, `costs`, `lookup`, `speculation`) are
//! pure: same inputs and seed, same outputs. `run` owns them on the engine thread and is the only place where channels
//! and the clock meet them.
//!
//! One step: `Scheduler::schedule` -> `DraftModel::guess` (where there is one) -> `batch::fill` -> `Executor::execute` ->
//! `StepSampler::sample` -> `Scheduler::commit`, and what came out of it leaves as [`Progress`] through each sequence's own
//! bounded channel. How long it took goes back through `Scheduler::observe`: prefill shares and drafts follow from that.
//! An executor of compiled steps stands behind `PaddedExecutor`, which fills its steps up to the sizes it has. One on a
//! device computes and samples between `DeviceExecutor::issue` and `collect`, while the thread delivers. A model on several
//! devices is a `RankedExecutor`: the first rank on the engine thread, each other one in a thread that follows its steps.

#![forbid(unsafe_code)]

mod adapter;
pub mod batch;
pub mod blocks;
mod costs;
#[cfg(feature = "gpu")]
mod cuda;
mod delivery;
mod draft_model;
pub mod embed;
pub mod executor;
pub mod filter;
pub mod handle;
mod lookup;
mod padded;
mod ranks;
mod run;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod sim;
pub mod speculation;
pub mod states;
pub mod stats;

/// For whoever drops what stood around an engine.
pub use sconce_kernels::allocator;

pub use adapter::{ADAPTERS_MAX, AdapterId, LoadedAdapter};
pub use blocks::BlockId;
#[cfg(feature = "gpu")]
pub use cuda::{CudaExecutor, cuda_ranks};
pub use embed::{EmbedConfig, EmbedDone, EmbedFailure, EmbedHandle, EmbedStats, EmbedSubmit, EmbedText};
pub use executor::{DeviceExecutor, Executor, ModelExecutor, SamplingLimits, WakeError};
pub use filter::{NextTokens, TokenFilter};
pub use handle::{EngineHandle, Progress, PromptDone, Submit, SubmitError};
pub use padded::{PaddedExecutor, scratch_blocks};
pub use ranks::{Link, Rank, RankedExecutor};
pub use sampler::SamplingParams;
pub use scheduler::{Capabilities, EngineConfig, ItlTarget};
pub use sequence::{FinishReason, SeqId, Token, TokenLogprobs};
pub use sim::{SimExecutor, SimOptions};
pub use speculation::{NgramConfig, Speculation};
pub use states::StateSlot;
pub use stats::{EngineStats, StepTokens};
