//! Launches of `kernels/norm.cu`.

use super::rows::{aligned, instances};
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

/// `y = x / sqrt(mean(x^2) + eps) * weight` for each row: x `[rows, dim]` F32, weight `[dim]` F32, y `[rows, dim]`.
pub fn rms_norm(device: &Device, x: Slice, (weight, eps): (Slice, f32), y: Slice, rows: usize) -> Result<()> {
    const OP: &str = "rms_norm";
    let dim = weight.len();
    x.require(OP, "x", ElementType::F32, rows * dim)?;
    weight.require(OP, "weight", ElementType::F32, dim)?;
    y.require(OP, "y", y.ty(), rows * dim)?;
    let kernels = instances!(OP, y.ty(), "rms_norm")?;
    by_rows(kernels, rows, dim, aligned([x, weight, y])).slice(x).slice(weight).slice(y).int(dim).float(eps).on(device)
}

/// `y = (x - mean) / sqrt(variance + eps) * weight + bias` for each row: x `[rows, dim]` F32, weight and bias `[dim]` F32,
/// y `[rows, dim]`.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    pub x: Slice<'a>,
    pub weight: Slice<'a>,
    pub bias: Option<Slice<'a>>,
    pub eps: f32,
    pub y: Slice<'a>,
    pub rows: usize,
}

impl LayerNorm<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device) -> Result<()> {
        const OP: &str = "layer_norm";
        let Self { x, weight, bias, eps, y, rows } = *self;
        let dim = weight.len();
        x.require(OP, "x", ElementType::F32, rows * dim)?;
        weight.require(OP, "weight", ElementType::F32, dim)?;
        bias.map(|bias| bias.require(OP, "bias", ElementType::F32, dim)).transpose()?;
        y.require(OP, "y", y.ty(), rows * dim)?;
        let kernels = instances!(OP, y.ty(), "layer_norm")?;
        let launch = by_rows(kernels, rows, dim, aligned([x, weight, y].into_iter().chain(bias)));
        launch.slice(x).slice(weight).slice_or_null(bias).slice(y).int(dim).float(eps).on(device)
    }
}

/// `residual += scale * norm(y + bias)` for each row, in place: y `[rows, dim]`, bias and norm's weight `[dim]` F32,
/// residual `[rows, dim]` F32.
#[derive(Debug, Clone, Copy)]
pub struct AddScaled<'a> {
    pub y: Slice<'a>,
    pub bias: Option<Slice<'a>>,
    /// Weight and eps of an RMSNorm.
    pub norm: Option<(Slice<'a>, f32)>,
    pub scale: f32,
    pub residual: Slice<'a>,
    pub rows: usize,
    pub dim: usize,
}

impl AddScaled<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device) -> Result<()> {
        const OP: &str = "add_scaled";
        let Self { y, bias, norm, scale, residual, rows, dim } = *self;
        let (weight, eps) = (norm.map(|(weight, _)| weight), norm.map_or(0.0, |(_, eps)| eps));
        y.require(OP, "y", y.ty(), rows * dim)?;
        bias.map(|bias| bias.require(OP, "bias", ElementType::F32, dim)).transpose()?;
        weight.map(|weight| weight.require(OP, "weight", ElementType::F32, dim)).transpose()?;
        residual.require(OP, "residual", ElementType::F32, rows * dim)?;
        let kernels = instances!(OP, y.ty(), "add_scaled")?;
        let launch = by_rows(kernels, rows, dim, aligned([y, residual].into_iter().chain(bias).chain(weight)));
        let launch = launch.slice(y).slice_or_null(bias).slice_or_null(weight).slice(residual);
        launch.int(dim).float(eps).float(scale).on(device)
    }
}

/// `residual += scale * (y + bias)` in place, then `out = rms_norm(residual)`: y `[rows, dim]` of out's type or F32, bias
/// and weight `[dim]` F32, residual `[rows, dim]` F32, out `[rows, dim]`.
#[derive(Debug, Clone, Copy)]
pub struct AddRmsNorm<'a> {
    pub y: Slice<'a>,
    pub bias: Option<Slice<'a>>,
    pub scale: f32,
    pub residual: Slice<'a>,
    pub weight: Slice<'a>,
    pub eps: f32,
    pub out: Slice<'a>,
    pub rows: usize,
}

impl AddRmsNorm<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device) -> Result<()> {
        use ElementType::{Bf16, F16, F32};
        const OP: &str = "add_rms_norm";
        let Self { y, bias, scale, residual, weight, eps, out, rows } = *self;
        let dim = weight.len();
        y.require(OP, "y", y.ty(), rows * dim)?;
        bias.map(|bias| bias.require(OP, "bias", F32, dim)).transpose()?;
        weight.require(OP, "weight", F32, dim)?;
        residual.require(OP, "residual", F32, rows * dim)?;
        out.require(OP, "out", out.ty(), rows * dim)?;
        let kernels = match (y.ty(), out.ty()) {
            (F32, F32) => ["add_rms_norm_f32_f32", "add_rms_norm_wide_f32_f32"],
            (F32, F16) => ["add_rms_norm_f32_f16", "add_rms_norm_wide_f32_f16"],
            (F32, Bf16) => ["add_rms_norm_f32_bf16", "add_rms_norm_wide_f32_bf16"],
            (F16, F16) => ["add_rms_norm_f16_f16", "add_rms_norm_wide_f16_f16"],
            (Bf16, Bf16) => ["add_rms_norm_bf16_bf16", "add_rms_norm_wide_bf16_bf16"],
            (y, out) => return Err(shape(OP, format!("y is {} and out {}", y.name(), out.name()))),
        };
        let launch = by_rows(kernels, rows, dim, aligned([y, residual, weight, out].into_iter().chain(bias)));
        let launch = launch.slice(y).slice_or_null(bias).slice(residual).slice(weight).slice(out);
        launch.int(dim).float(eps).float(scale).on(device)
    }
}

/// One block a row, wide accesses where memory and `dim` allow them. Full warps, so many that a row of a usual size stays
/// in registers (four accesses a thread).
fn by_rows([plain, wide]: [&'static str; 2], rows: usize, dim: usize, aligned: bool) -> Launch<'static> {
    let (kernel, accesses) = if aligned && dim.is_multiple_of(4) { (wide, dim / 4) } else { (plain, dim) };
    let two_each = accesses.div_ceil(2).next_multiple_of(32).clamp(32, 512);
    let kept = accesses.div_ceil(4).next_multiple_of(32).min(1024);
    Launch::new(kernel).grid(rows, 1, 1).block(two_each.max(kept), 1)
}
