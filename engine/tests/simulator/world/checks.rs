//! What holds of every step, and between steps.

use std::collections::HashSet;

use sconce_engine::SeqId;
use sconce_engine::sequence::State;

use super::World;

impl World {
    pub(super) fn check_step(&self) {
        let rows = &self.step.rows;
        let tokens: usize = rows.iter().map(|row| row.count).sum();
        let budget = self.config.max_num_batched_tokens.min(self.capabilities.max_tokens_per_step) as usize;
        assert!(tokens == self.step.tokens && tokens <= budget, "{tokens} tokens in a budget of {budget}");
        assert!(rows.len() <= self.config.max_num_seqs as usize, "more rows than sequences may run");
        let bucket = self.capabilities.static_buckets.iter().max();
        assert!(bucket.is_none_or(|bucket| rows.len() <= *bucket as usize), "more rows than the largest bucket");
        let distinct: HashSet<SeqId> = rows.iter().map(|row| row.id).collect();
        assert_eq!(distinct.len(), rows.len(), "a sequence is in a step once");
        let prefills = rows.iter().filter(|row| !row.decode).count();
        assert!(prefills <= self.capabilities.max_prefills_per_step as usize, "{prefills} prefills");
        assert!(self.capabilities.mixed_batch || prefills == 0 || prefills == rows.len(), "kinds are mixed");
        for row in rows {
            assert!(!row.decode || row.count == 1 + row.drafts, "a decode is one token and its drafts");
            assert!(row.decode || row.drafts == 0, "only decodes are guessed ahead");
            let speculation = self.config.speculation.map_or(0, |config| config.num_speculative_tokens());
            let drafts_max = speculation.min(self.capabilities.max_drafts_per_row) as usize;
            assert!(row.drafts <= drafts_max, "{} drafts, at most {drafts_max}", row.drafts);
            assert_ne!(self.clients[&row.id].state, State::Parked, "a parked sequence is not scheduled");
        }
    }

    /// The first in order of those that run computes something in every step (in every other one where the kinds take
    /// turns), unless one of a higher priority came in before it. Every bound on waiting rests on this.
    pub(super) fn check_progress(&mut self, first: Option<SeqId>) {
        let turns = if self.capabilities.mixed_batch { 1 } else { 2 };
        let scheduled: HashSet<SeqId> = self.step.rows.iter().map(|row| row.id).collect();
        let before = self.step.rows.iter().map(|row| self.clients[&row.id].key).min();
        for (id, client) in &mut self.clients {
            let overtaken = before.is_some_and(|key| key < client.key);
            // Who is not first starts to count anew, also where nobody ran before this step.
            let stands = first == Some(*id) && !scheduled.contains(id) && !overtaken;
            client.stalled = if stands { client.stalled + 1 } else { 0 };
        }
        let Some(first) = first else { return };
        assert!(self.clients[&first].stalled < turns, "{first:?} is the first in order and stands still");
    }

    /// Every block that a row reads was written under the row's own salt, with its own adapter.
    pub(super) fn check_salts(&mut self) {
        for row in &self.step.rows {
            let writer = (self.clients[&row.id].salt, self.clients[&row.id].adapter);
            let size = self.config.block_size as usize;
            let blocks = self.scheduler.sequence(row).blocks();
            for block in &blocks[row.start / size..] {
                self.writers[block.0 as usize] = Some(writer);
            }
        }
        for row in &self.step.rows {
            let reader = (self.clients[&row.id].salt, self.clients[&row.id].adapter);
            for block in self.scheduler.sequence(row).blocks() {
                assert_eq!(self.writers[block.0 as usize], Some(reader), "{:?} reads another's block", row.id);
            }
        }
    }

    pub(super) fn check_between_steps(&mut self) {
        self.scheduler.audit().expect("the scheduler is sound");
        assert_eq!(self.scheduler.live(), self.clients.len(), "the scheduler and the clients agree on who lives");
        let stats = self.scheduler.stats();
        assert_eq!(stats.blocks_free + stats.blocks_cached + stats.blocks_owned, u64::from(self.config.blocks));
        assert_eq!(stats.running + stats.waiting + stats.parked, self.clients.len() as u64);
        assert!(self.config.enable_prefix_caching || stats.blocks_cached == 0);
        self.tally.several_prefills += u64::from(self.step.rows.iter().filter(|row| !row.decode).count() > 1);
        self.tally.bounded_prefills += u64::from(self.is_bounded());
        let held_up = self.is_held_up();
        for (id, client) in &mut self.clients {
            if client.state != State::Parked && !held_up {
                client.age += 1;
                assert!(client.age <= client.age_max, "{id:?} waits too long: {} steps", client.age);
            }
        }
    }
}
