//! Measurements that need the engine and the machine themselves; those that only need a server's address are in the
//! package `sconce-bench`.

pub mod breakdown;
pub mod engine;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod hardware;
pub mod limit;
mod steps;
