//! Launches of `kernels/rope.cu`, and the cache's description that attention takes, too.

use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

const OP: &str = "rope_and_write_kv";

/// How positions turn queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// F32 `[positions, 2, pairs]`: cosines, then sines.
    pub angles: Slice<'a>,
    /// None is no rotation; elements of a head from `2 * pairs` on pass through.
    pub pairs: usize,
    /// Pairs are `(2i, 2i + 1)`, else `(i, i + pairs)`.
    pub interleaved: bool,
}

/// RMSNorm over each head, or over all heads of a token together: the length of the weights says which.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// F32 `[head_dim]`, or `[heads * head_dim]`.
    pub query: Slice<'a>,
    /// F32 `[head_dim]`, or `[kv_heads * head_dim]`; over all heads where the query's is.
    pub key: Slice<'a>,
    /// F32 `[head_dim]`.
    pub value: Option<Slice<'a>>,
    pub eps: f32,
}

/// K and V of one layer, each `[blocks, kv_heads, block_size, head_dim]`, of one type: F32, F16, BF16 or FP8.
#[derive(Debug, Clone, Copy)]
pub struct Cache<'a> {
    pub k: Slice<'a>,
    pub v: Slice<'a>,
    pub kv_heads: usize,
    pub block_size: usize,
    pub head_dim: usize,
}

/// The fused projection of a step.
#[derive(Debug, Clone, Copy)]
pub struct Qkv<'a> {
    /// T `[tokens, (heads + 2 * kv_heads) * head_dim]`.
    pub qkv: Slice<'a>,
    /// F32, as wide as a row.
    pub bias: Option<Slice<'a>>,
    pub norms: Option<HeadNorms<'a>>,
    pub heads: usize,
    pub tokens: usize,
}

impl Cache<'_> {
    /// How many tokens it has room for, if it is well formed.
    pub(crate) fn slots(&self, op: &'static str) -> Result<usize> {
        let Self { k, v, kv_heads, block_size, head_dim } = *self;
        let ty = k.ty();
        if !matches!(ty, ElementType::F32 | ElementType::F16 | ElementType::Bf16 | ElementType::Fp8) {
            return Err(shape(op, format!("the cache cannot be {}", ty.name())));
        }
        if kv_heads == 0 || block_size == 0 || head_dim == 0 || !head_dim.is_multiple_of(2) {
            let sizes = format!("{kv_heads} kv heads, blocks of {block_size}, {head_dim} elements a head");
            return Err(shape(op, format!("no such cache: {sizes}; heads must be even")));
        }
        v.require(op, "v of the cache", ty, k.len())?;
        aligned(op, &[("k of the cache", k), ("v of the cache", v)])?;
        let block = kv_heads * block_size * head_dim;
        if k.is_empty() || !k.len().is_multiple_of(block) || v.len() != k.len() {
            return Err(shape(op, format!("a cache of {} elements is not made of blocks of {block}", k.len())));
        }
        let slots = k.len() / block * block_size;
        // Slots are u32, and the largest names a padded token.
        if slots > i32::MAX as usize {
            return Err(shape(op, format!("a cache of {slots} slots is too large")));
        }
        Ok(slots)
    }
}

/// Adds the bias, norms the heads of q, k and v where there are norms, rotates q and k, writes k and v into their slots
/// and q to `q` (T `[tokens, heads, head_dim]`); arithmetic in f32. `positions` and `slots` are U32 `[tokens]`; a token
/// of slot `u32::MAX` is padding and leaves the cache as it is. No two tokens may have the same slot.
pub fn rope_and_write_kv(
    device: &Device,
    qkv: &Qkv,
    rotation: &Rotation,
    (positions, slots): (Slice, Slice),
    cache: &Cache,
    q: Slice,
) -> Result<()> {
    let Qkv { heads, tokens, bias, norms, .. } = *qkv;
    let Cache { kv_heads, head_dim, .. } = *cache;
    let slots_max = cache.slots(OP)?;
    let (ty, all) = (qkv.qkv.ty(), heads + 2 * kv_heads);
    if !matches!(ty, ElementType::F32 | ElementType::F16 | ElementType::Bf16) || heads == 0 {
        return Err(shape(OP, format!("{heads} heads of {}", ty.name())));
    }
    qkv.qkv.require(OP, "qkv", ty, tokens * all * head_dim)?;
    q.require(OP, "q", ty, tokens * heads * head_dim)?;
    positions.require(OP, "positions", ElementType::U32, tokens)?;
    slots.require(OP, "slots", ElementType::U32, tokens)?;
    aligned(OP, &[("qkv", qkv.qkv), ("q", q), ("angles", rotation.angles)])?;
    if let Some(bias) = bias {
        bias.require(OP, "bias", ElementType::F32, all * head_dim)?;
    }
    let positions_max = positions_of(rotation, head_dim)?;
    let together = norms_together(norms, heads, cache)?;
    let kernel = kernel_of(ty, cache.k.ty());
    let parts = if together { 1 } else { all.div_ceil(WARPS) };
    let eps = norms.map_or(0.0, |norms| norms.eps);
    let launch = Launch::new(kernel).grid(tokens, parts, 1).block(32 * WARPS, 1);
    let launch = launch.slice(qkv.qkv).slice_or_null(bias).slice_or_null(norms.map(|norms| norms.query));
    let launch = launch.slice_or_null(norms.map(|norms| norms.key)).slice_or_null(norms.and_then(|norms| norms.value));
    let launch = launch.float(eps).int(together.into()).slice(rotation.angles).int(positions_max).int(rotation.pairs);
    let launch = launch.int(rotation.interleaved.into()).slice(positions).slice(slots).slice(cache.k).slice(cache.v);
    let launch = launch.slice(q).int(heads).int(kv_heads).int(head_dim).int(cache.block_size).int(slots_max);
    launch.on(device)
}

/// Queries without keys and values: those of a layer that reads what another has written.
#[derive(Debug, Clone, Copy)]
pub struct Queries<'a> {
    /// T `[tokens, heads * head_dim]`.
    pub x: Slice<'a>,
    /// F32, as wide as a row.
    pub bias: Option<Slice<'a>>,
    /// Weight of an RMSNorm over each head or over all of a token together, by its length, and its eps.
    pub norm: Option<(Slice<'a>, f32)>,
    pub heads: usize,
    pub head_dim: usize,
    pub tokens: usize,
}

/// As [`rope_and_write_kv`] for queries alone, into `q` T `[tokens, heads, head_dim]`.
pub fn rope_queries(device: &Device, queries: &Queries, rotation: &Rotation, positions: Slice, q: Slice) -> Result<()> {
    let Queries { x, bias, norm, heads, head_dim, tokens } = *queries;
    let (ty, width) = (x.ty(), heads * head_dim);
    if !matches!(ty, ElementType::F32 | ElementType::F16 | ElementType::Bf16) || width == 0 || head_dim % 2 == 1 {
        return Err(shape(OP, format!("{heads} heads of {head_dim} of {}", ty.name())));
    }
    x.require(OP, "queries", ty, tokens * width)?;
    q.require(OP, "q", ty, tokens * width)?;
    positions.require(OP, "positions", ElementType::U32, tokens)?;
    aligned(OP, &[("queries", x), ("q", q), ("angles", rotation.angles)])?;
    bias.map(|bias| bias.require(OP, "bias", ElementType::F32, width)).transpose()?;
    let together = norm.is_some_and(|(weight, _)| weight.len() != head_dim);
    if let Some((weight, _)) = norm {
        weight.require(OP, "query norm", ElementType::F32, if together { width } else { head_dim })?;
    }
    let positions_max = positions_of(rotation, head_dim)?;
    let parts = if together { 1 } else { heads.div_ceil(WARPS) };
    let launch = Launch::new(kernel_of(ty, ty)).grid(tokens, parts, 1).block(32 * WARPS, 1);
    let launch = launch.slice(x).slice_or_null(bias).slice_or_null(norm.map(|(weight, _)| weight));
    let launch = launch.slice_or_null(None).slice_or_null(None).float(norm.map_or(0.0, |(_, eps)| eps));
    let launch = launch.int(together.into()).slice(rotation.angles).int(positions_max).int(rotation.pairs);
    // Without KV heads the kernel looks at no slot's place in a cache.
    let launch = launch.int(rotation.interleaved.into()).slice(positions).slice(positions);
    let launch = launch.slice_or_null(None).slice_or_null(None);
    launch.slice(q).int(heads).int(0).int(head_dim).int(1).int(0).on(device)
}

/// Refuses memory that cannot be accessed 16 bytes at a time.
pub(super) fn aligned(op: &'static str, slices: &[(&str, Slice)]) -> Result<()> {
    match slices.iter().find(|(_, slice)| !slice.address().is_multiple_of(16)) {
        Some((name, _)) => Err(shape(op, format!("{name} must start at a multiple of 16 bytes"))),
        None => Ok(()),
    }
}

/// Warps of a block; `kernels/rope.cu` has no more.
const WARPS: usize = 8;

/// How many positions the rotation has angles for.
pub(super) fn positions_of(rotation: &Rotation, head_dim: usize) -> Result<usize> {
    let Rotation { angles, pairs, .. } = *rotation;
    if 2 * pairs > head_dim {
        return Err(shape(OP, format!("{pairs} pairs of a head of {head_dim}")));
    }
    if pairs == 0 {
        return Ok(1);
    }
    let positions = angles.len() / (2 * pairs);
    if positions == 0 {
        return Err(shape(OP, format!("there are no angles of {pairs} pairs")));
    }
    angles.require(OP, "angles", ElementType::F32, 2 * pairs)?;
    Ok(positions.min(i32::MAX as usize))
}

/// Whether norms go over all heads of a token together.
fn norms_together(norms: Option<HeadNorms>, heads: usize, cache: &Cache) -> Result<bool> {
    let Some(HeadNorms { query, key, value, .. }) = norms else { return Ok(false) };
    let Cache { kv_heads, head_dim, .. } = *cache;
    query.require(OP, "query norm", ElementType::F32, head_dim)?;
    key.require(OP, "key norm", ElementType::F32, head_dim)?;
    if let Some(value) = value {
        value.require(OP, "value norm", ElementType::F32, head_dim)?;
    }
    match (query.len(), key.len()) {
        (query, key) if (query, key) == (head_dim, head_dim) => Ok(false),
        (query, key) if (query, key) == (heads * head_dim, kv_heads * head_dim) => Ok(true),
        (query, key) => {
            let found = format!("norms of {query} and {key} elements for {heads} and {kv_heads} heads of {head_dim}");
            Err(shape(OP, found))
        }
    }
}

fn kernel_of(ty: ElementType, cache: ElementType) -> &'static str {
    use ElementType::{Bf16, F16, F32};
    match (ty, cache) {
        (F32, F32) => "rope_f32_f32",
        (F32, F16) => "rope_f32_f16",
        (F32, Bf16) => "rope_f32_bf16",
        (F32, _) => "rope_f32_fp8",
        (F16, F32) => "rope_f16_f32",
        (F16, F16) => "rope_f16_f16",
        (F16, Bf16) => "rope_f16_bf16",
        (F16, _) => "rope_f16_fp8",
        (_, F32) => "rope_bf16_f32",
        (_, F16) => "rope_bf16_f16",
        (_, Bf16) => "rope_bf16_bf16",
        (_, _) => "rope_bf16_fp8",
    }
}
