//! Paged attention over a ragged batch, and the cache that it reads.
//!
//! Invariant: everything that an index depends on (block ids, slots, positions, row bounds) is checked here, before
//! a kernel runs, so that a wrong batch is an error and never a read outside the cache.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Storage, Tensor};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

use crate::cpu::attention::Cache;
use crate::cpu::format;
use crate::cpu::heads::{self, Heads, Slots, Turned};
use crate::cpu::packed::HUGE_PAGE_BYTES;
use crate::cpu::{self, Isa};
use crate::error::{Error, Result, shape};
use crate::reference::AttentionShape;
use crate::rope::{RopeStyle, RopeTable};
use crate::tensors;

/// Element type of a KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDtype {
    F32,
    /// Half the memory and traffic of F32, and 11 bits of precision.
    #[default]
    F16,
    /// As F16 with the range of F32 and 8 bits of precision.
    Bf16,
    /// A quarter of F32's memory and 4 bits of precision, up to 448: E4M3, without a scale.
    Fp8,
}

impl KvDtype {
    pub const ALL: [KvDtype; 4] = [KvDtype::F32, KvDtype::F16, KvDtype::Bf16, KvDtype::Fp8];

    pub fn name(self) -> &'static str {
        match self {
            KvDtype::F32 => "f32",
            KvDtype::F16 => "f16",
            KvDtype::Bf16 => "bf16",
            KvDtype::Fp8 => "fp8",
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            KvDtype::F32 => 4,
            KvDtype::F16 | KvDtype::Bf16 => 2,
            KvDtype::Fp8 => 1,
        }
    }
}

/// K and V of one layer, each `[blocks, kv_heads, block_size, head_dim]`, of one of [`KvDtype`]'s types.
#[derive(Debug, Clone)]
pub struct KvLayer {
    pub k: Tensor,
    pub v: Tensor,
}

impl KvLayer {
    /// A cache of zeros; sizes are blocks, kv heads, block size and head dim. The OS hands out its pages when they are first written.
    pub fn new(sizes: [usize; 4], dtype: KvDtype, device: &Device) -> Result<Self> {
        Ok(Self { k: Self::zeros(sizes, dtype, device)?, v: Self::zeros(sizes, dtype, device)? })
    }

    pub(crate) fn zeros(sizes: [usize; 4], dtype: KvDtype, device: &Device) -> Result<Tensor> {
        const OP: &str = "kv cache";
        tensors::require_cpu(OP, device)?;
        let elements = sizes.into_iter().try_fold(1usize, usize::checked_mul);
        let Some(elements) = elements.filter(|elements| (1..=isize::MAX as usize / 4).contains(elements)) else {
            return Err(shape(OP, format!("{sizes:?} (blocks, kv heads, block size, head dim) is no usable size")));
        };
        let before = elements_before(elements * dtype.bytes(), dtype.bytes());
        let all = before + elements;
        // Zeros of plain integers are memory that nobody has touched yet.
        let all = match dtype {
            KvDtype::F32 => Tensor::from_vec(vec![0f32; all], all, device),
            KvDtype::F16 => Tensor::from_vec(vec![0u16; all].reinterpret_into::<f16>(), all, device),
            KvDtype::Bf16 => Tensor::from_vec(vec![0u16; all].reinterpret_into::<bf16>(), all, device),
            KvDtype::Fp8 => Tensor::from_vec(vec![0u8; all], all, device),
        }?;
        Ok(all.narrow(0, before, elements)?.reshape(sizes.to_vec())?)
    }

    fn dims(&self, op: &'static str) -> Result<[usize; 4]> {
        let &[blocks, kv_heads, block_size, head_dim] = self.k.dims() else {
            return Err(shape(op, format!("the cache must have 4 dimensions and has {:?}", self.k.dims())));
        };
        tensors::require_dims(op, "v of the cache", &self.v, self.k.dims())?;
        Ok([blocks, kv_heads, block_size, head_dim])
    }
}

/// What stands unused before an array of the cache, at most a huge page; nothing before one that it would make larger by
/// more than a sixteenth.
///
/// The system clears memory when it is first written, a huge page at a time. Arrays of all layers that start alike would
/// come to their next page with the same block, and that step would wait until dozens of pages are clear (60 of them took
/// half a second on a machine that gets its memory from a host). So each starts at another place of its page: multiples of
/// the golden ratio, which are evenly spread for any number of arrays.
fn elements_before(bytes: usize, element_bytes: usize) -> usize {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    const CACHE_LINE_BYTES: usize = 64;
    static ARRAYS: AtomicU64 = AtomicU64::new(0);
    if bytes < 16 * HUGE_PAGE_BYTES {
        return 0;
    }
    let share = ARRAYS.fetch_add(1, Ordering::Relaxed).wrapping_mul(GOLDEN) >> 32;
    let place = ((share * HUGE_PAGE_BYTES as u64) >> 32) as usize;
    place / CACHE_LINE_BYTES * CACHE_LINE_BYTES / element_bytes
}

/// What a model's attention does beside the plain softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams<'a> {
    /// Factor on every score, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token sees this many positions, its own included.
    pub window: Option<u32>,
    /// `cap * tanh(score / cap)`, after the scale.
    pub softcap: Option<f32>,
    /// One score a head that takes its share of the softmax and has no value (GPT-OSS). `[heads]`
    pub sinks: Option<&'a [f32]>,
}

/// The ragged batch's bookkeeping; field meanings as in `sconce_models::BatchInput`.
#[derive(Debug, Clone, Copy)]
pub struct AttentionBatch<'a> {
    pub positions: &'a [u32],
    pub row_ends: &'a [u32],
    pub context_lens: &'a [u32],
    pub block_tables: &'a [u32],
    pub block_table_ends: &'a [u32],
}

impl AttentionBatch<'_> {
    pub(crate) fn check(&self, tokens: usize, blocks: usize, block_size: usize) -> Result<()> {
        const OP: &str = "paged_attention";
        let rows = self.row_ends.len();
        if self.positions.len() != tokens {
            return Err(shape(OP, format!("{} positions for {tokens} tokens", self.positions.len())));
        }
        if self.context_lens.len() != rows || self.block_table_ends.len() != rows {
            let (lens, ends) = (self.context_lens.len(), self.block_table_ends.len());
            return Err(shape(OP, format!("{rows} rows have {lens} context lengths and {ends} block table ends")));
        }
        if let Some(block) = self.block_tables.iter().find(|block| **block as usize >= blocks) {
            return Err(shape(OP, format!("block {block} is outside the cache of {blocks} blocks")));
        }
        let (mut start, mut table_start) = (0, 0);
        for row in 0..rows {
            let (end, table_end) = (self.row_ends[row] as usize, self.block_table_ends[row] as usize);
            self.check_row(row, (start, end), (table_start, table_end), block_size)?;
            (start, table_start) = (end, table_end);
        }
        if start != tokens || table_start != self.block_tables.len() {
            let listed = self.block_tables.len();
            return Err(shape(OP, format!("rows cover {start} of {tokens} tokens, {table_start} of {listed} blocks")));
        }
        Ok(())
    }

    fn check_row(&self, row: usize, tokens: (usize, usize), table: (usize, usize), block_size: usize) -> Result<()> {
        const OP: &str = "paged_attention";
        let context = self.context_lens[row] as usize;
        if tokens.1 < tokens.0 || tokens.1 > self.positions.len() || tokens.1 - tokens.0 > context {
            return Err(shape(OP, format!("row {row} spans tokens {tokens:?} of a context of {context}")));
        }
        if table.1 < table.0 || table.1 > self.block_tables.len() || (table.1 - table.0) * block_size < context {
            return Err(shape(OP, format!("row {row} has block table {table:?} for a context of {context}")));
        }
        let first = context - (tokens.1 - tokens.0);
        for (index, position) in self.positions[tokens.0..tokens.1].iter().enumerate() {
            if *position as usize != first + index {
                let wanted = first + index;
                return Err(shape(OP, format!("row {row} has position {position} where {wanted} must stand")));
            }
        }
        Ok(())
    }
}

/// Writes heads of a wider row into one of a layer's two tensors.
pub(crate) struct WriteHeads<'a, A> {
    pub slots: &'a [u32],
    pub heads: usize,
    pub head_dim: usize,
    pub block_size: usize,
    /// Elements of a row of x, and where the heads start in it.
    pub stride: usize,
    pub start: usize,
    pub how: Option<Turned<'a, A>>,
}

impl<'a, A> InplaceOp2 for WriteHeads<'a, A>
where
    A: Fn(usize) -> (&'a [f32], &'a [f32]) + Sync + Copy,
{
    fn name(&self) -> &'static str {
        "write_kv"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> candle_core::Result<()> {
        let x = tensors::cpu_values(self.name(), "k or v", values, values_layout).map_err(candle_error)?;
        let Some((from, to)) = cache_layout.contiguous_offsets() else {
            return Err(candle_error(shape("write_kv", "the cache must be contiguous")));
        };
        let WriteHeads { heads, head_dim, stride, start, .. } = *self;
        let heads = Heads { x, stride, start, heads, head_dim };
        match cache {
            CpuStorage::F32(cache) => self.write::<format::F32, _>(heads, &mut cache[from..to]),
            CpuStorage::F16(cache) => self.write::<format::F16, _>(heads, &mut cache[from..to]),
            CpuStorage::BF16(cache) => self.write::<format::Bf16, _>(heads, &mut cache[from..to]),
            CpuStorage::U8(cache) => self.write::<format::F8, _>(heads, &mut cache[from..to]),
            _ => return Err(candle_error(shape("write_kv", "the cache must be f32, f16, bf16 or fp8"))),
        }
        Ok(())
    }
}

impl<'a, A> WriteHeads<'a, A>
where
    A: Fn(usize) -> (&'a [f32], &'a [f32]) + Sync + Copy,
{
    fn write<F: format::Format + Sync, T>(&self, heads: Heads, cache: &mut [T]) {
        // SAFETY: f32, f16, bf16 and u8 are plain bytes without padding, and any bytes are one of them.
        let cache = unsafe { std::slice::from_raw_parts_mut(cache.as_mut_ptr().cast::<u8>(), size_of_val(cache)) };
        let into = Slots { cache, block_size: self.block_size, slots: self.slots, format: PhantomData::<F> };
        heads::write(Isa::best(), heads, self.how, into);
    }
}

fn candle_error(error: Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// No angles: values go into the cache as they are.
pub(crate) type NoAngles = fn(usize) -> (&'static [f32], &'static [f32]);

/// Writes k and v `[tokens, kv_heads, head_dim]` into their slots (slot = block * block_size + offset), in place. No two
/// tokens may have the same slot.
pub fn write_kv(cache: &mut KvLayer, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
    const OP: &str = "write_kv";
    let [_, heads, block_size, head_dim] = check_cache(OP, cache, slots)?;
    tensors::require_dims(OP, "k", k, &[slots.len(), heads, head_dim])?;
    tensors::require_dims(OP, "v", v, &[slots.len(), heads, head_dim])?;
    // Checked before either is written: a failure leaves the cache as it was.
    for (name, values) in [("k", k), ("v", v)] {
        let (storage, layout) = values.storage_and_layout();
        tensors::values(OP, name, &storage, layout)?;
        check_apart(OP, name, values, cache)?;
    }
    let (stride, how) = (heads * head_dim, None::<Turned<NoAngles>>);
    let write = WriteHeads { slots, heads, head_dim, block_size, stride, start: 0, how };
    cache.k.inplace_op2(k, &write)?;
    cache.v.inplace_op2(v, &write)?;
    Ok(())
}

/// The cache's sizes, if the slots are its own and differ from each other.
pub(crate) fn check_cache(op: &'static str, cache: &KvLayer, slots: &[u32]) -> Result<[usize; 4]> {
    tensors::require_cpu(op, cache.k.device())?;
    let dims @ [blocks, _, block_size, _] = cache.dims(op)?;
    if let Some(slot) = slots.iter().find(|slot| **slot as usize >= blocks * block_size) {
        return Err(shape(op, format!("slot {slot} is outside the cache of {} slots", blocks * block_size)));
    }
    // Tokens are written side by side by several threads. Most slots ascend, and then no search is needed.
    let ascending = slots.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending {
        let mut sorted = slots.to_vec();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(shape(op, format!("two tokens have slot {}", pair[0])));
        }
    }
    Ok(dims)
}

pub(crate) fn check_apart(op: &'static str, name: &str, values: &Tensor, cache: &KvLayer) -> Result<()> {
    let (storage, _) = values.storage_and_layout();
    for own in [&cache.k, &cache.v] {
        let (own_storage, _) = own.storage_and_layout();
        if std::ptr::eq(&*storage, &*own_storage) {
            return Err(shape(op, format!("{name} is the cache itself: copy it first")));
        }
    }
    Ok(())
}

/// RMSNorm over each head of q and of k, or over all heads of each together: the length of the weights says which; and
/// perhaps over each head of v.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// `[head_dim]` or `[heads * head_dim]`
    pub query: &'a Tensor,
    /// `[head_dim]` or `[kv_heads * head_dim]`
    pub key: &'a Tensor,
    /// `[head_dim]`
    pub value: Option<&'a Tensor>,
    pub eps: f32,
}

/// How a fused row of q, k and v is made up.
#[derive(Debug, Clone, Copy)]
pub struct QkvHeads<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norms: Option<HeadNorms<'a>>,
}

/// From qkv `[tokens, (heads + 2 * kv_heads) * head_dim]`: norms the heads of q and k where there are norms, rotates
/// them, writes k and v into their slots, and returns q `[tokens, heads, head_dim]`.
pub fn rope_and_write_kv(
    qkv: &Tensor,
    parts: QkvHeads,
    (table, style, positions): (&RopeTable, RopeStyle, &[u32]),
    cache: &mut KvLayer,
    slots: &[u32],
) -> Result<Tensor> {
    const OP: &str = "rope_and_write_kv";
    let QkvHeads { heads, kv_heads, head_dim, norms } = parts;
    let [_, cache_heads, block_size, cache_head_dim] = check_cache(OP, cache, slots)?;
    if (kv_heads, head_dim) != (cache_heads, cache_head_dim) {
        let cached = format!("{cache_heads} kv heads of {cache_head_dim}");
        return Err(shape(OP, format!("{kv_heads} kv heads of {head_dim} do not fit a cache of {cached}")));
    }
    let stride = (heads + 2 * kv_heads) * head_dim;
    tensors::require_dims(OP, "qkv", qkv, &[slots.len(), stride])?;
    table.check(OP, positions, slots.len(), head_dim)?;
    check_apart(OP, "qkv", qkv, cache)?;
    let guards = norms.map(|norms| (norms.query.storage_and_layout(), norms.key.storage_and_layout(), norms.eps));
    let (mut query_norm, mut key_norm) = (None, None);
    if let (Some(((query, query_layout), (key, key_layout), eps)), Some(norms)) = (&guards, norms) {
        for (name, norm, heads) in [("query norm", norms.query, heads), ("key norm", norms.key, kv_heads)] {
            if norm.dims() != [heads * head_dim] {
                tensors::require_dims(OP, name, norm, &[head_dim])?;
            }
        }
        query_norm = Some((tensors::values(OP, "query norm", query, query_layout)?, *eps));
        key_norm = Some((tensors::values(OP, "key norm", key, key_layout)?, *eps));
    }
    let angles = |token: usize| table.angles(positions[token]);
    let query = {
        let (storage, layout) = qkv.storage_and_layout();
        let x = tensors::values(OP, "qkv", &storage, layout)?;
        let heads = Heads { x, stride, start: 0, heads, head_dim };
        heads::turned(Isa::best(), heads, Turned { norm: query_norm, style, angles })
    };
    let start = heads * head_dim;
    let how = Some(Turned { norm: key_norm, style, angles });
    let key = WriteHeads { slots, heads: kv_heads, head_dim, block_size, stride, start, how };
    cache.k.inplace_op2(qkv, &key)?;
    let no_angles: NoAngles = |_| (&[], &[]);
    let value_guard = norms.and_then(|norms| Some((norms.value?, norms.eps)));
    let value_guard = value_guard.map(|(weight, eps)| (weight.storage_and_layout(), weight, eps));
    let how = match &value_guard {
        None => None,
        Some(((storage, layout), weight, eps)) => {
            tensors::require_dims(OP, "value norm", weight, &[head_dim])?;
            let norm = Some((tensors::values(OP, "value norm", storage, layout)?, *eps));
            Some(Turned { norm, style, angles: no_angles })
        }
    };
    let start = start + kv_heads * head_dim;
    let value = WriteHeads { slots, heads: kv_heads, head_dim, block_size, stride, start, how };
    cache.v.inplace_op2(qkv, &value)?;
    Ok(Tensor::from_vec(query, (slots.len(), heads, head_dim), qkv.device())?)
}

/// Causal attention of every token over its own row's context: q `[tokens, heads, head_dim]`, the same shape comes out.
///
/// A token sees positions up to its own, with `window` w only the last w of them. `heads / kv_heads` neighbouring
/// query heads share a KV head. The row's own K and V must have been written before.
pub fn paged_attention(
    q: &Tensor,
    cache: &KvLayer,
    batch: &AttentionBatch,
    params: &AttentionParams,
) -> Result<Tensor> {
    const OP: &str = "paged_attention";
    tensors::require_cpu(OP, q.device())?;
    let (tokens, heads, head_dim) = tensors::dims3(OP, "q", q)?;
    let [blocks, kv_heads, block_size, cache_head_dim] = cache.dims(OP)?;
    if head_dim != cache_head_dim || heads == 0 || heads % kv_heads != 0 {
        let cached = format!("{kv_heads} kv heads of {cache_head_dim}");
        return Err(shape(OP, format!("{heads} heads of {head_dim} do not fit a cache of {cached}")));
    }
    if params.window == Some(0) || params.softcap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) {
        return Err(shape(OP, format!("window and softcap must be above zero: {params:?}")));
    }
    if params.sinks.is_some_and(|sinks| sinks.len() != heads) {
        let sinks = params.sinks.map_or(0, <[f32]>::len);
        return Err(shape(OP, format!("{sinks} sinks for {heads} heads")));
    }
    batch.check(tokens, blocks, block_size)?;
    let (q_storage, q_layout) = q.storage_and_layout();
    let ((k_storage, k_layout), (v_storage, v_layout)) = (cache.k.storage_and_layout(), cache.v.storage_and_layout());
    let q_values = tensors::values(OP, "q", &q_storage, q_layout)?;
    let cache = cache_values(OP, (&k_storage, k_layout), (&v_storage, v_layout))?;
    let shape = AttentionShape { heads, kv_heads, head_dim, block_size };
    let out = cpu::attention::paged_attention(Isa::best(), q_values, cache, shape, batch, params);
    Ok(Tensor::from_vec(out, (tokens, heads, head_dim), q.device())?)
}

fn cache_values<'a>(
    op: &'static str,
    (k, k_layout): (&'a Storage, &Layout),
    (v, v_layout): (&'a Storage, &Layout),
) -> Result<Cache<'a>> {
    let (Storage::Cpu(k), Storage::Cpu(v)) = (k, v) else {
        return Err(Error::Unsupported { op, detail: "the cache is not on the cpu".to_owned() });
    };
    let (Some((k_from, k_to)), Some((v_from, v_to))) = (k_layout.contiguous_offsets(), v_layout.contiguous_offsets())
    else {
        return Err(shape(op, "the cache must be contiguous"));
    };
    match (k, v) {
        (CpuStorage::F32(k), CpuStorage::F32(v)) => Ok(Cache::F32(&k[k_from..k_to], &v[v_from..v_to])),
        (CpuStorage::F16(k), CpuStorage::F16(v)) => Ok(Cache::F16(&k[k_from..k_to], &v[v_from..v_to])),
        (CpuStorage::BF16(k), CpuStorage::BF16(v)) => Ok(Cache::Bf16(&k[k_from..k_to], &v[v_from..v_to])),
        (CpuStorage::U8(k), CpuStorage::U8(v)) => Ok(Cache::Fp8(&k[k_from..k_to], &v[v_from..v_to])),
        _ => Err(shape(op, "the cache must be f32, f16, bf16 or fp8, the same for k and v")),
    }
}
