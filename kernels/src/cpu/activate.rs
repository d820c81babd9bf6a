// performance-critical: no allocation per token, no lock, no log, no format
//! What encoders do between their dense layers: activations without a gate, and LayerNorm of whole rows.

use super::rows::{Out, by_rows, gelu_tanh};
use super::simd::{Isa, Kernel, LANES, Simd, dispatch, exp};

/// An activation without a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * normal_cdf(x)`, exact (Hendrycks and Gimpel, arXiv 1606.08415).
    Gelu,
    /// The same with its tanh approximation.
    GeluTanh,
    Relu,
}

/// `activation(x)` into `out`.
///
/// # Safety
/// `out` must be writable for the length of `x`, and the machine must have the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn activate_row<S: Simd>(activation: Activation, x: &[f32], out: *mut f32) {
    let count = x.len();
    // SAFETY: both pointers have `count` values, and no offset reaches beyond.
    unsafe {
        for at in (0..count).step_by(LANES) {
            let x = S::load_part(x.as_ptr().add(at), count - at);
            let active = match activation {
                Activation::Gelu => gelu::<S>(x),
                Activation::GeluTanh => gelu_tanh::<S>(x),
                Activation::Relu => S::max(S::splat(0.0), x),
            };
            S::store_part(out.add(at), active, count - at);
        }
    }
}

/// `max(x, 0) - |x| / 2 * erfc(|x| / sqrt(2))`. erfc by 7.1.26 of Abramowitz and Stegun, off by 1.5e-7 at most, which
/// here is scaled down by the `|x|` before it.
#[inline(always)]
pub(super) unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: pure arithmetic; the caller promises the instructions.
    unsafe {
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        let size = S::max(S::sub(zero, x), x);
        let z = S::mul(size, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(one, S::fma(z, S::splat(0.327_591_1), one));
        let mut erfc = S::splat(1.061_405_4);
        for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            erfc = S::fma(erfc, t, S::splat(coefficient));
        }
        let erfc = S::mul(S::mul(erfc, t), exp::<S>(S::sub(zero, S::mul(z, z))));
        S::sub(S::max(zero, x), S::mul(S::mul(S::splat(0.5), size), erfc))
    }
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` of each row.
pub fn layer_norm(isa: Isa, x: &[f32], (weight, bias): (&[f32], &[f32]), eps: f32) -> Vec<f32> {
    let dim = weight.len();
    assert!(x.len().is_multiple_of(dim.max(1)) && bias.len() == dim, "sizes of a norm");
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    let mut out = Vec::with_capacity(x.len());
    let target = Out(out.as_mut_ptr());
    by_rows(x.len() / dim.max(1), dim, |first, rows| {
        for at in (first..first + rows).map(|row| row * dim) {
            // SAFETY: the instruction set was checked; each row is inside the input and the output's capacity.
            unsafe { dispatch(isa, LayerNormRow { row: &x[at..at + dim], weight, bias, eps, out: target.at(at) }) };
        }
    });
    // SAFETY: every row has been written.
    unsafe { out.set_len(x.len()) };
    out
}

struct LayerNormRow<'a> {
    row: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    out: *mut f32,
}

impl Kernel for LayerNormRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (dim, x) = (self.row.len(), self.row.as_ptr());
        // SAFETY: all pointers have `dim` values, and no offset reaches beyond.
        unsafe {
            let mut sum = S::splat(0.0);
            for at in (0..dim).step_by(LANES) {
                sum = S::add(sum, S::load_part(x.add(at), dim - at));
            }
            let mean = S::sum(sum) / dim as f32;
            // In a second pass: the difference of two large sums would lose what the variance is made of.
            let mut squares = S::splat(0.0);
            for at in (0..dim).step_by(LANES) {
                let mut off = S::sub(S::load_part(x.add(at), dim - at), S::splat(mean));
                if dim - at < LANES {
                    // Lanes behind the end hold minus the mean.
                    S::store_part(self.out.add(at), off, dim - at);
                    off = S::load_part(self.out.add(at), dim - at);
                }
                squares = S::fma(off, off, squares);
            }
            let scale = S::splat(1.0 / (S::sum(squares) / dim as f32 + self.eps).sqrt());
            for at in (0..dim).step_by(LANES) {
                let off = S::sub(S::load_part(x.add(at), dim - at), S::splat(mean));
                let weight = S::load_part(self.weight.as_ptr().add(at), dim - at);
                let bias = S::load_part(self.bias.as_ptr().add(at), dim - at);
                S::store_part(self.out.add(at), S::fma(S::mul(off, scale), weight, bias), dim - at);
            }
        }
    }
}
