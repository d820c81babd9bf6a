//! Launches of `kernels/share.cu`.

use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

/// `y[row] += sigmoid(scores[row]) * x[row]`: x `[rows, width]`, scores `[rows]` F32, y `[rows, width]` F32.
pub fn add_share(device: &Device, x: Slice, scores: Slice, y: Slice, (rows, width): (usize, usize)) -> Result<()> {
    const OP: &str = "add_share";
    const ROWS_MAX: usize = 65_535;
    x.require(OP, "x", x.ty(), rows * width)?;
    scores.require(OP, "scores", ElementType::F32, rows)?;
    y.require(OP, "y", ElementType::F32, rows * width)?;
    if rows > ROWS_MAX {
        return Err(shape(OP, format!("{rows} rows are more than the {ROWS_MAX} of a launch")));
    }
    let kernel = match x.ty() {
        ElementType::F32 => "add_share_f32",
        ElementType::F16 => "add_share_f16",
        ElementType::Bf16 => "add_share_bf16",
        other => return Err(shape(OP, format!("x cannot be {}", other.name()))),
    };
    let launch = Launch::new(kernel).grid(width.div_ceil(256), rows, 1).block(256, 1);
    launch.slice(x).slice(scores).slice(y).int(width).on(device)
}
