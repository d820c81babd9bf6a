// performance-critical: no allocation per token, no lock, no log, no format
//! A projection: a weight in its file's format, and a bias where the family has one.

use candle_core::Tensor;
use sconce_kernels::{Weight, matmul};

use crate::error::Result;

pub(crate) struct Linear {
    pub weight: Weight,
    /// `[out]`
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `[tokens, in]` to `[tokens, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(matmul(x, &self.weight, self.bias.as_ref())?)
    }
}
