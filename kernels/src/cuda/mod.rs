//! The CUDA back end: no kernel is built yet.
//!
//! Every operation answers a CUDA tensor with [`crate::Error::Unsupported`] and its own name, with and without the
//! feature `cuda`; the feature only links the driver's bindings so that the build is exercised.

/// Whether this build holds CUDA kernels.
pub const KERNELS_BUILT: bool = false;
