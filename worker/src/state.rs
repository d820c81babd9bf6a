//! A worker's life as a pure state machine: what happened goes in with the time, what is to be done comes out.
//!
//! 1. `Spawn` is said only while no process lives; every process that was spawned ends in `Exited`.
//! 2. `Kill` comes only after `Terminate`, and not before the grace period is over.
//! 3. After `Stop` nothing is spawned.
//! 4. A start has two deadlines: one since the last sign of progress, one for the whole.

use std::collections::VecDeque;

use crate::health::Check;

/// How long things may take, and how often they may fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From the start of the process until it is ready.
    pub ready_ms: u64,
    /// Without a sign of progress while it starts, or without a good check afterwards.
    pub hang_ms: u64,
    /// Between the polite signal and the other.
    pub grace_ms: u64,
    /// This many ends of the process within the window are a crash loop.
    pub crashes_max: u32,
    pub crash_window_ms: u64,
    /// How often a worker in a crash loop is tried again.
    pub retry_ms: u64,
    pub backoff_first_ms: u64,
    pub backoff_max_ms: u64,
    /// Ready for this long, what failed before is forgotten.
    pub stable_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ready_ms: 60 * 60_000,
            hang_ms: 10 * 60_000,
            grace_ms: 30_000,
            crashes_max: 5,
            crash_window_ms: 10 * 60_000,
            retry_ms: 5 * 60_000,
            backoff_first_ms: 1000,
            backoff_max_ms: 60_000,
            stable_ms: 5 * 60_000,
        }
    }
}

/// Checks that must fail one after the other before a ready worker is sent no more requests.
pub const MISSES_MAX: u32 = 3;
/// What answers with anything but HTTP gets this long to become better.
pub const GARBAGE_MS: u64 = 30_000;
/// A process that survives being killed is killed again this often.
pub const KILL_AGAIN_MS: u64 = 5000;

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No process, and none wanted.
    Stopped,
    /// The process runs, its port is closed.
    Starting,
    /// The port answers, but not yet as it should.
    Warming,
    Ready,
    /// It was ready, and does not answer its checks any more.
    Unresponsive,
    /// It finishes what it has.
    Draining,
    /// The process was told to end.
    Stopping {
        then: Then,
        killed_ms: Option<u64>,
    },
    /// The process ended; another is started then.
    Backoff {
        until_ms: u64,
    },
    /// It ended too often; it is tried rarely.
    Failed {
        until_ms: u64,
    },
}

/// What follows the end of a process that was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Stay,
    Restart,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Start,
    /// Finish what runs, take nothing new.
    Drain,
    Stop,
    /// Try now what is waited with.
    Retry,
    /// It wrote something or computed.
    Progress,
    Checked(Check),
    /// The process has ended, or could not be started.
    Exited(String),
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Spawn,
    Terminate,
    Kill,
}

#[derive(Debug, Clone)]
pub struct Machine {
    limits: Limits,
    state: State,
    /// When the state was entered.
    since_ms: u64,
    /// When the process was spawned.
    started_ms: u64,
    progress_ms: u64,
    /// When a check was good for the last time.
    healthy_ms: u64,
    /// When this process was ready for the first time.
    ready_ms: Option<u64>,
    misses: u32,
    garbage_ms: Option<u64>,
    /// Ends of processes within the window.
    crashes: VecDeque<u64>,
    crashes_in_a_row: u32,
    is_looping: bool,
    spawns: u64,
    /// Why the process that is being ended has to.
    doomed: Option<String>,
    /// Why the last one ended.
    last: Option<String>,
    /// What the last check said, where it was not good.
    note: Option<String>,
    start_took_ms: Option<u64>,
    seed: u64,
}

impl Machine {
    /// The seed spreads the pauses of workers that fail together.
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            state: State::Stopped,
            since_ms: 0,
            started_ms: 0,
            progress_ms: 0,
            healthy_ms: 0,
            ready_ms: None,
            misses: 0,
            garbage_ms: None,
            crashes: VecDeque::new(),
            crashes_in_a_row: 0,
            is_looping: false,
            spawns: 0,
            doomed: None,
            last: None,
            note: None,
            start_took_ms: None,
            seed,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    pub fn started_ms(&self) -> u64 {
        self.started_ms
    }

    pub fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Starts after the first.
    pub fn restarts(&self) -> u64 {
        self.spawns.saturating_sub(1)
    }

    /// From the last spawn that got so far until it was ready.
    pub fn start_took_ms(&self) -> Option<u64> {
        self.start_took_ms
    }

    pub fn crashes(&self) -> usize {
        self.crashes.len()
    }

    pub fn is_alive(&self) -> bool {
        !matches!(self.state, State::Stopped | State::Backoff { .. } | State::Failed { .. })
    }

    /// Whether checks are of use.
    pub fn wants_checks(&self) -> bool {
        matches!(self.state, State::Starting | State::Warming | State::Ready | State::Unresponsive)
    }

    /// When time alone changes something, `Tick` is due.
    pub fn next_ms(&self) -> Option<u64> {
        let limits = &self.limits;
        match self.state {
            State::Stopped | State::Ready | State::Draining => None,
            State::Starting | State::Warming => {
                Some((self.started_ms + limits.ready_ms).min(self.progress_ms + limits.hang_ms))
            }
            State::Unresponsive => Some(self.healthy_ms + limits.hang_ms),
            State::Stopping { killed_ms: None, .. } => Some(self.since_ms + limits.grace_ms),
            State::Stopping { killed_ms: Some(killed_ms), .. } => Some(killed_ms + KILL_AGAIN_MS),
            State::Backoff { until_ms } | State::Failed { until_ms } => Some(until_ms),
        }
    }

    pub fn step(&mut self, now_ms: u64, input: Input) -> Option<Action> {
        match input {
            Input::Start => (self.state == State::Stopped).then(|| self.spawn(now_ms)),
            Input::Retry => {
                let waits = matches!(self.state, State::Backoff { .. } | State::Failed { .. });
                waits.then(|| self.spawn(now_ms))
            }
            Input::Drain => match self.state {
                State::Ready | State::Unresponsive => {
                    self.enter(now_ms, State::Draining);
                    None
                }
                State::Draining => None,
                _ => self.stop(now_ms),
            },
            Input::Stop => self.stop(now_ms),
            Input::Progress => {
                self.progress_ms = now_ms;
                None
            }
            Input::Checked(check) => self.checked(now_ms, check),
            Input::Exited(why) => {
                self.exited(now_ms, why);
                None
            }
            Input::Tick => self.tick(now_ms),
        }
    }

    fn enter(&mut self, now_ms: u64, state: State) {
        self.state = state;
        self.since_ms = now_ms;
    }

    fn spawn(&mut self, now_ms: u64) -> Action {
        debug_assert!(!self.is_alive());
        self.enter(now_ms, State::Starting);
        (self.started_ms, self.progress_ms, self.healthy_ms) = (now_ms, now_ms, now_ms);
        (self.ready_ms, self.misses, self.garbage_ms) = (None, 0, None);
        (self.doomed, self.note) = (None, None);
        self.spawns += 1;
        Action::Spawn
    }

    fn stop(&mut self, now_ms: u64) -> Option<Action> {
        match self.state {
            State::Stopped => None,
            State::Backoff { .. } | State::Failed { .. } => {
                self.enter(now_ms, State::Stopped);
                None
            }
            State::Stopping { killed_ms, .. } => {
                self.state = State::Stopping { then: Then::Stay, killed_ms };
                None
            }
            State::Starting | State::Warming | State::Ready | State::Unresponsive | State::Draining => {
                self.enter(now_ms, State::Stopping { then: Then::Stay, killed_ms: None });
                Some(Action::Terminate)
            }
        }
    }

    /// Ends the process to start another.
    fn doom(&mut self, now_ms: u64, why: String) -> Option<Action> {
        self.doomed = Some(why);
        self.enter(now_ms, State::Stopping { then: Then::Restart, killed_ms: None });
        Some(Action::Terminate)
    }

    fn checked(&mut self, now_ms: u64, check: Check) -> Option<Action> {
        if !self.wants_checks() {
            return None;
        }
        if check.is_ready() {
            self.ready(now_ms);
            return None;
        }
        self.note = check.note();
        if check.is_garbage() {
            self.garbage_ms.get_or_insert(now_ms);
        } else {
            self.garbage_ms = None;
        }
        match self.state {
            State::Starting if check.is_answer() => self.enter(now_ms, State::Warming),
            State::Ready => {
                self.misses += 1;
                if self.misses >= MISSES_MAX {
                    self.enter(now_ms, State::Unresponsive);
                }
            }
            _ => {}
        }
        self.tick(now_ms)
    }

    fn ready(&mut self, now_ms: u64) {
        (self.misses, self.garbage_ms, self.healthy_ms, self.note) = (0, None, now_ms, None);
        if self.state != State::Ready {
            self.enter(now_ms, State::Ready);
        }
        if self.ready_ms.is_none() {
            self.ready_ms = Some(now_ms);
            self.start_took_ms = Some(now_ms - self.started_ms);
        }
        self.forget(now_ms);
    }

    /// What has been ready for long enough was not in a crash loop.
    fn forget(&mut self, now_ms: u64) {
        if self.ready_ms.is_some_and(|at| now_ms - at >= self.limits.stable_ms) {
            self.crashes.clear();
            self.crashes_in_a_row = 0;
            self.is_looping = false;
        }
    }

    fn exited(&mut self, now_ms: u64, why: String) {
        if !self.is_alive() {
            return;
        }
        if matches!(self.state, State::Draining | State::Stopping { then: Then::Stay, .. }) {
            self.last = Some(why);
            self.enter(now_ms, State::Stopped);
            return;
        }
        self.forget(now_ms);
        let doomed = self.doomed.take();
        self.last = Some(doomed.unwrap_or(why));
        let window_ms = self.limits.crash_window_ms;
        self.crashes.retain(|at| now_ms - at < window_ms);
        self.crashes.push_back(now_ms);
        self.crashes_in_a_row += 1;
        self.is_looping |= self.crashes.len() >= self.limits.crashes_max as usize;
        let state = if self.is_looping {
            State::Failed { until_ms: now_ms + self.limits.retry_ms }
        } else {
            State::Backoff { until_ms: now_ms + self.pause_ms() }
        };
        self.enter(now_ms, state);
    }

    /// Twice as long each time, up to a limit, and between half of that and all of it.
    fn pause_ms(&mut self) -> u64 {
        let doublings = (self.crashes_in_a_row - 1).min(32);
        let whole = self.limits.backoff_first_ms.saturating_mul(1 << doublings).min(self.limits.backoff_max_ms);
        // A step of SplitMix64.
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        whole / 2 + mixed % (whole - whole / 2 + 1)
    }

    fn tick(&mut self, now_ms: u64) -> Option<Action> {
        match self.state {
            State::Starting | State::Warming => {
                let why = self.overdue(now_ms)?;
                self.doom(now_ms, why)
            }
            State::Unresponsive => {
                let silent_ms = now_ms - self.healthy_ms;
                if silent_ms < self.limits.hang_ms {
                    return None;
                }
                let said = self.note.as_deref().unwrap_or("no answer");
                let why = format!("hung: no good check for {} s ({said})", silent_ms / 1000);
                self.doom(now_ms, why)
            }
            State::Stopping { then, killed_ms } => {
                let due_ms = self.next_ms().unwrap_or(now_ms);
                if now_ms < due_ms {
                    return None;
                }
                debug_assert!(killed_ms.is_none_or(|at| at <= now_ms));
                self.state = State::Stopping { then, killed_ms: Some(now_ms) };
                Some(Action::Kill)
            }
            State::Backoff { until_ms } | State::Failed { until_ms } => {
                (now_ms >= until_ms).then(|| self.spawn(now_ms))
            }
            State::Stopped | State::Ready | State::Draining => None,
        }
    }

    /// Why a process that is not ready yet is given up, if it is.
    fn overdue(&self, now_ms: u64) -> Option<String> {
        let limits = &self.limits;
        if let Some(since_ms) = self.garbage_ms.filter(|since_ms| now_ms - since_ms >= GARBAGE_MS) {
            let said = self.note.as_deref().unwrap_or("no HTTP");
            return Some(format!("garbage on its port for {} s: {said}", (now_ms - since_ms) / 1000));
        }
        if now_ms - self.started_ms >= limits.ready_ms {
            let took_s = (now_ms - self.started_ms) / 1000;
            return Some(format!("not ready after {took_s} s (ready_timeout_s)"));
        }
        let idle_ms = now_ms - self.progress_ms;
        (idle_ms >= limits.hang_ms)
            .then(|| format!("hung: no line of log and no CPU time for {} s (hang_timeout_s)", idle_ms / 1000))
    }
}
