//! Models on a GPU that take turns there: one that is not used sleeps while another has its memory, and wakes when it is
//! asked again, in a fraction of the time of a load.
//!
//! Where host memory does not allow it the model is unloaded instead, as any other. A model is let finish what it has begun
//! before it goes to sleep: nothing of a request is on the device then.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{LOOK, Lifecycle, Managed, gone};
use crate::device::cpu;
use crate::engine::WakeError;
use crate::error::{Error, Result};
use crate::pool::local::{Held, LocalMember, Memory, Slot};
use crate::pool::member::Model;

/// What became of making room on a GPU.
pub(super) enum Cleared {
    /// Another model is gone from it.
    Some,
    /// Nothing there may go.
    Nothing,
    /// Nobody waits for the model any more that room was to be made for.
    Unwanted,
}

impl Lifecycle {
    /// Host memory that models may take for sleeping, all together, in bytes. 0: none sleeps by itself.
    pub fn set_sleep_max(&self, bytes: u64) {
        self.sleep_max_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Takes the least recently used model off the GPUs that `managed` wants: an idle one, or after a while one that is let
    /// finish. `asked` is when room was first wanted.
    pub(super) async fn clear_gpu(&self, managed: &Managed, asked: Instant) -> Cleared {
        loop {
            let mut there: Vec<_> = self.others(managed).filter(|one| one.is_on_gpus_of(managed)).collect();
            if there.is_empty() {
                return Cleared::Nothing;
            }
            there.sort_by_key(|one| one.member.history().last_used);
            let is_late = asked.elapsed() >= self.idle_wait;
            let going = there.iter().find(|one| matches!(&*one.member.watch().borrow(), Slot::Draining(_)));
            if let Some(going) = going.map(|one| Arc::clone(&one.member)) {
                let mut seen = going.watch();
                // Its end is the end of the wait, too.
                let _ = seen.wait_for(|slot| !matches!(slot, Slot::Draining(_))).await;
                return Cleared::Some;
            }
            let idle = there.iter().find_map(|one| Some((one, one.member.awake_memory()?, one.member.take_idle()?)));
            let had = || there.iter().filter(|one| is_late && one.member.waiting() == 0);
            let taken =
                idle.or_else(|| had().find_map(|one| Some((one, one.member.awake_memory()?, one.member.take()?))));
            if let Some((one, awake, held)) = taken {
                let for_model = &managed.member.card().id;
                tracing::info!(model = %one.member.card().id, %for_model, "leaving the GPU to make room");
                one.member.change_history(|history| history.evictions += 1);
                self.rest(&one.member, held, awake).await;
                return Cleared::Some;
            }
            if is_late && managed.member.waiting() == 0 {
                return Cleared::Unwanted;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Has a model sleep at an operator's word, when it has finished what it has begun. Its next request wakes it.
    pub async fn put_to_sleep(&self, managed: &Managed) -> Result<()> {
        let member = &managed.member;
        let name = &member.card().id;
        if member.sleeping_bytes() > 0 {
            return Ok(());
        }
        let refused = |why: String| Err(Error::invalid("model", why));
        let held = member.watch().borrow().held().cloned();
        let Some(held) = held else { return refused(format!("model '{name}' is not in memory; load it first")) };
        let Some(bytes) = held.asleep_bytes() else {
            return refused(format!("model '{name}' is not on a GPU and does not sleep; unload it instead"));
        };
        drop(held);
        self.allows_sleep(bytes).or_else(refused)?;
        let Some((awake, held)) = member.awake_memory().zip(member.take()) else { return Ok(()) };
        self.rest(member, held, awake).await;
        match member.sleeping_bytes() {
            0 => refused(format!("model '{name}' could not sleep and was unloaded; the log says why")),
            _ => Ok(()),
        }
    }

    /// Puts a model to sleep that was taken away, when nobody holds it any more, or unloads it.
    async fn rest(&self, member: &Arc<LocalMember>, held: Held, awake: Memory) {
        while held.holders() > 1 {
            tokio::time::sleep(LOOK).await;
        }
        let name = member.card().id.clone();
        let _turn = self.falling_asleep.lock().await;
        let allowed = held.asleep_bytes().ok_or_else(|| "it is not on a GPU".to_owned());
        if let Err(why) = allowed.and_then(|bytes| self.allows_sleep(bytes)) {
            tracing::info!(model = %name, why, "unloaded instead of put to sleep");
            return gone(member, held).await;
        }
        let started = Instant::now();
        let sleeping = held.clone();
        let slept = tokio::task::spawn_blocking(move || sleeping.sleep()).await;
        match slept.unwrap_or_else(|panic| Err(format!("its thread panicked: {panic}"))) {
            Ok(bytes) => {
                let memory = Memory { weights_bytes: bytes, ..Memory::default() };
                member.sleeping(held, memory, awake);
                tracing::info!(model = %name, took_s = started.elapsed().as_secs_f64(), bytes, "sleeps");
            }
            Err(why) => {
                tracing::warn!(model = %name, why, "a model that does not sleep is unloaded");
                gone(member, held).await;
            }
        }
    }

    /// Whether so much host memory may be taken for one more that sleeps.
    fn allows_sleep(&self, bytes: u64) -> std::result::Result<(), String> {
        let most = self.sleep_max_bytes.load(Ordering::Relaxed);
        let taken: u64 = self.all().iter().map(|one| one.member.sleeping_bytes()).sum();
        if taken.saturating_add(bytes) > most {
            return Err(format!(
                "it would take {bytes} bytes of host memory, and {taken} of the {most} of --sleep-memory are taken; raise it"
            ));
        }
        if self.left_bytes().is_some_and(|left| left < bytes) {
            return Err(format!("it would take {bytes} bytes of host memory, which --models-memory does not leave"));
        }
        match cpu::detect().memory_available_bytes {
            Some(available) if available < bytes => {
                Err(format!("it would take {bytes} bytes of host memory, and {available} are available"))
            }
            _ => Ok(()),
        }
    }

    /// Wakes a model for those who wait; where nobody waits any more it sleeps on. False: it could not be woken, and was
    /// unloaded to be loaded as a whole.
    pub(super) async fn woken(&self, managed: &Managed, held: Held, awake: Memory) -> bool {
        let (member, started) = (&managed.member, Instant::now());
        let name = member.card().id.clone();
        let _turn = self.entering_gpu.lock().await;
        let why = loop {
            let sleeper = held.clone();
            let woken = tokio::task::spawn_blocking(move || sleeper.wake()).await;
            match woken.unwrap_or_else(|panic| Err(WakeError::Failed(format!("its thread panicked: {panic}")))) {
                Ok(()) => {
                    member.woken(held, awake);
                    tracing::info!(model = %name, took_s = started.elapsed().as_secs_f64(), "woken");
                    return true;
                }
                Err(WakeError::Failed(why)) => break why,
                Err(WakeError::Memory(why)) => match self.clear_gpu(managed, started).await {
                    Cleared::Some => {}
                    // Loading plans for what there is.
                    Cleared::Nothing => break why,
                    Cleared::Unwanted => {
                        let sleeper = held.clone();
                        // Of several replicas some may have woken.
                        match tokio::task::spawn_blocking(move || sleeper.sleep()).await {
                            Ok(Ok(_)) => {
                                member.sleep_on(held, awake);
                                return true;
                            }
                            _ => break why,
                        }
                    }
                },
            }
        };
        tracing::warn!(model = %name, why, "the model cannot be woken and is loaded again");
        gone(member, held).await;
        false
    }
}

impl Managed {
    /// Whether it takes memory of a GPU that `other` wants, and may be asked to leave it.
    fn is_on_gpus_of(&self, other: &Self) -> bool {
        let (own, wanted) = (self.loader.gpus(), other.loader.gpus());
        let overlaps = own.start.max(wanted.start) < own.end.min(wanted.end);
        let is_there = match &*self.member.watch().borrow() {
            Slot::Holding { held, .. } => held.asleep_bytes().is_some(),
            Slot::Draining(_) => true,
            _ => false,
        };
        overlaps && is_there && !self.policy.pinned
    }
}
