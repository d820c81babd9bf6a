//! The PJRT C API over a plugin that is opened at run time: plugin, client, device, buffer, executable.
//!
//! Invariants: what a plugin handed out is given back exactly once, by `Drop`; nothing of a plugin outlives its client; a
//! plugin stays open until the process ends, since its threads do; every call says the size of its arguments, and a plugin
//! that has fewer calls than are made here is refused when it is opened, never called beyond its table.
//!
//! `unsafe` stands in this folder only: a C interface cannot be called without.

mod buffer;
mod client;
mod executable;
mod plugin;
mod sys;

pub use buffer::Buffer;
pub use client::{Client, Device};
pub use executable::Executable;
pub use plugin::Plugin;
