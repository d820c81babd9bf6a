//! The dense layer and the embedding.

use candle_core::{DType, Tensor};
use sconce_kernels::cpu::{self, Isa};
use sconce_kernels::{GgmlType, Weight, embedding, matmul, reference};

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

fn check(device: &candle_core::Device, weight: &Weight, tokens: usize, values: &mut Values) {
    let (x, bias) = (values.many(tokens * weight.input()), values.many(weight.out()));
    let what = format!("{weight:?} x {tokens} tokens");
    let (x_tensor, bias_tensor) =
        (tensor(&x, &[tokens, weight.input()], device), tensor(&bias, &[weight.out()], device));
    let plain = matmul(&x_tensor, weight, None).expect("sizes fit");
    assert_eq!(plain.dims(), [tokens, weight.out()]);
    assert_close(&flat(&plain), &reference::matmul(&x, weight, None), 2e-5, &what);
    let biased = matmul(&x_tensor, weight, Some(&bias_tensor)).expect("sizes fit");
    assert_close(&flat(&biased), &reference::matmul(&x, weight, Some(&bias)), 2e-5, &what);
}

#[test]
fn every_instruction_set_agrees_with_the_reference() {
    for isa in Isa::available() {
        for ty in GgmlType::ALL {
            let mut values = Values::new(3);
            let weight = weight(ty, 21, 256, &mut values);
            for tokens in [1, 2, 3, 4, 6, 19] {
                let x = values.many(tokens * 256);
                let y = cpu::matmul::matmul(isa, &x, &weight, None);
                assert_close(&y, &reference::matmul(&x, &weight, None), 2e-5, &format!("{isa:?} {ty:?}"));
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    for isa in Isa::available() {
        for ty in GgmlType::ALL {
            let mut values = Values::new(5);
            let weight = weight(ty, 70, 512, &mut values);
            let (x, bias) = (values.many(41 * 512), values.many(70));
            let all = cpu::matmul::matmul(isa, &x, &weight, Some(&bias));
            for tokens in [1, 2, 3, 4, 5, 7, 40] {
                for first in [0, 1, 41 - tokens] {
                    let some = &x[first * 512..(first + tokens) * 512];
                    let y = cpu::matmul::matmul(isa, some, &weight, Some(&bias));
                    let want = &all[first * 70..(first + tokens) * 70];
                    assert_same_bits(&y, want, &format!("{isa:?} {ty:?}: {tokens} tokens from {first}"));
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut values = Values::new(6);
    let weight = weight(GgmlType::Q4_1, 1000, 576, &mut values);
    let x = values.many(7 * 576);
    let results = [1, 2, 3, 8].map(|threads| {
        cpu::set_threads(threads);
        cpu::matmul::matmul(Isa::best(), &x, &weight, None)
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
        let y = matmul(&view, &weight, None).expect("contiguous view");
        assert_close(&flat(&y), &reference::matmul(&x[4 * 64..7 * 64], &weight, None), 2e-5, "view");
    }
}

#[test]
fn no_tokens_make_no_rows() {
    for device in devices() {
        let weight = Weight::from_f32(3, 4, vec![1.0; 12]).expect("sizes fit");
        let none = Tensor::zeros((0, 4), DType::F32, &device).expect("empty");
        assert_eq!(matmul(&none, &weight, None).expect("empty").dims(), [0, 3]);
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
        let y = cpu::matmul::matmul(isa, &x, &weight, None);
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
        let weight = Weight::from_f32(3, 4, vec![1.0; 12]).expect("sizes fit");
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &device).expect("fits");
        assert_error(matmul(&zeros(&[2, 5]), &weight, None), "x has 5 columns and the weight takes 4");
        assert_error(matmul(&zeros(&[2, 2, 4]), &weight, None), "2 dimensions");
        assert_error(matmul(&zeros(&[2, 4]), &weight, Some(&zeros(&[4]))), "bias must be [3]");
        assert_error(matmul(&zeros(&[4, 4]).t().expect("2 dims"), &weight, None), "not contiguous");
        let halves = zeros(&[2, 4]).to_dtype(DType::F16).expect("converts");
        assert_error(matmul(&halves, &weight, None), "x must be f32");
        assert_error(embedding(&weight, &[0, 3], &device), "token id 3 is outside the table of 3 rows");
    }
}

#[test]
fn embedding_rows_are_the_dequantised_rows() {
    for device in devices() {
        for ty in GgmlType::ALL {
            let weight = weight(ty, 11, 256, &mut Values::new(9));
            let ids = [10, 0, 3, 3, 7];
            let got = embedding(&weight, &ids, &device).expect("ids are in range");
            assert_eq!(got.dims(), [5, 256]);
            let mut want = vec![0.0; 5 * 256];
            ids.iter().zip(want.chunks_mut(256)).for_each(|(id, row)| weight.row_f32(*id as usize, row));
            assert_same_bits(&flat(&got), &want, ty.name());
        }
    }
}
