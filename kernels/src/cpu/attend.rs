// performance-critical: no allocation per token, no lock, no log, no format
//! One tile of queries against the KV positions that it sees: scores, softmax, weighted sum.
//!
//! Invariant: for each query the arithmetic is fixed by absolute positions alone. Positions are taken in tiles of
//! [`TILE`] and partitions of [`PARTITION`], both counted from position 0; a partition starts a fresh online softmax
//! (Milakov and Gimelshein, arXiv 1805.02867) and partitions are merged in ascending order. Which queries share a tile,
//! or which thread takes a partition, changes no bit.

use std::marker::PhantomData;

use super::dot::{Rows, Target, product};
use super::format::{F32, Format};
use super::simd::{Kernel, LANES, Simd, exp};
use crate::attention::AttentionParams;

/// KV positions whose scores are held at once: K and V of a head then fit the first-level cache together.
pub(crate) const TILE: usize = 64;
/// KV positions after which the softmax starts afresh, so that threads can share one long context.
pub(crate) const PARTITION: usize = 512;

/// Sizes of one attention call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub block_size: usize,
}

impl Sizes {
    /// Query heads that share a KV head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Softmax state of the queries of a tile: `[queries]`, `[queries]`, `[queries, head_dim]`.
pub(crate) struct State<'a> {
    pub max: &'a mut [f32],
    pub total: &'a mut [f32],
    pub mix: &'a mut [f32],
}

impl<'a> State<'a> {
    /// f32 values that the state of `queries` queries takes.
    pub(crate) fn len(queries: usize, head_dim: usize) -> usize {
        queries * (head_dim + 2)
    }

    pub(crate) fn of(values: &'a mut [f32], queries: usize, head_dim: usize) -> Self {
        let (max, values) = values.split_at_mut(queries);
        let (total, values) = values.split_at_mut(queries);
        State { max, total, mix: &mut values[..queries * head_dim] }
    }

    fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
        self.mix.fill(0.0);
    }
}

/// Adds one partition (second) to what is before it (first).
pub(crate) struct Merge<'a, 'b>(pub &'a mut State<'b>, pub &'a State<'b>);

impl Kernel for Merge<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (all, next) = (self.0, self.1);
        let head_dim = all.mix.len() / all.max.len();
        for query in 0..all.max.len() {
            // Nothing seen on one side: the window of this query does not reach into it.
            if next.total[query] == 0.0 {
                continue;
            }
            let max = if all.max[query] > next.max[query] { all.max[query] } else { next.max[query] };
            // SAFETY: the caller promises the instructions of `S`.
            let before = unsafe { exp_one::<S>(all.max[query] - max) };
            // SAFETY: as above.
            let now = unsafe { exp_one::<S>(next.max[query] - max) };
            let fresh = all.total[query] == 0.0;
            let at = query * head_dim..(query + 1) * head_dim;
            for (all, next) in all.mix[at.clone()].iter_mut().zip(&next.mix[at]) {
                *all = if fresh { *next } else { *all * before + *next * now };
            }
            let total = all.total[query] * before + next.total[query] * now;
            all.total[query] = if fresh { next.total[query] } else { total };
            all.max[query] = max;
        }
    }
}

#[inline(always)]
unsafe fn exp_one<S: Simd>(x: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    // SAFETY: the caller promises the instructions; `lanes` holds 16 values.
    unsafe { S::store(lanes.as_mut_ptr(), exp::<S>(S::splat(x))) };
    lanes[0]
}

/// `tanh(x)` as `1 - 2 / (e^2x + 1)`.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: pure arithmetic; the caller promises the instructions.
    unsafe {
        let one = S::splat(1.0);
        let grown = exp::<S>(S::add(x, x));
        S::sub(one, S::div(S::splat(2.0), S::add(grown, one)))
    }
}

/// Queries for which a tile's K and V of a narrow type are widened once instead of again and again.
const WIDEN_QUERIES: usize = 8;

/// One partition of the context for a tile of queries that share a KV head. `F` is the cache's element type.
pub(crate) struct Partition<'a, 'b, F> {
    pub sizes: Sizes,
    pub params: &'a AttentionParams<'a>,
    /// All of the layer's cache, `[blocks, kv_heads, block_size, head_dim]`.
    pub k: &'a [u8],
    pub v: &'a [u8],
    /// Block ids of the row.
    pub table: &'a [u32],
    pub kv_head: usize,
    /// The tile's queries, `[tokens * group, head_dim]`.
    pub q: &'a [f32],
    /// Position of the tile's first token.
    pub position: usize,
    pub tokens: usize,
    /// The partition's first position.
    pub start: usize,
    /// Room for scores, `[tokens * group, TILE]`.
    pub scores: &'a mut [f32],
    /// Room for a tile's K and V, `[2, TILE, head_dim]`.
    pub wide: &'a mut [f32],
    pub state: &'a mut State<'b>,
    pub format: PhantomData<F>,
}

impl<F: Format> Partition<'_, '_, F> {
    /// Positions that token `token` of the tile sees, cut to `start..end`.
    #[inline(always)]
    fn seen(&self, token: usize, start: usize, end: usize) -> (usize, usize) {
        let position = self.position + token;
        let first = self.params.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
        (first.max(start), (position + 1).min(end))
    }

    /// Positions of a tile that one of the queries sees.
    #[inline(always)]
    fn seen_of(&self, tile: usize) -> (usize, usize) {
        (self.seen(0, tile, tile + TILE).0, self.seen(self.tokens - 1, tile, tile + TILE).1)
    }

    /// Whether so few queries share K and V that they wait for memory.
    #[inline(always)]
    fn is_narrow(&self) -> bool {
        self.tokens * self.sizes.group() < WIDEN_QUERIES
    }

    /// First byte of a position's K or V in the cache.
    #[inline(always)]
    fn cache_at(&self, position: usize) -> usize {
        let Sizes { kv_heads, head_dim, block_size, .. } = self.sizes;
        let block = self.table[position / block_size] as usize;
        ((block * kv_heads + self.kv_head) * block_size + position % block_size) * head_dim * F::ELEMENT_BYTES
    }
}

impl<F: Format> Kernel for Partition<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        self.state.clear();
        let mut ahead = self.seen_of(self.start);
        if self.is_narrow() {
            // SAFETY: as promised by the caller.
            unsafe { self.ask::<S>(self.k, ahead) };
        }
        for tile in (self.start..self.start + PARTITION).step_by(TILE) {
            let seen = ahead;
            ahead = if tile + TILE < self.start + PARTITION { self.seen_of(tile + TILE) } else { (0, 0) };
            if seen.0 < seen.1 {
                // SAFETY: as promised by the caller; positions up to the last token's are in the table.
                unsafe { self.tile::<S>(tile, seen, ahead) };
            }
        }
    }
}

impl<F: Format> Partition<'_, '_, F> {
    /// Positions `first..end` of the tile that starts at `tile`: no query sees others of it. Those of the next one are `ahead`.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&mut self, tile: usize, (first, end): (usize, usize), ahead: (usize, usize)) {
        let Sizes { head_dim, block_size, .. } = self.sizes;
        let group = self.sizes.group();
        let queries = self.tokens * group;
        let widen = F::ELEMENT_BYTES < 4 && queries >= WIDEN_QUERIES;
        let row_bytes = head_dim * F::ELEMENT_BYTES;
        let mut values = [std::ptr::null::<u8>(); TILE];
        let q = Rows { start: self.q.as_ptr(), stride: head_dim };
        let narrow = self.is_narrow();
        let mut position = first;
        while position < end {
            let block_end = ((position / block_size + 1) * block_size).min(end);
            if narrow {
                // SAFETY: as promised by the caller.
                unsafe { self.ask::<S>(self.v, (position, block_end)) };
            }
            let (at, count) = (self.cache_at(position), block_end - position);
            let (k, v) = (&self.k[at..at + count * row_bytes], &self.v[at..at + count * row_bytes]);
            let place = position - tile;
            // SAFETY: the slices above hold `count` rows; the scores hold TILE values a query, the room TILE rows.
            unsafe {
                if widen {
                    let (wide_k, wide_v) = self.wide.split_at_mut(TILE * head_dim);
                    widen_rows::<S, F>(k, wide_k.as_mut_ptr().add(place * head_dim), count * head_dim);
                    widen_rows::<S, F>(v, wide_v.as_mut_ptr().add(place * head_dim), count * head_dim);
                    for index in 0..count {
                        values[place + index] = wide_v.as_ptr().add((place + index) * head_dim).cast();
                    }
                } else {
                    for index in 0..count {
                        values[place + index] = v.as_ptr().add(index * row_bytes);
                    }
                    let k = Rows { start: k.as_ptr(), stride: row_bytes };
                    let target = Target { y: self.scores.as_mut_ptr().add(place), stride: TILE };
                    product::<S, F>(q, k, (queries, count), head_dim, target);
                }
            }
            position = block_end;
        }
        if widen {
            // SAFETY: the rows from `first` to `end` were just written.
            unsafe {
                let k = self.wide.as_ptr().add((first - tile) * head_dim);
                let k = Rows { start: k.cast::<u8>(), stride: head_dim * 4 };
                let target = Target { y: self.scores.as_mut_ptr().add(first - tile), stride: TILE };
                product::<S, F32>(q, k, (queries, end - first), head_dim, target);
            }
        }
        for query in 0..queries {
            let (from, to) = self.seen(query / group, tile, tile + TILE);
            if from < to {
                // SAFETY: as promised by the caller.
                unsafe { self.softmax::<S>(query, (from - tile, to - tile)) };
            }
        }
        if narrow {
            // SAFETY: as promised by the caller.
            unsafe { self.ask::<S>(self.k, ahead) };
        }
        // SAFETY: `values` points at the V of every position that one of the queries sees, in the type that is named.
        unsafe {
            if widen {
                self.mix_all::<S, F32>(tile, &values);
            } else {
                self.mix_all::<S, F>(tile, &values);
            }
        }
    }

    /// Asks for K or V of positions `first..end`. What a sequence has there lies in pieces of a block and a head, too short
    /// for the machine's own prefetching.
    #[inline(always)]
    unsafe fn ask<S: Simd>(&self, cache: &[u8], (first, end): (usize, usize)) {
        let Sizes { head_dim, block_size, .. } = self.sizes;
        let mut position = first;
        while position < end {
            let next = ((position / block_size + 1) * block_size).min(end);
            let from = cache.as_ptr().wrapping_add(self.cache_at(position));
            for line in (0..(next - position) * head_dim * F::ELEMENT_BYTES).step_by(64) {
                // SAFETY: the caller promises the instructions; any address may be asked for.
                unsafe { S::prefetch(from.wrapping_add(line)) };
            }
            position = next;
        }
    }

    #[inline(always)]
    unsafe fn mix_all<S: Simd, E: Format>(&mut self, tile: usize, values: &[*const u8; TILE]) {
        let queries = self.tokens * self.sizes.group();
        for query in (0..queries).step_by(4) {
            // SAFETY: as promised by the caller.
            unsafe {
                match queries - query {
                    1 => self.mix::<S, E, 1>(query, tile, values),
                    2 => self.mix::<S, E, 2>(query, tile, values),
                    3 => self.mix::<S, E, 3>(query, tile, values),
                    _ => self.mix::<S, E, 4>(query, tile, values),
                }
            }
        }
    }

    /// Turns a query's scores into weights; brings its state to the new maximum.
    #[inline(always)]
    unsafe fn softmax<S: Simd>(&mut self, query: usize, (from, to): (usize, usize)) {
        let head_dim = self.sizes.head_dim;
        let scores = &mut self.scores[query * TILE..(query + 1) * TILE];
        // What the query does not see may be anything, also NaN from an earlier call.
        let sees_all = (from, to) == (0, TILE);
        if !sees_all {
            scores[..from].fill(f32::NEG_INFINITY);
            scores[to..].fill(f32::NEG_INFINITY);
        }
        // SAFETY: whole vectors within TILE scores and `head_dim` values of the mix.
        unsafe {
            let p = scores.as_mut_ptr();
            let mut max = S::splat(f32::NEG_INFINITY);
            for at in (0..TILE).step_by(LANES) {
                let mut score = S::mul(S::load(p.add(at)), S::splat(self.params.scale));
                if let Some(cap) = self.params.softcap {
                    score = S::mul(tanh::<S>(S::div(score, S::splat(cap))), S::splat(cap));
                }
                S::store(p.add(at), score);
            }
            if !sees_all && (self.params.scale <= 0.0 || self.params.softcap.is_some()) {
                // A cap, or a scale that is not positive, made the unseen ones finite or NaN.
                scores[..from].fill(f32::NEG_INFINITY);
                scores[to..].fill(f32::NEG_INFINITY);
            }
            for at in (0..TILE).step_by(LANES) {
                max = S::max(S::load(p.add(at)), max);
            }
            let before = self.state.max[query];
            let largest = S::max_lane(max);
            let now = if largest > before { largest } else { before };
            for at in (0..TILE).step_by(LANES) {
                S::store(p.add(at), exp::<S>(S::sub(S::load(p.add(at)), S::splat(now))));
            }
            if !sees_all {
                scores[..from].fill(0.0);
                scores[to..].fill(0.0);
            }
            let mut total = S::splat(0.0);
            for at in (0..TILE).step_by(LANES) {
                total = S::add(total, S::load(p.add(at)));
            }
            // Most tiles hold no new maximum.
            let shrink = if before == now { 1.0 } else { exp_one::<S>(before - now) };
            self.state.max[query] = now;
            self.state.total[query] = self.state.total[query] * shrink + S::sum(total);
            if shrink != 1.0 {
                for value in &mut self.state.mix[query * head_dim..(query + 1) * head_dim] {
                    *value *= shrink;
                }
            }
        }
    }

    /// Adds the weighted V of the tile to `Q` queries. Each query takes its positions in ascending order; where all
    /// of them see a position, they share the load of its V.
    #[inline(always)]
    unsafe fn mix<S: Simd, E: Format, const Q: usize>(
        &mut self,
        query: usize,
        tile: usize,
        values: &[*const u8; TILE],
    ) {
        let group = self.sizes.group();
        let seen: [(usize, usize); Q] = std::array::from_fn(|index| {
            let (from, to) = self.seen((query + index) / group, tile, tile + TILE);
            (from - tile, to.max(from) - tile)
        });
        let from = seen.iter().map(|seen| seen.0).max().unwrap_or(0);
        let to = seen.iter().map(|seen| seen.1).min().unwrap_or(0).max(from);
        // SAFETY: as promised by the caller.
        unsafe {
            for (index, seen) in seen.iter().enumerate() {
                self.add_values::<S, E, 1>(query + index, values, (seen.0, from.min(seen.1)));
            }
            self.add_values::<S, E, Q>(query, values, (from, to));
            for (index, seen) in seen.iter().enumerate() {
                self.add_values::<S, E, 1>(query + index, values, (to.max(seen.0), seen.1));
            }
        }
    }

    #[inline(always)]
    unsafe fn add_values<S: Simd, E: Format, const Q: usize>(
        &mut self,
        query: usize,
        values: &[*const u8; TILE],
        (from, to): (usize, usize),
    ) {
        if from >= to {
            return;
        }
        let head_dim = self.sizes.head_dim;
        // SAFETY: queries `query..query + Q` are the tile's; columns stay below `head_dim`.
        unsafe {
            let weights: [*const f32; Q] =
                std::array::from_fn(|index| self.scores.as_ptr().add((query + index) * TILE));
            let mix = self.state.mix.as_mut_ptr().add(query * head_dim);
            let mut column = 0;
            // Of 16 registers, eight hold sums.
            while Q == 2 && !S::MANY_REGISTERS && column + 2 * LANES <= head_dim {
                columns::<S, E, Q, 2>(weights, &values[from..to], from, (mix.add(column), head_dim), column);
                column += 2 * LANES;
            }
            while (Q == 1 || S::MANY_REGISTERS) && column + 4 * LANES <= head_dim {
                columns::<S, E, Q, 4>(weights, &values[from..to], from, (mix.add(column), head_dim), column);
                column += 4 * LANES;
            }
            while column + LANES <= head_dim {
                columns::<S, E, Q, 1>(weights, &values[from..to], from, (mix.add(column), head_dim), column);
                column += LANES;
            }
            if column < head_dim {
                let rest = head_dim - column;
                for (index, weights) in weights.iter().enumerate() {
                    let sum = mix.add(index * head_dim + column);
                    let mut acc = S::load_part(sum, rest);
                    for (offset, value) in values[from..to].iter().enumerate() {
                        let value = E::load_part::<S>(value.add(column * E::ELEMENT_BYTES), rest);
                        acc = S::fma(S::splat(*weights.add(from + offset)), value, acc);
                    }
                    S::store_part(sum, acc, rest);
                }
            }
        }
    }
}

/// `count` elements of a narrow type as f32.
///
/// # Safety
/// `from` must hold them, `to` be writable for them, and the machine must have the instructions of `S`.
#[inline(always)]
unsafe fn widen_rows<S: Simd, F: Format>(from: &[u8], to: *mut f32, count: usize) {
    // SAFETY: as promised by the caller.
    unsafe {
        for at in (0..count).step_by(LANES) {
            let values = F::load_part::<S>(from.as_ptr().add(at * F::ELEMENT_BYTES), count - at);
            S::store_part(to.add(at), values, count - at);
        }
    }
}

/// `N` vectors of columns for `Q` queries, all in registers. `values` are those of positions from `first` on.
///
/// # Safety
/// `mix` and each of `values` must have `N` vectors from their place or `column` on, each of `weights` the positions.
#[expect(clippy::needless_range_loop, reason = "the loops over registers are all written alike")]
#[inline(always)]
unsafe fn columns<S: Simd, E: Format, const Q: usize, const N: usize>(
    weights: [*const f32; Q],
    values: &[*const u8],
    first: usize,
    (mix, stride): (*mut f32, usize),
    column: usize,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        let zero = S::splat(0.0);
        let mut acc = [[zero; N]; Q];
        for query in 0..Q {
            for n in 0..N {
                acc[query][n] = S::load(mix.add(query * stride + n * LANES));
            }
        }
        for (offset, row) in values.iter().enumerate() {
            let mut value = [zero; N];
            for n in 0..N {
                value[n] = E::load::<S>(row.add((column + n * LANES) * E::ELEMENT_BYTES));
            }
            for query in 0..Q {
                let weight = S::splat(*weights[query].add(first + offset));
                for n in 0..N {
                    acc[query][n] = S::fma(weight, value[n], acc[query][n]);
                }
            }
        }
        for query in 0..Q {
            for n in 0..N {
                S::store(mix.add(query * stride + n * LANES), acc[query][n]);
            }
        }
    }
}
