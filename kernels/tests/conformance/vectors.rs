//! Caches of one vector a token: what is written comes back through a convolution, whatever the batch and the chunks.

use candle_core::{Device, Tensor};
use sconce_kernels::{AttentionBatch, KvDtype, KvLayer, short_convolution, write_vectors};

use super::{Values, assert_close, assert_error, assert_same_bits, flat, tensor};

const WIDTH: usize = 21;
const TAPS: usize = 3;

/// One sequence in blocks of two, out of order.
struct World {
    cache: KvLayer,
    taps: Tensor,
    bias: Tensor,
    table: Vec<u32>,
}

impl World {
    fn new(dtype: KvDtype, values: &mut Values) -> Self {
        let device = Device::Cpu;
        Self {
            cache: KvLayer::of_vectors([6, 2, WIDTH], dtype, &device).expect("a small cache"),
            taps: tensor(&values.many(TAPS * WIDTH), &[TAPS, WIDTH], &device),
            bias: tensor(&values.many(WIDTH), &[WIDTH], &device),
            table: vec![4, 0, 5, 2],
        }
    }

    /// Writes the next tokens and convolves them.
    fn step(&mut self, x: &[f32], first: usize) -> Vec<f32> {
        let tokens = x.len() / WIDTH;
        let positions: Vec<u32> = (first as u32..(first + tokens) as u32).collect();
        let slots: Vec<u32> = positions.iter().map(|at| self.table[*at as usize / 2] * 2 + at % 2).collect();
        write_vectors(&mut self.cache, &tensor(x, &[tokens, WIDTH], &Device::Cpu), &slots).expect("slots fit");
        let batch = AttentionBatch {
            positions: &positions,
            row_ends: &[tokens as u32],
            context_lens: &[(first + tokens) as u32],
            block_tables: &self.table,
            block_table_ends: &[self.table.len() as u32],
        };
        flat(&short_convolution(&self.cache, &batch, &self.taps, Some(&self.bias)).expect("a sound batch"))
    }
}

#[test]
fn convolutions_agree_with_plain_loops_in_chunks_of_any_size() {
    for (dtype, tolerance) in [(KvDtype::F32, 1e-6), (KvDtype::F16, 2e-3), (KvDtype::Bf16, 2e-2), (KvDtype::Fp8, 0.3)] {
        let mut values = Values::new(71);
        let mut world = World::new(dtype, &mut values);
        let x = values.many(7 * WIDTH);
        let whole = world.step(&x, 0);
        let (taps, bias) = (flat(&world.taps), flat(&world.bias));
        let want: Vec<f32> = (0..7 * WIDTH)
            .map(|at| {
                let (token, channel) = (at / WIDTH, at % WIDTH);
                let before = (0..TAPS).filter(|tap| token + 1 + tap >= TAPS);
                let of = |tap: usize| taps[tap * WIDTH + channel] * x[(token + 1 + tap - TAPS) * WIDTH + channel];
                bias[channel] + before.map(of).sum::<f32>()
            })
            .collect();
        assert_close(&whole, &want, tolerance, dtype.name());
        for chunk in [1, 2, 3] {
            let mut found = Vec::new();
            for (index, x) in x.chunks(chunk * WIDTH).enumerate() {
                found.extend(world.step(x, index * chunk));
            }
            assert_same_bits(&found, &whole, &format!("{dtype:?} in chunks of {chunk}"));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::Cpu;
    let mut values = Values::new(72);
    let mut world = World::new(KvDtype::F32, &mut values);
    let x = tensor(&values.many(WIDTH), &[1, WIDTH], &device);
    assert_error(write_vectors(&mut world.cache, &x, &[12]), "slot 12 is outside");
    let narrow = tensor(&values.many(WIDTH - 1), &[1, WIDTH - 1], &device);
    assert_error(write_vectors(&mut world.cache, &narrow, &[1]), "x must be [1, 21]");
    let mut heads = KvLayer::new([2, 2, 2, WIDTH], KvDtype::F32, &device).expect("a small cache");
    assert_error(write_vectors(&mut heads, &x, &[1]), "2 heads");
    let batch = AttentionBatch {
        positions: &[0],
        row_ends: &[1],
        context_lens: &[1],
        block_tables: &[6],
        block_table_ends: &[1],
    };
    assert_error(short_convolution(&world.cache, &batch, &world.taps, None), "block 6 is outside");
    let taps = tensor(&values.many(2 * (WIDTH - 1)), &[2, WIDTH - 1], &device);
    assert_error(short_convolution(&world.cache, &batch, &taps, None), "do not fit vectors of 21");
}
