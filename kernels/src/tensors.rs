//! From candle tensors to plain slices and back, with the checks that every operation shares.

use candle_core::{CpuStorage, Device, Layout, Storage, Tensor};

use crate::error::{Error, Result, shape};

/// Refuses a tensor that does not lie on the CPU, the only device with kernels so far.
pub(crate) fn require_cpu(op: &'static str, device: &Device) -> Result<()> {
    if device.is_cpu() {
        return Ok(());
    }
    let place = device.location();
    Err(Error::Unsupported { op, detail: format!("no kernel for {place:?} is built yet, run on the cpu") })
}

/// The values of a contiguous f32 tensor on the CPU.
pub(crate) fn values<'a>(op: &'static str, name: &str, storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    let Storage::Cpu(storage) = storage else {
        return Err(Error::Unsupported { op, detail: format!("{name} is not on the cpu") });
    };
    cpu_values(op, name, storage, layout)
}

/// As [`values`], for storage that is known to be the CPU's.
pub(crate) fn cpu_values<'a>(
    op: &'static str,
    name: &str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else {
        return Err(shape(op, format!("{name} must be f32 on the cpu")));
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(shape(op, format!("{name} {:?} is not contiguous: call contiguous() first", layout.shape())));
    };
    Ok(&values[start..end])
}

/// The sizes of a tensor that must have two dimensions.
pub(crate) fn dims2(op: &'static str, name: &str, tensor: &Tensor) -> Result<(usize, usize)> {
    match tensor.dims() {
        &[first, second] => Ok((first, second)),
        other => Err(shape(op, format!("{name} must have 2 dimensions and has {other:?}"))),
    }
}

/// The sizes of a tensor that must have three dimensions.
pub(crate) fn dims3(op: &'static str, name: &str, tensor: &Tensor) -> Result<(usize, usize, usize)> {
    match tensor.dims() {
        &[first, second, third] => Ok((first, second, third)),
        other => Err(shape(op, format!("{name} must have 3 dimensions and has {other:?}"))),
    }
}

/// Refuses a tensor whose sizes are not exactly `wanted`.
pub(crate) fn require_dims(op: &'static str, name: &str, tensor: &Tensor, wanted: &[usize]) -> Result<()> {
    if tensor.dims() == wanted {
        return Ok(());
    }
    Err(shape(op, format!("{name} must be {wanted:?} and is {:?}", tensor.dims())))
}
