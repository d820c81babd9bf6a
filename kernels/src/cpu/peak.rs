//! What this machine can do at best: bytes read from memory and products of each kind a second.
//!
//! Kernels are held against these. The loops do nothing useful: arithmetic runs in registers only, with as many
//! independent sums as hide the latency; reads go through memory far larger than any cache, on huge pages as weights are.

use std::hint::black_box;
use std::time::Instant;

use memmap2::{Advice, MmapMut};

use super::Isa;
use crate::error::{Error, Result};

/// Sums that are under way at once.
const SUMS: usize = 12;
/// Rounds of a burst: about a millisecond.
const ROUNDS: u64 = 100_000;

/// A kind of product, by its factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factors {
    /// One multiply-add is two operations.
    F32,
    Bf16,
    Int8,
}

/// Operations a second of `threads` threads for about `seconds`; none where the machine has no instruction for it, so
/// that kernels convert first. Of bytes on a machine with AVX2 alone, those of codes small enough to be summed in 16 bits.
pub fn operations_per_s(factors: Factors, threads: usize, seconds: f64) -> Option<f64> {
    let isa = *Isa::available().first()?;
    burst(factors, isa, 1)?;
    let rates = on_threads(threads, || {
        let started = Instant::now();
        let mut operations = 0;
        while started.elapsed().as_secs_f64() < seconds {
            operations += burst(factors, isa, ROUNDS).unwrap_or(0);
        }
        operations as f64 / started.elapsed().as_secs_f64()
    });
    Some(rates.into_iter().sum())
}

/// Bytes a second that `threads` threads read together out of `bytes` for about `seconds`.
pub fn read_bytes_per_s(bytes: usize, threads: usize, seconds: f64) -> Result<f64> {
    let threads = threads.max(1);
    let mut map = MmapMut::map_anon(bytes).map_err(|_| Error::Memory { bytes: bytes as u64 })?;
    // Advice only: without huge pages everything works, a little slower.
    #[cfg(target_os = "linux")]
    let _ = map.advise(Advice::HugePage);
    // Written once: untouched pages are all the same page of zeros.
    map.iter_mut().step_by(64).for_each(|byte| *byte = 1);
    let part = (bytes / threads) & !4095;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let rates = on_threads(threads, || {
        let start = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) * part;
        let own = &map[start..start + part];
        let started = Instant::now();
        let mut read = 0;
        while started.elapsed().as_secs_f64() < seconds {
            black_box(sum(own));
            read += own.len();
        }
        read as f64 / started.elapsed().as_secs_f64()
    });
    Ok(rates.into_iter().sum())
}

/// Each thread begins when all are there.
fn on_threads(threads: usize, work: impl Fn() -> f64 + Sync) -> Vec<f64> {
    let threads = threads.max(1);
    let ready = std::sync::Barrier::new(threads);
    let run = || {
        ready.wait();
        work()
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let own = run();
        // A thread that panicked has measured nothing.
        std::iter::once(own).chain(others.into_iter().filter_map(|other| other.join().ok())).collect()
    })
}

fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if matches!(Isa::available().first(), Some(Isa::Avx512Bf16 | Isa::Avx512)) {
        // SAFETY: the machine has AVX-512F.
        return unsafe { x86::sum_512(bytes) };
    }
    #[cfg(target_arch = "x86_64")]
    if matches!(Isa::available().first(), Some(Isa::AvxVnni | Isa::Avx2)) {
        // SAFETY: the machine has AVX2.
        return unsafe { x86::sum_256(bytes) };
    }
    let mut sums = [0_u64; 8];
    for line in bytes.chunks_exact(64) {
        for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(word);
            *sum = sum.wrapping_add(u64::from_ne_bytes(eight));
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// Operations that were done.
fn burst(factors: Factors, isa: Isa, rounds: u64) -> Option<u64> {
    let lanes_operations = match (factors, isa) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine has what the instruction set names.
        (Factors::F32, Isa::Avx512Bf16 | Isa::Avx512) => unsafe { x86::f32_512(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Factors::F32, Isa::AvxVnni | Isa::Avx2) => unsafe { x86::f32_256(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Factors::Bf16, Isa::Avx512Bf16) => unsafe { x86::bf16_512(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Factors::Int8, Isa::Avx512Bf16 | Isa::Avx512) => unsafe { x86::int8_512(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Factors::Int8, Isa::AvxVnni) => unsafe { x86::int8_256(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Factors::Int8, Isa::Avx2) => unsafe { x86::int8_pairs_256(rounds) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        (Factors::F32, Isa::NeonI8mm | Isa::NeonDotprod | Isa::Neon) => unsafe { arm::f32(rounds) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        (Factors::Bf16, Isa::NeonI8mm) => unsafe { arm::bf16(rounds) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        (Factors::Int8, Isa::NeonI8mm | Isa::NeonDotprod) => unsafe { arm::int8(rounds) },
        (Factors::F32, Isa::Portable) => portable(rounds),
        _ => return None,
    };
    Some(rounds * SUMS as u64 * lanes_operations)
}

/// Sixteen lanes that the compiler makes vectors of as it can.
fn portable(rounds: u64) -> u64 {
    let (a, b) = (black_box(0.999_f32), black_box(0.001_f32));
    let mut sums = [[0.0_f32; 16]; SUMS];
    for _ in 0..rounds {
        for lane in sums.iter_mut().flatten() {
            *lane = *lane * a + b;
        }
    }
    black_box(sums);
    32
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::SUMS;

    /// Operations of one instruction are what each function returns.
    ///
    /// # Safety
    /// The machine must have AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn f32_512(rounds: u64) -> u64 {
        let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
        2 * 16
    }

    /// # Safety
    /// The machine must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn f32_256(rounds: u64) -> u64 {
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [_mm256_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
        2 * 8
    }

    /// # Safety
    /// The machine must have AVX-512F and AVX-512 BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn bf16_512(rounds: u64) -> u64 {
        let ones = _mm512_set1_ps(black_box(0.5));
        let factors = _mm512_cvtne2ps_pbh(ones, ones);
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, factors, factors);
            }
        }
        black_box(sums);
        2 * 32
    }

    /// # Safety
    /// The machine must have AVX-512F and AVX-512 VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn int8_512(rounds: u64) -> u64 {
        let factors = _mm512_set1_epi8(black_box(1));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, factors, factors);
            }
        }
        black_box(sums);
        2 * 64
    }

    /// # Safety
    /// The machine must have AVX2 and AVX-VNNI.
    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) unsafe fn int8_256(rounds: u64) -> u64 {
        let factors = _mm256_set1_epi8(black_box(1));
        let mut sums = [_mm256_setzero_si256(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, factors, factors);
            }
        }
        black_box(sums);
        2 * 32
    }

    /// Products that are summed in 16 bits: what small codes are multiplied with.
    ///
    /// # Safety
    /// The machine must have AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn int8_pairs_256(rounds: u64) -> u64 {
        let factors = _mm256_set1_epi8(black_box(1));
        let mut sums = [_mm256_setzero_si256(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                // Of the sum, lest the compiler multiplies once for all.
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(*sum, factors));
            }
        }
        black_box(sums);
        2 * 32
    }

    /// # Safety
    /// The machine must have AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn sum_256(bytes: &[u8]) -> u64 {
        let mut sums = [_mm256_setzero_si256(); 8];
        for lines in bytes.chunks_exact(8 * 32) {
            for (sum, half_line) in sums.iter_mut().zip(lines.chunks_exact(32)) {
                // SAFETY: half a line has 32 bytes; the load needs no alignment.
                let words = unsafe { _mm256_loadu_si256(half_line.as_ptr().cast()) };
                *sum = _mm256_add_epi64(*sum, words);
            }
        }
        let mut whole = sums[0];
        for sum in &sums[1..] {
            whole = _mm256_add_epi64(whole, *sum);
        }
        let mut words = [0_u64; 4];
        // SAFETY: there are 32 bytes; the store needs no alignment.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), whole) };
        words.into_iter().fold(0, u64::wrapping_add)
    }

    /// # Safety
    /// The machine must have AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn sum_512(bytes: &[u8]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 8];
        for lines in bytes.chunks_exact(8 * 64) {
            for (sum, line) in sums.iter_mut().zip(lines.chunks_exact(64)) {
                // SAFETY: the line has 64 bytes; the load needs no alignment.
                let words = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
                *sum = _mm512_add_epi64(*sum, words);
            }
        }
        let mut whole = sums[0];
        for sum in &sums[1..] {
            whole = _mm512_add_epi64(whole, *sum);
        }
        _mm512_reduce_add_epi64(whole) as u64
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::arch::asm;
    use std::hint::black_box;

    use super::SUMS;

    /// Operations of one instruction are what each function returns.
    ///
    /// # Safety
    /// The machine must have NEON.
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn f32(rounds: u64) -> u64 {
        let (a, b) = (vdupq_n_f32(black_box(0.999)), vdupq_n_f32(black_box(0.001)));
        let mut sums = [vdupq_n_f32(0.0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = vfmaq_f32(b, *sum, a);
            }
        }
        black_box(sums);
        2 * 4
    }

    /// # Safety
    /// The machine must have NEON and the feature BF16.
    #[target_feature(enable = "neon,bf16")]
    pub(super) unsafe fn bf16(rounds: u64) -> u64 {
        let factors = vdupq_n_u16(black_box(0x3f00));
        let mut sums = [vdupq_n_f32(0.0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                // SAFETY: the instruction is there, and it touches registers alone.
                unsafe {
                    asm!("bfdot {sum:v}.4s, {x:v}.8h, {x:v}.8h", sum = inout(vreg) *sum, x = in(vreg) factors,
                        options(pure, nomem, nostack, preserves_flags));
                }
            }
        }
        black_box(sums);
        2 * 8
    }

    /// # Safety
    /// The machine must have NEON and the feature DotProd.
    #[target_feature(enable = "neon,dotprod")]
    pub(super) unsafe fn int8(rounds: u64) -> u64 {
        let factors = vdupq_n_s8(black_box(1));
        let mut sums = [vdupq_n_s32(0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                // SAFETY: the instruction is there, and it touches registers alone.
                unsafe {
                    asm!("sdot {sum:v}.4s, {x:v}.16b, {x:v}.16b", sum = inout(vreg) *sum, x = in(vreg) factors,
                        options(pure, nomem, nostack, preserves_flags));
                }
            }
        }
        black_box(sums);
        2 * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_right_and_rates_are_rates() {
        let bytes: Vec<u8> = (0..64 * 64).map(|at| (at % 8 == 0) as u8).collect();
        assert_eq!(sum(&bytes), 64 * 8);
        let f32 = operations_per_s(Factors::F32, 1, 0.002).expect("every machine multiplies f32");
        assert!(f32 > 1e7, "{f32}");
        if let Some(int8) = operations_per_s(Factors::Int8, 1, 0.002) {
            assert!(int8 > 1e7, "{int8}");
        }
        let read = read_bytes_per_s(1 << 22, 2, 0.002).expect("memory");
        assert!(read > 1e7, "{read}");
    }
}
