// performance-critical: no allocation per token, no lock, no log, no format
//! Short causal convolutions over vectors that lie in the blocks of a cache.
//!
//! Invariant: a channel's sum starts with the bias and goes from the oldest vector to the token's own, whatever else is
//! in the batch.

use std::marker::PhantomData;

use super::format::Format;
use super::pool;
use super::simd::{Isa, Kernel, LANES, Simd, dispatch};
use crate::attention::AttentionBatch;

/// Multiplications that are worth a thread of their own.
const WORK_PER_CHUNK: usize = 16 * 1024;

/// What [`convolve`] needs beside the cache. The batch must have been checked against the cache.
#[derive(Clone, Copy)]
pub(crate) struct Convolution<'a> {
    pub width: usize,
    pub block_size: usize,
    pub batch: &'a AttentionBatch<'a>,
    /// `[taps, width]`
    pub taps: &'a [f32],
    /// `[width]`
    pub bias: Option<&'a [f32]>,
}

#[derive(Clone, Copy)]
struct Out(*mut f32);
// SAFETY: tokens write to disjoint places.
unsafe impl Sync for Out {}

impl Out {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

/// `[tokens, width]`; the cache is `[blocks, 1, block_size, width]` in the format `F`.
pub(crate) fn convolve<F: Format + Sync, T: Copy + Sync>(
    isa: Isa,
    cache: &[T],
    format: PhantomData<F>,
    convolution: Convolution,
) -> Vec<f32> {
    assert!(isa.is_available() && size_of::<T>() == F::ELEMENT_BYTES, "{isa:?} on a machine without it");
    let Convolution { width, batch, taps, .. } = convolution;
    let tokens = batch.positions.len();
    let mut out: Vec<f32> = Vec::with_capacity(tokens * width);
    let target = Out(out.as_mut_ptr());
    let chunk = (WORK_PER_CHUNK / taps.len().max(1)).max(1);
    pool::run(tokens.div_ceil(chunk), &|index| {
        for token in index * chunk..((index + 1) * chunk).min(tokens) {
            // SAFETY: the instruction set was checked; the token's row lies inside the output's capacity.
            unsafe {
                let out = target.get().add(token * width);
                dispatch(isa, Token { cache, format, convolution, token, out });
            }
        }
    });
    // SAFETY: every token's row has been written.
    unsafe { out.set_len(tokens * width) };
    out
}

struct Token<'a, T, F> {
    cache: &'a [T],
    format: PhantomData<F>,
    convolution: Convolution<'a>,
    token: usize,
    out: *mut f32,
}

impl<T, F: Format> Kernel for Token<'_, T, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Convolution { width, block_size, batch, taps, bias } = self.convolution;
        let row = batch.row_ends.partition_point(|end| *end as usize <= self.token);
        let table = row.checked_sub(1).map_or(0, |before| batch.block_table_ends[before] as usize);
        let (count, position) = (taps.len() / width, batch.positions[self.token] as usize);
        // Taps that would meet vectors before the first.
        let missing = count.saturating_sub(position + 1);
        for column in (0..width).step_by(LANES) {
            let left = width - column;
            // SAFETY: columns stay below the width; the caller promises room for a row.
            unsafe {
                let mut sum = bias.map_or(S::splat(0.0), |bias| S::load_part(bias.as_ptr().add(column), left));
                for tap in missing..count {
                    let at = position + 1 + tap - count;
                    let slot = batch.block_tables[table + at / block_size] as usize * block_size + at % block_size;
                    let vector = &self.cache[slot * width..(slot + 1) * width];
                    let values = F::load_part::<S>(vector.as_ptr().cast::<u8>().add(column * F::ELEMENT_BYTES), left);
                    sum = S::fma(S::load_part(taps.as_ptr().add(tap * width + column), left), values, sum);
                }
                S::store_part(self.out.add(column), sum, left);
            }
        }
    }
}
