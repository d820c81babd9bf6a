// performance-critical: no allocation per token, no lock, no log, no format
//! The feed-forward block: `down(silu(gate(x)) * up(x))` (SwiGLU, arXiv 2002.05202), with another activation, or
//! `down(gelu(up(x)))` without a gate.

use candle_core::Tensor;
use sconce_kernels::{PackedWeight, Prologue};

use super::{Join, Linear, Norm, Step, Sum};
use crate::adapter::Site;
use crate::error::Result;
use crate::timing::{Operation, timed};

pub(crate) struct Mlp<M = PackedWeight> {
    pub norm: Norm,
    /// Gate above up `[2 * ffn, hidden]`, or up alone `[ffn, hidden]`.
    pub gate_up: Linear<M>,
    /// `[hidden, ffn]`
    pub down: Linear<M>,
    /// What stands between the two.
    pub activation: Prologue<'static>,
    pub join: Option<Join>,
}

impl Mlp {
    /// The block on `hidden` with its norm, added to `residual`: all `[tokens, hidden]`.
    pub fn forward(&self, hidden: &Tensor, residual: &Tensor, step: &Step) -> Result<Tensor> {
        // [tokens, 2 * ffn] or [tokens, ffn]
        let extra = step.extra(Site::GateUp);
        let wide = timed(Operation::GateUp, || self.gate_up.forward_with(hidden, self.norm.before(), extra))?;
        let to = Sum { residual, join: self.join.as_ref(), extra: step.extra(Site::Down) };
        timed(Operation::Down, || self.down.add_to(to, &wide, self.activation))
    }
}
