// performance-critical: no allocation per token, no lock, no log, no format
//! One panel against a tile of tokens in the way of [`Paired`]: sums of two tokens at a time.
//!
//! Half a block's codes of all 16 rows wait in registers while the tokens go by, and the tokens' sums in memory.

#![expect(clippy::needless_range_loop, reason = "the loops over registers are all written alike")]

use super::activations::View;
use super::quants::Quants;
use super::tile::{PREFETCH_BYTES, add_scaled, first_block};
use crate::cpu::simd::{BLOCK, Paired};

/// Eights of codes that wait in registers.
const AT_ONCE: usize = 2;
/// Tokens of a tile.
const TOKENS: usize = 16;
const PAIRS: usize = TOKENS / 2;

/// As [`super::tile::quant_tile`], with the same bits.
///
/// # Safety
/// As there, for activations of one byte.
#[inline(always)]
pub(super) unsafe fn pair_tile<S: Paired, Q: Quants>(panel: *const u8, x: &View, tile: usize) -> [S::V; TOKENS] {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = [S::splat(0.0); TOKENS];
        let mut totals = [S::no_sums(); PAIRS];
        let (mut quants, mut scales, _, mut sums) = first_block::<Q, false>(x, tile);
        let mut head = panel;
        for _ in 0..x.input / BLOCK / Q::BLOCKS {
            let mut block = head.add(Q::HEAD_BYTES);
            for _ in 0..Q::BLOCKS {
                for line in (0..Q::BLOCK_BYTES).step_by(64) {
                    S::prefetch(block.wrapping_add(PREFETCH_BYTES + line));
                }
                for part in 0..Q::PARTS {
                    // The places of codes must be constants: otherwise all of them go through memory.
                    if part == 0 {
                        add_half::<S, Q>(&mut totals, block, 0, true, quants);
                    } else {
                        add_half::<S, Q>(&mut totals, block, AT_ONCE, true, quants);
                    }
                    if Q::PARTS == 1 {
                        add_half::<S, Q>(&mut totals, block, AT_ONCE, false, quants);
                    }
                    let of_panel = Q::scales::<S>(head, block, part);
                    for pair in 0..PAIRS {
                        let apart = S::apart(totals[pair]);
                        for which in 0..2 {
                            let token = 2 * pair + which;
                            acc[token] = add_scaled::<S, Q>(
                                acc[token],
                                apart[which],
                                of_panel,
                                (scales.add(token), sums.add(token)),
                            );
                        }
                    }
                    sums = sums.add(TOKENS);
                }
                quants = quants.add(TOKENS * BLOCK);
                scales = scales.add(TOKENS);
                block = block.add(Q::BLOCK_BYTES);
            }
            head = block;
        }
        acc
    }
}

/// Adds the products of [`AT_ONCE`] eights from `first` on to the sums of all tokens, or starts them anew.
///
/// # Safety
/// `block` must be a block of `Q`, `x` the first token's first element of it, and the machine must have the instructions
/// of `S`.
#[inline(always)]
unsafe fn add_half<S: Paired, Q: Quants>(
    totals: &mut [S::D; PAIRS],
    block: *const u8,
    first: usize,
    anew: bool,
    x: *const i8,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        // Those of the other quads are never computed.
        let codes = Q::codes::<S>(block);
        let mut values = [eights::<S, Q>(&codes, first); AT_ONCE];
        for at in 1..AT_ONCE {
            values[at] = eights::<S, Q>(&codes, first + at);
        }
        for pair in 0..PAIRS {
            let mut total = if anew { S::no_sums() } else { totals[pair] };
            for at in 0..AT_ONCE {
                let x = x.add(2 * pair * BLOCK + (first + at) * 8);
                total = S::add_eights(total, values[at], [x, x.add(BLOCK)]);
            }
            totals[pair] = total;
        }
    }
}

/// # Safety
/// The machine must have the instructions of `S`.
#[inline(always)]
unsafe fn eights<S: Paired, Q: Quants>(codes: &[S::B; 8], at: usize) -> S::M {
    let (first, second) = (codes[2 * at], codes[2 * at + 1]);
    // SAFETY: as promised by the caller.
    unsafe { if Q::MINS { S::eights::<false>(first, second) } else { S::eights::<true>(first, second) } }
}
