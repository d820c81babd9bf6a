//! Other engines as members of a pool: any program that serves the OpenAI API on a port, started, watched and ended.
//!
//! | file | what |
//! |---|---|
//! | `state.rs` | a worker's life: starting, warming, ready, unresponsive, draining, stopping, backoff, failed. Pure |
//! | `supervisor.rs` | the loop that feeds it: exits, checks, progress, orders |
//! | `status.rs` | what is told of a worker: to the pool, to people, to metrics |
//! | `process.rs`, `guard.rs` | a real process behind a guard, and the guard |
//! | `health.rs` | what a port answers: nothing, garbage, not yet, ready |
//! | `log.rs` | what it writes: capped, cleaned, the last lines kept |
//! | `proc.rs` | processes below a process, and their CPU time |
//! | `command.rs`, `cores.rs` | command templates and their placeholders; lists of Neuron cores. Pure |
//! | `neuron.rs` | the reports of `neuron-monitor` |
//! | `user.rs` | the account that a worker runs under |
//!
//! # Invariants
//!
//! 1. At most one process of a worker lives at a time, and none after `stop`.
//! 2. A worker ends with its server, however that ends: the guard sees its pipe close and kills all that came of it.
//! 3. A worker gets only the environment that it was given: no secret of the server.
//! 4. Minutes of compiling are normal: what still writes or computes is not ended before its whole time is up.
//! 5. Nothing that a worker writes or answers can fill memory or forge a line of the log.

#![forbid(unsafe_code)]

pub mod command;
pub mod cores;
pub mod guard;
mod health;
mod log;
pub mod neuron;
mod proc;
mod process;
pub mod state;
mod status;
mod supervisor;
#[cfg(test)]
mod tests;
mod user;

pub use cores::Cores;
pub use health::{Check, Served};
pub use process::{Environment, Launcher, WorkerSpec};
pub use state::Limits;
pub use status::{PHASES, Phase, Status};
pub use supervisor::Supervisor;
pub use user::User;
