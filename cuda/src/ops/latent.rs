//! Launches of `kernels/latent.cu`: what latent attention puts into its cache, and its queries.

use super::rope::{Rotation, positions_of};
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

const OP: &str = "latent attention";
const THREADS: usize = 256;

/// Puts the vectors of a step into their slots: the rotated key, then the normed latent.
#[derive(Debug, Clone, Copy)]
pub struct WriteLatents<'a> {
    /// F32 `[tokens, stride]`, of which elements `first..` are a latent of `weight.len()` and the key.
    pub x: Slice<'a>,
    pub stride: usize,
    pub first: usize,
    /// F32: of an RMSNorm over the latent, and its eps.
    pub weight: Slice<'a>,
    pub eps: f32,
    /// Pairs of the whole key.
    pub rotation: Rotation<'a>,
    /// U32 `[tokens]`
    pub positions: Slice<'a>,
    /// U32 `[tokens]`; a token of slot `u32::MAX` is padding. No two tokens may have the same slot.
    pub slots: Slice<'a>,
    /// F32, F16, BF16 or FP8 `[slots, 2 * pairs + rank]`
    pub cache: Slice<'a>,
    pub tokens: usize,
}

impl WriteLatents<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device) -> Result<()> {
        let Self { x, stride, first, weight, eps, rotation, positions, slots, cache, tokens } = *self;
        let (rank, rotated) = (weight.len(), 2 * rotation.pairs);
        let kernel = match cache.ty() {
            ElementType::F32 => "latent_write_f32",
            ElementType::F16 => "latent_write_f16",
            ElementType::Bf16 => "latent_write_bf16",
            ElementType::Fp8 => "latent_write_fp8",
            other => return Err(shape(OP, format!("the cache cannot be {}", other.name()))),
        };
        let width = rotated + rank;
        if rank == 0 || rotated == 0 || first + width > stride || !cache.len().is_multiple_of(width) {
            let found = format!("{rank} and {rotated} elements from {first} of {stride}, a cache of {}", cache.len());
            return Err(shape(OP, found));
        }
        x.require(OP, "x", ElementType::F32, tokens * stride)?;
        weight.require(OP, "weight", ElementType::F32, rank)?;
        positions.require(OP, "positions", ElementType::U32, tokens)?;
        slots.require(OP, "slots", ElementType::U32, tokens)?;
        let positions_max = positions_of(&rotation, rotated)?;
        let launch = Launch::new(kernel).grid(tokens, 1, 1).block(THREADS, 1);
        let launch = launch.slice(x.range(first, x.len() - first)).int(stride).slice(weight).float(eps).int(rank);
        let launch = launch.slice(rotation.angles).int(positions_max).int(rotation.pairs);
        let launch = launch.int(rotation.interleaved.into()).slice(positions).slice(slots).slice(cache);
        launch.int(cache.len() / width).on(device)
    }
}

/// `y = rms_norm(x)` over the first elements of rows: x F32 `[rows, stride]`, weight F32 `[dim]`, y `[rows, dim]`.
pub fn norm_first(
    device: &Device,
    (x, stride): (Slice, usize),
    (weight, eps): (Slice, f32),
    y: Slice,
    rows: usize,
) -> Result<()> {
    let dim = weight.len();
    let kernel = match y.ty() {
        ElementType::F32 => "latent_norm_f32",
        ElementType::F16 => "latent_norm_f16",
        ElementType::Bf16 => "latent_norm_bf16",
        other => return Err(shape(OP, format!("y cannot be {}", other.name()))),
    };
    if dim == 0 || dim > stride {
        return Err(shape(OP, format!("{dim} elements of {stride}")));
    }
    x.require(OP, "x", ElementType::F32, rows * stride)?;
    weight.require(OP, "weight", ElementType::F32, dim)?;
    y.require(OP, "y", y.ty(), rows * dim)?;
    let launch = Launch::new(kernel).grid(rows, 1, 1).block(THREADS, 1);
    launch.slice(x).int(stride).slice(weight).float(eps).slice(y).int(dim).on(device)
}

/// Queries in their two parts.
#[derive(Debug, Clone, Copy)]
pub struct SplitQueries<'a> {
    /// F32, or the type of q: `[tokens, stride]`, whose first elements are heads of `plain + 2 * pairs`.
    pub x: Slice<'a>,
    pub stride: usize,
    pub heads: usize,
    /// Elements of a head that are not rotated.
    pub plain: usize,
    pub rotation: Rotation<'a>,
    /// U32 `[tokens]`
    pub positions: Slice<'a>,
    /// T `[tokens, heads, plain]`
    pub to_plain: Slice<'a>,
    /// T `[tokens, heads, width]`: the first `2 * pairs` elements of each head are written.
    pub q: Slice<'a>,
    pub width: usize,
    pub tokens: usize,
}

impl SplitQueries<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device) -> Result<()> {
        let Self { x, stride, heads, plain, rotation, positions, to_plain, q, width, tokens } = *self;
        let rotated = 2 * rotation.pairs;
        let kernel = match (x.ty(), q.ty()) {
            (ElementType::F32, ElementType::F32) => "latent_split_f32_f32",
            (ElementType::F32, ElementType::F16) => "latent_split_f32_f16",
            (ElementType::F32, ElementType::Bf16) => "latent_split_f32_bf16",
            (ElementType::F16, ElementType::F16) => "latent_split_f16_f16",
            (ElementType::Bf16, ElementType::Bf16) => "latent_split_bf16_bf16",
            (x, q) => return Err(shape(OP, format!("queries of {} to {}", x.name(), q.name()))),
        };
        if heads == 0 || rotated == 0 || rotated > width || heads * (plain + rotated) > stride {
            return Err(shape(OP, format!("{heads} heads of {plain} and {rotated} of {stride}, {width} wide")));
        }
        x.require(OP, "x", x.ty(), tokens * stride)?;
        to_plain.require(OP, "plain", q.ty(), tokens * heads * plain)?;
        q.require(OP, "q", q.ty(), tokens * heads * width)?;
        positions.require(OP, "positions", ElementType::U32, tokens)?;
        let positions_max = positions_of(&rotation, rotated)?;
        let launch = Launch::new(kernel).grid(tokens, heads.div_ceil(8), 1).block(THREADS, 1);
        let launch = launch.slice(x).int(stride).int(heads).int(plain).slice(rotation.angles).int(positions_max);
        let launch = launch.int(rotation.pairs).int(rotation.interleaved.into()).slice(positions);
        launch.slice(to_plain).slice(q).int(width).on(device)
    }
}
