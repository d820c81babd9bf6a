// performance-critical: no allocation per token, no lock, no log, no format
//! One panel against a tile of many tokens where the registers do not hold a whole block's codes.
//!
//! The codes of four quads of all 16 rows wait in registers while the tokens go by, and the tokens' sums in memory: so codes
//! are unpacked once a tile, as where registers are many.

#![expect(clippy::needless_range_loop, reason = "the loops over registers are all written alike")]

use super::activations::View;
use super::quants::Quants;
use super::tile::{PREFETCH_BYTES, add_scaled, first_block, multiply};
use crate::cpu::simd::{BLOCK, Dot};

/// Quads whose codes wait in registers.
const AT_ONCE: usize = 4;

/// As [`super::tile::quant_tile`], with the same bits.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn half_tile<S: Dot, Q: Quants, const T: usize, const WIDE: bool>(
    panel: *const u8,
    x: &View,
    tile: usize,
) -> [S::V; T] {
    let token_bytes = if WIDE { 2 * BLOCK } else { BLOCK };
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = [S::splat(0.0); T];
        let mut totals = [S::zero(); T];
        let (mut quants, mut scales, mut starts, mut sums) = first_block::<Q, WIDE>(x, tile);
        let mut head = panel;
        for _ in 0..x.input / BLOCK / Q::BLOCKS {
            let mut block = head.add(Q::HEAD_BYTES);
            for _ in 0..Q::BLOCKS {
                for line in (0..Q::BLOCK_BYTES).step_by(64) {
                    S::prefetch(block.wrapping_add(PREFETCH_BYTES + line));
                }
                for part in 0..Q::PARTS {
                    if WIDE {
                        totals = [S::zero(); T];
                        add_part::<S, Q, T, WIDE>(&mut totals, block, part, quants);
                        for token in 0..T {
                            totals[token] = S::join(totals[token], start::<S, Q>(starts.add(token)));
                        }
                        add_part::<S, Q, T, WIDE>(&mut totals, block, part, quants.add(BLOCK));
                    } else {
                        for token in 0..T {
                            totals[token] = start::<S, Q>(starts.add(token));
                        }
                        add_part::<S, Q, T, WIDE>(&mut totals, block, part, quants);
                    }
                    let of_panel = Q::scales::<S>(head, block, part);
                    for token in 0..T {
                        acc[token] = add_scaled::<S, Q>(
                            acc[token],
                            totals[token],
                            of_panel,
                            (scales.add(token), sums.add(token)),
                        );
                    }
                    starts = starts.add(T);
                    sums = sums.add(T);
                }
                quants = quants.add(T * token_bytes);
                scales = scales.add(T);
                block = block.add(Q::BLOCK_BYTES);
            }
            head = block;
        }
        acc
    }
}

/// What a part's sum starts at.
///
/// # Safety
/// As [`Dot::start`].
#[inline(always)]
unsafe fn start<S: Dot, Q: Quants>(minus_128_sums: *const i32) -> S::I {
    // SAFETY: as promised by the caller.
    unsafe { if Q::MINS { S::zero() } else { S::start(minus_128_sums) } }
}

/// Adds one byte's products of a part of a block to the sums of `T` tokens.
///
/// # Safety
/// `block` must be a block of `Q`, `x` the first token's byte of its first element, and the machine must have the
/// instructions of `S`.
#[inline(always)]
unsafe fn add_part<S: Dot, Q: Quants, const T: usize, const WIDE: bool>(
    totals: &mut [S::I; T],
    block: *const u8,
    part: usize,
    x: *const i8,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        // The places of codes must be constants: otherwise all of them go through memory.
        if Q::PARTS == 1 {
            add_four::<S, Q, T, WIDE>(totals, block, 0, x);
            add_four::<S, Q, T, WIDE>(totals, block, AT_ONCE, x);
        } else if part == 0 {
            add_four::<S, Q, T, WIDE>(totals, block, 0, x);
        } else {
            add_four::<S, Q, T, WIDE>(totals, block, AT_ONCE, x);
        }
    }
}

/// The same for the [`AT_ONCE`] quads from `first` on.
///
/// # Safety
/// As [`add_part`].
#[inline(always)]
unsafe fn add_four<S: Dot, Q: Quants, const T: usize, const WIDE: bool>(
    totals: &mut [S::I; T],
    block: *const u8,
    first: usize,
    x: *const i8,
) {
    let apart = if WIDE { 2 * BLOCK } else { BLOCK };
    // SAFETY: as promised by the caller.
    unsafe {
        // Those of the other quads are never computed.
        let codes = Q::codes::<S>(block);
        for token in 0..T {
            let mut total = totals[token];
            for quad in first..first + AT_ONCE {
                total = multiply::<S, Q>(total, codes[quad], x.add(token * apart + quad * 4));
            }
            totals[token] = total;
        }
    }
}
