//! The engine of embedding and reranking models: one OS thread that computes whole texts in batches.
//!
//! A job is all texts of one HTTP request. `queue` decides (pure) which texts of which jobs the next step computes;
//! `run` is the thread; this file is the door. Nothing waits for a batch to fill: a step takes what is there.
//!
//! Invariants: every accepted job gets exactly one answer, also when the model fails or panics, the engine dies or the
//! process shuts down; a job whose client has gone is dropped before the next step; at most `jobs_max` jobs are alive.

mod queue;
mod run;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sconce_models::Embedder;
use tokio::sync::oneshot;

use super::handle::SubmitError;
use super::stats::{STEP_TOKENS_BOUNDS, StepClock, StepTokens};

/// How much is taken at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedConfig {
    /// Tokens of a step; a single longer text makes a step of its own.
    pub max_num_batched_tokens: u32,
    /// Jobs that may be alive at once.
    pub jobs_max: u32,
}

/// One text, or a pair of them, as tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmbedText {
    pub tokens: Vec<u32>,
    /// Token types; empty where all are 0.
    pub types: Vec<u32>,
}

/// Texts to compute.
pub struct EmbedSubmit {
    /// Each of at least one token and of at most as many as the model takes.
    pub texts: Vec<EmbedText>,
    /// Lower goes first: each level is a head start of a thousand tokens, so that nobody starves.
    pub priority: i32,
    /// Dropping the receiver cancels the job.
    pub done: oneshot::Sender<Result<EmbedDone, EmbedFailure>>,
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedDone {
    /// One row a text, in their order. `[texts, width]`
    pub values: Vec<f32>,
    /// From `submit` to the first step that took one of the texts.
    pub queue_time: Duration,
}

/// Why a job has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbedFailure {
    /// The server is stopping.
    Cancelled,
    /// The step failed, with its reason.
    Failed(String),
}

/// A plain copy of the engine's numbers; counters only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmbedStats {
    /// Texts of the step that runs.
    pub running: u64,
    /// Texts that wait, those of jobs on their way to the engine left out.
    pub waiting: u64,
    pub jobs: u64,
    pub steps: u64,
    pub failed_steps: u64,
    /// Texts that were computed.
    pub texts: u64,
    pub tokens: u64,
    pub step_tokens: StepTokens,
}

#[derive(Default)]
struct Cells {
    running: AtomicU64,
    waiting: AtomicU64,
    /// Accepted and not yet ended, on their way to the engine included.
    jobs: AtomicU64,
    steps: AtomicU64,
    failed_steps: AtomicU64,
    texts: AtomicU64,
    tokens: AtomicU64,
    step_tokens: [AtomicU64; STEP_TOKENS_BOUNDS.len() + 1],
}

/// What the engine thread writes and anybody reads.
#[derive(Default)]
struct Board {
    cells: Cells,
    step: StepClock,
    failure: OnceLock<String>,
}

enum Command {
    Submit(Arrival),
    /// Finish what is live until then, cancel the rest. `None` is further away than the clock reaches.
    Shutdown(Option<Instant>),
}

struct Arrival {
    submit: EmbedSubmit,
    submitted_at: Instant,
}

/// The door to the thread. Emptied exactly once, so that after it no command can be on its way unseen.
struct Gate {
    commands: RwLock<Option<SyncSender<Command>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Gate {
    fn close(&self) -> Option<SyncSender<Command>> {
        self.commands.write().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A cheap, shared handle to one engine. When the last one is dropped the engine finishes what is live and ends.
#[derive(Clone)]
pub struct EmbedHandle {
    gate: Arc<Gate>,
    board: Arc<Board>,
    jobs_max: u64,
}

impl EmbedHandle {
    /// Starts the thread. `build` runs on it and may fail: the error comes back here, and no thread is left behind.
    pub fn start(
        name: &str,
        config: EmbedConfig,
        build: impl FnOnce() -> Result<Box<dyn Embedder>, String> + Send + 'static,
    ) -> Result<Self, String> {
        // One place more than jobs can be alive: the shutdown command always finds room.
        let (sender, commands) = sync_channel(config.jobs_max as usize + 1);
        let gate = Arc::new(Gate { commands: RwLock::new(Some(sender)), thread: Mutex::new(None) });
        let board = Arc::new(Board::default());
        let (ready_sender, ready) = sync_channel(1);
        let side = run::ThreadSide { commands, gate: Arc::downgrade(&gate), board: Arc::clone(&board) };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run::embed_thread(config, build, &ready_sender, side))
            .map_err(|error| format!("cannot start the engine thread `{name}`: {error}"))?;
        match ready.recv() {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => {
                let _ = thread.join();
                return Err(reason);
            }
            Err(_) => return Err(format!("the engine thread `{name}` ended before it was ready")),
        }
        *gate.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Self { gate, board, jobs_max: u64::from(config.jobs_max) })
    }

    /// Hands a job to the engine; never blocks.
    pub fn submit(&self, submit: EmbedSubmit) -> Result<(), SubmitError> {
        let commands = self.gate.commands.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = commands.as_ref() else { return Err(SubmitError::Stopped) };
        let jobs = &self.board.cells.jobs;
        let enters = |jobs: u64| (jobs < self.jobs_max).then_some(jobs + 1);
        if jobs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enters).is_err() {
            return Err(SubmitError::Full);
        }
        let arrival = Arrival { submit, submitted_at: Instant::now() };
        sender.try_send(Command::Submit(arrival)).map_err(|error| {
            jobs.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => SubmitError::Full,
                TrySendError::Disconnected(_) => SubmitError::Stopped,
            }
        })
    }

    /// A plain copy of the numbers; lock-free.
    pub fn stats(&self) -> EmbedStats {
        let cells = &self.board.cells;
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let tokens = read(&cells.tokens);
        EmbedStats {
            running: read(&cells.running),
            waiting: read(&cells.waiting),
            jobs: read(&cells.jobs),
            steps: read(&cells.steps),
            failed_steps: read(&cells.failed_steps),
            texts: read(&cells.texts),
            tokens,
            step_tokens: StepTokens {
                counts: std::array::from_fn(|bucket| read(&cells.step_tokens[bucket])),
                sum: tokens,
            },
        }
    }

    /// How long the step that runs has been running; `None` between steps.
    pub fn in_step_for(&self) -> Option<Duration> {
        self.board.step.running_for()
    }

    /// Why the engine gave up, if it did. A failed engine refuses every submit with `Stopped`.
    pub fn failure(&self) -> Option<&str> {
        self.board.failure.get().map(String::as_str)
    }

    /// Stops taking work, lets what is live finish until `deadline` from now, then cancels the rest and joins the
    /// thread. A step in progress is never interrupted. Idempotent; a second caller waits too.
    pub fn shutdown(&self, deadline: Duration) {
        let mut thread = self.gate.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = self.gate.close() {
            // A receiver that is gone means a thread that has ended: then there is nothing to tell.
            let _ = sender.try_send(Command::Shutdown(Instant::now().checked_add(deadline)));
        }
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
