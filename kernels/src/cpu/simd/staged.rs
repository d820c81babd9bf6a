// performance-critical: no allocation per token, no lock, no log, no format
//! Products where four of them have no instruction of their own: two are summed in 16 bits. Small codes' sums stay there as
//! long as they fit; bytes give their signs to the activations, so that two products fit.
//!
//! Sixteen registers are few: some codes of all rows wait in them while the tokens go by, and the tokens' sums in memory.

use super::{Dot, DotKernel, Isa, dispatch_dot};

/// A [`DotKernel`] that has a way of its own for such machines.
pub(crate) trait StagedKernel: DotKernel<Output = ()> {
    /// As [`DotKernel::run`].
    ///
    /// # Safety
    /// As [`DotKernel::run`].
    unsafe fn run_staged<S: Staged>(self);
}

/// Runs a kernel with the instructions of `isa`, in the way that suits them.
///
/// # Safety
/// As [`dispatch_dot`].
#[inline]
pub(crate) unsafe fn dispatch_staged<K: StagedKernel>(isa: Isa, kernel: K) {
    // SAFETY: as promised by the caller.
    unsafe {
        match isa {
            Isa::Avx2 => super::avx2_staged::run(kernel),
            _ => dispatch_dot(isa, kernel),
        }
    }
}

/// The operations, on the codes of some quads at a time.
///
/// # Safety
/// As for [`Dot`].
pub(crate) trait Staged: Dot {
    /// Codes that stand 128 above their value, as magnitudes and what has their signs.
    type Signed: Copy;

    unsafe fn ints(value: i32) -> Self::I;
    unsafe fn add_ints(a: Self::I, b: Self::I) -> Self::I;
    /// `code * x` of each row in two sums of 16 bits, over some quads of 4 codes, `x` 4 values a quad.
    /// `2 * 127 * (the largest code) * (quads)` must be at most 32,767.
    unsafe fn pairs(codes: &[Self::B], x: *const i8) -> Self::I;
    /// Adds what [`Staged::pairs`] gives, under the same condition on all quads together.
    unsafe fn add_pairs(a: Self::I, b: Self::I) -> Self::I;
    /// `total + factor * (both sums of each row)`
    unsafe fn add_widened(total: Self::I, pairs: Self::I, factor: i16) -> Self::I;
    unsafe fn signed(codes: Self::B) -> Self::Signed;
    /// Adds `value * x` of each row over some quads of 4 values, `x` 4 values a quad.
    unsafe fn add_signed(total: Self::I, codes: &[Self::Signed], x: *const i8) -> Self::I;
}
