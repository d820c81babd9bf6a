//! Metric names and their handles: what vLLM's dashboards and routers already read, under vLLM's names.
//!
//! Handles are registered once a model and shared; observing is atomic adds, no lock. Figures that the engine counts
//! itself are not duplicated here: they are written from its snapshot when `/metrics` is read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

use sconce_otel::Exporter;

use super::batches::BatchMetrics;
use super::exposition::Exposition;
use super::lifecycle;
use super::members::{self, MemberFamilies, MemberMetrics};
use super::process;
use super::workers::{self, NeuronFamilies};
use crate::pool::Pool;

/// Bucket bounds as vLLM declares them, so that existing dashboards draw the same lines.
const TIME_TO_FIRST_TOKEN_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS_S: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const REQUEST_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// vLLM ends its 1-2-5 series at the model's context; one fixed series lets models share a metric.
const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5];
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// Why a request ended, as `finished_reason` of `vllm:request_success_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishLabel {
    Stop,
    Length,
    /// Cancelled by the client or by shutdown.
    Abort,
    Error,
}

impl FinishLabel {
    const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// What one finished request took, known at its end.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RequestTimes {
    /// From arrival until its first step.
    pub queue_s: f64,
    /// From its first step until its first token.
    pub prefill_s: f64,
    /// From its first token until its last.
    pub decode_s: f64,
    /// From arrival until the last event.
    pub e2e_s: f64,
    pub prompt_tokens: u32,
    /// Over all choices.
    pub generation_tokens: u32,
    /// Of the longest choice; 0 where it is not known, which counts as the mean over the choices.
    pub generation_tokens_longest: u32,
    /// The request's own limit, when it gave one.
    pub max_tokens: Option<u32>,
    pub n: u32,
}

/// Every metric of the process.
pub struct Metrics {
    registry: Registry,
    families: Families,
    http_requests: IntCounterVec,
    batches: BatchMetrics,
    members: MemberFamilies,
    neuron: NeuronFamilies,
    // Taken once a model at start-up and once a scrape, never while serving tokens.
    models: Mutex<BTreeMap<String, Arc<ModelMetrics>>>,
    exporter: OnceLock<Exporter>,
}

struct Families {
    finished: IntCounterVec,
    time_to_first_token: HistogramVec,
    between_tokens: HistogramVec,
    time_per_output_token: HistogramVec,
    e2e: HistogramVec,
    queue: HistogramVec,
    inference: HistogramVec,
    prefill: HistogramVec,
    decode: HistogramVec,
    prompt_tokens: HistogramVec,
    generation_tokens: HistogramVec,
    generation_tokens_longest: HistogramVec,
    params_n: HistogramVec,
    params_max_tokens: HistogramVec,
}

/// The handles of one model. Cheap to share, free of locks.
pub struct ModelMetrics {
    finished: [IntCounter; 4],
    time_to_first_token: Histogram,
    between_tokens: Histogram,
    time_per_output_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    generation_tokens_longest: Histogram,
    params_n: Histogram,
    params_max_tokens: Histogram,
}

/// The labels every engine metric carries; one engine a model, so `engine` is always "0".
const LABELS: &[&str] = &["model_name", "engine"];
const ENGINE: &str = "0";

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let families = Families::register(&registry);
        let http_requests = counters(
            &registry,
            "sconce_http_requests_total",
            "HTTP requests answered, by route and status",
            &["endpoint", "status"],
        );
        let batches = BatchMetrics::register(&registry);
        let members = MemberFamilies::register(&registry);
        let neuron = NeuronFamilies::register(&registry);
        Self {
            registry,
            families,
            http_requests,
            batches,
            members,
            neuron,
            models: Mutex::default(),
            exporter: OnceLock::new(),
        }
    }

    /// The handles for one model, made on first use; `name` is the id of its model card.
    pub fn model(&self, name: &str) -> Arc<ModelMetrics> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = models.get(name) {
            return Arc::clone(known);
        }
        let made = Arc::new(self.families.handles(name));
        models.insert(name.to_owned(), Arc::clone(&made));
        made
    }

    /// The handles of one member of the pool, made on first use.
    pub fn member(&self, name: &str) -> Arc<MemberMetrics> {
        self.members.member(name)
    }

    /// A report of neuron-monitor.
    pub fn neuron(&self, report: &sconce_worker::neuron::Report) {
        self.neuron.report(report);
    }

    /// From now on requests are exported as well. A second exporter is not used.
    pub fn export_to(&self, exporter: Exporter) {
        let _first = self.exporter.set(exporter);
    }

    pub fn exporter(&self) -> Option<&Exporter> {
        self.exporter.get()
    }

    pub fn batches(&self) -> &BatchMetrics {
        &self.batches
    }

    /// Counts one answered HTTP request. `endpoint` is the route's pattern, never a client's own path.
    pub fn http_request(&self, endpoint: &str, status: u16) {
        let mut digits = [0_u8; 5];
        self.http_requests.with_label_values(&[endpoint, decimal(status, &mut digits)]).inc();
    }

    /// The whole `/metrics` page in Prometheus' text format.
    pub fn render(&self, pool: &Pool) -> String {
        let mut page = Exposition::default();
        let engines: Vec<_> =
            pool.local_members().iter().map(|member| (member.card().id.clone(), member.snapshot())).collect();
        page.engines(&engines);
        page.gauge("sconce_requests_live", "places held by running and waiting requests", f64::from(pool.live()));
        let ready = pool.readiness().ready;
        page.gauge("sconce_ready", "1 while every model can serve", if ready { 1.0 } else { 0.0 });
        members::write(&mut page, pool);
        workers::write(&mut page, pool);
        lifecycle::write(&mut page, pool);
        process::write(&mut page);
        if let Some(exporter) = self.exporter() {
            let counts = exporter.counts();
            for (name, help, count) in [
                ("sconce_otel_spans_exported_total", "spans that the collector took", counts.exported),
                ("sconce_otel_spans_dropped_total", "requests not exported, as the queue was full", counts.dropped),
                ("sconce_otel_spans_failed_total", "spans that the collector did not take", counts.failed),
            ] {
                page.counter(name, help, count as f64);
            }
        }
        let mut registered = Vec::with_capacity(16 * 1024);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut registered) {
            tracing::error!(%error, "the registered metrics could not be written");
        }
        let mut page = page.into_text();
        page.push_str(&String::from_utf8_lossy(&registered));
        page
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelMetrics {
    /// Seconds from arrival until the first token of the answer.
    pub fn time_to_first_token(&self, seconds: f64) {
        self.time_to_first_token.observe(seconds);
    }

    /// Seconds between two tokens of one choice.
    pub fn inter_token(&self, seconds: f64) {
        self.between_tokens.observe(seconds);
    }

    /// A request has ended. Times are observed only for requests that were answered, as vLLM does.
    pub fn finished(&self, finish: FinishLabel, times: RequestTimes) {
        self.finished[finish as usize].inc();
        if matches!(finish, FinishLabel::Abort | FinishLabel::Error) {
            return;
        }
        self.e2e.observe(times.e2e_s);
        self.queue.observe(times.queue_s);
        self.prefill.observe(times.prefill_s);
        self.decode.observe(times.decode_s);
        self.inference.observe(times.prefill_s + times.decode_s);
        self.prompt_tokens.observe(f64::from(times.prompt_tokens));
        self.generation_tokens.observe(f64::from(times.generation_tokens));
        let longest = match times.generation_tokens_longest {
            0 => times.generation_tokens.div_ceil(times.n.max(1)),
            known => known,
        };
        self.generation_tokens_longest.observe(f64::from(longest));
        if longest > 1 {
            self.time_per_output_token.observe(times.decode_s / f64::from(longest - 1));
        }
        self.params_n.observe(f64::from(times.n));
        if let Some(max_tokens) = times.max_tokens {
            self.params_max_tokens.observe(f64::from(max_tokens));
        }
    }
}

impl Families {
    fn register(registry: &Registry) -> Self {
        let histogram = |name: &str, help: &str, buckets: &[f64]| histograms(registry, name, help, buckets);
        Self {
            finished: counters(
                registry,
                "vllm:request_success_total",
                "requests that ended, by reason",
                &["model_name", "engine", "finished_reason"],
            ),
            time_to_first_token: histogram(
                "vllm:time_to_first_token_seconds",
                "time from arrival to the first token",
                TIME_TO_FIRST_TOKEN_S,
            ),
            between_tokens: histogram(
                "vllm:inter_token_latency_seconds",
                "time between two tokens of one choice",
                BETWEEN_TOKENS_S,
            ),
            time_per_output_token: histogram(
                "vllm:request_time_per_output_token_seconds",
                "mean time a token after the first, by request",
                BETWEEN_TOKENS_S,
            ),
            e2e: histogram("vllm:e2e_request_latency_seconds", "time from arrival to the last event", REQUEST_S),
            queue: histogram("vllm:request_queue_time_seconds", "time before the first step", REQUEST_S),
            inference: histogram(
                "vllm:request_inference_time_seconds",
                "time from the first step to the end",
                REQUEST_S,
            ),
            prefill: histogram(
                "vllm:request_prefill_time_seconds",
                "time from the first step to the first token",
                REQUEST_S,
            ),
            decode: histogram("vllm:request_decode_time_seconds", "time from the first token to the last", REQUEST_S),
            prompt_tokens: histogram("vllm:request_prompt_tokens", "tokens of the prompt, by request", TOKENS),
            generation_tokens: histogram("vllm:request_generation_tokens", "tokens generated, by request", TOKENS),
            generation_tokens_longest: histogram(
                "vllm:request_max_num_generation_tokens",
                "tokens of the longest choice, by request",
                TOKENS,
            ),
            params_n: histogram("vllm:request_params_n", "the n parameter, by request", CHOICES),
            params_max_tokens: histogram(
                "vllm:request_params_max_tokens",
                "the max_tokens parameter, by request",
                TOKENS,
            ),
        }
    }

    fn handles(&self, model: &str) -> ModelMetrics {
        let of = |family: &HistogramVec| family.with_label_values(&[model, ENGINE]);
        ModelMetrics {
            finished: FinishLabel::ALL.map(|finish| self.finished.with_label_values(&[model, ENGINE, finish.as_str()])),
            time_to_first_token: of(&self.time_to_first_token),
            between_tokens: of(&self.between_tokens),
            time_per_output_token: of(&self.time_per_output_token),
            e2e: of(&self.e2e),
            queue: of(&self.queue),
            inference: of(&self.inference),
            prefill: of(&self.prefill),
            decode: of(&self.decode),
            prompt_tokens: of(&self.prompt_tokens),
            generation_tokens: of(&self.generation_tokens),
            generation_tokens_longest: of(&self.generation_tokens_longest),
            params_n: of(&self.params_n),
            params_max_tokens: of(&self.params_max_tokens),
        }
    }
}

pub(super) fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    let family = IntCounterVec::new(Opts::new(name, help), labels).expect("the name and labels are valid constants");
    registry.register(Box::new(family.clone())).expect("each name is registered once");
    family
}

fn histograms(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    let family = HistogramVec::new(options, LABELS).expect("the name, labels and buckets are valid constants");
    registry.register(Box::new(family.clone())).expect("each name is registered once");
    family
}

/// Writes a status without allocating.
fn decimal(mut value: u16, digits: &mut [u8; 5]) -> &str {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    std::str::from_utf8(&digits[start..]).expect("ASCII digits are UTF-8")
}
