//! Launches of `kernels/matvec.cu`: dense products of few rows, by reading each weight once.

use super::gemm::Gemm;
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;

const OP: &str = "matvec";

/// Rows of x that the kernels take at most.
pub const ROWS: usize = 16;

/// The product of a [`Gemm`] whose sizes were checked.
pub(super) fn matvec(device: &Device, gemm: &Gemm) -> Result<()> {
    let Gemm { x, w, y, m, n, k, add } = *gemm;
    if m > ROWS {
        return Err(shape(OP, format!("{m} rows, at most {ROWS} are possible")));
    }
    let ty = x.ty();
    let is_wide = ty != ElementType::F32 && y.ty() == ElementType::F32;
    // Tensor cores take 16 bytes at a time.
    let is_even = k.is_multiple_of(8) && x.address().is_multiple_of(16) && w.address().is_multiple_of(16);
    let (kernel, rows, threads) = match (ty, is_even) {
        (ElementType::F16, true) if m <= 8 => ("matvec_8_f16", 16, 256),
        (ElementType::F16, true) => ("matvec_16_f16", 16, 256),
        (ElementType::Bf16, true) if m <= 8 => ("matvec_8_bf16", 16, 256),
        (ElementType::Bf16, true) => ("matvec_16_bf16", 16, 256),
        (ElementType::F16, false) => ("matvec_plain_f16", 4, 128),
        (ElementType::Bf16, false) => ("matvec_plain_bf16", 4, 128),
        _ => ("matvec_plain_f32", 4, 128),
    };
    let launch = Launch::new(kernel).grid(n.div_ceil(rows), 1, 1).block(threads, 1);
    let launch = launch.slice(x).slice(w).slice(y).int(m).int(n).int(k);
    launch.int(usize::from(is_wide)).int(usize::from(add)).on(device)
}
