//! Launches of `kernels/attention_*.cu`: which kernel a batch takes, and how its grid is bounded without looking at it.
//!
//! Invariant: grids depend on what the host knows (rows, tokens, the most tokens of a row, splits) and on nothing else,
//! so that a recorded launch serves every batch of its size.

use super::rope::{Cache, aligned};
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

const OP: &str = "attention";

/// Splits of a context at most: the lanes of the warp that brings them together.
pub const SPLITS_MAX: usize = 32;
/// Heads are no wider.
pub const HEAD_DIM_MAX: usize = 1024;
/// What kernels take for no window: more than any context.
const NO_WINDOW: usize = 1 << 30;
/// Queries of a group of heads in a row up to which K and V are dealt out to warps, instead of queries.
const FEW: usize = 32;

/// A ragged batch over a paged cache: tokens of all rows one after the other, each row's at the end of its context.
///
/// The caller checks what stands in device memory: starts ascend from 0 to `tokens`, a row has no more tokens than
/// context, and as many blocks as the context takes, all of them the cache's. A row of context 0 is padding: its output
/// is zeros.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// U32 `[rows + 1]`: row r is tokens `row_starts[r]..row_starts[r + 1]`.
    pub row_starts: Slice<'a>,
    /// U32 `[rows]`: positions in the cache, this step's included.
    pub context_lens: Slice<'a>,
    /// U32: blocks of row r are `block_tables[table_starts[r]..table_starts[r + 1]]`.
    pub block_tables: Slice<'a>,
    /// U32 `[rows + 1]`.
    pub table_starts: Slice<'a>,
    pub rows: usize,
    pub tokens: usize,
    /// Most tokens of a row; 1 is a decode step.
    pub query_max: usize,
}

/// What a model's attention does beside the plain softmax.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a> {
    /// Factor on every score, above 0; usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token sees this many positions, its own included.
    pub window: Option<u32>,
    /// `cap * tanh(score / cap)`, after the scale.
    pub softcap: Option<f32>,
    /// F32 `[heads]`: one score a head that takes its share of the softmax and has no value.
    pub sinks: Option<Slice<'a>>,
    /// A token sees no later position of its row; else all of the row's (encoders), and there can be no window.
    pub causal: bool,
}

/// Elements at the workspace's start that count finished splits.
pub(super) const COUNTERS: usize = 1024;

/// F32 elements of workspace that so many splits take.
pub fn workspace_len(tokens: usize, heads: usize, head_dim: usize, splits: usize) -> usize {
    if splits > 1 { COUNTERS + splits * tokens * heads * (head_dim + 2) } else { 0 }
}

/// As [`splits_for`] for rows of at most `query_max` tokens: 1 where prompts fill the device as they are, and for few
/// queries a row (a decode step, or one that checks a draft) as many as fill it.
pub fn splits_for_queries(
    rows: usize,
    query_max: usize,
    (heads, kv_heads): (usize, usize),
    multiprocessors: usize,
) -> usize {
    let queries = query_max * (heads / kv_heads.max(1));
    if queries <= FEW { splits_for(rows * queries.div_ceil(16), kv_heads, multiprocessors) } else { 1 }
}

/// Into how many parts contexts should be split so that a decode step of `rows` rows fills the device: two blocks a
/// multiprocessor. Sums depend on it, so a server that must repeat itself to the bit takes one number for all sizes.
pub fn splits_for(rows: usize, kv_heads: usize, multiprocessors: usize) -> usize {
    let blocks = (rows * kv_heads).max(1);
    if 2 * blocks >= 3 * multiprocessors { 1 } else { (2 * multiprocessors).div_ceil(blocks).clamp(1, SPLITS_MAX) }
}

/// Attention of a ragged batch over its paged cache: q T `[tokens, heads, head_dim]`, out T
/// `[tokens, heads * head_dim]`; T is F32, F16 or BF16. The workspace holds [`workspace_len`] elements, zeros before
/// its first call, and serves calls of any sizes one after the other.
#[expect(clippy::too_many_arguments, reason = "each is a piece of memory or a size that callers have apart")]
pub fn attention(
    device: &Device,
    q: Slice,
    cache: &Cache,
    heads: usize,
    rows: &Rows,
    params: &Params,
    splits: usize,
    workspace: Slice,
    out: Slice,
) -> Result<()> {
    if rows.rows == 0 || rows.tokens == 0 {
        return Ok(());
    }
    check(q, cache, heads, rows, params)?;
    out.require(OP, "out", q.ty(), rows.tokens * heads * cache.head_dim)?;
    if !(1..=SPLITS_MAX).contains(&splits) {
        return Err(shape(OP, format!("{splits} splits; 1 to {SPLITS_MAX} are possible")));
    }
    if splits > 1 {
        let len = workspace_len(rows.tokens, heads, cache.head_dim, splits);
        workspace.require(OP, "workspace", ElementType::F32, len)?;
    }
    aligned(OP, &[("q", q), ("out", out), ("workspace", workspace)])?;
    let plan = Plan::of(q.ty(), cache, heads, rows);
    let [x, y] = plan.grid;
    let partials = if splits > 1 { workspace.range(COUNTERS, workspace.len() - COUNTERS) } else { workspace };
    let counters = (splits > 1 && plan.is_few && x * y <= COUNTERS).then_some(workspace);
    let launch = Launch::new(plan.kernel).grid(x, y, splits).block(plan.threads, 1).shared_bytes(plan.shared_bytes);
    let launch = launch.slice(q).slice(cache.k).slice(cache.v).slice(out).slice(partials);
    let launch = launch.slice_or_null(counters).slice(rows.row_starts);
    let launch = launch.slice(rows.context_lens).slice(rows.block_tables).slice(rows.table_starts).int(rows.rows);
    let launch = launch
        .int(rows.tokens)
        .int(plan.tiles_per_row)
        .int(params.causal.into())
        .int(heads)
        .int(cache.kv_heads)
        .int(cache.head_dim);
    let window = params.window.map_or(NO_WINDOW, |window| (window as usize).min(NO_WINDOW));
    let launch = launch.int(cache.block_size).float(params.scale).int(window).float(params.softcap.unwrap_or(0.0));
    launch.slice_or_null(params.sinks).int(splits).on(device)?;
    if splits == 1 || counters.is_some() {
        return Ok(());
    }
    combine(device, partials, out, params, (rows.tokens, heads, cache.head_dim, splits))
}

pub(super) fn combine(
    device: &Device,
    workspace: Slice,
    out: Slice,
    params: &Params,
    (tokens, heads, head_dim, splits): (usize, usize, usize, usize),
) -> Result<()> {
    const WARPS: usize = 4;
    let kernel = match out.ty() {
        ElementType::F16 => "attention_combine_f16",
        ElementType::Bf16 => "attention_combine_bf16",
        _ => "attention_combine_f32",
    };
    let launch = Launch::new(kernel).grid(tokens, heads.div_ceil(WARPS), 1).block(32 * WARPS, 1);
    let launch = launch.slice(workspace).slice(out).slice_or_null(params.sinks).int(tokens).int(heads);
    launch.int(head_dim).int(splits).on(device)
}

fn check(q: Slice, cache: &Cache, heads: usize, rows: &Rows, params: &Params) -> Result<()> {
    let Cache { kv_heads, head_dim, .. } = *cache;
    let Rows { rows: count, tokens, query_max, .. } = *rows;
    let slots = cache.slots(OP)?;
    if heads == 0 || !heads.is_multiple_of(kv_heads) || head_dim > HEAD_DIM_MAX {
        return Err(shape(OP, format!("{heads} heads of {head_dim} over {kv_heads} kv heads")));
    }
    if !matches!(q.ty(), ElementType::F32 | ElementType::F16 | ElementType::Bf16) {
        return Err(shape(OP, format!("q cannot be {}", q.ty().name())));
    }
    q.require(OP, "q", q.ty(), tokens * heads * head_dim)?;
    rows.row_starts.require(OP, "row_starts", ElementType::U32, count + 1)?;
    rows.context_lens.require(OP, "context_lens", ElementType::U32, count)?;
    rows.table_starts.require(OP, "table_starts", ElementType::U32, count + 1)?;
    rows.block_tables.require(OP, "block_tables", ElementType::U32, 0)?;
    if query_max == 0 || count.saturating_mul(query_max) < tokens {
        return Err(shape(OP, format!("{count} rows of at most {query_max} tokens are not {tokens} tokens")));
    }
    // What kernels count in 32 bits: packed queries, and rows of the cache.
    if tokens * heads + count > i32::MAX as usize || slots * kv_heads >= u32::MAX as usize || slots > NO_WINDOW {
        return Err(shape(OP, format!("{tokens} tokens over a cache of {slots} slots are too many")));
    }
    let usable = |value: f32| value.is_finite() && value > 0.0;
    if params.window == Some(0) || !usable(params.scale) || params.softcap.is_some_and(|cap| !usable(cap)) {
        let Params { scale, window, softcap, .. } = *params;
        return Err(shape(OP, format!("a scale of {scale}, a window of {window:?} and a softcap of {softcap:?}")));
    }
    if !params.causal && params.window.is_some() {
        return Err(shape(OP, "a window over both directions is not there"));
    }
    if let Some(sinks) = params.sinks {
        sinks.require(OP, "sinks", ElementType::F32, heads)?;
    }
    Ok(())
}

/// One launch, but for its arguments.
struct Plan {
    kernel: &'static str,
    /// Tiles, and KV heads or heads.
    grid: [usize; 2],
    threads: usize,
    shared_bytes: usize,
    /// 0: tiles are found in the rows' starts.
    tiles_per_row: usize,
    /// Its blocks bring their splits together where there are counters.
    is_few: bool,
}

impl Plan {
    fn of(ty: ElementType, cache: &Cache, heads: usize, rows: &Rows) -> Self {
        let Cache { kv_heads, head_dim, .. } = *cache;
        let (cache_ty, group) = (cache.k.ty(), heads / kv_heads);
        let few = rows.query_max * group <= FEW;
        let Some(kernel) = on_tensor_cores(ty, cache_ty, head_dim, few) else {
            let (kernel, shared_bytes) = (plain(ty, cache_ty), head_dim * size_of::<f32>());
            return Self {
                kernel,
                grid: [rows.tokens, heads],
                threads: 128,
                shared_bytes,
                tiles_per_row: 0,
                is_few: false,
            };
        };
        // From here on as `attention_decode.cu`, `attention_prefill.cu` and `Flash` of `attention.cuh` have it.
        let dim = [64, 128].into_iter().find(|dim| head_dim <= *dim).unwrap_or(256);
        let kv_stride = dim * cache_ty.bytes() + 16;
        let shared_bytes = |rows: usize, rings: usize, stages: usize, positions: usize| {
            rows * (dim + 8) * ty.bytes() + rings * stages * 2 * positions * kv_stride
        };
        if few {
            let warps = if dim > 128 { 2 } else { 4 };
            let stages = ((56 << 10) / (warps * 2 * 16 * kv_stride)).clamp(2, 4);
            let tiles_per_row = (rows.query_max * group).div_ceil(16);
            let (grid, shared_bytes) = ([rows.rows * tiles_per_row, kv_heads], shared_bytes(16, warps, stages, 16));
            return Self { kernel, grid, threads: 32 * warps, shared_bytes, tiles_per_row, is_few: true };
        }
        let (tile_rows, positions) = (if dim > 128 { 64 } else { 128 }, if dim > 64 { 32 } else { 64 });
        let grid = [rows.tokens * group / tile_rows + rows.rows, kv_heads];
        let shared_bytes = shared_bytes(tile_rows, 1, 2, positions);
        Self { kernel, grid, threads: 128, shared_bytes, tiles_per_row: 0, is_few: false }
    }
}

/// The kernel for tensor cores, if there is one: 16-bit activations, a cache of their type or fp8, whole 16 bytes a
/// head.
fn on_tensor_cores(ty: ElementType, cache: ElementType, head_dim: usize, few: bool) -> Option<&'static str> {
    use ElementType::{Bf16, F16, Fp8};
    if head_dim > 256 || !(head_dim * cache.bytes()).is_multiple_of(16) {
        return None;
    }
    let names = match (ty, cache, few) {
        (F16, F16, true) => {
            ["attention_decode_f16_f16_64", "attention_decode_f16_f16_128", "attention_decode_f16_f16_256"]
        }
        (F16, Fp8, true) => {
            ["attention_decode_f16_fp8_64", "attention_decode_f16_fp8_128", "attention_decode_f16_fp8_256"]
        }
        (Bf16, Bf16, true) => {
            ["attention_decode_bf16_bf16_64", "attention_decode_bf16_bf16_128", "attention_decode_bf16_bf16_256"]
        }
        (Bf16, Fp8, true) => {
            ["attention_decode_bf16_fp8_64", "attention_decode_bf16_fp8_128", "attention_decode_bf16_fp8_256"]
        }
        (F16, F16, false) => {
            ["attention_prefill_f16_f16_64", "attention_prefill_f16_f16_128", "attention_prefill_f16_f16_256"]
        }
        (F16, Fp8, false) => {
            ["attention_prefill_f16_fp8_64", "attention_prefill_f16_fp8_128", "attention_prefill_f16_fp8_256"]
        }
        (Bf16, Bf16, false) => {
            ["attention_prefill_bf16_bf16_64", "attention_prefill_bf16_bf16_128", "attention_prefill_bf16_bf16_256"]
        }
        (Bf16, Fp8, false) => {
            ["attention_prefill_bf16_fp8_64", "attention_prefill_bf16_fp8_128", "attention_prefill_bf16_fp8_256"]
        }
        _ => return None,
    };
    Some(
        names[if head_dim <= 64 {
            0
        } else if head_dim <= 128 {
            1
        } else {
            2
        }],
    )
}

fn plain(ty: ElementType, cache: ElementType) -> &'static str {
    use ElementType::{Bf16, F16, F32};
    match (ty, cache) {
        (F32, F32) => "attention_plain_f32_f32",
        (F32, F16) => "attention_plain_f32_f16",
        (F32, Bf16) => "attention_plain_f32_bf16",
        (F32, _) => "attention_plain_f32_fp8",
        (F16, F32) => "attention_plain_f16_f32",
        (F16, F16) => "attention_plain_f16_f16",
        (F16, Bf16) => "attention_plain_f16_bf16",
        (F16, _) => "attention_plain_f16_fp8",
        (_, F32) => "attention_plain_bf16_f32",
        (_, F16) => "attention_plain_bf16_f16",
        (_, Bf16) => "attention_plain_bf16_bf16",
        (_, _) => "attention_plain_bf16_fp8",
    }
}
