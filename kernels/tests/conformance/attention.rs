//! Paged attention over ragged batches with shuffled blocks.

use candle_core::{DType, Device, Tensor};
use sconce_kernels::cpu::{self, Isa};
use sconce_kernels::reference::{self, AttentionShape};
use sconce_kernels::{AttentionBatch, AttentionParams, KvDtype, KvLayer, paged_attention};

use super::{Values, assert_close, assert_error, assert_same_bits, devices, e4m3, flat, tensor};

/// A cache of sequences whose K and V are all written, in blocks that are shuffled.
struct World {
    shape: AttentionShape,
    /// Context and block table of each sequence.
    sequences: Vec<(usize, Vec<u32>)>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// q of every position of every sequence, `[context, heads, head_dim]`.
    queries: Vec<Vec<f32>>,
}

/// Some tokens of a sequence: its number, the first position, and how many.
type Row = (usize, usize, usize);

#[derive(Default)]
struct Batch {
    q: Vec<f32>,
    positions: Vec<u32>,
    row_ends: Vec<u32>,
    context_lens: Vec<u32>,
    block_tables: Vec<u32>,
    block_table_ends: Vec<u32>,
}

impl Batch {
    fn view(&self) -> AttentionBatch<'_> {
        AttentionBatch {
            positions: &self.positions,
            row_ends: &self.row_ends,
            context_lens: &self.context_lens,
            block_tables: &self.block_tables,
            block_table_ends: &self.block_table_ends,
        }
    }
}

impl World {
    fn new(shape: AttentionShape, contexts: &[usize]) -> Self {
        let mut values = Values::new((shape.head_dim * 31 + shape.heads * 7 + shape.block_size) as u64);
        let needed: usize = contexts.iter().map(|context| context.div_ceil(shape.block_size)).sum();
        let mut blocks: Vec<u32> = (0..needed as u32 + 3).collect();
        for last in (1..blocks.len()).rev() {
            blocks.swap(last, values.below(last + 1));
        }
        let elements = blocks.len() * shape.kv_heads * shape.block_size * shape.head_dim;
        let (k, v) = (values.many(elements), values.many(elements));
        let mut blocks = blocks.into_iter();
        let sequences = contexts
            .iter()
            .map(|context| (*context, blocks.by_ref().take(context.div_ceil(shape.block_size)).collect()));
        let sequences: Vec<_> = sequences.collect();
        let width = shape.heads * shape.head_dim;
        let queries = contexts.iter().map(|context| values.many(context * width)).collect();
        Self { shape, sequences, k, v, queries }
    }

    fn batch(&self, rows: &[Row]) -> Batch {
        let width = self.shape.heads * self.shape.head_dim;
        let mut batch = Batch::default();
        for (sequence, first, tokens) in rows {
            let end = first + tokens;
            batch.q.extend(&self.queries[*sequence][first * width..end * width]);
            batch.positions.extend(*first as u32..end as u32);
            batch.row_ends.push(batch.positions.len() as u32);
            batch.context_lens.push(end as u32);
            batch.block_tables.extend(&self.sequences[*sequence].1[..end.div_ceil(self.shape.block_size)]);
            batch.block_table_ends.push(batch.block_tables.len() as u32);
        }
        batch
    }

    fn run(&self, isa: Isa, rows: &[Row], params: &AttentionParams) -> Vec<f32> {
        let batch = self.batch(rows);
        let cache = cpu::attention::Cache::F32(&self.k, &self.v);
        cpu::attention::paged_attention(isa, &batch.q, cache, self.shape, &batch.view(), params)
    }

    fn want(&self, rows: &[Row], params: &AttentionParams) -> Vec<f32> {
        let batch = self.batch(rows);
        reference::paged_attention(&batch.q, (&self.k, &self.v), self.shape, &batch.view(), params)
    }

    fn layer(&self, device: &Device) -> KvLayer {
        let AttentionShape { kv_heads, head_dim, block_size, .. } = self.shape;
        let dims = [self.k.len() / (kv_heads * block_size * head_dim), kv_heads, block_size, head_dim];
        KvLayer { k: tensor(&self.k, &dims, device), v: tensor(&self.v, &dims, device) }
    }
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize, block_size: usize) -> AttentionShape {
    AttentionShape { heads, kv_heads, head_dim, block_size }
}

fn shapes() -> [AttentionShape; 9] {
    [
        shape(1, 1, 1, 1),
        shape(9, 3, 64, 16),
        shape(8, 8, 20, 4),
        shape(8, 1, 80, 32),
        shape(6, 2, 128, 5),
        shape(4, 2, 96, 7),
        shape(14, 2, 64, 128),
        shape(40, 1, 16, 3),
        shape(4, 4, 33, 16),
    ]
}

/// As many as any of the shapes has heads.
static SINKS: [f32; 40] = {
    let mut sinks = [0.7; 40];
    (sinks[0], sinks[1], sinks[2]) = (-1.0, 3.0, 0.0);
    sinks
};

fn params(shape: AttentionShape) -> [AttentionParams<'static>; 6] {
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    let plain = AttentionParams { scale, window: None, softcap: None, sinks: None };
    [
        plain,
        AttentionParams { window: Some(3), ..plain },
        AttentionParams { window: Some(70), ..plain },
        AttentionParams { softcap: Some(1.5), ..plain },
        AttentionParams { window: Some(1), softcap: Some(30.0), scale: 2.0, sinks: None },
        AttentionParams { window: Some(60), sinks: Some(&SINKS[..shape.heads]), ..plain },
    ]
}

/// A decode, a whole prompt, a chunk in the middle, another decode.
const MIXED: [Row; 4] = [(0, 129, 1), (1, 0, 37), (2, 80, 21), (3, 0, 1)];
const CONTEXTS: [usize; 4] = [130, 37, 110, 1];

#[test]
fn ragged_batches_agree_with_the_reference() {
    for device in devices() {
        for shape in shapes() {
            let world = World::new(shape, &CONTEXTS);
            for params in params(shape) {
                let batch = world.batch(&MIXED);
                let q = tensor(&batch.q, &[batch.positions.len(), shape.heads, shape.head_dim], &device);
                let got = paged_attention(&q, &world.layer(&device), &batch.view(), &params).expect("a sound batch");
                assert_eq!(got.dims(), q.dims());
                assert_close(&flat(&got), &world.want(&MIXED, &params), 3e-6, &format!("{shape:?} {params:?}"));
            }
        }
    }
}

#[test]
fn long_contexts_agree_with_the_reference() {
    for isa in Isa::available() {
        for shape in [shape(3, 1, 64, 16), shape(2, 2, 20, 32)] {
            let world = World::new(shape, &[1700, 600]);
            for params in params(shape).into_iter().chain([AttentionParams {
                scale: 0.125,
                window: Some(520),
                softcap: None,
                sinks: None,
            }]) {
                for rows in
                    [&[(0, 1699, 1)][..], &[(0, 1010, 40), (1, 599, 1)], &[(1, 511, 2), (0, 511, 1), (1, 512, 1)]]
                {
                    let what = format!("{isa:?} {shape:?} {params:?} {rows:?}");
                    assert_close(&world.run(isa, rows, &params), &world.want(rows, &params), 3e-6, &what);
                }
            }
        }
    }
}

#[test]
fn chunks_and_company_change_no_bit() {
    for isa in Isa::available() {
        for shape in [shape(9, 3, 64, 16), shape(4, 2, 20, 5), shape(5, 1, 80, 32)] {
            let world = World::new(shape, &[150, 90]);
            for params in params(shape) {
                let width = shape.heads * shape.head_dim;
                let whole = world.run(isa, &[(0, 0, 150)], &params);
                for step in [1, 3, 7, 64] {
                    for first in (0..150).step_by(step) {
                        let row = (0, first, step.min(150 - first));
                        let want = &whole[first * width..(first + row.2) * width];
                        let what = format!("{isa:?} {shape:?} {params:?}, {row:?}");
                        assert_same_bits(&world.run(isa, &[row], &params), want, &what);
                        // Only some of the mixed batches: they cost the most.
                        if first % 21 == 0 {
                            let mixed = world.run(isa, &[(1, 10, 33), row, (1, 89, 1)], &params);
                            assert_same_bits(&mixed[33 * width..(33 + row.2) * width], want, &what);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn sharing_a_long_context_over_threads_changes_no_bit() {
    let shape = shape(3, 1, 64, 16);
    let world = World::new(shape, &[2100, 40]);
    for params in params(shape) {
        // Alone on several threads, its partitions are shared; on one thread or in a large batch they are not.
        let alone = |threads| {
            cpu::set_threads(threads);
            world.run(Isa::best(), &[(0, 2099, 1)], &params)
        };
        let results = [alone(1), alone(2), alone(16)];
        cpu::set_threads(2);
        let mut rows = vec![(0, 2099, 1)];
        rows.extend((0..40).map(|position| (1, position, 1)));
        let batched = world.run(Isa::best(), &rows, &params);
        cpu::set_threads(0);
        results.iter().for_each(|result| assert_same_bits(result, &batched[..3 * 64], &format!("{params:?}")));
    }
}

#[test]
fn what_a_token_must_not_see_does_not_reach_it() {
    for isa in Isa::available() {
        let shape = shape(4, 2, 20, 4);
        let mut world = World::new(shape, &[30]);
        let params = AttentionParams { scale: 0.2, window: Some(6), softcap: None, sinks: None };
        let rows = [(0, 8, 12)];
        let want = world.run(isa, &rows, &params);
        // Poison the positions after the last token and before the first one's window, and all foreign blocks.
        let seen = 3..20;
        let mut poisoned = vec![true; world.k.len()];
        for position in seen {
            let block = world.sequences[0].1[position / 4] as usize;
            for head in 0..2 {
                let at = ((block * 2 + head) * 4 + position % 4) * 20;
                poisoned[at..at + 20].fill(false);
            }
        }
        for (index, _) in poisoned.iter().enumerate().filter(|(_, poisoned)| **poisoned) {
            (world.k[index], world.v[index]) = (f32::NAN, f32::INFINITY);
        }
        assert_same_bits(&world.run(isa, &rows, &params), &want, &format!("{isa:?}"));
    }
}

#[test]
fn a_later_token_of_the_same_chunk_does_not_reach_an_earlier_one() {
    for isa in Isa::available() {
        let shape = shape(4, 2, 20, 4);
        let mut world = World::new(shape, &[30]);
        let params = AttentionParams { scale: 0.2, window: None, softcap: Some(5.0), sinks: None };
        let want = world.run(isa, &[(0, 0, 29)], &params);
        let block = world.sequences[0].1[7] as usize;
        for head in 0..2 {
            let at = ((block * 2 + head) * 4 + 1) * 20;
            world.k[at..at + 20].fill(f32::NAN);
            world.v[at..at + 20].fill(f32::NAN);
        }
        let got = world.run(isa, &[(0, 0, 30)], &params);
        assert_same_bits(&got[..29 * 80], &want, &format!("{isa:?}"));
        assert!(got[29 * 80..].iter().all(|value| value.is_nan()), "{isa:?}: NaN must show");
    }
}

#[test]
fn large_scores_do_not_overflow() {
    for isa in Isa::available() {
        let mut world = World::new(shape(2, 1, 16, 8), &[100]);
        world.k.iter_mut().for_each(|value| *value *= 300.0);
        let params = AttentionParams { scale: 10.0, window: None, softcap: None, sinks: None };
        let rows = [(0, 0, 100)];
        assert_close(&world.run(isa, &rows, &params), &world.want(&rows, &params), 2e-3, &format!("{isa:?}"));
    }
}

/// The values that a cache of this type holds.
pub(super) fn rounded(dtype: KvDtype, values: &[f32]) -> Vec<f32> {
    let round = |value: &f32| match dtype {
        KvDtype::F32 => *value,
        KvDtype::F16 => half::f16::from_f32(*value).to_f32(),
        KvDtype::Bf16 => half::bf16::from_f32(*value).to_f32(),
        KvDtype::Fp8 => e4m3::value(e4m3::nearest(*value)),
    };
    values.iter().map(round).collect()
}

#[test]
fn narrow_caches_agree_with_the_reference_on_what_they_hold() {
    for (dtype, shape) in KvDtype::ALL.into_iter().flat_map(|dtype| shapes().map(|shape| (dtype, shape))) {
        let mut world = World::new(shape, &CONTEXTS);
        (world.k, world.v) = (rounded(dtype, &world.k), rounded(dtype, &world.v));
        let f16 = |values: &[f32]| -> Vec<_> { values.iter().map(|value| half::f16::from_f32(*value)).collect() };
        let bf16 = |values: &[f32]| -> Vec<_> { values.iter().map(|value| half::bf16::from_f32(*value)).collect() };
        let (k16, v16, kb16, vb16) = (f16(&world.k), f16(&world.v), bf16(&world.k), bf16(&world.v));
        let f8 = |values: &[f32]| -> Vec<u8> { values.iter().map(|value| e4m3::nearest(*value)).collect() };
        let (k8, v8) = (f8(&world.k), f8(&world.v));
        let cache = match dtype {
            KvDtype::F32 => cpu::attention::Cache::F32(&world.k, &world.v),
            KvDtype::F16 => cpu::attention::Cache::F16(&k16, &v16),
            KvDtype::Bf16 => cpu::attention::Cache::Bf16(&kb16, &vb16),
            KvDtype::Fp8 => cpu::attention::Cache::Fp8(&k8, &v8),
        };
        for (isa, params) in Isa::available().into_iter().flat_map(|isa| params(shape).map(|p| (isa, p))) {
            let run = |rows: &[Row]| {
                let batch = world.batch(rows);
                cpu::attention::paged_attention(isa, &batch.q, cache, shape, &batch.view(), &params)
            };
            let all = run(&MIXED);
            let what = format!("{dtype:?} {isa:?} {shape:?} {params:?}");
            assert_close(&all, &world.want(&MIXED, &params), 3e-6, &what);
            // The row in the middle, in two pieces of which one is too small to be widened.
            let (one, rest) = (run(&[(2, 80, 1)]), run(&[(2, 81, 20)]));
            let width = shape.heads * shape.head_dim;
            assert_same_bits(&one, &all[38 * width..39 * width], &what);
            assert_same_bits(&rest, &all[39 * width..59 * width], &what);
        }
    }
}

#[test]
fn wrong_batches_are_refused_by_name() {
    for device in devices() {
        let world = World::new(shape(4, 2, 8, 4), &[10, 6]);
        let layer = world.layer(&device);
        let plain = AttentionParams { scale: 1.0, window: None, softcap: None, sinks: None };
        let check = |change: &dyn Fn(&mut Batch), part: &str| {
            let mut batch = world.batch(&[(0, 7, 3), (1, 5, 1)]);
            change(&mut batch);
            let q = tensor(&batch.q, &[4, 4, 8], &device);
            assert_error(paged_attention(&q, &layer, &batch.view(), &plain), part);
        };
        check(&|batch| batch.block_tables[1] = 99, "block 99 is outside");
        check(&|batch| batch.positions[1] = 0, "row 0 has position 0 where 8 must stand");
        check(&|batch| batch.positions.truncate(3), "3 positions for 4 tokens");
        check(&|batch| batch.context_lens.truncate(1), "1 context lengths");
        check(&|batch| batch.row_ends[1] = 9, "row 1");
        check(&|batch| batch.row_ends[1] = 3, "rows cover 3 of 4 tokens");
        check(&|batch| batch.row_ends.swap(0, 1), "row");
        check(&|batch| batch.context_lens[0] = 13, "row 0 has block table");
        check(&|batch| batch.context_lens[0] = 2, "context of 2");
        check(&|batch| batch.block_table_ends[1] = 99, "row 1 has block table");
        let batch = world.batch(&[(0, 7, 3), (1, 5, 1)]);
        let run = |dims: &[usize], params| {
            let q = Tensor::zeros(dims, DType::F32, &device).expect("fits");
            paged_attention(&q, &layer, &batch.view(), &params)
        };
        assert_error(run(&[4, 3, 8], plain), "3 heads of 8 do not fit");
        assert_error(run(&[4, 4, 9], plain), "4 heads of 9 do not fit");
        assert_error(run(&[4, 4, 8], AttentionParams { window: Some(0), ..plain }), "above zero");
        assert_error(run(&[4, 4, 8], AttentionParams { softcap: Some(0.0), ..plain }), "above zero");
        assert_error(run(&[4, 4, 8], AttentionParams { sinks: Some(&[0.0; 3]), ..plain }), "3 sinks for 4 heads");
    }
}

#[test]
fn an_empty_batch_gives_an_empty_answer() {
    for device in devices() {
        let world = World::new(shape(4, 2, 8, 4), &[10]);
        let q = Tensor::zeros((0, 4, 8), DType::F32, &device).expect("empty");
        let batch = Batch::default();
        let plain = AttentionParams { scale: 1.0, window: None, softcap: None, sinks: None };
        let out = paged_attention(&q, &world.layer(&device), &batch.view(), &plain).expect("nothing to do");
        assert_eq!(out.dims(), [0, 4, 8]);
    }
}
