//! The gated delta rule: against plain loops, in chunks, in company, and from saved and copied states.

use candle_core::{Device, Tensor};
use sconce_kernels::{
    DeltaBatch, DeltaSizes, DeltaStates, DeltaWeights, HeadOrder, StateSave, gated_delta_rule, reference,
};

use super::{Values, assert_close, assert_error, assert_same_bits, flat, tensor};

const EPS: f32 = 1e-6;
const SLOTS: u32 = 5;

/// Odd widths, full tiles and both, with one value head a key head and several.
const SHAPES: [DeltaSizes; 5] = [
    DeltaSizes { key_heads: 1, value_heads: 1, key_dim: 3, value_dim: 5, taps: 1, order: HeadOrder::Grouped },
    DeltaSizes { key_heads: 2, value_heads: 4, key_dim: 8, value_dim: 16, taps: 4, order: HeadOrder::Grouped },
    DeltaSizes { key_heads: 2, value_heads: 6, key_dim: 17, value_dim: 33, taps: 2, order: HeadOrder::Tiled },
    DeltaSizes { key_heads: 3, value_heads: 3, key_dim: 20, value_dim: 51, taps: 3, order: HeadOrder::Tiled },
    DeltaSizes { key_heads: 1, value_heads: 2, key_dim: 128, value_dim: 128, taps: 4, order: HeadOrder::Grouped },
];

struct World {
    sizes: DeltaSizes,
    states: DeltaStates,
    weights: [Tensor; 4],
}

impl World {
    fn new(sizes: DeltaSizes, values: &mut Values) -> Self {
        let device = Device::Cpu;
        let heads = sizes.value_heads;
        let decay: Vec<f32> = values.many(heads).iter().map(|value| -(2.0 * value).exp()).collect();
        let norm: Vec<f32> = values.many(sizes.value_dim).iter().map(|value| 1.0 + value / 2.0).collect();
        Self {
            sizes,
            states: DeltaStates::new(sizes, SLOTS).expect("a few small states"),
            weights: [
                tensor(&values.many(sizes.taps * sizes.mixed()), &[sizes.taps, sizes.mixed()], &device),
                tensor(&decay, &[heads], &device),
                tensor(&values.many(heads), &[heads], &device),
                tensor(&norm, &[sizes.value_dim], &device),
            ],
        }
    }

    /// The next tokens of some sequences: for each its slot, its first position, and its rows of x.
    fn try_step(&mut self, rows: &[(u32, usize, &[f32])], saves: &[StateSave]) -> sconce_kernels::Result<Tensor> {
        let width = self.sizes.projected();
        let (mut x, mut positions, mut row_ends) = (Vec::new(), Vec::new(), Vec::new());
        for (_, first, of_row) in rows {
            x.extend_from_slice(of_row);
            positions.extend((0..of_row.len() / width).map(|at| (first + at) as u32));
            row_ends.push(positions.len() as u32);
        }
        let slots: Vec<u32> = rows.iter().map(|row| row.0).collect();
        let [taps, decay, decay_bias, norm] = &self.weights;
        let weights = DeltaWeights { taps, decay, decay_bias, norm, eps: EPS };
        let batch = DeltaBatch { positions: &positions, row_ends: &row_ends, slots: &slots, saves };
        gated_delta_rule(&mut self.states, &tensor(&x, &[positions.len(), width], &Device::Cpu), &weights, &batch)
    }

    fn step(&mut self, rows: &[(u32, usize, &[f32])], saves: &[StateSave]) -> Vec<f32> {
        flat(&self.try_step(rows, saves).expect("a sound batch"))
    }

    fn truth(&self, x: &[f32]) -> Vec<f32> {
        let [taps, decay, decay_bias, norm] = self.weights.each_ref().map(flat);
        reference::gated_delta_rule(x, &self.sizes, &taps, (&decay, &decay_bias), (&norm, EPS))
    }
}

#[test]
fn the_delta_rule_agrees_with_plain_loops_in_chunks_of_any_size() {
    for (index, sizes) in SHAPES.into_iter().enumerate() {
        let mut values = Values::new(90 + index as u64);
        let mut world = World::new(sizes, &mut values);
        let x = values.many(11 * sizes.projected());
        let whole = world.step(&[(2, 0, &x)], &[]);
        assert_close(&whole, &world.truth(&x), 2e-5, &format!("{sizes:?}"));
        for chunk in [1, 2, 3, 7] {
            let mut found = Vec::new();
            for (index, x) in x.chunks(chunk * sizes.projected()).enumerate() {
                found.extend(world.step(&[(4, index * chunk, x)], &[]));
            }
            assert_same_bits(&found, &whole, &format!("{sizes:?} in chunks of {chunk}"));
        }
    }
}

#[test]
fn a_sequence_does_not_notice_its_company() {
    for (index, sizes) in SHAPES.into_iter().enumerate() {
        let mut values = Values::new(190 + index as u64);
        let mut world = World::new(sizes, &mut values);
        let (width, values_width) = (sizes.projected(), sizes.values());
        let [a, b] = [8, 6].map(|tokens| values.many(tokens * width));
        let alone = [world.step(&[(0, 0, &a)], &[]), world.step(&[(1, 0, &b)], &[])];
        let (a_first, a_rest) = a.split_at(5 * width);
        let first = world.step(&[(3, 0, a_first), (1, 0, &b[..width])], &[]);
        let second = world.step(&[(1, 1, &b[width..]), (3, 5, a_rest)], &[]);
        let found_a = [&first[..5 * values_width], &second[5 * values_width..]].concat();
        let found_b = [&first[5 * values_width..], &second[..5 * values_width]].concat();
        assert_same_bits(&found_a, &alone[0], &format!("{sizes:?}"));
        assert_same_bits(&found_b, &alone[1], &format!("{sizes:?}"));
    }
}

#[test]
fn saved_and_copied_states_go_on_where_they_were_left() {
    for (index, sizes) in SHAPES.into_iter().enumerate() {
        let mut values = Values::new(290 + index as u64);
        let mut world = World::new(sizes, &mut values);
        let (width, values_width) = (sizes.projected(), sizes.values());
        let [other, x] = [2, 9].map(|tokens| values.many(tokens * width));
        let alone = world.step(&[(0, 0, &x)], &[]);
        // After the first token of the sequence, and after its sixth.
        let saves = [StateSave { token: 2, slot: 3 }, StateSave { token: 7, slot: 4 }];
        world.step(&[(1, 0, &other), (0, 0, &x)], &saves);
        for (slot, known) in [(3, 1), (4, 6)] {
            world.states.copy(slot, 2).expect("slots of the states");
            for from in [slot, 2] {
                let rest = world.step(&[(from, known, &x[known * width..])], &[]);
                assert_same_bits(&rest, &alone[known * values_width..], &format!("{sizes:?} from token {known}"));
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let sizes = SHAPES[1];
    let mut values = Values::new(97);
    let mut world = World::new(sizes, &mut values);
    let x = values.many(2 * sizes.projected());
    let taken = "taken twice or none of 5";
    assert_error(world.try_step(&[(1, 0, &x), (1, 0, &x)], &[]), taken);
    assert_error(world.try_step(&[(5, 0, &x)], &[]), taken);
    assert_error(world.try_step(&[(1, 0, &x)], &[StateSave { token: 0, slot: 1 }]), taken);
    assert_error(world.try_step(&[(1, 0, &x)], &[StateSave { token: 2, slot: 2 }]), "1 saves are left");
    assert_error(world.states.copy(0, 5), "slot 0 to 5");
    let narrow = DeltaSizes { value_heads: 3, ..sizes };
    assert_error(DeltaStates::new(narrow, 1), "are no states");
    world.weights[1] = tensor(&[1.0], &[1], &Device::Cpu);
    assert_error(world.try_step(&[(1, 0, &x)], &[]), "decay must be [4]");
}
