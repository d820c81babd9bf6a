//! One ragged step as flat arrays: what the engine hands to a model, and what comes back.

use sconce_kernels::StateSave;

use crate::adapter::AdapterId;

/// A ragged batch without padding: any mix of prefill chunks and single-token decodes, one row a sequence.
///
/// Row `r` covers `tokens[row_ends[r-1]..row_ends[r]]` (from 0 for the first row); its tokens are consecutive
/// positions that end at `context_lens[r] - 1`. Its KV blocks are
/// `block_tables[block_table_ends[r-1]..block_table_ends[r]]`, in context order, and cover `context_lens[r]` positions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchInput {
    /// Token ids. `[tokens]`
    pub tokens: Vec<u32>,
    /// Position of each token in its sequence. `[tokens]`
    pub positions: Vec<u32>,
    /// Physical KV slot that each token's K and V are written to: block * block_size + offset. `[tokens]`
    pub slots: Vec<u32>,
    /// Exclusive end of each row in `tokens`. `[rows]`
    pub row_ends: Vec<u32>,
    /// KV length of each row after this step's writes. `[rows]`
    pub context_lens: Vec<u32>,
    /// Physical block ids of all rows, one after the other.
    pub block_tables: Vec<u32>,
    /// Exclusive end of each row in `block_tables`. `[rows]`
    pub block_table_ends: Vec<u32>,
    /// Indices into `tokens` whose logits are wanted, ascending. `[samples]`
    pub sample_rows: Vec<u32>,
    /// The adapter of each row. `[rows]`, or empty where no row has one.
    pub adapters: Vec<Option<AdapterId>>,
    /// The state slot of each row, for models that keep a state a sequence: what the tokens before the row left there,
    /// unless it begins with position 0. `[rows]`, or empty for other models.
    pub states: Vec<u32>,
    /// States that are copied before the step: from a slot, to a slot.
    pub state_copies: Vec<(u32, u32)>,
    /// States that are also left elsewhere, as they are after a token of the step; by token, ascending.
    pub state_saves: Vec<StateSave>,
}

impl BatchInput {
    /// Empties every array and keeps its memory, so that a step allocates nothing.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.row_ends.clear();
        self.context_lens.clear();
        self.block_tables.clear();
        self.block_table_ends.clear();
        self.sample_rows.clear();
        self.adapters.clear();
        self.states.clear();
        self.state_copies.clear();
        self.state_saves.clear();
    }

    /// Becomes the same as `other`, in the memory that it has.
    pub fn copy_from(&mut self, other: &Self) {
        let Self {
            tokens,
            positions,
            slots,
            row_ends,
            context_lens,
            block_tables,
            block_table_ends,
            sample_rows,
            adapters,
            states,
            state_copies,
            state_saves,
        } = self;
        tokens.clone_from(&other.tokens);
        positions.clone_from(&other.positions);
        slots.clone_from(&other.slots);
        row_ends.clone_from(&other.row_ends);
        context_lens.clone_from(&other.context_lens);
        block_tables.clone_from(&other.block_tables);
        block_table_ends.clone_from(&other.block_table_ends);
        sample_rows.clone_from(&other.sample_rows);
        adapters.clone_from(&other.adapters);
        states.clone_from(&other.states);
        state_copies.clone_from(&other.state_copies);
        state_saves.clone_from(&other.state_saves);
    }

    pub fn rows(&self) -> usize {
        self.row_ends.len()
    }
}

/// Logits of the sampled rows in f32, in the order of `BatchInput::sample_rows`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Logits {
    pub vocab: usize,
    /// `[samples, vocab]`
    pub values: Vec<f32>,
}

impl Logits {
    pub fn row(&self, sample: usize) -> &[f32] {
        &self.values[sample * self.vocab..(sample + 1) * self.vocab]
    }

    pub fn row_mut(&mut self, sample: usize) -> &mut [f32] {
        &mut self.values[sample * self.vocab..(sample + 1) * self.vocab]
    }
}
