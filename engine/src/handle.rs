//! The engine as the rest of the process sees it: submit, read progress from a channel, read numbers, shut down.
//!
//! Every accepted sequence gets exactly one [`Progress`] with `finish`, also when the executor fails, the engine dies
//! or the process shuts down. `submit` never blocks; at most `max_num_seqs + max_waiting` sequences are alive at once.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sconce_models::{Adapter, AdapterId};

use super::adapter::ADAPTERS_MAX;
use super::executor::{Executor, WakeError};
use super::filter::TokenFilter;
use super::run;
use super::sampler::SamplingParams;
use super::scheduler::EngineConfig;
use super::sequence::{FinishReason, SeqId, Token, TokenLogprobs};
use super::stats::{EngineStats, StatsBoard, StepClock};

/// One sequence to generate.
pub struct Submit {
    pub prompt: Vec<u32>,
    pub params: SamplingParams,
    /// Restricts what may be generated.
    pub filter: Option<Box<dyn TokenFilter>>,
    /// Lower goes first. Each level is a head start of a thousand steps, so that nobody starves.
    pub priority: i32,
    /// The prefix cache is shared only between equal salts.
    pub salt: [u8; 32],
    /// Of [`super::LoadedAdapter`], to be held until the sequence has ended.
    pub adapter: Option<AdapterId>,
    /// Capacity at least 2: one place is kept for the last message. Dropping the receiver cancels the sequence.
    pub progress: tokio::sync::mpsc::Sender<Progress>,
}

/// What one step did for one sequence. The last one has `finish`; nothing follows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Once: when the whole prompt has been computed (with the first token, or with `finish`).
    pub prompt: Option<PromptDone>,
    /// Usually one. A stop token is delivered too, as the last one: it counts as generated, the text side drops it.
    pub tokens: Vec<Token>,
    pub finish: Option<FinishReason>,
}

/// What is known once a prompt is in the KV cache.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptDone {
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: u32,
    /// For `prompt[1..]` when asked for, else empty.
    pub logprobs: Vec<TokenLogprobs>,
    /// From `submit` to the first step that took part of the prompt.
    pub queue_time: Duration,
    /// From that step to the end of the one that completed the prompt.
    pub prefill_time: Duration,
}

/// Why a sequence was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the engine's queue is full; try again later")]
    Full,
    #[error("the engine has stopped and takes no more work")]
    Stopped,
}

/// A sequence on its way to the engine thread.
pub(super) struct Arrival {
    pub id: SeqId,
    pub submit: Submit,
    pub submitted_at: Instant,
}

pub(super) enum Command {
    Submit(Box<Arrival>),
    LoadAdapter {
        id: AdapterId,
        adapter: Arc<Adapter>,
        done: SyncSender<Result<(), String>>,
    },
    /// When no sequence uses it any more.
    DropAdapter(AdapterId),
    /// Gives back the device's memory, if nothing is live.
    Sleep(SyncSender<Result<u64, String>>),
    Wake(SyncSender<Result<(), WakeError>>),
    /// Finish what is live until then, cancel the rest. `None` is further away than the clock reaches.
    Shutdown(Option<Instant>),
}

/// The door to the engine thread. Emptied exactly once, so that after it no command can be on its way unseen.
pub(super) struct Gate {
    commands: RwLock<Option<SyncSender<Command>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    next_id: AtomicU64,
    next_adapter: AtomicU32,
    /// Adapters that the engine has or is about to be given.
    adapters: AtomicU32,
}

impl Gate {
    pub(super) fn next_adapter(&self) -> u32 {
        self.next_adapter.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts an adapter in, unless `most` are in already.
    pub(super) fn enter_adapter(&self, most: u32) -> bool {
        let enter = |count: u32| (count < most).then_some(count + 1);
        self.adapters.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_ok()
    }

    pub(super) fn leave_adapter(&self) {
        self.adapters.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes the sender away: later submits see `Stopped`, and the engine sees the end of its queue.
    pub(super) fn close(&self) -> Option<SyncSender<Command>> {
        self.commands.write().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the engine thread writes and anybody reads.
pub(super) struct Board {
    pub stats: StatsBoard,
    pub step: StepClock,
    pub failure: OnceLock<String>,
}

/// A cheap, shared handle to one engine. When the last one is dropped the engine finishes what is live and ends.
#[derive(Clone)]
pub struct EngineHandle {
    pub(super) gate: Arc<Gate>,
    board: Arc<Board>,
    live_max: u64,
}

impl EngineHandle {
    /// Starts the engine thread. `build` runs on it (a GPU context belongs to its thread) and may fail: the error comes
    /// back here, and then no thread is left behind.
    pub fn start(
        name: &str,
        config: EngineConfig,
        build: impl FnOnce() -> Result<Box<dyn Executor>, String> + Send + 'static,
    ) -> Result<Self, String> {
        config.check()?;
        let live_max = u64::from(config.max_num_seqs) + u64::from(config.max_waiting);
        // More places than sequences can be alive, and two an adapter: commands to sleep, wake and shut down, and what loads
        // an adapter and takes it away, always find room.
        let commands_max = live_max + 3 + 2 * u64::from(ADAPTERS_MAX);
        let (sender, commands) = sync_channel(usize::try_from(commands_max).map_err(|e| e.to_string())?);
        let gate = Arc::new(Gate {
            commands: RwLock::new(Some(sender)),
            thread: Mutex::new(None),
            next_id: AtomicU64::new(0),
            next_adapter: AtomicU32::new(0),
            adapters: AtomicU32::new(0),
        });
        let board =
            Arc::new(Board { stats: StatsBoard::default(), step: StepClock::default(), failure: OnceLock::new() });
        let (ready_sender, ready) = sync_channel(1);
        let thread_side = run::ThreadSide { commands, gate: Arc::downgrade(&gate), board: Arc::clone(&board) };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run::engine_thread(config, build, &ready_sender, thread_side))
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
        Ok(Self { gate, board, live_max })
    }

    /// Hands a sequence to the engine; never blocks.
    ///
    /// # Panics
    /// When the progress channel has a capacity below 2, which is a mistake of the caller.
    pub fn submit(&self, submit: Submit) -> Result<SeqId, SubmitError> {
        assert!(submit.progress.max_capacity() >= 2, "the progress channel needs a capacity of at least 2");
        let commands = self.gate.commands.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = commands.as_ref() else { return Err(SubmitError::Stopped) };
        if !self.board.stats.try_enter(self.live_max) {
            return Err(SubmitError::Full);
        }
        let id = SeqId(self.gate.next_id.fetch_add(1, Ordering::Relaxed));
        let arrival = Arrival { id, submit, submitted_at: Instant::now() };
        match sender.try_send(Command::Submit(Box::new(arrival))) {
            Ok(()) => Ok(id),
            Err(error) => {
                self.board.stats.leave();
                match error {
                    TrySendError::Full(_) => Err(SubmitError::Full),
                    TrySendError::Disconnected(_) => Err(SubmitError::Stopped),
                }
            }
        }
    }

    /// False where the engine has stopped.
    pub(super) fn command(&self, command: Command) -> bool {
        let commands = self.gate.commands.read().unwrap_or_else(PoisonError::into_inner);
        commands.as_ref().is_some_and(|sender| sender.try_send(command).is_ok())
    }

    /// Has the executor give back its device's memory until [`Self::wake`]; the prefix cache is lost. Returns the bytes of
    /// host memory that it takes meanwhile. Refused while a sequence is live; submits fail until it is awake. Waits.
    pub fn sleep(&self) -> Result<u64, String> {
        let (done, outcome) = sync_channel(1);
        let is_told = self.command(Command::Sleep(done));
        let stopped = || Err("the engine has stopped".to_owned());
        if is_told { outcome.recv().unwrap_or_else(|_| stopped()) } else { stopped() }
    }

    /// Has the executor take its device's memory again. Waits; an engine that is awake stays so.
    pub fn wake(&self) -> Result<(), WakeError> {
        let (done, outcome) = sync_channel(1);
        let is_told = self.command(Command::Wake(done));
        let stopped = || Err(WakeError::Failed("the engine has stopped".to_owned()));
        if is_told { outcome.recv().unwrap_or_else(|_| stopped()) } else { stopped() }
    }

    /// A plain copy of the numbers of the latest step; lock-free.
    pub fn stats(&self) -> EngineStats {
        self.board.stats.snapshot()
    }

    /// Sequences that were accepted and have not ended.
    pub fn live(&self) -> u64 {
        self.board.stats.live()
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
    /// thread. A step in progress is never interrupted, so this waits for it. Idempotent; a second caller waits too.
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
