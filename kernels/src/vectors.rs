//! Layers whose cache holds one vector a token instead of K and V: latents that stand for both (DeepSeek), and inputs of
//! short convolutions (LFM2). Blocks, slots and block tables are those of K and V.
//!
//! Invariant: a vector that is read was written by its own row's tokens; a convolution reads from the cache only, so that
//! a token's result is the same whether its predecessors were in this step or an earlier one.

use std::marker::PhantomData;

use candle_core::{CpuStorage, Device, Layout, Storage, Tensor};

use crate::attention::{AttentionBatch, KvDtype, KvLayer, NoAngles, WriteHeads, check_apart, check_cache};
use crate::cpu::convolve::{Convolution, convolve};
use crate::cpu::heads::Turned;
use crate::cpu::{Isa, format};
use crate::error::{Error, Result, shape};
use crate::tensors;

impl KvLayer {
    /// A cache of one vector a token; sizes are blocks, block size and width. K and V are the same memory.
    pub fn of_vectors(sizes: [usize; 3], dtype: KvDtype, device: &Device) -> Result<Self> {
        let [blocks, block_size, width] = sizes;
        let k = Self::zeros([blocks, 1, block_size, width], dtype, device)?;
        Ok(Self { v: k.clone(), k })
    }
}

/// Writes x `[tokens, width]` into the slots of a cache of vectors. No two tokens may have the same slot.
pub fn write_vectors(cache: &mut KvLayer, x: &Tensor, slots: &[u32]) -> Result<()> {
    const OP: &str = "write_vectors";
    let [_, heads, block_size, head_dim] = check_cache(OP, cache, slots)?;
    if heads != 1 {
        return Err(shape(OP, format!("a cache of {heads} heads is none of vectors")));
    }
    tensors::require_dims(OP, "x", x, &[slots.len(), head_dim])?;
    check_apart(OP, "x", x, cache)?;
    let how = None::<Turned<NoAngles>>;
    let write = WriteHeads { slots, heads, head_dim, block_size, stride: head_dim, start: 0, how };
    cache.k.inplace_op2(x, &write)?;
    Ok(())
}

/// A causal convolution of every channel on its own over the vectors of a token's row, its own vector the last:
/// `y[t] = bias + sum over j of taps[j] * cache[t + 1 - taps + j]`, vectors before the first being zeros. The row's own
/// vectors must have been written before. taps `[taps, width]`, bias `[width]`: `[tokens, width]`.
pub fn short_convolution(
    cache: &KvLayer,
    batch: &AttentionBatch,
    taps: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    const OP: &str = "short_convolution";
    tensors::require_cpu(OP, cache.k.device())?;
    let &[blocks, 1, block_size, width] = cache.k.dims() else {
        return Err(shape(OP, format!("the cache is {:?}, not one of vectors", cache.k.dims())));
    };
    let (taps_count, taps_width) = tensors::dims2(OP, "taps", taps)?;
    if taps_count == 0 || taps_width != width {
        return Err(shape(OP, format!("taps {:?} do not fit vectors of {width}", taps.dims())));
    }
    if let Some(bias) = bias {
        tensors::require_dims(OP, "bias", bias, &[width])?;
    }
    let tokens = batch.positions.len();
    batch.check(tokens, blocks, block_size)?;
    let (taps_storage, taps_layout) = taps.storage_and_layout();
    let taps = tensors::values(OP, "taps", &taps_storage, taps_layout)?;
    let bias = bias.map(Tensor::storage_and_layout);
    let bias = bias.as_ref().map(|(storage, layout)| tensors::values(OP, "bias", storage, layout)).transpose()?;
    let (storage, layout) = cache.k.storage_and_layout();
    let out = dispatch(&storage, layout, Convolution { width, block_size, batch, taps, bias })?;
    Ok(Tensor::from_vec(out, (tokens, width), cache.k.device())?)
}

fn dispatch(cache: &Storage, layout: &Layout, convolution: Convolution) -> Result<Vec<f32>> {
    const OP: &str = "short_convolution";
    let Storage::Cpu(cache) = cache else {
        return Err(Error::Unsupported { op: OP, detail: "the cache is not on the cpu".to_owned() });
    };
    let Some((from, to)) = layout.contiguous_offsets() else {
        return Err(shape(OP, "the cache must be contiguous"));
    };
    let isa = Isa::best();
    match cache {
        CpuStorage::F32(cache) => Ok(convolve(isa, &cache[from..to], PhantomData::<format::F32>, convolution)),
        CpuStorage::F16(cache) => Ok(convolve(isa, &cache[from..to], PhantomData::<format::F16>, convolution)),
        CpuStorage::BF16(cache) => Ok(convolve(isa, &cache[from..to], PhantomData::<format::Bf16>, convolution)),
        CpuStorage::U8(cache) => Ok(convolve(isa, &cache[from..to], PhantomData::<format::F8>, convolution)),
        _ => Err(shape(OP, "the cache must be f32, f16, bf16 or fp8")),
    }
}
