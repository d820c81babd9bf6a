//! Models come and go: loaded at the start, at a request's demand or an operator's word; unloaded when idle, when room is
//! needed for another, or at an operator's word.
//!
//! 1. One load a model at a time, however many wait for it.
//! 2. A model that is used is never taken from its requests: it is let finish them, and takes no new ones meanwhile.
//! 3. A model on a GPU that makes room for another there sleeps where host memory allows: its weights wait in it.
//! 4. The models in memory, on their way in and on their way out together never take more than the budget.

mod sleep;
mod status;

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::pool::local::{Begun, Held, LocalMember, Memory, Slot};
use crate::pool::member::Model;

use crate::config::LoadPolicy;
use crate::error::{Error, ErrorKind, Result};
use sleep::Cleared;
pub use status::{ModelStatus, State};

/// The code of errors that more free memory would cure.
pub const NO_MEMORY: &str = "insufficient_memory";

/// The same of a GPU's memory: another model there may give it up.
pub const NO_DEVICE_MEMORY: &str = "insufficient_gpu_memory";

/// How often it is looked whether a model that is let finish has done so, and whether there is room by now.
const LOOK: Duration = Duration::from_millis(20);
/// How long a load waits for another model to be idle before that is made to finish.
const IDLE_WAIT: Duration = Duration::from_secs(2);

/// Brings one model in. Made where models are known; nothing here knows what a model is.
pub trait Loader: Send + Sync {
    /// Fetches what is missing, and says what the model will take when it is given at most `room_bytes`.
    fn need(&self, room_bytes: Option<u64>) -> BoxFuture<'_, Result<Memory>>;
    fn load(&self, room_bytes: Option<u64>) -> BoxFuture<'_, Result<(Held, Memory)>>;
    /// Numbers of the GPUs that the model takes; none where it does not sleep.
    fn gpus(&self) -> Range<u32> {
        0..0
    }
    /// Whether it seems to fit beside what is on its GPU now, before anything large is read. A guess: the load knows.
    fn seems_to_fit(&self) -> BoxFuture<'_, Result<bool>> {
        std::future::ready(Ok(true)).boxed()
    }
}

#[derive(Clone)]
pub struct Managed {
    pub member: Arc<LocalMember>,
    pub loader: Arc<dyn Loader>,
    pub policy: LoadPolicy,
}

/// All models that this process may run.
pub struct Lifecycle {
    // Read when a model comes or goes, written at a reload.
    managed: RwLock<Vec<Managed>>,
    memory_max_bytes: RwLock<Option<u64>>,
    /// Held while room is looked for and set aside.
    room: Mutex<()>,
    /// Host memory that models may take for sleeping; 0: none sleeps.
    sleep_max_bytes: AtomicU64,
    /// Held while a model goes to sleep: two would count the same memory as free.
    falling_asleep: tokio::sync::Mutex<()>,
    /// Held while a model gets its place on GPUs: two would take what the other waits for.
    entering_gpu: tokio::sync::Mutex<()>,
    idle_wait: Duration,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            managed: RwLock::default(),
            memory_max_bytes: RwLock::default(),
            room: Mutex::default(),
            sleep_max_bytes: AtomicU64::default(),
            falling_asleep: tokio::sync::Mutex::default(),
            entering_gpu: tokio::sync::Mutex::default(),
            idle_wait: IDLE_WAIT,
        }
    }
}

/// What became of looking for room.
enum Room {
    Enough,
    /// A model was taken away; there is room when it is gone.
    Taken(Arc<LocalMember>, Held),
    /// Others are on their way out, or may be idle soon.
    Later,
    /// All that is in memory is pinned.
    Never(u64),
}

impl Lifecycle {
    /// From now on these are managed. Those that were before stay as they are.
    pub fn set(self: &Arc<Self>, managed: Vec<Managed>, memory_max_bytes: Option<u64>) {
        for one in &managed {
            one.member.managed_by(Arc::downgrade(self), one.policy.on_demand);
        }
        *self.managed.write().unwrap_or_else(PoisonError::into_inner) = managed;
        *self.memory_max_bytes.write().unwrap_or_else(PoisonError::into_inner) = memory_max_bytes;
    }

    /// It is gone for good.
    pub fn forget(&self, member: &Arc<LocalMember>) {
        let mut managed = self.managed.write().unwrap_or_else(PoisonError::into_inner);
        managed.retain(|one| !Arc::ptr_eq(&one.member, member));
    }

    pub fn all(&self) -> Vec<Managed> {
        self.managed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn memory_max_bytes(&self) -> Option<u64> {
        *self.memory_max_bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a model without sizes of its own is planned for: its share, so that several can be in memory together.
    pub fn share_bytes(&self) -> Option<u64> {
        let models = self.managed.read().unwrap_or_else(PoisonError::into_inner).len().max(1) as u64;
        self.memory_max_bytes().map(|bytes| bytes / models)
    }

    /// What the models in memory leave of the budget.
    pub fn left_bytes(&self) -> Option<u64> {
        let used: u64 = self.all().iter().map(|one| one.member.watch().borrow().memory().total_bytes()).sum();
        self.memory_max_bytes().map(|most| most.saturating_sub(used))
    }

    /// The model that clients call `name`.
    pub fn find(&self, name: &str) -> Result<Managed> {
        let all = self.all();
        let known = || all.iter().map(|one| one.member.card().id.clone()).collect::<Vec<_>>().join(", ");
        all.iter().find(|one| one.member.card().answers_to(name)).cloned().ok_or_else(|| {
            let message = format!("'{name}' is no model that this server may load; those are: {}", known());
            Error::new(ErrorKind::NotFound, message).with_param("model").with_code("model_not_found")
        })
    }

    /// Starts a load of this member's model, unless one runs or it is there.
    pub fn wanted(self: &Arc<Self>, member: &LocalMember) {
        let found = self.all().into_iter().find(|one| std::ptr::eq(Arc::as_ptr(&one.member), member));
        if let Some(managed) = found {
            self.start(managed);
        }
    }

    /// The same for one that need not be managed yet.
    pub fn start(self: &Arc<Self>, managed: Managed) {
        if let Some(begun) = managed.member.begin() {
            tokio::spawn(Arc::clone(self).bring_in(managed, begun));
        }
    }

    /// Loads it and waits until it is there.
    pub async fn bring(self: &Arc<Self>, managed: Managed) -> Result<()> {
        if managed.member.is_open() {
            self.start(managed.clone());
        }
        managed.member.lease().await.map(drop)
    }

    async fn bring_in(self: Arc<Self>, managed: Managed, begun: Begun) {
        let member = &managed.member;
        let name = member.card().id.clone();
        let begun = match begun {
            Begun::Sleeping(held, awake) => match self.woken(&managed, held, awake).await {
                true => return,
                // It is gone.
                false => Begun::Empty,
            },
            other => other,
        };
        if let Begun::Broken(broken) = begun {
            let pause = member.restart_pause();
            let why = broken.failure().unwrap_or_default().to_owned();
            tracing::error!(model = %name, why, pause_s = pause.as_secs(), "the engine has failed and is started again");
            gone(member, broken).await;
            tokio::time::sleep(pause).await;
        }
        let started = Instant::now();
        match self.loaded(&managed).await {
            Ok(Some((held, memory))) => {
                let bytes = memory.total_bytes();
                member.hold(held, memory);
                tracing::info!(model = %name, took_s = started.elapsed().as_secs_f64(), bytes, "loaded");
            }
            Ok(None) => member.abandon(),
            Err(error) => {
                tracing::error!(model = %name, %error, "the model could not be loaded");
                member.fail(error.message);
            }
        }
    }

    /// `None`: nobody waits for it any more.
    async fn loaded(&self, managed: &Managed) -> Result<Option<(Held, Memory)>> {
        let room_bytes = self.share_bytes();
        let (need, room_bytes) = match managed.loader.need(room_bytes).await {
            Err(error) if error.code == Some(NO_MEMORY) && room_bytes.is_some() => {
                let room_bytes = self.memory_max_bytes();
                (managed.loader.need(room_bytes).await?, room_bytes)
            }
            need => (need?, room_bytes),
        };
        if !self.set_aside(managed, need).await? {
            return Ok(None);
        }
        let _turn = if managed.loader.gpus().is_empty() { None } else { Some(self.entering_gpu.lock().await) };
        let asked = Instant::now();
        while !managed.loader.seems_to_fit().await? {
            match self.clear_gpu(managed, asked).await {
                Cleared::Some => {}
                Cleared::Nothing => break,
                Cleared::Unwanted => return Ok(None),
            }
        }
        loop {
            let error = match managed.loader.load(room_bytes).await {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(error) => error,
            };
            let cleared = match error.code {
                Some(NO_MEMORY) if self.evict_idle(managed).await => Cleared::Some,
                Some(NO_DEVICE_MEMORY) => self.clear_gpu(managed, asked).await,
                _ => Cleared::Nothing,
            };
            match cleared {
                Cleared::Some => {}
                Cleared::Nothing => return Err(error),
                Cleared::Unwanted => return Ok(None),
            }
        }
    }

    /// Sets `need` aside for a model that is being loaded, once there is room. False: nobody waits for it any more.
    async fn set_aside(&self, managed: &Managed, need: Memory) -> Result<bool> {
        let asked = Instant::now();
        loop {
            let is_late = asked.elapsed() >= self.idle_wait;
            match self.make_room(managed, need, is_late) {
                Room::Enough => return Ok(true),
                Room::Taken(member, held) => {
                    tracing::info!(model = %member.card().id, for_model = %managed.member.card().id, "unloading to make room");
                    member.change_history(|history| history.evictions += 1);
                    gone(&member, held).await;
                }
                Room::Later if is_late && managed.member.waiting() == 0 => return Ok(false),
                Room::Later => tokio::time::sleep(LOOK).await,
                Room::Never(max_bytes) => {
                    let message = format!(
                        "it needs {} bytes of memory, and pinned models leave less of the {max_bytes} of --models-memory; \
                         give it a smaller --kv-cache-memory-bytes or --max-model-len, or raise --models-memory",
                        need.total_bytes()
                    );
                    return Err(Error::new(ErrorKind::Unavailable, message).with_code(NO_MEMORY));
                }
            }
        }
    }

    fn make_room(&self, managed: &Managed, need: Memory, may_drain: bool) -> Room {
        let _turn = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let set_aside = || {
            managed.member.tell(|loading| loading.memory = need);
            Room::Enough
        };
        let Some(max_bytes) = self.memory_max_bytes() else { return set_aside() };
        let others: Vec<_> = self.others(managed).collect();
        let used: u64 = others.iter().map(|one| one.member.watch().borrow().memory().total_bytes()).sum();
        if used.saturating_add(need.total_bytes()) <= max_bytes {
            return set_aside();
        }
        let pinned: u64 = others
            .iter()
            .filter(|one| one.policy.pinned)
            .map(|one| one.member.watch().borrow().memory().total_bytes())
            .sum();
        if pinned.saturating_add(need.total_bytes()) > max_bytes {
            return Room::Never(max_bytes);
        }
        match take_least_recent(&others, may_drain) {
            Some((member, held)) => Room::Taken(member, held),
            None => Room::Later,
        }
    }

    fn others<'a>(&self, managed: &'a Managed) -> impl Iterator<Item = Managed> + use<'a> {
        self.all().into_iter().filter(|one| !Arc::ptr_eq(&one.member, &managed.member))
    }

    /// Unloads the idle model that was not used for the longest time. False: there is none.
    async fn evict_idle(&self, managed: &Managed) -> bool {
        let others: Vec<_> = self.others(managed).collect();
        let Some((member, held)) = take_least_recent(&others, false) else { return false };
        tracing::info!(model = %member.card().id, for_model = %managed.member.card().id, "unloading to make room");
        member.change_history(|history| history.evictions += 1);
        gone(&member, held).await;
        true
    }

    /// Lets what it answers finish, then unloads it. False: it was not in memory.
    pub async fn unload(&self, managed: &Managed) -> bool {
        let Some(held) = managed.member.take() else { return false };
        gone(&managed.member, held).await;
        tracing::info!(model = %managed.member.card().id, "unloaded");
        true
    }

    /// To be called about once a second: unloads what is idle, and starts engines again that failed.
    pub async fn tick(self: &Arc<Self>) {
        for managed in self.all() {
            let member = &managed.member;
            let (is_used, is_broken) = match &*member.watch().borrow() {
                Slot::Holding { held, .. } => (held.holders() > 1, held.failure().is_some()),
                Slot::Sleeping { .. } => (false, false),
                Slot::Failed { .. } => (false, !managed.policy.on_demand),
                _ => continue,
            };
            if is_broken {
                self.start(managed.clone());
                continue;
            }
            if is_used {
                member.change_history(|history| history.last_used = Some(Instant::now()));
                continue;
            }
            let idle = member.history().last_used.map_or(Duration::ZERO, |at| at.elapsed());
            let is_over = managed.policy.idle_unload.is_some_and(|limit| idle >= limit) && !managed.policy.pinned;
            if is_over && let Some(held) = member.take_idle().or_else(|| member.take_sleeping()) {
                gone(member, held).await;
                tracing::info!(model = %member.card().id, idle_s = idle.as_secs(), "unloaded, as nobody used it");
            }
        }
    }
}

/// Takes away the model that was not used for the longest time: an idle one, or, where it may be made to finish, any.
fn take_least_recent(models: &[Managed], may_drain: bool) -> Option<(Arc<LocalMember>, Held)> {
    let mut loose: Vec<_> = models.iter().filter(|one| !one.policy.pinned).collect();
    loose.sort_by_key(|one| one.member.history().last_used);
    // One that sleeps has been idle for longer than any that does not.
    let sleeping = loose.iter().find_map(|one| Some((Arc::clone(&one.member), one.member.take_sleeping()?)));
    if sleeping.is_some() {
        return sleeping;
    }
    let idle = loose.iter().find_map(|one| Some((Arc::clone(&one.member), one.member.take_idle()?)));
    let is_going = || models.iter().any(|one| matches!(&*one.member.watch().borrow(), Slot::Draining(_)));
    if idle.is_some() || !may_drain || is_going() {
        return idle;
    }
    // Whoever waits for it had it not yet: it would go round in circles.
    let mut had = loose.iter().filter(|one| one.member.waiting() == 0);
    had.find_map(|one| Some((Arc::clone(&one.member), one.member.take()?)))
}

/// Waits until nobody else holds it, stops its engine and gives its memory back.
pub async fn gone(member: &Arc<LocalMember>, held: Held) {
    while held.holders() > 1 {
        tokio::time::sleep(LOOK).await;
    }
    let stopping = tokio::task::spawn_blocking(move || {
        held.shutdown(Duration::ZERO);
        let last = held.snapshot();
        drop(held);
        crate::engine::allocator::give_back();
        last
    });
    match stopping.await {
        Ok(last) => member.emptied(&last),
        Err(panic) => {
            tracing::error!(%panic, "stopping an engine failed");
            member.emptied(&Default::default());
        }
    }
}
