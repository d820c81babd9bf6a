//! An executor without a model: its logits are a hash of what it finds in its KV cache.
//!
//! It keeps a real cache, one (token, position) a slot. A step writes its tokens there and then reads every row's whole
//! context back through the block table, so a shared block that should not be, an overwritten one or a missing one
//! changes the output. It refuses batches that break their own rules. Used by tests and by `--model sim`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sconce_models::{Adapter, AdapterId, BatchInput, Logits, Sample, SampleRequests};

use super::executor::{DeviceExecutor, Executor, SamplingLimits};
use super::sampler::Sampler;
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
    /// Plays a device that samples within these limits.
    pub device: Option<SamplingLimits>,
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
            device: None,
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

/// What one state slot holds: the text so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    hash: ContextHash,
    tokens: u32,
    adapter: Option<AdapterId>,
}

const NOTHING_KNOWN: Known = Known { hash: ContextHash::EMPTY, tokens: u32::MAX, adapter: None };
const EMPTY: Cell = Cell { token: u32::MAX, position: u32::MAX, adapter: None, step: 0 };

/// See the module.
pub struct SimExecutor {
    options: SimOptions,
    /// `[blocks * block_size]`
    cells: Vec<Cell>,
    /// `[state_slots]`
    states: Vec<Known>,
    step: u64,
    /// Of the step that was issued and not chosen.
    issued: Option<Logits>,
    /// Of steps that were not collected, the oldest first.
    chosen: VecDeque<(Vec<Sample>, Logits)>,
    sampler: Sampler,
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
        let states = vec![NOTHING_KNOWN; options.capabilities.state_slots as usize];
        Self {
            cells: vec![EMPTY; slots],
            states,
            step: 0,
            options,
            issued: None,
            chosen: VecDeque::new(),
            sampler: Sampler::default(),
        }
    }

    /// Forgets the whole cache, as a device does that was reset.
    pub fn scramble(&mut self) {
        self.cells.fill(EMPTY);
        self.states.fill(NOTHING_KNOWN);
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

    /// Makes the copies of a step, and checks that its rows and saves write slots of their own.
    fn copy_states(&mut self, batch: &BatchInput) -> Result<(), String> {
        let rows = if self.states.is_empty() { 0 } else { batch.rows() };
        if batch.states.len() != rows || !batch.state_saves.is_sorted_by_key(|save| save.token) {
            return Err(format!("sim: {} states for {rows} rows, or saves out of order", batch.states.len()));
        }
        let mut written: Vec<u32> = batch.states.clone();
        written.extend(batch.state_saves.iter().map(|save| save.slot));
        written.extend(batch.state_copies.iter().map(|(from, _)| *from));
        let count = written.len();
        written.sort_unstable();
        written.dedup();
        let copied_twice = batch.state_copies.len() - {
            let mut from: Vec<u32> = batch.state_copies.iter().map(|(from, _)| *from).collect();
            from.sort_unstable();
            from.dedup();
            from.len()
        };
        if written.len() + copied_twice != count
            || written.last().is_some_and(|slot| *slot as usize >= self.states.len())
        {
            return Err(format!(
                "sim: states {written:?} of {} are written twice, or written and copied",
                self.states.len()
            ));
        }
        for (from, to) in &batch.state_copies {
            self.states[*to as usize] = self.states[*from as usize];
        }
        Ok(())
    }

    /// A row's state must know exactly the tokens before it; it and the saved ones then know what was read.
    fn advance_state(&mut self, batch: &BatchInput, row: usize) -> Result<(), String> {
        let Some(slot) = batch.states.get(row) else { return Ok(()) };
        let (tokens, context) = (range(&batch.row_ends, row), batch.context_lens[row]);
        let start = context - tokens.len() as u32;
        let adapter = batch.adapters.get(row).copied().flatten();
        let own = self.states[*slot as usize];
        let mut known = if start == 0 { Known { hash: ContextHash::EMPTY, tokens: 0, adapter } } else { own };
        let mut text = ContextHash::EMPTY;
        for position in 0..start {
            let cell = self.cells[self.slot_of(batch, row, position)];
            text = text.extend(cell.token, cell.position);
        }
        if known != (Known { hash: text, tokens: start, adapter }) {
            return Err(format!("sim: the state of row {row} is not that of the {start} tokens before it"));
        }
        for index in tokens {
            known.hash = known.hash.extend(batch.tokens[index], batch.positions[index]);
            known.tokens += 1;
            for save in batch.state_saves.iter().filter(|save| save.token as usize == index) {
                self.states[save.slot as usize] = known;
            }
        }
        self.states[*slot as usize] = known;
        Ok(())
    }

    fn slot_of(&self, batch: &BatchInput, row: usize, position: u32) -> usize {
        let size = self.options.block_size;
        (self.table(batch, row)[(position / size) as usize] * size + position % size) as usize
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

    fn device(&mut self) -> Option<&mut dyn DeviceExecutor> {
        if self.options.device.is_some() { Some(self) } else { None }
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        self.check_limits(batch)?;
        self.copy_states(batch)?;
        self.step += 1;
        for row in 0..batch.rows() {
            self.write_row(batch, row)?;
        }
        for row in 0..batch.rows() {
            self.check_adapter(batch, row)?;
            self.advance_state(batch, row)?;
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

impl DeviceExecutor for SimExecutor {
    fn limits(&self) -> SamplingLimits {
        self.options.device.unwrap_or(SamplingLimits { top_logprobs_max: 0, masks: false })
    }

    fn issue(&mut self, batch: &BatchInput) -> Result<(), String> {
        self.chosen.clear();
        self.issued = None;
        let mut logits = Logits::default();
        self.execute(batch, &mut logits)?;
        self.issued = Some(logits);
        Ok(())
    }

    fn choose(&mut self, wanted: &SampleRequests) -> Result<bool, String> {
        let issued = self.issued.take().ok_or("sim: nothing was issued")?;
        let rows = issued.values.len() / issued.vocab.max(1);
        if wanted.rows.len() != rows {
            return Err(format!("sim: {} rows are asked for, {rows} were issued", wanted.rows.len()));
        }
        let (mut samples, mut logits) = (Vec::new(), Logits::default());
        self.sampler.answer_all(wanted, &issued, &mut samples, &mut logits);
        let is_here = !samples.iter().any(|sample| matches!(sample, Sample::Logits(_)));
        self.chosen.push_back((samples, logits));
        Ok(is_here)
    }

    fn collect(
        &mut self,
        wanted: &SampleRequests,
        samples: &mut Vec<Sample>,
        logits: &mut Logits,
    ) -> Result<(), String> {
        (*samples, *logits) = self.chosen.pop_front().ok_or("sim: nothing was chosen")?;
        if wanted.rows.len() != samples.len() {
            return Err(format!("sim: {} rows are collected, {} were chosen", wanted.rows.len(), samples.len()));
        }
        Ok(())
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn issue_behind(&mut self, batch: &BatchInput, sources: &[u32]) -> Result<(), String> {
        let before = match (self.chosen.len(), self.chosen.back()) {
            (1, Some((samples, _))) if self.issued.is_none() => samples,
            (count, _) => return Err(format!("sim: {count} steps are chosen and not collected")),
        };
        let token = |source: &u32| match before.get(*source as usize) {
            Some(Sample::Token { id, .. }) => Ok(*id),
            Some(Sample::NotFinite { .. } | Sample::NothingLeft) => Ok(0),
            other => Err(format!("sim: row {source} of the step before is {other:?}")),
        };
        let tokens: Vec<u32> = sources.iter().map(token).collect::<Result<_, _>>()?;
        if tokens.len() != batch.tokens.len() || batch.rows() != tokens.len() {
            return Err(format!("sim: {} tokens for {} rows of {}", tokens.len(), batch.rows(), batch.tokens.len()));
        }
        let mut logits = Logits::default();
        self.execute(&BatchInput { tokens, ..batch.clone() }, &mut logits)?;
        self.issued = Some(logits);
        Ok(())
    }
}
