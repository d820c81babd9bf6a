//! Weights in FP8: plain elements and products, with scales a row, a block and a tensor.

use half::{bf16, f16};
use sconce_cuda::ops::fp8::{Fp8Gemm, Fp8Weight};
use sconce_cuda::{Device, ElementType};

use crate::matvec::{download, tolerance, upload};
use crate::quant::product;
use crate::{distance, noise, on_each_device};

/// E4M3 by its definition (arXiv 2209.05433).
fn value(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match exponent {
        0 => fraction / 512.0,
        _ => (1.0 + fraction / 8.0) * 2.0_f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// Bytes of `[n, k]` but those for NaN, their scales, and the plain elements.
pub fn weight(seed: u64, (n, k): (usize, usize), block: (usize, usize)) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
    let random = noise(seed, n * k).into_iter().map(|value| ((value + 1.0) * 127.9) as u8);
    let bytes: Vec<u8> = random.map(|byte| if byte & 0x7f == 0x7f { byte - 1 } else { byte }).collect();
    let columns = k.div_ceil(block.1);
    let scales: Vec<f32> = noise(seed + 1, n.div_ceil(block.0) * columns).iter().map(|value| value / 64.0).collect();
    let plain = (0..n * k).map(|at| value(bytes[at]) * scales[at / k / block.0 * columns + at % k / block.1]).collect();
    (bytes, scales, plain)
}

#[test]
fn every_byte_as_a_plain_element() {
    on_each_device(|device| {
        let bytes: Vec<u8> = (0..=255).filter(|byte| byte & 0x7f != 0x7f).chain([0, 1]).collect();
        for scale in [1.0, -0.3] {
            let weight = Fp8Weight::upload(device, &bytes, &[scale], (16, 16), (16, 16)).unwrap();
            let wanted: Vec<f32> = bytes.iter().map(|byte| value(*byte) * scale).collect();
            let out = device.alloc(256, ElementType::F32).unwrap();
            weight.dequantise(device, out.all()).unwrap();
            assert_eq!(out.to_vec::<f32>().unwrap(), wanted);
            let out = device.alloc(256, ElementType::Bf16).unwrap();
            weight.dequantise(device, out.all()).unwrap();
            let halves: Vec<bf16> = wanted.iter().map(|value| bf16::from_f32(*value)).collect();
            assert_eq!(out.to_vec::<bf16>().unwrap(), halves);
            let out = device.alloc(256, ElementType::F16).unwrap();
            weight.dequantise(device, out.all()).unwrap();
            let halves: Vec<f16> = wanted.iter().map(|value| f16::from_f32(*value)).collect();
            assert_eq!(out.to_vec::<f16>().unwrap(), halves);
        }
    });
}

struct Case {
    ty: ElementType,
    out: ElementType,
    m: usize,
    size: (usize, usize),
    block: (usize, usize),
    add: bool,
}

fn check(device: &Device, seed: u64, case: &Case) {
    let Case { ty, out, m, size: (n, k), block, add } = *case;
    let (bytes, scales, plain) = weight(seed, (n, k), block);
    let weight = Fp8Weight::upload(device, &bytes, &scales, (n, k), block).unwrap();
    let (x_there, x) = upload(device, ty, &noise(seed + 2, m * k));
    let (y_there, before) = upload(device, out, &noise(seed + 3, m * n + 1));
    let y_there = if add { y_there } else { device.alloc(m * n, out).unwrap() };
    let workspace = device.alloc(weight.workspace_bytes(m, ty), ElementType::U8).unwrap();
    Fp8Gemm { x: x_there.all(), w: &weight, y: y_there.all(), m, add }.on(device, workspace.all()).unwrap();
    let mut wanted = product(&x, &plain, (m, n, k));
    if add {
        wanted.iter_mut().zip(&before).for_each(|(wanted, before)| *wanted += before);
    }
    let found = download(&y_there, out);
    let apart = distance(&found[..m * n], &wanted);
    // Plain elements of 16 bits round the weights; the kernels of few rows do not.
    let allowed = if m > 64 || (block.1 < 128 && block.1 < k) { 4e-3 } else { tolerance(out) };
    assert!(apart < allowed, "{ty:?} to {out:?}, {m} rows, [{n}, {k}] in blocks of {block:?}, add {add}: {apart}");
    if add {
        assert_eq!(found[m * n], before[m * n], "behind y");
    }
}

#[test]
fn products_with_fp8_weights() {
    use ElementType::{Bf16, F16, F32};
    on_each_device(|device| {
        let mut seed = 1;
        for (ty, out) in [(F16, F16), (Bf16, F32), (Bf16, Bf16), (F32, F32)] {
            // Parts that end within a step, more parts than warps, blocks that rows and columns end within.
            for (m, size, block) in [
                (1, (16, 128), (1, 128)),
                (3, (37, 272), (1, 272)),
                (8, (20, 1168), (20, 1168)),
                (11, (33, 400), (16, 128)),
                (21, (150, 288), (128, 128)),
                (67, (17, 160), (1, 256)),
                // Through plain elements whatever the rows.
                (2, (40, 96), (16, 32)),
            ] {
                check(device, seed, &Case { ty, out, m, size, block, add: seed % 2 == 0 });
                seed += 5;
            }
        }
    });
}

#[test]
fn blocks_that_kernels_do_not_read_are_refused() {
    on_each_device(|device| {
        for (size, block, scales) in [((1, 24), (1, 24), 1), ((2, 256), (1, 6), 86), ((2, 256), (1, 256), 1)] {
            let (n, k) = size;
            let uploaded = Fp8Weight::upload(device, &vec![0; n * k], &vec![1.0; scales], size, block);
            assert!(uploaded.is_err(), "{size:?} {block:?}");
        }
    });
}
