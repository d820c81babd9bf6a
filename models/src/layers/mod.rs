// performance-critical: no allocation per token, no lock, no log, no format
//! The parts that every decoder of these families is made of. Each takes and gives `[tokens, width]` activations.

mod attention;
mod linear;
mod mlp;
mod moe;
mod norm;

pub(crate) use attention::{Attention, Step};
pub(crate) use linear::{Linear, Sum};
pub(crate) use mlp::Mlp;
pub(crate) use moe::{ExpertMlp, Moe, SharedExpert};
pub(crate) use norm::{Join, Norm, RmsNorm};
