// performance-critical: no allocation per token, no lock, no log, no format
//! Operations that take one row, head or element at a time: norms, rotary embedding, gated activations.
//!
//! Invariant: a row's reduction has one fixed order, and rows are never split over threads.

use super::activate::gelu;
use super::attend::tanh;
use super::pool;
use super::simd::{Isa, Kernel, LANES, Simd, dispatch, exp};
use crate::rope::RopeStyle;

/// Elements that are worth a thread of their own.
const ELEMENTS_PER_CHUNK: usize = 16 * 1024;

#[derive(Clone, Copy)]
pub(super) struct Out(pub(super) *mut f32);
// SAFETY: chunks write to disjoint rows.
unsafe impl Sync for Out {}

impl Out {
    /// # Safety
    /// The offset must lie in the allocation.
    pub(super) unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: as promised by the caller.
        unsafe { self.0.add(offset) }
    }
}

/// Calls `work(first row, rows)` on all threads for `rows` rows of `width` elements.
pub(super) fn by_rows(rows: usize, width: usize, work: impl Fn(usize, usize) + Sync) {
    let chunk = (ELEMENTS_PER_CHUNK / width.max(1)).max(1);
    pool::run(rows.div_ceil(chunk), &|index| work(index * chunk, chunk.min(rows - index * chunk)));
}

/// `sum = x + residual` where there is one, and `normed = sum / sqrt(mean(sum^2) + eps) * weight`.
/// Returns (normed, sum); sum is empty without a residual.
pub fn rms_norm(isa: Isa, x: &[f32], residual: Option<&[f32]>, weight: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let dim = weight.len();
    let summed = residual.map_or(0, <[f32]>::len);
    assert!(x.len().is_multiple_of(dim.max(1)) && (residual.is_none() || summed == x.len()), "sizes of a norm");
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    let (mut normed, mut sum) = (Vec::with_capacity(x.len()), Vec::with_capacity(summed));
    let (normed_out, sum_out) = (Out(normed.as_mut_ptr()), Out(sum.as_mut_ptr()));
    by_rows(x.len() / dim.max(1), dim, |first, rows| {
        for at in (first..first + rows).map(|row| row * dim) {
            // SAFETY: the instruction set was checked; each row is inside the inputs and the outputs' capacity.
            unsafe {
                let row = &x[at..at + dim];
                let add = residual.map(|residual| (&residual[at..at + dim], sum_out.at(at)));
                dispatch(isa, NormRow { row, add, weight, eps, out: normed_out.at(at) });
            }
        }
    });
    // SAFETY: every row has been written.
    unsafe {
        normed.set_len(x.len());
        sum.set_len(summed);
    }
    (normed, sum)
}

struct NormRow<'a> {
    row: &'a [f32],
    /// What is added first, and where the sum goes.
    add: Option<(&'a [f32], *mut f32)>,
    weight: &'a [f32],
    eps: f32,
    out: *mut f32,
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let dim = self.row.len();
        // SAFETY: all pointers have `dim` values, and no offset reaches beyond.
        unsafe {
            let mut row = self.row;
            if let Some((residual, sum)) = self.add {
                for at in (0..dim).step_by(LANES) {
                    let a = S::load_part(row.as_ptr().add(at), dim - at);
                    let b = S::load_part(residual.as_ptr().add(at), dim - at);
                    S::store_part(sum.add(at), S::add(a, b), dim - at);
                }
                row = std::slice::from_raw_parts(sum, dim);
            }
            norm_row::<S>(row, self.weight, self.eps, self.out);
        }
    }
}

/// `row / sqrt(mean(row^2) + eps) * weight` into `out`.
///
/// # Safety
/// `out` must be writable for the row's length, which is the weight's, and the machine must have the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn norm_row<S: Simd>(row: &[f32], weight: &[f32], eps: f32, out: *mut f32) {
    let dim = row.len();
    let x = row.as_ptr();
    // SAFETY: all pointers have `dim` values, and no offset reaches beyond.
    unsafe {
        // Two sums, for steps of even and odd number, because one would wait for itself.
        let (mut even, mut odd) = (S::splat(0.0), S::splat(0.0));
        for at in (0..dim).step_by(2 * LANES) {
            let a = S::load_part(x.add(at), dim - at);
            even = S::fma(a, a, even);
            if at + LANES < dim {
                let b = S::load_part(x.add(at + LANES), dim - at - LANES);
                odd = S::fma(b, b, odd);
            }
        }
        let mean = S::sum(S::add(even, odd)) / dim as f32;
        let scale = S::splat(1.0 / (mean + eps).sqrt());
        for at in (0..dim).step_by(LANES) {
            let weight = S::load_part(weight.as_ptr().add(at), dim - at);
            let scaled = S::mul(S::load_part(x.add(at), dim - at), scale);
            S::store_part(out.add(at), S::mul(scaled, weight), dim - at);
        }
    }
}

/// `(row - mean) / sqrt(variance + eps) * weight + bias` into `out`.
///
/// # Safety
/// As [`norm_row`]; a bias is as long as the weight.
#[inline(always)]
pub(super) unsafe fn layer_norm_row<S: Simd>(
    row: &[f32],
    (weight, bias): (&[f32], Option<&[f32]>),
    eps: f32,
    out: *mut f32,
) {
    let dim = row.len();
    let x = row.as_ptr();
    // SAFETY: all pointers have `dim` values, and no offset reaches beyond.
    unsafe {
        let mut sum = S::splat(0.0);
        for at in (0..dim).step_by(LANES) {
            sum = S::add(sum, S::load_part(x.add(at), dim - at));
        }
        let mean = S::splat(S::sum(sum) / dim as f32);
        // Into `out` first, so that what stands behind the row's end is zero and not minus the mean.
        let mut squares = S::splat(0.0);
        for at in (0..dim).step_by(LANES) {
            S::store_part(out.add(at), S::sub(S::load_part(x.add(at), dim - at), mean), dim - at);
            let centred = S::load_part(out.add(at), dim - at);
            squares = S::fma(centred, centred, squares);
        }
        let scale = S::splat(1.0 / (S::sum(squares) / dim as f32 + eps).sqrt());
        for at in (0..dim).step_by(LANES) {
            let weight = S::load_part(weight.as_ptr().add(at), dim - at);
            let mut value = S::mul(S::mul(S::load_part(out.add(at), dim - at), scale), weight);
            if let Some(bias) = bias {
                value = S::add(value, S::load_part(bias.as_ptr().add(at), dim - at));
            }
            S::store_part(out.add(at), value, dim - at);
        }
    }
}

/// `residual + scale * norm(x)`, row by row; without a norm `residual + scale * x`.
pub fn add_scaled(isa: Isa, x: &[f32], residual: &[f32], norm: Option<(&[f32], f32)>, scale: f32) -> Vec<f32> {
    let dim = norm.map_or(LANES, |(weight, _)| weight.len()).max(1);
    assert!(x.len() == residual.len() && (norm.is_none() || x.len().is_multiple_of(dim)), "sizes of a sum");
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    let mut out = Vec::with_capacity(x.len());
    let target = Out(out.as_mut_ptr());
    by_rows(x.len().div_ceil(dim), dim, |first, rows| {
        for at in (first..first + rows).map(|row| row * dim) {
            let end = (at + dim).min(x.len());
            // SAFETY: the instruction set was checked; each row is inside the inputs and the output's capacity.
            unsafe {
                let (x, residual, out) = (&x[at..end], &residual[at..end], target.at(at));
                dispatch(isa, SumRow { x, residual, norm, scale, out });
            }
        }
    });
    // SAFETY: every row has been written.
    unsafe { out.set_len(x.len()) };
    out
}

struct SumRow<'a> {
    x: &'a [f32],
    residual: &'a [f32],
    norm: Option<(&'a [f32], f32)>,
    scale: f32,
    out: *mut f32,
}

impl Kernel for SumRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let dim = self.x.len();
        // SAFETY: all pointers have `dim` values, and no offset reaches beyond.
        unsafe {
            let mut from = self.x.as_ptr();
            if let Some((weight, eps)) = self.norm {
                norm_row::<S>(self.x, weight, eps, self.out);
                from = self.out;
            }
            for at in (0..dim).step_by(LANES) {
                let x = S::mul(S::load_part(from.add(at), dim - at), S::splat(self.scale));
                let sum = S::add(x, S::load_part(self.residual.as_ptr().add(at), dim - at));
                S::store_part(self.out.add(at), sum, dim - at);
            }
        }
    }
}

/// `scale * x`, then `cap * tanh(x / cap)` where there is a cap, in place.
pub fn scale_and_cap(isa: Isa, values: &mut [f32], scale: f32, cap: Option<f32>) {
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    let (len, target) = (values.len(), Out(values.as_mut_ptr()));
    by_rows(len.div_ceil(LANES), LANES, |first, rows| {
        let (from, to) = (first * LANES, ((first + rows) * LANES).min(len));
        // SAFETY: the instruction set was checked; the ranges are disjoint and inside the values.
        unsafe {
            let values = std::slice::from_raw_parts_mut(target.at(from), to - from);
            dispatch(isa, CapSpan { values, scale, cap });
        }
    });
}

struct CapSpan<'a> {
    values: &'a mut [f32],
    scale: f32,
    cap: Option<f32>,
}

impl Kernel for CapSpan<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (count, p) = (self.values.len(), self.values.as_mut_ptr());
        for at in (0..count).step_by(LANES) {
            // SAFETY: no offset reaches beyond the values; the caller promises the instructions.
            unsafe {
                let mut value = S::mul(S::load_part(p.add(at), count - at), S::splat(self.scale));
                if let Some(cap) = self.cap {
                    value = S::mul(tanh::<S>(S::div(value, S::splat(cap))), S::splat(cap));
                }
                S::store_part(p.add(at), value, count - at);
            }
        }
    }
}

/// An activation, with or without something that it gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Silu,
    /// Exact, not the tanh approximation.
    Gelu,
    GeluTanh,
    /// `gate * sigmoid(1.702 * gate) * (up + 1)` with gate at most 7 and up within -7..=7 (GPT-OSS).
    ClampedSwiglu,
    Sigmoid,
}

/// `activation(gate) * up`, element by element.
pub fn gated(isa: Isa, activation: Gate, gate: &[f32], up: &[f32]) -> Vec<f32> {
    assert_eq!(gate.len(), up.len(), "sizes of a gate");
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    let mut out = Vec::with_capacity(gate.len());
    let target = Out(out.as_mut_ptr());
    by_rows(gate.len().div_ceil(LANES), LANES, |first, rows| {
        let (from, to) = (first * LANES, ((first + rows) * LANES).min(gate.len()));
        // SAFETY: the instruction set was checked; the range is inside the inputs and the output's capacity.
        unsafe {
            dispatch(
                isa,
                GateSpan { activation, gate: &gate[from..to], up: Some(&up[from..to]), out: target.at(from) },
            );
        }
    });
    // SAFETY: every element has been written.
    unsafe { out.set_len(gate.len()) };
    out
}

struct GateSpan<'a> {
    activation: Gate,
    gate: &'a [f32],
    up: Option<&'a [f32]>,
    out: *mut f32,
}

impl Kernel for GateSpan<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as promised by the caller; all have the same length.
        unsafe { gate_row::<S>(self.activation, self.gate, self.up, self.out) }
    }
}

/// `activation(gate) * up` into `out`; `activation(gate)` where there is no `up`.
///
/// # Safety
/// `up` must be as long as `gate`, `out` writable for as much, and the machine must have the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn gate_row<S: Simd>(activation: Gate, gate: &[f32], up: Option<&[f32]>, out: *mut f32) {
    let count = gate.len();
    // SAFETY: all pointers have `count` values, and no offset reaches beyond.
    unsafe {
        for at in (0..count).step_by(LANES) {
            let x = S::load_part(gate.as_ptr().add(at), count - at);
            let active = match activation {
                Gate::Silu => silu::<S>(x, 1.0),
                Gate::Gelu => gelu::<S>(x),
                Gate::GeluTanh => gelu_tanh::<S>(x),
                Gate::ClampedSwiglu => silu::<S>(S::min(S::splat(7.0), x), 1.702),
                Gate::Sigmoid => S::div(S::splat(1.0), S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x)))),
            };
            let mut value = active;
            if let Some(up) = up {
                let mut up = S::load_part(up.as_ptr().add(at), count - at);
                if activation == Gate::ClampedSwiglu {
                    up = S::min(S::splat(7.0), S::max(S::splat(-7.0), up));
                    up = S::add(up, S::splat(1.0));
                }
                value = S::mul(active, up);
            }
            S::store_part(out.add(at), value, count - at);
        }
    }
}

/// `x * sigmoid(slope * x)`.
#[inline(always)]
unsafe fn silu<S: Simd>(x: S::V, slope: f32) -> S::V {
    // SAFETY: pure arithmetic; the caller promises the instructions.
    unsafe {
        let one = S::splat(1.0);
        S::div(x, S::add(one, exp::<S>(S::mul(x, S::splat(-slope)))))
    }
}

#[inline(always)]
pub(super) unsafe fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: pure arithmetic; the caller promises the instructions.
    unsafe {
        // sqrt(2 / pi) * (x + 0.044715 x^3)
        let cubic = S::mul(S::mul(x, x), S::mul(x, S::splat(0.044_715)));
        let inner = S::mul(S::add(x, cubic), S::splat(0.797_884_6));
        S::mul(S::mul(S::splat(0.5), x), S::add(S::splat(1.0), tanh::<S>(inner)))
    }
}

/// Rotates the heads of one token by its angles. Plain loops, which the compiler turns into its caller's instructions;
/// without fused operations in all of them.
#[inline(always)]
pub(super) fn turn(heads: &mut [f32], head_dim: usize, style: RopeStyle, (cos, sin): (&[f32], &[f32])) {
    for head in heads.chunks_exact_mut(head_dim) {
        match style {
            RopeStyle::Halves => {
                let (first, second) = head[..2 * cos.len()].split_at_mut(cos.len());
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
            RopeStyle::Interleaved => {
                for (([a, b], cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}
