//! Launches of `kernels/attention_latent.cu`: attention over one vector a token whose end is its value.

use super::attention::{COUNTERS, Params, Rows, SPLITS_MAX, combine, workspace_len};
use super::rope::aligned;
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

const OP: &str = "attention over latents";
/// Packed rows of a tile, and positions at a time, as the kernel has them.
const ROWS: usize = 16;
const POSITIONS: usize = 32;

/// A ragged batch over a cache of vectors.
#[derive(Debug, Clone, Copy)]
pub struct OverLatents<'a> {
    /// T `[tokens, heads, rotated + rank]`
    pub q: Slice<'a>,
    /// T `[blocks, block_size, rotated + rank]`
    pub cache: Slice<'a>,
    /// T `[tokens, heads, rank]`
    pub out: Slice<'a>,
    pub heads: usize,
    pub rotated: usize,
    pub rank: usize,
    pub block_size: usize,
    /// Factor on every score, above 0.
    pub scale: f32,
}

/// Whether there is a kernel for heads of this size and a cache of this type, and the device has the shared memory for it.
pub fn has_latent_kernel(
    device: &Device,
    (ty, cache): (ElementType, ElementType),
    (rotated, rank): (usize, usize),
) -> bool {
    let is_known = kernel_of(ty, (rotated, rank)).is_some() && cache == ty;
    is_known && shared_bytes(rotated + rank) <= device.info().shared_bytes_max as usize
}

fn kernel_of(ty: ElementType, sizes: (usize, usize)) -> Option<&'static str> {
    match (ty, sizes) {
        (ElementType::F16, (64, 512)) => Some("attention_latent_f16_64_512"),
        (ElementType::Bf16, (64, 512)) => Some("attention_latent_bf16_64_512"),
        (ElementType::F16, (32, 256)) => Some("attention_latent_f16_32_256"),
        (ElementType::Bf16, (32, 256)) => Some("attention_latent_bf16_32_256"),
        _ => None,
    }
}

/// `LatentRoom` of the kernel.
fn shared_bytes(width: usize) -> usize {
    let halves = (ROWS + 2 * POSITIONS) * (width + 8) + ROWS * (POSITIONS + 8);
    2 * halves + 4 * (ROWS * (POSITIONS + 4) + 3 * ROWS)
}

impl OverLatents<'_> {
    /// Issues it for `rows`, their contexts in `splits` parts. The workspace is as for [`super::attention::attention`] with
    /// heads of `rank`.
    pub fn on(&self, device: &Device, rows: &Rows, splits: usize, workspace: Slice) -> Result<()> {
        let Self { q, cache, out, heads, rotated, rank, block_size, scale } = *self;
        let (ty, width, tokens) = (q.ty(), rotated + rank, rows.tokens);
        if rows.rows == 0 || tokens == 0 {
            return Ok(());
        }
        let Some(kernel) = kernel_of(ty, (rotated, rank)).filter(|_| cache.ty() == ty) else {
            let (ty, cache) = (ty.name(), cache.ty().name());
            return Err(shape(OP, format!("no kernel for heads of {rotated} and {rank} in {ty}, a cache of {cache}")));
        };
        let slots = cache.len() / width;
        let is_whole = block_size > 0 && cache.len().is_multiple_of(width) && slots.is_multiple_of(block_size);
        let is_sized = tokens * heads + rows.rows <= i32::MAX as usize && slots <= i32::MAX as usize;
        let is_ragged = rows.query_max > 0 && rows.rows.saturating_mul(rows.query_max) >= tokens;
        let is_sound = heads > 0 && is_whole && is_sized && is_ragged && scale.is_finite() && scale > 0.0;
        if !is_sound {
            let sizes = format!("{heads} heads, {slots} vectors in blocks of {block_size}, a scale of {scale}");
            return Err(shape(OP, format!("{sizes}, {} rows of up to {} tokens", rows.rows, rows.query_max)));
        }
        if !(1..=SPLITS_MAX).contains(&splits) {
            return Err(shape(OP, format!("{splits} splits; 1 to {SPLITS_MAX} are possible")));
        }
        q.require(OP, "q", ty, tokens * heads * width)?;
        out.require(OP, "out", ty, tokens * heads * rank)?;
        rows.row_starts.require(OP, "row_starts", ElementType::U32, rows.rows + 1)?;
        rows.context_lens.require(OP, "context_lens", ElementType::U32, rows.rows)?;
        rows.table_starts.require(OP, "table_starts", ElementType::U32, rows.rows + 1)?;
        rows.block_tables.require(OP, "block_tables", ElementType::U32, 0)?;
        aligned(OP, &[("q", q), ("cache", cache), ("out", out), ("workspace", workspace)])?;
        let partials = match splits {
            1 => workspace,
            _ => {
                let len = workspace_len(tokens, heads, rank, splits);
                workspace.require(OP, "workspace", ElementType::F32, len)?.range(COUNTERS, len - COUNTERS)
            }
        };
        // A step of decoding has as many tiles in every row; those of prompts are found in the rows' starts.
        let tiles_per_row = if rows.query_max == 1 { heads.div_ceil(ROWS) } else { 0 };
        let tiles = if tiles_per_row > 0 { rows.rows * tiles_per_row } else { tokens * heads / ROWS + rows.rows };
        let launch = Launch::new(kernel).grid(tiles, 1, splits).block(128, 1).shared_bytes(shared_bytes(width));
        let launch = launch.slice(q).slice(cache).slice(out).slice(partials).slice(rows.row_starts);
        let launch = launch.slice(rows.context_lens).slice(rows.block_tables).slice(rows.table_starts).int(rows.rows);
        let launch = launch.int(tokens).int(tiles_per_row).int(heads).int(block_size).float(scale).int(splits);
        launch.on(device)?;
        if splits == 1 {
            return Ok(());
        }
        let params = Params { scale, window: None, softcap: None, sinks: None, causal: true };
        combine(device, partials, out, &params, (tokens, heads, rank, splits))
    }
}
