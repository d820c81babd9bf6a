// performance-critical: no allocation per token, no lock, no log, no format
//! A projection, or several that take the same input: packed weights, and a bias where the family has one.

use candle_core::Tensor;
use sconce_kernels::{Added, PackedWeight, Prologue, matmul};

use crate::error::Result;

pub(crate) struct Linear {
    pub weight: PackedWeight,
    /// `[out]`
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `prologue(x) W^T + bias + residual`: `[tokens, out]`
    pub fn forward(&self, x: &Tensor, prologue: Prologue, residual: Option<&Tensor>) -> Result<Tensor> {
        Ok(matmul(x, prologue, &self.weight, Added { bias: self.bias.as_ref(), residual })?)
    }
}
