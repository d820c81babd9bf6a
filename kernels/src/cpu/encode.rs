// performance-critical: no allocation per token, no lock, no log, no format
//! Attention of encoders on the CPU: every token of a sequence sees all of it, or its neighbours on both sides, and
//! nothing is kept afterwards.
//!
//! A piece of work is a tile of a sequence's queries, with all heads. Tiles are counted from the start of their
//! sequence and each query takes the positions in ascending order, so a sequence's result has the same bits in
//! whatever batch it stands.

use std::cell::Cell;
use std::ops::Range;

use super::dot::{Rows, Target, product};
use super::format::F32;
use super::pool;
use super::rows::Out;
use super::simd::{Isa, Kernel, LANES, Simd, dispatch, exp};

/// Queries of one piece: enough to use a sequence's K and V many times while they are in the cache.
const QUERIES: usize = 32;

/// Sizes of one call.
#[derive(Debug, Clone, Copy)]
pub struct Encoding {
    pub heads: usize,
    pub head_dim: usize,
    /// Factor on every score.
    pub scale: f32,
    /// How many positions a token sees on either side; `usize::MAX` for all.
    pub reach: usize,
}

thread_local! {
    static SCORES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// A tile of queries: tokens `first..first + count` of the sequence that is tokens `start..end`.
#[derive(Clone, Copy)]
struct Piece {
    start: usize,
    end: usize,
    first: usize,
    count: usize,
}

impl Piece {
    /// The positions within the sequence that any of its queries sees: from, and exclusive end.
    fn keys(&self, reach: usize) -> (usize, usize) {
        let own = self.first - self.start;
        (
            own.saturating_sub(reach),
            own.saturating_add(self.count - 1).saturating_add(reach).saturating_add(1).min(self.end - self.start),
        )
    }
}

/// `softmax(q k^T * scale) v` within each sequence: qkv `[tokens, 3 * heads * head_dim]`, q before k before v, to
/// `[tokens, heads * head_dim]`. `row_ends` ascends to the number of tokens; the tensor-level function checks.
pub fn attention(isa: Isa, qkv: &[f32], row_ends: &[u32], sizes: Encoding) -> Vec<f32> {
    let width = sizes.heads * sizes.head_dim;
    let tokens = qkv.len() / (3 * width);
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    assert!(qkv.len() == tokens * 3 * width, "sizes of an encoder's attention");
    assert!(row_ends.last().map_or(0, |&end| end as usize) == tokens && row_ends.is_sorted(), "rows of a batch");
    let mut out: Vec<f32> = Vec::with_capacity(tokens * width);
    let target = Out(out.as_mut_ptr());
    let mut pieces = Vec::with_capacity(row_ends.len() + tokens / QUERIES);
    let mut start = 0;
    for &end in row_ends {
        let end = end as usize;
        let tile = |first| Piece { start, end, first, count: QUERIES.min(end - first) };
        pieces.extend((start..end).step_by(QUERIES).map(tile));
        start = end;
    }
    pool::run(pieces.len(), &|index| {
        let piece = pieces[index];
        let (from, to) = piece.keys(sizes.reach);
        let stride = (to - from).next_multiple_of(LANES);
        let mut scores = SCORES.take();
        scores.resize(scores.len().max(QUERIES * stride), 0.0);
        for head in 0..sizes.heads {
            // SAFETY: the instruction set was checked; a piece's tokens lie in qkv and in the output's capacity.
            unsafe {
                let out = target.at(0);
                dispatch(isa, Tile { qkv, sizes, piece, head, scores: &mut scores, stride, out });
            }
        }
        SCORES.set(scores);
    });
    // SAFETY: every token is in a piece, and pieces write all heads of their tokens.
    unsafe { out.set_len(tokens * width) };
    out
}

/// One head of a piece.
struct Tile<'a> {
    qkv: &'a [f32],
    sizes: Encoding,
    piece: Piece,
    head: usize,
    /// `[QUERIES, stride]`
    scores: &'a mut [f32],
    stride: usize,
    out: *mut f32,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Encoding { heads, head_dim, scale, reach } = self.sizes;
        let Piece { start, first, count, .. } = self.piece;
        let (from, to) = self.piece.keys(reach);
        let (width, span) = (heads * head_dim, to - from);
        let (row, column) = (3 * width, self.head * head_dim);
        // SAFETY: as promised by the caller: tokens of the sequence have rows of `row` values, of which each head's q, k
        // and v are `head_dim`; the scores hold `stride >= span` values for each query, `stride` in whole vectors.
        unsafe {
            let q = Rows { start: self.qkv.as_ptr().add(first * row + column), stride: row };
            let k = self.qkv.as_ptr().add((start + from) * row + width + column).cast::<u8>();
            let k = Rows { start: k, stride: row * size_of::<f32>() };
            let scores = self.scores.as_mut_ptr();
            product::<S, F32>(q, k, (count, span), head_dim, Target { y: scores, stride: self.stride });
            for query in 0..count {
                let own = first - start + query;
                let seen = own.saturating_sub(reach).max(from) - from
                    ..own.saturating_add(reach).saturating_add(1).min(to) - from;
                soften::<S>(&mut self.scores[query * self.stride..(query + 1) * self.stride], seen, scale);
            }
            let mix = Mix {
                weights: self.scores.as_ptr(),
                stride: self.stride,
                values: self.qkv.as_ptr().add((start + from) * row + 2 * width + column),
                row,
                span,
                out: self.out.add(first * width + column),
                width,
            };
            let mut query = 0;
            while query + 4 <= count {
                mix.queries::<S, 4>(query, head_dim);
                query += 4;
            }
            while query < count {
                mix.queries::<S, 1>(query, head_dim);
                query += 1;
            }
        }
    }
}

/// Scores to weights that sum to one. What is not `seen` becomes zero.
///
/// # Safety
/// `scores` must be whole vectors, and the machine must have the instructions of `S`.
#[inline(always)]
unsafe fn soften<S: Simd>(scores: &mut [f32], seen: Range<usize>, scale: f32) {
    let stride = scores.len();
    // SAFETY: as promised by the caller; all loads and stores are whole vectors within the scores.
    unsafe {
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..].fill(f32::NEG_INFINITY);
        let p = scores.as_mut_ptr();
        let mut largest = S::splat(f32::NEG_INFINITY);
        for at in (0..stride).step_by(LANES) {
            largest = S::max(S::load(p.add(at)), largest);
        }
        let (largest, factor) = (S::splat(S::max_lane(largest)), S::splat(scale));
        for at in (0..stride).step_by(LANES) {
            S::store(p.add(at), exp::<S>(S::mul(S::sub(S::load(p.add(at)), largest), factor)));
        }
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        let mut total = S::splat(0.0);
        for at in (0..stride).step_by(LANES) {
            total = S::add(total, S::load(p.add(at)));
        }
        let share = S::splat(1.0 / S::sum(total));
        for at in (0..stride).step_by(LANES) {
            S::store(p.add(at), S::mul(S::load(p.add(at)), share));
        }
    }
}

/// Weighted sums of V for the queries of a tile.
struct Mix {
    weights: *const f32,
    stride: usize,
    values: *const f32,
    /// From one position's V to the next one's.
    row: usize,
    span: usize,
    out: *mut f32,
    /// From one query's output to the next one's.
    width: usize,
}

impl Mix {
    /// # Safety
    /// Queries `query..query + Q` must have weights and room in the output for `head_dim` values, every position of the
    /// span as many values of V, and the machine must have the instructions of `S`.
    #[inline(always)]
    unsafe fn queries<S: Simd, const Q: usize>(&self, query: usize, head_dim: usize) {
        // SAFETY: as promised by the caller; columns stay below `head_dim`.
        unsafe {
            let mut column = 0;
            while column + 2 * LANES <= head_dim {
                self.columns::<S, Q, 2>(query, column);
                column += 2 * LANES;
            }
            if column + LANES <= head_dim {
                self.columns::<S, Q, 1>(query, column);
                column += LANES;
            }
            let rest = head_dim - column;
            if rest == 0 {
                return;
            }
            for query in query..query + Q {
                let mut acc = S::splat(0.0);
                for position in 0..self.span {
                    let value = S::load_part(self.values.add(position * self.row + column), rest);
                    acc = S::fma(S::splat(*self.weights.add(query * self.stride + position)), value, acc);
                }
                S::store_part(self.out.add(query * self.width + column), acc, rest);
            }
        }
    }

    /// `N` vectors of columns for `Q` queries, all in registers.
    #[expect(clippy::needless_range_loop, reason = "the loops over registers are all written alike")]
    #[inline(always)]
    unsafe fn columns<S: Simd, const Q: usize, const N: usize>(&self, query: usize, column: usize) {
        // SAFETY: as promised by the caller of `queries`.
        unsafe {
            let zero = S::splat(0.0);
            let mut acc = [[zero; N]; Q];
            for position in 0..self.span {
                let values = self.values.add(position * self.row + column);
                let mut value = [zero; N];
                for n in 0..N {
                    value[n] = S::load(values.add(n * LANES));
                }
                for q in 0..Q {
                    let weight = S::splat(*self.weights.add((query + q) * self.stride + position));
                    for n in 0..N {
                        acc[q][n] = S::fma(weight, value[n], acc[q][n]);
                    }
                }
            }
            for q in 0..Q {
                for n in 0..N {
                    S::store(self.out.add((query + q) * self.width + column + n * LANES), acc[q][n]);
                }
            }
        }
    }
}
