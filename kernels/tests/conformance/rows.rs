//! Norms, rotary embedding, gated activations, and choosing from logits.

use candle_core::{DType, Device, Tensor};
use sconce_kernels::cpu::{self, Isa, rows::Gate};
use sconce_kernels::{
    RopeStyle, RopeTable, add_rms_norm, argmax, gelu_tanh_mul, reference, rms_norm, rope, silu_mul, top_k,
};

use super::{Values, assert_close, assert_error, assert_same_bits, devices, flat, tensor};

const WIDTHS: [usize; 12] = [1, 2, 15, 16, 17, 31, 33, 48, 64, 80, 576, 1000];

#[test]
fn norms_agree_with_the_reference() {
    for device in devices() {
        for dim in WIDTHS {
            for rows in [1, 3, 70] {
                let mut values = Values::new(dim as u64);
                let (x, residual, weight) = (values.many(rows * dim), values.many(rows * dim), values.many(dim));
                let sum: Vec<f32> = x.iter().zip(&residual).map(|(a, b)| a + b).collect();
                let [x, residual] = [&x, &residual].map(|values| tensor(values, &[rows, dim], &device));
                let weight_tensor = tensor(&weight, &[dim], &device);
                let what = format!("{rows} x {dim}");
                let normed = rms_norm(&x, &weight_tensor, 1e-5).expect("sizes fit");
                assert_close(&flat(&normed), &reference::rms_norm(&flat(&x), &weight, 1e-5), 3e-6, &what);
                let (normed, added) = add_rms_norm(&x, &residual, &weight_tensor, 1e-5).expect("sizes fit");
                assert_same_bits(&flat(&added), &sum, &what);
                assert_close(&flat(&normed), &reference::rms_norm(&sum, &weight, 1e-5), 3e-6, &what);
            }
        }
    }
}

#[test]
fn a_row_of_zeros_norms_to_zero_and_nan_stays_in_its_row() {
    for isa in Isa::available() {
        let mut x = vec![0.0; 3 * 20];
        x[25] = f32::NAN;
        let (normed, _) = cpu::rows::rms_norm(isa, &x, None, &[2.0; 20], 1e-6);
        assert_same_bits(&normed[..20], &[0.0; 20], "zeros");
        assert!(normed[20..40].iter().all(|value| value.is_nan()) && normed[40..].iter().all(|value| *value == 0.0));
    }
}

#[test]
fn every_instruction_set_agrees_on_rows() {
    for isa in Isa::available() {
        for dim in WIDTHS {
            let mut values = Values::new(dim as u64 + 50);
            let (x, weight) = (values.many(5 * dim), values.many(dim));
            let (normed, _) = cpu::rows::rms_norm(isa, &x, None, &weight, 1e-6);
            assert_close(&normed, &reference::rms_norm(&x, &weight, 1e-6), 3e-6, &format!("{isa:?} norm {dim}"));
            for row in 0..5 {
                let alone = &x[row * dim..(row + 1) * dim];
                let (alone, _) = cpu::rows::rms_norm(isa, alone, None, &weight, 1e-6);
                assert_same_bits(&alone, &normed[row * dim..(row + 1) * dim], "a row alone");
            }
            let gate: Vec<f32> = (0..5 * dim).map(|_| values.next() * 20.0).collect();
            let up = values.many(5 * dim);
            let wide: Vec<f32> = up.iter().map(|value| value * 10.0).collect();
            let silu = cpu::rows::gated(isa, Gate::Silu, &gate, &up);
            assert_close(&silu, &reference::silu_mul(&gate, &up), 2e-6, &format!("{isa:?} silu {dim}"));
            let clamped = cpu::rows::gated(isa, Gate::ClampedSwiglu, &gate, &wide);
            assert_close(&clamped, &reference::clamped_swiglu(&gate, &wide), 3e-6, &format!("{isa:?} clamped {dim}"));
            let sigmoid = cpu::rows::gated(isa, Gate::Sigmoid, &gate, &up);
            assert_close(&sigmoid, &reference::sigmoid_mul(&gate, &up), 2e-6, &format!("{isa:?} sigmoid {dim}"));
            let exact = cpu::rows::gated(isa, Gate::Gelu, &gate, &up);
            let want: Vec<f32> = reference::gelu(&gate).iter().zip(&up).map(|(gate, up)| gate * up).collect();
            assert_close(&exact, &want, 2e-6, &format!("{isa:?} exact gelu {dim}"));
            let gelu = cpu::rows::gated(isa, Gate::GeluTanh, &gate, &up);
            assert_close(&gelu, &reference::gelu_tanh_mul(&gate, &up), 2e-6, &format!("{isa:?} gelu {dim}"));
        }
    }
}

#[test]
fn sums_caps_and_scales_agree_with_the_reference() {
    for isa in Isa::available() {
        for dim in WIDTHS {
            let mut values = Values::new(dim as u64 + 90);
            let (x, residual, weight) = (values.many(5 * dim), values.many(5 * dim), values.many(dim));
            let normed = reference::rms_norm(&x, &weight, 1e-6);
            for (norm, from) in [(None, &x), (Some((&weight[..], 1e-6)), &normed)] {
                let sum = cpu::rows::add_scaled(isa, &x, &residual, norm, 0.5);
                let want: Vec<f32> = from.iter().zip(&residual).map(|(a, b)| a * 0.5 + b).collect();
                assert_close(&sum, &want, 3e-6, &format!("{isa:?} sum {dim}"));
            }
            for (scale, cap) in [(3.0, None), (20.0, Some(5.0))] {
                let mut found = x.clone();
                cpu::rows::scale_and_cap(isa, &mut found, scale, cap);
                let capped = |value: &f32| cap.map_or(value * scale, |cap| (value * scale / cap).tanh() * cap);
                assert_close(&found, &x.iter().map(capped).collect::<Vec<_>>(), 3e-6, &format!("{isa:?} cap {dim}"));
            }
        }
    }
}

#[test]
fn gates_agree_with_the_reference_also_far_out() {
    let far = [0.0, -0.0, 1e-30, -1e-30, 30.0, -30.0, 87.0, -87.0, 89.0, -89.0, 200.0, -200.0, 3e4, -3e4, 1.0];
    for device in devices() {
        let mut values = Values::new(2);
        let gate: Vec<f32> = far.iter().copied().chain((0..40_000).map(|_| values.next() * 9.0)).collect();
        let up = values.many(gate.len());
        let (gate_tensor, up_tensor) = (tensor(&gate, &[gate.len()], &device), tensor(&up, &[up.len()], &device));
        let silu = silu_mul(&gate_tensor, &up_tensor).expect("sizes fit");
        assert_close(&flat(&silu), &reference::silu_mul(&gate, &up), 2e-6, "silu");
        let gelu = gelu_tanh_mul(&gate_tensor, &up_tensor).expect("sizes fit");
        assert_close(&flat(&gelu), &reference::gelu_tanh_mul(&gate, &up), 2e-6, "gelu");
        let nan = tensor(&[f32::NAN], &[1], &device);
        let one = tensor(&[1.0], &[1], &device);
        assert!(flat(&silu_mul(&nan, &one).expect("one element"))[0].is_nan());
        assert!(flat(&gelu_tanh_mul(&nan, &one).expect("one element"))[0].is_nan());
    }
}

fn inverse_frequencies(pairs: usize) -> Vec<f32> {
    (0..pairs).map(|pair| 10_000f32.powf(-(pair as f32) / pairs as f32)).collect()
}

#[test]
fn rope_agrees_with_the_reference() {
    for device in devices() {
        for (heads, head_dim, pairs) in [(1, 2, 1), (3, 64, 32), (9, 80, 40), (2, 20, 10), (4, 96, 24), (2, 7, 3)] {
            for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
                // Out of order, repeated, and on both sides of what is computed together.
                let positions = [5, 0, 255, 256, 5, 4095, 131_071];
                let x = Values::new(head_dim as u64).many(positions.len() * heads * head_dim);
                let inv_freq = inverse_frequencies(pairs);
                let table = RopeTable::new(&inv_freq, 131_072, 1.0, &device).expect("a table");
                let x_tensor = tensor(&x, &[positions.len(), heads, head_dim], &device);
                let got = flat(&rope(&x_tensor, &positions, &table, style).expect("sizes fit"));
                let want = reference::rope(&x, (heads, head_dim), &positions, &inv_freq, style);
                let what = format!("{heads} x {head_dim}, {pairs} pairs, {style:?}");
                assert_close(&got, &want, 1e-6, &what);
                for (got, x) in got.chunks(head_dim).zip(x.chunks(head_dim)) {
                    assert_same_bits(&got[2 * pairs..], &x[2 * pairs..], &what);
                }
            }
        }
    }
}

#[test]
fn the_attention_factor_scales_what_is_rotated() {
    for device in devices() {
        let x = tensor(&[1.0, 0.0, 7.0], &[1, 1, 3], &device);
        let table = RopeTable::new(&[1.0], 8, 1.5, &device).expect("a table");
        let got = flat(&rope(&x, &[2], &table, RopeStyle::Halves).expect("sizes fit"));
        assert_close(&got, &[1.5 * 2f32.cos(), 1.5 * 2f32.sin(), 7.0], 1e-6, "factor");
    }
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    for device in devices() {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &device).expect("fits");
        let table = RopeTable::new(&[1.0, 0.5], 8, 1.0, &device).expect("a table");
        let turn = |dims: &[usize], positions: &[u32]| rope(&zeros(dims), positions, &table, RopeStyle::Halves);
        assert_error(turn(&[2, 1, 4], &[0]), "1 positions for 2 tokens");
        assert_error(turn(&[1, 1, 3], &[0]), "rotates 4 of 3");
        assert_error(turn(&[1, 1, 4], &[8]), "position 8 is past the context of 8");
        assert_error(turn(&[1, 4], &[0]), "3 dimensions");
        let still = rope(&zeros(&[1, 1, 4]), &[7], &RopeTable::identity(8), RopeStyle::Halves).expect("turns nothing");
        assert_eq!(still.dims(), [1, 1, 4]);
        assert_error(
            rope(&zeros(&[1, 1, 4]), &[8], &RopeTable::identity(8), RopeStyle::Halves),
            "position 8 is past the context of 8",
        );
        assert_error(RopeTable::new(&[], 8, 1.0, &device), "no inverse frequencies");
        assert_error(RopeTable::new(&[f32::NAN], 8, 1.0, &device), "NaN");
        assert_error(rms_norm(&zeros(&[2, 3]), &zeros(&[4]), 1e-5), "weight must be [3]");
        assert_error(add_rms_norm(&zeros(&[2, 3]), &zeros(&[3, 3]), &zeros(&[3]), 1e-5), "residual must be [2, 3]");
        assert_error(silu_mul(&zeros(&[2, 3]), &zeros(&[3, 2])), "up must be [2, 3]");
        assert_error(gelu_tanh_mul(&zeros(&[3, 2]).t().expect("2 dims"), &zeros(&[2, 3])), "gate");
    }
}

#[test]
fn no_rows_make_no_rows() {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).expect("fits");
    let table = RopeTable::new(&[1.0], 8, 1.0, &Device::Cpu).expect("a table");
    assert_eq!(rms_norm(&zeros(&[0, 5]), &zeros(&[5]), 1e-5).expect("empty").dims(), [0, 5]);
    assert_eq!(silu_mul(&zeros(&[0, 5]), &zeros(&[0, 5])).expect("empty").dims(), [0, 5]);
    assert_eq!(rope(&zeros(&[0, 2, 4]), &[], &table, RopeStyle::Halves).expect("empty").dims(), [0, 2, 4]);
}

#[test]
fn choosing_agrees_with_the_reference() {
    let nan = f32::NAN;
    let infinity = f32::INFINITY;
    let mut cases: Vec<Vec<f32>> = vec![
        vec![],
        vec![nan],
        vec![nan, -infinity],
        vec![-infinity; 3],
        vec![0.0, -0.0, 0.0],
        vec![-0.0, 0.0],
        vec![1.0, 3.0, 3.0, nan, 2.0],
        vec![nan, infinity, 1.0, infinity],
    ];
    let mut values = Values::new(4);
    for count in [15, 16, 17, 500, 3001] {
        cases.push(values.many(count));
        // Few different values: many ties.
        cases.push((0..count).map(|_| (values.next() * 4.0).round()).collect());
        cases.push((0..count).map(|_| if values.below(3) == 0 { nan } else { values.next() }).collect());
    }
    let mut kept = vec![(9, 9.0)];
    for logits in &cases {
        assert_eq!(argmax(logits), reference::argmax(logits), "{logits:?}");
        for isa in Isa::available() {
            assert_eq!(cpu::choose::argmax(isa, logits), reference::argmax(logits), "{isa:?}");
        }
        for k in [0, 1, 2, 40, 128, 129, 2000, 5000] {
            top_k(logits, k, &mut kept);
            assert_eq!(kept, reference::top_k(logits, k), "k = {k}");
        }
    }
}
