// performance-critical: no lock, no log, no format but for a refusal; a step is linear in the running sequences
//! Decides how many tokens of which sequence the next step computes, in which blocks.
//!
//! Pure: no clock, no randomness, no I/O. Verbs: `add`, `schedule`, `schedule_behind`, `commit` (or `fail_step`), `observe`,
//! `park`, `unpark`, `cancel`.
//!
//! Order. Every sequence has a fixed key: the step it arrived at, plus a head start for each level of priority. The
//! lower key goes first, so within one priority it is first come first served, and no priority waits for ever.
//!
//! Progress. The first in order goes first in every step, before the decodes, and may take the blocks of those behind
//! it; nobody is admitted past a waiting sequence that does not fit yet. So in every step (every other step where
//! prefills and decodes may not mix) the first in order computes at least one token, and a wait is bounded by the
//! tokens of those before it.
//!
//! Memory. Blocks are allocated for the step only, and a sequence is admitted only when all it knows fits beside what
//! the running ones still need, with a small reserve. When blocks run out all the same, a parked sequence, else the
//! last in order that is not part of this step yet, gives its blocks back and is recomputed later. One that finds no
//! such victim stands still for a step and keeps its blocks. A sequence alone never exhausts the pool: the pool bounds
//! its length.
//!
//! Without preemption (`Capabilities::preemption`) a sequence is admitted when all that it may ever need fits beside what
//! the others, parked ones included, may: these blocks are counted, and allocated as above. A client that does not read
//! keeps its blocks and its seat then, and a failed step ends everybody who holds blocks.
//!
//! Waiting for each other. While sequences decode, prompts get what fits into the target time of a step, and at least a
//! few tokens (`plan::prefill_tokens`); without decodes, or before anything is measured, the budget is the only bound.
//!
//! States. Where a model keeps a state a sequence, whoever runs has a slot for it (`states`), and the prefix cache is good
//! up to saved states only: a sequence takes cached blocks as far as one was saved behind, and begins with a copy of it.
//! The state behind a prompt is saved, and where prompts part. A sequence that begins like one before it waits for that
//! one's state instead of computing the same beside it. Slots that nobody owns hold what is saved; the first in order
//! never waits for one, since no more run than there are slots.
//!
//! Speculation. A decode may carry drafts (`speculation`): tokens behind its last one that count like any other in the
//! budget. `commit` keeps those that the model confirmed. Drafts never preempt anybody, and a block that only drafts
//! needed goes back at the end of the step.
//!
//! Blocks are registered in the prefix cache when they are scheduled, so that two sequences with one prefix that
//! arrive together share it in the same step; what drafts fill is registered when they are confirmed. A step that fails
//! takes the whole cache with it.

mod admit;
mod audit;
mod behind;
mod commit;
mod config;
mod plan;
mod states;
mod step;

use std::collections::{BTreeMap, HashMap};

pub use behind::DraftRoom;
pub use commit::{Outcome, PromptOutcome, Sampled, StepResults};
pub use config::{Capabilities, EngineConfig, ItlTarget};
pub use plan::SCORED_PER_STEP_MAX;
pub use step::{Row, Step, StepSave};

use super::blocks::BlockPool;
use super::costs::StepCosts;
use super::filter::Restriction;
use super::sequence::{FinishReason, NewSequence, OrderKey, SeqId, Sequence, State};
use super::speculation::{Drafter, SharedConfidence};
use super::states::StatePool;
use super::stats::EngineStats;

/// How many steps earlier a sequence counts as arrived for each level of priority.
pub const PRIORITY_HEAD_START_STEPS: i64 = 1024;
/// Levels beyond this one give no further head start.
const PRIORITY_LEVEL_MAX: i32 = 1000;

/// All live sequences of one engine, and its blocks.
pub struct Scheduler {
    config: EngineConfig,
    vocab: usize,
    capabilities: Capabilities,
    drafts_per_row_max: usize,
    tokens_per_step_max: usize,
    running_max: usize,
    /// Blocks that an admission leaves alone while others run.
    watermark: usize,
    pool: BlockPool,
    /// Of a model that keeps a state a sequence.
    states: Option<StatePool>,
    slots: Vec<Option<Sequence>>,
    vacant: Vec<usize>,
    by_id: HashMap<SeqId, usize>,
    waiting: BTreeMap<OrderKey, usize>,
    /// In order of their keys.
    running: Vec<usize>,
    parked: BTreeMap<OrderKey, usize>,
    step_number: u64,
    arrivals: u64,
    /// Where kinds alternate: the latest step was one of prefills.
    prefilled_last: bool,
    in_flight: bool,
    /// A step is planned behind the one in flight: `behind`.
    has_behind: bool,
    /// Nobody came, went or was stopped since the latest plan: whom it let wait has no room yet.
    is_settled: bool,
    /// Nothing can run before something arrives, ends or is read.
    held_up: bool,
    costs: StepCosts,
    confidence: SharedConfidence,
    stats: EngineStats,
}

impl Scheduler {
    /// `vocab` bounds the token ids of prompts. Fails on limits under which nothing could run.
    pub fn new(config: EngineConfig, capabilities: &Capabilities, vocab: usize) -> Result<Self, String> {
        config.check()?;
        capabilities.check()?;
        Ok(Self {
            vocab,
            drafts_per_row_max: capabilities.max_drafts_per_row as usize,
            tokens_per_step_max: config.max_num_batched_tokens.min(capabilities.tokens_max()) as usize,
            running_max: config.max_num_seqs.min(capabilities.rows_max()) as usize,
            watermark: (config.blocks / 100).max(1) as usize,
            pool: BlockPool::new(config.blocks, config.block_size, config.enable_prefix_caching),
            states: (capabilities.state_slots > 0).then(|| StatePool::new(capabilities.state_slots, config.block_size)),
            config,
            capabilities: capabilities.clone(),
            slots: Vec::new(),
            vacant: Vec::new(),
            by_id: HashMap::new(),
            waiting: BTreeMap::new(),
            running: Vec::new(),
            parked: BTreeMap::new(),
            step_number: 0,
            arrivals: 0,
            prefilled_last: false,
            in_flight: false,
            has_behind: false,
            is_settled: false,
            held_up: false,
            costs: StepCosts::default(),
            confidence: SharedConfidence::default(),
            stats: EngineStats::default(),
        })
    }

    /// Makes a sequence wait for its turn, or says why it never can run.
    pub fn add(&mut self, new: NewSequence) -> Result<(), FinishReason> {
        let admissible = self.tokens_max(&new);
        let tokens_max = match admissible {
            Ok(tokens_max) => tokens_max,
            Err(reason) => {
                self.stats.finished_failed += 1;
                return Err(FinishReason::Failed(reason));
            }
        };
        let level = i64::from(new.priority.clamp(-PRIORITY_LEVEL_MAX, PRIORITY_LEVEL_MAX));
        let start_step = self.step_number as i64 + level * PRIORITY_HEAD_START_STEPS;
        let key = OrderKey { start_step, arrival: self.arrivals };
        self.arrivals += 1;
        let id = new.id;
        let mut sequence = Sequence::new(new, key, tokens_max);
        if let Some(speculation) = self.config.speculation.filter(|_| self.drafts_per_row_max > 0) {
            sequence.set_drafter(Drafter::new(speculation, self.confidence));
        }
        let sequence = Some(sequence);
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.slots[slot] = sequence;
                slot
            }
            None => {
                self.slots.push(sequence);
                self.slots.len() - 1
            }
        };
        let before = self.by_id.insert(id, slot);
        assert!(before.is_none(), "sequence ids are unique");
        self.waiting.insert(key, slot);
        self.unsettle();
        Ok(())
    }

    /// The most tokens that prompt and output may have together.
    fn tokens_max(&self, new: &NewSequence) -> Result<usize, String> {
        let prompt = new.prompt.len();
        if prompt == 0 {
            return Err("the prompt has no tokens; send at least one".into());
        }
        if let Some(id) = new.prompt.iter().find(|id| **id as usize >= self.vocab) {
            return Err(format!("prompt token id {id} is outside the vocabulary of {}", self.vocab));
        }
        let slots = self.pool.total() * self.pool.block_size() as usize;
        let needed = prompt + usize::from(new.params.max_tokens > 0);
        if needed > slots {
            return Err(format!(
                "the prompt has {prompt} tokens and the KV cache holds {slots} ({} blocks of {}); shorten the prompt \
                 or give the engine more KV memory",
                self.pool.total(),
                self.pool.block_size()
            ));
        }
        let context = self.config.max_model_len as usize;
        if needed > context {
            return Err(format!("the prompt has {prompt} tokens and the context is {context}; shorten the prompt"));
        }
        Ok((prompt + new.params.max_tokens as usize).min(context).min(slots))
    }

    /// Takes a sequence out, wherever it is, and frees its blocks. False when it is not there.
    pub fn cancel(&mut self, id: SeqId) -> bool {
        self.remove(id, &FinishReason::Cancelled)
    }

    /// Like `cancel`, for another reason.
    pub fn remove(&mut self, id: SeqId, reason: &FinishReason) -> bool {
        assert!(!self.in_flight, "a sequence is removed between steps");
        let Some(slot) = self.by_id.get(&id).copied() else { return false };
        self.finish(slot, reason);
        true
    }

    /// Takes a sequence out of the steps: its client does not read. It keeps its blocks as long as there are enough.
    pub fn park(&mut self, id: SeqId) {
        assert!(!self.in_flight, "a sequence is parked between steps");
        let Some(slot) = self.by_id.get(&id).copied() else { return };
        let (key, state) = (self.at(slot).key, self.at(slot).state());
        // It may have been the one that nobody is admitted past.
        self.unsettle();
        match state {
            State::Parked => return,
            State::Waiting => _ = self.waiting.remove(&key),
            State::Running => self.leave_running(slot),
        }
        self.at_mut(slot).set_state(State::Parked);
        self.parked.insert(key, slot);
    }

    /// The sequence is not guessed ahead.
    pub fn never_draft(&mut self, id: SeqId) {
        if let Some(slot) = self.by_id.get(&id).copied() {
            self.at_mut(slot).never_draft();
        }
    }

    /// Gives a row of the step in flight the guesses that it was planned with placeholders for, or fewer.
    pub fn set_drafts(&mut self, step: &mut Step, row: usize, drafts: &[u32]) {
        let row = &mut step.rows[row];
        let fewer = row.drafts.checked_sub(drafts.len()).expect("no more drafts than were planned");
        (row.drafts, row.count) = (drafts.len(), row.count - fewer);
        step.tokens -= fewer;
        let slot = row.slot;
        self.at_mut(slot).set_drafts(drafts);
    }

    /// No draft model is there any more: what it would have guessed is not planned for.
    pub fn without_draft_model(&mut self) {
        self.drafts_per_row_max = 0;
    }

    /// Says what holds for the next token of a sequence. It is asked for again before each.
    pub fn restrict(&mut self, id: SeqId, restriction: Restriction) {
        if let Some(slot) = self.by_id.get(&id).copied() {
            self.at_mut(slot).restrict(restriction);
        }
    }

    /// Takes back what `restrict` gave, with its memory; a sequence that has ended kept it.
    pub fn take_restriction(&mut self, id: SeqId) -> Option<Restriction> {
        let slot = self.by_id.get(&id).copied()?;
        Some(self.at_mut(slot).take_restriction())
    }

    /// The client reads again. The sequence keeps its old place in the order.
    pub fn unpark(&mut self, id: SeqId) {
        assert!(!self.in_flight, "a sequence is unparked between steps");
        let Some(slot) = self.by_id.get(&id).copied() else { return };
        if self.at(slot).state() != State::Parked {
            return;
        }
        let key = self.at(slot).key;
        self.unsettle();
        self.parked.remove(&key);
        if !self.at(slot).blocks().is_empty() && self.running.len() < self.running_max {
            self.at_mut(slot).set_state(State::Running);
            self.enter_running(slot);
            return;
        }
        if !self.at(slot).blocks().is_empty() {
            assert!(self.capabilities.preemption, "a parked sequence that must keep its blocks keeps its seat");
            self.stats.preemptions += 1;
        }
        self.release_blocks(slot);
        self.at_mut(slot).set_state(State::Waiting);
        self.waiting.insert(key, slot);
    }

    /// A step took so long, from its planning to the delivery of its tokens. Later plans reckon with it.
    pub fn observe(&mut self, step: &Step, elapsed_us: f32) {
        let decode_tokens = step.rows.iter().filter(|row| row.decode).map(|row| row.count).sum();
        if step.tokens > 0 {
            self.costs.observe(decode_tokens, step.tokens - decode_tokens, elapsed_us);
        }
    }

    /// A draft model took so long to guess so many tokens.
    pub fn observe_drafts(&mut self, tokens: usize, elapsed_us: f32) {
        self.costs.observe_drafts(tokens, elapsed_us);
    }

    /// Drops every sequence and starts over with an empty cache, whatever state a broken invariant left behind.
    pub fn abandon(&mut self) {
        self.in_flight = false;
        self.has_behind = false;
        self.unsettle();
        self.stats.finished_failed += self.by_id.len() as u64;
        self.pool = BlockPool::new(self.config.blocks, self.config.block_size, self.config.enable_prefix_caching);
        let block_size = self.config.block_size;
        self.states = self.states.as_ref().map(|states| StatePool::new(states.total() as u32, block_size));
        self.slots.clear();
        self.vacant.clear();
        self.by_id.clear();
        self.waiting.clear();
        self.running.clear();
        self.parked.clear();
    }

    /// Gives a sequence's blocks back; its tokens stay, and it is computed again later.
    fn preempt(&mut self, slot: usize) {
        let key = self.at(slot).key;
        assert_eq!(self.at(slot).scheduled(), 0, "no sequence of the step in flight is preempted");
        assert!(self.capabilities.preemption, "what was set aside for a sequence is not taken from it");
        self.stats.preemptions += 1;
        self.release_blocks(slot);
        if self.at(slot).state() == State::Running {
            self.leave_running(slot);
            self.at_mut(slot).set_state(State::Waiting);
            self.waiting.insert(key, slot);
        }
    }

    /// Gives back all that a sequence holds: its blocks, and its state.
    fn release_blocks(&mut self, slot: usize) {
        let mut blocks = self.at_mut(slot).take_blocks();
        self.pool.release_all(&mut blocks);
        self.release_state(slot);
    }

    /// The next plan may be another.
    fn unsettle(&mut self) {
        self.held_up = false;
        self.is_settled = false;
    }

    fn finish(&mut self, slot: usize, reason: &FinishReason) {
        self.unsettle();
        self.release_blocks(slot);
        let (id, key, state) = (self.at(slot).id, self.at(slot).key, self.at(slot).state());
        match state {
            State::Waiting => _ = self.waiting.remove(&key),
            State::Running => self.leave_running(slot),
            State::Parked => _ = self.parked.remove(&key),
        }
        self.by_id.remove(&id);
        self.slots[slot] = None;
        self.vacant.push(slot);
        match reason {
            FinishReason::StopToken(_) => self.stats.finished_stop += 1,
            FinishReason::Length => self.stats.finished_length += 1,
            FinishReason::Cancelled => self.stats.finished_cancelled += 1,
            FinishReason::Failed(_) => self.stats.finished_failed += 1,
        }
    }

    fn enter_running(&mut self, slot: usize) -> usize {
        let place = self.place_of(self.at(slot).key);
        self.running.insert(place, slot);
        assert!(self.running.len() <= self.running_max, "no more run than may");
        place
    }

    fn leave_running(&mut self, slot: usize) {
        let removed = self.running.remove(self.place_of(self.at(slot).key));
        assert_eq!(removed, slot, "the running list is in the order of its keys");
    }

    /// Where in the running list a sequence with this key is, or would be.
    fn place_of(&self, key: OrderKey) -> usize {
        self.running.partition_point(|slot| self.at(*slot).key < key)
    }

    fn at(&self, slot: usize) -> &Sequence {
        self.slots[slot].as_ref().expect("a queued slot holds a live sequence")
    }

    fn at_mut(&mut self, slot: usize) -> &mut Sequence {
        self.slots[slot].as_mut().expect("a queued slot holds a live sequence")
    }

    /// The sequence of a row of the step in flight.
    pub fn sequence(&self, row: &Row) -> &Sequence {
        self.at(row.slot)
    }

    pub fn block_size(&self) -> u32 {
        self.config.block_size
    }

    /// Live sequences, in no order.
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.slots.iter().flatten()
    }

    pub fn live(&self) -> usize {
        self.by_id.len()
    }

    /// Whether a step could compute anything.
    pub fn has_work(&self) -> bool {
        !self.held_up && (!self.running.is_empty() || !self.waiting.is_empty())
    }

    /// Gauges of now, and counters since the start.
    pub fn stats(&mut self) -> &EngineStats {
        self.stats.running = self.running.len() as u64;
        self.stats.waiting = self.waiting.len() as u64;
        self.stats.parked = self.parked.len() as u64;
        self.stats.blocks_total = self.pool.total() as u64;
        self.stats.blocks_free = self.pool.free() as u64;
        self.stats.blocks_cached = self.pool.cached() as u64;
        self.stats.blocks_owned = self.pool.owned() as u64;
        if let Some(states) = &self.states {
            self.stats.states_total = states.total() as u64;
            self.stats.states_saved = states.saved() as u64;
        }
        &self.stats
    }
}

#[cfg(test)]
mod tests;
