//! Gated delta-rule linear attention (Gated DeltaNet, arXiv 2412.06464): a layer whose past is one state a sequence, of a
//! size that does not grow.
//!
//! Invariants: a row reads and writes the state of its own slot; two rows of a step never have one slot, nor does a saved
//! state replace one that the step uses. Copies happen between steps.

use candle_core::Tensor;

use crate::cpu::Isa;
use crate::cpu::delta::{Delta, Row, run};
use crate::error::{Result, shape};
use crate::tensors;

const OP: &str = "gated_delta_rule";

/// Sizes of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaSizes {
    /// Heads of queries, and of keys.
    pub key_heads: usize,
    /// Heads of values, each with a state: a multiple of the key heads.
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Tokens that the convolution before the rule looks at, its own included.
    pub taps: usize,
    pub order: HeadOrder,
}

/// Which value heads share a key head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadOrder {
    /// Neighbours.
    Grouped,
    /// Every so many as there are key heads.
    Tiled,
}

impl DeltaSizes {
    /// Width of all queries, or of all keys.
    pub fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Width of all values.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Width of what is convolved: queries, keys and values.
    pub fn mixed(&self) -> usize {
        2 * self.keys() + self.values()
    }

    /// Width of what a layer projects: that, the gates on the result, and two numbers a value head.
    pub fn projected(&self) -> usize {
        self.mixed() + self.values() + 2 * self.value_heads
    }

    /// The key head of a value head.
    pub fn key_head(&self, value_head: usize) -> usize {
        match self.order {
            HeadOrder::Grouped => value_head / (self.value_heads / self.key_heads),
            HeadOrder::Tiled => value_head % self.key_heads,
        }
    }

    /// Elements of one head's state.
    pub(crate) fn head_values(&self) -> usize {
        self.key_dim * self.value_dim
    }

    fn tail_values(&self) -> usize {
        (self.taps - 1) * self.mixed()
    }

    /// Bytes of one sequence's state in one layer.
    pub fn state_bytes(&self) -> u64 {
        (size_of::<f32>() * (self.value_heads * self.head_values() + self.tail_values())) as u64
    }
}

/// The states of one layer in f32, a slot for each sequence. Untouched slots cost address space only.
#[derive(Debug)]
pub struct DeltaStates {
    sizes: DeltaSizes,
    slots: usize,
    /// `[slots, taps - 1, mixed]`
    tails: Vec<f32>,
    /// `[slots, value_heads, value_dim * key_dim]`
    heads: Vec<f32>,
    /// The step in which each slot was last claimed.
    claims: Vec<u64>,
    step: u64,
}

impl DeltaStates {
    pub fn new(sizes: DeltaSizes, slots: u32) -> Result<Self> {
        let DeltaSizes { key_heads, value_heads, key_dim, value_dim, taps, .. } = sizes;
        let is_whole = key_heads > 0 && value_heads > 0 && value_heads.is_multiple_of(key_heads);
        if !is_whole || key_dim == 0 || value_dim == 0 || taps == 0 || slots == 0 {
            return Err(shape(OP, format!("{slots} slots of {sizes:?} are no states")));
        }
        let slots = slots as usize;
        Ok(Self {
            sizes,
            slots,
            tails: vec![0.0; slots * sizes.tail_values()],
            heads: vec![0.0; slots * value_heads * sizes.head_values()],
            claims: vec![0; slots],
            step: 0,
        })
    }

    /// Makes the state of slot `to` that of `from`.
    pub fn copy(&mut self, from: u32, to: u32) -> Result<()> {
        let (from, to) = (from as usize, to as usize);
        if from.max(to) >= self.slots {
            return Err(shape(OP, format!("a copy from slot {from} to {to}, there are {}", self.slots)));
        }
        for (values, each) in [
            (&mut self.tails, self.sizes.tail_values()),
            (&mut self.heads, self.sizes.value_heads * self.sizes.head_values()),
        ] {
            values.copy_within(from * each..(from + 1) * each, to * each);
        }
        Ok(())
    }

    /// Takes a slot for this step; false if it was taken or does not exist.
    fn claim(&mut self, slot: u32) -> bool {
        let step = self.step;
        self.claims.get_mut(slot as usize).is_some_and(|claim| std::mem::replace(claim, step) != step)
    }
}

/// Where else a state is to be left: as it is after a token of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateSave {
    /// Index in the step's tokens.
    pub token: u32,
    pub slot: u32,
}

/// The rows of a step. Tokens before a row's first are in its slot, unless that one has position 0.
#[derive(Debug, Clone, Copy)]
pub struct DeltaBatch<'a> {
    pub positions: &'a [u32],
    pub row_ends: &'a [u32],
    /// `[rows]`
    pub slots: &'a [u32],
    /// By token, ascending.
    pub saves: &'a [StateSave],
}

impl<'a> DeltaBatch<'a> {
    /// The rows, each slot claimed once.
    fn rows(&self, states: &mut DeltaStates, tokens: usize) -> Result<Vec<Row<'a>>> {
        if self.positions.len() != tokens || self.slots.len() != self.row_ends.len() {
            let (positions, slots, rows) = (self.positions.len(), self.slots.len(), self.row_ends.len());
            return Err(shape(OP, format!("{positions} positions, {slots} slots: {tokens} tokens in {rows} rows")));
        }
        states.step += 1;
        let (mut start, mut saves, mut rows) = (0, self.saves, Vec::with_capacity(self.row_ends.len()));
        for (&end, &slot) in self.row_ends.iter().zip(self.slots) {
            let end = end as usize;
            if end <= start || end > tokens {
                return Err(shape(OP, format!("a row from {start} to {end} of {tokens} tokens")));
            }
            let count = saves.iter().take_while(|save| (save.token as usize) < end).count();
            let (own, rest) = saves.split_at(count);
            let is_sound = own.is_sorted_by_key(|save| save.token) && own.iter().all(|at| at.token as usize >= start);
            if !is_sound || !states.claim(slot) || !own.iter().all(|save| states.claim(save.slot)) {
                return Err(shape(
                    OP,
                    format!("slot {slot} or a saved state's is taken twice or none of {}", states.slots),
                ));
            }
            let is_first = self.positions[start] == 0;
            rows.push(Row { start, end, slot: slot as usize, is_first, saves: own });
            (start, saves) = (end, rest);
        }
        if start != tokens || !saves.is_empty() {
            return Err(shape(OP, format!("rows cover {start} of {tokens} tokens, {} saves are left", saves.len())));
        }
        Ok(rows)
    }
}

/// What a layer has beside its projections.
#[derive(Debug, Clone, Copy)]
pub struct DeltaWeights<'a> {
    /// `[taps, mixed]`
    pub taps: &'a Tensor,
    /// Negative: how fast each head forgets, and what is added to a token's own say in it. `[value_heads]`
    pub decay: &'a Tensor,
    pub decay_bias: &'a Tensor,
    /// `[value_dim]`
    pub norm: &'a Tensor,
    pub eps: f32,
}

/// The layer between its two projections: x `[tokens, projected]` to `[tokens, values]`. Advances the states.
///
/// Queries, keys and values are convolved over their row and pass SiLU; queries and keys become unit vectors. A value head
/// keeps `e^g` of its state, `g = decay * softplus(a + decay_bias)`, writes `sigmoid(b)` of the difference between its
/// value and what the state has for the key, and gives what the state has for the query, normed, times SiLU of its gate.
pub fn gated_delta_rule(
    states: &mut DeltaStates,
    x: &Tensor,
    weights: &DeltaWeights,
    batch: &DeltaBatch,
) -> Result<Tensor> {
    tensors::require_cpu(OP, x.device())?;
    let sizes = states.sizes;
    let (tokens, width) = tensors::dims2(OP, "x", x)?;
    if width != sizes.projected() {
        return Err(shape(OP, format!("x has {width} columns, the layer projects {}", sizes.projected())));
    }
    tensors::require_dims(OP, "taps", weights.taps, &[sizes.taps, sizes.mixed()])?;
    tensors::require_dims(OP, "decay", weights.decay, &[sizes.value_heads])?;
    tensors::require_dims(OP, "decay bias", weights.decay_bias, &[sizes.value_heads])?;
    tensors::require_dims(OP, "norm", weights.norm, &[sizes.value_dim])?;
    let rows = batch.rows(states, tokens)?;
    let all = [x, weights.taps, weights.decay, weights.decay_bias, weights.norm].map(Tensor::storage_and_layout);
    let values = |at: usize, name: &str| -> Result<&[f32]> {
        let (storage, layout) = &all[at];
        tensors::values(OP, name, storage, layout)
    };
    let delta = Delta {
        sizes,
        x: values(0, "x")?,
        taps: values(1, "taps")?,
        decay: values(2, "decay")?,
        decay_bias: values(3, "decay bias")?,
        norm: (values(4, "norm")?, weights.eps),
        rows: &rows,
    };
    let out = run(Isa::best(), &delta, &mut states.tails, &mut states.heads);
    Ok(Tensor::from_vec(out, (tokens, sizes.values()), x.device())?)
}
