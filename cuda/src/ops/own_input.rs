//! Launches of `kernels/own_input.cu`: what each layer gets of a token beside the hidden state.

use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

const OP: &str = "inputs of layers";

fn kernel(kernels: [&'static str; 3], ty: ElementType) -> Result<&'static str> {
    match ty {
        ElementType::F32 => Ok(kernels[0]),
        ElementType::F16 => Ok(kernels[1]),
        ElementType::Bf16 => Ok(kernels[2]),
        other => Err(shape(OP, format!("there is no kernel for {}", other.name()))),
    }
}

/// `all = (rms_norm(scale * projected) + all) / sqrt(2)` in place, the norm over every `weight.len()` elements: projected T and
/// all F32 `[rows, width]`, weight F32 `[width]`.
pub fn join_inputs(
    device: &Device,
    projected: Slice,
    scale: f32,
    (weight, eps): (Slice, f32),
    all: Slice,
    rows: usize,
) -> Result<()> {
    let width = weight.len();
    let kernel = kernel(["own_inputs_f32", "own_inputs_f16", "own_inputs_bf16"], projected.ty())?;
    weight.require(OP, "weight", ElementType::F32, 1)?;
    projected.require(OP, "projected", projected.ty(), rows * width)?;
    all.require(OP, "all", ElementType::F32, rows * width)?;
    let launch = Launch::new(kernel).grid(rows.div_ceil(4), 1, 1).block(128, 1);
    let launch = launch.slice(projected).slice(weight).slice(all).int(rows).int(width);
    launch.float(scale).float(eps).on(device)
}

/// `y = gelu_tanh(gate) * own`: gate and y T `[rows, width]`; own is columns `start..start + width` of all F32
/// `[tokens, stride]`.
#[derive(Debug, Clone, Copy)]
pub struct OwnGate<'a> {
    pub gate: Slice<'a>,
    pub all: Slice<'a>,
    /// U32 `[rows]`: which of the tokens rows are; a number beyond gives zeros. Without, row is token.
    pub chosen: Option<Slice<'a>>,
    pub y: Slice<'a>,
    pub rows: usize,
    pub width: usize,
    pub start: usize,
    pub stride: usize,
}

impl OwnGate<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device) -> Result<()> {
        let Self { gate, all, chosen, y, rows, width, start, stride } = *self;
        let kernel = kernel(["own_gate_f32", "own_gate_f16", "own_gate_bf16"], gate.ty())?;
        if start + width > stride || !all.len().is_multiple_of(stride) {
            return Err(shape(OP, format!("columns {start} and {width} more of {stride} of {}", all.len())));
        }
        gate.require(OP, "gate", gate.ty(), rows * width)?;
        y.require(OP, "y", gate.ty(), rows * width)?;
        let tokens = all.len() / stride;
        all.require(OP, "all", ElementType::F32, tokens * stride)?;
        if chosen.is_none() && rows > tokens {
            return Err(shape(OP, format!("{rows} rows of {tokens} tokens")));
        }
        chosen.map(|chosen| chosen.require(OP, "chosen", ElementType::U32, rows)).transpose()?;
        let launch = Launch::new(kernel).grid(rows, width.div_ceil(256), 1).block(256, 1);
        let launch = launch.slice(gate).slice(all).slice_or_null(chosen).slice(y);
        launch.int(width).int(start).int(stride).int(tokens).on(device)
    }
}
