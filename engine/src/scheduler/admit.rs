// performance-critical: no lock, no log, no format
//! Who is let in, with which blocks, and who gives way.

use super::Scheduler;
use crate::blocks::blocks_for;
use crate::sequence::{OrderKey, Sequence};

impl Scheduler {
    /// Lets a waiting sequence run if there are a seat and blocks for it; for it, parked sequences and running ones of a
    /// lower priority give way, where anybody may.
    pub(super) fn admit(&mut self, slot: usize) -> bool {
        let cached_before = self.at(slot).cached_tokens();
        if !self.take_state(slot) {
            return false;
        }
        self.take_cached(slot);
        let admitted = if self.capabilities.preemption { self.make_room(slot) } else { self.has_room(slot) };
        if !admitted {
            self.undo_take_cached(slot, 0, cached_before);
            self.release_blocks(slot);
            return false;
        }
        let key = self.at(slot).key;
        self.waiting.remove(&key);
        self.at_mut(slot).admit();
        self.enter_running(slot);
        true
    }

    /// Preempts until everything that the sequence knows fits beside what the running ones still need. False when nobody
    /// is left to give way.
    fn make_room(&mut self, slot: usize) -> bool {
        let (key, priority) = (self.at(slot).key, self.at(slot).priority);
        loop {
            let reserve = if self.running.is_empty() { 0 } else { self.promised() + self.watermark };
            let needed = self.at(slot).blocks_missing(self.config.block_size) + reserve;
            let seat_free = self.running.len() < self.running_max;
            if seat_free && self.pool.available() >= needed {
                return true;
            }
            let parked = if seat_free { self.parked_victim() } else { None };
            match parked.or_else(|| self.running_victim(key, |other| other.priority > priority)) {
                Some(victim) => self.preempt(victim),
                None => return false,
            }
        }
    }

    /// Whether everything that the sequence may ever need fits beside what is set aside for others.
    fn has_room(&self, slot: usize) -> bool {
        let seats = self.running.len() + self.parked_holders().count();
        seats < self.running_max && self.pool.available() >= self.set_aside() + self.blocks_to_come(slot)
    }

    /// Blocks that the running sequences still need for the tokens they have.
    fn promised(&self) -> usize {
        self.running.iter().map(|slot| self.at(*slot).blocks_missing(self.config.block_size)).sum()
    }

    /// Without preemption: blocks that those who are in may still ask for.
    pub(super) fn set_aside(&self) -> usize {
        self.running.iter().copied().chain(self.parked_holders()).map(|slot| self.blocks_to_come(slot)).sum()
    }

    /// Blocks that a sequence does not hold yet and needs before it has all the tokens that it may have.
    fn blocks_to_come(&self, slot: usize) -> usize {
        let sequence = self.at(slot);
        blocks_for(sequence.tokens_max(), self.config.block_size).saturating_sub(sequence.blocks().len())
    }

    pub(super) fn parked_holders(&self) -> impl Iterator<Item = usize> {
        self.parked.values().copied().filter(|slot| !self.at(*slot).blocks().is_empty())
    }

    /// Takes over the blocks that already hold what comes next in a sequence.
    pub(super) fn take_cached(&mut self, slot: usize) {
        if !self.pool.caching() {
            return;
        }
        if self.states.is_some() {
            return self.take_saved(slot);
        }
        let block_size = self.config.block_size;
        let size = block_size as usize;
        let sequence = self.slots[slot].as_mut().expect("a queued slot holds a live sequence");
        if !sequence.computed().is_multiple_of(size) {
            return;
        }
        while sequence.computed() + size <= sequence.shareable() {
            let (parent, hash, tokens) = sequence.content(sequence.computed() / size, block_size);
            let Some(block) = self.pool.find(hash, parent, tokens) else { return };
            self.pool.share(block);
            sequence.take_cached(block, block_size);
        }
    }

    pub(super) fn undo_take_cached(&mut self, slot: usize, computed: usize, cached_tokens: usize) {
        let block_size = self.config.block_size;
        let mut blocks = self.at_mut(slot).drop_cached(computed, cached_tokens, block_size);
        self.pool.release_all(&mut blocks);
        let state = self.at(slot).slot();
        if let (Some(states), Some(state)) = (&mut self.states, state) {
            states.cancel_copies(state, computed);
        }
    }

    pub(super) fn parked_victim(&self) -> Option<usize> {
        let holds = |slot: &usize| !self.at(*slot).blocks().is_empty() || self.at(*slot).slot().is_some();
        self.parked.values().rev().copied().find(holds)
    }

    /// The last in order behind `key` that is not part of the step yet.
    pub(super) fn running_victim(&self, key: OrderKey, also: impl Fn(&Sequence) -> bool) -> Option<usize> {
        let behind = self.running.iter().rev().copied().take_while(|slot| self.at(*slot).key > key);
        behind.into_iter().find(|slot| self.at(*slot).scheduled() == 0 && also(self.at(*slot)))
    }
}
