//! The gated delta rule against plain loops in f64: prompts, chunks of them, decodes, saved states and copies.

use sconce_cuda::ElementType::{self, Bf16, F16, F32};
use sconce_cuda::ops::delta::{DeltaRoom, DeltaRows, DeltaRule, DeltaSizes, DeltaWeights, copy_state, sigmoid_mul};
use sconce_cuda::{Buffer, Device};

use crate::typed::{download, tolerance, upload};
use crate::{distance, noise, on_each_device};

const NONE: u32 = u32::MAX;
const EPS: f32 = 1e-5;
const SLOTS: usize = 5;

/// A layer, and what a sequence's tokens bring.
struct Layer {
    sizes: DeltaSizes,
    taps: Vec<f32>,
    decay: Vec<f32>,
    decay_bias: Vec<f32>,
    norm: Vec<f32>,
}

/// A row of a step: of which sequence, from which token, how many, its slot, and (token of the row, slot) of saves.
struct Row<'a> {
    sequence: usize,
    start: usize,
    count: usize,
    slot: u32,
    saves: &'a [(usize, u32)],
}

impl Layer {
    fn new(sizes: DeltaSizes) -> Self {
        let decay = noise(2, sizes.value_heads).iter().map(|x| -0.2 - x.abs()).collect();
        let norm = noise(4, sizes.value_dim).iter().map(|x| 1.0 + 0.3 * x).collect();
        let taps = noise(1, sizes.taps * sizes.mixed());
        Self { sizes, taps, decay, decay_bias: noise(3, sizes.value_heads), norm }
    }

    /// What all tokens of a sequence give, one after the other from nothing.
    fn wanted(&self, x: &[f32]) -> Vec<f32> {
        let DeltaSizes { key_heads, value_heads, key_dim, value_dim, taps, is_tiled } = self.sizes;
        let (projected, mixed, keys) = (self.sizes.projected(), self.sizes.mixed(), key_heads * key_dim);
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let mut states = vec![0.0_f64; value_heads * key_dim * value_dim];
        let mut out = Vec::new();
        for token in 0..x.len() / projected {
            let convolved = |column: usize| {
                let back = (0..taps.min(token + 1)).map(|back| {
                    f64::from(self.taps[(taps - 1 - back) * mixed + column])
                        * f64::from(x[(token - back) * projected + column])
                });
                silu(back.sum())
            };
            let vector = |first: usize, factor: f64| {
                let values: Vec<f64> = (first..first + key_dim).map(convolved).collect();
                let length = (values.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                values.into_iter().map(|x| x / length * factor).collect::<Vec<f64>>()
            };
            let numbers = &x[token * projected + mixed + self.sizes.values()..][..2 * value_heads];
            for head in 0..value_heads {
                let key_head = if is_tiled { head % key_heads } else { head / (value_heads / key_heads) };
                let query = vector(key_head * key_dim, 1.0 / (key_dim as f64).sqrt());
                let key = vector(keys + key_head * key_dim, 1.0);
                let time = (f64::from(numbers[value_heads + head]) + f64::from(self.decay_bias[head])).exp().ln_1p();
                let kept = (f64::from(self.decay[head]) * time).exp();
                let written = 1.0 / (1.0 + (-f64::from(numbers[head])).exp());
                let mut seen = Vec::new();
                for column in 0..value_dim {
                    let at = |row: usize| (head * key_dim + row) * value_dim + column;
                    (0..key_dim).for_each(|row| states[at(row)] *= kept);
                    let known: f64 = (0..key_dim).map(|row| states[at(row)] * key[row]).sum();
                    let change = written * (convolved(2 * keys + head * value_dim + column) - known);
                    (0..key_dim).for_each(|row| states[at(row)] += key[row] * change);
                    seen.push((0..key_dim).map(|row| states[at(row)] * query[row]).sum::<f64>());
                }
                let mean = seen.iter().map(|x| x * x).sum::<f64>() / value_dim as f64;
                for (column, seen) in seen.iter().enumerate() {
                    let gate = f64::from(x[token * projected + mixed + head * value_dim + column]);
                    let normed = seen / (mean + f64::from(EPS)).sqrt() * f64::from(self.norm[column]);
                    out.push((normed * silu(gate)) as f32);
                }
            }
        }
        out
    }

    /// One step of some rows; what their tokens give.
    fn step(
        &self,
        device: &Device,
        states: &Buffer,
        ty: ElementType,
        sequences: &[Vec<f32>],
        rows: &[Row],
    ) -> Vec<f32> {
        let (sizes, projected) = (self.sizes, self.sizes.projected());
        let (mut x, mut starts, mut contexts, mut slots) = (Vec::new(), vec![0_u32], Vec::new(), Vec::new());
        let mut saves = Vec::new();
        for row in rows {
            let first = saves.len();
            x.extend_from_slice(&sequences[row.sequence][row.start * projected..][..row.count * projected]);
            saves.resize(first + row.count, NONE);
            row.saves.iter().for_each(|(token, slot)| saves[first + token] = *slot);
            starts.push(saves.len() as u32);
            contexts.push((row.start + row.count) as u32);
            slots.push(row.slot);
        }
        let tokens = saves.len();
        let up = |values: &[u32]| device.upload(values).unwrap();
        let (starts, contexts, slots, saves) = (up(&starts), up(&contexts), up(&slots), up(&saves));
        let up = |values: &[f32]| device.upload(values).unwrap();
        let (x, taps, decay, decay_bias, norm) =
            (up(&x), up(&self.taps), up(&self.decay), up(&self.decay_bias), up(&self.norm));
        let floats = |len: usize| device.alloc(len, F32).unwrap();
        let (mixed, gates) = (floats(tokens * sizes.mixed()), floats(tokens * sizes.value_heads * 2));
        let (seen, y) = (floats(tokens * sizes.values()), device.alloc(tokens * sizes.values(), ty).unwrap());
        let rule = DeltaRule {
            sizes,
            weights: DeltaWeights {
                taps: taps.all(),
                decay: decay.all(),
                decay_bias: decay_bias.all(),
                norm: norm.all(),
                eps: EPS,
            },
            states: states.all(),
            x: x.all(),
            y: y.all(),
            room: DeltaRoom { mixed: mixed.all(), gates: gates.all(), seen: seen.all() },
        };
        let rows = DeltaRows {
            row_starts: starts.all(),
            context_lens: contexts.all(),
            slots: slots.all(),
            saves: saves.all(),
            rows: rows.len(),
            tokens,
        };
        rule.on(device, &rows).unwrap();
        assert!(DeltaRule { x: rule.x.range(0, 1), ..rule }.on(device, &rows).is_err(), "too little of x");
        download(&y)
    }
}

fn check(sizes: DeltaSizes, ty: ElementType) {
    on_each_device(|device| {
        let layer = Layer::new(sizes);
        let sequences: Vec<Vec<f32>> = [(7, 9), (8, 6)].map(|(seed, len)| noise(seed, len * sizes.projected())).into();
        let wanted: Vec<Vec<f32>> = sequences.iter().map(|x| layer.wanted(x)).collect();
        let width = sizes.values();
        let near = |found: &[f32], sequence: usize, start: usize, what: &str| {
            let wanted = &wanted[sequence][start * width..][..found.len()];
            let apart = distance(found, wanted);
            assert!(apart < tolerance(ty).max(2e-5), "{sizes:?} {ty:?} {what}: {apart}");
        };
        // Slots hold another's states at first.
        let states = upload(device, F32, &noise(9, SLOTS * sizes.state_len()));
        let row = |sequence, start, count, slot| Row { sequence, start, count, slot, saves: &[] };
        let saves = [(1, 4), (3, 0)];
        let rows = [Row { saves: &saves, ..row(0, 0, 5, 2) }, row(1, 0, 2, 1), row(1, 5, 1, NONE)];
        let found = layer.step(device, &states, ty, &sequences, &rows);
        near(&found[..5 * width], 0, 0, "a prompt");
        near(&found[5 * width..7 * width], 1, 0, "a short prompt");
        // Both go on, one by a chunk as short as what is convolved, then by single tokens.
        let found = layer.step(device, &states, ty, &sequences, &[row(1, 2, 2, 1), row(0, 5, 1, 2)]);
        near(&found[..2 * width], 1, 2, "a chunk");
        near(&found[2 * width..], 0, 5, "a decode");
        for at in 4..6 {
            near(&layer.step(device, &states, ty, &sequences, &[row(1, at, 1, 1)]), 1, at, "another decode");
        }
        // Saved states go on where they were saved: in their slots, and copied.
        near(&layer.step(device, &states, ty, &sequences, &[row(0, 2, 7, 4)]), 0, 2, "a saved state");
        copy_state(device, states.all(), sizes.state_len(), (0, 3)).unwrap();
        near(&layer.step(device, &states, ty, &sequences, &[row(0, 4, 3, 3)]), 0, 4, "a copied state");
        near(&layer.step(device, &states, ty, &sequences, &[row(0, 4, 1, 0)]), 0, 4, "what was copied");
        assert!(copy_state(device, states.all(), sizes.state_len(), (0, SLOTS as u32)).is_err());
    });
}

#[test]
fn states_go_on_where_they_ended() {
    let small = DeltaSizes { key_heads: 2, value_heads: 4, key_dim: 21, value_dim: 43, taps: 4, is_tiled: false };
    check(small, F32);
    check(DeltaSizes { is_tiled: true, taps: 1, ..small }, F16);
    check(DeltaSizes { key_heads: 1, value_heads: 3, key_dim: 128, value_dim: 32, taps: 2, is_tiled: false }, Bf16);
    check(DeltaSizes { key_heads: 1, value_heads: 1, key_dim: 200, value_dim: 5, taps: 7, is_tiled: true }, F32);
}

#[test]
fn sizes_without_a_kernel_are_refused() {
    on_each_device(|device| {
        let sizes = DeltaSizes { key_heads: 1, value_heads: 1, key_dim: 257, value_dim: 1, taps: 1, is_tiled: false };
        let memory = device.zeros(4096, F32).unwrap();
        let words = device.zeros(8, ElementType::U32).unwrap();
        let all = memory.all();
        let weights = DeltaWeights { taps: all, decay: all, decay_bias: all, norm: all, eps: EPS };
        let room = DeltaRoom { mixed: all, gates: all, seen: all };
        let (slots, saves) = (words.all(), words.all());
        let rows = DeltaRows { row_starts: words.all(), context_lens: words.all(), slots, saves, rows: 1, tokens: 1 };
        for sizes in [sizes, DeltaSizes { key_heads: 2, value_heads: 3, key_dim: 4, ..sizes }] {
            let rule = DeltaRule { sizes, weights, states: all, x: all, y: all, room };
            assert!(rule.on(device, &rows).is_err(), "{sizes:?}");
        }
    });
}

#[test]
fn a_gate_is_multiplied_in() {
    on_each_device(|device| {
        for ty in [F32, F16, Bf16] {
            let (x, y) = (upload(device, ty, &noise(1, 300)), upload(device, ty, &noise(2, 301)));
            let (gates, before) = (download(&x), download(&y));
            sigmoid_mul(device, x.all(), y.all(), 300).unwrap();
            let gated = |at: usize| f64::from(before[at]) / (1.0 + (-f64::from(gates[at])).exp());
            let wanted: Vec<f32> = (0..300).map(|at| gated(at) as f32).collect();
            let found = download(&y);
            assert!(distance(&found[..300], &wanted) < tolerance(ty) && found[300] == before[300], "{ty:?}");
        }
    });
}
