//! Launches of `kernels/experts.cu`, `kernels/experts_quant.cu` and `kernels/experts_fp8.cu`: the products of all experts of a step in one launch.

use super::fp8::Fp8Weight;
use super::quant::{QuantWeight, QuantisedRows, aligned};
use super::routes::Tiles;
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

const OP: &str = "product of experts";

/// Which row of x a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Its token's: x is `[tokens, k]`.
    Token,
    /// Its own: x is `[routes, k]`.
    Route,
}

/// `y[route] = x[source] w[expert]^T + bias[expert]` for every route: w `[experts, n, k]` of the type of x, F32, F16 or BF16, y
/// `[routes, n]` in the same or F32. Rows of routes that do not exist are not written.
#[derive(Debug, Clone, Copy)]
pub struct ExpertGemm<'a> {
    pub x: Slice<'a>,
    pub w: Slice<'a>,
    /// `[experts, n]` F32
    pub bias: Option<Slice<'a>>,
    pub y: Slice<'a>,
    pub n: usize,
    pub k: usize,
    pub source: Source,
}

impl ExpertGemm<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device, tiles: &Tiles) -> Result<()> {
        let Self { x, w, bias, y, n, k, source } = *self;
        let ty = x.ty();
        x.require(OP, "x", ty, source.rows(tiles) * k)?;
        w.require(OP, "w", ty, tiles.experts * n * k)?;
        check_bias(bias, tiles.experts * n)?;
        let out = if y.ty() == ElementType::F32 { ElementType::F32 } else { ty };
        y.require(OP, "y", out, tiles.len() * n)?;
        // Tensor cores take 16 bytes at a time.
        let is_even = k.is_multiple_of(8) && x.address().is_multiple_of(16) && w.address().is_multiple_of(16);
        let is_few = tiles.tile_routes == 8;
        const STAGES_BYTES: usize = 3 * 2 * 64 * 64 * 2;
        let (kernel, rows, threads, shared_bytes) = match (ty, is_even) {
            (ElementType::F16, true) if is_few => ("experts_8_f16", 16, 256, 0),
            (ElementType::F16, true) => ("experts_64_f16", 64, 128, STAGES_BYTES),
            (ElementType::Bf16, true) if is_few => ("experts_8_bf16", 16, 256, 0),
            (ElementType::Bf16, true) => ("experts_64_bf16", 64, 128, STAGES_BYTES),
            (ElementType::F16, false) => ("experts_plain_f16", 4, 128, 0),
            (ElementType::Bf16, false) => ("experts_plain_bf16", 4, 128, 0),
            (ElementType::F32, _) => ("experts_plain_f32", 4, 128, 0),
            (other, _) => return Err(shape(OP, format!("no product of {}", other.name()))),
        };
        let is_wide = ty != ElementType::F32 && out == ElementType::F32;
        let launch = Launch::new(kernel).grid(n.div_ceil(rows), tiles.tile_count, 1).block(threads, 1);
        let launch = launch.shared_bytes(shared_bytes).slice(x).slice(w).slice_or_null(bias).slice(y);
        let launch = launch.slice(tiles.order).slice(tiles.list).int(n).int(k);
        launch.int(source.divide(tiles)).int(usize::from(is_wide)).on(device)
    }
}

/// The same with quantised weights, one matrix an expert, and with rows that were quantised before.
#[derive(Clone, Copy)]
pub struct QuantExpertGemm<'a> {
    pub rows: QuantisedRows<'a>,
    pub w: &'a QuantWeight,
    /// `[experts, n]` F32
    pub bias: Option<Slice<'a>>,
    /// `[routes, n]` in F32, F16 or BF16
    pub y: Slice<'a>,
    pub source: Source,
}

impl QuantExpertGemm<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device, tiles: &Tiles) -> Result<()> {
        let Self { rows, w, bias, y, source } = *self;
        let wanted = (source.rows(tiles), w.k());
        if rows.sizes() != wanted || w.count() != tiles.experts {
            let (found, matrices, experts) = (rows.sizes(), w.count(), tiles.experts);
            return Err(shape(OP, format!("rows {found:?} for {wanted:?}, {matrices} matrices for {experts} experts")));
        }
        check_bias(bias, tiles.experts * w.n())?;
        y.require(OP, "y", y.ty(), tiles.len() * w.n())?;
        aligned(OP, "w", w.units())?;
        let kind = match y.ty() {
            ElementType::F32 => 0,
            ElementType::F16 => 1,
            ElementType::Bf16 => 2,
            other => return Err(shape(OP, format!("y cannot be {}", other.name()))),
        };
        // The kernels take 32 of the 64 routes of a tile at a time.
        let columns = tiles.tile_routes.min(32);
        let parts = tiles.tile_routes / columns;
        let kernel = w.experts_kernel(columns == 8);
        let launch = Launch::new(kernel).grid(w.n().div_ceil(16), tiles.tile_count, parts).block(256, 1);
        let launch = launch.shared_bytes(8 * columns * 17 * size_of::<f32>());
        let launch = launch.slice(w.units()).slice(rows.quants).slice(rows.meta).slice_or_null(bias).slice(y);
        let launch = launch.slice(tiles.order).slice(tiles.list).int(w.n()).int(w.units_of_row());
        launch.int(wanted.0.div_ceil(8)).int(source.divide(tiles)).int(kind).on(device)
    }
}

/// The same with weights in FP8, one matrix an expert, [multiplied directly](Fp8Weight::is_multiplied_directly).
#[derive(Clone, Copy)]
pub struct Fp8ExpertGemm<'a> {
    /// F16 or BF16, as `source` says.
    pub x: Slice<'a>,
    pub w: &'a Fp8Weight,
    /// `[experts, n]` F32
    pub bias: Option<Slice<'a>>,
    /// `[routes, n]` of the type of x, or F32
    pub y: Slice<'a>,
    pub source: Source,
}

impl Fp8ExpertGemm<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device, tiles: &Tiles) -> Result<()> {
        let Self { x, w, bias, y, source } = *self;
        let (ty, n, k, block) = (x.ty(), w.n(), w.k(), w.block());
        if w.count() != tiles.experts || !Fp8Weight::is_multiplied_directly(k, block) {
            let (matrices, experts) = (w.count(), tiles.experts);
            return Err(shape(OP, format!("{matrices} matrices in blocks of {block:?} for {experts} experts")));
        }
        x.require(OP, "x", ty, source.rows(tiles) * k)?;
        check_bias(bias, tiles.experts * n)?;
        let out = if y.ty() == ElementType::F32 { ElementType::F32 } else { ty };
        y.require(OP, "y", out, tiles.len() * n)?;
        aligned(OP, "x", x)?;
        // The kernels take 32 of the 64 routes of a tile at a time.
        let columns = tiles.tile_routes.min(32);
        let kernel = match (ty, columns == 8) {
            (ElementType::F16, true) => "experts_fp8_8_f16",
            (ElementType::F16, false) => "experts_fp8_32_f16",
            (ElementType::Bf16, true) => "experts_fp8_8_bf16",
            (ElementType::Bf16, false) => "experts_fp8_32_bf16",
            (other, _) => return Err(shape(OP, format!("no product of {}", other.name()))),
        };
        let launch = Launch::new(kernel).grid(n.div_ceil(16), tiles.tile_count, tiles.tile_routes / columns);
        let (bytes, scales) = w.slices();
        let launch = launch.block(256, 1).slice(x).slice(bytes).slice(scales).slice_or_null(bias).slice(y);
        let launch = launch.slice(tiles.order).slice(tiles.list).int(n).int(k).int(block.0).int(block.1);
        launch.int(source.divide(tiles)).int(usize::from(out == ElementType::F32)).on(device)
    }
}

impl Source {
    fn rows(self, tiles: &Tiles) -> usize {
        match self {
            Self::Token => tiles.tokens,
            Self::Route => tiles.len(),
        }
    }

    /// A route's row is its number divided by this.
    fn divide(self, tiles: &Tiles) -> usize {
        match self {
            Self::Token => tiles.per_token,
            Self::Route => 1,
        }
    }
}

fn check_bias(bias: Option<Slice>, len: usize) -> Result<()> {
    bias.map_or(Ok(()), |bias| bias.require(OP, "bias", ElementType::F32, len).map(drop))
}
