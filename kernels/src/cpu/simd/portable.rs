// performance-critical: no allocation per token, no lock, no log, no format
//! Plain arrays of 16 lanes: the compiler vectorises them for the build target (NEON on aarch64, SSE2 on x86-64).

use half::{bf16, f16};

use super::{Dot, LANES, Simd, store_each_folded};

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
    type Folded = [Lanes; 2];

    #[inline(always)]
    unsafe fn fold(a: Lanes, b: Lanes) -> [Lanes; 2] {
        [a, b]
    }
    #[inline(always)]
    unsafe fn store_folded(y: [*mut f32; 2], pairs: [[Lanes; 2]; 4]) {
        // SAFETY: as promised by the caller.
        unsafe { store_each_folded::<Self>(y, pairs) };
    }

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
    unsafe fn store_f16(to: *mut u8, v: Lanes) {
        // SAFETY: the caller promises 16 writable halves.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(v.map(|value| f16::from_f32(value).to_bits())) }
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
    unsafe fn load_u8(from: *const u8) -> Lanes {
        // SAFETY: the caller promises 16 readable bytes.
        unsafe { convert(from, |[byte]| f32::from(byte)) }
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

type Bytes = [u8; 64];

impl Dot for Portable {
    type B = Bytes;
    type I = [i32; LANES];
    const TOKENS: usize = 4;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Bytes {
        // SAFETY: the caller promises 64 readable bytes.
        unsafe { from.cast::<Bytes>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn shl<const BITS: u32>(bytes: Bytes, mask: u8) -> Bytes {
        bytes.map(|byte| (byte << BITS) & mask)
    }
    #[inline(always)]
    unsafe fn shr<const BITS: u32>(bytes: Bytes, mask: u8) -> Bytes {
        bytes.map(|byte| (byte >> BITS) & mask)
    }
    #[inline(always)]
    unsafe fn or(a: Bytes, b: Bytes) -> Bytes {
        std::array::from_fn(|at| a[at] | b[at])
    }
    #[inline(always)]
    unsafe fn or_bits(bytes: Bytes, bits: *const u8, value: u8) -> Bytes {
        // SAFETY: the caller promises 8 readable bytes.
        let bits = u64::from_le_bytes(unsafe { bits.cast::<[u8; 8]>().read_unaligned() });
        std::array::from_fn(|at| bytes[at] | if bits >> at & 1 == 1 { value } else { 0 })
    }
    #[inline(always)]
    unsafe fn lookup(codes: Bytes, table: &[u8; 16]) -> Bytes {
        codes.map(|code| table[(code & 15) as usize])
    }
    #[inline(always)]
    unsafe fn zero() -> [i32; LANES] {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn start(minus_128_sums: *const i32) -> [i32; LANES] {
        // SAFETY: the caller promises a readable value.
        [unsafe { minus_128_sums.read() }; LANES]
    }
    #[inline(always)]
    unsafe fn dot_biased(acc: [i32; LANES], codes: Bytes, x: *const i8) -> [i32; LANES] {
        // SAFETY: as promised by the caller.
        unsafe { Self::dot(acc, codes, x) }
    }
    #[inline(always)]
    unsafe fn dot(acc: [i32; LANES], codes: Bytes, x: *const i8) -> [i32; LANES] {
        // SAFETY: the caller promises 4 readable values.
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        std::array::from_fn(|lane| {
            let products = (0..4).map(|at| i32::from(codes[lane * 4 + at]) * i32::from(x[at]));
            acc[lane] + products.sum::<i32>()
        })
    }
    #[inline(always)]
    unsafe fn floats(ints: [i32; LANES]) -> Lanes {
        ints.map(|int| int as f32)
    }
    #[inline(always)]
    unsafe fn join(a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        std::array::from_fn(|lane| (a[lane] << 8).wrapping_add(b[lane]))
    }
    #[inline(always)]
    unsafe fn bf16_pairs(w: *const u8) -> [Lanes; 2] {
        // SAFETY: the caller promises 16 pairs.
        unsafe {
            let even = convert::<4>(w, |raw| bf16::from_le_bytes([raw[0], raw[1]]).to_f32());
            [even, convert::<4>(w, |raw| bf16::from_le_bytes([raw[2], raw[3]]).to_f32())]
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Lanes, w: *const u8, x: *const u16) -> Lanes {
        // SAFETY: the caller promises 16 pairs of w and one of x.
        unsafe {
            let (x_even, x_odd) =
                (bf16::from_bits(x.read_unaligned()).to_f32(), bf16::from_bits(x.add(1).read_unaligned()).to_f32());
            let w_even = convert::<4>(w, |raw| bf16::from_le_bytes([raw[0], raw[1]]).to_f32());
            let w_odd = convert::<4>(w, |raw| bf16::from_le_bytes([raw[2], raw[3]]).to_f32());
            Self::fma(w_even, [x_even; LANES], Self::fma(w_odd, [x_odd; LANES], acc))
        }
    }
}
