//! The engine's figures on a GPU: its executor for a list of cases, and what the card can do at best.

use sconce_cuda::Device;
use sconce_cuda::ops::rates;
use sconce_models::cuda::{CudaModel, CudaSizes};
use sconce_models::{LoadOptions, Source, Spec};

use crate::device::rates::Hardware;
use crate::engine::{CudaExecutor, Executor};
use crate::error::{Error, ErrorKind, Result};

/// Tokens of a step: as the server has them on a card with much memory.
pub const STEP_TOKENS: usize = 8192;

/// What a set of cases needs.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub sequences: usize,
    pub tokens_each: usize,
    pub blocks: usize,
    pub block_tokens: usize,
    /// Tokens of the largest step.
    pub step_tokens: usize,
}

/// A model on `device` with room for the cases.
pub fn executor(
    device: &Device,
    source: &Source,
    options: LoadOptions,
    room: impl FnOnce(&Spec) -> Result<Room>,
) -> Result<(Box<dyn Executor>, Spec)> {
    let invalid = |why: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidRequest, why.to_string());
    let model = CudaModel::load(source, device, options).map_err(|why| invalid(&why))?;
    let spec = model.spec().clone();
    let Room { sequences, tokens_each, blocks, block_tokens, step_tokens } = room(&spec)?;
    let sizes = CudaSizes {
        max_num_seqs: sequences as u32,
        max_num_batched_tokens: step_tokens as u32,
        max_model_len: tokens_each as u32,
        blocks: blocks as u32,
        block_size: block_tokens as u32,
        kv_dtype: None,
    };
    let executor = CudaExecutor::new(model, sizes).map_err(|why| invalid(&why))?;
    Ok((Box::new(executor), spec))
}

/// Measured now: a second or two.
pub fn measure(device: &Device) -> Result<Hardware> {
    let failed = |why: sconce_cuda::Error| Error::new(ErrorKind::Unavailable, format!("the GPU: {why}"));
    let rates::Rates { read_bytes_per_s, f32_per_s, bf16_per_s } = rates::measure(device).map_err(failed)?;
    let info = device.info();
    Ok(Hardware {
        processor: format!("{}, {} multiprocessors", info.name, info.multiprocessors),
        threads: 1,
        read_bytes_per_s,
        f32_per_s,
        bf16_per_s: Some(bf16_per_s),
        // Quantised weights are multiplied as 16-bit numbers in prefill.
        int8_per_s: Some(bf16_per_s),
    })
}
