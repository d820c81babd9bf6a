// performance-critical: no allocation per token, no lock, no log, no format
//! The gated feed-forward block: `down(silu(gate(x)) * up(x))` (SwiGLU, arXiv 2002.05202).

use candle_core::Tensor;
use sconce_kernels::Prologue;

use super::{Linear, Norm};
use crate::error::Result;

pub(crate) struct Mlp {
    pub norm: Norm,
    /// Gate above up. `[2 * ffn, hidden]`
    pub gate_up: Linear,
    /// `[hidden, ffn]`
    pub down: Linear,
}

impl Mlp {
    /// The block with its norm and its residual: `[tokens, hidden]` to `[tokens, hidden]`.
    pub fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        // [tokens, 2 * ffn]
        let wide = self.gate_up.forward(hidden, self.norm.before(), None)?;
        self.down.forward(&wide, Prologue::SiluMul, Some(hidden))
    }
}
