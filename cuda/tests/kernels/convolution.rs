//! Short convolutions over a paged cache against plain loops.

use sconce_cuda::Device;
use sconce_cuda::ElementType::{self, Bf16, F16, F32, Fp8};
use sconce_cuda::ops::attention::Rows;
use sconce_cuda::ops::convolution::Convolution;

use crate::typed::{download, rounded, tolerance, upload};
use crate::{distance, noise, on_each_device};

const BLOCKS: usize = 12;
const BLOCK_SIZE: usize = 4;
/// Tokens of a row and its context, these included; a context of 0 is padding.
const ROWS: [(usize, usize); 5] = [(5, 5), (1, 9), (1, 0), (3, 14), (1, 1)];

struct Case {
    ty: ElementType,
    cache: ElementType,
    width: usize,
    taps: usize,
    has_bias: bool,
}

/// Blocks of a row, none of which another row has.
fn table(row: usize, context: usize) -> Vec<u32> {
    let before: usize = ROWS[..row].iter().map(|(_, context)| context.div_ceil(BLOCK_SIZE)).sum();
    (before..before + context.div_ceil(BLOCK_SIZE)).map(|at| ((5 * at + 2) % BLOCKS) as u32).collect()
}

fn slot(row: usize, context: usize, position: usize) -> usize {
    table(row, context)[position / BLOCK_SIZE] as usize * BLOCK_SIZE + position % BLOCK_SIZE
}

/// What the cache holds afterwards, and what the tokens become.
fn wanted(
    case: &Case,
    x: &[f32],
    bias: &[f32],
    cache: &[f32],
    (taps, tap_bias): (&[f32], &[f32]),
) -> (Vec<f32>, Vec<f32>) {
    let (width, mut cache, mut y) = (case.width, cache.to_vec(), Vec::new());
    let bias = |part: usize, at: usize| if case.has_bias { bias[part * width + at] } else { 0.0 };
    let one = |token: usize, part: usize, at: usize| x[(token * 3 + part) * width + at] + bias(part, at);
    let mut tokens = Vec::new();
    for (row, &(count, context)) in ROWS.iter().enumerate() {
        tokens.extend((0..count).map(|at| (row, context, (context + at).wrapping_sub(count))));
    }
    for (token, &(row, context, position)) in tokens.iter().enumerate().filter(|(_, (_, context, _))| *context > 0) {
        for at in 0..width {
            cache[slot(row, context, position) * width + at] = one(token, 0, at) * one(token, 2, at);
        }
    }
    let seen = rounded(case.cache, &cache);
    for (token, &(row, context, position)) in tokens.iter().enumerate() {
        for at in 0..width {
            let mut sum = if case.has_bias { tap_bias[at] } else { 0.0 };
            for back in (0..case.taps).rev().filter(|back| context > 0 && *back <= position) {
                sum +=
                    taps[(case.taps - 1 - back) * width + at] * seen[slot(row, context, position - back) * width + at];
            }
            y.push(one(token, 1, at) * sum);
        }
    }
    (cache, y)
}

fn check(device: &Device, case: &Case) {
    let Case { ty, cache: cache_ty, width, taps: count, has_bias } = *case;
    let tokens: usize = ROWS.iter().map(|(count, _)| count).sum();
    let x = rounded(ty, &noise(1, tokens * 3 * width));
    let before = rounded(cache_ty, &noise(2, BLOCKS * BLOCK_SIZE * width));
    let (bias, taps, tap_bias) = (noise(3, 3 * width), noise(4, count * width), noise(5, width));
    let (x_there, cache) = (upload(device, ty, &x), upload(device, cache_ty, &before));
    let up = |values: &[f32]| device.upload(values).unwrap();
    let (bias_there, taps_there, tap_bias_there) = (up(&bias), up(&taps), up(&tap_bias));
    let (mut starts, mut table_starts, mut tables, mut slots) = (vec![0_u32], vec![0_u32], Vec::new(), Vec::new());
    for (row, &(count, context)) in ROWS.iter().enumerate() {
        starts.push(starts[row] + count as u32);
        tables.extend(table(row, context));
        table_starts.push(tables.len() as u32);
        let place = |at: usize| if context == 0 { u32::MAX } else { slot(row, context, context - count + at) as u32 };
        slots.extend((0..count).map(place));
    }
    let up = |values: &[u32]| device.upload(values).unwrap();
    let contexts = up(&ROWS.map(|(_, context)| context as u32));
    let (starts, table_starts, tables, slots) = (up(&starts), up(&table_starts), up(&tables), up(&slots));
    let rows = Rows {
        row_starts: starts.all(),
        context_lens: contexts.all(),
        block_tables: tables.all(),
        table_starts: table_starts.all(),
        rows: ROWS.len(),
        tokens,
        query_max: 5,
    };
    let op = Convolution {
        x: x_there.all(),
        bias: has_bias.then(|| bias_there.all()),
        cache: cache.all(),
        taps: taps_there.all(),
        tap_bias: has_bias.then(|| tap_bias_there.all()),
        width,
        block_size: BLOCK_SIZE,
        tokens,
    };
    let y = device.alloc(tokens * width, ty).unwrap();
    op.write(device, slots.all()).unwrap();
    op.mix(device, &rows, y.all()).unwrap();
    let (wanted_cache, wanted_y) = wanted(case, &x, &bias, &before, (&taps, &tap_bias));
    let what = format!("{ty:?}, a cache of {cache_ty:?}, {count} taps of {width}");
    assert!(distance(&download(&cache), &wanted_cache) < tolerance(cache_ty), "{what}: the cache");
    let allowed = tolerance(ty).max(if cache_ty == Fp8 { 1e-2 } else { 0.0 });
    assert!(distance(&download(&y), &wanted_y) < allowed, "{what}");
    assert!(Convolution { tokens: tokens + 1, ..op }.mix(device, &rows, y.all()).is_err(), "tokens of no row");
    assert!(Convolution { width: width + 1, ..op }.write(device, slots.all()).is_err(), "another width");
}

#[test]
fn convolutions_look_back() {
    on_each_device(|device| {
        check(device, &Case { ty: F32, cache: F32, width: 33, taps: 3, has_bias: true });
        check(device, &Case { ty: F16, cache: F16, width: 300, taps: 4, has_bias: false });
        check(device, &Case { ty: Bf16, cache: Bf16, width: 64, taps: 3, has_bias: true });
        check(device, &Case { ty: Bf16, cache: Fp8, width: 32, taps: 7, has_bias: false });
        check(device, &Case { ty: F32, cache: F16, width: 5, taps: 1, has_bias: true });
    });
}
