// performance-critical: no lock; allocates a token's message and nothing else; formats and logs only a failure
//! The engine thread: owns scheduler, executor and sampler, and joins them to channels and the clock.
//!
//! Invariants: every sequence that came through the queue gets exactly one terminal progress, whatever happens; one
//! place of each progress channel is kept for it, so delivering it never waits for a client. A client that does not
//! read parks its own sequence and nothing else. The thread blocks when it has nothing to do.

mod ahead;
mod step;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use sconce_kernels::allocator;
use sconce_models::{BatchInput, Logits, Sample, SampleRequests};
use tokio::sync::mpsc::Sender;

use super::adapter::Adapters;
use super::delivery::{Delivery, has_caught_up, try_deliver};
use super::draft_model::DraftModel;
use super::executor::{Executor, WakeError};
use super::filter::Desk;
use super::handle::{Arrival, Board, Command, Gate, Progress};
use super::sampler::{LANE_LOGITS_MIN, StepSampler};
use super::scheduler::{EngineConfig, Outcome, Scheduler, Step, StepResults};
use super::sequence::{FinishReason, NewSequence, SeqId};
use super::speculation::Speculation;
use ahead::Behind;
pub(super) use step::fenced;

/// Times that the engine starts over with the weights that it has, without a step that went well in between.
const RESTARTS_MAX: u32 = 3;
/// Before the first of them; each further one waits twice as long.
const RESTART_WAIT: Duration = Duration::from_millis(50);
/// How long to wait before looking again whether a slow client has read, when nothing else is to be done.
const PARKED_WAIT_FIRST: Duration = Duration::from_millis(1);
const PARKED_WAIT_MAX: Duration = Duration::from_millis(20);

/// The engine thread's ends of what it shares with the handles.
pub(super) struct ThreadSide {
    pub commands: Receiver<Command>,
    pub gate: Weak<Gate>,
    pub board: Arc<Board>,
}

/// Everything the engine thread owns.
struct Engine {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    draft_model: Option<DraftModel>,
    sampler: StepSampler,
    filters: Desk,
    adapters: Adapters,
    deliveries: HashMap<SeqId, Delivery>,
    board: Arc<Board>,
    step: Step,
    /// The step behind it, if there is one.
    next: Step,
    behind: Behind,
    batch: BatchInput,
    logits: Logits,
    /// What a device is asked, and what it answers.
    wanted: SampleRequests,
    next_wanted: SampleRequests,
    samples: Vec<Sample>,
    /// Of the step issued last, so that one can be issued behind it.
    chosen_on_device: bool,
    results: StepResults,
    /// Not yet with their clients.
    outcomes: Vec<Outcome>,
    /// Came while one step followed the other on a device.
    inbox: Option<Command>,
    /// Their clients do not read; to be parked between steps.
    unread: Vec<SeqId>,
    cancelled: Vec<SeqId>,
    failed_steps: u32,
    restarts: u32,
    failed_guesses: u32,
    parked_wait: Duration,
    /// Set by a shutdown: what is live at this moment is cancelled.
    deadline: Option<Instant>,
    /// No handle is left, or a shutdown has begun: ends when nothing is live.
    draining: bool,
    /// The executor has given its memory back: nothing is live, and nothing is accepted.
    is_asleep: bool,
}

/// The whole life of the engine thread. The outcome of `build` goes to `ready` first.
pub(super) fn engine_thread(
    config: EngineConfig,
    build: impl FnOnce() -> Result<Box<dyn Executor>, String>,
    ready: &SyncSender<Result<(), String>>,
    side: ThreadSide,
) {
    let loading = allocator::loading();
    let built = catch_unwind(AssertUnwindSafe(build)).unwrap_or_else(|panic| Err(panic_text(&*panic)));
    drop(loading);
    let engine = built.and_then(|executor| Engine::new(config, executor, &side));
    let mut engine = match engine {
        Ok(engine) => engine,
        Err(reason) => {
            let _ = ready.send(Err(reason));
            return;
        }
    };
    if ready.send(Ok(())).is_err() {
        return;
    }
    let failure = engine.run_fenced(&side.commands);
    if let Some(reason) = &failure {
        let _ = side.board.failure.set(reason.clone());
    }
    // From here on no submit can enter, and those that did are in the queue.
    if let Some(gate) = side.gate.upgrade() {
        drop(gate.close());
    }
    let finish = failure.map_or(FinishReason::Cancelled, FinishReason::Failed);
    engine.end_all(&finish);
    let inbox = engine.inbox.take();
    for command in inbox.into_iter().chain(side.commands.iter()) {
        if let Command::Submit(arrival) = command {
            engine.refuse(&arrival.submit.progress, finish.clone());
        }
    }
    engine.publish();
    // What the thread allocated goes back while it still can say so.
    drop(engine);
    allocator::give_back();
}

impl Engine {
    fn new(config: EngineConfig, mut executor: Box<dyn Executor>, side: &ThreadSide) -> Result<Self, String> {
        let live_max = config.max_num_seqs.saturating_add(config.max_waiting) as usize;
        let (blocks, block_size) = (config.blocks, config.block_size);
        let guesses_by_model = matches!(config.speculation, Some(Speculation::DraftModel { .. }));
        let draft = executor.take_draft().filter(|_| guesses_by_model);
        if draft.is_none() && guesses_by_model {
            return Err("the engine is to guess with a draft model, and there is none".into());
        }
        let draft_model = draft.map(|draft| DraftModel::new(draft, blocks, block_size));
        let scheduler = Scheduler::new(config, &executor.capabilities(), executor.vocab())?;
        let mut engine = Self {
            scheduler,
            executor,
            draft_model,
            sampler: StepSampler::new(LANE_LOGITS_MIN),
            filters: Desk::new(live_max),
            deliveries: HashMap::new(),
            adapters: Adapters::new(Weak::clone(&side.gate)),
            board: Arc::clone(&side.board),
            step: Step::default(),
            next: Step::default(),
            behind: Behind::None,
            batch: BatchInput::default(),
            logits: Logits::default(),
            wanted: SampleRequests::default(),
            next_wanted: SampleRequests::default(),
            samples: Vec::new(),
            chosen_on_device: false,
            results: StepResults::default(),
            outcomes: Vec::new(),
            inbox: None,
            unread: Vec::new(),
            cancelled: Vec::new(),
            failed_steps: 0,
            restarts: 0,
            failed_guesses: 0,
            parked_wait: PARKED_WAIT_FIRST,
            deadline: None,
            draining: false,
            is_asleep: false,
        };
        engine.publish();
        Ok(engine)
    }

    /// Runs until a drain is complete, or until starting over does not help. What was live then has failed.
    fn run_fenced(&mut self, commands: &Receiver<Command>) -> Option<String> {
        loop {
            let reason = match catch_unwind(AssertUnwindSafe(|| self.run(commands))) {
                Ok(Ok(())) => return None,
                Ok(Err(reason)) => reason,
                Err(panic) => format!("the engine has a fault: {}", panic_text(&*panic)),
            };
            self.board.step.end();
            self.behind = Behind::None;
            self.scheduler.abandon();
            if self.restarts == RESTARTS_MAX || self.draining || self.executor.broken().is_some() {
                return Some(reason);
            }
            tracing::error!(%reason, "the engine starts over; what it was working on has failed");
            self.end_all(&FinishReason::Failed(format!("the engine had to start over: {reason}")));
            self.failed_steps = 0;
            self.publish();
            std::thread::sleep(RESTART_WAIT * (1 << self.restarts));
            self.restarts += 1;
        }
    }

    /// Steps until a drain is complete. Fails when the executor does so repeatedly.
    fn run(&mut self, commands: &Receiver<Command>) -> Result<(), String> {
        loop {
            // Otherwise a step is in flight, and nothing may change but by what it gives.
            if matches!(self.behind, Behind::None) {
                self.receive(commands);
                self.look_after_clients();
                self.adapters.let_go(&self.scheduler, &mut *self.executor);
                if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    self.end_all(&FinishReason::Cancelled);
                }
                if self.deliveries.is_empty() && self.draining {
                    return Ok(());
                }
            }
            self.run_step(commands)?;
            self.publish();
        }
    }

    /// Takes in everything that waits in the queue; blocks when there is nothing else to do.
    fn receive(&mut self, commands: &Receiver<Command>) {
        if let Some(command) = self.inbox.take() {
            self.obey(command);
        } else if !self.draining && self.deliveries.is_empty() {
            match commands.recv() {
                Ok(command) => self.obey(command),
                Err(_) => self.draining = true,
            }
        } else if !self.scheduler.has_work() && !self.deliveries.is_empty() {
            if self.deliveries.values().any(|delivery| delivery.awaits_filter) {
                self.filters.wait_for_any(PARKED_WAIT_FIRST);
            } else {
                self.wait_for_readers(commands);
            }
        }
        loop {
            match commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.draining = true;
                    return;
                }
            }
        }
    }

    /// Everything live is parked: waits a little for a command, and a little longer the next time.
    fn wait_for_readers(&mut self, commands: &Receiver<Command>) {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let wait = left.map_or(self.parked_wait, |left| left.min(self.parked_wait));
        self.parked_wait = (self.parked_wait * 2).min(PARKED_WAIT_MAX);
        match commands.recv_timeout(wait) {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                self.draining = true;
                // Nobody can send any more, so the queue no longer waits; the clients still read.
                std::thread::sleep(wait);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(arrival) => self.accept(*arrival),
            Command::LoadAdapter { id, adapter, done } => {
                // Who asked waits for it.
                let _ = done.send(self.adapters.load(id, adapter, &mut *self.executor));
            }
            Command::DropAdapter(id) => self.adapters.begin_to_leave(id),
            // As above.
            Command::Sleep(done) => drop(done.send(self.sleep())),
            Command::Wake(done) => drop(done.send(self.wake())),
            Command::Shutdown(deadline) => {
                self.draining = true;
                self.deadline = deadline;
            }
        }
    }

    /// Sequences whose clients have gone are no reason to stay awake.
    fn sleep(&mut self) -> Result<u64, String> {
        self.look_after_clients();
        if !self.deliveries.is_empty() {
            return Err(format!("{} sequences are live; they must end first", self.deliveries.len()));
        }
        let bytes = fenced(|| self.executor.sleep())?;
        self.is_asleep = true;
        // Nothing is live to be dropped: only the prefix cache goes, whose blocks hold nothing any more.
        self.scheduler.abandon();
        self.publish();
        Ok(bytes)
    }

    fn wake(&mut self) -> Result<(), WakeError> {
        let woken = catch_unwind(AssertUnwindSafe(|| self.executor.wake()));
        woken.unwrap_or_else(|panic| Err(WakeError::Failed(panic_text(&*panic))))?;
        self.is_asleep = false;
        Ok(())
    }

    fn accept(&mut self, arrival: Arrival) {
        let Arrival { id, submit, submitted_at } = arrival;
        if self.is_asleep {
            let finish = FinishReason::Failed("the model sleeps; wake it first".to_owned());
            return self.refuse(&submit.progress, finish);
        }
        if submit.adapter.is_some_and(|adapter| !self.adapters.takes(adapter)) {
            let finish = FinishReason::Failed("the adapter was unloaded before the request began".to_owned());
            return self.refuse(&submit.progress, finish);
        }
        let new = NewSequence {
            id,
            prompt: submit.prompt,
            params: submit.params,
            priority: submit.priority,
            salt: submit.salt,
            adapter: submit.adapter,
        };
        match self.scheduler.add(new) {
            Ok(()) => {
                if let Some(filter) = submit.filter {
                    // What may come after a draft is not known before it is checked.
                    self.scheduler.never_draft(id);
                    self.filters.admit(id, filter);
                }
                let delivery = Delivery {
                    progress: submit.progress,
                    submitted_at,
                    started_at: None,
                    unsent: None,
                    awaits_filter: false,
                };
                self.deliveries.insert(id, delivery);
            }
            Err(finish) => self.refuse(&submit.progress, finish),
        }
    }

    /// The terminal progress of a sequence that never reached the scheduler.
    fn refuse(&self, progress: &Sender<Progress>, finish: FinishReason) {
        let _ = progress.try_send(Progress { prompt: None, tokens: Vec::new(), finish: Some(finish) });
        self.board.stats.leave();
    }

    /// Cancels the sequences whose clients have gone, and unparks those whose clients have read.
    fn look_after_clients(&mut self) {
        self.cancelled.clear();
        for (id, delivery) in &mut self.deliveries {
            if delivery.progress.is_closed() {
                self.cancelled.push(*id);
            } else if delivery.unsent.is_some()
                && has_caught_up(&delivery.progress)
                && let Some(progress) = delivery.unsent.take()
            {
                delivery.unsent = try_deliver(&delivery.progress, progress);
                if delivery.unsent.is_none() {
                    self.parked_wait = PARKED_WAIT_FIRST;
                    if !delivery.awaits_filter {
                        self.scheduler.unpark(*id);
                    }
                }
            }
            if delivery.awaits_filter && self.filters.is_ready(*id) {
                delivery.awaits_filter = false;
                if delivery.unsent.is_none() {
                    self.scheduler.unpark(*id);
                }
            }
        }
        for index in 0..self.cancelled.len() {
            let id = self.cancelled[index];
            self.scheduler.cancel(id);
            self.end(id, FinishReason::Cancelled);
        }
    }

    /// Sends the terminal progress of a sequence that the scheduler no longer has, with whatever was not sent yet.
    fn end(&mut self, id: SeqId, finish: FinishReason) {
        let Some(delivery) = self.deliveries.remove(&id) else { return };
        self.filters.forget(id);
        let nothing = Progress { prompt: None, tokens: Vec::new(), finish: None };
        let last = Progress { finish: Some(finish), ..delivery.unsent.unwrap_or(nothing) };
        // One place is always free for it; a client that has gone needs no answer.
        let _ = delivery.progress.try_send(last);
        self.board.stats.leave();
    }

    fn end_all(&mut self, finish: &FinishReason) {
        // What was generated before the end belongs to the clients.
        self.deliver();
        self.unread.clear();
        let ids: Vec<SeqId> = self.deliveries.keys().copied().collect();
        for id in ids {
            self.scheduler.remove(id, finish);
            self.end(id, finish.clone());
        }
    }

    fn publish(&mut self) {
        self.board.stats.publish(self.scheduler.stats());
    }
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without a message"))
}
