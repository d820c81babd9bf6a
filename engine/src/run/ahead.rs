// performance-critical: no lock; allocates a token's message and nothing else; formats and logs only a failure
//! A second step on a device behind the one that it computes: while it goes on, this thread takes in what the first gave.
//!
//! As long as one step follows the other this way the engine does nothing else: whatever comes between (an arrival, a
//! client that has gone or reads again, a filter, an adapter that leaves, a shutdown) ends it after the step in flight.

use std::sync::mpsc::{Receiver, TryRecvError};

use super::step::{device, fenced};
use super::{Command, Engine};
use crate::batch;
use crate::delivery::{Delivery, has_caught_up};
use crate::sampler;

/// Whether a step is on the device behind the one that is being collected.
#[derive(Debug, Default)]
pub(super) enum Behind {
    #[default]
    None,
    UnderWay,
    /// It could not be begun.
    Failed(String),
}

impl Engine {
    /// Issues a step behind the one in flight, if the next step would be the same rows again and nothing comes between.
    pub(super) fn run_ahead(&mut self, commands: &Receiver<Command>) {
        if !self.chosen_on_device || !self.is_undisturbed(commands) {
            return;
        }
        let runs_ahead = self.executor.device().is_some_and(|device| device.runs_ahead());
        if !runs_ahead || !self.scheduler.schedule_behind(&self.step, &mut self.next) {
            return;
        }
        batch::fill(&self.scheduler, &self.next, &mut self.batch);
        let issued = fenced(|| {
            let device = device(&mut *self.executor)?;
            device.issue_behind(&self.batch, &self.next.sources)?;
            sampler::request(&self.scheduler, &self.next, device.limits(), &mut self.next_wanted);
            device.choose(&self.next_wanted)
        });
        match issued {
            Ok(chosen_on_device) => {
                self.chosen_on_device = chosen_on_device;
                self.behind = Behind::UnderWay;
            }
            Err(reason) => self.behind = Behind::Failed(reason),
        }
    }

    /// The step behind is the one in flight now. Its clients get what the one before gave.
    pub(super) fn go_on(&mut self) {
        std::mem::swap(&mut self.step, &mut self.next);
        std::mem::swap(&mut self.wanted, &mut self.next_wanted);
        self.scheduler.drop_ended(&mut self.step);
        self.deliver();
    }

    /// Leaves the answers of the rows that are still there, in their order: a row that runs ahead has one.
    pub(super) fn drop_answers(&mut self) {
        if self.step.sources.is_empty() {
            return;
        }
        for (at, row) in self.step.rows.iter().enumerate() {
            self.samples.swap(at, row.place);
        }
        self.samples.truncate(self.step.rows.len());
    }

    /// Nothing waits for the time between two steps.
    fn is_undisturbed(&mut self, commands: &Receiver<Command>) -> bool {
        if self.draining || !self.unread.is_empty() || !self.filters.is_empty() || self.draft_model.is_some() {
            return false;
        }
        if self.inbox.is_none() {
            match commands.try_recv() {
                Ok(command) => self.inbox = Some(command),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        let is_quiet = |delivery: &Delivery| {
            let reads_again = delivery.unsent.is_some() && has_caught_up(&delivery.progress);
            !delivery.progress.is_closed() && !reads_again
        };
        self.inbox.is_none() && !self.adapters.are_leaving() && self.deliveries.values().all(is_quiet)
    }
}
