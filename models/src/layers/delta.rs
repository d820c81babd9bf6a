// performance-critical: no allocation per token, no lock, no log, no format
//! Gated delta-rule linear attention (Qwen3-Next, Qwen3.5) in place of attention: what a sequence was is one state, which
//! each of its tokens reads and changes.

use candle_core::Tensor;
use sconce_kernels::{DeltaBatch, DeltaStates, DeltaWeights, PackedWeight, Prologue, gated_delta_rule};

use super::{Join, Linear, Norm, Step, Sum};
use crate::error::Result;

pub(crate) struct DeltaMixer<M = PackedWeight> {
    pub norm: Norm,
    /// Query above key above value, the gate on the result, and two numbers a value head.
    pub input: Linear<M>,
    /// `[taps, mixed]`
    pub taps: Tensor,
    /// Negative. `[value_heads]`
    pub decay: Tensor,
    /// `[value_heads]`
    pub decay_bias: Tensor,
    /// Over each head's result. `[value_dim]`
    pub head_norm: Tensor,
    pub eps: f32,
    pub output: Linear<M>,
    pub join: Option<Join>,
}

impl DeltaMixer {
    /// Advances the states of the step's rows; gives what every token sees, before the output projection.
    /// `[tokens, values]`
    pub fn advance(&self, hidden: &Tensor, step: &Step, states: &mut DeltaStates) -> Result<Tensor> {
        let all = self.input.forward(hidden, self.norm.before())?;
        let weights = DeltaWeights {
            taps: &self.taps,
            decay: &self.decay,
            decay_bias: &self.decay_bias,
            norm: &self.head_norm,
            eps: self.eps,
        };
        let batch = DeltaBatch {
            positions: &step.batch.positions,
            row_ends: &step.batch.row_ends,
            slots: &step.batch.states,
            saves: &step.batch.state_saves,
        };
        Ok(gated_delta_rule(states, &all, &weights, &batch)?)
    }

    /// The output projection of what was seen, added to the hidden state.
    pub fn add_to(&self, residual: &Tensor, seen: &Tensor) -> Result<Tensor> {
        self.output.add_to(Sum { join: self.join.as_ref(), ..Sum::plain(residual) }, seen, Prologue::None)
    }
}
