// performance-critical: no lock, no log, no format outside `audit`; linear in the slots only where one is evicted
//! State slots, for models that keep one state a sequence instead of something of every token: who owns them, and which
//! hold a state that a later sequence may begin with.
//!
//! Invariants: a slot is free, owned by one sequence, being saved by the step in flight, or saved; counted once. A saved
//! state belongs to the end of a full block, and is found as such a block is: by hash, parent and token ids. Saved states
//! that nobody has begun with for longest go first; one that this step copies stays.

use std::collections::HashMap;

use super::blocks::ChainHash;

/// A slot that holds the state of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateSlot(pub u32);

/// A copy that the next step begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateCopy {
    pub from: StateSlot,
    pub to: StateSlot,
    /// Tokens that the state knows.
    computed: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Free,
    Owned,
    Saving,
    Saved,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    holds: Use,
    hash: ChainHash,
    parent: ChainHash,
    /// When somebody last began with it.
    used: u64,
}

/// All slots of one model.
pub struct StatePool {
    block_size: usize,
    slots: Vec<Slot>,
    /// Token ids of the blocks that saved states stand behind. `[slots, block_size]`
    tokens: Vec<u32>,
    free: Vec<u32>,
    /// Of those saved and those being saved.
    index: HashMap<ChainHash, u32>,
    saving: Vec<u32>,
    copies: Vec<StateCopy>,
    clock: u64,
}

impl StatePool {
    pub fn new(slots: u32, block_size: u32) -> Self {
        assert!(slots > 0, "a pool has at least one slot");
        let root = ChainHash::root(&[0; 32]);
        Self {
            block_size: block_size as usize,
            slots: vec![Slot { holds: Use::Free, hash: root, parent: root, used: 0 }; slots as usize],
            tokens: vec![0; slots as usize * block_size as usize],
            // Popped from the end: slot 0 is the first to be used.
            free: (0..slots).rev().collect(),
            index: HashMap::with_capacity(slots as usize),
            saving: Vec::new(),
            copies: Vec::new(),
            clock: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.slots.len()
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Slots that `take` can still give: free ones, then those of saved states that nobody copies.
    pub fn idle(&self) -> usize {
        let is_idle = |(id, slot): (usize, &Slot)| {
            slot.holds == Use::Saved && self.copies.iter().all(|copy| copy.from.0 as usize != id)
        };
        self.free.len() + self.slots.iter().enumerate().filter(|slot| is_idle(*slot)).count()
    }

    pub fn saved(&self) -> usize {
        self.index.len() - self.saving.len()
    }

    /// A slot for one sequence: a free one, else that of the saved state that was used least recently.
    pub fn take(&mut self) -> Option<StateSlot> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                let is_idle = |id: &u32| {
                    let slot = &self.slots[*id as usize];
                    slot.holds == Use::Saved && self.copies.iter().all(|copy| copy.from.0 != *id)
                };
                let oldest =
                    (0..self.slots.len() as u32).filter(is_idle).min_by_key(|id| self.slots[*id as usize].used)?;
                self.index.remove(&self.slots[oldest as usize].hash);
                oldest
            }
        };
        self.slots[id as usize].holds = Use::Owned;
        Some(StateSlot(id))
    }

    /// Gives a sequence's slot back, with what was to be copied there.
    pub fn release(&mut self, slot: StateSlot) {
        assert_eq!(self.slots[slot.0 as usize].holds, Use::Owned, "a slot is released once, by its owner");
        self.copies.retain(|copy| copy.to != slot);
        self.set_free(slot.0);
    }

    fn set_free(&mut self, id: u32) {
        self.slots[id as usize].holds = Use::Free;
        self.free.push(id);
    }

    /// A slot in which this step leaves the state behind a full block, unless that one is there already or no slot is idle.
    pub fn save(&mut self, hash: ChainHash, parent: ChainHash, tokens: &[u32]) -> Option<StateSlot> {
        assert_eq!(tokens.len(), self.block_size, "states are saved at the end of full blocks");
        if self.index.contains_key(&hash) {
            return None;
        }
        let slot = self.take()?;
        self.slots[slot.0 as usize] = Slot { holds: Use::Saving, hash, parent, used: self.clock };
        let start = slot.0 as usize * self.block_size;
        self.tokens[start..start + self.block_size].copy_from_slice(tokens);
        self.index.insert(hash, slot.0);
        self.saving.push(slot.0);
        Some(slot)
    }

    /// The saved state behind the block that holds `tokens` after `parent`. Token ids and parent are compared too.
    pub fn find(&self, hash: ChainHash, parent: ChainHash, tokens: &[u32]) -> Option<StateSlot> {
        let id = *self.index.get(&hash)?;
        let slot = &self.slots[id as usize];
        let start = id as usize * self.block_size;
        let is_it = slot.parent == parent && self.tokens[start..start + self.block_size] == *tokens;
        (slot.holds == Use::Saved && is_it).then_some(StateSlot(id))
    }

    /// Has the next step begin by copying a saved state of `computed` tokens into a sequence's slot.
    pub fn copy(&mut self, from: StateSlot, to: StateSlot, computed: usize) {
        assert_eq!(self.slots[from.0 as usize].holds, Use::Saved, "what is copied was saved");
        assert_eq!(self.slots[to.0 as usize].holds, Use::Owned, "and goes to a sequence");
        self.clock += 1;
        self.slots[from.0 as usize].used = self.clock;
        self.copies.push(StateCopy { from, to, computed });
    }

    /// A sequence goes back to `computed` tokens: states of more are not copied to it.
    pub fn cancel_copies(&mut self, to: StateSlot, computed: usize) {
        self.copies.retain(|copy| copy.to != to || copy.computed <= computed);
    }

    /// In the order in which they are to be made.
    pub fn copies(&self) -> &[StateCopy] {
        &self.copies
    }

    /// The step in flight has run: what it copied is there, what it saved can be found.
    pub fn settle(&mut self) {
        self.copies.clear();
        self.clock += 1;
        for id in self.saving.drain(..) {
            self.slots[id as usize].holds = Use::Saved;
            self.slots[id as usize].used = self.clock;
        }
    }

    /// Makes sure that nobody begins with the state behind this block: it is not to be trusted.
    pub fn forget(&mut self, hash: ChainHash) {
        let is_saved = |id: &u32| self.slots[*id as usize].holds == Use::Saved;
        if let Some(id) = self.index.get(&hash).copied().filter(is_saved) {
            assert!(self.copies.iter().all(|copy| copy.from.0 != id), "states are forgotten between steps");
            self.index.remove(&hash);
            self.set_free(id);
        }
    }

    /// Forgets all saved states. Owned slots stay owned.
    pub fn reset_saved(&mut self) {
        self.copies.clear();
        self.saving.clear();
        self.index.clear();
        for id in 0..self.slots.len() {
            if matches!(self.slots[id].holds, Use::Saving | Use::Saved) {
                self.set_free(id as u32);
            }
        }
    }

    /// Checks every invariant of the pool between steps, against the slots of all live sequences. For tests.
    pub fn audit(&self, owned: impl Iterator<Item = StateSlot>) -> Result<(), String> {
        let mut places = vec![0_u32; self.slots.len()];
        for slot in owned {
            places[slot.0 as usize] += 1;
            if self.slots[slot.0 as usize].holds != Use::Owned {
                return Err(format!("{slot:?} has an owner and is {:?}", self.slots[slot.0 as usize].holds));
            }
        }
        for id in &self.free {
            places[*id as usize] += 1;
            if self.slots[*id as usize].holds != Use::Free {
                return Err(format!("free state {id} is {:?}", self.slots[*id as usize].holds));
            }
        }
        for (hash, id) in &self.index {
            places[*id as usize] += 1;
            if self.slots[*id as usize].holds != Use::Saved || self.slots[*id as usize].hash != *hash {
                return Err(format!("state {id} is in the index and {:?}", self.slots[*id as usize].holds));
            }
        }
        if let Some(id) = places.iter().position(|places| *places != 1) {
            return Err(format!("state {id} is not exactly one of free, owned, saved"));
        }
        let is_sound = |copy: &StateCopy| {
            let [from, to] = [copy.from, copy.to].map(|slot| self.slots[slot.0 as usize].holds);
            from == Use::Saved && to == Use::Owned
        };
        if !self.saving.is_empty() || !self.copies.iter().all(is_sound) {
            return Err(format!(
                "{} states are being saved between steps, or {:?} is no copy",
                self.saving.len(),
                self.copies
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: [u8; 32] = [7; 32];

    fn hash(token: u32) -> ChainHash {
        ChainHash::root(&SALT).child(&SALT, &[token])
    }

    /// Saves the state behind a block of one token.
    fn saved(pool: &mut StatePool, token: u32) -> Option<StateSlot> {
        let slot = pool.save(hash(token), ChainHash::root(&SALT), &[token]);
        pool.settle();
        slot
    }

    #[test]
    fn the_state_that_nobody_began_with_for_longest_goes_first() {
        let mut pool = StatePool::new(3, 1);
        let root = ChainHash::root(&SALT);
        let [a, b, c] = [1, 2, 3].map(|token| saved(&mut pool, token).expect("room"));
        assert_eq!((pool.free(), pool.saved()), (0, 3));
        let evicted = pool.take().expect("a slot is idle");
        pool.release(evicted);
        assert_eq!(pool.find(hash(1), root, &[1]), None, "the oldest went");
        let own = pool.take().expect("a slot is free");
        assert_eq!(own, a);
        pool.copy(b, own, 1);
        assert_eq!(pool.take(), Some(c), "what is copied stays");
        assert_eq!(pool.take(), None);
        pool.audit([own, c].into_iter()).expect("sound");
        pool.settle();
        assert!(pool.copies().is_empty());
        assert_eq!(pool.take(), Some(b));
    }

    #[test]
    fn what_is_saved_is_found_when_the_step_has_run_and_saved_once() {
        let mut pool = StatePool::new(2, 1);
        let root = ChainHash::root(&SALT);
        let slot = pool.save(hash(5), root, &[5]).expect("room");
        assert_eq!(pool.find(hash(5), root, &[5]), None, "the step has not run");
        assert_eq!(pool.save(hash(5), root, &[5]), None, "once");
        pool.settle();
        assert_eq!(pool.find(hash(5), root, &[5]), Some(slot));
        assert_eq!(pool.find(hash(5), root, &[6]), None, "a forged hash with other tokens");
        assert_eq!(pool.find(hash(5), hash(5), &[5]), None, "a forged hash with another parent");
        pool.forget(hash(5));
        assert_eq!((pool.find(hash(5), root, &[5]), pool.free()), (None, 2));
        saved(&mut pool, 8);
        pool.save(hash(9), root, &[9]).expect("room");
        pool.reset_saved();
        pool.audit(std::iter::empty()).expect("sound");
        assert_eq!((pool.free(), pool.saved()), (2, 0));
    }

    #[test]
    fn a_sequence_that_goes_back_or_away_takes_its_copies_along() {
        let mut pool = StatePool::new(3, 1);
        let state = saved(&mut pool, 1).expect("room");
        let own = pool.take().expect("room");
        pool.copy(state, own, 4);
        pool.copy(state, own, 8);
        pool.cancel_copies(own, 4);
        assert_eq!(pool.copies().len(), 1);
        pool.release(own);
        assert!(pool.copies().is_empty());
    }
}
