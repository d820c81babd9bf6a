// performance-critical: no allocation per token, no lock, no log, no format
//! What mixes the tokens of a sequence in one layer, in the two halves that a step needs apart.

use candle_core::Tensor;
use sconce_kernels::KvLayer;

use super::{Attention, LatentAttention, ShortConvolution, Step};
use crate::error::Result;

pub(crate) enum Mixer {
    Attention(Attention),
    Latent(LatentAttention),
    Convolution(ShortConvolution),
}

impl Mixer {
    /// Fills the cache from `hidden` `[tokens, hidden]`; gives what [`Self::attend`] needs of the tokens beside it.
    pub fn write(&self, hidden: &Tensor, step: &Step, cache: &mut KvLayer) -> Result<Tensor> {
        match self {
            Self::Attention(attention) => attention.write(hidden, step, cache),
            Self::Latent(attention) => attention.write(hidden, step, cache),
            Self::Convolution(convolution) => convolution.write(hidden, step, cache),
        }
    }

    /// What every token sees of its context. `[tokens, width]`
    pub fn attend(&self, query: &Tensor, step: &Step, cache: &KvLayer) -> Result<Tensor> {
        match self {
            Self::Attention(attention) => attention.attend(query, step, cache),
            Self::Latent(attention) => attention.attend(query, step, cache),
            Self::Convolution(convolution) => convolution.attend(query, step, cache),
        }
    }

    /// What was seen, added to the hidden state.
    pub fn add_to(&self, residual: &Tensor, seen: &Tensor, step: &Step) -> Result<Tensor> {
        match self {
            Self::Attention(attention) => attention.add_to(residual, seen, step),
            Self::Latent(attention) => attention.add_to(residual, seen),
            Self::Convolution(convolution) => convolution.add_to(residual, seen),
        }
    }
}
