//! The CPU back end: slice-level kernels and the threads that run them.
//!
//! Kernels are generic over an instruction set ([`simd`]) that is chosen at run time; the tensor-level functions of
//! this package use the best one, tests run all.

pub mod activate;
mod attend;
pub mod attention;
pub mod choose;
pub(crate) mod convolve;
pub(crate) mod delta;
pub mod dequant;
mod dequant_k;
mod dot;
pub mod encode;
pub(crate) mod format;
mod half_table;
pub mod heads;
pub mod low_rank;
pub mod matmul;
pub mod nodes;
pub mod packed;
pub mod peak;
pub mod pool;
pub mod rows;
mod simd;

pub use pool::{set_threads, threads};
pub use simd::Isa;
