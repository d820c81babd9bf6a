//! A member whose model sleeps: its weights wait in host memory while others use its device.

use super::slot::{Held, Memory, Slot};
use super::{History, LocalMember};

impl LocalMember {
    /// Takes away the model that sleeps, if there is one and nobody waits for it.
    pub fn take_sleeping(&self) -> Option<Held> {
        self.take_if(|slot| matches!(slot, Slot::Sleeping { .. }) && self.waiting() == 0)
    }

    /// The model that was taken away sleeps, and takes `memory`; `awake` is what it took before. False: it is not served any
    /// more.
    pub fn sleeping(&self, held: Held, memory: Memory, awake: Memory) -> bool {
        self.change_history(|history| history.sleeps += 1);
        self.slot.send_if_modified(|slot| {
            let was_draining = matches!(slot, Slot::Draining(_));
            if was_draining {
                self.counted().departing = None;
                *slot = Slot::Sleeping { held, memory, awake };
            }
            was_draining
        })
    }

    /// Nobody wants the model any more that was to be woken.
    pub fn sleep_on(&self, held: Held, awake: Memory) {
        self.slot.send_if_modified(|slot| {
            let Slot::Loading(loading) = slot else { return false };
            self.counted().departing = None;
            *slot = Slot::Sleeping { held, memory: loading.memory, awake };
            true
        });
    }

    /// A model that slept can answer.
    pub fn woken(&self, held: Held, awake: Memory) {
        self.hold_again(held, awake, |history: &mut History, took| history.wake_time = Some(took));
    }

    /// What its model takes, while it is awake.
    pub fn awake_memory(&self) -> Option<Memory> {
        match &*self.slot.borrow() {
            Slot::Holding { memory, .. } => Some(*memory),
            _ => None,
        }
    }

    /// Host memory that its model takes for sleeping, in bytes.
    pub fn sleeping_bytes(&self) -> u64 {
        match &*self.slot.borrow() {
            Slot::Sleeping { memory, .. } => memory.total_bytes(),
            _ => 0,
        }
    }
}
