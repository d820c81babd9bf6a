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

/// A larger matrix is never made plain: it is a vocabulary, of which few rows are wanted.
const DENSE_BYTES_MAX: usize = 512 << 20;

/// Matrices `[count, n, k]` of E4M3 in device memory, each block of `block` (rows, columns) with a scale.
pub struct Fp8Weight {
    bytes: Buffer,
    scales: Buffer,
    count: usize,
    n: usize,
    k: usize,
    block: (usize, usize),
}

impl Fp8Weight {
    /// Uploads `[n, k]` E4M3 and its scales `[ceil(n / block.0), ceil(k / block.1)]`: (1, k) is one a row, (n, k) one for all. A
    /// block has a multiple of 4 columns, or all. With a multiple of 128 columns, or all, few rows are multiplied without
    /// plain weights in between.
    pub fn upload(
        device: &Device,
        bytes: &[u8],
        scales: &[f32],
        (n, k): (usize, usize),
        block: (usize, usize),
    ) -> Result<Self> {
        Self::upload_all(device, &[(bytes, scales)], (n, k), block)
    }

    /// The same for several matrices of one size, such as a layer's experts.
    pub fn upload_all(
        device: &Device,
        matrices: &[(&[u8], &[f32])],
        (n, k): (usize, usize),
        block: (usize, usize),
    ) -> Result<Self> {
        if !Self::takes((n, k), block) {
            let wanted = "rows are a multiple of 16 elements, blocks a multiple of 4 columns or all";
            return Err(shape(OP, format!("no weight [{n}, {k}] in blocks of {block:?}: {wanted}")));
        }
        // Kernels count in int.
        let block = (block.0.min(n), block.1.min(k));
        let scale_count = n.div_ceil(block.0) * k.div_ceil(block.1);
        let bytes = device.alloc(matrices.len() * n * k, ElementType::U8)?;
        let scales = device.alloc(matrices.len() * scale_count, ElementType::F32)?;
        for (index, (own_bytes, own_scales)) in matrices.iter().enumerate() {
            if own_bytes.len() != n * k || own_scales.len() != scale_count {
                let (bytes, found) = (own_bytes.len(), own_scales.len());
                return Err(shape(
                    OP,
                    format!("{bytes} bytes and {found} scales for [{n}, {k}] in blocks of {block:?}"),
                ));
            }
            bytes.write(index * n * k, own_bytes)?;
            scales.write(index * scale_count, own_scales)?;
        }
        Ok(Self { bytes, scales, count: matrices.len(), n, k, block })
    }

    /// Whether kernels read a matrix `[n, k]` in blocks of this size.
    pub fn takes((n, k): (usize, usize), block: (usize, usize)) -> bool {
        const SIZE_MAX: usize = i32::MAX as usize / 2;
        let is_sized = n > 0 && k > 0 && n <= SIZE_MAX && k <= SIZE_MAX && k.is_multiple_of(16);
        is_sized && block.0 > 0 && block.1 > 0 && (block.1 >= k || block.1.is_multiple_of(4))
    }

    /// Whether few rows are multiplied without plain weights in between; the products of experts are for these only.
    pub fn is_multiplied_directly(k: usize, block: (usize, usize)) -> bool {
        block.1 >= k || block.1.is_multiple_of(128)
    }

    /// How many matrices there are.
    pub fn count(&self) -> usize {
        self.count
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
        if self.is_dense(m_max, ty) { self.n * self.k * ty.bytes() } else { 0 }
    }

    /// Whether a product of so many rows goes through plain elements; there is no kernel of few rows in F32.
    fn is_dense(&self, m: usize, ty: ElementType) -> bool {
        let is_many = m > FP8_ROWS_MAX && self.n * self.k * ty.bytes() <= DENSE_BYTES_MAX;
        is_many || ty == ElementType::F32 || !Self::is_multiplied_directly(self.k, self.block)
    }

    pub(super) fn slices(&self) -> (Slice<'_>, Slice<'_>) {
        (self.bytes.all(), self.scales.all())
    }

    pub(super) fn block(&self) -> (usize, usize) {
        self.block
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
        if self.count != 1 {
            return Err(shape(OP, format!("{} matrices at once", self.count)));
        }
        out.require(OP, "out", out.ty(), n * k)?;
        aligned(OP, "out", out)?;
        let launch = Launch::new(kernel).grid((n * k).div_ceil(1024), 1, 1).block(256, 1);
        let launch = launch.slice(self.bytes.all()).slice(self.scales.all()).slice(out);
        launch.int(n).int(k).int(block.0).int(block.1).on(device)
    }
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
        if w.count != 1 {
            return Err(shape(OP, format!("{} matrices at once", w.count)));
        }
        if w.is_dense(m, ty) {
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
