//! What a device can do at best, measured: how fast it reads its memory, and multiplies.

use std::time::Instant;

use super::gemm::{Gemm, GemmPath};
use crate::device::Device;
use crate::element::ElementType;
use crate::error::Result;
use crate::launch::Launch;

/// Far larger than the cache of any GPU.
const READ_BYTES: usize = 2 << 30;
const READS: u32 = 20;
/// A product of squares: large enough for the best rate.
const PRODUCT: usize = 8192;
const PRODUCTS: u32 = 10;
const ROUNDS: usize = 3;

/// The best of some rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    pub read_bytes_per_s: f64,
    /// Multiply-adds count as two. By the library, on numbers that look random.
    pub f32_per_s: f64,
    pub bf16_per_s: f64,
}

/// Takes a second or two, and 2 GiB of memory or what there is of it.
pub fn measure(device: &Device) -> Result<Rates> {
    let bytes = READ_BYTES.min(device.memory_free()? as usize / 2) / 16 * 16;
    let memory = device.zeros(bytes, ElementType::U8)?;
    let never = device.zeros(1, ElementType::U32)?;
    let blocks = 8 * device.info().multiprocessors as usize;
    let read = || {
        let launch = Launch::new("rates_read").grid(blocks, 1, 1).block(256, 1);
        launch.slice(memory.all()).long(bytes / 16).slice(never.all()).on(device)
    };
    let read_s = best_s(device, READS, &read)?;
    drop(memory);
    let of = |ty| -> Result<f64> {
        let x = noise(device, ty)?;
        let w = noise(device, ty)?;
        let y = device.alloc(PRODUCT * PRODUCT, ty)?;
        let (m, n, k) = (PRODUCT, PRODUCT, PRODUCT);
        let gemm = Gemm { x: x.all(), w: w.all(), y: y.all(), m, n, k, add: false };
        let product_s = best_s(device, PRODUCTS, &|| gemm.by(GemmPath::Library, device))?;
        Ok(2.0 * (PRODUCT as f64).powi(3) / product_s)
    };
    let (f32_per_s, bf16_per_s) = (of(ElementType::F32)?, of(ElementType::Bf16)?);
    Ok(Rates { read_bytes_per_s: bytes as f64 / read_s, f32_per_s, bf16_per_s })
}

/// Seconds of one `issue` out of `times`, in the best round behind one to warm up.
fn best_s(device: &Device, times: u32, issue: &dyn Fn() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for round in 0..=ROUNDS {
        device.synchronize()?;
        let started = Instant::now();
        for _ in 0..times {
            issue()?;
        }
        device.synchronize()?;
        if round > 0 {
            best = best.min(started.elapsed().as_secs_f64() / f64::from(times));
        }
    }
    Ok(best)
}

/// Zeros would be multiplied faster than real numbers are.
fn noise(device: &Device, ty: ElementType) -> Result<crate::Buffer> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let row: Vec<f32> = (0..PRODUCT).map(|_| next()).collect();
    let buffer = device.alloc(PRODUCT * PRODUCT, ty)?;
    for at in 0..PRODUCT {
        let turned = row[at..].iter().chain(&row[..at]);
        match ty {
            ElementType::F32 => buffer.write(at * PRODUCT, &turned.copied().collect::<Vec<f32>>())?,
            _ => {
                let halves: Vec<half::bf16> = turned.map(|value| half::bf16::from_f32(*value)).collect();
                buffer.write(at * PRODUCT, &halves)?;
            }
        }
    }
    Ok(buffer)
}
