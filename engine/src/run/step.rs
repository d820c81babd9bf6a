// performance-critical: no lock; allocates a token's message and nothing else; formats and logs only a failure
//! One step of the engine thread, on an executor that computes when it is called, or on a device beside the thread.
//!
//! On a device the tokens of a step go to their clients while the next step computes: one step later than they were
//! committed, unless no step follows or one was issued behind it (`ahead`). Whoever does not read is parked when that step
//! is over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use sconce_models::sampling::check_samples;

use super::ahead::Behind;
use super::{Command, Engine, panic_text};
use crate::batch;
use crate::delivery::{merge, try_deliver};
use crate::executor::{DeviceExecutor, Executor};
use crate::filter::{Desk, Restriction, Verdict};
use crate::handle::{Progress, PromptDone};
use crate::sampler;

/// Steps that fail one after the other before the engine gives up.
const FAILED_STEPS_MAX: u32 = 3;

impl Engine {
    /// A step from its plan to its outcomes, or, where it was issued behind the one before, from there on.
    pub(super) fn run_step(&mut self, commands: &Receiver<Command>) -> Result<(), String> {
        let started = Instant::now();
        let is_issued = matches!(std::mem::take(&mut self.behind), Behind::UnderWay);
        if !is_issued && !self.plan() {
            return Ok(());
        }
        self.board.step.begin();
        let guessing_us = if is_issued { 0.0 } else { self.prepare() };
        let on_device = self.executor.device().is_some();
        let executed = match (on_device, is_issued) {
            (false, _) => self.execute(),
            (true, false) => self.issue().and_then(|()| self.collect(commands)),
            (true, true) => self.collect(commands),
        };
        self.board.step.end();
        if let Err(reason) = executed {
            return self.fail_step(reason);
        }
        self.failed_steps = 0;
        self.restarts = 0;
        if let Some(model) = &mut self.draft_model {
            model.follow(&self.batch);
        }
        self.sample(on_device);
        self.scheduler.commit(&self.step, &mut self.results, &mut self.outcomes);
        self.scheduler.observe(&self.step, started.elapsed().as_secs_f32() * 1e6 - guessing_us);
        match std::mem::take(&mut self.behind) {
            Behind::None => self.end_step(on_device),
            Behind::UnderWay => {
                self.go_on();
                self.behind = Behind::UnderWay;
            }
            Behind::Failed(reason) => {
                self.go_on();
                return self.fail_step(reason);
            }
        }
        Ok(())
    }

    /// Plans the next step. False when there is nothing to compute.
    fn plan(&mut self) -> bool {
        self.scheduler.schedule(&mut self.step);
        if self.step.rows.is_empty() {
            assert!(!self.scheduler.has_work(), "a step computes something whenever a sequence is not parked");
            self.deliver_between_steps();
            return false;
        }
        self.stamp_starts();
        true
    }

    /// Lays the step out. Returns how long a draft model took for it, in microseconds.
    fn prepare(&mut self) -> f32 {
        let guessing_us = self.guess();
        batch::fill(&self.scheduler, &self.step, &mut self.batch);
        guessing_us
    }

    /// Clients and filters get what the step gave: those of a device while it computes the next.
    fn end_step(&mut self, on_device: bool) {
        self.send_filters_on();
        self.park_unread();
        // A draft model guesses before the next step is issued: too long to wait.
        let served_later = on_device && self.draft_model.is_none() && self.scheduler.has_work();
        if !served_later {
            self.deliver_between_steps();
        }
    }

    fn fail_step(&mut self, reason: String) -> Result<(), String> {
        self.behind = Behind::None;
        self.failed_steps += 1;
        self.scheduler.fail_step(&self.step, &reason, &mut self.outcomes);
        self.deliver_between_steps();
        if let Some(why) = self.executor.broken() {
            return Err(why);
        }
        if self.failed_steps < FAILED_STEPS_MAX {
            return Ok(());
        }
        Err(format!("{FAILED_STEPS_MAX} steps failed one after the other; the last: {reason}"))
    }

    /// Has the draft model guess what the step was planned with room for. Returns how long that took, in microseconds.
    fn guess(&mut self) -> f32 {
        let Some(model) = &mut self.draft_model else { return 0.0 };
        if self.step.rows.iter().all(|row| row.drafts == 0) {
            return 0.0;
        }
        let started = Instant::now();
        let (scheduler, step) = (&mut self.scheduler, &mut self.step);
        let guessed = model.guess(scheduler, step);
        let elapsed_us = started.elapsed().as_secs_f32() * 1e6;
        match guessed {
            Ok(guessed) => {
                self.failed_guesses = 0;
                if guessed.usual {
                    self.scheduler.observe_drafts(guessed.tokens, elapsed_us);
                }
            }
            Err(reason) => {
                // Answers do not need it.
                self.failed_guesses += 1;
                tracing::warn!(%reason, "the draft model failed");
                if self.failed_guesses == FAILED_STEPS_MAX {
                    tracing::warn!("the draft model failed {FAILED_STEPS_MAX} times in a row: it is not used any more");
                    self.draft_model = None;
                    self.scheduler.without_draft_model();
                }
            }
        }
        elapsed_us
    }

    /// Asks the filters of the rows that are about to sample what they allow.
    fn restrict(&mut self) {
        if self.filters.is_empty() {
            return;
        }
        let deadline = Desk::deadline();
        for row in self.step.rows.iter().filter(|row| row.sample) {
            if let Verdict::Restricted(restriction) = self.filters.take(row.id, deadline) {
                self.scheduler.restrict(row.id, restriction);
            }
        }
    }

    /// Tells the filters which tokens their sequences got: they work out what may follow during the next step.
    fn send_filters_on(&mut self) {
        if self.filters.is_empty() {
            return;
        }
        for outcome in self.outcomes.iter().filter(|outcome| !outcome.tokens.is_empty() && outcome.finish.is_none()) {
            let Some(Restriction::Only(next)) = self.scheduler.take_restriction(outcome.id) else { continue };
            let ids = outcome.tokens.iter().map(|token| token.id);
            if self.filters.go_on(outcome.id, ids, next) {
                self.scheduler.park(outcome.id);
                let delivery = self.deliveries.get_mut(&outcome.id).expect("every live sequence has a delivery");
                delivery.awaits_filter = true;
            }
        }
    }

    fn stamp_starts(&mut self) {
        let mut now = None;
        for row in self.step.rows.iter().filter(|row| row.first) {
            let delivery = self.deliveries.get_mut(&row.id).expect("every live sequence has a delivery");
            delivery.started_at = Some(*now.get_or_insert_with(Instant::now));
        }
    }

    /// Runs the batch.
    fn execute(&mut self) -> Result<(), String> {
        fenced(|| self.executor.execute(&self.batch, &mut self.logits))?;
        let (rows, vocab) = (self.batch.sample_rows.len(), self.executor.vocab());
        if self.logits.vocab != vocab || self.logits.values.len() != rows * vocab {
            let (found, found_vocab) = (self.logits.values.len(), self.logits.vocab);
            return Err(format!("the executor left {found} logits of {found_vocab}, not {rows} rows of {vocab}"));
        }
        Ok(())
    }

    /// Begins the step on a device. While it computes, clients get what the step before gave, and filters say what may follow.
    fn issue(&mut self) -> Result<(), String> {
        fenced(|| device(&mut *self.executor)?.issue(&self.batch))?;
        self.deliver();
        self.restrict();
        self.chosen_on_device = fenced(|| {
            let device = device(&mut *self.executor)?;
            sampler::request(&self.scheduler, &self.step, device.limits(), &mut self.wanted);
            device.choose(&self.wanted)
        })?;
        Ok(())
    }

    /// Waits for the step on the device, which has the next one by then, if that can be.
    fn collect(&mut self, commands: &Receiver<Command>) -> Result<(), String> {
        self.run_ahead(commands);
        fenced(|| device(&mut *self.executor)?.collect(&self.wanted, &mut self.samples, &mut self.logits))?;
        let vocab = self.executor.vocab();
        if self.logits.vocab != vocab {
            return Err(format!("the device has logits of {}, not of {vocab}", self.logits.vocab));
        }
        check_samples(&self.wanted, &self.samples, &self.logits)?;
        self.drop_answers();
        Ok(())
    }

    /// Makes tokens of what the executor left.
    fn sample(&mut self, on_device: bool) {
        let workers = self.executor.workers();
        if on_device {
            let answers = (self.samples.as_slice(), &self.logits);
            self.sampler.take(&self.scheduler, &self.step, answers, &mut self.results, workers);
        } else {
            self.restrict();
            self.sampler.sample(&self.scheduler, &self.step, &self.logits, &mut self.results, workers);
        }
    }

    /// Hands every outcome to its client. Those of clients that do not read are noted in `unread`.
    pub(super) fn deliver(&mut self) {
        let mut now = None;
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for outcome in outcomes.drain(..) {
            // Its client may have gone since.
            let Some(delivery) = self.deliveries.get_mut(&outcome.id) else { continue };
            let prompt = outcome.prompt.map(|prompt| {
                let started_at = delivery.started_at.expect("a computed prompt was started");
                PromptDone {
                    cached_tokens: prompt.cached_tokens,
                    logprobs: prompt.logprobs,
                    queue_time: started_at.duration_since(delivery.submitted_at),
                    prefill_time: now.get_or_insert_with(Instant::now).duration_since(started_at),
                }
            });
            let progress = Progress { prompt, tokens: outcome.tokens, finish: None };
            match outcome.finish {
                Some(finish) => {
                    delivery.unsent = Some(merge(delivery.unsent.take(), progress));
                    self.end(outcome.id, finish);
                }
                // Its client turned out not to read while this step was under way: it is parked by now.
                None if delivery.unsent.is_some() => {
                    delivery.unsent = Some(merge(delivery.unsent.take(), progress));
                }
                None => {
                    delivery.unsent = try_deliver(&delivery.progress, progress);
                    if delivery.unsent.is_some() {
                        self.unread.push(outcome.id);
                    }
                }
            }
        }
        self.outcomes = outcomes;
    }

    /// The same, and parks the sequences of clients that do not read.
    pub(super) fn deliver_between_steps(&mut self) {
        self.deliver();
        self.park_unread();
    }

    fn park_unread(&mut self) {
        for id in self.unread.drain(..) {
            self.scheduler.park(id);
        }
    }
}

/// A panic of the executor is an error like any other.
pub(crate) fn fenced<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(panic_text(&*panic)))
}

pub(super) fn device(executor: &mut dyn Executor) -> Result<&mut dyn DeviceExecutor, String> {
    executor.device().ok_or_else(|| "the executor's device went away within a step".to_owned())
}
