//! Dense products of activations with the transpose of a weight.

#[cfg(feature = "driver")]
pub(crate) mod lt;

use super::matvec;
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::memory::Slice;

const OP: &str = "gemm";

/// Up to so many rows [`GemmPath::Auto`] takes the kernels of this house on a GPU. Unmeasured: no GPU was at hand.
pub const MATVEC_ROWS_MAX: usize = 8;

/// Who multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemmPath {
    /// What should be fastest: [`GemmPath::Own`] for up to [`MATVEC_ROWS_MAX`] rows on a GPU, otherwise the library.
    Auto,
    /// cuBLASLt; plain loops on the stand-in.
    Library,
    /// The kernels of `kernels/matvec.cu`, for at most [`matvec::ROWS`] rows.
    Own,
}

/// `y = x w^T`, or `y += x w^T`: x `[m, k]`, w `[n, k]`, y `[m, n]`, sums in f32. x and w have one type, F32, F16 or BF16; y
/// has the same or F32.
#[derive(Debug, Clone, Copy)]
pub struct Gemm<'a> {
    pub x: Slice<'a>,
    pub w: Slice<'a>,
    pub y: Slice<'a>,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Added to what y holds.
    pub add: bool,
}

impl Gemm<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device) -> Result<()> {
        self.by(GemmPath::Auto, device)
    }

    /// Issues it in a given way.
    pub fn by(&self, path: GemmPath, device: &Device) -> Result<()> {
        let Self { x, w, y, m, n, k, .. } = *self;
        if m == 0 || n == 0 {
            return Ok(());
        }
        let ty = x.ty();
        if !matches!(ty, ElementType::F32 | ElementType::F16 | ElementType::Bf16) || k == 0 {
            return Err(shape(OP, format!("no product of {} over {k}", ty.name())));
        }
        x.require(OP, "x", ty, m * k)?;
        w.require(OP, "w", ty, n * k)?;
        let out = if y.ty() == ElementType::F32 { ElementType::F32 } else { ty };
        y.require(OP, "y", out, m * n)?;
        let is_gpu = device.info().compute_capability.0 > 0;
        match path {
            GemmPath::Own => matvec::matvec(device, self),
            GemmPath::Auto if is_gpu && m <= MATVEC_ROWS_MAX => matvec::matvec(device, self),
            GemmPath::Auto | GemmPath::Library => device.gemm(self),
        }
    }

    /// Without its lifetime, for the list of a graph; its maker keeps the memory.
    #[cfg(feature = "host")]
    pub(crate) fn unbound(&self) -> Gemm<'static> {
        // SAFETY: the lifetime is a marker only: a slice is an address.
        unsafe { std::mem::transmute::<Gemm<'_>, Gemm<'static>>(*self) }
    }
}

/// The stand-in's product: plain loops, summed in f32 in ascending order of `k` over eight lanes.
#[cfg(feature = "host")]
pub(crate) fn gemm_on_host(gemm: &Gemm) {
    use crate::device::read_elements;
    let Gemm { x, w, y, m, n, k, add } = *gemm;
    let xs = read_elements(x.address(), m * k, x.ty());
    let ws = read_elements(w.address(), n * k, w.ty());
    let mut out = if add { read_elements(y.address(), m * n, y.ty()) } else { vec![0.0; m * n] };
    for (x, out) in xs.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
        for (w, out) in ws.chunks_exact(k).zip(out) {
            let mut lanes = [0.0_f32; 8];
            let (xs, x_rest) = x.as_chunks::<8>();
            let (ws, w_rest) = w.as_chunks::<8>();
            for (x, w) in xs.iter().zip(ws) {
                for lane in 0..8 {
                    lanes[lane] += x[lane] * w[lane];
                }
            }
            let rest: f32 = x_rest.iter().zip(w_rest).map(|(x, w)| x * w).sum();
            *out += lanes.iter().sum::<f32>() + rest;
        }
    }
    crate::device::write_elements(y.address(), &out, y.ty());
}
