// performance-critical: no allocation per token, no lock, no log, no format
//! A step behind the one in flight, planned before that one's tokens are known, so that a device goes on without waiting for
//! anybody.
//!
//! It is planned only where the next step would be the same rows again, one token each, whatever that token is: all that
//! run sample in the step in flight, nobody who waits could come in, no penalty, filter or draft looks at the token, and
//! there are blocks. A sequence whose token turns out to end it has computed one token for nothing: its row is dropped
//! (`drop_ended`), and its blocks are given back at once, since whatever is written to them later is issued later.
//!
//! The blocks that such a step fills are registered in the prefix cache when the tokens are known, in `commit`.

use super::{Row, Scheduler, Step};
use crate::costs::StepCosts;
use crate::speculation::{DRAFTS_PER_STEP_MAX, StepSoFar};

/// What a sequence may draft, were it to.
#[derive(Clone, Copy)]
pub struct DraftRoom<'a> {
    pub drafts: usize,
    pub so_far: StepSoFar,
    pub costs: &'a StepCosts,
}

impl Scheduler {
    /// Plans the step behind `step`, the one in flight, into `next`. False, with nothing changed, where the next step is
    /// better planned when the tokens of this one are there. Otherwise `step` is committed next, or fails and `next` with it,
    /// and then `next` is the step in flight.
    pub fn schedule_behind(&mut self, step: &Step, next: &mut Step) -> bool {
        assert!(self.in_flight && !self.has_behind, "one step is in flight, and none behind it");
        next.clear();
        if !self.repeats(step) {
            return false;
        }
        let block_size = self.config.block_size;
        let (mut missing, mut ending) = (0, 0);
        for row in &step.rows {
            let sequence = self.at(row.slot);
            if sequence.ends_with_next() {
                ending += 1;
                continue;
            }
            missing += sequence.blocks_for_next(block_size);
            let start = row.start + row.count;
            next.sources.push(row.place as u32);
            next.rows.push(Row { place: next.rows.len(), start, count: 1, decode: true, first: false, ..row.clone() });
        }
        let lets_in = ending > 0 && !self.waiting.is_empty();
        if next.rows.is_empty() || lets_in || missing > self.pool.available() || self.would_draft(step) {
            next.clear();
            return false;
        }
        for row in &next.rows {
            let sequence = self.slots[row.slot].as_mut().expect("a scheduled sequence is live until its step ends");
            for _ in 0..sequence.blocks_for_next(block_size) {
                sequence.add_block(self.pool.allocate().expect("they were counted"));
            }
            sequence.run_ahead(block_size);
        }
        next.tokens = next.rows.len();
        self.step_number += 1;
        self.stats.steps += 1;
        self.stats.step_tokens.observe(next.tokens as u32);
        self.has_behind = true;
        true
    }

    /// Whether the step behind `step` would be its rows again, whatever their tokens are.
    fn repeats(&self, step: &Step) -> bool {
        let capabilities = &self.capabilities;
        let has_buckets = !capabilities.static_buckets.is_empty() || !capabilities.token_buckets.is_empty();
        if self.states.is_some() || has_buckets || !capabilities.mixed_batch {
            return false;
        }
        // Prompts leave room that those who wait may use in the next step.
        let decodes = step.rows.iter().all(|row| row.decode);
        let nobody_comes = self.waiting.is_empty() || (self.is_settled && decodes);
        let plain = |row: &Row| row.sample && row.samples() == 1 && self.at(row.slot).can_run_ahead();
        nobody_comes && step.rows.len() == self.running.len() && step.rows.iter().all(plain)
    }

    /// Whether somebody could be guessed ahead now, by the tokens that are known.
    fn would_draft(&mut self, step: &Step) -> bool {
        let decodes = step.rows.len();
        let left = self.tokens_per_step_max.saturating_sub(decodes);
        let drafts = DRAFTS_PER_STEP_MAX.min(left / 2).min(self.drafts_per_row_max);
        let so_far = StepSoFar { decodes, drafts: 0, target_us: self.target_us(decodes) };
        let room = DraftRoom { drafts, so_far, costs: &self.costs };
        let (rows, slots) = (step.rows.iter(), &mut self.slots);
        drafts > 0 && rows.into_iter().any(|row| slots[row.slot].as_mut().is_some_and(|one| one.would_draft(room)))
    }

    /// A sequence of the step behind goes on: that step is the one in flight now. Registers the block that its token fills.
    pub(super) fn go_on(&mut self, slot: usize) {
        let block_size = self.config.block_size;
        let sequence = self.slots[slot].as_mut().expect("a scheduled sequence is live until its step ends");
        sequence.go_on(block_size);
        let end = sequence.tokens().len();
        if self.pool.caching() && end.is_multiple_of(block_size as usize) {
            let index = end / block_size as usize - 1;
            let block = sequence.blocks()[index];
            let (parent, hash, tokens) = sequence.content(index, block_size);
            self.pool.register(block, hash, parent, tokens);
        }
    }

    /// Takes the rows out of a step that was planned behind another whose sequences that one ended.
    pub fn drop_ended(&self, step: &mut Step) {
        step.rows.retain(|row| self.by_id.get(&row.id) == Some(&row.slot));
        step.tokens = step.rows.len();
    }
}
