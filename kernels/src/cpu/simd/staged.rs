// performance-critical: no allocation per token, no lock, no log, no format
//! Products of small codes where four products have no instruction of their own: two are summed in 16 bits, and sums stay
//! there as long as they fit.
//!
//! Sixteen registers are few: for several tokens half of the rows are worked on at a time, so that the codes of a block wait
//! in eight registers while the tokens go by.

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
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::avx2::run_staged(kernel),
            _ => dispatch_dot(isa, kernel),
        }
    }
}

/// The operations on half of the rows: `H` is 0 for the first eight, 1 for the last.
///
/// # Safety
/// As for [`Dot`].
pub(crate) trait Staged: Dot {
    /// 8 lanes of f32.
    type Half: Copy;
    /// 8 lanes of i32.
    type HalfInts: Copy;

    unsafe fn half<const H: usize>(v: Self::V) -> Self::Half;
    unsafe fn whole(halves: [Self::Half; 2]) -> Self::V;
    unsafe fn half_ints(value: i32) -> Self::HalfInts;
    /// `256 * a + b`
    unsafe fn half_join(a: Self::HalfInts, b: Self::HalfInts) -> Self::HalfInts;
    /// Adds `code * x` over some quads of 4 codes, `x` 4 values a quad. `2 * 127 * (the largest code) * (quads)` must be at
    /// most 32,767.
    unsafe fn add_small<const H: usize>(total: Self::HalfInts, codes: &[Self::B], x: *const i8) -> Self::HalfInts;
    /// `acc + total * (scale * factor)`
    unsafe fn add_scaled(acc: Self::Half, total: Self::HalfInts, scale: Self::Half, factor: f32) -> Self::Half;
    /// `acc + a * b`
    unsafe fn add_product(acc: Self::Half, a: Self::Half, b: f32) -> Self::Half;
}
