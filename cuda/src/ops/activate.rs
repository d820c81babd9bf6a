//! Launches of `kernels/activate.cu`.

use super::rows::{aligned, instances, over_rows, per_access};
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

/// An activation that gates something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Silu,
    GeluTanh,
    /// `gate * sigmoid(1.702 * gate) * (up + 1)` with gate at most 7 and up within -7..=7 (GPT-OSS).
    ClampedSwiglu,
}

/// An activation without a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Active {
    /// `x * normal_cdf(x)`, exact.
    Gelu,
    /// The same with its tanh approximation.
    GeluTanh,
    Relu,
    Silu,
}

/// `y = activation(gate) * up`: x `[rows, 2 * width]`, the gate before what it gates, bias `[2 * width]` F32 added first,
/// y `[rows, width]` of x's type.
#[derive(Debug, Clone, Copy)]
pub struct Gated<'a> {
    pub gate: Gate,
    pub x: Slice<'a>,
    pub bias: Option<Slice<'a>>,
    pub y: Slice<'a>,
    pub rows: usize,
    pub width: usize,
}

impl Gated<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device) -> Result<()> {
        const OP: &str = "gated";
        let Self { gate, x, bias, y, rows, width } = *self;
        let kernels = match gate {
            Gate::Silu => instances!(OP, x.ty(), "gated_silu")?,
            Gate::GeluTanh => instances!(OP, x.ty(), "gated_gelu_tanh")?,
            Gate::ClampedSwiglu => instances!(OP, x.ty(), "gated_clamped_swiglu")?,
        };
        x.require(OP, "x", x.ty(), 2 * rows * width)?;
        bias.map(|bias| bias.require(OP, "bias", ElementType::F32, 2 * width)).transpose()?;
        y.require(OP, "y", x.ty(), rows * width)?;
        let launch = by_rows(kernels, (rows, width), x.ty(), aligned([x, y]))?;
        launch.slice(x).slice_or_null(bias).slice(y).int(width).on(device)
    }
}

/// `y = activation(x + bias)`: x and y `[rows, width]` of one type (they may be the same memory), bias `[width]` F32.
#[derive(Debug, Clone, Copy)]
pub struct Activated<'a> {
    pub active: Active,
    pub x: Slice<'a>,
    pub bias: Option<Slice<'a>>,
    pub y: Slice<'a>,
    pub rows: usize,
    pub width: usize,
}

impl Activated<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device) -> Result<()> {
        const OP: &str = "activated";
        let Self { active, x, bias, y, rows, width } = *self;
        let kernels = match active {
            Active::Gelu => instances!(OP, x.ty(), "activated_gelu")?,
            Active::GeluTanh => instances!(OP, x.ty(), "activated_gelu_tanh")?,
            Active::Relu => instances!(OP, x.ty(), "activated_relu")?,
            Active::Silu => instances!(OP, x.ty(), "activated_silu")?,
        };
        x.require(OP, "x", x.ty(), rows * width)?;
        bias.map(|bias| bias.require(OP, "bias", ElementType::F32, width)).transpose()?;
        y.require(OP, "y", x.ty(), rows * width)?;
        let launch = by_rows(kernels, (rows, width), x.ty(), aligned([x, y]))?;
        launch.slice(x).slice_or_null(bias).slice(y).int(width).on(device)
    }
}

/// `y += bias` for each row, in place: bias `[width]` F32, y `[rows, width]`.
pub fn add_bias(device: &Device, bias: Slice, y: Slice, rows: usize, width: usize) -> Result<()> {
    const OP: &str = "add_bias";
    let kernels = instances!(OP, y.ty(), "add_bias")?;
    bias.require(OP, "bias", ElementType::F32, width)?;
    y.require(OP, "y", y.ty(), rows * width)?;
    by_rows(kernels, (rows, width), y.ty(), aligned([y]))?.slice(bias).slice(y).int(width).on(device)
}

/// Wide accesses where memory and `width` allow them.
fn by_rows(
    [plain, wide]: [&'static str; 2],
    (rows, width): (usize, usize),
    ty: ElementType,
    aligned: bool,
) -> Result<Launch<'static>> {
    if width == 0 {
        return Err(shape("activate", "rows without elements"));
    }
    let access = per_access(ty);
    Ok(if aligned && width.is_multiple_of(access) {
        over_rows(wide, rows, width, access)
    } else {
        over_rows(plain, rows, width, 1)
    })
}
