//! Every kernel against plain loops: on the stand-in (feature `host`), and on a GPU where there is one (feature `driver`).
//! With `SCONCE_TEST_CUDA=require` a missing GPU fails; without a GPU its half is skipped and says so.

mod attention;
mod attention_latent;
mod columns;
mod comm;
mod convolution;
mod delta;
mod device;
mod experts;
mod follow;
mod fp8;
mod latent;
mod matvec;
mod own_input;
mod quant;
mod rope;
mod rows;
mod sample;
mod speed;
mod typed;

use sconce_cuda::Device;

/// Runs a check on every device of this build and machine; at least one.
pub fn on_each_device(check: impl Fn(&Device)) {
    let mut devices = Vec::new();
    #[cfg(feature = "host")]
    devices.extend([Device::host()]);
    #[cfg(feature = "driver")]
    match Device::open(0) {
        Ok(device) => devices.push(device),
        Err(error) => {
            assert!(std::env::var("SCONCE_TEST_CUDA").as_deref() != Ok("require"), "no GPU: {error}");
            eprintln!("skipped on a GPU: {error}");
        }
    }
    devices.iter().for_each(check);
}

/// Numbers in -1..1 that look random and are the same in every run.
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // xorshift64 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// `|found - wanted| / |wanted|` over all elements; NaN is infinitely far.
pub fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let apart = square(&mut found.iter().zip(wanted).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = square(&mut wanted.iter().map(|value| f64::from(*value)));
    let distance = (apart / size.max(f64::MIN_POSITIVE)).sqrt();
    if distance.is_nan() { f64::INFINITY } else { distance }
}
