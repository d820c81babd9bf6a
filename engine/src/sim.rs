//! An executor without a model: its logits are a hash of what it finds in its KV cache.
//!
//! It keeps a real cache, one (token, position) a slot. A step writes its tokens there and then reads every row's whole
//! context back through the block table, so a shared block that should not be, an overwritten one or a missing one
//! changes the output. It refuses batches that break their own rules. Used by tests and by `--model sim`.

use std::sync::Arc;
use std::time::Duration;

use sconce_models::{Adapter, AdapterId, BatchInput, Logits};

use super::executor::Executor;
use super::scheduler::Capabilities;

/// Added to the logit of every favoured token: far above what the hash gives any other.
const FAVOUR: f32 = 32.0;
/// What hashes become: logits in [-8, 8).
const LOGIT_SPAN: f32 = 16.0;

/// Shape and speed of a simulated model.
#[derive(Debug, Clone, PartialEq)]
pub struct SimOptions {
    pub vocab: u32,
    pub blocks: u32,
    pub block_size: u32,
    pub capabilities: Capabilities,
    /// Slept once a step.
    pub step_delay: Duration,
    /// Slept once more for every token of a step.
    pub token_delay: Duration,
    /// Tokens that are always likelier than the others (letters, to be readable); empty for none.
    pub favoured: Vec<u32>,
}

impl SimOptions {
    /// No delays, no restrictions, no favourites.
    pub fn new(vocab: u32, blocks: u32, block_size: u32) -> Self {
        Self {
            vocab,
            blocks,
            block_size,
            capabilities: Capabilities::any(),
            step_delay: Duration::ZERO,
            token_delay: Duration::ZERO,
            favoured: Vec::new(),
        }
    }
}

/// What one KV slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    token: u32,
    position: u32,
    /// K and V depend on it.
    adapter: Option<AdapterId>,
    /// The step that wrote it; 0 is never.
    step: u64,
}

const EMPTY: Cell = Cell { token: u32::MAX, position: u32::MAX, adapter: None, step: 0 };

/// See the module.
pub struct SimExecutor {
    options: SimOptions,
    /// `[blocks * block_size]`
    cells: Vec<Cell>,
    step: u64,
}

/// The context of one sequence as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextHash(u64);

impl ContextHash {
    pub const EMPTY: Self = Self(0x5c0_4ce);

    #[must_use]
    pub fn extend(self, token: u32, position: u32) -> Self {
        let word = u64::from(token) << 32 | u64::from(position);
        Self((self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
    }

    /// The logits after this context.
    pub fn logits(self, favoured: &[u32], out: &mut [f32]) {
        for (id, logit) in out.iter_mut().enumerate() {
            let mixed =
                (self.0 ^ (id as u64 + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let bits = (mixed ^ (mixed >> 31)) >> 40;
            *logit = (bits as f32 / (1_u32 << 24) as f32 - 0.5) * LOGIT_SPAN;
        }
        for id in favoured {
            if let Some(logit) = out.get_mut(*id as usize) {
                *logit += FAVOUR;
            }
        }
    }
}

impl SimExecutor {
    pub fn new(options: SimOptions) -> Self {
        let slots = options.blocks as usize * options.block_size as usize;
        Self { cells: vec![EMPTY; slots], step: 0, options }
    }

    /// Forgets the whole cache, as a device does that was reset.
    pub fn scramble(&mut self) {
        self.cells.fill(EMPTY);
    }

    fn check_limits(&self, batch: &BatchInput) -> Result<(), String> {
        let limits = &self.options.capabilities;
        let rows = batch.rows();
        if limits.static_buckets.iter().max().is_some_and(|bucket| rows > *bucket as usize) {
            return Err(format!("sim: {rows} rows are more than the largest bucket"));
        }
        if batch.tokens.len() > limits.max_tokens_per_step as usize {
            return Err(format!("sim: {} tokens are more than a step may have", batch.tokens.len()));
        }
        let ends = [&batch.context_lens, &batch.block_table_ends].map(Vec::len);
        let per_token = [&batch.positions, &batch.slots].map(Vec::len);
        if ends != [rows; 2] || per_token != [batch.tokens.len(); 2] {
            return Err("sim: the arrays of the batch differ in length".into());
        }
        if batch.row_ends.last().copied().unwrap_or(0) as usize != batch.tokens.len() {
            return Err("sim: the rows do not cover the tokens".into());
        }
        if !batch.sample_rows.is_sorted_by(|left, right| left < right) {
            return Err("sim: sample_rows do not ascend".into());
        }
        Ok(())
    }

    /// Writes the tokens of row `row` and checks that its table leads to the slots it names.
    fn write_row(&mut self, batch: &BatchInput, row: usize) -> Result<(), String> {
        let (tokens, table) = (range(&batch.row_ends, row), self.table(batch, row));
        let size = self.options.block_size;
        let context = batch.context_lens[row];
        if tokens.is_empty() || table.len() != context.div_ceil(size) as usize {
            return Err(format!("sim: row {row} has no token, or {} blocks for {context} positions", table.len()));
        }
        for (place, index) in tokens.clone().enumerate() {
            let position = context - tokens.len() as u32 + place as u32;
            let block = table[(position / size) as usize];
            let slot = block * size + position % size;
            if batch.positions[index] != position || batch.slots[index] != slot {
                return Err(format!("sim: row {row} writes position {position} to a wrong slot"));
            }
            let Some(cell) = self.cells.get_mut(slot as usize) else {
                return Err(format!("sim: row {row} writes to slot {slot}, beyond the cache"));
            };
            if cell.step == self.step {
                return Err(format!("sim: slot {slot} is written twice in one step"));
            }
            if batch.tokens[index] >= self.options.vocab {
                return Err(format!("sim: token id {} is outside the vocabulary", batch.tokens[index]));
            }
            let adapter = batch.adapters.get(row).copied().flatten();
            *cell = Cell { token: batch.tokens[index], position, adapter, step: self.step };
        }
        Ok(())
    }

    fn table<'a>(&self, batch: &'a BatchInput, row: usize) -> &'a [u32] {
        &batch.block_tables[range(&batch.block_table_ends, row)]
    }

    /// Refuses a row whose context was written with another adapter than its own.
    fn check_adapter(&self, batch: &BatchInput, row: usize) -> Result<(), String> {
        let adapter = batch.adapters.get(row).copied().flatten();
        let size = self.options.block_size as usize;
        let table = self.table(batch, row);
        let mut cells =
            (0..batch.context_lens[row] as usize).map(|at| self.cells[table[at / size] as usize * size + at % size]);
        match cells.find(|cell| cell.adapter != adapter) {
            None => Ok(()),
            Some(cell) => Err(format!("sim: row {row} of {adapter:?} reads what {:?} wrote", cell.adapter)),
        }
    }

    /// Reads a row's context once and leaves logits wherever they are wanted on the way.
    fn read_row(&self, batch: &BatchInput, row: usize, sample: &mut usize, logits: &mut Logits) {
        let (tokens, table) = (range(&batch.row_ends, row), self.table(batch, row));
        let context = batch.context_lens[row];
        let mut hash = ContextHash::EMPTY;
        for position in 0..context {
            let slot = table[(position / self.options.block_size) as usize] * self.options.block_size
                + position % self.options.block_size;
            let cell = self.cells[slot as usize];
            hash = hash.extend(cell.token, cell.position);
            let Some(place) = (position + tokens.len() as u32).checked_sub(context) else { continue };
            if batch.sample_rows.get(*sample) == Some(&(tokens.start as u32 + place)) {
                hash.logits(&self.options.favoured, logits.row_mut(*sample));
                *sample += 1;
            }
        }
    }
}

/// What belongs to `row` in an array whose rows end at `ends`.
fn range(ends: &[u32], row: usize) -> std::ops::Range<usize> {
    let start = if row == 0 { 0 } else { ends[row - 1] };
    start as usize..ends[row] as usize
}

impl Executor for SimExecutor {
    fn capabilities(&self) -> Capabilities {
        self.options.capabilities.clone()
    }

    fn vocab(&self) -> usize {
        self.options.vocab as usize
    }

    /// It has no weights to which anything could be added: adapters only keep their blocks apart.
    fn set_adapter(&mut self, _id: AdapterId, _adapter: Option<Arc<Adapter>>) -> Result<(), String> {
        Ok(())
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        self.check_limits(batch)?;
        self.step += 1;
        for row in 0..batch.rows() {
            self.write_row(batch, row)?;
        }
        for row in 0..batch.rows() {
            self.check_adapter(batch, row)?;
        }
        logits.vocab = self.vocab();
        logits.values.resize(batch.sample_rows.len() * logits.vocab, 0.0);
        let mut sample = 0;
        for row in 0..batch.rows() {
            self.read_row(batch, row, &mut sample, logits);
        }
        if sample != batch.sample_rows.len() {
            return Err("sim: a sampled row is not a token of the batch".into());
        }
        let delay = self.options.step_delay + self.options.token_delay * batch.tokens.len() as u32;
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        Ok(())
    }
}
