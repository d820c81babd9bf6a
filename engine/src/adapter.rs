//! Adapters of an engine's model: loaded and taken away between steps, while requests run.
//!
//! An adapter is gone for good when nobody holds its [`LoadedAdapter`] and no live sequence uses it. Until then it may be
//! named in submits; afterwards they are refused one by one, never a step.

use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};

use sconce_models::Adapter;
pub use sconce_models::AdapterId;

use super::executor::Executor;
use super::handle::{Command, EngineHandle, Gate};
use super::scheduler::Scheduler;

/// Adapters that one engine can have at a time.
pub const ADAPTERS_MAX: u32 = 256;

/// An adapter at hand in an engine. Dropping it takes the adapter away once no live sequence uses it.
pub struct LoadedAdapter {
    id: AdapterId,
    engine: EngineHandle,
}

impl LoadedAdapter {
    pub fn id(&self) -> AdapterId {
        self.id
    }
}

impl Drop for LoadedAdapter {
    fn drop(&mut self) {
        // An engine that has stopped has nothing to take away.
        let _ = self.engine.command(Command::DropAdapter(self.id));
    }
}

impl EngineHandle {
    /// Puts an adapter at hand. Waits for the step in progress to end.
    pub fn load_adapter(&self, adapter: Arc<Adapter>) -> Result<LoadedAdapter, String> {
        let stopped = || "the engine has stopped and takes no adapters".to_owned();
        if !self.gate.enter_adapter(ADAPTERS_MAX) {
            return Err(format!("the engine has {ADAPTERS_MAX} adapters and takes no more; unload one"));
        }
        let id = AdapterId(self.gate.next_adapter());
        let (done, outcome) = sync_channel(1);
        if !self.command(Command::LoadAdapter { id, adapter, done }) {
            self.gate.leave_adapter();
            return Err(stopped());
        }
        outcome.recv().unwrap_or_else(|_| Err(stopped()))?;
        Ok(LoadedAdapter { id, engine: self.clone() })
    }
}

/// The engine thread's list of what its executor has.
pub(super) struct Adapters {
    gate: Weak<Gate>,
    loaded: Vec<AdapterId>,
    /// To be taken away when no sequence uses them any more.
    leaving: Vec<AdapterId>,
}

impl Adapters {
    pub fn new(gate: Weak<Gate>) -> Self {
        Self { gate, loaded: Vec::new(), leaving: Vec::new() }
    }

    pub fn load(&mut self, id: AdapterId, adapter: Arc<Adapter>, executor: &mut dyn Executor) -> Result<(), String> {
        let taken = executor.set_adapter(id, Some(adapter));
        match &taken {
            Ok(()) => self.loaded.push(id),
            Err(_) => self.leave(),
        }
        taken
    }

    /// Whether sequences may come with it.
    pub fn takes(&self, id: AdapterId) -> bool {
        self.loaded.contains(&id)
    }

    pub fn begin_to_leave(&mut self, id: AdapterId) {
        if self.takes(id) {
            self.loaded.retain(|loaded| *loaded != id);
            self.leaving.push(id);
        }
    }

    /// Some are to be taken away when nobody uses them any more.
    pub fn are_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Takes away what nobody uses any more.
    pub fn let_go(&mut self, scheduler: &Scheduler, executor: &mut dyn Executor) {
        for place in (0..self.leaving.len()).rev() {
            let id = self.leaving[place];
            let is_used = scheduler.sequences().any(|sequence| sequence.adapter() == Some(id));
            // Taking away cannot fail where putting in did not.
            if !is_used && executor.set_adapter(id, None).is_ok() {
                self.leaving.swap_remove(place);
                self.leave();
            }
        }
    }

    /// One less is there.
    fn leave(&self) {
        if let Some(gate) = self.gate.upgrade() {
            gate.leave_adapter();
        }
    }
}
