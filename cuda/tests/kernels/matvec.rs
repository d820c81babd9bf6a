//! Dense products of few rows.

use half::{bf16, f16};
use sconce_cuda::ops::gemm::{Gemm, GemmPath};
use sconce_cuda::{Buffer, Device, ElementType};

use crate::{distance, noise, on_each_device};

/// Values in memory of a type, and what is left of them there.
pub fn upload(device: &Device, ty: ElementType, values: &[f32]) -> (Buffer, Vec<f32>) {
    match ty {
        ElementType::F16 => {
            let there: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
            (device.upload(&there).unwrap(), there.iter().map(|value| value.to_f32()).collect())
        }
        ElementType::Bf16 => {
            let there: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
            (device.upload(&there).unwrap(), there.iter().map(|value| value.to_f32()).collect())
        }
        _ => (device.upload(values).unwrap(), values.to_vec()),
    }
}

/// The elements of memory of any floating type.
pub fn download(buffer: &Buffer, ty: ElementType) -> Vec<f32> {
    match ty {
        ElementType::F16 => buffer.to_vec::<f16>().unwrap().iter().map(|value| value.to_f32()).collect(),
        ElementType::Bf16 => buffer.to_vec::<bf16>().unwrap().iter().map(|value| value.to_f32()).collect(),
        _ => buffer.to_vec().unwrap(),
    }
}

/// What the rounding of an output type allows.
pub fn tolerance(ty: ElementType) -> f64 {
    match ty {
        ElementType::F16 => 4e-4,
        ElementType::Bf16 => 3e-3,
        _ => 2e-6,
    }
}

struct Case {
    ty: ElementType,
    out: ElementType,
    m: usize,
    n: usize,
    k: usize,
    add: bool,
}

fn check(device: &Device, seed: u64, case: &Case) {
    let Case { ty, out, m, n, k, add } = *case;
    let (x_there, x) = upload(device, ty, &noise(seed, m * k));
    let (w_there, w) = upload(device, ty, &noise(seed + 1, n * k));
    // One more than needed: it must stay as it is.
    let (y_there, before) = upload(device, out, &noise(seed + 2, m * n + 1));
    let y_there = if add { y_there } else { device.alloc(m * n, out).unwrap() };
    Gemm { x: x_there.all(), w: w_there.all(), y: y_there.all(), m, n, k, add }.by(GemmPath::Own, device).unwrap();
    let mut wanted = Vec::with_capacity(m * n);
    for row in 0..m {
        for column in 0..n {
            let (x, w) = (&x[row * k..][..k], &w[column * k..][..k]);
            let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            wanted.push((sum + if add { f64::from(before[row * n + column]) } else { 0.0 }) as f32);
        }
    }
    let found = download(&y_there, out);
    let apart = distance(&found[..m * n], &wanted);
    assert!(apart < tolerance(out), "{ty:?} to {out:?}, [{m}, {n}] over {k}, add {add}: {apart}");
    if add {
        assert_eq!(found[m * n], before[m * n], "behind y");
    }
}

#[test]
fn few_rows_by_own_kernels() {
    use ElementType::{Bf16, F16, F32};
    on_each_device(|device| {
        let mut seed = 1;
        for (ty, out) in [(F32, F32), (F16, F16), (F16, F32), (Bf16, Bf16), (Bf16, F32)] {
            // Whole parts, parts that end within a step, more parts than warps, and what no 16 bytes divide.
            for (m, n, k) in
                [(1, 16, 128), (2, 5, 8), (7, 33, 296), (8, 31, 1200), (3, 6, 35), (9, 17, 136), (16, 40, 264)]
            {
                for add in [false, true] {
                    check(device, seed, &Case { ty, out, m, n, k, add });
                    seed += 3;
                }
            }
        }
    });
}

#[test]
fn a_row_does_not_depend_on_its_mates() {
    on_each_device(|device| {
        let (n, k) = (24, 320);
        let (x, _) = upload(device, ElementType::Bf16, &noise(7, 8 * k));
        let (w, _) = upload(device, ElementType::Bf16, &noise(8, n * k));
        let rows = |first: usize, m: usize| {
            let y = device.alloc(m * n, ElementType::F32).unwrap();
            let gemm = Gemm { x: x.range(first * k, m * k), w: w.all(), y: y.all(), m, n, k, add: false };
            gemm.by(GemmPath::Own, device).unwrap();
            y.to_vec::<f32>().unwrap()
        };
        let together = rows(0, 8);
        for row in 0..8 {
            assert_eq!(rows(row, 1), together[row * n..(row + 1) * n], "row {row}");
        }
    });
}

#[test]
fn too_many_rows_are_refused() {
    on_each_device(|device| {
        let memory = device.zeros(17 * 8, ElementType::F16).unwrap();
        let gemm = Gemm { x: memory.all(), w: memory.all(), y: memory.all(), m: 17, n: 1, k: 8, add: false };
        assert!(gemm.by(GemmPath::Own, device).unwrap_err().to_string().contains("at most 16"));
    });
}
