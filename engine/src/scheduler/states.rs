// performance-critical: no lock, no log, no format
//! Planning for models that keep a state a sequence: who has a slot, what is begun with, and who waits for whom.

use super::Scheduler;
use crate::sequence::{Sequence, State};

impl Scheduler {
    pub(super) fn audit_states(&self) -> Result<(), String> {
        if let Some(states) = &self.states {
            states.audit(self.sequences().filter_map(Sequence::slot))?;
        }
        let lacks = |sequence: &&Sequence| sequence.slot().is_some() != self.states.is_some();
        let mut running = self.sequences().filter(|sequence| sequence.state() == State::Running);
        match running.find(lacks) {
            Some(sequence) => Err(format!("sequence {:?} runs with {:?}", sequence.id, sequence.slot())),
            None => Ok(()),
        }
    }

    pub(super) fn release_state(&mut self, slot: usize) {
        let state = self.at_mut(slot).take_slot();
        if let (Some(states), Some(state)) = (&mut self.states, state) {
            states.release(state);
        }
    }

    /// Gives a waiting sequence a slot for its state, if the model keeps any. For it, parked sequences and running ones of a
    /// lower priority give way.
    pub(super) fn take_state(&mut self, slot: usize) -> bool {
        let (key, priority) = (self.at(slot).key, self.at(slot).priority);
        loop {
            let seat_free = self.running.len() < self.running_max;
            let Some(states) = &mut self.states else { return true };
            // Without a seat nothing that is saved is given up.
            if seat_free && let Some(state) = states.take() {
                self.at_mut(slot).set_slot(state);
                return true;
            }
            if !self.capabilities.preemption {
                return false;
            }
            let parked = if seat_free { self.parked_victim() } else { None };
            match parked.or_else(|| self.running_victim(key, |other| other.priority > priority)) {
                Some(victim) => self.preempt(victim),
                None => return false,
            }
        }
    }

    /// Takes over the blocks that already hold what comes next in a sequence, as far as a state was saved behind.
    pub(super) fn take_saved(&mut self, slot: usize) {
        let block_size = self.config.block_size;
        let size = block_size as usize;
        let sequence = self.slots[slot].as_mut().expect("a queued slot holds a live sequence");
        let (Some(states), Some(own)) = (&mut self.states, sequence.slot()) else { return };
        if !sequence.computed().is_multiple_of(size) {
            return;
        }
        let first = sequence.computed() / size;
        let (mut found, mut saved) = (first, None);
        while (found + 1) * size <= sequence.shareable() {
            let (parent, hash, tokens) = sequence.content(found, block_size);
            if self.pool.find(hash, parent, tokens).is_none() {
                break;
            }
            found += 1;
            saved = states.find(hash, parent, tokens).map(|state| (found, state)).or(saved);
        }
        let known = saved.map_or(first, |(known, _)| known);
        if sequence.state() == State::Waiting {
            sequence.set_branch(if found > known { found * size } else { 0 });
        }
        let Some((known, state)) = saved else { return };
        for index in first..known {
            let (parent, hash, tokens) = sequence.content(index, block_size);
            let block = self.pool.find(hash, parent, tokens).expect("it was found a moment ago");
            self.pool.share(block);
            sequence.take_cached(block, block_size);
        }
        states.copy(state, own, sequence.computed());
    }

    /// Whether one before it in order is about to leave a state that this sequence can begin with: computing the same
    /// beside it would gain nothing.
    pub(super) fn follows(&mut self, slot: usize) -> bool {
        if self.states.is_none() || !self.pool.caching() {
            return false;
        }
        let block_size = self.config.block_size;
        let (key, computed, shareable) = (self.at(slot).key, self.at(slot).computed(), self.at(slot).shareable());
        for place in 0..self.running.len() {
            let other = self.running[place];
            let border = self.at(other).prompt_border(block_size);
            if self.at(other).key >= key {
                return false;
            }
            let is_ahead = border > computed && border <= shareable && self.at(other).computed() < border;
            if is_ahead {
                let index = border / block_size as usize - 1;
                let wanted = self.at_mut(other).content(index, block_size).1;
                if self.at_mut(slot).content(index, block_size).1 == wanted {
                    return true;
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, config};
    use crate::scheduler::Capabilities;
    use crate::sequence::SeqId;

    fn bench(state_slots: u32) -> Bench {
        Bench::new(config(), &Capabilities { state_slots, max_drafts_per_row: 0, ..Capabilities::any() })
    }

    /// Where the states that the last step left lie in their sequences.
    fn saved(bench: &Bench) -> Vec<usize> {
        bench.step.saves.iter().map(|save| save.end).collect()
    }

    #[test]
    fn siblings_wait_for_the_first_and_begin_with_its_state() {
        let mut bench = bench(8);
        (0..3).for_each(|_| _ = bench.add(7, 14, 4, 0));
        assert_eq!(bench.step(), [(0, 14)], "the others would compute the same");
        // The last border before the tokens that open the answer.
        assert_eq!(saved(&bench), [4]);
        assert_eq!(bench.step(), [(0, 1), (1, 10), (2, 10)]);
        // Once where the first went on alone, and not again where it was saved.
        assert_eq!((bench.step.copies.len(), saved(&bench)), (2, vec![12]));
        assert_eq!(bench.scheduler.stats().prefix_hits, 8);
    }

    #[test]
    fn where_prompts_part_a_state_is_saved_for_the_next() {
        let mut bench = bench(8);
        bench.add(7, 30, 1, 0);
        bench.step();
        bench.add(7, 32, 1, 0);
        // Seven blocks are the same, the state behind five of them was saved.
        assert_eq!((bench.step(), saved(&bench)), (vec![(1, 12)], vec![28]));
        bench.add(7, 31, 1, 0);
        assert_eq!((bench.step(), saved(&bench)), (vec![(2, 3)], vec![]));
    }

    #[test]
    fn who_runs_has_a_slot_and_saved_states_make_room() {
        let mut bench = bench(2);
        bench.add(1, 20, 1, 0);
        bench.step();
        assert_eq!(bench.scheduler.stats().states_saved, 1);
        (2..5).for_each(|first| _ = bench.add(first, 6, 9, 0));
        assert_eq!(bench.step(), [(1, 6), (2, 6)], "two slots");
        let stats = bench.scheduler.stats();
        assert_eq!((stats.states_saved, stats.states_total, stats.waiting), (0, 2, 1));
        // Who is parked gives its slot to the next, and begins anew.
        bench.scheduler.park(SeqId(1));
        assert_eq!(bench.step(), [(2, 1), (3, 6)]);
        bench.scheduler.unpark(SeqId(1));
        bench.scheduler.cancel(SeqId(2));
        assert_eq!(bench.step(), [(1, 7), (3, 1)]);
    }

    #[test]
    fn without_a_prefix_cache_nothing_is_saved_and_nobody_waits() {
        let capabilities = Capabilities { state_slots: 4, max_drafts_per_row: 0, ..Capabilities::any() };
        let mut bench =
            Bench::new(super::super::EngineConfig { enable_prefix_caching: false, ..config() }, &capabilities);
        (0..2).for_each(|_| _ = bench.add(7, 12, 4, 0));
        assert_eq!((bench.step(), saved(&bench)), (vec![(0, 12), (1, 12)], vec![]));
    }

    #[test]
    fn drafts_and_states_are_refused_together() {
        let both = Capabilities { state_slots: 4, ..Capabilities::any() };
        assert!(both.check().expect_err("a state takes nothing back").contains("max_drafts_per_row"));
    }
}
