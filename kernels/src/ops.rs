//! The operations between the dense layers, row by row or element by element, and choosing from logits.

use candle_core::{Device, Tensor};

use crate::cpu::packed::PackedWeight;
use crate::cpu::rows::{self, Gate};
use crate::cpu::{Isa, choose};
use crate::error::{Result, shape};
pub use crate::rope::{RopeStyle, RopeTable, rope};
use crate::tensors;

/// Rows `ids` of the table, dequantised: `[tokens, hidden]`.
pub fn embedding(table: &PackedWeight, ids: &[u32], device: &Device) -> Result<Tensor> {
    const OP: &str = "embedding";
    tensors::require_cpu(OP, device)?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= table.out()) {
        return Err(shape(OP, format!("token id {id} is outside the table of {} rows", table.out())));
    }
    let hidden = table.input();
    let mut out = vec![0.0; ids.len() * hidden];
    for (id, row) in ids.iter().zip(out.chunks_mut(hidden)) {
        table.row_f32(*id as usize, row);
    }
    Ok(Tensor::from_vec(out, (ids.len(), hidden), device)?)
}

/// `x / sqrt(mean(x^2) + eps) * weight` for each row: x `[rows, dim]`, weight `[dim]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    const OP: &str = "rms_norm";
    tensors::require_cpu(OP, x.device())?;
    let (_, dim) = tensors::dims2(OP, "x", x)?;
    tensors::require_dims(OP, "weight", weight, &[dim])?;
    let ((x_storage, x_layout), (w_storage, w_layout)) = (x.storage_and_layout(), weight.storage_and_layout());
    let x_values = tensors::values(OP, "x", &x_storage, x_layout)?;
    let weight = tensors::values(OP, "weight", &w_storage, w_layout)?;
    let (normed, _) = rows::rms_norm(Isa::best(), x_values, None, weight, eps);
    Ok(Tensor::from_vec(normed, x.shape(), x.device())?)
}

/// `(normed, sum)` with `sum = x + residual` and `normed = rms_norm(sum)`; x and residual `[rows, dim]`.
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    const OP: &str = "add_rms_norm";
    tensors::require_cpu(OP, x.device())?;
    let (_, dim) = tensors::dims2(OP, "x", x)?;
    tensors::require_dims(OP, "residual", residual, x.dims())?;
    tensors::require_dims(OP, "weight", weight, &[dim])?;
    let ((x_storage, x_layout), (w_storage, w_layout)) = (x.storage_and_layout(), weight.storage_and_layout());
    let (r_storage, r_layout) = residual.storage_and_layout();
    let x_values = tensors::values(OP, "x", &x_storage, x_layout)?;
    let residual = tensors::values(OP, "residual", &r_storage, r_layout)?;
    let weight = tensors::values(OP, "weight", &w_storage, w_layout)?;
    let (normed, sum) = rows::rms_norm(Isa::best(), x_values, Some(residual), weight, eps);
    Ok((Tensor::from_vec(normed, x.shape(), x.device())?, Tensor::from_vec(sum, x.shape(), x.device())?))
}

/// `residual + scale * rms_norm(x)`, or `residual + scale * x` without a norm; x and residual `[rows, dim]`.
pub fn add_scaled(x: &Tensor, residual: &Tensor, norm: Option<(&Tensor, f32)>, scale: f32) -> Result<Tensor> {
    const OP: &str = "add_scaled";
    tensors::require_cpu(OP, x.device())?;
    let (_, dim) = tensors::dims2(OP, "x", x)?;
    tensors::require_dims(OP, "residual", residual, x.dims())?;
    let ((x_storage, x_layout), (r_storage, r_layout)) = (x.storage_and_layout(), residual.storage_and_layout());
    let x_values = tensors::values(OP, "x", &x_storage, x_layout)?;
    let residual = tensors::values(OP, "residual", &r_storage, r_layout)?;
    let sum = match norm {
        None => rows::add_scaled(Isa::best(), x_values, residual, None, scale),
        Some((weight, eps)) => {
            tensors::require_dims(OP, "weight", weight, &[dim])?;
            let (storage, layout) = weight.storage_and_layout();
            let weight = tensors::values(OP, "weight", &storage, layout)?;
            rows::add_scaled(Isa::best(), x_values, residual, Some((weight, eps)), scale)
        }
    };
    Ok(Tensor::from_vec(sum, x.shape(), x.device())?)
}

/// `scale * x`, then `cap * tanh(x / cap)` where there is a cap, in place.
pub fn scale_and_cap(values: &mut [f32], scale: f32, cap: Option<f32>) {
    rows::scale_and_cap(Isa::best(), values, scale, cap);
}

/// `silu(gate) * up`, element by element; any shape, the same for both.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated("silu_mul", gate, up, Gate::Silu)
}

/// `gelu(gate) * up` with the tanh approximation, element by element.
pub fn gelu_tanh_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated("gelu_tanh_mul", gate, up, Gate::GeluTanh)
}

/// `sigmoid(gate) * x`, element by element; any shape, the same for both.
pub fn sigmoid_mul(gate: &Tensor, x: &Tensor) -> Result<Tensor> {
    gated("sigmoid_mul", gate, x, Gate::Sigmoid)
}

fn gated(op: &'static str, gate: &Tensor, up: &Tensor, activation: Gate) -> Result<Tensor> {
    tensors::require_cpu(op, gate.device())?;
    tensors::require_dims(op, "up", up, gate.dims())?;
    let ((g_storage, g_layout), (u_storage, u_layout)) = (gate.storage_and_layout(), up.storage_and_layout());
    let gate_values = tensors::values(op, "gate", &g_storage, g_layout)?;
    let up_values = tensors::values(op, "up", &u_storage, u_layout)?;
    let out = rows::gated(Isa::best(), activation, gate_values, up_values);
    Ok(Tensor::from_vec(out, gate.shape(), gate.device())?)
}

/// Index of the largest value: the lowest index wins a tie, NaN never wins; 0 when there is nothing to choose.
pub fn argmax(logits: &[f32]) -> u32 {
    choose::argmax(Isa::best(), logits)
}

/// The `k` largest values into `out`, best first, ties by lowest index; NaN never appears.
pub fn top_k(logits: &[f32], k: usize, out: &mut Vec<(u32, f32)>) {
    choose::top_k(logits, k, out);
}
