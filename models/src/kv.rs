//! The paged K and V memory of one model: allocated once, written and read through slots and block tables.

use candle_core::Device;
use sconce_kernels::{KvDtype, KvLayer};

use crate::error::{Error, Result};
use crate::spec::{CacheKind, KvHeads, Spec, Uneven};

/// `blocks` blocks of `block_size` tokens in every layer. Untouched blocks cost address space only.
pub struct KvCache {
    /// `[layers]`
    pub layers: Vec<KvLayer>,
    blocks: u32,
    block_size: u32,
    bytes: u64,
}

impl KvCache {
    pub(crate) fn new(spec: &Spec, blocks: u32, block_size: u32, dtype: KvDtype, device: &Device) -> Result<Self> {
        if blocks == 0 || block_size == 0 {
            return Err(Error::Batch(format!("a kv cache of {blocks} blocks of {block_size} tokens holds nothing")));
        }
        let tokens = u64::from(blocks) * u64::from(block_size);
        let refused = |bytes| Error::KvMemory { blocks, block_size, bytes };
        let bytes = tokens.checked_mul(spec.kv_bytes_per_token(dtype)).ok_or(refused(u64::MAX))?;
        // Slots are u32, and a failed allocation inside a tensor would abort the process: ask first, politely.
        if u32::try_from(tokens).is_err() || !memory_is_given(bytes) {
            return Err(refused(bytes));
        }
        let mut layers: Vec<KvLayer> = Vec::with_capacity(spec.layers);
        for layer in 0..spec.layers {
            layers.push(match spec.cache_of(layer) {
                CacheKind::KeysAndValues(KvHeads { kv_heads, head_dim }) => {
                    KvLayer::new([blocks as usize, kv_heads, block_size as usize, head_dim], dtype, device)?
                }
                CacheKind::Vector(width) => {
                    KvLayer::of_vectors([blocks as usize, block_size as usize, width], dtype, device)?
                }
                // A clone of a layer is the same memory.
                CacheKind::Shared(earlier) => layers[earlier].clone(),
            });
        }
        Ok(Self { layers, blocks, block_size, bytes })
    }

    /// As [`Self::new`] with one layer's memory for all of them: for a step whose tokens are all of their sequences, so
    /// that no layer's K and V are read again once the layer is done.
    pub(crate) fn shared(spec: &Spec, blocks: u32, block_size: u32, dtype: KvDtype, device: &Device) -> Result<Self> {
        if spec.uneven != Uneven::default() {
            return Self::new(spec, blocks, block_size, dtype, device);
        }
        let one = Self::new(&Spec { layers: 1, ..spec.clone() }, blocks, block_size, dtype, device)?;
        // A clone of a layer is the same memory.
        Ok(Self { layers: one.layers.into_iter().cycle().take(spec.layers).collect(), ..one })
    }

    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Bytes of K and V in all layers, touched or not.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Whether the operating system would hand out so much in one piece. The memory is not touched and goes straight back.
pub(crate) fn memory_is_given(bytes: u64) -> bool {
    let mut probe = Vec::<u8>::new();
    let given = usize::try_from(bytes).is_ok_and(|bytes| probe.try_reserve_exact(bytes).is_ok());
    // Seen by nobody, a paired allocation and free may be optimised away.
    std::hint::black_box(&probe);
    given
}
