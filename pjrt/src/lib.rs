//! Experimental: the plain Llama-like decoders of `sconce-models`, lowered to StableHLO text and run through a PJRT plugin.
//!
//! The way of a model: [`sconce_models::plain`] reads its files as everywhere; [`lower()`] writes one program a
//! [`Bucket`] of fixed sizes with the emitter of [`hlo`], which checks shapes and is linted for what Neuron's compiler refuses;
//! [`api`] hands the text to a plugin that is opened at run time; [`PjrtRunner`] keeps weights and the paged cache on its
//! device and lays each step out for its bucket; [`PjrtExecutor`] is that for the engine.
//!
//! Invariants: all programs are compiled before the first request; the cache is donated to each step and taken back from it;
//! every index that a program gathers or scatters by is inside; `unsafe` stands in `api/` only.
//!
//! It has run on CPU plugins only, never on Trainium.

#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod api;
mod buckets;
mod cache;
mod element;
mod error;
mod executor;
pub mod hlo;
mod lower;
mod runner;
mod weights;

pub use buckets::{Buckets, Limits};
pub use element::ElementType;
pub use error::{Error, Result};
pub use executor::PjrtExecutor;
pub use lower::{Bucket, Sizes, lower};
pub use runner::{PjrtDevice, PjrtOptions, PjrtRunner, PluginInfo};
pub use weights::bytes as weight_bytes;
