//! What hardware is here, and what fits on it.
//!
//! Detection reads files under a [`root::Root`] that tests replace; nothing is opened that was not asked for, and what
//! is not known is `None`, never 0. [`fit`] and [`findings`] are pure. Nothing here knows models or the engine.

#![forbid(unsafe_code)]

pub mod cpu;
pub mod findings;
pub mod fit;
pub mod machine;
pub mod neuron;
pub mod nvidia;
pub mod pci;
pub mod rates;
pub mod root;
pub mod topology;

pub use machine::Machine;
pub use root::Root;
