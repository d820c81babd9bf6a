//! NVIDIA GPUs: memory, launches, graphs and kernels.
//!
//! A [`Device`] is a GPU through its driver (feature `driver`; the driver and cuBLASLt are opened at run time, so that one
//! program starts with and without them) or a stand-in that runs the very same kernel sources on the CPU (feature `host`),
//! fiber by fiber: how CI checks kernels, graphs and whole models without a GPU. Everything above this line of the house is
//! the same for both.
//!
//! `kernels/NAME.cu` holds one family of kernels, `src/ops/NAME.rs` its launches with every check that keeps an index inside
//! its memory. All work of a device goes through one stream in the order in which it was issued. A [`Communicator`] joins
//! devices, each with a thread of its own, that compute one model together.
//!
//! Invariants: no operation allocates device memory, so that each can be captured in a [`Graph`]; a failed launch is an
//! error with the kernel's name; the stand-in fills new memory with NaN and checks what stands behind each piece of memory.

#![cfg(feature = "device")]

mod aside;
pub mod comm;
pub mod device;
mod element;
mod error;
mod event;
mod graph;
mod launch;
mod memory;
pub mod ops;

pub use aside::{Mark, SetAside};
pub use comm::{Breaker, Communicator};
pub use device::{Device, DeviceInfo};
pub use element::{Element, ElementType};
pub use error::{Error, Result};
pub use event::Event;
pub use graph::Graph;
pub use launch::Launch;
pub use memory::{Buffer, Pinned, Slice};
