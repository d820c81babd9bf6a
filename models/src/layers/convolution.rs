// performance-critical: no allocation per token, no lock, no log, no format
//! A gated short convolution in place of attention (LFM2): from each token three vectors, the product of two of which is
//! convolved with that of the tokens just before it and multiplied with the third.
//!
//! What is convolved lies in the cache's blocks, one vector a token, so that sharing a prefix, leaving a batch and coming
//! back are what they are for K and V.

use candle_core::Tensor;
use sconce_kernels::{KvLayer, PackedWeight, Prologue, short_convolution, write_vectors};

use super::{Join, Linear, Norm, Step, Sum};
use crate::error::Result;

pub(crate) struct ShortConvolution<M = PackedWeight> {
    pub norm: Norm,
    /// The first factor, the gate on the result, the second factor. `[3 * hidden, hidden]`
    pub input: Linear<M>,
    /// `[taps, hidden]`
    pub taps: Tensor,
    /// `[hidden]`
    pub bias: Option<Tensor>,
    pub output: Linear<M>,
    pub join: Option<Join>,
}

impl ShortConvolution {
    /// Writes what is convolved of `hidden` `[tokens, hidden]` into the step's slots; gives the gate on the result.
    pub fn write(&self, hidden: &Tensor, step: &Step, cache: &mut KvLayer) -> Result<Tensor> {
        let all = self.input.forward(hidden, self.norm.before())?;
        let width = all.dim(1)? / 3;
        let product = (all.narrow(1, 0, width)? * all.narrow(1, 2 * width, width)?)?;
        write_vectors(cache, &product, &step.batch.slots)?;
        Ok(all.narrow(1, width, width)?)
    }

    /// What every token becomes, before the output projection. `[tokens, hidden]`
    pub fn attend(&self, gate: &Tensor, step: &Step, cache: &KvLayer) -> Result<Tensor> {
        let mixed = short_convolution(cache, &step.attention_batch(), &self.taps, self.bias.as_ref())?;
        Ok((gate * mixed)?)
    }

    /// The output projection of what was mixed, added to the hidden state.
    pub fn add_to(&self, residual: &Tensor, mixed: &Tensor) -> Result<Tensor> {
        self.output.add_to(Sum { join: self.join.as_ref(), ..Sum::plain(residual) }, mixed, Prologue::None)
    }
}
