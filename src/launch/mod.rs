//! Assembly: from a checked configuration to a running pool (hub, models, engine, text and providers meet only here).

mod adapters;
mod draft;
mod embed;
mod model;
mod pool;
mod reload;
mod synthetic;
mod text;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use sconce_providers::HttpClient;

use crate::config::pool::PoolConfig;
use crate::config::speculation::Speculation;
use crate::config::{DeviceChoice, ModelConfig, check_limits};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{HubOptions, ModelRef, Progress};
use crate::pool::local::LocalMember;
use crate::pool::{Model, ModelCard, Pool, Shared, Task};
use crate::telemetry::Metrics;

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
        let parts = pool::Parts { client: &client, metrics: &metrics, planned: &planned, known: &[] };
        let table = pool::table(config, &parts)?;
        Ok(Self { pool: Arc::new(Pool::with(table, shared)), metrics, client, planned: Mutex::new(planned) })
    }

    /// Fetches and loads one model after the other. The first failure ends it and is also the member's state.
    pub async fn load(&self, progress: Arc<dyn Progress>) -> Result<Vec<LoadReport>> {
        let planned = self.planned().clone();
        let mut reports = Vec::with_capacity(planned.len());
        for planned in &planned {
            match load_one(planned, Arc::clone(&progress)).await {
                Ok(report) => {
                    reports.push(report);
                    self.pool.find_adapters();
                }
                Err(error) => {
                    planned.member.set_failed(error.message.clone());
                    return Err(error);
                }
            }
        }
        Ok(reports)
    }

    /// Stops every engine: what still runs is cancelled after `grace`.
    pub async fn stop(&self, grace: std::time::Duration) {
        let planned = self.planned().clone();
        for planned in planned {
            stop_one(planned.member, grace).await;
        }
    }

    fn planned(&self) -> MutexGuard<'_, Vec<Planned>> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    check_device(config.device)?;
    text::check_parsers(&config.parsers)?;
    let reference = ModelRef::parse(&config.reference)?;
    let draft = match &config.limits.speculation {
        Speculation::DraftModel(draft) => Some(ModelRef::parse(&draft.reference)?),
        Speculation::Off | Speculation::Ngram(_) => None,
    };
    let card = provisional_card(config, &reference);
    let member = LocalMember::loading(card.clone(), metrics.model(&card.id));
    let member = Arc::new(adapters::announced(member, &config.lora, &card));
    Ok(Planned { config: config.clone(), reference, draft, member })
}

async fn load_one(planned: &Planned, progress: Arc<dyn Progress>) -> Result<LoadReport> {
    let options = HubOptions::from_env()?;
    let files = crate::hub::fetch(&planned.reference, &options, progress.as_ref()).await?;
    let draft = match &planned.draft {
        Some(draft) => Some(crate::hub::fetch(draft, &options, progress.as_ref()).await?),
        None => None,
    };
    let card = planned.member.card().clone();
    let config = planned.config.clone();
    let loading = tokio::task::spawn_blocking(move || model::load(&config, &files, draft.as_ref(), card, progress));
    let (loaded, report) =
        loading.await.map_err(|panic| Error::internal(format!("loading the model failed: {panic}")))??;
    match loaded {
        model::Ready::Generating(loaded, loader) => {
            if let Some(loader) = loader {
                adapters::load(&planned.member, loader).await?;
            }
            planned.member.set_loaded(*loaded);
        }
        model::Ready::Embedding(embedding) => planned.member.set_embedding(*embedding),
    }
    Ok(report)
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

/// Never falls back in silence: who names a GPU gets one or an error.
fn check_device(device: DeviceChoice) -> Result<()> {
    match device {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(()),
        DeviceChoice::Cuda(index) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("--device cuda:{index} is not possible: this version has no CUDA engine yet; use --device cpu"),
        )),
    }
}
