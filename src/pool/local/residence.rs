//! How a member's model comes and goes: leases for requests, and the steps that the lifecycle takes.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::slot::{Held, Loading, Memory, Slot, Waiting};
use super::{Embedding, Loaded, LocalMember};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::lifecycle::Lifecycle;
use crate::pool::member::{EngineSnapshot, wrong_task};

/// After a load that failed; each further failure doubles it.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// What a load is thought to take where none was seen.
const LOAD_GUESS: Duration = Duration::from_secs(1);
/// A model that ran this long is not thought to fail at once again.
const WELL_AFTER: Duration = Duration::from_secs(300);

/// What is known of loads and use, for people and predictions.
#[derive(Debug, Clone, Copy, Default)]
pub struct History {
    pub loads: u64,
    pub load_failures: u64,
    pub evictions: u64,
    pub restarts: u64,
    /// Times that it gave up its device's memory for another and kept its weights at hand.
    pub sleeps: u64,
    /// Of the latest.
    pub load_time: Option<Duration>,
    pub wake_time: Option<Duration>,
    pub last_used: Option<Instant>,
    loaded_at: Option<Instant>,
    failures_in_a_row: u32,
    restarts_in_a_row: u32,
}

/// What was in a member's slot when a load began, for whoever brings the model in.
pub enum Begun {
    Empty,
    /// A model whose engine failed, to be stopped first.
    Broken(Held),
    /// One that is to be woken, and what it takes of host memory when it is.
    Sleeping(Held, Memory),
}

impl LocalMember {
    /// The model for one request, which holds it until it drops it. Waits for one that is not in memory.
    pub async fn lease(&self) -> Result<Held> {
        let held = self.slot.borrow().held().cloned();
        if let Some(held) = held {
            self.used();
            return Ok(held);
        }
        if !self.is_open.load(Ordering::Relaxed) {
            return Err(self.not_ready());
        }
        let _waiting = Waiting::new(&self.waiting);
        let mut seen = self.slot.subscribe();
        loop {
            if let Some(outcome) = self.decided(&seen.borrow_and_update()) {
                self.used();
                return outcome;
            }
            self.call()?;
            if seen.changed().await.is_err() {
                return Err(self.not_ready());
            }
        }
    }

    /// What a slot means for one that waits; `None`: wait on.
    fn decided(&self, slot: &Slot) -> Option<Result<Held>> {
        match slot {
            Slot::Failed { why, again_at } => {
                let left = again_at.saturating_duration_since(Instant::now());
                (!left.is_zero()).then(|| Err(self.failed(why, left)))
            }
            Slot::Closed => Some(Err(self.closed())),
            Slot::Empty | Slot::Loading(_) | Slot::Holding { .. } | Slot::Sleeping { .. } | Slot::Draining(_) => {
                slot.held().cloned().map(Ok)
            }
        }
    }

    /// The model as one that generates.
    pub(super) async fn generating(&self) -> Result<std::sync::Arc<Loaded>> {
        match self.lease().await? {
            Held::Generating(loaded) => Ok(loaded),
            Held::Embedding(embedding) => Err(wrong_task(&embedding.card, false)),
        }
    }

    /// The model as one that makes vectors or scores.
    pub(super) async fn embedding(&self) -> Result<std::sync::Arc<Embedding>> {
        match self.lease().await? {
            Held::Embedding(embedding) => Ok(embedding),
            Held::Generating(loaded) => Err(wrong_task(&loaded.card, false)),
        }
    }

    /// The model, if it is in memory now.
    pub(super) fn present(&self) -> Result<Held> {
        self.slot.borrow().held().cloned().ok_or_else(|| self.not_ready())
    }

    pub(super) fn not_ready(&self) -> Error {
        let message = format!("model '{}' is still loading", self.provisional.id);
        Error::new(ErrorKind::Unavailable, message).with_code("model_not_ready").with_retry_after_s(2)
    }

    fn failed(&self, why: &str, left: Duration) -> Error {
        let message = format!("model '{}' could not be loaded: {why}", self.provisional.id);
        let seconds = u32::try_from(left.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        Error::new(ErrorKind::Unavailable, message).with_code("model_failed").with_retry_after_s(seconds)
    }

    fn closed(&self) -> Error {
        let message = format!("model '{}' is not served any more", self.provisional.id);
        Error::new(ErrorKind::Unavailable, message).with_code("model_failed")
    }

    /// Asks whoever brings models in for this one.
    pub(super) fn call(&self) -> Result<()> {
        let lifecycle = self.lifecycle.get().and_then(Weak::upgrade).ok_or_else(|| self.not_ready())?;
        lifecycle.wanted(self);
        Ok(())
    }

    fn used(&self) {
        self.change_history(|history| history.last_used = Some(Instant::now()));
    }
}

/// What the lifecycle does.
impl LocalMember {
    pub fn watch(&self) -> watch::Receiver<Slot> {
        self.slot.subscribe()
    }

    /// Whoever brings the model in when it is wanted. From now on requests wait for it, if `is_open`.
    pub fn managed_by(&self, lifecycle: Weak<Lifecycle>, is_open: bool) {
        let _same = self.lifecycle.set(lifecycle);
        self.is_open.fetch_or(is_open, Ordering::Relaxed);
    }

    /// Whether requests wait for the model; otherwise it is loaded at the start, and that is not done yet.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    pub fn history(&self) -> History {
        *self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn change_history(&self, change: impl FnOnce(&mut History)) {
        change(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Requests that wait for the model.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Begins a load, unless one runs, the model is there, or it is too early after a failure.
    pub fn begin(&self) -> Option<Begun> {
        let mut begun = None;
        self.slot.send_if_modified(|slot| {
            let is_well = |held: &Held| held.failure().is_none();
            let mut loading = Loading::new("loading");
            let found = match slot {
                Slot::Empty => Begun::Empty,
                Slot::Failed { again_at, .. } if Instant::now() >= *again_at => Begun::Empty,
                Slot::Sleeping { held, memory, awake } if is_well(held) => {
                    loading = Loading { memory: *memory, ..Loading::new("waking") };
                    Begun::Sleeping(held.clone(), *awake)
                }
                Slot::Holding { held, .. } | Slot::Sleeping { held, .. } if !is_well(held) => {
                    Begun::Broken(held.clone())
                }
                _ => return false,
            };
            if let Begun::Broken(held) | Begun::Sleeping(held, _) = &found {
                self.counted().departing = Some(held.snapshot());
            }
            *slot = Slot::Loading(loading);
            begun = Some(found);
            true
        });
        begun
    }

    /// Progress of the load that runs.
    pub fn tell(&self, change: impl FnOnce(&mut Loading)) {
        self.slot.send_if_modified(|slot| match slot {
            Slot::Loading(loading) => {
                change(loading);
                true
            }
            _ => false,
        });
    }

    /// The load has ended well.
    pub fn hold(&self, held: Held, memory: Memory) {
        let now = Instant::now();
        self.change_history(|history| {
            history.loads += 1;
            history.last_used = Some(now);
            history.loaded_at = Some(now);
        });
        self.hold_again(held, memory, |history, took| history.load_time = Some(took));
    }

    /// It is there, as [`Self::hold`] or [`Self::woken`] tells the history.
    pub(super) fn hold_again(&self, held: Held, memory: Memory, note: impl Fn(&mut History, Duration)) {
        let _known = self.card.set(held.card().clone());
        self.is_open.fetch_or(self.lifecycle.get().is_some(), Ordering::Relaxed);
        let mut unwanted = Some(held);
        self.slot.send_modify(|slot| {
            if let Slot::Loading(loading) = slot {
                let took = loading.started.elapsed();
                self.change_history(|history| {
                    note(history, took);
                    history.failures_in_a_row = 0;
                });
            }
            if !matches!(slot, Slot::Closed)
                && let Some(held) = unwanted.take()
            {
                self.counted().departing = None;
                *slot = Slot::Holding { held, memory };
            }
        });
        if let Some(held) = unwanted {
            held.shutdown(Duration::ZERO);
        }
    }

    /// The load has failed. Later ones wait longer each time.
    pub fn fail(&self, why: String) {
        let mut pause = RETRY_FIRST;
        self.change_history(|history| {
            history.load_failures += 1;
            pause = pause_after(history.failures_in_a_row);
            history.failures_in_a_row += 1;
        });
        self.slot.send_if_modified(|slot| {
            let is_open = !matches!(slot, Slot::Closed);
            if is_open {
                *slot = Slot::Failed { why, again_at: Instant::now() + pause };
            }
            is_open
        });
    }

    /// How long to wait before an engine that failed is started again: longer each time that it did not run long.
    pub fn restart_pause(&self) -> Duration {
        let mut pause = RETRY_FIRST;
        self.change_history(|history| {
            history.restarts += 1;
            if history.loaded_at.is_some_and(|at| at.elapsed() > WELL_AFTER) {
                history.restarts_in_a_row = 0;
            }
            pause = pause_after(history.restarts_in_a_row);
            history.restarts_in_a_row += 1;
        });
        pause
    }

    /// Takes the model away if nobody holds it or waits for it.
    pub fn take_idle(&self) -> Option<Held> {
        self.take_if(|slot| match slot {
            Slot::Holding { held, .. } => held.holders() == 1 && self.waiting() == 0,
            _ => false,
        })
    }

    /// Takes the model away, be it asleep; who holds it may finish.
    pub fn take(&self) -> Option<Held> {
        self.take_if(|slot| matches!(slot, Slot::Holding { .. } | Slot::Sleeping { .. }))
    }

    pub(super) fn take_if(&self, is_meant: impl Fn(&Slot) -> bool) -> Option<Held> {
        let mut taken = None;
        self.slot.send_if_modified(|slot| {
            if !is_meant(slot) {
                return false;
            }
            let draining = Slot::Draining(slot.memory());
            if let Slot::Holding { held, .. } | Slot::Sleeping { held, .. } = std::mem::replace(slot, draining) {
                self.counted().departing = Some(held.snapshot());
                taken = Some(held);
            }
            true
        });
        taken
    }

    /// The model that was taken away is gone. Its figures are kept.
    pub fn emptied(&self, last: &EngineSnapshot) {
        {
            let mut counted = self.counted();
            counted.departing = None;
            counted.gone.add_counters(last);
        }
        self.slot.send_if_modified(|slot| {
            let was_draining = matches!(slot, Slot::Draining(_));
            if was_draining {
                *slot = Slot::Empty;
            }
            was_draining
        });
    }

    /// A load that nobody wants any more.
    pub fn abandon(&self) {
        self.slot.send_if_modified(|slot| {
            let was_loading = matches!(slot, Slot::Loading(_));
            if was_loading {
                *slot = Slot::Empty;
            }
            was_loading
        });
    }

    /// It is not served any more: whoever waits is told so, and the model that there was is handed out.
    pub fn close(&self) -> Option<Held> {
        let mut taken = None;
        self.slot.send_modify(|slot| {
            if let Slot::Holding { held, .. } | Slot::Sleeping { held, .. } = std::mem::replace(slot, Slot::Closed) {
                taken = Some(held);
            }
        });
        taken
    }

    /// How long a request that comes now would wait for the model.
    pub(super) fn predicted_load(&self) -> Duration {
        let usual = self.history().load_time.unwrap_or(LOAD_GUESS);
        match &*self.slot.borrow() {
            Slot::Holding { held, .. } if held.failure().is_none() => Duration::ZERO,
            Slot::Sleeping { .. } => self.history().wake_time.unwrap_or(usual),
            Slot::Loading(loading) => usual.saturating_sub(loading.started.elapsed()).max(Duration::from_millis(100)),
            _ => usual,
        }
    }
}

/// What engines counted that requests find no more. It never shrinks, whenever one looks.
#[derive(Default)]
pub struct Counted {
    /// Of those that are gone.
    pub gone: EngineSnapshot,
    /// Of the one that finishes what it has begun, when it was taken away.
    pub departing: Option<EngineSnapshot>,
}

impl LocalMember {
    pub(super) fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pause_after(failures: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << failures.min(6)).min(RETRY_MAX)
}
