//! Launches of `kernels/fp8.cu`: products with weights in FP8 (E4M3) and their scales; activations stay as they are.

use super::gemm::Gemm;
use super::quant::aligned;
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::{Buffer, Slice};

const OP: &str = "FP8 product";

/// Up to so many rows weights are multiplied as they are, read once for every 32 rows; more rows go through a dense product
/// with the weights as plain elements. Unmeasured: no GPU was at hand.
pub const FP8_ROWS_MAX: usize = 64;

/// A matrix `[n, k]` of E4M3 in device memory, each block of `block` (rows, columns) with a scale.
pub struct Fp8Weight {
    bytes: Buffer,
    scales: Buffer,
    n: usize,
    k: usize,
    block: (usize, usize),
}

impl Fp8Weight {
    /// Uploads `[n, k]` E4M3 and its scales `[ceil(n / block.0), ceil(k / block.1)]`: (1, k) is one a row, (n, k) one for all. A
    /// block has a multiple of 128 columns, or all.
    pub fn upload(
        device: &Device,
        bytes: &[u8],
        scales: &[f32],
        (n, k): (usize, usize),
        block: (usize, usize),
    ) -> Result<Self> {
        const SIZE_MAX: usize = i32::MAX as usize / 2;
        if n == 0 || k == 0 || n > SIZE_MAX || k > SIZE_MAX || !k.is_multiple_of(16) {
            return Err(shape(OP, format!("no weight [{n}, {k}]: rows must be a multiple of 16 elements")));
        }
        if block.0 == 0 || block.1 == 0 || (block.1 < k && !block.1.is_multiple_of(128)) {
            return Err(shape(OP, format!("blocks of {block:?}: columns must be a multiple of 128, or all {k}")));
        }
        // Kernels count in int.
        let block = (block.0.min(n), block.1.min(k));
        let scale_count = n.div_ceil(block.0) * k.div_ceil(block.1);
        if bytes.len() != n * k || scales.len() != scale_count {
            let (bytes, found) = (bytes.len(), scales.len());
            return Err(shape(OP, format!("{bytes} bytes and {found} scales for [{n}, {k}] in blocks of {block:?}")));
        }
        Ok(Self { bytes: device.upload(bytes)?, scales: device.upload(scales)?, n, k, block })
    }

    /// Features that come out.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Features that go in.
    pub fn k(&self) -> usize {
        self.k
    }

    /// What it takes of the device's memory.
    pub fn bytes(&self) -> usize {
        self.bytes.bytes() + self.scales.bytes()
    }

    /// Bytes of workspace for an [`Fp8Gemm`] of up to `m_max` rows of `ty`.
    pub fn workspace_bytes(&self, m_max: usize, ty: ElementType) -> usize {
        if is_dense(m_max, ty) { self.n * self.k * ty.bytes() } else { 0 }
    }

    /// The plain elements: out `[n, k]` in F32, F16 or BF16.
    pub fn dequantise(&self, device: &Device, out: Slice) -> Result<()> {
        let Self { n, k, block, .. } = *self;
        let kernel = match out.ty() {
            ElementType::F32 => "fp8_plain_f32",
            ElementType::F16 => "fp8_plain_f16",
            ElementType::Bf16 => "fp8_plain_bf16",
            other => return Err(shape(OP, format!("elements cannot become {}", other.name()))),
        };
        out.require(OP, "out", out.ty(), n * k)?;
        aligned(OP, "out", out)?;
        let launch = Launch::new(kernel).grid((n * k).div_ceil(1024), 1, 1).block(256, 1);
        let launch = launch.slice(self.bytes.all()).slice(self.scales.all()).slice(out);
        launch.int(n).int(k).int(block.0).int(block.1).on(device)
    }
}

/// Whether the weights become plain elements first; there is no kernel of few rows in F32.
fn is_dense(m: usize, ty: ElementType) -> bool {
    m > FP8_ROWS_MAX || ty == ElementType::F32
}

/// `y = x w^T`, or `y += x w^T`: x `[m, k]` in F32, F16 or BF16, y `[m, n]` in the same or F32.
#[derive(Clone, Copy)]
pub struct Fp8Gemm<'a> {
    pub x: Slice<'a>,
    pub w: &'a Fp8Weight,
    pub y: Slice<'a>,
    pub m: usize,
    /// Added to what y holds.
    pub add: bool,
}

impl Fp8Gemm<'_> {
    /// Issues it. `workspace` U8 as [`Fp8Weight::workspace_bytes`] says.
    pub fn on(&self, device: &Device, workspace: Slice) -> Result<()> {
        let Self { x, w, y, m, add } = *self;
        let (ty, n, k) = (x.ty(), w.n, w.k);
        x.require(OP, "x", ty, m * k)?;
        let out = if y.ty() == ElementType::F32 { ElementType::F32 } else { ty };
        y.require(OP, "y", out, m * n)?;
        if is_dense(m, ty) {
            let plain = workspace.cast(OP, ty)?;
            plain.require(OP, "workspace", ty, n * k)?;
            w.dequantise(device, plain)?;
            return Gemm { x, w: plain, y, m, n, k, add }.on(device);
        }
        aligned(OP, "x", x)?;
        let (kernel, rows) = match (ty, m) {
            (ElementType::F16, 0..=8) => ("fp8_product_8_f16", 8),
            (ElementType::F16, 9..=16) => ("fp8_product_16_f16", 16),
            (ElementType::F16, _) => ("fp8_product_32_f16", 32),
            (ElementType::Bf16, 0..=8) => ("fp8_product_8_bf16", 8),
            (ElementType::Bf16, 9..=16) => ("fp8_product_16_bf16", 16),
            (ElementType::Bf16, _) => ("fp8_product_32_bf16", 32),
            (other, _) => return Err(shape(OP, format!("no product of {}", other.name()))),
        };
        let launch = Launch::new(kernel).grid(n.div_ceil(16), m.div_ceil(rows), 1).block(256, 1);
        let launch = launch.slice(x).slice(w.bytes.all()).slice(w.scales.all()).slice(y).int(m).int(n).int(k);
        let launch = launch.int(w.block.0).int(w.block.1);
        launch.int(usize::from(out == ElementType::F32)).int(usize::from(add)).on(device)
    }
}
