// performance-critical: no lock, no log, no format
//! The planning of one step: who takes part, with how many tokens, and who gives up blocks for it.

use super::{ItlTarget, Row, Scheduler, Step, StepSave};
use crate::blocks::blocks_for;
use crate::sequence::State;
use crate::speculation::{DRAFTS_PER_STEP_MAX, StepSoFar};

/// Prompt positions scored a step, over all sequences: each needs a row of logits in memory.
pub const SCORED_PER_STEP_MAX: usize = 64;

/// Prompt tokens that a step takes whatever its target time, so that prompts get on: fewer would read all weights for
/// little.
const PREFILL_TOKENS_MIN: usize = 32;
/// `ItlTarget::Auto`: a step with prompt tokens takes as many times as long as its decodes alone.
const AUTO_FACTOR: f32 = 2.0;
/// And never aims below this: 40 tokens a second are more than anybody reads.
const AUTO_TARGET_MIN_US: f32 = 25_000.0;

/// What may still be put into the step being planned.
struct Room {
    tokens: usize,
    /// Of them, for what is not decode.
    prefill_tokens: usize,
    /// Of them, for drafts.
    drafts: usize,
    /// Decodes that are not part of the step yet: drafts leave a token for each.
    decodes: usize,
    /// What drafts are weighed against.
    so_far: StepSoFar,
    prefills: usize,
    scored: usize,
    decodes_allowed: bool,
    prefills_allowed: bool,
}

impl Scheduler {
    /// Plans the next step into `step`, which is empty when nothing can run. `commit` or `fail_step` must follow a step
    /// with rows.
    pub fn schedule(&mut self, step: &mut Step) {
        assert!(!self.in_flight, "the step before is committed or failed first");
        step.clear();
        self.step_number += 1;
        if self.capabilities.mixed_batch {
            self.plan(step, true, true);
        } else {
            // Strict turns, so that neither a stream of prompts nor a crowd of decodes holds up the other kind.
            let prefills_first = !self.prefilled_last;
            self.plan(step, !prefills_first, prefills_first);
            if step.rows.is_empty() {
                self.plan(step, prefills_first, !prefills_first);
            }
            self.prefilled_last = step.rows.iter().any(|row| !row.decode);
        }
        self.in_flight = !step.rows.is_empty();
        if self.in_flight {
            if let Some(states) = &self.states {
                step.copies.extend_from_slice(states.copies());
            }
            self.stats.steps += 1;
            self.stats.step_tokens.observe(step.tokens as u32);
            let padded = self.capabilities.padded_tokens(step.rows.len(), step.tokens);
            self.stats.padding_tokens += (padded.expect("a step is planned for a bucket") - step.tokens) as u64;
        }
        self.held_up = step.rows.is_empty() && !self.capabilities.preemption;
        self.is_settled = true;
        assert!(step.tokens <= self.tokens_per_step_max, "a step stays within its token budget");
    }

    fn plan(&mut self, step: &mut Step, decodes_allowed: bool, prefills_allowed: bool) {
        let decodes = self.running.iter().filter(|slot| self.at(**slot).is_decode()).count();
        let decoding = if decodes_allowed { decodes } else { 0 };
        let left = self.tokens_per_step_max.saturating_sub(decoding);
        let target_us = self.target_us(decodes);
        let mut room = Room {
            tokens: self.tokens_per_step_max,
            prefill_tokens: self.prefill_tokens(decodes, target_us),
            // Half of what is left, so that a small budget is not spent on guesses.
            drafts: DRAFTS_PER_STEP_MAX.min(left / 2),
            decodes: decoding,
            so_far: StepSoFar { decodes: decoding, drafts: 0, target_us },
            prefills: if prefills_allowed { self.capabilities.max_prefills_per_step as usize } else { 0 },
            scored: SCORED_PER_STEP_MAX,
            decodes_allowed,
            prefills_allowed,
        };
        if prefills_allowed && self.has_open_prefills(decodes) {
            // Beside prompts no arithmetic is idle, and what the target time leaves is theirs.
            room.drafts = 0;
        }
        self.plan_first(step, left.max(1), &mut room);
        if decodes_allowed {
            self.plan_decodes(step, &mut room);
        }
        self.plan_prefills(step, &mut room);
    }

    /// Whether some prompt, or a sequence that resumes, could be part of the step.
    fn has_open_prefills(&self, decodes: usize) -> bool {
        decodes < self.running.len() || (!self.waiting.is_empty() && self.running.len() < self.running_max)
    }

    /// How long a step with so many decodes should take at most, in microseconds.
    pub(super) fn target_us(&self, decodes: usize) -> f32 {
        match self.config.itl_target {
            ItlTarget::Off => f32::INFINITY,
            ItlTarget::Auto => (self.costs.decode_us(decodes) * AUTO_FACTOR).max(AUTO_TARGET_MIN_US),
            ItlTarget::Milliseconds(target_ms) => target_ms as f32 * 1000.0,
        }
    }

    /// Prompt tokens that fit into the target time beside so many decodes.
    fn prefill_tokens(&self, decodes: usize, target_us: f32) -> usize {
        let (decode_us, token_us) = (self.costs.decode_us(decodes), self.costs.prompt_token_us());
        if decodes == 0 || token_us == 0.0 || target_us.is_infinite() {
            return usize::MAX;
        }
        let fitting = ((target_us - decode_us) / token_us).max(0.0) as usize;
        // A block at least: less would never reach a border, see `is_crumb`.
        fitting.max(PREFILL_TOKENS_MIN).max(self.config.block_size as usize)
    }

    /// The first in order goes first, whatever it needs: this is what bounds every wait.
    fn plan_first(&mut self, step: &mut Step, left: usize, room: &mut Room) {
        let share = left.min(room.prefill_tokens);
        let first_running = self.running.first().map(|slot| self.at(*slot).key);
        if let Some((key, slot)) = self.waiting.first_key_value()
            && room.prefills_allowed
            && first_running.is_none_or(|running| *key < running)
        {
            let slot = *slot;
            if self.admit(slot) {
                self.plan_prefill(slot, share, step, room);
                return;
            }
        }
        let Some(slot) = self.running.first().copied() else { return };
        if !self.at(slot).is_decode() && room.prefills_allowed {
            self.plan_prefill(slot, share, step, room);
        } else if self.at(slot).is_decode() && room.decodes_allowed {
            self.plan_decode(slot, step, room);
        }
    }

    fn plan_decodes(&mut self, step: &mut Step, room: &mut Room) {
        // A victim is always behind the one it makes room for, so the places before `place` do not move.
        let mut place = 0;
        while place < self.running.len() && room.tokens > 0 {
            let slot = self.running[place];
            if self.at(slot).scheduled() == 0 && self.at(slot).is_decode() {
                self.plan_decode(slot, step, room);
            }
            place += 1;
        }
    }

    fn plan_decode(&mut self, slot: usize, step: &mut Step, room: &mut Room) {
        let target = self.at(slot).computed() + 1;
        room.decodes -= 1;
        if self.grow(slot, target) == target {
            let drafts = self.draft(slot, room);
            self.put(slot, 1, true, step);
            room.tokens -= 1 + drafts;
        }
    }

    /// Drafts for a decode, as many as pay and find a place without taking anybody's. Returns how many.
    fn draft(&mut self, slot: usize, room: &mut Room) -> usize {
        let tokens_left = room.tokens.saturating_sub(1 + room.decodes);
        let most = room.drafts.min(tokens_left).min(self.drafts_per_row_max);
        let sequence = self.slots[slot].as_mut().expect("a queued slot holds a live sequence");
        let wanted = if most == 0 { 0 } else { sequence.draft(most, room.so_far, &self.costs) };
        if wanted == 0 {
            return 0;
        }
        let end = sequence.computed() + 1;
        let missing = blocks_for(end + wanted, self.config.block_size).saturating_sub(sequence.blocks().len());
        for _ in 0..missing {
            if self.pool.available() <= self.watermark {
                break;
            }
            let Some(block) = self.pool.allocate() else { break };
            sequence.add_block(block);
        }
        let covered = sequence.blocks().len() * self.config.block_size as usize;
        let drafts = wanted.min(covered - end);
        sequence.truncate_drafts(drafts);
        room.drafts -= drafts;
        room.so_far.drafts += drafts;
        drafts
    }

    /// Running prefills and admissions, merged in order.
    fn plan_prefills(&mut self, step: &mut Step, room: &mut Room) {
        let mut place = 0;
        let mut admitting = true;
        while room.tokens.min(room.prefill_tokens) > 0 && room.prefills > 0 {
            let share = room.tokens.min(room.prefill_tokens);
            while place < self.running.len() && !self.is_open_prefill(self.running[place]) {
                place += 1;
            }
            let running = self.running.get(place).map(|slot| (self.at(*slot).key, *slot));
            let waiting = self.waiting.first_key_value().map(|(key, slot)| (*key, *slot));
            match (running, waiting.filter(|_| admitting)) {
                (Some((running_key, slot)), waiting) if waiting.is_none_or(|(key, _)| running_key < key) => {
                    place += 1;
                    // Who stands still for want of blocks lets nobody new in.
                    admitting &= self.plan_prefill(slot, share, step, room);
                }
                (_, Some((_, slot))) => {
                    // One that could get no more than a crumb waits for the next step.
                    admitting = !self.is_crumb(slot, share) && self.admit(slot);
                    if admitting {
                        self.plan_prefill(slot, share, step, room);
                    }
                }
                _ => return,
            }
        }
    }

    fn is_open_prefill(&self, slot: usize) -> bool {
        let sequence = self.at(slot);
        sequence.scheduled() == 0 && !sequence.is_decode()
    }

    /// Puts the next chunk of a running sequence into the step: at most `share` tokens, less what others need of it.
    /// False when there is no block for it.
    fn plan_prefill(&mut self, slot: usize, share: usize, step: &mut Step, room: &mut Room) -> bool {
        let (computed_before, cached_before) = (self.at(slot).computed(), self.at(slot).cached_tokens());
        self.take_cached(slot);
        let computed = self.at(slot).computed();
        if !step.rows.is_empty() && (self.is_crumb(slot, share) || self.follows(slot)) {
            return true;
        }
        let left = self.left_to_others(slot, share, room);
        let chunk = [share - left, share].into_iter().find_map(|share| self.to_border(slot, share, room.scored));
        let count = chunk.unwrap_or_else(|| self.chunk_max(slot, share, room.scored));
        let count = self.capabilities.well_filled(count);
        if count == 0 {
            // Others score all that this step can; they were before it in order.
            return true;
        }
        let covered = self.grow(slot, computed + count);
        if covered == computed {
            self.undo_take_cached(slot, computed_before, cached_before);
            return false;
        }
        let count = covered - computed;
        self.put(slot, count, false, step);
        room.tokens -= count;
        room.prefill_tokens -= count;
        room.prefills -= 1;
        room.scored -= step.rows.last().map_or(0, |row| row.scored().len());
        true
    }

    /// The most that a sequence can put into one step, of at most `share` tokens and `scored` scores.
    fn chunk_max(&self, slot: usize, share: usize, scored: usize) -> usize {
        let sequence = self.at(slot);
        let count = sequence.uncomputed().min(share);
        sequence.score_next().map_or(count, |next| count.min(next - sequence.computed() + scored))
    }

    /// The largest chunk of at most `share` tokens that ends the sequence or at a block's border: then others can share
    /// that block, and this sequence theirs. `None` where neither is in reach.
    fn to_border(&self, slot: usize, share: usize, scored: usize) -> Option<usize> {
        let (computed, count) = (self.at(slot).computed(), self.chunk_max(slot, share, scored));
        if count == self.at(slot).uncomputed() {
            return Some(count);
        }
        let size = self.config.block_size as usize;
        let border = (computed + count) / size * size;
        (border > computed).then(|| border - computed)
    }

    /// The rest of a budget, too small to reach a block's border: better left unused, for a sequence that stops inside
    /// a block can share nothing until it has computed the rest of that block by itself.
    fn is_crumb(&self, slot: usize, share: usize) -> bool {
        let shares = self.pool.caching() && self.at(slot).score_next().is_none();
        let size = self.config.block_size as usize;
        shares && self.tokens_per_step_max >= size && self.to_border(slot, share, 0).is_none()
    }

    /// Part of `share` that the first in order leaves, so that short prompts behind a long one move on too: at most a
    /// quarter, and no more than they need.
    fn left_to_others(&self, slot: usize, share: usize, room: &Room) -> usize {
        let left_max = share / 4;
        if room.prefills <= 1 || left_max == 0 {
            return 0;
        }
        let mut needed = 0;
        let admission_possible = self.running.len() < self.running_max && self.pool.available() > self.watermark;
        if admission_possible && let Some(first) = self.waiting.values().next() {
            needed += self.at(*first).uncomputed();
        }
        for other in &self.running {
            if needed >= left_max {
                break;
            }
            if *other != slot && self.is_open_prefill(*other) {
                needed += self.at(*other).uncomputed();
            }
        }
        needed.min(left_max)
    }

    /// Allocates blocks up to `target` tokens, as far as there are any, and preempts only when there is none at all.
    /// Returns how many tokens are covered.
    fn grow(&mut self, slot: usize, target: usize) -> usize {
        let block_size = self.config.block_size;
        let key = self.at(slot).key;
        let missing = blocks_for(target, block_size).saturating_sub(self.at(slot).blocks().len());
        debug_assert!(self.capabilities.preemption || missing <= self.pool.available(), "what is set aside is there");
        while missing > 0 && self.pool.available() == 0 {
            let Some(victim) = self.parked_victim().or_else(|| self.running_victim(key, |_| true)) else { break };
            self.preempt(victim);
        }
        for _ in 0..missing {
            let Some(block) = self.pool.allocate() else { break };
            self.at_mut(slot).add_block(block);
        }
        target.min(self.at(slot).blocks().len() * block_size as usize)
    }

    /// Makes the next `count` tokens of a running sequence, and its drafts, part of the step, and registers the blocks
    /// that the former fill.
    fn put(&mut self, slot: usize, count: usize, decode: bool, step: &mut Step) {
        let block_size = self.config.block_size;
        let size = block_size as usize;
        // Slots that are left to those who wait for a seat.
        let seats = self.waiting.len().min(self.running_max - self.running.len());
        let sequence = self.slots[slot].as_mut().expect("a queued slot holds a live sequence");
        let (start, end) = (sequence.computed(), sequence.computed() + count);
        assert!(
            sequence.blocks()[start / size..].iter().all(|block| self.pool.is_private(*block)),
            "a step writes into no shared block"
        );
        let (first, drafts) = (sequence.is_new(), sequence.drafts().len());
        let scores = sequence.score_next().map_or(0..0, |next| next..end.min(sequence.prompt_len() - 1).max(next));
        sequence.schedule(count, block_size);
        if self.pool.caching() {
            for index in start / size..end / size {
                let block = sequence.blocks()[index];
                let (parent, hash, tokens) = sequence.content(index, block_size);
                self.pool.register(block, hash, parent, tokens);
            }
        }
        if let Some(states) = self.states.as_mut().filter(|_| self.pool.caching()) {
            let row = step.rows.len();
            for border in sequence.save_borders(block_size) {
                if border > start && border <= end && states.idle() > seats {
                    let (parent, hash, tokens) = sequence.content(border / size - 1, block_size);
                    let saved = states.save(hash, parent, tokens);
                    step.saves.extend(saved.map(|slot| StepSave { row, end: border, slot }));
                }
            }
        }
        debug_assert_eq!(sequence.state(), State::Running, "only running sequences are part of a step");
        step.tokens += count + drafts;
        step.rows.push(Row {
            slot,
            id: sequence.id,
            place: step.rows.len(),
            start,
            count: count + drafts,
            drafts,
            decode,
            sample: end == sequence.tokens().len() && sequence.params.max_tokens > 0,
            first,
            score_start: scores.start,
            score_end: scores.end,
        });
    }
}
