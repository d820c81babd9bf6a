//! Text as it is written, shapes that do not fit, and what the linter finds.

use super::{Binary, Comparison, Contraction, Function, Reduction, TensorType, Unary, lint};
use crate::element::ElementType::{self, Bf16, Bool, F32, I32};
use crate::error::Error;

fn ty(element: ElementType, dims: &[usize]) -> TensorType {
    TensorType::new(element, dims)
}

#[test]
fn a_program_reads_as_it_should() {
    let mut function = Function::new("example");
    let cache = function.parameter(ty(Bf16, &[8, 2, 4])).unwrap();
    let slots = function.parameter(ty(I32, &[3])).unwrap();
    let new = function.parameter(ty(F32, &[3, 2, 4])).unwrap();
    let narrow = function.convert(&new, Bf16).unwrap();
    let written = function.with_rows(&cache, &slots, &narrow).unwrap();
    let read = function.rows(&written, &slots).unwrap();
    let contraction = Contraction { batch: (&[0], &[0]), summed: (2, 2) };
    let scores = function.product(&read, &narrow, contraction).unwrap();
    let largest = function.reduce_last(Reduction::Max, &scores).unwrap();
    let program = function.finish(&[&largest, &written], &[(&cache, 1)]).unwrap();
    let expected = r#"module @example {
  func.func public @main(%0: tensor<8x2x4xbf16> {tf.aliasing_output = 1 : i32},
      %1: tensor<3xi32>,
      %2: tensor<3x2x4xf32>) -> (tensor<3x2xf32>, tensor<8x2x4xbf16>) {
    %3 = stablehlo.convert %2 : (tensor<3x2x4xf32>) -> tensor<3x2x4xbf16>
    %4 = "stablehlo.scatter"(%0, %1, %3) ({
    ^bb0(%old: tensor<bf16>, %new: tensor<bf16>):
      stablehlo.return %new : tensor<bf16>
    }) {scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1, 2], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>, indices_are_sorted = false, unique_indices = false} : (tensor<8x2x4xbf16>, tensor<3xi32>, tensor<3x2x4xbf16>) -> tensor<8x2x4xbf16>
    %5 = "stablehlo.gather"(%4, %1) {dimension_numbers = #stablehlo.gather<offset_dims = [1, 2], collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>, slice_sizes = array<i64: 1, 2, 4>, indices_are_sorted = false} : (tensor<8x2x4xbf16>, tensor<3xi32>) -> tensor<3x2x4xbf16>
    %6 = stablehlo.dot_general %5, %3, batching_dims = [0] x [0], contracting_dims = [2] x [2], precision = [HIGHEST, HIGHEST] : (tensor<3x2x4xbf16>, tensor<3x2x4xbf16>) -> tensor<3x2x2xf32>
    %7 = stablehlo.constant dense<0xFF800000> : tensor<f32>
    %8 = stablehlo.reduce(%6 init: %7) applies stablehlo.maximum across dimensions = [2] : (tensor<3x2x2xf32>, tensor<f32>) -> tensor<3x2xf32>
    return %8, %4 : tensor<3x2xf32>, tensor<8x2x4xbf16>
  }
}
"#;
    assert_eq!(program.text, expected);
    assert_eq!(program.outputs, [ty(F32, &[3, 2]), ty(Bf16, &[8, 2, 4])]);
    assert_eq!(lint(&program.text), []);
}

/// The operation that a fault names.
fn fault<T>(result: Result<T, Error>) -> &'static str {
    match result.err() {
        Some(Error::Program { operation, .. }) => operation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut f = Function::new("faults");
    let a = f.parameter(ty(F32, &[2, 3])).unwrap();
    let b = f.parameter(ty(F32, &[3, 2])).unwrap();
    let n = f.parameter(ty(I32, &[2])).unwrap();
    let flag = f.parameter(ty(Bool, &[2, 3])).unwrap();
    let one = f.integer(1).unwrap();
    assert_eq!(fault(f.parameter(ty(F32, &[1]))), "parameter");
    assert_eq!(fault(f.binary(Binary::Add, &a, &b)), "binary");
    assert_eq!(fault(f.binary(Binary::Add, &flag, &flag)), "binary");
    assert_eq!(fault(f.unary(Unary::Rsqrt, &n)), "unary");
    assert_eq!(fault(f.compare(Comparison::Greater, &a, &a)), "compare");
    assert_eq!(fault(f.both(&a, &flag)), "and");
    assert_eq!(fault(f.select(&flag, &a, &b)), "select");
    assert_eq!(fault(f.select(&a, &a, &a)), "select");
    assert_eq!(fault(f.reshape(&a, &[7])), "reshape");
    assert_eq!(fault(f.transpose(&a, &[0, 0])), "transpose");
    assert_eq!(fault(f.transpose(&a, &[0])), "transpose");
    assert_eq!(fault(f.broadcast(&a, &[2, 4], &[0, 1])), "broadcast");
    assert_eq!(fault(f.broadcast(&a, &[3, 2], &[1, 0])), "broadcast");
    assert_eq!(fault(f.broadcast(&a, &[2], &[0, 1])), "broadcast");
    assert_eq!(fault(f.columns(&a, 2, 2)), "slice");
    assert_eq!(fault(f.columns(&one, 0, 1)), "slice");
    assert_eq!(fault(f.join_columns(&[&a, &b])), "concatenate");
    assert_eq!(fault(f.join_columns(&[])), "concatenate");
    assert_eq!(fault(f.reduce_last(Reduction::Sum, &n)), "reduce");
    assert_eq!(fault(f.product(&a, &b, Contraction { batch: (&[], &[]), summed: (0, 0) })), "dot_general");
    assert_eq!(fault(f.product(&n, &n, Contraction { batch: (&[], &[]), summed: (0, 0) })), "dot_general");
    assert_eq!(fault(f.product(&a, &a, Contraction { batch: (&[0], &[0]), summed: (0, 0) })), "dot_general");
    assert_eq!(fault(f.product(&a, &a, Contraction { batch: (&[0], &[]), summed: (1, 1) })), "dot_general");
    assert_eq!(fault(f.rows(&a, &b)), "gather");
    assert_eq!(fault(f.rows(&one, &n)), "gather");
    assert_eq!(fault(f.with_rows(&a, &n, &b)), "scatter");
    assert_eq!(fault(f.count_up(0)), "result");
    assert_eq!(fault(Function::new("empty").finish(&[], &[])), "return");
}

#[test]
fn donations_must_fit_their_outputs() {
    for (donated, fits) in [(0, true), (1, false), (2, false)] {
        let mut f = Function::new("donation");
        let a = f.parameter(ty(F32, &[2])).unwrap();
        let b = f.parameter(ty(F32, &[3])).unwrap();
        let sum = f.binary(Binary::Add, &a, &a).unwrap();
        // The second has another type, the third is no parameter.
        let from = [&a, &b, &sum][donated];
        assert_eq!(f.finish(&[&sum], &[(from, 0)]).is_ok(), fits, "{donated}");
    }
    let mut f = Function::new("twice");
    let a = f.parameter(ty(F32, &[2])).unwrap();
    let sum = f.binary(Binary::Add, &a, &a).unwrap();
    assert_eq!(fault(f.finish(&[&sum, &sum], &[(&a, 0), (&a, 1)])), "donation");
}

#[test]
fn the_linter_finds_what_neuron_refuses() {
    for (line, expected) in [
        ("%1 = stablehlo.add %0, %0 : tensor<2x3xf32>", None),
        ("%1 = stablehlo.constant dense<0> : tensor<i32>", None),
        ("%1:2 = stablehlo.while(%a = %0, %b = %0) : tensor<i32>, tensor<i32>", Some("loop that depends on data")),
        ("%1 = \"stablehlo.case\"(%0) ({", Some("branch that depends on data")),
        ("%1 = \"stablehlo.if\"(%0) ({", Some("branch that depends on data")),
        ("%1 = stablehlo.sort %0 : tensor<4xf32>", Some("sort")),
        ("%1 = stablehlo.custom_call @foo(%0) : (tensor<f32>) -> tensor<f32>", Some("only one compiler")),
        ("%1 = stablehlo.fft %0 : tensor<4xf32>", Some("stablehlo.fft is not known")),
        (
            "%1:2 = stablehlo.reduce(%0 init: %c), (%i init: %d) across dimensions = [0] : (tensor<4xf32>) -> tensor<f32>",
            Some("several operands"),
        ),
        ("%1:2 = \"stablehlo.reduce\"(%0, %i, %c, %d) ({", Some("several operands")),
        ("%1 = \"stablehlo.reduce\"(%0, %c) ({", None),
        (
            "%1 = stablehlo.dot_general %0, %0, contracting_dims = [0] x [0] : (tensor<4xi32>, tensor<4xi32>) -> tensor<i32>",
            Some("dot_general of integers"),
        ),
        ("%1 = stablehlo.iota dim = 0 : tensor<4xi64>", Some("elements of i64")),
        ("%1 = stablehlo.convert %0 : (tensor<4xf32>) -> tensor<4xf64>", Some("elements of f64")),
        ("%1 = stablehlo.add %0, %0 : tensor<?xf32>", Some("a dimension that depends on data")),
        ("%1 = \"stablehlo.gather\"(%0, %i) {dimension_numbers = #stablehlo.gather<offset_dims = [1]>}", None),
    ] {
        let found = lint(&format!("module {{\n{line}\n}}"));
        match expected {
            None => assert_eq!(found, [], "{line}"),
            Some(part) => {
                assert!(found.iter().any(|one| one.line == 2 && one.what.contains(part)), "{line}: {found:?}");
            }
        }
    }
}
