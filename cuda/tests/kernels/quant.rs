//! Quantised weights: packing, plain elements, embeddings and products, against the CPU's definitions.

use std::sync::Arc;

use half::{bf16, f16};
use sconce_cuda::ops::quant::{QuantGemm, QuantType, QuantWeight, QuantisedRows, dequantise, embedding};
use sconce_cuda::{Device, ElementType};
use sconce_kernels::{GgmlType, Weight};

use crate::matvec::{download, tolerance, upload};
use crate::{distance, noise, on_each_device};

const TYPES: [(QuantType, GgmlType); 13] = [
    (QuantType::Q4_0, GgmlType::Q4_0),
    (QuantType::Q4_1, GgmlType::Q4_1),
    (QuantType::Q5_0, GgmlType::Q5_0),
    (QuantType::Q5_1, GgmlType::Q5_1),
    (QuantType::Q8_0, GgmlType::Q8_0),
    (QuantType::Q2K, GgmlType::Q2K),
    (QuantType::Q3K, GgmlType::Q3K),
    (QuantType::Q4K, GgmlType::Q4K),
    (QuantType::Q5K, GgmlType::Q5K),
    (QuantType::Q6K, GgmlType::Q6K),
    (QuantType::Iq4Nl, GgmlType::Iq4Nl),
    (QuantType::Iq4Xs, GgmlType::Iq4Xs),
    (QuantType::Mxfp4, GgmlType::Mxfp4),
];

/// Where a block has its f16 factors.
fn factors(ty: QuantType) -> &'static [usize] {
    use QuantType::*;
    match ty {
        Q4_0 | Q5_0 | Q8_0 | Iq4Nl | Iq4Xs => &[0],
        Q4_1 | Q5_1 | Q4K | Q5K => &[0, 2],
        Q2K => &[80, 82],
        Q3K => &[108],
        Q6K => &[208],
        Mxfp4 => &[],
    }
}

/// Blocks of `[n, k]` with any bits, and factors of an ordinary size.
pub fn blocks(ty: QuantType, seed: u64, n: usize, k: usize) -> Vec<u8> {
    let count = n * k / ty.block_elements();
    let noise = noise(seed, count * (ty.block_bytes() + 2));
    let mut bytes: Vec<u8> = noise.iter().map(|value| ((value + 1.0) * 127.9) as u8).collect();
    bytes.truncate(count * ty.block_bytes());
    for (block, value) in bytes.chunks_exact_mut(ty.block_bytes()).zip(&noise) {
        for at in factors(ty) {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(value * 0.05).to_le_bytes());
        }
        if ty == QuantType::Mxfp4 {
            block[0] = 120 + block[0] % 6;
        }
    }
    bytes
}

/// The CPU's plain elements.
pub fn plain(ty: QuantType, bytes: &[u8], n: usize, k: usize) -> Vec<f32> {
    let ggml = TYPES.iter().find(|(own, _)| *own == ty).unwrap().1;
    let weight = Weight::new(ggml, n, k, Arc::new(bytes.to_vec()), 0).unwrap();
    let mut values = vec![0.0; n * k];
    values.chunks_exact_mut(k).enumerate().for_each(|(row, values)| weight.row_f32(row, values));
    values
}

/// Rows as the kernels see them in 8 bits.
pub fn rounded(x: &[f32]) -> Vec<f32> {
    let mut out = x.to_vec();
    for block in out.chunks_exact_mut(32) {
        let largest = block.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let factor = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        block.iter_mut().for_each(|x| *x = (*x * factor).round_ties_even() * (largest / 127.0));
    }
    out
}

pub fn product(x: &[f32], w: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    let mut y = Vec::with_capacity(m * n);
    for row in 0..m {
        for column in 0..n {
            let (x, w) = (&x[row * k..][..k], &w[column * k..][..k]);
            y.push(x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32);
        }
    }
    y
}

#[test]
fn types_are_those_of_the_cpu() {
    for (own, ggml) in TYPES {
        assert_eq!(QuantType::from_ggml(ggml.id()), Some(own));
        assert_eq!((own.block_elements(), own.block_bytes()), (ggml.block_elements(), ggml.block_bytes()));
        assert_eq!(own.name(), ggml.name().to_lowercase());
    }
    assert_eq!(QuantType::from_ggml(0), None);
}

/// Sizes that fill no unit where the type allows it.
fn sizes(ty: QuantType) -> [(usize, usize); 2] {
    if ty.block_elements() == 32 { [(16, 128), (37, 288)] } else { [(16, 256), (21, 768)] }
}

#[test]
fn plain_elements_are_the_cpus_bit_for_bit() {
    on_each_device(|device| {
        for (ty, _) in TYPES {
            for (n, k) in sizes(ty) {
                // Any bits for exponents, too: among them are the two that are no normal numbers.
                let mut bytes = blocks(ty, n as u64, n, k);
                if ty == QuantType::Mxfp4 {
                    bytes.chunks_exact_mut(17).zip([0, 1, 2, 3, 254]).for_each(|(block, power)| block[0] = power);
                }
                let wanted = plain(ty, &bytes, n, k);
                let weight = QuantWeight::upload(device, ty, &bytes, n, k).unwrap();
                let out = device.alloc(n * k, ElementType::F32).unwrap();
                dequantise(device, &weight, out.all()).unwrap();
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&out.to_vec().unwrap()), bits(&wanted), "{ty:?} [{n}, {k}]");
                let out = device.alloc(n * k, ElementType::F16).unwrap();
                dequantise(device, &weight, out.all()).unwrap();
                let halves: Vec<f16> = wanted.iter().map(|value| f16::from_f32(*value)).collect();
                assert_eq!(out.to_vec::<f16>().unwrap(), halves, "{ty:?} [{n}, {k}] to f16");
                let out = device.alloc(n * k, ElementType::Bf16).unwrap();
                dequantise(device, &weight, out.all()).unwrap();
                let halves: Vec<bf16> = wanted.iter().map(|value| bf16::from_f32(*value)).collect();
                assert_eq!(out.to_vec::<bf16>().unwrap(), halves, "{ty:?} [{n}, {k}] to bf16");
            }
        }
    });
}

#[test]
fn rows_of_a_table() {
    on_each_device(|device| {
        for (ty, _) in TYPES {
            let (n, k) = sizes(ty)[1];
            let bytes = blocks(ty, 5, n, k);
            let weight = QuantWeight::upload(device, ty, &bytes, n, k).unwrap();
            let table = plain(ty, &bytes, n, k);
            let ids = [0, n as u32 - 1, 9, u32::MAX, n as u32, 17, 9];
            let ids_there = device.upload(&ids).unwrap();
            let out = device.alloc(ids.len() * k, ElementType::F32).unwrap();
            embedding(device, &weight, (ids_there.all(), 1.5), out.all(), ids.len()).unwrap();
            let mut wanted = Vec::new();
            for id in ids {
                let row = table.get(id as usize * k..(id as usize + 1) * k);
                wanted.extend(row.map_or(vec![0.0; k], |row| row.iter().map(|value| value * 1.5).collect()));
            }
            assert_eq!(out.to_vec::<f32>().unwrap(), wanted, "{ty:?}");
        }
    });
}

struct Case {
    ty: QuantType,
    x: ElementType,
    out: ElementType,
    m: usize,
    n: usize,
    k: usize,
    add: bool,
}

fn check(device: &Device, seed: u64, case: &Case) {
    let Case { ty, x, out, m, n, k, add } = *case;
    let bytes = blocks(ty, seed, n, k);
    let weight = QuantWeight::upload(device, ty, &bytes, n, k).unwrap();
    let (x_there, values) = upload(device, x, &noise(seed + 1, m * k));
    let (y_there, before) = upload(device, out, &noise(seed + 2, m * n + 1));
    let y_there = if add { y_there } else { device.alloc(m * n, out).unwrap() };
    let workspace = device.alloc(weight.workspace_bytes(m, x), ElementType::U8).unwrap();
    let gemm = QuantGemm { x: x_there.all(), w: &weight, y: y_there.all(), m, add };
    gemm.on(device, workspace.all()).unwrap();
    let table = plain(ty, &bytes, n, k);
    let mut wanted = product(&rounded(&values), &table, (m, n, k));
    let mut ideal = product(&values, &table, (m, n, k));
    if add {
        wanted.iter_mut().zip(&before).for_each(|(wanted, before)| *wanted += before);
        ideal.iter_mut().zip(&before).for_each(|(ideal, before)| *ideal += before);
    }
    let found = download(&y_there, out);
    let apart = distance(&found[..m * n], &wanted);
    assert!(apart < tolerance(out).max(5e-6), "{ty:?} {x:?} to {out:?}, [{m}, {n}] over {k}, add {add}: {apart}");
    let apart = distance(&found[..m * n], &ideal);
    assert!(apart < 0.02, "{ty:?} {x:?} to {out:?}, [{m}, {n}] over {k}, add {add}: {apart} from the ideal");
    if add {
        assert_eq!(found[m * n], before[m * n], "behind y");
    }
}

#[test]
fn products_with_every_type() {
    use ElementType::{Bf16, F16, F32};
    on_each_device(|device| {
        for (index, (ty, _)) in TYPES.into_iter().enumerate() {
            let seed = 100 * index as u64;
            let (n, k) = sizes(ty)[1];
            // More units than warps, once a type.
            let long = if ty.block_elements() == 32 { 1184 } else { 2304 };
            check(device, seed, &Case { ty, x: F32, out: F32, m: 1, n: 5, k: long, add: false });
            check(device, seed + 3, &Case { ty, x: Bf16, out: Bf16, m: 7, n, k, add: true });
            check(device, seed + 6, &Case { ty, x: F16, out: F16, m: 11, n, k, add: false });
            check(device, seed + 9, &Case { ty, x: Bf16, out: F32, m: 19, n, k, add: true });
            check(device, seed + 12, &Case { ty, x: F16, out: F32, m: 67, n: 18, k: sizes(ty)[0].1, add: false });
        }
    });
}

#[test]
fn many_rows_by_plain_elements() {
    on_each_device(|device| {
        let (ty, m, n, k) = (QuantType::Q6K, 200, 6, 256);
        let bytes = blocks(ty, 3, n, k);
        let weight = QuantWeight::upload(device, ty, &bytes, n, k).unwrap();
        let (x_there, values) = upload(device, ElementType::Bf16, &noise(4, m * k));
        let y = device.alloc(m * n, ElementType::F32).unwrap();
        let workspace = device.alloc(weight.workspace_bytes(m, ElementType::Bf16), ElementType::U8).unwrap();
        let gemm = QuantGemm { x: x_there.all(), w: &weight, y: y.all(), m, add: false };
        gemm.on(device, workspace.all()).unwrap();
        let wanted = product(&values, &plain(ty, &bytes, n, k), (m, n, k));
        let apart = distance(&y.to_vec().unwrap(), &wanted);
        // Beyond what 8 bits of x would leave, below what bf16 weights do.
        assert!(apart < 4e-3, "{apart}");
    });
}

#[test]
fn products_share_quantised_rows_and_mates_do_not_matter() {
    on_each_device(|device| {
        let (n, k) = (33, 512);
        let (x, _) = upload(device, ElementType::F16, &noise(1, 40 * k));
        let weight = QuantWeight::upload(device, QuantType::Q4K, &blocks(QuantType::Q4K, 2, n, k), n, k).unwrap();
        let rows = |first: usize, m: usize| {
            let y = device.alloc(m * n, ElementType::F32).unwrap();
            let room = device.alloc(QuantisedRows::bytes(m, k), ElementType::U8).unwrap();
            let x = x.range(first * k, m * k);
            let rows = QuantisedRows::new(device, x, (m, k), room.all()).unwrap();
            QuantGemm { x, w: &weight, y: y.all(), m, add: false }.on_rows(device, &rows).unwrap();
            y.to_vec::<f32>().unwrap()
        };
        let all = rows(0, 40);
        for (first, m) in [(0, 1), (3, 8), (5, 12), (1, 30), (39, 1)] {
            assert_eq!(rows(first, m), all[first * n..(first + m) * n], "{m} rows from {first}");
        }
    });
}

#[test]
fn products_that_share_their_input_have_one_output() {
    on_each_device(|device| {
        for m in [1, 3, 35] {
            let (parts, k) = ([(QuantType::Q4K, 20), (QuantType::Q6K, 9), (QuantType::Q8_0, 16)], 512);
            let all = 45;
            let (x_there, x) = upload(device, ElementType::Bf16, &noise(1, m * k));
            let room = device.alloc(QuantisedRows::bytes(m, k), ElementType::U8).unwrap();
            let rows = QuantisedRows::new(device, x_there.all(), (m, k), room.all()).unwrap();
            let (y, before) = upload(device, ElementType::F32, &noise(2, m * all));
            let (mut first, mut wanted) = (0, before);
            for (ty, n) in parts {
                let bytes = blocks(ty, 3, n, k);
                let weight = QuantWeight::upload(device, ty, &bytes, n, k).unwrap();
                let gemm = QuantGemm { x: x_there.all(), w: &weight, y: y.all(), m, add: true };
                gemm.into_columns(device, &rows, (first, all)).unwrap();
                assert!(gemm.into_columns(device, &rows, (all - n + 1, all)).is_err());
                for (at, sum) in product(&rounded(&x), &plain(ty, &bytes, n, k), (m, n, k)).iter().enumerate() {
                    wanted[at / n * all + first + at % n] += sum;
                }
                first += n;
            }
            let apart = distance(&y.to_vec().unwrap(), &wanted);
            assert!(apart < 5e-6, "{m} rows: {apart}");
        }
    });
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    on_each_device(|device| {
        let error = QuantWeight::upload(device, QuantType::Q4K, &[0; 144], 1, 128).map(drop).unwrap_err();
        assert!(error.to_string().contains("256 elements"), "{error}");
        let error = QuantWeight::upload(device, QuantType::Q8_0, &[0; 33], 1, 32).map(drop).unwrap_err();
        assert!(error.to_string().contains("33 bytes"), "{error}");
        let weight = QuantWeight::upload(device, QuantType::Q8_0, &[0; 34], 1, 32).unwrap();
        let memory = device.zeros(64, ElementType::F32).unwrap();
        let room = device.zeros(16, ElementType::U8).unwrap();
        let gemm = QuantGemm { x: memory.all(), w: &weight, y: memory.all(), m: 2, add: false };
        assert!(gemm.on(device, room.all()).unwrap_err().to_string().contains("room has 16"));
    });
}
