//! The paged K and V memory of one model: allocated once, written and read through slots and block tables.

use candle_core::Device;
use sconce_kernels::{DeltaStates, KvDtype, KvLayer};

use crate::check::CacheSizes;
use crate::error::{Error, Result};
use crate::spec::{CacheKind, KvHeads, Spec, Uneven};

/// What a layer remembers.
pub enum LayerCache {
    /// Something of every token, in blocks.
    Blocks(KvLayer),
    /// One state a sequence, in slots.
    States(DeltaStates),
}

/// `blocks` blocks of `block_size` tokens in every layer, and state slots in those that keep a state a sequence. Untouched
/// memory costs address space only.
pub struct KvCache {
    /// `[layers]`
    pub layers: Vec<LayerCache>,
    state_slots: u32,
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
        let state_bytes = spec.state_bytes();
        if !memory_is_given(bytes.saturating_add(state_bytes)) {
            return Err(Error::StateMemory { slots: 1, bytes: state_bytes });
        }
        let mut layers: Vec<LayerCache> = Vec::with_capacity(spec.layers);
        for layer in 0..spec.layers {
            layers.push(match spec.cache_of(layer) {
                CacheKind::KeysAndValues(KvHeads { kv_heads, head_dim }) => {
                    let sizes = [blocks as usize, kv_heads, block_size as usize, head_dim];
                    LayerCache::Blocks(KvLayer::new(sizes, dtype, device)?)
                }
                CacheKind::Vector(width) => {
                    let sizes = [blocks as usize, block_size as usize, width];
                    LayerCache::Blocks(KvLayer::of_vectors(sizes, dtype, device)?)
                }
                CacheKind::State(sizes) => LayerCache::States(DeltaStates::new(sizes, 1)?),
                CacheKind::Shared(earlier) => layers[earlier].again()?,
            });
        }
        let state_slots = u32::from(spec.uneven.delta.is_some());
        Ok(Self { layers, state_slots, blocks, block_size, bytes })
    }

    /// With slots for so many states instead of one, if the model keeps any.
    pub fn with_state_slots(mut self, slots: u32, spec: &Spec) -> Result<Self> {
        let bytes = spec.state_bytes().saturating_mul(u64::from(slots));
        if self.state_slots == 0 {
            return Ok(self);
        }
        if slots == 0 || !memory_is_given(bytes) {
            return Err(Error::StateMemory { slots, bytes });
        }
        for (layer, cache) in self.layers.iter_mut().enumerate() {
            if let CacheKind::State(sizes) = spec.cache_of(layer) {
                *cache = LayerCache::States(DeltaStates::new(sizes, slots)?);
            }
        }
        self.state_slots = slots;
        Ok(self)
    }

    /// As [`Self::new`] with one layer's memory for all of them: for a step whose tokens are all of their sequences, so
    /// that no layer's K and V are read again once the layer is done.
    pub(crate) fn shared(spec: &Spec, blocks: u32, block_size: u32, dtype: KvDtype, device: &Device) -> Result<Self> {
        if spec.uneven != Uneven::default() {
            return Self::new(spec, blocks, block_size, dtype, device);
        }
        let one = Self::new(&Spec { layers: 1, ..spec.clone() }, blocks, block_size, dtype, device)?;
        let layers = (0..spec.layers).map(|_| one.layers[0].again()).collect::<Result<_>>()?;
        Ok(Self { layers, ..one })
    }

    pub(crate) fn sizes(&self) -> CacheSizes {
        CacheSizes {
            layers: self.layers.len(),
            blocks: self.blocks,
            block_size: self.block_size,
            state_slots: self.state_slots,
        }
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

impl LayerCache {
    /// The same memory once more.
    fn again(&self) -> Result<Self> {
        match self {
            // A clone of a layer is the same memory.
            Self::Blocks(layer) => Ok(Self::Blocks(layer.clone())),
            Self::States(_) => Err(Error::Batch("states are not shared between layers".to_owned())),
        }
    }

    /// Makes the state of one slot that of another.
    pub(crate) fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        match self {
            Self::Blocks(_) => Ok(()),
            Self::States(states) => Ok(states.copy(from, to)?),
        }
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
