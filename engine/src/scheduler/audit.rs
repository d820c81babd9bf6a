//! What must hold between steps, looked at whole: for tests.

use super::Scheduler;
use crate::sequence::{Sequence, State};

impl Scheduler {
    /// Checks the invariants that hold between steps. For tests: linear in blocks and sequences.
    pub fn audit(&self) -> Result<(), String> {
        self.pool.audit(self.sequences().map(Sequence::blocks))?;
        self.audit_states()?;
        let queued = self.waiting.len() + self.running.len() + self.parked.len();
        if queued != self.live() || self.sequences().count() != self.live() {
            return Err(format!("{queued} sequences in queues, {} live", self.live()));
        }
        for (state, slots) in [
            (State::Waiting, self.waiting.values().copied().collect::<Vec<_>>()),
            (State::Running, self.running.clone()),
            (State::Parked, self.parked.values().copied().collect()),
        ] {
            if !slots.is_sorted_by_key(|slot| self.at(*slot).key) {
                return Err(format!("{state:?} sequences are out of order"));
            }
            if let Some(slot) = slots.iter().find(|slot| self.at(**slot).state() != state) {
                return Err(format!("sequence {:?} is in the queue of {state:?}", self.at(*slot).id));
            }
        }
        if self.running.len() > self.running_max {
            return Err(format!("{} run, {} may", self.running.len(), self.running_max));
        }
        if !self.capabilities.preemption && self.set_aside() > self.pool.available() {
            return Err(format!("{} blocks are set aside, {} are there", self.set_aside(), self.pool.available()));
        }
        Ok(())
    }
}
