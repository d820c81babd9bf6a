//! Launches of `kernels/rows.cu`, and how kernels that go through rows are launched at all.

use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

/// The instance of a kernel for an element type: plain, and with wide accesses.
macro_rules! instances {
    ($op:expr, $ty:expr, $base:literal) => {
        match $ty {
            ElementType::F32 => Ok([concat!($base, "_f32"), concat!($base, "_wide_f32")]),
            ElementType::F16 => Ok([concat!($base, "_f16"), concat!($base, "_wide_f16")]),
            ElementType::Bf16 => Ok([concat!($base, "_bf16"), concat!($base, "_wide_bf16")]),
            other => Err(crate::error::shape($op, format!("there is no kernel for {}", other.name()))),
        }
    };
}
pub(super) use instances;

/// Threads of a block that does a part of a row.
const THREADS: usize = 128;

/// Whether all begin at a multiple of 16 bytes.
pub(super) fn aligned<'a>(slices: impl IntoIterator<Item = Slice<'a>>) -> bool {
    slices.into_iter().all(|slice| slice.address().is_multiple_of(16))
}

/// The elements that a wide access moves.
pub(super) fn per_access(ty: ElementType) -> usize {
    16 / ty.bytes()
}

/// One block for each part of each row, `width` elements of a row and `access` of them a thread.
pub(super) fn over_rows(kernel: &str, rows: usize, width: usize, access: usize) -> Launch<'_> {
    let accesses = width.div_ceil(access);
    let threads = accesses.next_multiple_of(32).min(THREADS);
    Launch::new(kernel).grid(rows, accesses.div_ceil(threads), 1).block(threads, 1)
}

/// As many blocks as `len` elements take, `access` of them a thread.
fn over_all(kernel: &str, len: usize, access: usize) -> Launch<'_> {
    let accesses = len.div_ceil(access);
    let threads = accesses.next_multiple_of(32).clamp(32, 256);
    Launch::new(kernel).grid(accesses.div_ceil(threads), 1, 1).block(threads, 1)
}

/// Rows by their numbers: x `[rows_in, dim]` and y `[indices, dim]` of one type, indices U32. An index beyond x gives
/// zeros.
pub fn gather(device: &Device, x: Slice, indices: Slice, y: Slice, dim: usize) -> Result<()> {
    const OP: &str = "gather";
    let (rows, ty) = (indices.len(), x.ty());
    let [plain, wide] = instances!(OP, ty, "gather")?;
    if dim == 0 || !x.len().is_multiple_of(dim) {
        return Err(shape(OP, format!("{} elements are no rows of {dim}", x.len())));
    }
    indices.require(OP, "indices", ElementType::U32, rows)?;
    y.require(OP, "y", ty, rows * dim)?;
    let access = per_access(ty);
    let launch = if dim.is_multiple_of(access) && aligned([x, y]) {
        over_rows(wide, rows, dim, access)
    } else {
        over_rows(plain, rows, dim, 1)
    };
    launch.slice(x).slice(indices).slice(y).int(dim).int(x.len() / dim).on(device)
}

/// The elements of x in the type of y; one of the two is F32.
pub fn convert(device: &Device, x: Slice, y: Slice, len: usize) -> Result<()> {
    use ElementType::{Bf16, F16, F32};
    const OP: &str = "convert";
    x.require(OP, "x", x.ty(), len)?;
    y.require(OP, "y", y.ty(), len)?;
    let (plain, wide) = match (x.ty(), y.ty()) {
        (F32, F32) => ("convert_f32_f32", "convert_wide_f32_f32"),
        (F32, F16) => ("convert_f32_f16", "convert_wide_f32_f16"),
        (F32, Bf16) => ("convert_f32_bf16", "convert_wide_f32_bf16"),
        (F16, F32) => ("convert_f16_f32", "convert_wide_f16_f32"),
        (Bf16, F32) => ("convert_bf16_f32", "convert_wide_bf16_f32"),
        (from, to) => return Err(shape(OP, format!("{} to {}", from.name(), to.name()))),
    };
    let launch =
        if len.is_multiple_of(4) && aligned([x, y]) { over_all(wide, len, 4) } else { over_all(plain, len, 1) };
    launch.slice(x).slice(y).long(len).on(device)
}

/// `scale * x`, then `cap * tanh(x / cap)` where there is a cap, in place: x F32.
pub fn scale_and_cap(device: &Device, x: Slice, len: usize, scale: f32, cap: Option<f32>) -> Result<()> {
    const OP: &str = "scale_and_cap";
    x.require(OP, "x", ElementType::F32, len)?;
    if cap.is_some_and(|cap| cap <= 0.0 || cap.is_nan()) {
        return Err(shape(OP, "a cap must be above 0"));
    }
    let wide = len.is_multiple_of(4) && aligned([x]);
    let launch = if wide { over_all("scale_and_cap_wide", len, 4) } else { over_all("scale_and_cap", len, 1) };
    launch.slice(x).long(len).float(scale).float(cap.unwrap_or(0.0)).on(device)
}
