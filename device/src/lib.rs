//! What hardware is here, and what fits on it.

#![forbid(unsafe_code)]

pub mod cpu;
pub mod fit;
pub mod topology;
