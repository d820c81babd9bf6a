// performance-critical: no allocation per token, no lock, no log, no format
//! Low-rank additions to dense layers on the CPU (LoRA, arXiv 2106.09685): runs of tokens, each with matrices of its own,
//! in three fork-joins for all of them together.
//!
//! Invariant: the sums over the input and over the rank have one fixed order, so what a token gets has the same bits
//! whatever other tokens and adapters are in the call.

use std::cell::Cell;
use std::ops::Range;

use super::activate::activate_row;
use super::dot::{Rows, Target, product};
use super::format::F32;
use super::matmul::Prologue;
use super::pool;
use super::rows::{Out, by_rows, gate_row, layer_norm_row, norm_row};
use super::simd::{Isa, Kernel, LANES, Simd, dispatch};

/// Multiplications that are not worth waking another thread for.
const PIECE_WORK_MIN: usize = 32 * 1024;
/// Tokens of one piece: enough to use a matrix many times while it is in the cache.
const PIECE_TOKENS: usize = 32;
/// Columns of a tile whose sums stay in registers.
const TILE: usize = 4 * LANES;

/// `scale * (x A^T) B^T` on the columns `first..first + width` of a layer's output.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `[rank, input]`
    a: Vec<f32>,
    /// The transpose of B times the scale. `[rank, width]`
    b: Vec<f32>,
    rank: usize,
    input: usize,
    first: usize,
    width: usize,
}

impl LowRank {
    /// `a` is `[rank, input]`, `b` `[width, rank]`; `None` where the lengths do not fit or are zero.
    pub fn new(a: Vec<f32>, b: &[f32], rank: usize, scale: f32, first: usize) -> Option<Self> {
        if rank == 0 || a.is_empty() || b.is_empty() || !a.len().is_multiple_of(rank) || !b.len().is_multiple_of(rank) {
            return None;
        }
        let (input, width) = (a.len() / rank, b.len() / rank);
        let mut transposed = vec![0.0; b.len()];
        for (column, row) in b.chunks_exact(rank).enumerate() {
            for (place, value) in row.iter().enumerate() {
                transposed[place * width + column] = scale * value;
            }
        }
        Some(Self { a, b: transposed, rank, input, first, width })
    }

    pub fn input(&self) -> usize {
        self.input
    }

    /// The columns that it adds to.
    pub fn columns(&self) -> Range<usize> {
        self.first..self.first + self.width
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn bytes(&self) -> u64 {
        4 * (self.a.len() + self.b.len()) as u64
    }
}

/// Neighbouring tokens to which the same is added.
#[derive(Debug, Clone)]
pub struct Segment<'a> {
    pub tokens: Range<usize>,
    pub parts: &'a [LowRank],
}

/// Part of a segment's work: some of its tokens, and some columns of one of its parts.
#[derive(Clone, Copy)]
struct Piece {
    segment: usize,
    part: usize,
    /// Counted from the segment's first.
    tokens: (usize, usize),
    columns: (usize, usize),
}

/// Buffers that keep their memory from call to call.
#[derive(Default)]
struct Buffers {
    /// What stands before the product, of the segments' tokens only. `[tokens, input]`
    x: Vec<f32>,
    /// `x A^T` of all parts. Per segment `[tokens, sum of ranks]`
    small: Vec<f32>,
    /// Where each segment begins in `x` (in tokens) and in `small`, and its sum of ranks.
    places: Vec<(usize, usize, usize)>,
    pieces: Vec<Piece>,
}

thread_local! {
    static BUFFERS: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
}

/// Adds what the segments say to `y` `[tokens, out]`, for `x` as the dense layer takes it. The tensor-level function
/// checks sizes; segments are apart.
pub fn add(isa: Isa, (x, row_len): (&[f32], usize), prologue: Prologue, segments: &[Segment], y: (&mut [f32], usize)) {
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    let Some(input) = segments.iter().flat_map(|segment| segment.parts).map(|part| part.input).next() else { return };
    let mut buffers = BUFFERS.take().unwrap_or_default();
    let tokens = buffers.lay_out(segments);
    if buffers.x.len() < tokens * input {
        buffers.x.resize(tokens * input, 0.0);
    }
    let prepared = Out(buffers.x.as_mut_ptr());
    by_rows(tokens, input, |first, rows| {
        for at in first..first + rows {
            let segment = buffers.places.partition_point(|place| place.0 <= at) - 1;
            let token = segments[segment].tokens.start + at - buffers.places[segment].0;
            let row = &x[token * row_len..(token + 1) * row_len];
            // SAFETY: the instruction set was checked, and each row of the buffer is one token's.
            unsafe { dispatch(isa, Before { prologue, row, input, out: prepared.at(at * input) }) };
        }
    });
    let small = Out(buffers.small.as_mut_ptr());
    cut(&mut buffers.pieces, segments, |part| (part.rank, part.input));
    let (places, pieces) = (&buffers.places, &buffers.pieces);
    pool::run(pieces.len(), &|index| {
        let piece = pieces[index];
        let (x_first, small_first, ranks) = places[piece.segment];
        let parts = segments[piece.segment].parts;
        let before: usize = parts[..piece.part].iter().map(|part| part.rank).sum();
        // SAFETY: the instruction set was checked; pieces write disjoint places of their segment's part of the buffer.
        unsafe {
            let x = prepared.at((x_first + piece.tokens.0) * input);
            let y = small.at(small_first + piece.tokens.0 * ranks + before + piece.columns.0);
            dispatch(isa, Shrink { part: &parts[piece.part], piece, x, target: Target { y, stride: ranks } });
        }
    });
    let (y, out) = y;
    let target = Out(y.as_mut_ptr());
    cut(&mut buffers.pieces, segments, |part| (part.width, part.rank));
    let pieces = &buffers.pieces;
    pool::run(pieces.len(), &|index| {
        let piece = pieces[index];
        let (_, small_first, ranks) = places[piece.segment];
        let segment = &segments[piece.segment];
        let part = &segment.parts[piece.part];
        let before: usize = segment.parts[..piece.part].iter().map(|part| part.rank).sum();
        // SAFETY: as above; parts of a segment have columns of their own, which the tensor-level function checks.
        unsafe {
            let small = small.at(small_first + piece.tokens.0 * ranks + before).cast_const();
            let y = target.at((segment.tokens.start + piece.tokens.0) * out + part.first);
            dispatch(isa, Expand { part, piece, small: (small, ranks), target: Target { y, stride: out } });
        }
    });
    BUFFERS.set(Some(buffers));
}

impl Buffers {
    /// Finds each segment's place. Returns how many tokens they have together.
    fn lay_out(&mut self, segments: &[Segment]) -> usize {
        self.places.clear();
        let (mut tokens, mut small) = (0, 0);
        for segment in segments {
            let ranks: usize = segment.parts.iter().map(|part| part.rank).sum();
            self.places.push((tokens, small, ranks));
            tokens += segment.tokens.len();
            small += segment.tokens.len() * ranks;
        }
        if self.small.len() < small {
            self.small.resize(small, 0.0);
        }
        tokens
    }
}

/// Cuts the work of all segments into pieces; `sizes` gives a part's columns and the length of the sum for one.
fn cut(pieces: &mut Vec<Piece>, segments: &[Segment], sizes: impl Fn(&LowRank) -> (usize, usize)) {
    pieces.clear();
    for (segment, Segment { tokens, parts }) in segments.iter().enumerate() {
        for first in (0..tokens.len()).step_by(PIECE_TOKENS) {
            let end = (first + PIECE_TOKENS).min(tokens.len());
            for (part, matrices) in parts.iter().enumerate() {
                let (columns, length) = sizes(matrices);
                let step = PIECE_WORK_MIN.div_ceil((end - first) * length).next_multiple_of(TILE);
                let cuts = (0..columns).step_by(step).map(|column| Piece {
                    segment,
                    part,
                    tokens: (first, end),
                    columns: (column, (column + step).min(columns)),
                });
                pieces.extend(cuts);
            }
        }
    }
}

/// What stands before the product, for one token.
struct Before<'a> {
    prologue: Prologue<'a>,
    row: &'a [f32],
    input: usize,
    out: *mut f32,
}

impl Kernel for Before<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { prologue, row, input, out } = self;
        // SAFETY: `out` is writable for `input` values, and the row has what the prologue takes for as many.
        unsafe {
            match prologue {
                Prologue::None => std::ptr::copy_nonoverlapping(row.as_ptr(), out, input),
                Prologue::RmsNorm { weight, eps } => norm_row::<S>(row, weight, eps, out),
                Prologue::LayerNorm { weight, bias, eps } => layer_norm_row::<S>(row, (weight, bias), eps, out),
                Prologue::Active(gate) => gate_row::<S>(gate, row, None, out),
                Prologue::Gated(gate) => gate_row::<S>(gate, &row[..input], Some(&row[input..]), out),
                Prologue::Activation(activation) => activate_row::<S>(activation, row, out),
            }
        }
    }
}

/// `x A^T` of a piece: its columns are rows of A.
struct Shrink<'a> {
    part: &'a LowRank,
    piece: Piece,
    x: *const f32,
    target: Target,
}

impl Kernel for Shrink<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { part, piece, x, target } = self;
        let counts = (piece.tokens.1 - piece.tokens.0, piece.columns.1 - piece.columns.0);
        let row_bytes = part.input * size_of::<f32>();
        // SAFETY: the piece lies in the buffer, its columns are rows of A, and the target is writable for both.
        unsafe {
            let a = Rows { start: part.a.as_ptr().cast::<u8>().add(piece.columns.0 * row_bytes), stride: row_bytes };
            product::<S, F32>(Rows { start: x, stride: part.input }, a, counts, part.input, target);
        }
    }
}

/// `y += small B^T` of a piece, with the part's own columns.
struct Expand<'a> {
    part: &'a LowRank,
    piece: Piece,
    /// Where the tokens' first value of this part is, and how far the next token's is behind it.
    small: (*const f32, usize),
    target: Target,
}

impl Kernel for Expand<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { part, piece, small: (small, stride), target } = self;
        let (start, end) = piece.columns;
        // SAFETY: the piece's tokens and columns lie in `small`, in B and in the target; parts of vectors stop at `end`.
        unsafe {
            for column in (start..end).step_by(TILE) {
                let count = TILE.min(end - column);
                let b = part.b.as_ptr().add(column);
                for token in 0..piece.tokens.1 - piece.tokens.0 {
                    let small = small.add(token * stride);
                    let y = target.y.add(token * target.stride + column);
                    if count == TILE {
                        let mut sums = [S::load(y), S::load(y.add(16)), S::load(y.add(32)), S::load(y.add(48))];
                        for place in 0..part.rank {
                            let (factor, b) = (S::splat(*small.add(place)), b.add(place * part.width));
                            for (vector, sum) in sums.iter_mut().enumerate() {
                                *sum = S::fma(factor, S::load(b.add(vector * LANES)), *sum);
                            }
                        }
                        for (vector, sum) in sums.into_iter().enumerate() {
                            S::store(y.add(vector * LANES), sum);
                        }
                        continue;
                    }
                    for at in (0..count).step_by(LANES) {
                        let mut sum = S::load_part(y.add(at), count - at);
                        for place in 0..part.rank {
                            let b = S::load_part(b.add(place * part.width + at), count - at);
                            sum = S::fma(S::splat(*small.add(place)), b, sum);
                        }
                        S::store_part(y.add(at), sum, count - at);
                    }
                }
            }
        }
    }
}
