//! Model specs, weights, and one file an architecture family over shared layers.
//!
//! A model is a pure function of a ragged batch and a paged KV cache ([`Model::forward`]); it knows nothing of requests,
//! sequences or sampling.

pub mod batch;

pub use batch::{BatchInput, Logits};
