// performance-critical: no allocation per token, no lock, no log, no format
//! A projection, or several that take the same input: packed weights, and a bias where the family has one.

use candle_core::Tensor;
use sconce_kernels::{Added, PackedWeight, Prologue, matmul, matmul_into};

use super::Join;
use crate::adapter::Extra;
use crate::error::Result;

/// Where a block's result goes: the hidden state `[tokens, out]`, through `join` where there is one.
#[derive(Clone, Copy)]
pub(crate) struct Sum<'a> {
    pub residual: &'a Tensor,
    pub join: Option<&'a Join>,
    pub extra: Option<Extra<'a>>,
}

impl<'a> Sum<'a> {
    /// Plainly, without adapters.
    pub fn plain(residual: &'a Tensor) -> Self {
        Self { residual, join: None, extra: None }
    }
}

/// `M` is a matrix, or several with the same input, as the device multiplies with it.
pub(crate) struct Linear<M = PackedWeight> {
    pub weight: M,
    /// `[out]`
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `prologue(x) W^T + bias`: `[tokens, out]`
    pub fn forward(&self, x: &Tensor, prologue: Prologue) -> Result<Tensor> {
        Ok(matmul(x, prologue, &self.weight, Added { bias: self.bias.as_ref(), residual: None })?)
    }

    /// As [`Linear::forward`], appended to `y`.
    pub fn forward_into(&self, x: &Tensor, prologue: Prologue, y: &mut Vec<f32>) -> Result<()> {
        let added = Added { bias: self.bias.as_ref(), residual: None };
        Ok(matmul_into(x, prologue, &self.weight, added, y)?)
    }

    /// As [`Linear::forward`], with what adapters add.
    pub fn forward_with(&self, x: &Tensor, prologue: Prologue, extra: Option<Extra>) -> Result<Tensor> {
        match extra {
            None => self.forward(x, prologue),
            Some(extra) => self.adapted(x, prologue, None, extra),
        }
    }

    /// As [`Linear::forward`], added to the hidden state `[tokens, out]`.
    pub fn add_to(&self, sum: Sum, x: &Tensor, prologue: Prologue) -> Result<Tensor> {
        let Sum { residual, join, extra } = sum;
        match (join, extra) {
            (None, None) => {
                let added = Added { bias: self.bias.as_ref(), residual: Some(residual) };
                Ok(matmul(x, prologue, &self.weight, added)?)
            }
            (None, Some(extra)) => self.adapted(x, prologue, Some(residual), extra),
            (Some(join), extra) => join.add(&self.forward_with(x, prologue, extra)?, residual),
        }
    }

    fn adapted(&self, x: &Tensor, prologue: Prologue, residual: Option<&Tensor>, extra: Extra) -> Result<Tensor> {
        let (tokens, out) = (x.dim(0)?, self.weight.out());
        let mut y = Vec::with_capacity(tokens * out);
        matmul_into(x, prologue, &self.weight, Added { bias: self.bias.as_ref(), residual }, &mut y)?;
        extra.add(x, prologue, &mut y, out)?;
        Ok(Tensor::from_vec(y, (tokens, out), x.device())?)
    }
}
