//! Paged attention over a ragged batch, and the cache that it reads.
//!
//! Invariant: everything that an index depends on (block ids, slots, positions, row bounds) is checked here, before
//! a kernel runs, so that a wrong batch is an error and never a read outside the cache.

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Tensor};

use crate::cpu::{self, Isa};
use crate::error::{Error, Result, shape};
use crate::reference::AttentionShape;
use crate::tensors;

/// K and V of one layer, each `[blocks, kv_heads, block_size, head_dim]`, f32 on the CPU.
#[derive(Debug, Clone)]
pub struct KvLayer {
    pub k: Tensor,
    pub v: Tensor,
}

impl KvLayer {
    /// A cache of zeros. The OS hands out its pages when they are first written.
    pub fn new(blocks: usize, kv_heads: usize, block_size: usize, head_dim: usize, device: &Device) -> Result<Self> {
        const OP: &str = "kv cache";
        tensors::require_cpu(OP, device)?;
        let sizes = [blocks, kv_heads, block_size, head_dim];
        let elements = sizes.into_iter().try_fold(1usize, usize::checked_mul);
        let Some(elements) = elements.filter(|elements| (1..=isize::MAX as usize / 4).contains(elements)) else {
            return Err(shape(OP, format!("{sizes:?} (blocks, kv heads, block size, head dim) is no usable size")));
        };
        let zeros = || Tensor::from_vec(vec![0f32; elements], sizes.to_vec(), device);
        Ok(Self { k: zeros()?, v: zeros()? })
    }

    fn dims(&self, op: &'static str) -> Result<[usize; 4]> {
        let &[blocks, kv_heads, block_size, head_dim] = self.k.dims() else {
            return Err(shape(op, format!("the cache must have 4 dimensions and has {:?}", self.k.dims())));
        };
        tensors::require_dims(op, "v of the cache", &self.v, self.k.dims())?;
        Ok([blocks, kv_heads, block_size, head_dim])
    }
}

/// What a model's attention does beside the plain softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams {
    /// Factor on every score, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token sees this many positions, its own included.
    pub window: Option<u32>,
    /// `cap * tanh(score / cap)`, after the scale.
    pub softcap: Option<f32>,
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
    fn check(&self, tokens: usize, blocks: usize, block_size: usize) -> Result<()> {
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

struct WriteSlots<'a> {
    slots: &'a [u32],
    shape: AttentionShape,
}

impl InplaceOp2 for WriteSlots<'_> {
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
        let values = tensors::cpu_values(self.name(), "k or v", values, values_layout).map_err(candle_error)?;
        let (CpuStorage::F32(cache), Some((start, end))) = (cache, cache_layout.contiguous_offsets()) else {
            return Err(candle_error(shape("write_kv", "the cache must be contiguous f32")));
        };
        cpu::attention::write_kv(&mut cache[start..end], self.shape, values, self.slots);
        Ok(())
    }
}

fn candle_error(error: Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// Writes k and v `[tokens, kv_heads, head_dim]` into their slots (slot = block * block_size + offset), in place.
pub fn write_kv(cache: &mut KvLayer, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
    const OP: &str = "write_kv";
    tensors::require_cpu(OP, cache.k.device())?;
    let [blocks, kv_heads, block_size, head_dim] = cache.dims(OP)?;
    tensors::require_dims(OP, "k", k, &[slots.len(), kv_heads, head_dim])?;
    tensors::require_dims(OP, "v", v, &[slots.len(), kv_heads, head_dim])?;
    if let Some(slot) = slots.iter().find(|slot| **slot as usize >= blocks * block_size) {
        return Err(shape(OP, format!("slot {slot} is outside the cache of {} slots", blocks * block_size)));
    }
    // Checked before either is written: a failure leaves the cache as it was.
    for (name, values) in [("k", k), ("v", v)] {
        let (storage, layout) = values.storage_and_layout();
        tensors::values(OP, name, &storage, layout)?;
        for own in [&cache.k, &cache.v] {
            let (own_storage, _) = own.storage_and_layout();
            if std::ptr::eq(&*storage, &*own_storage) {
                return Err(shape(OP, format!("{name} is the cache itself: copy it first")));
            }
        }
    }
    let write = WriteSlots { slots, shape: AttentionShape { heads: kv_heads, kv_heads, head_dim, block_size } };
    cache.k.inplace_op2(k, &write)?;
    cache.v.inplace_op2(v, &write)?;
    Ok(())
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
    batch.check(tokens, blocks, block_size)?;
    let (q_storage, q_layout) = q.storage_and_layout();
    let ((k_storage, k_layout), (v_storage, v_layout)) = (cache.k.storage_and_layout(), cache.v.storage_and_layout());
    let q_values = tensors::values(OP, "q", &q_storage, q_layout)?;
    let k = tensors::values(OP, "k of the cache", &k_storage, k_layout)?;
    let v = tensors::values(OP, "v of the cache", &v_storage, v_layout)?;
    let shape = AttentionShape { heads, kv_heads, head_dim, block_size };
    let out = cpu::attention::paged_attention(Isa::best(), q_values, (k, v), shape, batch, params);
    Ok(Tensor::from_vec(out, (tokens, heads, head_dim), q.device())?)
}
