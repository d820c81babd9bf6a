// performance-critical: no allocation per token, no lock, no log, no format
//! Sixteen f32 lanes on every instruction set, chosen at run time.
//!
//! Invariant: a sum over lanes is the same tree everywhere (i with i+8, then i+4, i+2, i+1), and every kernel fixes
//! the order in which it feeds the lanes. So a result depends on its operands only, never on tile or batch shape.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_staged;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dot;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dot;
#[cfg(target_arch = "aarch64")]
mod neon_i8mm;
#[cfg(target_arch = "aarch64")]
mod paired;
mod portable;
#[cfg(target_arch = "x86_64")]
mod staged;

use std::sync::OnceLock;

pub(crate) use dot::{BLOCK, Dot, DotKernel, QuantBlock, dispatch_dot};
#[cfg(target_arch = "aarch64")]
pub(crate) use paired::{Paired, PairedKernel, dispatch_paired};
#[cfg(target_arch = "x86_64")]
pub(crate) use staged::{Staged, StagedKernel, dispatch_staged};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// As `Avx512`, with AVX-512 BF16.
    Avx512Bf16,
    /// x86-64 with AVX-512 F, BW, VL and VNNI.
    Avx512,
    /// As `Avx2`, with AVX-VNNI.
    AvxVnni,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// As `NeonDotprod`, with I8MM and BF16 (Armv8.6: Graviton 3, Apple M2).
    NeonI8mm,
    /// aarch64 with NEON and DotProd (Graviton 2, Apple M1).
    NeonDotprod,
    /// aarch64 with NEON.
    Neon,
    /// Whatever the build target guarantees.
    Portable,
}

impl Isa {
    /// The fastest instruction set of this machine, found once.
    pub fn best() -> Isa {
        Self::found()[0]
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        Self::found().contains(&self)
    }

    /// Tokens of the widest tile that [`Dot`] kernels of this instruction set take.
    pub(crate) fn tile_tokens(self) -> usize {
        match self {
            Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 => 16,
            Isa::NeonI8mm | Isa::NeonDotprod | Isa::Neon => 16,
            Isa::AvxVnni | Isa::Portable => 4,
        }
    }

    /// Every instruction set that this machine can run, fastest first.
    pub fn available() -> Vec<Isa> {
        Self::found().to_vec()
    }

    fn found() -> &'static [Isa] {
        static FOUND: OnceLock<Vec<Isa>> = OnceLock::new();
        FOUND.get_or_init(Self::detect)
    }

    fn detect() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                found.push(Isa::Avx512Bf16);
            }
            if avx512 {
                found.push(Isa::Avx512);
            }
            if avx2 && is_x86_feature_detected!("avxvnni") {
                found.push(Isa::AvxVnni);
            }
            if avx2 {
                found.push(Isa::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                if std::arch::is_aarch64_feature_detected!("bf16") && std::arch::is_aarch64_feature_detected!("i8mm") {
                    found.push(Isa::NeonI8mm);
                }
                found.push(Isa::NeonDotprod);
            }
            found.push(Isa::Neon);
        }
        found.push(Isa::Portable);
        found
    }
}

/// A piece of work that is compiled once for each instruction set.
pub(crate) trait Kernel {
    type Output;

    /// Does the work. Implementations are `#[inline(always)]`, so that they are compiled with `S`'s instructions.
    ///
    /// # Safety
    /// The machine must have the instructions of `S`; further conditions are those of the implementing type.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs a kernel with the instructions of `isa`.
///
/// # Safety
/// `isa` must be one of [`Isa::available`], and the kernel's own conditions must hold.
#[inline]
pub(crate) unsafe fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    // SAFETY: the caller promises that the machine has the instructions and that the kernel may run.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Avx512 => avx512::run(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni | Isa::Avx2 => avx2::run(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm | Isa::NeonDotprod | Isa::Neon => neon::run(kernel),
            _ => kernel.run::<portable::Portable>(),
        }
    }
}

/// The operations that kernels are written in.
///
/// # Safety
/// Every function needs the instructions of its implementor. Those that take pointers need them valid for the lanes
/// they name (`count` lanes of a `_part`, all 16 otherwise), at any alignment.
pub(crate) trait Simd: Copy + 'static {
    /// 16 lanes of f32.
    type V: Copy;
    /// Two accumulators on their way to their sums, in as little room as that takes.
    type Folded: Copy;

    /// Whether 16 accumulators of 16 lanes fit into the registers.
    const MANY_REGISTERS: bool = false;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the instruction set can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each lane; `b` where `a` is not larger, so NaN in `b` stays.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of each lane; `b` where `a` is not smaller, so NaN in `b` stays.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Sum of the lanes, in the tree of the module docs.
    unsafe fn sum(v: Self::V) -> f32;
    /// The largest lane.
    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        let mut lanes = [0f32; LANES];
        // SAFETY: the caller promises the instructions; `lanes` holds 16 values.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
    /// `v * 2^n` for integral n in -126..=127.
    unsafe fn scale_by_power(v: Self::V, n: Self::V) -> Self::V;
    /// 16 f16 as f32.
    unsafe fn load_f16(from: *const u8) -> Self::V;
    /// Writes 16 lanes as f16, rounded to nearest.
    unsafe fn store_f16(to: *mut u8, v: Self::V);
    /// 16 bf16 as f32.
    unsafe fn load_bf16(from: *const u8) -> Self::V;
    /// 16 i8 as f32.
    unsafe fn load_i8(from: *const u8) -> Self::V;
    /// 16 u8 as f32.
    unsafe fn load_u8(from: *const u8) -> Self::V;
    /// `table[low nibble]` and `table[high nibble]` of 16 bytes.
    unsafe fn lookup_nibbles(from: *const u8, table: Self::V) -> [Self::V; 2];

    /// Asks for the cache line of an address that will be read soon. Any address is allowed.
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}

    /// The first `count` lanes from memory, zero in the others.
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self::V {
        // SAFETY: the caller promises `count` readable values; `lanes` holds 16.
        unsafe {
            // All but a row's last: a copy of unknown length is a call.
            if count >= LANES {
                return Self::load(from);
            }
            let mut lanes = [0f32; LANES];
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
            Self::load(lanes.as_ptr())
        }
    }

    /// Stores the first `count` lanes.
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: Self::V, count: usize) {
        // SAFETY: the caller promises `count` writable values; `lanes` holds 16.
        unsafe {
            if count >= LANES {
                return Self::store(to, v);
            }
            let mut lanes = [0f32; LANES];
            Self::store(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }

    /// Sums of 4 x 4 accumulators: `y[token * stride + row] = sum(acc[token][row])`.
    #[inline(always)]
    unsafe fn store_sums(y: *mut f32, stride: usize, acc: &[[Self::V; 4]; 4]) {
        // SAFETY: as promised by the caller.
        unsafe { store_each::<Self>(y, stride, acc) };
    }

    unsafe fn fold(a: Self::V, b: Self::V) -> Self::Folded;
    /// Sums of four folded pairs: the first of each pair side by side at `y[0]`, the second ones at `y[1]`.
    unsafe fn store_folded(y: [*mut f32; 2], pairs: [Self::Folded; 4]);
}

/// [`Simd::store_folded`] where folding is no more than putting side by side.
///
/// # Safety
/// Four values must be writable at both places, and the machine must have the instructions of `S`.
#[inline(always)]
unsafe fn store_each_folded<S: Simd>(y: [*mut f32; 2], pairs: [[S::V; 2]; 4]) {
    for (at, [a, b]) in pairs.into_iter().enumerate() {
        // SAFETY: as promised by the caller.
        unsafe {
            *y[0].add(at) = S::sum(a);
            *y[1].add(at) = S::sum(b);
        }
    }
}

/// Four rows of four sums.
///
/// # Safety
/// Four rows of four values must be writable, and the machine must have the instructions of `S`.
#[inline(always)]
unsafe fn store_each<S: Simd>(y: *mut f32, stride: usize, acc: &[[S::V; 4]; 4]) {
    for (token, acc) in acc.iter().enumerate() {
        for (row, acc) in acc.iter().enumerate() {
            // SAFETY: as promised by the caller.
            unsafe { *y.add(token * stride + row) = S::sum(*acc) };
        }
    }
}

/// `e^x` to about 1e-7 relative; below -87.3 the smallest normal numbers, above 88.3 a huge one, NaN stays NaN.
///
/// Cody-Waite reduction to |r| <= ln(2)/2 and the Taylor polynomial of degree 7 (its error there is under 1e-8).
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: pure arithmetic; the caller promises the instructions of `S`.
    unsafe {
        let x = S::min(S::splat(88.3), S::max(S::splat(-87.3), x));
        // Adding 1.5 * 2^23 rounds to the nearest integer in f32.
        let round = S::splat(12_582_912.0);
        let n = S::sub(S::add(S::mul(x, S::splat(std::f32::consts::LOG2_E)), round), round);
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(coefficient));
        }
        S::scale_by_power(p, n)
    }
}
