// performance-critical: no allocation per token, no lock, no log, no format
//! What packed weights are multiplied with: 64 codes of 8 bits against 4 activations, pairs of bf16 against a pair.
//!
//! Sixteen output rows stand side by side in the lanes, so no sum runs over lanes and each lane is the whole
//! arithmetic of its row.

#[cfg(target_arch = "aarch64")]
use super::neon_dot;
use super::{Isa, LANES, Simd};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Activations that share a scale.
pub(crate) const BLOCK: usize = 32;

/// What [`Dot::quantise`] found out about 32 activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct QuantBlock {
    pub scale: f32,
    /// Sums of the first and the last 16 quantised values.
    pub sums: [i32; 2],
}

impl QuantBlock {
    /// The factor on activations that makes them -127..=127, and the scale that undoes it. What is not a number or not
    /// finite makes the scale NaN, so that it reaches every output and cannot pass for a value.
    #[inline(always)]
    pub fn factors(largest: f32) -> (f32, f32) {
        Self::factors_to(127.0, largest)
    }

    /// As [`QuantBlock::factors`] for values of two bytes, of which neither may be below -127 or above 127.
    #[inline(always)]
    pub fn wide_factors(largest: f32) -> (f32, f32) {
        Self::factors_to(127.0 * 256.0 + 127.0, largest)
    }

    #[inline(always)]
    fn factors_to(most: f32, largest: f32) -> (f32, f32) {
        if largest > 0.0 && largest < f32::INFINITY {
            // Below, the factor would be infinite; such activations are as good as zero.
            let factor = most / largest;
            return if factor < f32::INFINITY { (factor, largest / most) } else { (0.0, 0.0) };
        }
        (0.0, if largest == 0.0 { 0.0 } else { f32::NAN })
    }
}

/// The largest magnitude; NaN wins.
#[inline(always)]
fn largest(x: &[f32; BLOCK]) -> f32 {
    x.iter().fold(0.0_f32, |largest, x| if x.abs() <= largest || largest.is_nan() { largest } else { x.abs() })
}

/// A piece of work on packed weights, compiled once for each instruction set.
pub(crate) trait DotKernel {
    type Output;

    /// Whether it gains from instructions for bf16; otherwise it is not compiled with them once more.
    const BF16: bool;

    /// As [`super::Kernel::run`].
    ///
    /// # Safety
    /// The machine must have the instructions of `S`; further conditions are those of the implementing type.
    unsafe fn run<S: Dot>(self) -> Self::Output;
}

/// Runs a kernel with the instructions of `isa`.
///
/// # Safety
/// `isa` must be one of [`Isa::available`], and the kernel's own conditions must hold.
#[inline]
pub(crate) unsafe fn dispatch_dot<K: DotKernel>(isa: Isa, kernel: K) -> K::Output {
    // SAFETY: the caller promises that the machine has the instructions and that the kernel may run.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if K::BF16 => avx512::run_dot_bf16(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Avx512 => avx512::run_dot(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => avx2::run_dot_vnni(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::run_dot(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm if K::BF16 => neon_dot::run_bf16(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm | Isa::NeonDotprod => neon_dot::run_dotprod(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon_dot::run(kernel),
            _ => kernel.run::<super::portable::Portable>(),
        }
    }
}

/// The operations of packed matmuls. A byte vector holds, for each of 16 rows, four neighbouring codes.
///
/// # Safety
/// Every function needs the instructions of its implementor, and pointers that are valid for what it names.
pub(crate) trait Dot: Simd {
    /// 64 bytes.
    type B: Copy;
    /// 16 lanes of i32.
    type I: Copy;

    /// Tokens of the widest tile that gains. Where its sums do not fit the registers, unpacked codes serve all of them
    /// all the same.
    const TOKENS: usize;

    /// 64 bytes from memory.
    unsafe fn bytes(from: *const u8) -> Self::B;
    /// Each byte shifted left, then masked; the mask must clear what came from the neighbouring byte.
    unsafe fn shl<const BITS: u32>(bytes: Self::B, mask: u8) -> Self::B;
    /// Each byte shifted right, then masked; the mask must clear what came from the neighbouring byte.
    unsafe fn shr<const BITS: u32>(bytes: Self::B, mask: u8) -> Self::B;
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// `value` is set in byte i where bit i of the 8 bytes at `bits` is; no byte has that bit yet.
    unsafe fn or_bits(bytes: Self::B, bits: *const u8, value: u8) -> Self::B;
    /// `table[code]` of every byte, all below 16.
    unsafe fn lookup(codes: Self::B, table: &[u8; 16]) -> Self::B;

    unsafe fn zero() -> Self::I;
    /// What [`Dot::dot_biased`] starts from: `-128 * (sum of the activations)`, or whatever it needs instead.
    unsafe fn start(minus_128_sums: *const i32) -> Self::I;
    /// Adds `(code - 128) * x` over each row's 4 codes, once with [`Dot::start`] for the whole sum. `x` are 4 values.
    unsafe fn dot_biased(acc: Self::I, codes: Self::B, x: *const i8) -> Self::I;
    /// Adds `code * x` over each row's 4 codes, all below 64.
    unsafe fn dot(acc: Self::I, codes: Self::B, x: *const i8) -> Self::I;
    unsafe fn floats(ints: Self::I) -> Self::V;
    /// `256 * a + b`
    unsafe fn join(a: Self::I, b: Self::I) -> Self::I;

    /// 16 pairs of bf16 as f32: the first and the second of each.
    unsafe fn bf16_pairs(w: *const u8) -> [Self::V; 2];

    /// Adds the products of each row's pair of bf16 with the pair at `x`.
    unsafe fn dot_bf16(acc: Self::V, w: *const u8, x: *const u16) -> Self::V;

    /// 32 activations as 16 bits in two bytes each: 32 high ones, then 32 low ones, of `256 * high + low`.
    #[inline(always)]
    unsafe fn quantise_wide(x: *const f32, to: *mut i8) -> QuantBlock {
        // SAFETY: the caller promises 32 readable and 64 writable values.
        let (x, to) = unsafe { (&*x.cast::<[f32; BLOCK]>(), &mut *to.cast::<[[i8; BLOCK]; 2]>()) };
        let (factor, scale) = QuantBlock::wide_factors(largest(x));
        let [high, low] = to;
        let mut sums = [0; 2];
        for at in 0..BLOCK {
            let value = (x[at] * factor).round_ties_even() as i32;
            let upper = (value + 128) >> 8;
            // -128 cannot change its sign in a byte; -127 is as near as makes no difference.
            let lower = (value - (upper << 8)).max(-127);
            (high[at], low[at]) = (upper as i8, lower as i8);
            sums[at / LANES] += (upper << 8) + lower;
        }
        QuantBlock { scale, sums }
    }

    /// 32 activations as i8: rounded to nearest, ties to even.
    #[inline(always)]
    unsafe fn quantise(x: *const f32, to: *mut i8) -> QuantBlock {
        // SAFETY: the caller promises 32 readable and 32 writable values.
        let (x, to) = unsafe { (&*x.cast::<[f32; BLOCK]>(), &mut *to.cast::<[i8; BLOCK]>()) };
        let (factor, scale) = QuantBlock::factors(largest(x));
        let mut sums = [0; 2];
        for (at, (x, to)) in x.iter().zip(to).enumerate() {
            *to = (x * factor).round_ties_even() as i8;
            sums[at / LANES] += i32::from(*to);
        }
        QuantBlock { scale, sums }
    }
}
