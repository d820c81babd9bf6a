//! Launches of `kernels/columns.cu`.

use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

/// Makes y `[rows, n]` of columns `first..first + n` of x `[rows, stride]`, which has the same type.
pub fn take_columns(
    device: &Device,
    x: Slice,
    y: Slice,
    rows: usize,
    (first, n, stride): (usize, usize, usize),
) -> Result<()> {
    const OP: &str = "take_columns";
    if first + n > stride {
        return Err(shape(OP, format!("columns {first} to {} of {stride}", first + n)));
    }
    x.require(OP, "x", x.ty(), rows * stride)?;
    y.require(OP, "y", x.ty(), rows * n)?;
    let kernel = match x.ty() {
        ElementType::F32 => "columns_taken_f32",
        ElementType::F16 => "columns_taken_f16",
        ElementType::Bf16 => "columns_taken_bf16",
        other => return Err(shape(OP, format!("x cannot be {}", other.name()))),
    };
    if rows == 0 {
        return Ok(());
    }
    let launch = Launch::new(kernel).grid((rows * n).div_ceil(256), 1, 1).block(256, 1);
    launch.slice(x.range(first, x.len() - first)).slice(y).int(rows).int(n).int(stride).on(device)
}

/// Puts x `[rows, n]` into columns `first..first + n` of y `[rows, stride]`, which has the same type.
pub fn place_columns(
    device: &Device,
    x: Slice,
    y: Slice,
    rows: usize,
    (first, n, stride): (usize, usize, usize),
) -> Result<()> {
    const OP: &str = "place_columns";
    if first + n > stride {
        return Err(shape(OP, format!("columns {first} to {} of {stride}", first + n)));
    }
    x.require(OP, "x", x.ty(), rows * n)?;
    y.require(OP, "y", x.ty(), rows * stride)?;
    let kernel = match x.ty() {
        ElementType::F32 => "columns_f32",
        ElementType::F16 => "columns_f16",
        ElementType::Bf16 => "columns_bf16",
        other => return Err(shape(OP, format!("x cannot be {}", other.name()))),
    };
    if rows == 0 {
        return Ok(());
    }
    let launch = Launch::new(kernel).grid((rows * n).div_ceil(256), 1, 1).block(256, 1);
    launch.slice(x).slice(y.range(first, y.len() - first)).int(rows).int(n).int(stride).on(device)
}
