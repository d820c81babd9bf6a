// performance-critical: no lock, no log; formats only a failure
//! The thread of an embedding engine: owns the model and the jobs, and joins the queue to channels and the clock.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use sconce_kernels::allocator;
use sconce_models::{Embedder, TextBatch};
use tokio::sync::oneshot;

use super::queue::{JobId, Pick, Queue};
use super::{Arrival, Board, Command, EmbedConfig, EmbedDone, EmbedFailure, EmbedText, Gate};
use crate::run::panic_text;
use crate::stats::STEP_TOKENS_BOUNDS;

/// Steps that fail one after the other before the engine gives up.
const FAILED_STEPS_MAX: u32 = 3;

/// The thread's ends of what it shares with the handles.
pub(super) struct ThreadSide {
    pub commands: Receiver<Command>,
    pub gate: Weak<Gate>,
    pub board: Arc<Board>,
}

/// A job in work.
struct Job {
    /// Emptied one by one as they are computed.
    texts: Vec<EmbedText>,
    /// `[texts, width]`, allocated with the first of them.
    values: Vec<f32>,
    /// Texts that are not computed yet.
    left: usize,
    submitted_at: Instant,
    queue_time: Option<Duration>,
    done: oneshot::Sender<Result<EmbedDone, EmbedFailure>>,
}

struct Engine {
    model: Box<dyn Embedder>,
    config: EmbedConfig,
    queue: Queue,
    jobs: BTreeMap<JobId, Job>,
    next_id: JobId,
    picks: Vec<Pick>,
    batch: TextBatch,
    out: Vec<f32>,
    board: Arc<Board>,
    failed_steps: u32,
    /// No handle is left, or a shutdown has begun: ends when nothing is live.
    draining: bool,
    /// Set by a shutdown: what is live at this moment is cancelled.
    deadline: Option<Instant>,
}

/// The whole life of the thread. The outcome of `build` goes to `ready` first.
pub(super) fn embed_thread(
    config: EmbedConfig,
    build: impl FnOnce() -> Result<Box<dyn Embedder>, String>,
    ready: &SyncSender<Result<(), String>>,
    side: ThreadSide,
) {
    let loading = allocator::loading();
    let built = catch_unwind(AssertUnwindSafe(build)).unwrap_or_else(|panic| Err(panic_text(&*panic)));
    drop(loading);
    let model = match built {
        Ok(model) => model,
        Err(reason) => {
            let _ = ready.send(Err(reason));
            return;
        }
    };
    let mut engine = Engine::new(config, model, Arc::clone(&side.board));
    if ready.send(Ok(())).is_err() {
        return;
    }
    let ended = catch_unwind(AssertUnwindSafe(|| engine.run(&side.commands)));
    let failure = match ended {
        Ok(outcome) => outcome.err(),
        Err(panic) => Some(format!("the engine has a fault: {}", panic_text(&*panic))),
    };
    if let Some(reason) = &failure {
        let _ = side.board.failure.set(reason.clone());
    }
    // From here on no submit can enter, and those that did are in the channel.
    if let Some(gate) = side.gate.upgrade() {
        drop(gate.close());
    }
    let failure = failure.map_or(EmbedFailure::Cancelled, EmbedFailure::Failed);
    engine.end_all(&failure);
    while let Ok(command) = side.commands.recv() {
        if let Command::Submit(arrival) = command {
            engine.answer(arrival.submit.done, Err(failure.clone()));
        }
    }
    // What the thread allocated goes back while it still can say so.
    drop(engine);
    allocator::give_back();
}

impl Engine {
    fn new(config: EmbedConfig, model: Box<dyn Embedder>, board: Arc<Board>) -> Self {
        Self {
            model,
            config,
            queue: Queue::default(),
            jobs: BTreeMap::new(),
            next_id: 0,
            picks: Vec::new(),
            batch: TextBatch::default(),
            out: Vec::new(),
            board,
            failed_steps: 0,
            draining: false,
            deadline: None,
        }
    }

    /// Steps until a drain is complete. Fails when the model does so repeatedly.
    fn run(&mut self, commands: &Receiver<Command>) -> Result<(), String> {
        loop {
            self.receive(commands);
            self.drop_cancelled();
            let is_late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if self.draining && (self.jobs.is_empty() || is_late) {
                return Ok(());
            }
            self.queue.take(self.config.max_num_batched_tokens, &mut self.picks);
            if !self.picks.is_empty() {
                self.step()?;
            }
        }
    }

    /// Takes every command that is there; waits for one when there is nothing to do.
    fn receive(&mut self, commands: &Receiver<Command>) {
        if self.jobs.is_empty() && !self.draining {
            match commands.recv() {
                Ok(command) => self.obey(command),
                Err(_) => self.draining = true,
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

    fn obey(&mut self, command: Command) {
        match command {
            Command::Shutdown(deadline) => {
                self.draining = true;
                self.deadline = deadline;
            }
            Command::Submit(Arrival { submit, submitted_at }) => {
                if submit.texts.is_empty() {
                    let done = EmbedDone { values: Vec::new(), queue_time: Duration::ZERO };
                    return self.answer(submit.done, Ok(done));
                }
                let id = self.next_id;
                self.next_id += 1;
                let lengths = submit.texts.iter().map(|text| text.tokens.len() as u32).collect();
                self.queue.push(id, lengths, submit.priority);
                let left = submit.texts.len();
                let (texts, done) = (submit.texts, submit.done);
                self.jobs.insert(id, Job { texts, values: Vec::new(), left, submitted_at, queue_time: None, done });
                self.publish_queue(0);
            }
        }
    }

    fn drop_cancelled(&mut self) {
        let gone: Vec<JobId> = self.jobs.iter().filter(|(_, job)| job.done.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            self.end(id, Err(EmbedFailure::Cancelled));
        }
    }

    /// Computes what was picked. A failure ends the jobs of the step and, repeated, the engine.
    fn step(&mut self) -> Result<(), String> {
        let now = Instant::now();
        self.batch.clear();
        for pick in &self.picks {
            let job = self.jobs.get_mut(&pick.job).expect("the queue holds jobs that are alive");
            job.queue_time.get_or_insert_with(|| now.duration_since(job.submitted_at));
            let text = std::mem::take(&mut job.texts[pick.text]);
            self.batch.push(&text.tokens, &text.types);
        }
        self.publish_queue(self.picks.len());
        let (model, batch, out) = (&mut self.model, &self.batch, &mut self.out);
        self.board.step.begin();
        let outcome = catch_unwind(AssertUnwindSafe(|| model.forward(batch, out).map_err(|error| error.to_string())))
            .unwrap_or_else(|panic| Err(panic_text(&*panic)));
        self.board.step.end();
        let width = self.model.spec().width;
        let outcome = outcome.and_then(|()| {
            let (rows, values) = (self.picks.len(), self.out.len());
            if values == rows * width { Ok(()) } else { Err(format!("{values} values for {rows} texts of {width}")) }
        });
        let picks = std::mem::take(&mut self.picks);
        match outcome {
            Ok(()) => {
                self.failed_steps = 0;
                self.count_step(picks.len());
                // Before the answers: who has one may look at once.
                self.publish_queue(0);
                for (row, pick) in picks.iter().enumerate() {
                    self.deliver(*pick, row, width);
                }
            }
            Err(reason) => {
                self.failed_steps += 1;
                self.board.cells.failed_steps.fetch_add(1, Ordering::Relaxed);
                for pick in &picks {
                    self.end(pick.job, Err(EmbedFailure::Failed(reason.clone())));
                }
                if self.failed_steps >= FAILED_STEPS_MAX {
                    return Err(format!(
                        "{FAILED_STEPS_MAX} steps failed one after the other, the last with: {reason}"
                    ));
                }
            }
        }
        self.picks = picks;
        self.publish_queue(0);
        Ok(())
    }

    fn deliver(&mut self, pick: Pick, row: usize, width: usize) {
        let Some(job) = self.jobs.get_mut(&pick.job) else { return };
        if job.values.is_empty() {
            job.values = vec![0.0; job.texts.len() * width];
        }
        job.values[pick.text * width..(pick.text + 1) * width]
            .copy_from_slice(&self.out[row * width..(row + 1) * width]);
        job.left -= 1;
        if job.left == 0 {
            let values = std::mem::take(&mut job.values);
            let queue_time = job.queue_time.unwrap_or_default();
            self.end(pick.job, Ok(EmbedDone { values, queue_time }));
        }
    }

    fn end(&mut self, id: JobId, outcome: Result<EmbedDone, EmbedFailure>) {
        self.queue.remove(id);
        if let Some(job) = self.jobs.remove(&id) {
            self.answer(job.done, outcome);
        }
    }

    fn end_all(&mut self, failure: &EmbedFailure) {
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            self.end(id, Err(failure.clone()));
        }
        self.publish_queue(0);
    }

    /// The place is given back first: who has the answer may ask again at once.
    fn answer(&self, done: oneshot::Sender<Result<EmbedDone, EmbedFailure>>, outcome: Result<EmbedDone, EmbedFailure>) {
        self.board.cells.jobs.fetch_sub(1, Ordering::Relaxed);
        // A receiver that is gone wants no answer.
        let _ = done.send(outcome);
    }

    fn publish_queue(&self, running: usize) {
        self.board.cells.running.store(running as u64, Ordering::Relaxed);
        self.board.cells.waiting.store(self.queue.waiting() as u64, Ordering::Relaxed);
    }

    fn count_step(&self, texts: usize) {
        let (cells, tokens) = (&self.board.cells, self.batch.tokens.len());
        let bucket = STEP_TOKENS_BOUNDS.partition_point(|bound| (*bound as usize) < tokens);
        for (cell, by) in [
            (&cells.steps, 1),
            (&cells.texts, texts as u64),
            (&cells.tokens, tokens as u64),
            (&cells.step_tokens[bucket], 1),
        ] {
            cell.fetch_add(by, Ordering::Relaxed);
        }
    }
}
