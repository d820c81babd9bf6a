// performance-critical: no allocation per token, no lock, no log, no format
//! The parts that every decoder of these families is made of. Each takes and gives `[tokens, width]` activations.

mod attention;
mod choice;
mod convolution;
mod delta;
mod latent;
mod linear;
mod mixer;
mod mlp;
mod moe;
mod norm;
mod own_input;

pub(crate) use attention::{Attention, HeadNormWeights, Step};
pub(crate) use choice::Choice;
pub(crate) use convolution::ShortConvolution;
pub(crate) use delta::DeltaMixer;
pub(crate) use latent::LatentAttention;
pub(crate) use linear::{Linear, Sum};
pub(crate) use mixer::{Mixer, Query};
pub(crate) use mlp::Mlp;
pub(crate) use moe::{ExpertMlp, Moe, SharedExpert};
pub(crate) use norm::{Join, Norm, RmsNorm};
pub(crate) use own_input::{OwnInput, OwnInputs};
