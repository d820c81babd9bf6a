//! From flags to a load: find the server and its model, make the requests, warm up, run, measure.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sconce_vocabulary::calendar::rfc3339;
use sconce_vocabulary::error::{Error, Result};
use serde_json::{Map, Value, json};

use crate::args::{DatasetName, LoadArgs, OutputArgs, ServerArgs};
use crate::dataset::{self, Counter, Dataset, Lengths, Synthetic};
use crate::http::Endpoint;
use crate::load::{self, ApiKind, Arrivals, Client, Live, Load, LoadOutcome, RequestShape, Turn};
use crate::metrics::{self, Run};
use crate::progress;

const PROMPTS_DEFAULT: u32 = 100;
const OUTPUT_TOKENS_DEFAULT: u32 = 128;
const PREFIX_TOKENS_DEFAULT: u32 = 512;
const WARMUPS_MAX: usize = 16;
const STREAMS_A_WORKER: usize = 250;
/// More threads than that read millions of tokens a second.
const WORKERS_MAX: usize = 8;

/// How fast requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// A second; `None` is a closed loop.
    pub rate: Option<f64>,
    /// Clients of a closed loop, or the most in flight of an open one.
    pub concurrency: Option<usize>,
}

impl Pace {
    /// As flags say it: without a rate there is one client, but for a log, which has its own times.
    pub fn of(rate: Option<f64>, concurrency: Option<u32>, dataset: DatasetName) -> Self {
        let is_closed = rate.is_none() && dataset != DatasetName::Replay;
        Self { rate, concurrency: concurrency.or(is_closed.then_some(1)).map(|count| count as usize) }
    }

    pub fn clients(count: usize) -> Self {
        Self { rate: None, concurrency: Some(count) }
    }

    pub fn rate(rate: f64) -> Self {
        Self { rate: Some(rate), concurrency: None }
    }
}

/// A server and the requests for it.
pub struct Prepared {
    pub url: String,
    pub endpoint: Endpoint,
    pub shape: RequestShape,
    dataset: Dataset,
    tokenizer: Option<PathBuf>,
    /// The conversations of the first run; those before them are for warming up.
    conversations: Arc<Vec<Vec<Turn>>>,
    warmups: Arc<Vec<Vec<Turn>>>,
    args: LoadArgs,
    output: OutputArgs,
}

/// `clients_max`: the most clients that any of the runs to come has.
pub fn prepare(
    url: &str,
    server: &ServerArgs,
    args: &LoadArgs,
    output: &OutputArgs,
    clients_max: usize,
) -> Result<Prepared> {
    let endpoint = Endpoint::resolve(url, &server.headers()?)?;
    let mut shape = server.shape(args.dataset)?;
    let warmups = args.warmup.map_or(clients_max.clamp(1, WARMUPS_MAX), |count| count as usize);
    let (model, mut dataset) = load::control(&endpoint, async |client| {
        let model = match shape.model.as_str() {
            "" => first_model(client).await?,
            named => named.to_owned(),
        };
        let shape = RequestShape { model: model.clone(), ..shape.clone() };
        let counter = Counter::choose(client, &shape, server.tokenizer.as_deref()).await?;
        Ok((model, make(args, &counter, warmups, 0).await?))
    })?;
    shape.model = model;
    // A log keeps all its requests: warming up repeats its first.
    let warm: Vec<Vec<Turn>> = match dataset.offsets_s {
        Some(_) => dataset.conversations.iter().take(warmups).cloned().collect(),
        None => dataset.conversations.drain(..warmups.min(dataset.conversations.len() - 1)).collect(),
    };
    Ok(Prepared {
        url: url.to_owned(),
        endpoint,
        shape,
        conversations: Arc::new(std::mem::take(&mut dataset.conversations)),
        warmups: Arc::new(warm),
        dataset,
        tokenizer: server.tokenizer.clone(),
        args: args.clone(),
        output: output.clone(),
    })
}

async fn first_model(client: &Client) -> Result<String> {
    let unreachable = |why: String| Error::invalid("--url", format!("--url: {why}; is the server running there?"));
    let (status, list) =
        client.json("GET", "/v1/models", None).await.map_err(|failure| unreachable(failure.message))?;
    let id = list["data"][0]["id"].as_str().filter(|_| status == 200);
    id.map(str::to_owned).ok_or_else(|| {
        Error::invalid("--model", format!("--model: /v1/models answered {status} without a model; name one"))
    })
}

/// `set`: which run they are for.
async fn make(args: &LoadArgs, counter: &Counter<'_>, warmups: usize, set: u64) -> Result<Dataset> {
    let count = args.num_prompts.unwrap_or(PROMPTS_DEFAULT) as usize + warmups;
    let path = || {
        let name = if args.dataset == DatasetName::Replay { "replay" } else { "sharegpt" };
        args.dataset_path.as_deref().ok_or_else(|| {
            Error::invalid("--dataset-path", format!("--dataset-path: the data set {name} needs a file"))
        })
    };
    match args.dataset {
        DatasetName::Sharegpt => dataset::sharegpt(path()?, count, args.output_len, counter, args.seed).await,
        DatasetName::Replay => {
            let count = args.num_prompts.map(|count| count as usize);
            let mut made = dataset::replay(path()?, args.replay_speed, count, counter, args.seed).await?;
            for turn in made.conversations.iter_mut().flatten() {
                turn.output_tokens = args.output_len.or(turn.output_tokens).or(Some(OUTPUT_TOKENS_DEFAULT));
            }
            Ok(made)
        }
        name => {
            let shared = name == DatasetName::SharedPrefix;
            let prefix = args.prefix_len.unwrap_or(if shared { PREFIX_TOKENS_DEFAULT } else { 0 });
            let length = |mean| Lengths { mean, range_ratio: args.range_ratio };
            let synthetic = Synthetic {
                count,
                input: length(args.input_len),
                output: length(args.output_len.unwrap_or(OUTPUT_TOKENS_DEFAULT)),
                prefix_tokens: prefix,
                prefixes: args.num_prefixes as usize,
                turns: if name == DatasetName::MultiTurn { args.turns } else { 1 },
                think_s: args.think_time,
                seed: args.seed,
                set,
            };
            synthetic.make(counter).await
        }
    }
}

impl Prepared {
    pub fn requests(&self) -> usize {
        self.conversations.iter().map(Vec::len).sum()
    }

    /// What to ask in one run. Made prompts are new ones each time, the same for every server: a second run of the first
    /// ones would find their beginnings in the server's prefix cache.
    fn conversations_of(&self, repeat: u64) -> Result<Arc<Vec<Vec<Turn>>>> {
        if repeat == 0 || matches!(self.args.dataset, DatasetName::Sharegpt | DatasetName::Replay) {
            return Ok(Arc::clone(&self.conversations));
        }
        let made = load::control(&self.endpoint, async |client| {
            let counter = Counter::choose(client, &self.shape, self.tokenizer.as_deref()).await?;
            make(&self.args, &counter, 0, repeat).await
        })?;
        // As many as in the first run, where warming up may have taken some of few.
        Ok(Arc::new(made.conversations.into_iter().take(self.conversations.len()).collect()))
    }

    fn arrivals(&self, pace: Pace, repeat: u64) -> Arrivals {
        if let Some(offsets_s) = &self.dataset.offsets_s {
            return Arrivals::Open { offsets_s: offsets_s.clone(), in_flight_max: pace.concurrency };
        }
        match pace.rate {
            Some(rate) => Arrivals::Open {
                // Each repeat has arrivals of its own, the same ones for every server.
                offsets_s: load::offsets(
                    self.conversations.len(),
                    rate,
                    self.args.burstiness,
                    self.args.seed.wrapping_add(repeat),
                ),
                in_flight_max: pace.concurrency,
            },
            None => Arrivals::Closed {
                concurrency: pace.concurrency.unwrap_or(1),
                ramp: Duration::from_secs_f64(self.args.ramp_up.min(1e9)),
            },
        }
    }

    fn load(&self, conversations: &Arc<Vec<Vec<Turn>>>, arrivals: Arrivals) -> Load {
        Load {
            endpoint: self.endpoint.clone(),
            shape: self.shape.clone(),
            conversations: Arc::clone(conversations),
            duration: self.args.duration.map(|seconds| Duration::from_secs_f64(seconds.min(1e9))),
            cycle: self.args.duration.is_some() && self.dataset.offsets_s.is_none(),
            keep_text: self.output.save_detailed,
            workers: self.workers(&arrivals),
            arrivals,
        }
    }

    /// As asked for, else one for some hundred streams, up to the machine's cores.
    fn workers(&self, arrivals: &Arrivals) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        let streams = match arrivals {
            Arrivals::Closed { concurrency, .. } => *concurrency,
            Arrivals::Open { offsets_s, in_flight_max } => in_flight_max.unwrap_or(offsets_s.len()),
        };
        self.args.workers.map_or(streams.div_ceil(STREAMS_A_WORKER).clamp(1, cores), |count| count as usize)
    }

    /// Requests that are not counted: caches, connections and clocks of processors come up. One that fails ends it all.
    pub fn warm_up(&self) -> Result<()> {
        if self.warmups.is_empty() {
            return Ok(());
        }
        let arrivals = Arrivals::Closed { concurrency: self.warmups.len().min(WARMUPS_MAX), ramp: Duration::ZERO };
        let load = Load { duration: None, cycle: false, ..self.load(&self.warmups, arrivals) };
        let outcome = load::run(load, &Arc::new(Live::default()))?;
        let failure = outcome.records.iter().find_map(|record| record.failure.as_ref());
        match failure {
            None => Ok(()),
            Some(failure) => {
                let hint = if failure.message.contains("ignore_eos") { "; try --no-ignore-eos" } else { "" };
                let why = format!("a request to warm up failed ({}): {}{hint}", failure.kind, failure.message);
                Err(Error::invalid("--url", why))
            }
        }
    }

    /// One run of the load. `repeat`: which one, from 0.
    pub fn run(&self, pace: Pace, repeat: u64, what: &str) -> Result<LoadOutcome> {
        let conversations = self.conversations_of(repeat)?;
        let live = Arc::new(Live::default());
        let load = self.load(&conversations, self.arrivals(pace, repeat));
        let total = if load.cycle { None } else { Some(self.requests() as u64) };
        let shown = (!self.output.no_progress).then(|| progress::show(Arc::clone(&live), total, what.to_owned()));
        let outcome = load::run(load, &live);
        live.stop.store(true, Ordering::Relaxed);
        if let Some(shown) = shown {
            // The display may fail; the load has not.
            let _ = shown.join();
        }
        outcome
    }

    /// The result of one or several runs, with what was asked for.
    pub fn result(&self, pace: Pace, outcomes: &[LoadOutcome]) -> Run {
        let mut map = Map::new();
        let rate = match (&self.dataset.offsets_s, pace.rate) {
            (Some(_), _) => json!("log"),
            (None, Some(rate)) if rate.is_finite() => json!(rate),
            _ => json!("inf"),
        };
        let burstiness = if self.args.burstiness.is_finite() { json!(self.args.burstiness) } else { json!("inf") };
        let backend = match self.shape.kind {
            ApiKind::Chat => "openai-chat",
            ApiKind::Completions => "openai",
        };
        let dataset = clap::ValueEnum::to_possible_value(&self.args.dataset);
        for (key, value) in [
            ("date", json!(now())),
            ("machine", json!(machine())),
            ("backend", json!(backend)),
            ("label", json!(self.output.label)),
            ("model_id", json!(self.shape.model)),
            ("tokenizer_id", Value::Null),
            ("base_url", json!(self.url)),
            ("num_prompts", json!(self.requests())),
            ("dataset", json!(dataset.map(|name| name.get_name().to_owned()))),
            ("request_rate", rate),
            ("burstiness", burstiness),
            ("max_concurrency", json!(pace.concurrency)),
            ("seed", json!(self.args.seed)),
            ("repeats", json!(outcomes.len())),
            ("notes", json!(self.dataset.notes)),
        ] {
            map.insert(key.to_owned(), value);
        }
        map.extend(metrics::measure(outcomes, &self.args.measure_options(self.output.save_detailed)));
        Run(map)
    }
}

/// The time of day, for the result.
fn now() -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Where the load generator ran, so that results are compared with those of the same machine only.
fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", name.unwrap_or(std::env::consts::ARCH))
}
