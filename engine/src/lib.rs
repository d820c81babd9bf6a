//! The inference engine: one OS thread that schedules, runs and samples every sequence of one replica.
//!
//! The parts that decide (`scheduler`, `blocks`, `sequence`, `batch`, `sampler`, `costs`, `lookup`, `speculation`) are
//! pure: same inputs and seed, same outputs. `run` owns them on the engine thread and is the only place where channels
//! and the clock meet them.
//!
//! One step: `Scheduler::schedule` -> `DraftModel::guess` (where there is one) -> `batch::fill` -> `Executor::execute` -> `StepSampler::sample` ->
//! `Scheduler::commit`, and what came out of it leaves as [`Progress`] through each sequence's own bounded channel. How
//! long it took goes back through `Scheduler::observe`: prefill shares and drafts follow from that.

#![forbid(unsafe_code)]

mod adapter;
pub mod batch;
pub mod blocks;
mod costs;
mod delivery;
mod draft_model;
pub mod embed;
pub mod executor;
pub mod filter;
pub mod handle;
mod lookup;
mod run;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod sim;
pub mod speculation;
pub mod stats;

pub use adapter::{ADAPTERS_MAX, AdapterId, LoadedAdapter};
pub use blocks::BlockId;
pub use embed::{EmbedConfig, EmbedDone, EmbedFailure, EmbedHandle, EmbedStats, EmbedSubmit, EmbedText};
pub use executor::{Executor, ModelExecutor};
pub use filter::{NextTokens, TokenFilter};
pub use handle::{EngineHandle, Progress, PromptDone, Submit, SubmitError};
pub use sampler::SamplingParams;
pub use scheduler::{Capabilities, EngineConfig, ItlTarget};
pub use sequence::{FinishReason, SeqId, Token, TokenLogprobs};
pub use sim::{SimExecutor, SimOptions};
pub use speculation::{NgramConfig, Speculation};
pub use stats::{EngineStats, StepTokens};
