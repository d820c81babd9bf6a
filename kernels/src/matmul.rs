//! Dense layers: activations times the transpose of packed weights, with what stands directly before and behind.

use candle_core::Tensor;

pub use crate::cpu::activate::Activation;
use crate::cpu::matmul as dense;
use crate::cpu::packed::PackedWeight;
use crate::cpu::rows::Gate;
use crate::cpu::{self, Isa};
use crate::error::{Result, shape};
use crate::tensors;

const OP: &str = "matmul";

/// What is done to x on its way into the product.
#[derive(Debug, Clone, Copy, Default)]
pub enum Prologue<'a> {
    /// x is `[tokens, input]`.
    #[default]
    None,
    /// RMSNorm with a weight `[input]`: x is `[tokens, input]`.
    RmsNorm { weight: &'a Tensor, eps: f32 },
    /// LayerNorm with a weight `[input]` and perhaps a bias `[input]`: x is `[tokens, input]`.
    LayerNorm { weight: &'a Tensor, bias: Option<&'a Tensor>, eps: f32 },
    /// `gelu(x)` with the tanh approximation: x is `[tokens, input]`.
    GeluTanh,
    /// `silu(gate) * up`: x is `[tokens, 2 * input]`, gate before up.
    SiluMul,
    /// `gelu(gate) * up`, exact: x is `[tokens, 2 * input]`, gate before up.
    GeluMul,
    /// `gelu(gate) * up` with the tanh approximation: x is `[tokens, 2 * input]`, gate before up.
    GeluTanhMul,
    /// The gate of GPT-OSS, `crate::cpu::rows::Gate::ClampedSwiglu`: x is `[tokens, 2 * input]`, gate before up.
    ClampedSwigluMul,
    /// An activation alone: x is `[tokens, input]`.
    Activation(Activation),
}

impl Prologue<'_> {
    /// It takes two values for each that goes into the product.
    pub(crate) fn is_gated(&self) -> bool {
        matches!(self, Self::SiluMul | Self::GeluMul | Self::GeluTanhMul | Self::ClampedSwigluMul)
    }
}

/// What is added to the product.
#[derive(Debug, Clone, Copy, Default)]
pub struct Added<'a> {
    /// `[out]`
    pub bias: Option<&'a Tensor>,
    /// `[tokens, out]`
    pub residual: Option<&'a Tensor>,
}

/// `y = prologue(x) W^T + bias + residual`: `[tokens, out]` f32.
///
/// Block-quantised weights are multiplied in 8-bit integers (activations are quantised in blocks of 32, as ggml does),
/// BF16 weights with activations rounded to BF16, F16 and F32 weights in f32. Each output is summed in one fixed order:
/// a row's result has the same bits whatever else is in the batch.
pub fn matmul(x: &Tensor, prologue: Prologue, w: &PackedWeight, added: Added) -> Result<Tensor> {
    let tokens = x.dim(0)?;
    let mut y = Vec::with_capacity(tokens.saturating_mul(w.out()));
    matmul_into(x, prologue, w, added, &mut y)?;
    Ok(Tensor::from_vec(y, (tokens, w.out()), x.device())?)
}

/// As [`matmul`], appended to `y`.
pub fn matmul_into(x: &Tensor, prologue: Prologue, w: &PackedWeight, added: Added, y: &mut Vec<f32>) -> Result<()> {
    tensors::require_cpu(OP, x.device())?;
    let (tokens, columns) = tensors::dims2(OP, "x", x)?;
    let wanted = if prologue.is_gated() { 2 * w.input() } else { w.input() };
    if columns != wanted {
        return Err(shape(OP, format!("x has {columns} columns and the weight takes {wanted}")));
    }
    if let Some(bias) = added.bias {
        tensors::require_dims(OP, "bias", bias, &[w.out()])?;
    }
    if let Some(residual) = added.residual {
        tensors::require_dims(OP, "residual", residual, &[tokens, w.out()])?;
    }
    let (x_storage, x_layout) = x.storage_and_layout();
    let x = tensors::values(OP, "x", &x_storage, x_layout)?;
    let bias = added.bias.map(Tensor::storage_and_layout);
    let residual = added.residual.map(Tensor::storage_and_layout);
    let bias = bias.as_ref().map(|(storage, layout)| tensors::values(OP, "bias", storage, layout)).transpose()?;
    let residual =
        residual.as_ref().map(|(storage, layout)| tensors::values(OP, "residual", storage, layout)).transpose()?;
    let added = dense::Added { bias, residual };
    with_prologue(OP, prologue, w.input(), |prologue| cpu::matmul::matmul(Isa::best(), x, prologue, w, added, y))
}

/// Hands on what stands before a product of `input` values, its sizes checked.
pub(crate) fn with_prologue(
    op: &'static str,
    prologue: Prologue,
    input: usize,
    run: impl FnOnce(dense::Prologue),
) -> Result<()> {
    match prologue {
        Prologue::None => run(dense::Prologue::None),
        Prologue::GeluTanh => run(dense::Prologue::Active(Gate::GeluTanh)),
        Prologue::ClampedSwigluMul => run(dense::Prologue::Gated(Gate::ClampedSwiglu)),
        Prologue::SiluMul => run(dense::Prologue::Gated(Gate::Silu)),
        Prologue::GeluMul => run(dense::Prologue::Gated(Gate::Gelu)),
        Prologue::GeluTanhMul => run(dense::Prologue::Gated(Gate::GeluTanh)),
        Prologue::Activation(activation) => run(dense::Prologue::Activation(activation)),
        Prologue::RmsNorm { weight, eps } => {
            tensors::require_dims(op, "norm weight", weight, &[input])?;
            let (storage, layout) = weight.storage_and_layout();
            let weight = tensors::values(op, "norm weight", &storage, layout)?;
            run(dense::Prologue::RmsNorm { weight, eps });
        }
        Prologue::LayerNorm { weight, bias, eps } => {
            tensors::require_dims(op, "norm weight", weight, &[input])?;
            let (storage, layout) = weight.storage_and_layout();
            let weight = tensors::values(op, "norm weight", &storage, layout)?;
            let Some(bias) = bias else {
                run(dense::Prologue::LayerNorm { weight, bias: None, eps });
                return Ok(());
            };
            tensors::require_dims(op, "norm bias", bias, &[input])?;
            let (storage, layout) = bias.storage_and_layout();
            let bias = Some(tensors::values(op, "norm bias", &storage, layout)?);
            run(dense::Prologue::LayerNorm { weight, bias, eps });
        }
    }
    Ok(())
}
