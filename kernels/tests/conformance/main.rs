//! Every operation on every back end against the reference, with odd shapes, and exact equality where the result of
//! a row must not depend on its company.
//!
//! A new back end is one more entry in [`devices`].

mod attention;
mod cache_writes;
mod delta;
mod dense;
mod e4m3;
mod encode;
mod filed;
mod formats;
mod low_rank;
mod rows;
mod vectors;

use candle_core::{Device, Tensor};

/// The back ends that this build can run here.
fn devices() -> Vec<Device> {
    vec![Device::Cpu]
}

/// Reproducible values around zero (xorshift64*), never all alike.
struct Values(u64);

impl Values {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In -1..1.
    fn next(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.bits() >> 33) as usize % bound
    }

    fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

fn tensor(values: &[f32], dims: &[usize], device: &Device) -> Tensor {
    Tensor::from_slice(values, dims, device).expect("values fit the shape")
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("an f32 tensor")
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        // Written so that NaN fails.
        assert!((got - want).abs() <= tolerance * (1.0 + want.abs()), "{what}: [{index}] is {got}, not {want}");
    }
}

fn assert_same_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{what}: [{index}] is {got}, not {want}");
    }
}

fn assert_error<T: std::fmt::Debug>(result: sconce_kernels::Result<T>, part: &str) {
    let message = result.expect_err("must be refused").to_string();
    assert!(message.contains(part) && !message.contains('\n'), "{message:?} must name {part:?} in one line");
}
