//! What is known of a model that comes and goes, for people and probes.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Lifecycle, Managed};
use crate::pool::local::{Memory, Slot};
use crate::pool::member::{Member, Model};

/// One model, now.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelStatus {
    pub id: String,
    pub root: String,
    pub state: State,
    /// Why it failed, or what its load does.
    pub detail: Option<String>,
    pub bytes_done: Option<u64>,
    pub bytes_total: Option<u64>,
    pub memory: Memory,
    pub running: u64,
    pub waiting: u64,
    /// Requests that wait for it to be loaded.
    pub waiting_for_load: u32,
    pub loads: u64,
    pub load_failures: u64,
    pub evictions: u64,
    /// Those of them, and of an operator's words, after which it slept.
    pub sleeps: u64,
    pub restarts: u64,
    pub load_time: Option<Duration>,
    pub wake_time: Option<Duration>,
    /// Unix time.
    pub last_used_s: Option<u64>,
    pub unloads_at_s: Option<u64>,
    pub on_demand: bool,
    pub pinned: bool,
    pub stuck_for: Option<Duration>,
}

/// Where a model is between the disk and its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Never loaded so far.
    Configured,
    Loading,
    Ready,
    Draining,
    /// On no device; its weights wait in host memory.
    Sleeping,
    Unloaded,
    Failed,
}

impl State {
    pub const ALL: [Self; 7] =
        [Self::Configured, Self::Loading, Self::Ready, Self::Draining, Self::Sleeping, Self::Unloaded, Self::Failed];

    pub fn word(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Sleeping => "sleeping",
            Self::Unloaded => "unloaded",
            Self::Failed => "failed",
        }
    }
}

impl Lifecycle {
    pub fn statuses(&self) -> Vec<ModelStatus> {
        self.all().iter().map(Managed::status).collect()
    }
}

impl Managed {
    pub fn status(&self) -> ModelStatus {
        let (member, history, card) = (&self.member, self.member.history(), self.member.card());
        let figures = member.snapshot();
        let mut status = ModelStatus {
            id: card.id.clone(),
            root: card.root.clone(),
            state: State::Unloaded,
            detail: None,
            bytes_done: None,
            bytes_total: None,
            memory: Memory::default(),
            running: figures.running,
            waiting: figures.waiting,
            waiting_for_load: member.waiting(),
            loads: history.loads,
            load_failures: history.load_failures,
            evictions: history.evictions,
            sleeps: history.sleeps,
            restarts: history.restarts,
            load_time: history.load_time,
            wake_time: history.wake_time,
            last_used_s: history.last_used.and_then(unix_s),
            unloads_at_s: None,
            on_demand: self.policy.on_demand,
            pinned: self.policy.pinned,
            stuck_for: member.stuck_for(),
        };
        let mut is_held = false;
        {
            let watch = member.watch();
            let slot = watch.borrow();
            status.memory = slot.memory();
            match &*slot {
                Slot::Empty if history.loads == 0 => status.state = State::Configured,
                Slot::Empty | Slot::Closed => {}
                Slot::Loading(loading) => {
                    status.state = State::Loading;
                    status.detail = Some(loading.what.clone());
                    status.bytes_done = loading.bytes_total.map(|_| loading.bytes_done);
                    status.bytes_total = loading.bytes_total;
                }
                Slot::Holding { held, .. } => {
                    status.state = if held.failure().is_some() { State::Failed } else { State::Ready };
                    status.detail = held.failure().map(str::to_owned);
                    is_held = held.holders() > 1;
                }
                Slot::Sleeping { .. } => status.state = State::Sleeping,
                Slot::Draining(_) => status.state = State::Draining,
                Slot::Failed { why, .. } => {
                    status.state = State::Failed;
                    status.detail = Some(why.clone());
                }
            }
        }
        let limit = self
            .policy
            .idle_unload
            .filter(|_| matches!(status.state, State::Ready | State::Sleeping) && !self.policy.pinned && !is_held);
        status.unloads_at_s = limit.zip(status.last_used_s).map(|(limit, used_s)| used_s + limit.as_secs());
        status
    }
}

/// Unix time of a moment that has been.
fn unix_s(at: Instant) -> Option<u64> {
    let then = SystemTime::now().checked_sub(at.elapsed())?;
    Some(then.duration_since(UNIX_EPOCH).ok()?.as_secs())
}
