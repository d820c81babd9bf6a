//! `sconce serve`: bind, load, answer, drain.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::flags::ModelFlags;
use super::output;
use super::reload::Reloader;
use super::resolve::resolve;
use crate::api::{self, ApiConfig, BatchLimits, KeyRing, Reload, ServeOptions};
use crate::config::orca::LoadReports;
use crate::config::{self, FilesConfig, ResponsesConfig, ServeConfig, StorePlace};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::progress;
use crate::launch::{self, Launch, LoadReport};
use crate::pool::{self, Pool, Task};
use crate::store::files::{FileLimits, FileStore};
use crate::store::{ResponseStore, Retention};
use crate::telemetry::otel::start_export;

/// What is not with the OpenTelemetry collector by then is lost.
const EXPORT_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Args, Debug, Clone, Default)]
pub struct ServeArgs {
    /// What to serve: a catalogue name (smollm2:135m), org/name, org/name@rev, org/name:file.gguf, a folder, a .gguf
    /// file, dummy:NAME or sim [default: smollm2:135m]
    #[arg(value_name = "MODEL")]
    pub(super) models: Vec<String>,
    /// Address to listen on; 0.0.0.0 for every interface [default: 127.0.0.1]
    #[arg(long)]
    pub(super) host: Option<String>,
    /// Port to listen on; 0 picks a free one [default: 8080]
    #[arg(long)]
    pub(super) port: Option<u16>,
    /// Configuration file (sconce.toml); flags win over it
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Names that clients use; the first is reported. Only with a single model
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    pub(super) served_model_name: Vec<String>,
    /// Key that clients must send as `Authorization: Bearer KEY`; may be given several times [default: none needed]
    #[arg(long, value_name = "KEY", env = crate::config::env::SCONCE_API_KEY.name, hide_env_values = true, value_delimiter = ',')]
    pub(super) api_key: Vec<String>,
    /// Where /v1/responses keeps its answers for previous_response_id: a file, or off [default: sconce/responses.db in
    /// $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, value_name = "PATH|off")]
    pub(super) responses_store: Option<String>,
    /// Days after which a stored conversation that was not gone on with is deleted [default: 30]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(super) responses_age_days: Option<u32>,
    /// Size of all stored responses, beyond which the oldest are deleted, e.g. 1GiB [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = config::parse_bytes)]
    pub(super) responses_max_bytes: Option<u64>,
    /// Where /v1/files and /v1/batches keep their files: a folder, or off [default: sconce/files in $XDG_DATA_HOME or
    /// ~/.local/share]
    #[arg(long, value_name = "FOLDER|off")]
    pub(super) files_dir: Option<String>,
    /// Largest file that may be uploaded, e.g. 512MiB [default: 512MiB]
    #[arg(long, value_name = "SIZE", value_parser = config::parse_bytes)]
    pub(super) file_max_bytes: Option<u64>,
    /// Size of all files, beyond which uploads are refused, e.g. 10GiB [default: 10GiB]
    #[arg(long, value_name = "SIZE", value_parser = config::parse_bytes)]
    pub(super) files_max_bytes: Option<u64>,
    /// Requests of batches are begun while fewer sequences than this run on their model, live ones included [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) batch_concurrency: Option<u32>,
    /// The page to chat at / and the reference at /docs: on or off [default: on]
    #[arg(long, value_name = "on|off", value_parser = config::parse_switch)]
    pub(super) web: Option<bool>,
    /// Load models when a request asks for them, not at the start
    #[arg(long)]
    pub(super) load_on_demand: bool,
    /// Models to load at the start all the same, by name
    #[arg(long, value_name = "MODEL", num_args = 1.., value_delimiter = ',')]
    pub(super) preload: Vec<String>,
    /// What all models may take together, e.g. 8GiB: weights, KV caches and steps. Where another is asked for, the one
    /// that was not used for the longest time is unloaded [default: what the memory holds]
    #[arg(long, value_name = "SIZE", value_parser = config::parse_bytes)]
    pub(super) models_memory: Option<u64>,
    /// Host memory that models on GPUs may take for sleeping, all together: one that makes room for another there keeps its
    /// weights in it and wakes far faster than it loads. What goes beyond is unloaded; with 0 all are [default: half of
    /// what is available at the start]
    #[arg(long, value_name = "SIZE", value_parser = config::parse_bytes)]
    pub(super) sleep_memory: Option<u64>,
    /// Seconds after which a model that nobody uses is unloaded; 0: never [default: 0]
    #[arg(long, value_name = "SECONDS")]
    pub(super) idle_unload: Option<u64>,
    /// Seconds after which an engine that does not come back from a step is stuck: /health fails, and requests are
    /// refused or go elsewhere; 0: never [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub(super) step_timeout: Option<u64>,
    /// Requests that may wait beyond the running ones before clients get 429 [default: 256]
    #[arg(long, value_name = "N")]
    pub(super) max_queue: Option<u32>,
    /// Load reports (ORCA) on answers, for balancers such as Envoy: asked (for requests with
    /// endpoint-load-metrics-format), always or off [default: asked]
    #[arg(long, value_name = "WHEN")]
    pub(super) orca_load_report: Option<LoadReports>,
    /// Threads for connections, beside those that compute [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) http_threads: Option<u16>,
    /// Seconds after SIGTERM during which requests are still taken while /ready says 503, so that balancers notice
    /// before connections are refused [default: 0]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=3600))]
    pub(super) drain_delay: Option<u64>,
    /// Seconds that running requests get to finish after SIGTERM [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub(super) shutdown_timeout: Option<u64>,
    #[command(flatten)]
    pub(super) model: ModelFlags,
}

impl ServeArgs {
    /// As if only this flag were given.
    pub fn with_config(path: &Path) -> Self {
        Self { config: Some(path.to_owned()), ..Self::default() }
    }

    /// As if only models, their flags and a file were given.
    pub fn with_models(models: Vec<String>, config: Option<PathBuf>, model: ModelFlags) -> Self {
        Self { models, config, model, ..Self::default() }
    }
}

pub async fn serve(args: ServeArgs) -> Result<()> {
    let started = Instant::now();
    args.model.apply_threads();
    let config = resolve(&args)?;
    let shared = launch::shared(&config.pool).await?;
    let launch = Arc::new(Launch::plan_pool(&config.models, &config.pool, shared)?);
    let listener = bind(&config).await?;
    let address = listener.local_addr().map_err(|why| Error::internal(format!("no local address: {why}")))?;
    if let Some(exporter) = start_export(reachable(address))? {
        launch.metrics.export_to(exporter);
    }
    let (stop, stopping) = watch::channel(false);
    listen_for_signals(stop.clone())?;

    let (reload, wishes) = Reload::new();
    let api_config = ApiConfig {
        api_keys: config.api_keys.clone(),
        keys: config.keys.clone(),
        responses: response_store(&config.responses).await?,
        files: file_store(&config.files).await?,
        batches: BatchLimits { concurrency: config.files.batch_concurrency, ..BatchLimits::default() },
        web: config.web,
        load_reports: config.load_reports,
        listings: config.listings.clone(),
        reload: args.config.is_some().then_some(reload),
        ..ApiConfig::default()
    };
    let keys = KeyRing::new(&config.api_keys, &config.keys);
    let (pool, metrics) = (Arc::clone(&launch.pool), Arc::clone(&launch.metrics));
    let router = api::router_with_keys(pool, metrics, api_config, keys.clone());
    let threads = config.http_threads.map_or(ServeOptions::default().threads, usize::from);
    let options = ServeOptions { drain_timeout: config.shutdown_timeout, threads, ..ServeOptions::default() };
    tokio::spawn(pool::keep(Arc::downgrade(&launch.pool)));
    let drain = left(stopping.clone(), Arc::clone(&launch.pool), config.drain_delay);
    let server = tokio::spawn(api::serve(listener, router, Arc::clone(&launch.pool), drain, options));
    tokio::select! {
        loaded = launch.load(progress::for_stderr().into()) => {
            banner(&config, address, &loaded?, started.elapsed());
            let reloader = Reloader { args, launch: Arc::clone(&launch), keys, current: config };
            tokio::spawn(reloader.run(wishes));
        }
        () = stopped(stopping) => {}
    }
    let served = server.await.map_err(|panic| Error::internal(format!("the HTTP server failed: {panic}")))?;
    launch.stop(Duration::ZERO).await;
    if let Some(ledger) = &launch.pool.shared().ledger {
        // What could not be written was told in the log.
        let _ = ledger.flush().await;
    }
    if let Some(exporter) = launch.metrics.exporter() {
        exporter.flush(EXPORT_PATIENCE).await;
    }
    served
}

/// A store that the operator named is opened now; the default one when it is needed.
async fn response_store(config: &ResponsesConfig) -> Result<Option<ResponseStore>> {
    const DAY_S: u64 = 24 * 60 * 60;
    let retention = Retention { age_s: u64::from(config.age_days) * DAY_S, bytes_max: config.bytes_max };
    let start = |path: &Path| ResponseStore::start(path, retention);
    match &config.store {
        StorePlace::Off => Ok(None),
        StorePlace::Default(path) => start(path).map(Some),
        StorePlace::Named(path) => {
            let store = start(path)?;
            store.check().await?;
            Ok(Some(store))
        }
    }
}

/// As with the responses: a folder that the operator named must be good.
async fn file_store(config: &FilesConfig) -> Result<Option<FileStore>> {
    let limits = FileLimits { file_bytes_max: config.file_bytes_max, total_bytes_max: config.total_bytes_max };
    match &config.folder {
        StorePlace::Off => Ok(None),
        StorePlace::Default(folder) => FileStore::start(folder, limits).map(Some),
        StorePlace::Named(folder) => {
            let store = FileStore::start(folder, limits)?;
            store.check().await?;
            Ok(Some(store))
        }
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Told to stop, and balancers have had the time to notice.
async fn left(stopping: watch::Receiver<bool>, pool: Arc<Pool>, delay: Duration) {
    stopped(stopping).await;
    // Nobody sends anything to a server that was not ready yet.
    if !delay.is_zero() && pool.readiness().ready {
        pool.leave();
        tracing::info!(delay_s = delay.as_secs(), "no longer ready; requests are still taken for a while");
        tokio::time::sleep(delay).await;
    }
}

/// The first SIGTERM or Ctrl-C drains; the second ends the process at once.
fn listen_for_signals(stop: watch::Sender<bool>) -> Result<()> {
    let broken = |why: std::io::Error| Error::internal(format!("cannot listen for signals: {why}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(broken)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(broken)?;
    tokio::spawn(async move {
        let mut signals = 0;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            signals += 1;
            if signals > 1 {
                std::process::exit(130);
            }
            tracing::info!("stopping: finishing running requests; send the signal again to stop at once");
            stop.send_replace(true);
        }
    });
    Ok(())
}

/// Connections that may wait to be accepted; the system caps it (`net.core.somaxconn`). A thousand clients may come at
/// once, and a connection that finds the queue full is reset instead of being told 429.
const ACCEPT_QUEUE_CONNECTIONS: u32 = 65_535;

async fn bind(config: &ServeConfig) -> Result<TcpListener> {
    listen(config).await.map_err(|why| {
        let hint = match why.kind() {
            std::io::ErrorKind::AddrInUse => "another program listens there; choose another --port or stop it",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; choose a higher --port",
            _ => "check --host and --port",
        };
        Error::new(ErrorKind::Unavailable, format!("cannot listen on {}:{}: {why}; {hint}", config.host, config.port))
    })
}

async fn listen(config: &ServeConfig) -> std::io::Result<TcpListener> {
    let mut last = std::io::Error::other("the host name has no address");
    for address in tokio::net::lookup_host((config.host.as_str(), config.port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restarted server may take its port back while old connections are still winding down.
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(ACCEPT_QUEUE_CONNECTIONS)) {
            Ok(listener) => return Ok(listener),
            Err(why) => last = why,
        }
    }
    Err(last)
}

fn banner(config: &ServeConfig, address: SocketAddr, reports: &[LoadReport], elapsed: Duration) {
    let mut text = String::new();
    for report in reports {
        text += &format!("\n{}  {}\n", report.id, report.what);
        text += &format!("  device   {}\n", report.device);
        for choice in &report.choices {
            text += &format!("  chosen   {choice}\n");
        }
        if let Some(predicted) = &report.predicted {
            text += &format!("  expect   {predicted}\n");
        }
        text += &format!("  loaded   in {:.2} s\n", report.load_time.as_secs_f64());
    }
    for name in asleep(config) {
        text += &format!("\n{name}  is loaded when a request asks for it\n");
    }
    if let StorePlace::Default(path) | StorePlace::Named(path) = &config.responses.store {
        text += &format!("\n/v1/responses keeps answers in {} (--responses-store off: nowhere)\n", path.display());
    }
    if let StorePlace::Default(path) | StorePlace::Named(path) = &config.files.folder {
        text += &format!("/v1/files and /v1/batches keep files in {} (--files-dir off: nowhere)\n", path.display());
    }
    let url = format!("http://{}", reachable(address));
    if config.web {
        text += &format!("\n{url} is a page to chat with it, {url}/docs the reference (--web off: neither)\n");
    }
    let key = if config.api_keys.is_empty() && config.keys.is_empty() {
        ""
    } else {
        " -H \"Authorization: Bearer $SCONCE_API_KEY\""
    };
    text += &format!(
        "\nready on {url} after {:.2} s (OpenAI and Anthropic APIs under {url}/v1). Try:\n\n",
        elapsed.as_secs_f64()
    );
    let (path, body) = example(config, reports);
    text += &format!("  curl {url}{path}{key} -H 'Content-Type: application/json' \\\n    -d '{body}'\n");
    // The server serves, whether or not anyone reads this.
    let _ = output::print(&text);
}

/// The names of the models that are loaded on demand.
fn asleep(config: &ServeConfig) -> Vec<String> {
    let asleep = config.models.iter().filter(|model| model.loading.on_demand);
    // The names were checked when the pool was made.
    asleep.filter_map(|model| launch::served_names(std::slice::from_ref(model)).ok()?.into_iter().next()).collect()
}

/// A request that the first model can answer: its path and its body.
fn example(config: &ServeConfig, reports: &[LoadReport]) -> (&'static str, String) {
    let Some(LoadReport { id, task, .. }) = reports.first() else {
        let Some(id) = asleep(config).into_iter().next() else { return ("/v1/models", String::new()) };
        return ("/v1/completions", format!(r#"{{"model": "{id}", "prompt": "The sky is blue because"}}"#));
    };
    match task {
        Task::Generate => (
            "/v1/chat/completions",
            format!(r#"{{"model": "{id}", "messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}"#),
        ),
        Task::Embed { .. } => (
            "/v1/embeddings",
            format!(r#"{{"model": "{id}", "input": ["Why is the sky blue?", "Rayleigh scattering"]}}"#),
        ),
        Task::Score => (
            "/v1/rerank",
            format!(
                r#"{{"model": "{id}", "query": "Why is the sky blue?", "documents": ["Rayleigh scattering", "Paris"]}}"#
            ),
        ),
    }
}

/// An address that a client on this machine can use.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() { SocketAddr::new([127, 0, 0, 1].into(), address.port()) } else { address }
}
