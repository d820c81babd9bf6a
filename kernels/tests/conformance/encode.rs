//! What encoders need: layer norm, activations without a gate, attention in both directions.

use candle_core::{DType, Device, Tensor};
use sconce_kernels::cpu::encode::{Encoding, attention};
use sconce_kernels::cpu::{self, Isa};
use sconce_kernels::{
    Activation, Added, Arena, PackedWeight, Precision, Prologue, RopeStyle, RopeTable, Weight, bidirectional_attention,
    layer_norm, matmul, reference, rope, rotate_encoder,
};

use super::{Values, assert_close, assert_error, assert_same_bits, devices, flat, tensor};

#[test]
fn layer_norms_agree_with_the_reference() {
    for dim in [1, 2, 15, 16, 17, 33, 48, 384, 1000] {
        for rows in [0, 1, 3, 70] {
            let mut values = Values::new(dim as u64 + 7);
            // A mean far from zero: a variance from two sums would be lost in it.
            let x: Vec<f32> = values.many(rows * dim).iter().map(|value| value + 100.0).collect();
            let (weight, bias) = (values.many(dim), values.many(dim));
            let want = reference::layer_norm(&x, &weight, Some(&bias), 1e-5);
            let tolerance = if dim == 1 { 1e-6 } else { 5e-4 };
            for isa in Isa::available() {
                let got = cpu::activate::layer_norm(isa, &x, (&weight, &bias), 1e-5);
                assert_close(&got, &want, tolerance, &format!("{isa:?}: {rows} x {dim}"));
                for row in 0..rows {
                    let place = row * dim..(row + 1) * dim;
                    let alone = cpu::activate::layer_norm(isa, &x[place.clone()], (&weight, &bias), 1e-5);
                    assert_same_bits(&alone, &got[place], "a row alone");
                }
            }
            for device in devices() {
                let [weight, bias] = [&weight, &bias].map(|values| tensor(values, &[dim], &device));
                let x: Vec<f32> = x.iter().map(|value| value - 100.0).collect();
                let got = layer_norm(&tensor(&x, &[rows, dim], &device), &weight, &bias, 1e-5).expect("sizes fit");
                let want = reference::layer_norm(&x, &flat(&weight), Some(&flat(&bias)), 1e-5);
                assert_close(&flat(&got), &want, 5e-5, &format!("{rows} x {dim}"));
            }
        }
    }
}

fn identity(size: usize) -> PackedWeight {
    let values = (0..size * size).map(|at| if at / size == at % size { 1.0 } else { 0.0 }).collect();
    let weight = Weight::from_f32(size, size, values).expect("a square");
    PackedWeight::new(&[&weight], Precision::High, &mut Arena::default()).expect("packs")
}

#[test]
fn activations_agree_with_the_reference_also_far_out() {
    const WIDTH: usize = 20;
    let far = [0.0, -0.0, 1e-30, -1e-30, 2.4, 2.6, -2.4, -2.6, 5.5, -5.5, 30.0, -30.0, 89.0, -89.0, 3e4, -3e4];
    let mut values = Values::new(9);
    let mut x: Vec<f32> = far.to_vec();
    x.extend((0..20_004 - far.len()).map(|_| values.next() * 6.0));
    x.truncate(x.len() / WIDTH * WIDTH);
    let weight = identity(WIDTH);
    let ones = vec![1.0; x.len()];
    let relu: Vec<f32> = x.iter().map(|value| value.max(0.0)).collect();
    for device in devices() {
        let input = tensor(&x, &[x.len() / WIDTH, WIDTH], &device);
        for (activation, want) in [
            (Activation::Gelu, reference::gelu(&x)),
            (Activation::GeluTanh, reference::gelu_tanh_mul(&x, &ones)),
            (Activation::Relu, relu.clone()),
        ] {
            let got = matmul(&input, Prologue::Activation(activation), &weight, Added::default()).expect("sizes fit");
            assert_close(&flat(&got), &want, 1e-6, &format!("{activation:?}"));
            let nan = tensor(&[f32::NAN; WIDTH], &[1, WIDTH], &device);
            let got = matmul(&nan, Prologue::Activation(activation), &weight, Added::default()).expect("sizes fit");
            assert!(flat(&got).iter().all(|value| value.is_nan()), "{activation:?} hides NaN");
        }
    }
    // By hand: the reference itself.
    assert_close(&reference::gelu(&[1.0, -1.0, 3.0]), &[0.841_344_8, -0.158_655_2, 2.995_95], 1e-6, "gelu");
}

#[test]
fn attention_in_both_directions_agrees_with_the_reference() {
    let whole = usize::MAX;
    for (heads, head_dim, reach) in [
        (1, 1, whole),
        (2, 8, whole),
        (3, 16, whole),
        (12, 32, whole),
        (2, 40, whole),
        (1, 64, whole),
        (2, 80, whole),
        (1, 1, 0),
        (3, 16, 1),
        (2, 40, 7),
        (2, 32, 33),
        (1, 64, 64),
    ] {
        let lengths = [1_usize, 2, 31, 32, 33, 70, 5];
        let width = 3 * heads * head_dim;
        let mut ends = Vec::new();
        for length in lengths {
            ends.push(ends.last().copied().unwrap_or(0) + length as u32);
        }
        let tokens = *ends.last().expect("rows") as usize;
        let qkv: Vec<f32> = Values::new(head_dim as u64).many(tokens * width).iter().map(|value| value * 3.0).collect();
        let want = reference::bidirectional_attention(&qkv, &ends, (heads, head_dim), reach);
        let what = format!("{heads} x {head_dim}, reach {reach}");
        for device in devices() {
            let reach = u32::try_from(reach).ok();
            let got = bidirectional_attention(&tensor(&qkv, &[tokens, width], &device), &ends, heads, reach);
            assert_close(&flat(&got.expect("sizes fit")), &want, 5e-6, &what);
        }
        for isa in Isa::available() {
            let sizes = Encoding { heads, head_dim, scale: (head_dim as f32).sqrt().recip(), reach };
            let crowd = attention(isa, &qkv, &ends, sizes);
            assert_close(&crowd, &want, 5e-6, &what);
            let mut start = 0;
            for &end in &ends {
                let (from, to) = (start as usize, end as usize);
                let alone = attention(isa, &qkv[from * width..to * width], &[end - start], sizes);
                assert_same_bits(&alone, &crowd[from * width / 3..to * width / 3], "a sequence alone");
                start = end;
            }
        }
    }
}

#[test]
fn queries_and_keys_turn_by_their_places() {
    let (heads, head_dim, ends) = (3, 16, [5_u32, 6, 40]);
    let (part, tokens) = (heads * head_dim, 40);
    let qkv = Values::new(7).many(tokens * 3 * part);
    let inv_freq: Vec<f32> = (0..head_dim / 2).map(|pair| 0.1_f32.powi(pair as i32)).collect();
    let positions: Vec<u32> = (0..5).chain(0..1).chain(0..34).collect();
    for device in devices() {
        let table = RopeTable::new(&inv_freq, 34, 1.0, &device).expect("frequencies");
        let qkv = tensor(&qkv, &[tokens, 3 * part], &device);
        let got = rotate_encoder(&qkv, &ends, heads, &table).expect("sizes fit");
        for (index, turns) in [(0, true), (1, true), (2, false)] {
            let before = qkv.narrow(1, index * part, part).and_then(|x| x.contiguous()).expect("a third");
            let before = before.reshape((tokens, heads, head_dim)).expect("heads");
            let want =
                if turns { rope(&before, &positions, &table, RopeStyle::Halves).expect("sizes fit") } else { before };
            let got = got.narrow(1, index * part, part).and_then(|x| x.contiguous()).expect("a third");
            assert_same_bits(&flat(&got), &flat(&want), "as the operation for decoders");
        }
        let short = RopeTable::new(&inv_freq, 33, 1.0, &device).expect("frequencies");
        assert_error(rotate_encoder(&qkv, &ends, heads, &short), "position 33 is past");
        assert_error(rotate_encoder(&qkv, &[3], heads, &table), "at 40 tokens");
    }
}

#[test]
fn large_scores_and_nan_stay_in_their_sequence() {
    let mut qkv = vec![300.0; 2 * 4 * 3 * 8];
    qkv[0] = f32::NAN;
    let got = flat(&bidirectional_attention(&tensor(&qkv, &[8, 24], &Device::Cpu), &[4, 8], 1, None).expect("fits"));
    assert!(got[..8].iter().any(|value| value.is_nan()));
    assert_close(&got[32..], &[300.0; 32], 1e-6, "the second sequence");
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    for device in devices() {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &device).expect("fits");
        let attend = |dims: &[usize], ends: &[u32], heads| bidirectional_attention(&zeros(dims), ends, heads, None);
        assert_error(attend(&[4, 24], &[3], 2), "at 4 tokens");
        assert_error(attend(&[4, 24], &[3, 2, 4], 2), "ascending");
        assert_error(attend(&[4, 24], &[4], 5), "24 columns");
        assert_error(attend(&[4, 24], &[4], 0), "0 heads");
        assert_error(attend(&[4, 3, 8], &[4], 1), "2 dimensions");
        assert_eq!(attend(&[0, 24], &[], 2).expect("empty").dims(), [0, 8]);
        assert_eq!(attend(&[1, 24], &[0, 1, 1], 2).expect("an empty row").dims(), [1, 8]);
        assert_error(layer_norm(&zeros(&[2, 3]), &zeros(&[4]), &zeros(&[3]), 1e-5), "weight must be [3]");
        assert_error(layer_norm(&zeros(&[2, 3]), &zeros(&[3]), &zeros(&[2]), 1e-5), "bias must be [3]");
    }
}
