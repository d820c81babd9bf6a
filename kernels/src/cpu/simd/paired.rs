// performance-critical: no allocation per token, no lock, no log, no format
//! Products where one instruction multiplies eight bytes of two rows with eight bytes of two tokens.

use super::{Dot, DotKernel, Isa, dispatch_dot, neon_i8mm};

/// A [`DotKernel`] that has a way of its own for such machines.
pub(crate) trait PairedKernel: DotKernel<Output = ()> {
    /// As [`DotKernel::run`].
    ///
    /// # Safety
    /// As [`DotKernel::run`].
    unsafe fn run_paired<S: Paired>(self);
}

/// Runs a kernel with the instructions of `isa`, in the way that suits them.
///
/// # Safety
/// As [`dispatch_dot`].
#[inline]
pub(crate) unsafe fn dispatch_paired<K: PairedKernel>(isa: Isa, kernel: K) {
    // SAFETY: as promised by the caller.
    unsafe {
        match isa {
            Isa::NeonI8mm => neon_i8mm::run(kernel),
            _ => dispatch_dot(isa, kernel),
        }
    }
}

/// The operations, on eight codes of each row at a time.
///
/// # Safety
/// As for [`Dot`].
pub(crate) trait Paired: Dot {
    /// Eight values of each of 16 rows, rows in pairs.
    type M: Copy;
    /// Sums of 16 rows for two tokens.
    type D: Copy;

    /// Two neighbouring quads. `BIASED` codes stand 128 above their value.
    unsafe fn eights<const BIASED: bool>(first: Self::B, second: Self::B) -> Self::M;
    unsafe fn no_sums() -> Self::D;
    /// Adds the products of each row's eight values with those of two tokens, whose eight bytes each are given.
    unsafe fn add_eights(sums: Self::D, values: Self::M, x: [*const i8; 2]) -> Self::D;
    /// The sums of each token by itself.
    unsafe fn apart(sums: Self::D) -> [Self::I; 2];
}
