//! The dense layer and the embedding.

use candle_core::{DType, Tensor};
use sconce_kernels::cpu::matmul as dense;
use sconce_kernels::cpu::rows::Gate;
use sconce_kernels::cpu::{self, Isa};
use sconce_kernels::{Added, Arena, GgmlType, PackedWeight, Precision, Prologue, Weight, embedding, matmul, reference};

use super::formats::weight;
use super::{Values, assert_close, assert_error, assert_same_bits, devices, flat, tensor};

/// (out, input, tokens), with input in units of the type's block.
const SHAPES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (1, 3, 2), (7, 1, 5), (16, 2, 3), (33, 3, 9), (50, 1, 17), (129, 2, 4), (20, 5, 33)];

#[test]
fn every_type_agrees_with_the_reference() {
    for device in devices() {
        for ty in GgmlType::ALL {
            for (out, units, tokens) in SHAPES {
                let mut values = Values::new(out as u64);
                let input = units * ty.block_elements();
                let weight = weight(ty, out, input, &mut values);
                check(&device, &weight, tokens, &mut values);
            }
        }
    }
}

#[test]
fn rows_of_any_length_agree_with_the_reference() {
    for device in devices() {
        for ty in [GgmlType::F32, GgmlType::F16, GgmlType::Bf16] {
            for input in [2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 100, 576] {
                for tokens in [1, 2, 3, 4, 5, 8] {
                    let mut values = Values::new(input as u64);
                    let weight = weight(ty, 9, input, &mut values);
                    check(&device, &weight, tokens, &mut values);
                }
            }
        }
    }
}

fn packed(weights: &[&Weight]) -> PackedWeight {
    PackedWeight::new(weights, Precision::Fast, &mut Arena::default()).expect("one input width")
}

fn packed_high(weight: &Weight) -> PackedWeight {
    PackedWeight::new(&[weight], Precision::High, &mut Arena::default()).expect("one input width")
}

fn multiply(isa: Isa, x: &[f32], weight: &PackedWeight, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = Vec::new();
    dense::matmul(isa, x, dense::Prologue::None, weight, dense::Added { bias, residual: None }, &mut y);
    y
}

fn check(device: &candle_core::Device, weight: &Weight, tokens: usize, values: &mut Values) {
    let (x, bias) = (values.many(tokens * weight.input()), values.many(weight.out()));
    let what = format!("{weight:?} x {tokens} tokens");
    let (x_tensor, bias_tensor) =
        (tensor(&x, &[tokens, weight.input()], device), tensor(&bias, &[weight.out()], device));
    let packed = packed(&[weight]);
    let plain = matmul(&x_tensor, Prologue::None, &packed, Added::default()).expect("sizes fit");
    assert_eq!(plain.dims(), [tokens, weight.out()]);
    assert_close(&flat(&plain), &reference::matmul(&x, weight, None), 2e-5, &what);
    let residual = values.many(tokens * weight.out());
    let residual_tensor = tensor(&residual, &[tokens, weight.out()], device);
    let added = Added { bias: Some(&bias_tensor), residual: Some(&residual_tensor) };
    let all = matmul(&x_tensor, Prologue::None, &packed, added).expect("sizes fit");
    let mut want = reference::matmul(&x, weight, Some(&bias));
    want.iter_mut().zip(&residual).for_each(|(want, residual)| *want += residual);
    assert_close(&flat(&all), &want, 2e-5, &what);
}

#[test]
fn every_instruction_set_agrees_with_the_reference() {
    for isa in Isa::available() {
        for ty in GgmlType::ALL {
            let mut values = Values::new(3);
            let weight = weight(ty, 21, 256, &mut values);
            for tokens in [1, 2, 3, 4, 6, 19] {
                let x = values.many(tokens * 256);
                let y = multiply(isa, &x, &packed(&[&weight]), None);
                assert_close(&y, &reference::matmul(&x, &weight, None), 2e-5, &format!("{isa:?} {ty:?}"));
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let sets = Isa::available().into_iter().flat_map(|isa| [(isa, Precision::Fast), (isa, Precision::High)]);
    for (isa, precision) in sets {
        for ty in GgmlType::ALL {
            let mut values = Values::new(5);
            let weight = weight(ty, 70, 512, &mut values);
            let (x, bias) = (values.many(41 * 512), values.many(70));
            let weight = if precision == Precision::High { packed_high(&weight) } else { packed(&[&weight]) };
            let all = multiply(isa, &x, &weight, Some(&bias));
            for tokens in [1, 2, 3, 4, 5, 7, 9, 16, 40] {
                for first in [0, 1, 41 - tokens] {
                    let some = &x[first * 512..(first + tokens) * 512];
                    let y = multiply(isa, some, &weight, Some(&bias));
                    let want = &all[first * 70..(first + tokens) * 70];
                    assert_same_bits(&y, want, &format!("{isa:?} {precision:?} {ty:?}: {tokens} from {first}"));
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut values = Values::new(6);
    let weight = weight(GgmlType::Q4_1, 1000, 576, &mut values);
    let (x, weight) = (values.many(7 * 576), packed(&[&weight]));
    let results = [1, 2, 3, 8].map(|threads| {
        cpu::set_threads(threads);
        multiply(Isa::best(), &x, &weight, None)
    });
    cpu::set_threads(0);
    results.iter().for_each(|result| assert_same_bits(result, &results[0], "threads"));
}

#[test]
fn a_view_into_a_larger_tensor_is_read_from_its_offset() {
    for device in devices() {
        let mut values = Values::new(8);
        let weight = weight(GgmlType::Q8_0, 6, 64, &mut values);
        let x = values.many(10 * 64);
        let view = tensor(&x, &[10, 64], &device).narrow(0, 4, 3).expect("in range");
        let y = matmul(&view, Prologue::None, &packed(&[&weight]), Added::default()).expect("contiguous view");
        assert_close(&flat(&y), &reference::matmul(&x[4 * 64..7 * 64], &weight, None), 2e-5, "view");
    }
}

#[test]
fn no_tokens_make_no_rows() {
    for device in devices() {
        let weight = Weight::from_f32(3, 4, vec![1.0; 12]).expect("sizes fit");
        let none = Tensor::zeros((0, 4), DType::F32, &device).expect("empty");
        let weight = packed(&[&weight]);
        assert_eq!(matmul(&none, Prologue::None, &weight, Added::default()).expect("empty").dims(), [0, 3]);
        assert_eq!(embedding(&weight, &[], &device).expect("empty").dims(), [0, 4]);
    }
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    let weight = Weight::from_f32(5, 40, vec![0.5; 200]).expect("sizes fit");
    let mut x = vec![1.0f32; 6 * 40];
    x[40 + 39] = f32::NAN;
    x[3 * 40] = f32::INFINITY;
    for isa in Isa::available() {
        let y = multiply(isa, &x, &packed(&[&weight]), None);
        for (token, y) in y.chunks(5).enumerate() {
            let fits = |y: &f32| match token {
                1 => y.is_nan(),
                3 => *y == f32::INFINITY,
                _ => *y == 20.0,
            };
            assert!(y.iter().all(fits), "{isa:?}: token {token} is {y:?}");
        }
    }
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    for device in devices() {
        let weight = packed(&[&Weight::from_f32(3, 4, vec![1.0; 12]).expect("sizes fit")]);
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &device).expect("fits");
        let plain = |x: &Tensor, added| matmul(x, Prologue::None, &weight, added);
        assert_error(plain(&zeros(&[2, 5]), Added::default()), "x has 5 columns and the weight takes 4");
        assert_error(plain(&zeros(&[2, 2, 4]), Added::default()), "2 dimensions");
        let (four, six) = (zeros(&[4]), zeros(&[2, 4]));
        assert_error(plain(&zeros(&[2, 4]), Added { bias: Some(&four), residual: None }), "bias must be [3]");
        assert_error(plain(&zeros(&[2, 4]), Added { bias: None, residual: Some(&six) }), "residual must be [2, 3]");
        assert_error(plain(&zeros(&[4, 4]).t().expect("2 dims"), Added::default()), "not contiguous");
        let halves = zeros(&[2, 4]).to_dtype(DType::F16).expect("converts");
        assert_error(plain(&halves, Added::default()), "x must be f32");
        let norm = Prologue::RmsNorm { weight: &zeros(&[3]), eps: 1e-5 };
        assert_error(matmul(&zeros(&[2, 4]), norm, &weight, Added::default()), "norm weight must be [4]");
        let norm = Prologue::LayerNorm { weight: &zeros(&[4]), bias: Some(&zeros(&[3])), eps: 1e-5 };
        assert_error(matmul(&zeros(&[2, 4]), norm, &weight, Added::default()), "norm bias must be [4]");
        assert_error(
            matmul(&zeros(&[2, 4]), Prologue::SiluMul, &weight, Added::default()),
            "4 columns and the weight takes 8",
        );
        assert_error(embedding(&weight, &[0, 3], &device), "token id 3 is outside the table of 3 rows");
    }
}

#[test]
fn embedding_rows_are_the_dequantised_rows() {
    for device in devices() {
        for ty in GgmlType::ALL {
            let weight = weight(ty, 37, 256, &mut Values::new(9));
            let ids = [10, 0, 36, 3, 17];
            let got = embedding(&packed(&[&weight]), &ids, &device).expect("ids are in range");
            assert_eq!(got.dims(), [5, 256]);
            let mut want = vec![0.0; 5 * 256];
            ids.iter().zip(want.chunks_mut(256)).for_each(|(id, row)| weight.row_f32(*id as usize, row));
            assert_close(&flat(&got), &want, 1e-6, ty.name());
        }
    }
}

#[test]
fn matrices_of_several_types_are_multiplied_as_one() {
    let mut values = Values::new(12);
    let types = [GgmlType::Q4K, GgmlType::F32, GgmlType::Bf16, GgmlType::Q6K, GgmlType::Q8_0];
    let weights: Vec<Weight> =
        types.iter().zip([33, 5, 48, 7, 16]).map(|(ty, out)| weight(*ty, out, 256, &mut values)).collect();
    let all: Vec<&Weight> = weights.iter().collect();
    let together = packed(&all);
    assert_eq!((together.out(), together.input()), (109, 256));
    for tokens in [1, 3, 21] {
        let x = values.many(tokens * 256);
        let y = multiply(Isa::best(), &x, &together, None);
        let mut row = 0;
        for weight in &weights {
            let own = multiply(Isa::best(), &x, &packed(&[weight]), None);
            for token in 0..tokens {
                let found = &y[token * 109 + row..][..weight.out()];
                assert_same_bits(found, &own[token * weight.out()..][..weight.out()], &format!("{weight:?}"));
            }
            row += weight.out();
        }
    }
    let other = weight(GgmlType::F32, 3, 128, &mut values);
    assert_error(
        PackedWeight::new(&[&weights[0], &other], Precision::Fast, &mut Arena::default()),
        "256 and 128 columns",
    );
    assert_error(PackedWeight::new(&[], Precision::Fast, &mut Arena::default()), "no matrix");
}

#[test]
fn what_stands_before_a_layer_gives_what_it_gives_alone() {
    let mut values = Values::new(13);
    for ty in [GgmlType::F32, GgmlType::Q4_0, GgmlType::Bf16] {
        let weight = weight(ty, 40, 96, &mut values);
        let together = packed(&[&weight]);
        for (isa, tokens) in Isa::available().into_iter().flat_map(|isa| [1, 2, 37].map(|tokens| (isa, tokens))) {
            let what = format!("{isa:?} {ty:?} {tokens}");
            let added = dense::Added::default();
            let (x, norm, wide) = (values.many(tokens * 96), values.many(96), values.many(tokens * 192));
            let mut y = Vec::new();
            let prologue = dense::Prologue::RmsNorm { weight: &norm, eps: 1e-5 };
            dense::matmul(isa, &x, prologue, &together, added, &mut y);
            let (normed, _) = cpu::rows::rms_norm(isa, &x, None, &norm, 1e-5);
            assert_same_bits(&y, &multiply(isa, &normed, &together, None), &what);
            for bias in [None, Some(&values.many(96)[..])] {
                y.clear();
                let prologue = dense::Prologue::LayerNorm { weight: &norm, bias, eps: 1e-5 };
                dense::matmul(isa, &x, prologue, &together, added, &mut y);
                let normed = reference::layer_norm(&x, &norm, bias, 1e-5);
                // Rounding the activations may fall to the other side.
                let tolerance = if ty == GgmlType::F32 { 2e-5 } else { 2e-2 };
                assert_close(&y, &multiply(isa, &normed, &together, None), tolerance, &what);
            }
            y.clear();
            dense::matmul(isa, &x, dense::Prologue::Active(Gate::GeluTanh), &together, added, &mut y);
            let active = cpu::rows::gated(isa, Gate::GeluTanh, &x, &vec![1.0; x.len()]);
            assert_same_bits(&y, &multiply(isa, &active, &together, None), &what);
            for gate in [Gate::Silu, Gate::GeluTanh, Gate::ClampedSwiglu] {
                y.clear();
                dense::matmul(isa, &wide, dense::Prologue::Gated(gate), &together, added, &mut y);
                let half = |from: usize| -> Vec<f32> {
                    wide.chunks(192).flat_map(|row| &row[from..from + 96]).copied().collect()
                };
                let active = cpu::rows::gated(isa, gate, &half(0), &half(96));
                assert_same_bits(&y, &multiply(isa, &active, &together, None), &what);
            }
        }
    }
}

#[test]
fn quantised_activations_stay_near_the_true_product() {
    let mut values = Values::new(14);
    for ty in GgmlType::ALL {
        let weight = weight(ty, 64, 1024, &mut values);
        let x = values.many(1024);
        let y = multiply(Isa::best(), &x, &packed(&[&weight]), None);
        let mut row = vec![0.0; 1024];
        for (out, y) in y.iter().enumerate() {
            weight.row_f32(out, &mut row);
            let want: f64 = x.iter().zip(&row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let size: f64 = x.iter().zip(&row).map(|(a, b)| f64::from(a * b).powi(2)).sum::<f64>().sqrt();
            assert!((f64::from(*y) - want).abs() < 0.02 * size, "{ty:?}: {y} is far from {want} (size {size})");
        }
    }
}

#[test]
fn high_precision_is_the_product_of_unrounded_activations() {
    for isa in Isa::available() {
        for ty in GgmlType::ALL {
            for tokens in [1, 4, 21] {
                let mut values = Values::new(15);
                let weight = weight(ty, 37, 512, &mut values);
                let mut x = values.many(tokens * 512);
                // Outliers are what few bits are bad at.
                x.iter_mut().step_by(77).for_each(|value| *value *= 50.0);
                let y = multiply(isa, &x, &packed_high(&weight), None);
                let want = reference::matmul_unrounded(&x, &weight);
                let mut row = vec![0.0; 512];
                for (at, (y, want)) in y.iter().zip(&want).enumerate() {
                    weight.row_f32(at % 37, &mut row);
                    let token = &x[at / 37 * 512..][..512];
                    let size = token.iter().zip(&row).map(|(a, b)| (a * b).powi(2)).sum::<f32>().sqrt();
                    assert!((y - want).abs() < 5e-4 * size, "{isa:?} {ty:?}: [{at}] is {y}, not {want} (size {size})");
                }
            }
        }
    }
}

/// Where a block of the type has its codes, and nothing but codes.
fn code_bytes(ty: GgmlType) -> std::ops::Range<usize> {
    match ty {
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => 2..ty.block_bytes(),
        GgmlType::Q4_1 | GgmlType::Q5_1 => 4..ty.block_bytes(),
        GgmlType::Q2K => 16..80,
        GgmlType::Q3K => 0..96,
        GgmlType::Q4K => 16..144,
        GgmlType::Q5K => 16..176,
        GgmlType::Q6K => 0..192,
        _ => 0..0,
    }
}

#[test]
fn the_largest_sums_of_products_fit() {
    for (isa, ty) in Isa::available().into_iter().flat_map(|isa| GgmlType::ALL.map(|ty| (isa, ty))) {
        for (byte, sign) in [(0xff, 1.0), (0xff, -1.0), (0x00, 1.0), (0x80, -1.0)] {
            let mut values = Values::new(16);
            let mut bytes = weight(ty, 16, 512, &mut values).bytes().to_vec();
            for block in bytes.chunks_mut(ty.block_bytes()) {
                block[code_bytes(ty)].fill(byte);
            }
            let weight = Weight::new(ty, 16, 512, std::sync::Arc::new(bytes), 0).expect("the bytes of the matrix");
            // All alike, they become the largest of 8 bits, and of 16 in high precision.
            let x = vec![sign; 5 * 512];
            let want = reference::matmul_unrounded(&x, &weight);
            for packed in [packed(&[&weight]), packed_high(&weight)] {
                assert_close(
                    &multiply(isa, &x, &packed, None),
                    &want,
                    1e-3,
                    &format!("{isa:?} {ty:?} {byte:#x} {sign}"),
                );
            }
        }
    }
}
