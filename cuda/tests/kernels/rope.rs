//! Bias, norms, rotation and the cache's slots against plain loops in f64.

use sconce_cuda::ElementType::{self, Bf16, F16, F32, Fp8};
use sconce_cuda::ops::rope::{Cache, HeadNorms, Qkv, Queries, Rotation, rope_and_write_kv, rope_queries};
use sconce_cuda::{Buffer, Device};

use crate::typed::{download, rounded, tolerance, upload};
use crate::{distance, noise, on_each_device};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Norms {
    None,
    Heads,
    HeadsAndValue,
    Together,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    ty: ElementType,
    cache: ElementType,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    pairs: usize,
    interleaved: bool,
    bias: bool,
    norms: Norms,
}

const BLOCK_SIZE: usize = 4;
const BLOCKS: usize = 5;
const POSITIONS: usize = 40;
const EPS: f32 = 1e-5;
/// The last is padding, and its position is past the end.
const TOKENS: [(u32, u32); 4] = [(7, 9), (0, 2), (39, 19), (1000, u32::MAX)];

struct Inputs {
    qkv: Vec<f32>,
    bias: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    angles: Vec<f32>,
}

impl Case {
    fn inputs(&self, seed: u64) -> Inputs {
        let Case { heads, kv_heads, head_dim, pairs, .. } = *self;
        let width = (heads + 2 * kv_heads) * head_dim;
        let (query, key) = if self.norms == Norms::Together { (heads, kv_heads) } else { (1, 1) };
        let weight = |seed: u64, len: usize| noise(seed, len).iter().map(|x| 1.0 + 0.3 * x).collect::<Vec<f32>>();
        let angle = |position: usize, pair: usize| position as f32 * 0.8_f32.powi(pair as i32);
        let angles = (0..POSITIONS).flat_map(|position| {
            let cosines = (0..pairs).map(move |pair| angle(position, pair).cos());
            cosines.chain((0..pairs).map(move |pair| angle(position, pair).sin()))
        });
        Inputs {
            qkv: rounded(self.ty, &noise(seed, TOKENS.len() * width)),
            bias: noise(seed + 1, width),
            query: weight(seed + 2, query * head_dim),
            key: weight(seed + 3, key * head_dim),
            value: weight(seed + 4, head_dim),
            angles: angles.collect(),
        }
    }

    /// A token's row behind bias, norms and rotation.
    fn wanted_row(&self, inputs: &Inputs, token: usize) -> Vec<f64> {
        let Case { heads, kv_heads, head_dim, pairs, .. } = *self;
        let width = (heads + 2 * kv_heads) * head_dim;
        let mut row: Vec<f64> = inputs.qkv[token * width..][..width].iter().map(|x| f64::from(*x)).collect();
        if self.bias {
            row.iter_mut().zip(&inputs.bias).for_each(|(x, bias)| *x += f64::from(*bias));
        }
        let (query, rest) = row.split_at_mut(heads * head_dim);
        let (key, value) = rest.split_at_mut(kv_heads * head_dim);
        if self.norms != Norms::None {
            normed(query, &inputs.query);
            normed(key, &inputs.key);
        }
        if self.norms == Norms::HeadsAndValue {
            normed(value, &inputs.value);
        }
        let angles = &inputs.angles[(TOKENS[token].0 as usize).min(POSITIONS - 1) * 2 * pairs..];
        for head in row[..(heads + kv_heads) * head_dim].chunks_exact_mut(head_dim) {
            for pair in 0..pairs {
                let (a, b) = if self.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + pairs) };
                let (cosine, sine) = (f64::from(angles[pair]), f64::from(angles[pairs + pair]));
                (head[a], head[b]) = (head[a] * cosine - head[b] * sine, head[b] * cosine + head[a] * sine);
            }
        }
        row
    }

    fn check(&self, device: &Device, seed: u64) {
        let Case { ty, cache: cache_ty, heads, kv_heads, head_dim, pairs, interleaved, .. } = *self;
        let inputs = self.inputs(seed);
        let up = |values: &[f32]| device.upload(values).unwrap();
        let (bias, query, key, value) = (up(&inputs.bias), up(&inputs.query), up(&inputs.key), up(&inputs.value));
        let (angles, qkv) = (up(&inputs.angles), upload(device, ty, &inputs.qkv));
        let norms = HeadNorms {
            query: query.all(),
            key: key.all(),
            value: (self.norms == Norms::HeadsAndValue).then(|| value.all()),
            eps: EPS,
        };
        let norms = (self.norms != Norms::None).then_some(norms);
        let before = rounded(cache_ty, &noise(seed + 9, BLOCKS * kv_heads * BLOCK_SIZE * head_dim));
        let (k, v) = (upload(device, cache_ty, &before), upload(device, cache_ty, &before));
        let cache = Cache { k: k.all(), v: v.all(), kv_heads, block_size: BLOCK_SIZE, head_dim };
        let positions = device.upload(&TOKENS.map(|token| token.0)).unwrap();
        let slots = device.upload(&TOKENS.map(|token| token.1)).unwrap();
        let q = device.alloc(TOKENS.len() * heads * head_dim, ty).unwrap();
        let bias = self.bias.then(|| bias.all());
        let parts = Qkv { qkv: qkv.all(), bias, norms, heads, tokens: TOKENS.len() };
        let rotation = Rotation { angles: angles.all(), pairs, interleaved };
        rope_and_write_kv(device, &parts, &rotation, (positions.all(), slots.all()), &cache, q.all()).unwrap();
        self.compare(&inputs, &before, [&q, &k, &v]);
        // Queries alone come out the same, to the bit.
        let width = (heads + 2 * kv_heads) * head_dim;
        let alone: Vec<f32> =
            inputs.qkv.chunks_exact(width).flat_map(|row| &row[..heads * head_dim]).copied().collect();
        let alone = upload(device, ty, &alone);
        let again = device.alloc(q.len(), ty).unwrap();
        let norm = norms.map(|norms| (norms.query, norms.eps));
        let queries = Queries { x: alone.all(), bias, norm, heads, head_dim, tokens: TOKENS.len() };
        rope_queries(device, &queries, &rotation, positions.all(), again.all()).unwrap();
        assert_eq!(download(&again), download(&q), "{self:?}");
    }

    fn compare(&self, inputs: &Inputs, before: &[f32], [q, k, v]: [&Buffer; 3]) {
        let Case { heads, kv_heads, head_dim, .. } = *self;
        let (mut wanted_q, mut wanted_k, mut wanted_v) = (Vec::new(), before.to_vec(), before.to_vec());
        let mut written = vec![false; before.len()];
        for (token, (_, slot)) in TOKENS.into_iter().enumerate() {
            let row: Vec<f32> = self.wanted_row(inputs, token).into_iter().map(|x| x as f32).collect();
            wanted_q.extend_from_slice(&row[..heads * head_dim]);
            if slot == u32::MAX {
                continue;
            }
            for head in 0..kv_heads {
                let (block, offset) = (slot as usize / BLOCK_SIZE, slot as usize % BLOCK_SIZE);
                let place = ((block * kv_heads + head) * BLOCK_SIZE + offset) * head_dim;
                let (key, value) = ((heads + head) * head_dim, (heads + kv_heads + head) * head_dim);
                wanted_k[place..place + head_dim].copy_from_slice(&row[key..key + head_dim]);
                wanted_v[place..place + head_dim].copy_from_slice(&row[value..value + head_dim]);
                written[place..place + head_dim].fill(true);
            }
        }
        let close = |found: &Buffer, wanted: &[f32], ty: ElementType| {
            let apart = distance(&download(found), wanted);
            assert!(apart < tolerance(ty), "{apart} in {self:?}");
        };
        close(q, &wanted_q, self.ty);
        close(k, &wanted_k, self.cache);
        close(v, &wanted_v, self.cache);
        for found in [download(k), download(v)] {
            let untouched = |i: &usize| !written[*i];
            assert!((0..before.len()).filter(untouched).all(|i| found[i] == before[i]), "other slots in {self:?}");
        }
    }
}

/// RMSNorm of each part as long as the weight.
fn normed(values: &mut [f64], weight: &[f32]) {
    for part in values.chunks_exact_mut(weight.len()) {
        let mean = part.iter().map(|x| x * x).sum::<f64>() / part.len() as f64;
        let factor = 1.0 / (mean + f64::from(EPS)).sqrt();
        part.iter_mut().zip(weight).for_each(|(x, weight)| *x *= factor * f64::from(*weight));
    }
}

const PLAIN: Case = Case {
    ty: F32,
    cache: F32,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    pairs: 32,
    interleaved: false,
    bias: false,
    norms: Norms::None,
};

#[test]
fn heads_are_normed_rotated_and_written_into_their_slots() {
    let cases = [
        PLAIN,
        Case { interleaved: true, bias: true, ..PLAIN },
        Case { pairs: 12, head_dim: 80, bias: true, norms: Norms::Heads, ..PLAIN },
        Case { pairs: 3, head_dim: 10, norms: Norms::HeadsAndValue, ..PLAIN },
        Case { pairs: 3, head_dim: 10, interleaved: true, norms: Norms::HeadsAndValue, ..PLAIN },
        Case { pairs: 0, norms: Norms::Heads, ..PLAIN },
        Case { heads: 9, kv_heads: 3, head_dim: 32, pairs: 16, bias: true, norms: Norms::Together, ..PLAIN },
        Case { heads: 7, kv_heads: 1, head_dim: 128, pairs: 64, bias: true, norms: Norms::Heads, ..PLAIN },
        Case { heads: 1, kv_heads: 1, head_dim: 256, pairs: 32, ..PLAIN },
    ];
    on_each_device(|device| cases.iter().zip(1..).for_each(|(case, seed)| case.check(device, seed)));
}

#[test]
fn every_pair_of_activation_and_cache_types() {
    on_each_device(|device| {
        for (index, ty) in [F32, F16, Bf16].into_iter().enumerate() {
            for (inner, cache) in [F32, F16, Bf16, Fp8].into_iter().enumerate() {
                let case = Case { ty, cache, bias: true, norms: Norms::Heads, ..PLAIN };
                case.check(device, 100 + 10 * index as u64 + inner as u64);
            }
        }
    });
}

#[test]
fn fp8_saturates() {
    on_each_device(|device| {
        let values = [448.0, 449.0, -1e9, 464.1, 1e-9, -0.4];
        let row: Vec<f32> = [&[0.0; 6][..], &values, &values].concat();
        let qkv = device.upload(&row).unwrap();
        let k = device.zeros(6, Fp8).unwrap();
        let v = device.zeros(6, Fp8).unwrap();
        let cache = Cache { k: k.all(), v: v.all(), kv_heads: 1, block_size: 1, head_dim: 6 };
        let (zero, q) = (device.upload(&[0_u32]).unwrap(), device.alloc(6, F32).unwrap());
        let parts = Qkv { qkv: qkv.all(), bias: None, norms: None, heads: 1, tokens: 1 };
        let rotation = Rotation { angles: q.all(), pairs: 0, interleaved: false };
        rope_and_write_kv(device, &parts, &rotation, (zero.all(), zero.all()), &cache, q.all()).unwrap();
        for found in [download(&k), download(&v)] {
            assert_eq!(found, [448.0, 448.0, -448.0, 448.0, 0.0, -0.40625]);
        }
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    on_each_device(|device| {
        let floats = device.zeros(256, F32).unwrap();
        let tokens = device.upload(&[0_u32; 2]).unwrap();
        let cache = Cache { k: floats.all(), v: floats.all(), kv_heads: 2, block_size: 4, head_dim: 8 };
        let parts = Qkv { qkv: floats.all(), bias: None, norms: None, heads: 4, tokens: 2 };
        let rotation = Rotation { angles: floats.all(), pairs: 4, interleaved: false };
        let norms = |len: usize| {
            Some(HeadNorms { query: floats.range(0, len), key: floats.range(0, len), value: None, eps: EPS })
        };
        let refused = |parts: Qkv, rotation: Rotation, cache: Cache, words: &str| {
            let where_to = (tokens.all(), tokens.all());
            let error = rope_and_write_kv(device, &parts, &rotation, where_to, &cache, floats.all()).unwrap_err();
            assert!(error.to_string().contains(words), "{error} for {words}");
        };
        refused(Qkv { tokens: 3, ..parts }, rotation, cache, "positions has 2 elements");
        refused(Qkv { tokens: 9, ..parts }, rotation, cache, "qkv has 256 elements");
        refused(Qkv { norms: norms(12), ..parts }, rotation, cache, "norms of 12 and 12 elements");
        refused(Qkv { bias: Some(floats.range(0, 8)), ..parts }, rotation, cache, "bias has 8 elements");
        refused(parts, Rotation { pairs: 5, ..rotation }, cache, "5 pairs of a head of 8");
        refused(parts, rotation, Cache { kv_heads: 3, ..cache }, "not made of blocks of 96");
        refused(parts, rotation, Cache { v: floats.range(0, 64), ..cache }, "v of the cache has 64 elements");
        refused(
            parts,
            rotation,
            Cache { k: floats.range(1, 64), v: floats.range(0, 64), ..cache },
            "multiple of 16 bytes",
        );
    });
}
