//! Row-wise kernels: embeddings, norms, sums into the residual stream, activations, rows by index, conversions.

use sconce_cuda::ElementType;
use sconce_cuda::ops::activate::{Activated, Active, Gate, Gated, add_bias};
use sconce_cuda::ops::embed::Embedding;
use sconce_cuda::ops::norm::{AddRmsNorm, AddScaled, LayerNorm, rms_norm};
use sconce_cuda::ops::rows::{convert, gather, scale_and_cap};

use crate::typed::{download, rounded, upload};
use crate::{distance, noise, on_each_device};
use ElementType::{Bf16, F16, F32, U32};

const TYPES: [ElementType; 3] = [F32, F16, Bf16];
/// Odd ones, one that fills no quad, one of more accesses than a block keeps in registers (plain: beyond 4 * 1024).
const DIMS: [usize; 6] = [1, 70, 96, 256, 1028, 4500];

/// A type's own rounding, and a little for sums.
fn close(found: &[f32], wanted: &[f32], ty: ElementType, what: &str) {
    let apart = distance(found, wanted);
    let most = match ty {
        F16 => 5e-4,
        Bf16 => 4e-3,
        _ => 2e-6,
    };
    assert!(apart < most, "{what}: {apart}");
}

fn normed(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let rows = x.chunks_exact(weight.len()).flat_map(|x| {
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + eps).sqrt();
        x.iter().zip(weight).map(move |(x, w)| (f64::from(*x) * factor * f64::from(*w)) as f32)
    });
    rows.collect()
}

#[test]
fn norms() {
    on_each_device(|device| {
        for (seed, dim) in DIMS.into_iter().enumerate() {
            let rows = 3;
            let (x, weight) = (noise(seed as u64 + 1, rows * dim), noise(seed as u64 + 50, dim));
            let bias = noise(seed as u64 + 90, dim);
            let (x_there, weight_there) = (device.upload(&x).unwrap(), device.upload(&weight).unwrap());
            let bias_there = device.upload(&bias).unwrap();
            for ty in TYPES {
                let y = device.alloc(rows * dim, ty).unwrap();
                rms_norm(device, x_there.all(), (weight_there.all(), 1e-5), y.all(), rows).unwrap();
                close(&download(&y), &normed(&x, &weight, 1e-5), ty, "rms_norm");
                for bias in [None, Some(&bias)] {
                    let there = bias.map(|_| bias_there.all());
                    let (x, weight) = (x_there.all(), weight_there.all());
                    LayerNorm { x, weight, bias: there, eps: 1e-5, y: y.all(), rows }.on(device).unwrap();
                    let wanted = layer_normed(&download(&x_there), &download(&weight_there), bias.map(|b| &b[..]));
                    // A row of one element has no variance: nothing but its bias is left.
                    if dim > 1 || bias.is_some() {
                        close(&download(&y), &wanted, ty, "layer_norm");
                    }
                }
            }
        }
    });
}

fn layer_normed(x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let dim = weight.len();
    let mut out = Vec::new();
    for x in x.chunks_exact(dim) {
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / dim as f64;
        let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / dim as f64;
        let factor = 1.0 / (variance + 1e-5).sqrt();
        let at = |i: usize| (f64::from(x[i]) - mean) * factor * f64::from(weight[i]);
        out.extend((0..dim).map(|i| (at(i) + bias.map_or(0.0, |bias| f64::from(bias[i]))) as f32));
    }
    out
}

#[test]
fn a_layer_norm_of_numbers_far_from_zero() {
    on_each_device(|device| {
        let dim = 512;
        let x: Vec<f32> = noise(5, dim).iter().map(|x| 4096.0 + x).collect();
        let weight = vec![1.0; dim];
        let (x_there, weight_there) = (device.upload(&x).unwrap(), device.upload(&weight).unwrap());
        let y = device.alloc(dim, F32).unwrap();
        let norm =
            LayerNorm { x: x_there.all(), weight: weight_there.all(), bias: None, eps: 1e-5, y: y.all(), rows: 1 };
        norm.on(device).unwrap();
        let apart = distance(&download(&y), &layer_normed(&x, &weight, None));
        assert!(apart < 1e-3, "{apart}");
    });
}

#[test]
fn sums_into_the_residual_stream() {
    on_each_device(|device| {
        for (seed, dim) in DIMS.into_iter().enumerate() {
            let (rows, seed, scale) = (2, 10 * seed as u64, 0.75_f32);
            let (residual, bias) = (noise(seed + 1, rows * dim), noise(seed + 2, dim));
            let (weight, y) = (noise(seed + 3, dim), noise(seed + 4, rows * dim));
            let (bias_there, weight_there) = (device.upload(&bias).unwrap(), device.upload(&weight).unwrap());
            for (y_type, out_type) in [(F32, F32), (F32, F16), (F32, Bf16), (F16, F16), (Bf16, Bf16)] {
                let y_there = upload(device, y_type, &y);
                for with_bias in [false, true] {
                    let y = rounded(y_type, &y);
                    let biased: Vec<f32> =
                        (y.iter().enumerate()).map(|(i, y)| if with_bias { y + bias[i % dim] } else { *y }).collect();
                    let plus =
                        |more: &[f32]| residual.iter().zip(more).map(|(r, m)| r + scale * m).collect::<Vec<f32>>();
                    let bias = with_bias.then(|| bias_there.all());
                    for with_norm in [false, true] {
                        let residual_there = device.upload(&residual).unwrap();
                        let norm = with_norm.then(|| (weight_there.all(), 1e-6));
                        let (y, residual) = (y_there.all(), residual_there.all());
                        AddScaled { y, bias, norm, scale, residual, rows, dim }.on(device).unwrap();
                        let wanted = if with_norm { plus(&normed(&biased, &weight, 1e-6)) } else { plus(&biased) };
                        close(&download(&residual_there), &wanted, F32, "add_scaled");
                    }
                    let residual_there = device.upload(&residual).unwrap();
                    let out = device.alloc(rows * dim, out_type).unwrap();
                    let sum = AddRmsNorm {
                        y: y_there.all(),
                        bias,
                        scale,
                        residual: residual_there.all(),
                        weight: weight_there.all(),
                        eps: 1e-6,
                        out: out.all(),
                        rows,
                    };
                    sum.on(device).unwrap();
                    close(&download(&residual_there), &plus(&biased), F32, "the residual of add_rms_norm");
                    close(&download(&out), &normed(&plus(&biased), &weight, 1e-6), out_type, "add_rms_norm");
                }
            }
        }
    });
}

#[test]
fn embeddings_and_rows_by_index() {
    on_each_device(|device| {
        for (hidden, ty) in [(1, F32), (70, F16), (64, Bf16), (520, F16), (1100, F32), (24, F16)] {
            let vocab = 9;
            let table = noise(hidden as u64, vocab * hidden);
            let table_there = upload(device, ty, &table);
            let table = rounded(ty, &table);
            let ids = [3, 8, u32::MAX, 0, 9, 3];
            let ids_there = device.upload(&ids).unwrap();
            let rows = |scale: f32| -> Vec<f32> {
                let row = |id: &u32| {
                    let id = *id as usize;
                    if id < vocab { table[id * hidden..(id + 1) * hidden].to_vec() } else { vec![0.0; hidden] }
                };
                ids.iter().flat_map(row).map(|value| value * scale).collect()
            };
            let out = device.alloc(ids.len() * hidden, F32).unwrap();
            let (table, ids) = (table_there.all(), ids_there.all());
            Embedding { table, ids, scale: 1.5, out: out.all(), hidden }.on(device).unwrap();
            assert_eq!(download(&out), rows(1.5), "{hidden} {ty:?}");
            let out = device.alloc(ids.len() * hidden, ty).unwrap();
            gather(device, table, ids, out.all(), hidden).unwrap();
            assert_eq!(download(&out), rows(1.0), "{hidden} {ty:?}");
        }
    });
}

fn active(active: Active, x: f64) -> f64 {
    match active {
        Active::Silu => x / (1.0 + (-x).exp()),
        Active::Relu => x.max(0.0),
        Active::GeluTanh => 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x * x * x)).tanh()),
        Active::Gelu => {
            // The normal distribution up to x, by Simpson's rule from far below.
            let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let (from, steps) = (-12.0, 4000);
            let step = (x - from) / f64::from(steps);
            let inner = |i: i32| density(from + f64::from(i) * step) * if i % 2 == 1 { 4.0 } else { 2.0 };
            let sum = density(from) + density(x) + (1..steps).map(inner).sum::<f64>();
            x * sum * step / 3.0
        }
    }
}

fn gated(gate: Gate, x: f64, up: f64) -> f64 {
    match gate {
        Gate::Silu => active(Active::Silu, x) * up,
        Gate::GeluTanh => active(Active::GeluTanh, x) * up,
        Gate::ClampedSwiglu => {
            let x = x.min(7.0);
            x / (1.0 + (-1.702 * x).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
        }
    }
}

#[test]
fn activations() {
    on_each_device(|device| {
        for (rows, width, ty) in [(3, 5, F32), (2, 64, F32), (1, 136, F16), (5, 33, F16), (2, 1160, Bf16)] {
            let wide = |seed, len| noise(seed, len).iter().map(|x| x * 9.0).collect::<Vec<f32>>();
            let (x, bias) = (wide(1, rows * 2 * width), noise(2, 2 * width));
            let (x_there, bias_there) = (upload(device, ty, &x), device.upload(&bias).unwrap());
            let x = rounded(ty, &x);
            for with_bias in [false, true] {
                let value = |row_width: usize, at: usize| {
                    f64::from(x[at]) + if with_bias { f64::from(bias[at % row_width]) } else { 0.0 }
                };
                for gate in [Gate::Silu, Gate::GeluTanh, Gate::ClampedSwiglu] {
                    let y = device.alloc(rows * width, ty).unwrap();
                    let bias = with_bias.then(|| bias_there.all());
                    Gated { gate, x: x_there.all(), bias, y: y.all(), rows, width }.on(device).unwrap();
                    let at = |i: usize| i / width * 2 * width + i % width;
                    let one = |i: usize| gated(gate, value(2 * width, at(i)), value(2 * width, at(i) + width)) as f32;
                    let wanted: Vec<f32> = (0..rows * width).map(one).collect();
                    close(&download(&y), &wanted, ty, &format!("{gate:?} {width}"));
                }
                for kind in [Active::Gelu, Active::GeluTanh, Active::Relu, Active::Silu] {
                    let y = device.alloc(rows * width, ty).unwrap();
                    let bias = with_bias.then(|| bias_there.all());
                    let (x, y_all) = (x_there.all(), y.all());
                    Activated { active: kind, x, bias, y: y_all, rows, width }.on(device).unwrap();
                    let wanted: Vec<f32> = (0..rows * width).map(|i| active(kind, value(width, i)) as f32).collect();
                    close(&download(&y), &wanted, ty, &format!("{kind:?} {width}"));
                }
            }
            add_bias(device, bias_there.all(), x_there.all(), rows, width).unwrap();
            let wanted: Vec<f32> =
                (0..rows * 2 * width).map(|i| if i < rows * width { x[i] + bias[i % width] } else { x[i] }).collect();
            close(&download(&x_there), &wanted, ty, "add_bias");
        }
    });
}

#[test]
fn conversions_scales_and_caps() {
    on_each_device(|device| {
        for len in [1, 70, 1032] {
            let x = noise(len as u64, len);
            for (from, to) in [(F32, F32), (F32, F16), (F32, Bf16), (F16, F32), (Bf16, F32)] {
                let (x_there, y) = (upload(device, from, &x), device.alloc(len + 4, to).unwrap());
                // What begins in the middle of 16 bytes goes plainly.
                for start in [0, 1] {
                    convert(device, x_there.all(), y.range(start, len), len).unwrap();
                    assert_eq!(download(&y)[start..start + len], rounded(to, &rounded(from, &x)), "{from:?} {to:?}");
                }
            }
            for cap in [None, Some(0.5)] {
                let there = device.upload(&x).unwrap();
                scale_and_cap(device, there.all(), len, 3.0, cap).unwrap();
                let one = |x: &f32| cap.map_or(3.0 * x, |cap: f32| (3.0 * x / cap).tanh() * cap);
                close(&download(&there), &x.iter().map(one).collect::<Vec<f32>>(), F32, "scale_and_cap");
            }
        }
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    on_each_device(|device| {
        let floats = |len| device.alloc(len, F32).unwrap();
        let (x, weight, ids) = (floats(24), floats(8), device.alloc(4, U32).unwrap());
        let errors = [
            rms_norm(device, x.all(), (weight.all(), 0.0), x.all(), 4),
            rms_norm(device, x.all(), (weight.all(), 0.0), ids.all(), 3),
            gather(device, x.all(), ids.all(), x.all(), 8),
            gather(device, x.all(), weight.all(), x.all(), 8),
            gather(device, x.all(), ids.all(), x.all(), 7),
            Embedding { table: x.all(), ids: ids.all(), scale: 1.0, out: x.all(), hidden: 8 }.on(device),
            add_bias(device, weight.all(), x.all(), 3, 9),
            convert(device, x.all(), ids.all(), 4),
            convert(device, x.all(), weight.all(), 9),
            scale_and_cap(device, x.all(), 24, 1.0, Some(0.0)),
        ];
        for (case, error) in errors.into_iter().enumerate() {
            assert!(error.is_err(), "{case}");
        }
    });
}
