// performance-critical: no allocation per token, no lock, no log, no format
//! Dense layers on the CPU: output rows are split over the threads, each chunk is done for all tokens.
//!
//! With few tokens, weights are dequantised in registers; with many, into scratch that stays in the cache. Both take
//! the same values through the same dot product, so they agree bit for bit.

use std::cell::Cell;
use std::marker::PhantomData;

use super::dot::{Rows, Target, product};
use super::format::{Bf16, F16, F32, Format, Iq4Nl, Q4_0, Q4_1, Q8_0};
use super::simd::{Isa, Kernel, LANES, Simd, dispatch};
use super::{dequant, pool};
use crate::weight::{GgmlType, Weight};

/// Up to this many tokens, one tile holds them all and a weight's values are used straight from the registers.
const FUSED_TOKENS: usize = 4;
/// Rows whose dequantised values are in scratch together.
const SCRATCH_ROWS: usize = 16;
/// Multiplications that are not worth waking another thread for.
const CHUNK_WORK_MIN: usize = 32 * 1024;
/// Chunks a thread, so that one that is held up leaves work to the others.
const CHUNKS_PER_THREAD: usize = 6;

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `y = x W^T + bias`: x `[tokens, input]` -> `[tokens, out]`. The lengths must fit; the tensor-level function checks.
pub fn matmul(isa: Isa, x: &[f32], w: &Weight, bias: Option<&[f32]>) -> Vec<f32> {
    let (input, out) = (w.input(), w.out());
    let tokens = x.len() / input;
    assert!(x.len() == tokens * input && bias.is_none_or(|bias| bias.len() == out), "sizes of a dense layer");
    assert!(Isa::available().contains(&isa), "{isa:?} on a machine without it");
    let mut y: Vec<f32> = Vec::with_capacity(tokens * out);
    if tokens > 0 {
        let unit = if tokens <= FUSED_TOKENS { 4 } else { SCRATCH_ROWS };
        let rows_min = CHUNK_WORK_MIN.div_ceil(tokens * input);
        let rows = out.div_ceil(pool::threads() * CHUNKS_PER_THREAD).max(rows_min).next_multiple_of(unit);
        let target = SharedTarget(Target { y: y.as_mut_ptr(), stride: out });
        pool::run(out.div_ceil(rows), &|chunk| {
            let first = chunk * rows;
            let chunk = Chunk { x, tokens, w, bias, first, rows: rows.min(out - first), target: target.get() };
            // SAFETY: the instruction set is available, and chunks write disjoint columns of `y`, whose capacity
            // holds tokens * out values.
            unsafe { dispatch(isa, chunk) }
        });
    }
    // SAFETY: the chunks have written every row of every token.
    unsafe { y.set_len(tokens * out) };
    y
}

struct SharedTarget(Target);
// SAFETY: threads write through it to disjoint places only.
unsafe impl Sync for SharedTarget {}

impl SharedTarget {
    fn get(&self) -> Target {
        self.0
    }
}

/// Some rows of the weight, for all tokens.
struct Chunk<'a> {
    x: &'a [f32],
    tokens: usize,
    w: &'a Weight,
    bias: Option<&'a [f32]>,
    first: usize,
    rows: usize,
    target: Target,
}

impl Kernel for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the weight's own invariant gives the bytes of every row; the target is the caller's promise.
        unsafe {
            match self.w.ty() {
                GgmlType::F32 => self.direct::<S, F32>(),
                GgmlType::F16 => self.format::<S, F16>(),
                GgmlType::Bf16 => self.format::<S, Bf16>(),
                GgmlType::Q4_0 => self.format::<S, Q4_0>(),
                GgmlType::Q4_1 => self.format::<S, Q4_1>(),
                GgmlType::Q8_0 => self.format::<S, Q8_0>(),
                GgmlType::Iq4Nl => self.format::<S, Iq4Nl>(),
                ty => self.scratch::<S, Scalar>(ty),
            }
            if let Some(bias) = self.bias {
                for token in 0..self.tokens {
                    let y = self.target_at(0).y.add(token * self.target.stride);
                    for (row, bias) in bias[self.first..self.first + self.rows].iter().enumerate() {
                        *y.add(row) += bias;
                    }
                }
            }
        }
    }
}

impl Chunk<'_> {
    fn x_rows(&self) -> Rows<*const f32> {
        Rows { start: self.x.as_ptr(), stride: self.w.input() }
    }

    unsafe fn target_at(&self, row: usize) -> Target {
        // SAFETY: `row` is one of the chunk's.
        Target { y: unsafe { self.target.y.add(self.first + row) }, stride: self.target.stride }
    }

    #[inline(always)]
    unsafe fn format<S: Simd, F: Format>(&self) {
        // SAFETY: as in `run`.
        unsafe {
            if self.tokens <= FUSED_TOKENS {
                self.direct::<S, F>();
            } else {
                self.scratch::<S, Unpacked<F>>(self.w.ty());
            }
        }
    }

    /// From the file's bytes to the sums.
    #[inline(always)]
    unsafe fn direct<S: Simd, F: Format>(&self) {
        let stride = self.w.row_bytes();
        // SAFETY: as in `run`.
        unsafe {
            let w = Rows { start: self.w.bytes().as_ptr().add(self.first * stride), stride };
            product::<S, F>(self.x_rows(), w, (self.tokens, self.rows), self.w.input(), self.target_at(0));
        }
    }

    /// Through scratch that `D` dequantises into.
    #[inline(always)]
    unsafe fn scratch<S: Simd, D: FillRow>(&self, ty: GgmlType) {
        let (input, stride) = (self.w.input(), self.w.row_bytes());
        let bytes = self.w.bytes();
        // Taken out, not borrowed in a closure, which would not be compiled with the instructions of `S`.
        let mut scratch = SCRATCH.take();
        scratch.resize(scratch.len().max(SCRATCH_ROWS * input), 0.0);
        for from in (0..self.rows).step_by(SCRATCH_ROWS) {
            let rows = SCRATCH_ROWS.min(self.rows - from);
            for (row, values) in scratch.chunks_exact_mut(input).take(rows).enumerate() {
                let at = (self.first + from + row) * stride;
                // SAFETY: the bytes are those of a whole row.
                unsafe { D::fill::<S>(ty, &bytes[at..at + stride], values) };
            }
            // SAFETY: scratch holds `rows` rows of `input` values; the rest as in `run`.
            unsafe {
                let w = Rows { start: scratch.as_ptr().cast::<u8>(), stride: input * 4 };
                product::<S, F32>(self.x_rows(), w, (self.tokens, rows), input, self.target_at(from));
            }
        }
        SCRATCH.set(scratch);
    }
}

/// A way to dequantise one row.
trait FillRow {
    /// # Safety
    /// `bytes` must hold exactly the elements of `values`, and the machine must have the instructions of `S`.
    unsafe fn fill<S: Simd>(ty: GgmlType, bytes: &[u8], values: &mut [f32]);
}

/// Through plain loops, for the formats without vector code.
struct Scalar;

impl FillRow for Scalar {
    #[inline(always)]
    unsafe fn fill<S: Simd>(ty: GgmlType, bytes: &[u8], values: &mut [f32]) {
        dequant::row(ty, bytes, values);
    }
}

/// Through the same function that the direct way uses.
struct Unpacked<F>(PhantomData<F>);

impl<F: Format> FillRow for Unpacked<F> {
    #[inline(always)]
    unsafe fn fill<S: Simd>(_: GgmlType, bytes: &[u8], values: &mut [f32]) {
        // SAFETY: as promised by the caller.
        unsafe { unpack_row::<S, F>(bytes, values) };
    }
}

#[inline(always)]
unsafe fn unpack_row<S: Simd, F: Format>(bytes: &[u8], values: &mut [f32]) {
    let steps = values.len() / 32;
    // SAFETY: a row of n elements has the bytes of n elements; both pointers stay inside.
    unsafe {
        for step in 0..steps {
            let [first, second] = F::unpack::<S>(bytes.as_ptr().add(step * F::BYTES));
            S::store(values.as_mut_ptr().add(step * 32), first);
            S::store(values.as_mut_ptr().add(step * 32 + LANES), second);
        }
        let rest = values.len() % 32;
        if rest != 0 {
            let [first, second] = F::unpack_part::<S>(bytes.as_ptr().add(steps * F::BYTES), rest);
            let to = values.as_mut_ptr().add(steps * 32);
            S::store_part(to, first, rest.min(LANES));
            S::store_part(to.add(LANES.min(rest)), second, rest.saturating_sub(LANES));
        }
    }
}
