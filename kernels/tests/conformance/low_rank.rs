//! Low-rank additions against plain loops, alone and beside each other.

use sconce_kernels::cpu::{Isa, low_rank as cpu, matmul as dense};
use sconce_kernels::{LowRank, Prologue, Segment, add_low_rank};

use super::{Values, assert_close, assert_error, assert_same_bits, devices, tensor};

/// First column, and how many.
type Columns = (usize, usize);

/// Rank, input, and the columns of each part.
const SHAPES: [(usize, usize, &[Columns]); 6] = [
    (1, 1, &[(0, 1)]),
    (4, 32, &[(0, 16)]),
    (8, 48, &[(0, 64), (64, 32), (96, 32)]),
    (16, 100, &[(3, 77)]),
    (5, 1025, &[(0, 200), (210, 65)]),
    (64, 576, &[(0, 192), (192, 1536)]),
];

struct Plain {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    first: usize,
    width: usize,
}

const SCALE: f32 = 0.75;

fn plain(values: &mut Values, (rank, input): (usize, usize), (first, width): (usize, usize)) -> Plain {
    Plain { a: values.many(rank * input), b: values.many(width * rank), rank, first, width }
}

fn packed(parts: &[Plain]) -> Vec<LowRank> {
    let one = |part: &Plain| LowRank::new(part.a.clone(), &part.b, part.rank, SCALE, part.first).expect("sizes fit");
    parts.iter().map(one).collect()
}

/// The truth of one token.
fn reference(x: &[f32], parts: &[Plain], y: &mut [f32]) {
    for part in parts {
        let small: Vec<f32> = part.a.chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, x)| a * x).sum()).collect();
        for column in 0..part.width {
            let row = &part.b[column * part.rank..][..part.rank];
            y[part.first + column] += SCALE * row.iter().zip(&small).map(|(b, small)| b * small).sum::<f32>();
        }
    }
}

#[test]
fn segments_get_their_own_part_and_nobody_elses() {
    for (rank, input, columns) in SHAPES {
        let mut values = Values::new((rank * input) as u64);
        let out = columns.iter().map(|(first, width)| first + width).max().expect("parts") + 3;
        let adapters: Vec<Vec<Plain>> =
            (0..3).map(|_| columns.iter().map(|part| plain(&mut values, (rank, input), *part)).collect()).collect();
        let parts: Vec<Vec<LowRank>> = adapters.iter().map(|adapter| packed(adapter)).collect();
        // Runs with nothing between them, behind and before them; more than one piece in the last.
        let runs = [(0, 1..2), (1, 2..7), (0, 9..10), (2, 11..60)];
        let tokens = 61;
        let (x, before) = (values.many(tokens * input), values.many(tokens * out));
        let mut expected = before.clone();
        for (adapter, run) in &runs {
            for token in run.clone() {
                let y = &mut expected[token * out..(token + 1) * out];
                reference(&x[token * input..(token + 1) * input], &adapters[*adapter], y);
            }
        }
        let segments: Vec<Segment> =
            runs.iter().map(|(adapter, tokens)| Segment { tokens: tokens.clone(), parts: &parts[*adapter] }).collect();
        for device in devices() {
            let x = tensor(&x, &[tokens, input], &device);
            let mut y = before.clone();
            add_low_rank(&x, Prologue::None, &segments, &mut y, out).expect("sizes fit");
            assert_close(&y, &expected, 2e-4, &format!("rank {rank}, input {input}"));
        }
        for isa in Isa::available() {
            let mut together = before.clone();
            cpu::add(isa, (&x, input), dense::Prologue::None, &segments, (&mut together, out));
            assert_close(&together, &expected, 2e-4, &format!("{isa:?}, rank {rank}, input {input}"));
            // Token by token, the same bits.
            let mut alone = before.clone();
            for (adapter, run) in &runs {
                for token in run.clone() {
                    let one = [Segment { tokens: token..token + 1, parts: &parts[*adapter] }];
                    cpu::add(isa, (&x, input), dense::Prologue::None, &one, (&mut alone, out));
                }
            }
            assert_same_bits(&together, &alone, &format!("{isa:?}, rank {rank}, input {input}"));
        }
    }
}

#[test]
fn what_stands_before_the_layer_stands_before_the_adapter_too() {
    let mut values = Values::new(3);
    let (input, out, tokens) = (40, 70, 5);
    let parts = [plain(&mut values, (4, input), (0, out))];
    let low_rank = packed(&parts);
    let segments = [Segment { tokens: 1..4, parts: &low_rank }];
    for device in devices() {
        let norm = tensor(&values.many(input), &[input], &device);
        for (prologue, columns) in [
            (Prologue::RmsNorm { weight: &norm, eps: 1e-5 }, input),
            (Prologue::LayerNorm { weight: &norm, bias: Some(&norm), eps: 1e-5 }, input),
            (Prologue::LayerNorm { weight: &norm, bias: None, eps: 1e-5 }, input),
            (Prologue::GeluTanh, input),
            (Prologue::SiluMul, 2 * input),
            (Prologue::GeluTanhMul, 2 * input),
            (Prologue::ClampedSwigluMul, 2 * input),
        ] {
            let x = tensor(&values.many(tokens * columns), &[tokens, columns], &device);
            // The dense layer with A as its weight shows what it makes of x.
            let identity: Vec<f32> =
                (0..input * input).map(|at| if at / input == at % input { 1.0 } else { 0.0 }).collect();
            let identity = sconce_kernels::Weight::from_f32(input, input, identity).expect("square");
            let precision = sconce_kernels::Precision::Fast;
            let identity =
                sconce_kernels::PackedWeight::new(&[&identity], precision, &mut sconce_kernels::Arena::default())
                    .expect("one weight");
            let seen = sconce_kernels::matmul(&x, prologue, &identity, Default::default()).expect("sizes fit");
            let seen = super::flat(&seen);
            let mut expected = vec![0.0; tokens * out];
            for token in 1..4 {
                let y = &mut expected[token * out..(token + 1) * out];
                reference(&seen[token * input..(token + 1) * input], &parts, y);
            }
            let mut y = vec![0.0; tokens * out];
            add_low_rank(&x, prologue, &segments, &mut y, out).expect("sizes fit");
            assert_close(&y, &expected, 2e-4, &format!("{prologue:?}"));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    assert!(LowRank::new(vec![0.0; 8], &[0.0; 6], 4, 1.0, 0).is_none(), "six values in rows of four");
    assert!(LowRank::new(Vec::new(), &[0.0; 4], 4, 1.0, 0).is_none());
    let part = |first| LowRank::new(vec![0.0; 8], &[0.0; 12], 2, 1.0, first).expect("4 to 6");
    let device = &devices()[0];
    let (one, twice) = ([part(0)], [part(0), part(3)]);
    for (tokens, parts, columns, names) in [
        (0..4, &one[..], 4, "end beyond 3"),
        (0..2, &one[..], 5, "5 columns"),
        (0..2, &twice[..], 4, "columns 3..9"),
        (0..2, &[part(5)][..], 4, "columns 5..11 of 10"),
    ] {
        let x = tensor(&vec![0.0; 3 * columns], &[3, columns], device);
        let segments = [Segment { tokens, parts }];
        assert_error(add_low_rank(&x, Prologue::None, &segments, &mut [0.0; 30], 10), names);
    }
    let x = tensor(&[0.0; 12], &[3, 4], device);
    let backwards = [Segment { tokens: 1..3, parts: &one }, Segment { tokens: 0..1, parts: &one }];
    assert_error(add_low_rank(&x, Prologue::None, &backwards, &mut [0.0; 30], 10), "do not follow");
    assert_error(add_low_rank(&x, Prologue::None, &[], &mut [0.0; 29], 10), "29 values");
}
