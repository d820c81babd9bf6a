//! Dense layers: activations times the transpose of a weight that stays in its file's format.

use candle_core::Tensor;

use crate::cpu::{self, Isa};
use crate::error::{Result, shape};
use crate::tensors;
use crate::weight::Weight;

/// `y = x W^T (+ bias)`: x `[tokens, input]` f32, w `[out, input]` -> `[tokens, out]` f32.
///
/// Weights are dequantised tile by tile into cache-resident scratch that all token rows share, so they are read from
/// memory once a call. Each output is one dot product in one fixed lane order: a row's result has the same bits
/// whatever else is in the batch.
pub fn matmul(x: &Tensor, w: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "matmul";
    tensors::require_cpu(OP, x.device())?;
    let (tokens, input) = tensors::dims2(OP, "x", x)?;
    if input != w.input() {
        return Err(shape(OP, format!("x has {input} columns and the weight takes {}", w.input())));
    }
    if let Some(bias) = bias {
        tensors::require_dims(OP, "bias", bias, &[w.out()])?;
    }
    let (x_storage, x_layout) = x.storage_and_layout();
    let x_values = tensors::values(OP, "x", &x_storage, x_layout)?;
    let bias = bias.map(|bias| bias.storage_and_layout());
    let bias = match &bias {
        Some((storage, layout)) => Some(tensors::values(OP, "bias", storage, layout)?),
        None => None,
    };
    let y = cpu::matmul::matmul(Isa::best(), x_values, w, bias);
    Ok(Tensor::from_vec(y, (tokens, w.out()), x.device())?)
}
