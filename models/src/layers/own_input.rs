// performance-critical: no allocation per token, no lock, no log, no format
//! What each layer gets of a token beside the hidden state (Gemma 3n and 4): a vector from a table of its own and from the
//! token's embedding, which a small block at the end of the layer adds.

use candle_core::Tensor;
use sconce_kernels::{PackedWeight, Prologue, embedding, rms_norm};

use super::{Join, Linear, RmsNorm, Sum};
use crate::error::Result;

/// The vectors of all layers.
pub(crate) struct OwnInputs<M = PackedWeight> {
    /// `[vocab, layers * width]`
    pub table: M,
    /// From the embedding, as it enters the first layer. `[layers * width, hidden]`
    pub projection: Linear<M>,
    /// Over the projected vector of one layer. `[width]`
    pub norm: RmsNorm,
    /// Factors on the table's rows and on the projection.
    pub scales: (f64, f64),
}

impl OwnInputs {
    /// `[tokens, layers * width]`
    pub fn of(&self, tokens: &[u32], hidden: &Tensor) -> Result<Tensor> {
        let projected = (self.projection.forward(hidden, Prologue::None)? * self.scales.1)?;
        let (rows, all) = projected.dims2()?;
        let width = self.norm.weight.dim(0)?;
        let normed = rms_norm(&projected.reshape((rows * all / width, width))?, &self.norm.weight, self.norm.eps)?;
        let looked_up = (embedding(&self.table, tokens, hidden.device())? * self.scales.0)?;
        let sum = (normed.reshape((rows, all))? + looked_up)?;
        Ok((sum * std::f64::consts::FRAC_1_SQRT_2)?)
    }
}

/// What a layer does with its vector.
pub(crate) struct OwnInput<M = PackedWeight> {
    /// Where the vector starts among those of all layers.
    pub start: usize,
    /// `[width, hidden]`
    pub gate: Linear<M>,
    /// `[hidden, width]`
    pub projection: Linear<M>,
    pub join: Join,
}

impl OwnInput {
    /// `hidden + norm(projection(gelu(gate(hidden)) * own))`; `all` holds the vectors of all layers.
    pub fn add_to(&self, hidden: &Tensor, all: &Tensor) -> Result<Tensor> {
        let gate = self.gate.forward(hidden, Prologue::None)?;
        let own = all.narrow(1, self.start, gate.dim(1)?)?;
        let both = Tensor::cat(&[&gate, &own], 1)?.contiguous()?;
        self.projection.add_to(Sum { join: Some(&self.join), ..Sum::plain(hidden) }, &both, Prologue::GeluTanhMul)
    }
}
