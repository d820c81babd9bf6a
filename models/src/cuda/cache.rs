//! What each layer remembers of the tokens, in blocks.

use sconce_cuda::{Buffer, Device, ElementType};
use sconce_kernels::{DeltaSizes, KvDtype};

use super::CudaModel;
use super::delta::sizes_of;
use super::runner::CudaSizes;
use crate::error::Result;
use crate::spec::{CacheKind, KvHeads};

pub(super) enum LayerCache {
    /// `[blocks, kv_heads, block_size, head_dim]` each.
    KeysAndValues { k: Buffer, v: Buffer },
    /// One vector a token: `[blocks, block_size, width]`.
    Vectors(Buffer),
    /// One state a sequence: F32 `[slots, state]`.
    States(Buffer),
    /// The layer reads what an earlier one wrote.
    Shared,
}

impl LayerCache {
    /// Of the heads that are here.
    pub fn all(model: &CudaModel, sizes: CudaSizes, ty: ElementType) -> Result<Vec<Self>> {
        let (spec, device) = (&model.spec, &model.device);
        let slots = sizes.blocks as usize * sizes.block_size as usize;
        let mut all = Vec::with_capacity(spec.layers);
        for layer in 0..spec.layers {
            all.push(match spec.cache_of(layer) {
                CacheKind::KeysAndValues(KvHeads { kv_heads, head_dim }) => {
                    let len = slots * model.cut.kv_heads(kv_heads) * head_dim;
                    Self::KeysAndValues { k: device.zeros(len, ty)?, v: device.zeros(len, ty)? }
                }
                CacheKind::Shared(_) => Self::Shared,
                CacheKind::Vector(width) => Self::Vectors(device.zeros(slots * width, ty)?),
                CacheKind::State(sizes) => Self::States(Self::states(device, &sizes, 1)?),
            });
        }
        Ok(all)
    }

    /// States of a layer in so many slots.
    pub fn states(device: &Device, sizes: &DeltaSizes, slots: u32) -> Result<Buffer> {
        Ok(device.zeros(sizes_of(sizes).state_len() * slots as usize, ElementType::F32)?)
    }
}

/// What the cache's elements are; without a wish as activations.
pub(super) fn kv_element(dtype: Option<KvDtype>, ty: ElementType) -> ElementType {
    match dtype {
        None => ty,
        Some(KvDtype::F32) => ElementType::F32,
        Some(KvDtype::F16) => ElementType::F16,
        Some(KvDtype::Bf16) => ElementType::Bf16,
        Some(KvDtype::Fp8) => ElementType::Fp8,
    }
}
