//! Assembly: from a checked configuration to a running pool (hub, models, engine, text and providers meet only here).

mod adapters;
mod apart;
mod cards;
mod draft;
mod embed;
pub mod fit;
#[cfg(feature = "gpu")]
pub mod gpu;
mod loader;
mod model;
mod packed;
#[cfg(feature = "pjrt")]
mod pjrt;
mod pool;
mod reload;
mod synthetic;
#[cfg(test)]
mod tests;
mod text;
mod workers;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use sconce_providers::HttpClient;

use crate::config::pool::PoolConfig;
use crate::config::speculation::Speculation;
use crate::config::{DeviceChoice, ModelConfig, check_limits};
use crate::device::cpu;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{ModelRef, Progress};
use crate::pool::lifecycle::{Lifecycle, NO_DEVICE_MEMORY, NO_MEMORY};
use crate::pool::local::{Held, LocalMember, Memory};
use crate::pool::{Model, ModelCard, Pool, Shared, Task};
use crate::telemetry::Metrics;
use apart::apart;
use cards::Cards;
use workers::Workers;

pub use model::LoadReport;
pub use pool::shared;
pub use reload::Change;

/// A pool whose members are still loading, and what is needed to load them.
pub struct Launch {
    pub pool: Arc<Pool>,
    pub metrics: Arc<Metrics>,
    client: HttpClient,
    // Taken at the start, at a reload and at the end.
    planned: Mutex<Vec<Planned>>,
    // As above.
    workers: Mutex<Workers>,
}

/// A model that this process runs.
#[derive(Clone)]
struct Planned {
    config: ModelConfig,
    reference: ModelRef,
    /// Of the model that guesses ahead.
    draft: Option<ModelRef>,
    member: Arc<LocalMember>,
}

impl Planned {
    /// A model that was loaded before keeps the context that it had then: clients were told of it.
    fn config_now(&self) -> ModelConfig {
        let mut config = self.config.clone();
        let known = self.member.card().max_model_len;
        if known > 0 {
            config.limits.max_model_len.get_or_insert(known);
        }
        config
    }
}

impl Launch {
    /// Checks every reference and limit; touches neither network nor weights.
    pub fn plan(models: &[ModelConfig]) -> Result<Self> {
        Self::plan_pool(models, &PoolConfig::default(), Shared::default())
    }

    /// The same, with hosted members and routes.
    pub fn plan_pool(models: &[ModelConfig], config: &PoolConfig, shared: Shared) -> Result<Self> {
        let metrics = Arc::new(Metrics::new());
        let client = HttpClient::new();
        let planned = plan_models(models, &metrics)?;
        let workers = workers::plan(config, &[]);
        let parts =
            pool::Parts { client: &client, metrics: &metrics, planned: &planned, workers: &workers, known: &[] };
        let table = pool::table(config, &parts)?;
        let pool = Arc::new(Pool::with(table, shared));
        watch_steps(&planned, config);
        pool.lifecycle().set(loader::managed(&planned), config.models_memory_bytes);
        set_sleep_memory(pool.lifecycle(), config);
        let workers = Mutex::new(Workers::new(workers));
        Ok(Self { pool, metrics, client, planned: Mutex::new(planned), workers })
    }

    /// Starts the workers, then fetches and loads one model after the other, but for those that wait for a request. The
    /// first failure ends it and is also the member's state.
    pub async fn load(&self, progress: Arc<dyn Progress>) -> Result<Vec<LoadReport>> {
        self.workers().start(&self.metrics)?;
        let planned = self.planned().clone();
        let mut reports = Vec::with_capacity(planned.len());
        for planned in planned.iter().filter(|planned| !planned.config.loading.on_demand) {
            match load_at_start(planned, self.pool.lifecycle(), Arc::clone(&progress)).await {
                Ok(report) => reports.push(report),
                Err(error) => {
                    planned.member.set_failed(error.message.clone());
                    return Err(error);
                }
            }
        }
        Ok(reports)
    }

    /// Stops every engine and worker: what still runs is cancelled after `grace`.
    pub async fn stop(&self, grace: std::time::Duration) {
        let workers = std::mem::take(&mut *self.workers());
        let stopping = tokio::spawn(workers::stop(workers));
        let planned = self.planned().clone();
        for planned in planned {
            stop_one(planned.member, grace).await;
        }
        if let Err(panic) = stopping.await {
            tracing::error!(%panic, "stopping the workers failed");
        }
    }

    fn workers(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn planned(&self) -> MutexGuard<'_, Vec<Planned>> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What models may take for sleeping.
fn set_sleep_memory(lifecycle: &Lifecycle, config: &PoolConfig) {
    let half = || cpu::detect().memory_available_bytes.map_or(0, |bytes| bytes / 2);
    lifecycle.set_sleep_max(config.sleep_memory_bytes.unwrap_or_else(half));
}

async fn stop_one(member: Arc<LocalMember>, grace: std::time::Duration) {
    let stopping = tokio::task::spawn_blocking(move || member.shutdown(grace));
    if let Err(panic) = stopping.await {
        tracing::error!(%panic, "stopping an engine failed");
    }
}

/// Members that are not loaded yet, one a model.
fn plan_models(models: &[ModelConfig], metrics: &Metrics) -> Result<Vec<Planned>> {
    let mut planned = Vec::with_capacity(models.len());
    let mut taken: Vec<String> = Vec::new();
    for config in models {
        let model = plan_model(config, metrics)?;
        let card = model.member.card();
        let adapters = config.lora.modules.iter().map(|module| &module.name);
        for name in std::iter::once(&card.id).chain(&card.aliases).chain(adapters) {
            if taken.contains(name) {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    format!("two models would be served as '{name}'; give one another --served-model-name"),
                ));
            }
            taken.push(name.clone());
        }
        planned.push(model);
    }
    Ok(planned)
}

fn plan_model(config: &ModelConfig, metrics: &Metrics) -> Result<Planned> {
    check_limits(&config.limits)?;
    let reference = ModelRef::parse(&config.reference)?;
    check_devices(config, reference == ModelRef::Sim)?;
    text::check_parsers(&config.parsers)?;
    let draft = match &config.limits.speculation {
        Speculation::DraftModel(draft) => Some(ModelRef::parse(&draft.reference)?),
        Speculation::Off | Speculation::Ngram(_) => None,
    };
    let card = provisional_card(config, &reference);
    let member = LocalMember::loading(card.clone(), metrics.model(&card.id));
    let member = Arc::new(adapters::announced(member, &config.lora, &card));
    Ok(Planned { config: config.clone(), reference, draft, member })
}

/// Within what models may take together: at the start nothing is unloaded for another.
async fn load_at_start(planned: &Planned, lifecycle: &Lifecycle, progress: Arc<dyn Progress>) -> Result<LoadReport> {
    let left_bytes = lifecycle.left_bytes();
    let begun = planned.member.begin();
    debug_assert!(begun.is_some(), "nobody else loads a model that the start loads");
    let loaded = load_one(planned, progress, left_bytes).await;
    let (held, memory, report) = loaded.map_err(|error| match left_bytes {
        Some(bytes) if error.code == Some(NO_MEMORY) => {
            let message = format!(
                "{}; models that were loaded before leave {bytes} bytes of --models-memory: let some be loaded on demand \
                 (load = \"demand\", --load-on-demand), or give the models a --kv-cache-memory-bytes",
                error.message
            );
            Error { message, ..error }
        }
        _ if error.code == Some(NO_DEVICE_MEMORY) && lifecycle.all().len() > 1 => {
            let message = format!(
                "{}; models that are to take turns on a GPU are loaded on demand (load = \"demand\", --load-on-demand)",
                error.message
            );
            Error { message, ..error }
        }
        _ => error,
    })?;
    if let Some(left) = left_bytes.filter(|left| memory.total_bytes() > *left) {
        held.shutdown(std::time::Duration::ZERO);
        let message = format!(
            "'{}' takes {} bytes, and models that were loaded before leave {left} of --models-memory: let some be loaded on \
             demand (load = \"demand\", --load-on-demand)",
            report.id,
            memory.total_bytes()
        );
        return Err(Error::new(ErrorKind::Unavailable, message).with_code(NO_MEMORY));
    }
    planned.member.hold(held, memory);
    Ok(report)
}

async fn load_one(
    planned: &Planned,
    progress: Arc<dyn Progress>,
    room_bytes: Option<u64>,
) -> Result<(Held, Memory, LoadReport)> {
    let files = loader::fetched(planned, progress.as_ref()).await?;
    let card = planned.member.card().clone();
    let config = planned.config_now();
    let loading = apart("load", move || {
        let job = model::Job { config: &config, files: &files, room_bytes };
        model::load(&job, card, progress)
    });
    let (loaded, memory, report) = loading.await?;
    let held = match loaded {
        model::Ready::Generating(loaded) => Held::Generating(Arc::new(*loaded)),
        model::Ready::Embedding(embedding) => Held::Embedding(Arc::new(*embedding)),
    };
    Ok((held, memory, report))
}

fn watch_steps(planned: &[Planned], config: &PoolConfig) {
    if let Some(limit) = config.step_timeout {
        planned.iter().for_each(|planned| planned.member.set_step_timeout(limit));
    }
}

fn provisional_card(config: &ModelConfig, reference: &ModelRef) -> ModelCard {
    let mut names = config.served_names.iter().cloned();
    ModelCard {
        id: names.next().unwrap_or_else(|| reference.short_name()),
        aliases: names.collect(),
        root: config.reference.clone(),
        parent: None,
        max_model_len: config.limits.max_model_len.unwrap_or(0),
        created_s: unix_time_s(),
        chat: false,
        task: Task::Generate,
    }
}

/// The names under which these models will be served, for checks before anything is made.
pub fn served_names(models: &[ModelConfig]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for config in models {
        let card = provisional_card(config, &ModelRef::parse(&config.reference)?);
        names.push(card.id);
        names.extend(card.aliases);
    }
    Ok(names)
}

fn unix_time_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// As [`check_device`], for all replicas of a model. The simulated one takes no device.
fn check_devices(config: &ModelConfig, is_simulated: bool) -> Result<()> {
    let cards = Cards::of(&config.limits);
    if is_simulated {
        cards.check_whole("the simulated model")?;
    }
    if cards == Cards::ONE || is_simulated {
        return check_device(&config.device);
    }
    #[cfg(feature = "gpu")]
    if !gpu::ordinals(&config.device, cards)?.is_empty() {
        return Ok(());
    }
    check_device(&config.device)?;
    cards.check_one("a model on the CPU or through a pjrt plugin")
}

/// Never falls back in silence: who names a GPU or a plugin gets it or an error.
pub fn check_device(device: &DeviceChoice) -> Result<()> {
    match device {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(()),
        #[cfg(feature = "gpu")]
        DeviceChoice::Cuda(_) => gpu::devices(device, Cards::ONE).map(|_| ()),
        #[cfg(not(feature = "gpu"))]
        DeviceChoice::Cuda(index) => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "--device cuda:{index} is not possible: this program was built without the feature 'cuda'; use --device \
                 cpu"
            ),
        )),
        #[cfg(feature = "pjrt")]
        DeviceChoice::Pjrt(path) => pjrt::check(path),
        #[cfg(not(feature = "pjrt"))]
        DeviceChoice::Pjrt(path) => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "--device pjrt:{} is not possible: this program was built without the feature 'pjrt'; use --device cpu",
                path.display()
            ),
        )),
    }
}
