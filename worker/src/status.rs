//! What is told of a worker: to the pool, to people, to metrics.

use tokio::time::Instant;

use crate::health::Served;
use crate::state::{Machine, State};

/// The states that others see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Stopped,
    Starting,
    Warming,
    Ready,
    Unresponsive,
    Draining,
    Stopping,
    Backoff,
    Failed,
}

pub const PHASES: [Phase; 9] = [
    Phase::Stopped,
    Phase::Starting,
    Phase::Warming,
    Phase::Ready,
    Phase::Unresponsive,
    Phase::Draining,
    Phase::Stopping,
    Phase::Backoff,
    Phase::Failed,
];

impl Phase {
    pub fn word(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Warming => "warming",
            Self::Ready => "ready",
            Self::Unresponsive => "unresponsive",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
        }
    }
}

impl From<State> for Phase {
    fn from(state: State) -> Self {
        match state {
            State::Stopped => Self::Stopped,
            State::Starting => Self::Starting,
            State::Warming => Self::Warming,
            State::Ready => Self::Ready,
            State::Unresponsive => Self::Unresponsive,
            State::Draining => Self::Draining,
            State::Stopping { .. } => Self::Stopping,
            State::Backoff { .. } => Self::Backoff,
            State::Failed { .. } => Self::Failed,
        }
    }
}

/// A worker at a moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    pub phase: Phase,
    /// When it came to be so.
    pub since: Option<Instant>,
    /// When its process was started.
    pub started: Option<Instant>,
    /// Until when is waited before the next start.
    pub until: Option<Instant>,
    /// Of the process that runs.
    pub port: Option<u16>,
    /// Counts the processes: what was learnt of one does not hold for the next.
    pub generation: u64,
    /// What it says that it serves, while it is ready.
    pub served: Option<Served>,
    /// By its log.
    pub doing: Option<&'static str>,
    /// What its last check said.
    pub note: Option<String>,
    /// Why the last process ended.
    pub last: Option<String>,
    /// Within the window of crash loops.
    pub crashes: usize,
    pub restarts: u64,
    /// The last start that ended well.
    pub start_took_s: Option<f64>,
}

impl Status {
    pub(crate) fn of(machine: &Machine, origin: Instant) -> Self {
        let at = |ms: u64| origin + std::time::Duration::from_millis(ms);
        Self {
            phase: machine.state().into(),
            since: Some(at(machine.since_ms())),
            started: machine.is_alive().then(|| at(machine.started_ms())),
            until: match machine.state() {
                State::Backoff { until_ms } | State::Failed { until_ms } => Some(at(until_ms)),
                _ => None,
            },
            note: machine.note().map(str::to_owned),
            last: machine.last().map(str::to_owned),
            crashes: machine.crashes(),
            restarts: machine.restarts(),
            start_took_s: machine.start_took_ms().map(|ms| ms as f64 / 1000.0),
            ..Self::default()
        }
    }

    /// In one line, for people.
    pub fn says(&self, now: Instant) -> String {
        let since = |at: Option<Instant>| spoken(at.map_or(0, |at| now.saturating_duration_since(at).as_secs()));
        let left = || spoken(self.until.map_or(0, |at| at.saturating_duration_since(now).as_secs_f64().ceil() as u64));
        let last = self.last.as_deref().unwrap_or("it ended");
        let with = |text: String, more: Option<&str>| match more {
            Some(more) => format!("{text}: {more}"),
            None => text,
        };
        let note = self.note.as_deref();
        match self.phase {
            Phase::Stopped => "not started".to_owned(),
            Phase::Starting => with(format!("starting for {}", since(self.started)), self.doing),
            Phase::Warming => {
                with(format!("starting for {}, its port answers", since(self.started)), note.or(self.doing))
            }
            Phase::Ready => "ready".to_owned(),
            Phase::Unresponsive => with(format!("does not answer its checks for {}", since(self.since)), note),
            Phase::Draining => "finishing its requests".to_owned(),
            Phase::Stopping => format!("being ended for {}", since(self.since)),
            Phase::Backoff => format!("started again in {}: {last}", left()),
            Phase::Failed => {
                format!("crash loop ({} ends in a row); tried again in {}; the last: {last}", self.crashes, left())
            }
        }
    }
}

/// Seconds as people say them.
fn spoken(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
