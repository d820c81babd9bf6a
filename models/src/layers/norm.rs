// performance-critical: no allocation per token, no lock, no log, no format
//! RMSNorm (arXiv 1910.07467), which is done on the way into the projection behind it.

use candle_core::Tensor;
use sconce_kernels::Prologue;

pub(crate) struct Norm {
    /// `[hidden]`
    pub weight: Tensor,
    pub eps: f32,
}

impl Norm {
    /// The norm as what stands before a projection.
    pub fn before(&self) -> Prologue<'_> {
        Prologue::RmsNorm { weight: &self.weight, eps: self.eps }
    }
}
