// performance-critical: no allocation per token, no lock, no log, no format
//! The gated feed-forward block: `down(silu(gate(x)) * up(x))` (SwiGLU, arXiv 2002.05202).

use candle_core::Tensor;
use sconce_kernels::silu_mul;

use super::Linear;
use crate::error::Result;

pub(crate) struct Mlp {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

impl Mlp {
    /// `[tokens, hidden]` to `[tokens, hidden]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // [tokens, ffn]
        let gated = silu_mul(&self.gate.forward(x)?, &self.up.forward(x)?)?;
        self.down.forward(&gated)
    }
}
