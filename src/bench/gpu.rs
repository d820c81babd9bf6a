//! The engine's figures on a GPU: its executor for a list of cases, and what the card can do at best.

use sconce_cuda::ops::rates;
use sconce_cuda::{Communicator, Device};
use sconce_models::cuda::{CudaModel, CudaSizes, Share};
use sconce_models::{LoadOptions, Precision, Source, Spec};

use crate::device::rates::Hardware;
use crate::engine::{CudaExecutor, Executor, cuda_ranks};
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

/// A model on one of `devices`, or shared out among all of them, with room for the cases.
pub fn executor(
    devices: &[Device],
    source: &Source,
    precision: Precision,
    room: impl FnOnce(&Spec) -> Result<Room>,
) -> Result<(Box<dyn Executor>, Spec)> {
    let invalid = |why: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidRequest, why.to_string());
    let ranks = devices.len();
    let load = |(rank, device): (usize, &Device)| {
        let options = LoadOptions { precision, ..LoadOptions::default() };
        CudaModel::load_share(source, device, options, Share { rank, ranks }).map_err(|why| invalid(&why))
    };
    let mut models = devices.iter().enumerate().map(load).collect::<Result<Vec<_>>>()?;
    let spec = models[0].spec().clone();
    let Room { sequences, tokens_each, blocks, block_tokens, step_tokens } = room(&spec)?;
    let sizes = CudaSizes {
        max_num_seqs: sequences as u32,
        max_num_batched_tokens: step_tokens as u32,
        max_model_len: tokens_each as u32,
        blocks: blocks as u32,
        block_size: block_tokens as u32,
        kv_dtype: None,
    };
    if ranks > 1 {
        let ends = Communicator::connect(devices).map_err(|why| invalid(&why))?;
        let shares = models.into_iter().zip(ends).collect();
        let executor = cuda_ranks("bench", shares, sizes).map_err(|why| invalid(&why))?;
        return Ok((Box::new(executor), spec));
    }
    let executor = CudaExecutor::new(models.remove(0), sizes);
    let executor = executor.and_then(|executor| executor.with_state_slots(sizes.max_num_seqs));
    Ok((Box::new(executor.map_err(|why| invalid(&why))?), spec))
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
