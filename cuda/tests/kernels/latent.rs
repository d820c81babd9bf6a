//! The way into latent attention against plain loops: vectors in the cache, queries in two parts, and the heads' matrices.

use sconce_cuda::ElementType::{self, Bf16, F16, F32, Fp8, U32};
use sconce_cuda::ops::columns::{place_columns, take_columns};
use sconce_cuda::ops::experts::{ExpertGemm, Source};
use sconce_cuda::ops::latent::{SplitQueries, WriteLatents, norm_first};
use sconce_cuda::ops::rope::Rotation;
use sconce_cuda::ops::routes::Tiles;

use crate::quant::product;
use crate::typed::{download, rounded, tolerance, upload};
use crate::{distance, noise, on_each_device};

const POSITIONS: usize = 20;
const EPS: f32 = 1e-5;
/// Positions and slots; the last is padding, and its position is past the end.
const TOKENS: [(u32, u32); 4] = [(7, 9), (0, 2), (19, 11), (1000, u32::MAX)];
const SLOTS: usize = 12;

fn angles(pairs: usize) -> Vec<f32> {
    let angle = |position: usize, pair: usize| position as f32 * 0.7_f32.powi(pair as i32);
    let of = |position: usize| {
        let cosines = (0..pairs).map(move |pair| angle(position, pair).cos());
        cosines.chain((0..pairs).map(move |pair| angle(position, pair).sin()))
    };
    (0..POSITIONS).flat_map(of).collect()
}

fn turned(x: &[f32], angles: &[f32], position: u32, interleaved: bool) -> Vec<f32> {
    let pairs = x.len() / 2;
    let angles = &angles[(position as usize).min(POSITIONS - 1) * 2 * pairs..];
    let mut turned = x.to_vec();
    for pair in 0..pairs {
        let (a, b) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + pairs) };
        let (cosine, sine) = (angles[pair], angles[pairs + pair]);
        (turned[a], turned[b]) = (x[a] * cosine - x[b] * sine, x[b] * cosine + x[a] * sine);
    }
    turned
}

fn normed(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
    let factor = 1.0 / (mean + f64::from(EPS)).sqrt();
    x.iter().zip(weight).map(|(x, weight)| (f64::from(*x) * factor) as f32 * weight).collect()
}

#[test]
fn vectors_go_into_their_slots() {
    on_each_device(|device| {
        for (cache_ty, rank, rotated, interleaved) in
            [(F32, 32, 8, true), (Bf16, 512, 64, true), (F16, 33, 6, false), (Fp8, 64, 16, false)]
        {
            let (first, stride) = (5, 5 + rank + rotated);
            let x = noise(1, TOKENS.len() * stride);
            let weight = noise(2, rank);
            let angles = angles(rotated / 2);
            let before = rounded(cache_ty, &noise(3, SLOTS * (rank + rotated)));
            let cache = upload(device, cache_ty, &before);
            let (x_there, weight_there, angles_there) =
                (device.upload(&x).unwrap(), device.upload(&weight).unwrap(), device.upload(&angles).unwrap());
            let positions = device.upload(&TOKENS.map(|token| token.0)).unwrap();
            let slots = device.upload(&TOKENS.map(|token| token.1)).unwrap();
            let op = WriteLatents {
                x: x_there.all(),
                stride,
                first,
                weight: weight_there.all(),
                eps: EPS,
                rotation: Rotation { angles: angles_there.all(), pairs: rotated / 2, interleaved },
                positions: positions.all(),
                slots: slots.all(),
                cache: cache.all(),
                tokens: TOKENS.len(),
            };
            op.on(device).unwrap();
            let mut wanted = before.clone();
            for (token, (position, slot)) in TOKENS.into_iter().enumerate().filter(|(_, (_, slot))| *slot != u32::MAX) {
                let row = &x[token * stride + first..][..rank + rotated];
                let vector = &mut wanted[slot as usize * (rank + rotated)..][..rank + rotated];
                vector[..rotated].copy_from_slice(&turned(&row[rank..], &angles, position, interleaved));
                vector[rotated..].copy_from_slice(&normed(&row[..rank], &weight));
            }
            let found = download(&cache);
            assert!(distance(&found, &wanted) < tolerance(cache_ty), "{cache_ty:?} {rank} + {rotated}");
            let untouched = |slot: usize| TOKENS.iter().all(|token| token.1 as usize != slot);
            for slot in (0..SLOTS).filter(|slot| untouched(*slot)) {
                let of = |values: &[f32]| values[slot * (rank + rotated)..][..rank + rotated].to_vec();
                assert_eq!(of(&found), of(&before), "slot {slot}");
            }
            assert!(WriteLatents { first: first + 1, ..op }.on(device).is_err(), "beyond the row");
        }
    });
}

fn check_queries(
    (x_ty, ty): (ElementType, ElementType),
    heads: usize,
    (plain, rotated): (usize, usize),
    interleaved: bool,
) {
    on_each_device(|device| {
        let (width, stride, tokens) = (rotated + 7, heads * (plain + rotated) + 3, TOKENS.len());
        let x = rounded(x_ty, &noise(5, tokens * stride));
        let angles = angles(rotated / 2);
        let (x_there, angles_there) = (upload(device, x_ty, &x), device.upload(&angles).unwrap());
        let positions = device.upload(&TOKENS.map(|token| token.0)).unwrap();
        let to_plain = device.alloc(tokens * heads * plain, ty).unwrap();
        let before = rounded(ty, &noise(6, tokens * heads * width));
        let q = upload(device, ty, &before);
        let op = SplitQueries {
            x: x_there.all(),
            stride,
            heads,
            plain,
            rotation: Rotation { angles: angles_there.all(), pairs: rotated / 2, interleaved },
            positions: positions.all(),
            to_plain: to_plain.all(),
            q: q.all(),
            width,
            tokens,
        };
        op.on(device).unwrap();
        let (mut wanted_plain, mut wanted_q) = (Vec::new(), before);
        for row in 0..tokens * heads {
            let from = &x[row / heads * stride + row % heads * (plain + rotated)..][..plain + rotated];
            wanted_plain.extend_from_slice(&from[..plain]);
            let turned = turned(&from[plain..], &angles, TOKENS[row / heads].0, interleaved);
            wanted_q[row * width..][..rotated].copy_from_slice(&turned);
        }
        assert!(distance(&download(&to_plain), &wanted_plain) < tolerance(ty), "{x_ty:?} {ty:?}");
        assert!(distance(&download(&q), &wanted_q) < tolerance(ty), "{x_ty:?} {ty:?}");
        assert!(SplitQueries { heads: heads + 1, ..op }.on(device).is_err(), "more heads than there are");
    });
}

#[test]
fn queries_come_apart() {
    check_queries((F32, F32), 3, (32, 8), true);
    check_queries((F32, Bf16), 16, (128, 64), true);
    check_queries((Bf16, Bf16), 9, (33, 6), false);
    check_queries((F16, F16), 1, (5, 2), true);
    check_queries((F32, F16), 8, (16, 4), false);
}

#[test]
fn what_queries_pass_through_is_normed() {
    on_each_device(|device| {
        for (ty, dim, stride) in [(F32, 32, 40), (F16, 700, 700), (Bf16, 1536, 2112)] {
            let (x, weight) = (noise(7, 3 * stride), noise(8, dim));
            let (x_there, weight_there) = (device.upload(&x).unwrap(), device.upload(&weight).unwrap());
            let y = device.alloc(3 * dim, ty).unwrap();
            norm_first(device, (x_there.all(), stride), (weight_there.all(), EPS), y.all(), 3).unwrap();
            let wanted: Vec<f32> = x.chunks_exact(stride).flat_map(|row| normed(&row[..dim], &weight)).collect();
            assert!(distance(&download(&y), &wanted) < tolerance(ty), "{ty:?} {dim} of {stride}");
        }
    });
}

/// Every head's own matrix: the product of experts where every token sees all, few tokens and many.
#[test]
fn heads_have_matrices_of_their_own() {
    on_each_device(|device| {
        for (ty, tokens, heads, (n, k)) in
            [(F32, 3, 4, (7, 5)), (Bf16, 9, 5, (40, 24)), (F16, 70, 3, (17, 32)), (Bf16, 1, 40, (16, 16))]
        {
            let (x_there, w_there) =
                (upload(device, ty, &noise(9, tokens * heads * k)), upload(device, ty, &noise(10, heads * n * k)));
            let (x, w) = (download(&x_there), download(&w_there));
            let room = device.alloc(Tiles::every_len(tokens, heads), U32).unwrap();
            Tiles::every(device, tokens, heads, room.all()).unwrap();
            let tiles = Tiles::every_again(tokens, heads, room.all()).unwrap();
            let y = device.alloc(tokens * heads * n, ty).unwrap();
            let (x_all, w_all, source) = (x_there.all(), w_there.all(), Source::Route);
            ExpertGemm { x: x_all, w: w_all, bias: None, y: y.all(), n, k, source }.on(device, &tiles).unwrap();
            let wanted: Vec<f32> = (0..tokens * heads)
                .flat_map(|row| product(&x[row * k..][..k], &w[row % heads * n * k..][..n * k], (1, n, k)))
                .collect();
            assert!(distance(&download(&y), &wanted) < tolerance(ty), "{ty:?} {tokens} tokens, {heads} heads");
        }
    });
}

#[test]
fn columns_are_taken_as_they_were_placed() {
    on_each_device(|device| {
        let (rows, first, n, stride) = (5, 3, 300, 310);
        for ty in [F32, F16, Bf16] {
            let x = upload(device, ty, &noise(11, rows * n));
            let wide = device.zeros(rows * stride, ty).unwrap();
            place_columns(device, x.all(), wide.all(), rows, (first, n, stride)).unwrap();
            let again = device.alloc(rows * n, ty).unwrap();
            take_columns(device, wide.all(), again.all(), rows, (first, n, stride)).unwrap();
            assert_eq!(download(&again), download(&x));
            assert!(take_columns(device, wide.all(), again.all(), rows, (stride - n + 1, n, stride)).is_err());
        }
    });
}
