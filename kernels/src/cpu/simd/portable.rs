// performance-critical: no allocation per token, no lock, no log, no format
//! Plain arrays of 16 lanes: the compiler vectorises them for the build target (NEON on aarch64, SSE2 on x86-64).

use half::{bf16, f16};

use super::{LANES, Simd};

#[derive(Clone, Copy)]
pub(super) struct Portable;

type Lanes = [f32; LANES];

#[inline(always)]
fn zip(a: Lanes, b: Lanes, op: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|lane| op(a[lane], b[lane]))
}

/// # Safety
/// `from` must be readable for 16 values of `BYTES` bytes.
#[inline(always)]
unsafe fn convert<const BYTES: usize>(from: *const u8, op: impl Fn([u8; BYTES]) -> f32) -> Lanes {
    // SAFETY: the caller promises the bytes; byte arrays have no alignment.
    let raw = unsafe { &*from.cast::<[[u8; BYTES]; LANES]>() };
    std::array::from_fn(|lane| op(raw[lane]))
}

impl Simd for Portable {
    type V = Lanes;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Lanes {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Lanes {
        // SAFETY: the caller promises 16 readable values.
        unsafe { from.cast::<Lanes>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Lanes) {
        // SAFETY: the caller promises 16 writable values.
        unsafe { to.cast::<Lanes>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        // Without the instruction, `mul_add` is a slow library call; two roundings are as valid an order.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
        } else {
            std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
        }
    }
    #[inline(always)]
    unsafe fn max(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sum(v: Lanes) -> f32 {
        let v: [f32; 8] = std::array::from_fn(|lane| v[lane] + v[lane + 8]);
        let v: [f32; 4] = std::array::from_fn(|lane| v[lane] + v[lane + 4]);
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    unsafe fn scale_by_power(v: Lanes, n: Lanes) -> Lanes {
        // 2^n is an f32 with n in its exponent field.
        zip(v, n, |v, n| v * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Lanes {
        // SAFETY: the caller promises 16 readable halves.
        unsafe { convert(from, |raw| f16::from_le_bytes(raw).to_f32()) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Lanes {
        // SAFETY: the caller promises 16 readable halves.
        unsafe { convert(from, |raw| bf16::from_le_bytes(raw).to_f32()) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Lanes {
        // SAFETY: the caller promises 16 readable bytes.
        unsafe { convert(from, |raw| i8::from_le_bytes(raw) as f32) }
    }
    #[inline(always)]
    unsafe fn lookup_nibbles(from: *const u8, table: Lanes) -> [Lanes; 2] {
        // SAFETY: the caller promises 16 readable bytes.
        unsafe {
            let low = convert(from, |[byte]| table[(byte & 15) as usize]);
            [low, convert(from, |[byte]| table[(byte >> 4) as usize])]
        }
    }
}
