// performance-critical: no allocation per token, no lock, no log, no format
//! What mixes the tokens of a sequence in one layer, in the two halves that a step needs apart.

use candle_core::Tensor;
use sconce_kernels::PackedWeight;

use super::{Attention, DeltaMixer, LatentAttention, ShortConvolution, Step};
use crate::error::{Error, Result};
use crate::kv::LayerCache;

pub(crate) enum Mixer<M = PackedWeight> {
    Attention(Attention<M>),
    Latent(LatentAttention<M>),
    Convolution(ShortConvolution<M>),
    Delta(DeltaMixer<M>),
}

/// What [`Mixer::attend`] needs of the tokens beside the cache.
pub(crate) struct Query {
    pub query: Tensor,
    /// On what is seen. `[tokens, width]`
    pub gate: Option<Tensor>,
}

impl From<Tensor> for Query {
    fn from(query: Tensor) -> Self {
        Self { query, gate: None }
    }
}

impl Mixer {
    /// Fills the cache from `hidden` `[tokens, hidden]`; gives what [`Self::attend`] needs of the tokens beside it.
    pub fn write(&self, hidden: &Tensor, step: &Step, cache: &mut LayerCache) -> Result<Query> {
        match (self, cache) {
            (Self::Attention(attention), LayerCache::Blocks(cache)) => attention.write(hidden, step, cache),
            (Self::Latent(attention), LayerCache::Blocks(cache)) => Ok(attention.write(hidden, step, cache)?.into()),
            (Self::Convolution(convolution), LayerCache::Blocks(cache)) => {
                Ok(convolution.write(hidden, step, cache)?.into())
            }
            // A state is read as it changes: nothing is left to be seen later.
            (Self::Delta(delta), LayerCache::States(states)) => Ok(delta.advance(hidden, step, states)?.into()),
            _ => Err(another_models_cache()),
        }
    }

    /// What every token sees of its context. `[tokens, width]`
    pub fn attend(&self, query: &Query, step: &Step, cache: &LayerCache) -> Result<Tensor> {
        match (self, cache) {
            (Self::Attention(attention), LayerCache::Blocks(cache)) => attention.attend(query, step, cache),
            (Self::Latent(attention), LayerCache::Blocks(cache)) => attention.attend(&query.query, step, cache),
            (Self::Convolution(convolution), LayerCache::Blocks(cache)) => {
                convolution.attend(&query.query, step, cache)
            }
            (Self::Delta(_), LayerCache::States(_)) => Ok(query.query.clone()),
            _ => Err(another_models_cache()),
        }
    }

    /// What was seen, added to the hidden state.
    pub fn add_to(&self, residual: &Tensor, seen: &Tensor, step: &Step) -> Result<Tensor> {
        match self {
            Self::Attention(attention) => attention.add_to(residual, seen, step),
            Self::Latent(attention) => attention.add_to(residual, seen),
            Self::Convolution(convolution) => convolution.add_to(residual, seen),
            Self::Delta(delta) => delta.add_to(residual, seen),
        }
    }
}

#[cold]
fn another_models_cache() -> Error {
    Error::Batch("the kv cache is another model's".to_owned())
}
