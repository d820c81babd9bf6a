//! The queue between requests and the collector, and the task behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

use crate::attempt::{AttemptRecord, Parent};
use crate::context::TraceContext;
use crate::metrics::Metrics;
use crate::record::{Ended, Place, SpanRecord, nanoseconds, resource, scope};
use crate::settings::Settings;

const WARNINGS_EVERY: Duration = Duration::from_secs(60);

/// What became of spans and of posts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Spans that the collector took.
    pub exported: u64,
    /// Requests and attempts that nobody heard of, as the queue was full.
    pub dropped: u64,
    /// Spans that were lost on the way.
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

pub(crate) enum Message {
    Ended(Box<SpanRecord>),
    Attempted(Box<AttemptRecord>),
    /// Send all that is there, then say so.
    Flush(oneshot::Sender<()>),
}

/// A handle on the task that sends.
#[derive(Clone)]
pub struct Exporter {
    messages: Sender<Message>,
    counters: Arc<Counters>,
    sampler: crate::Sampler,
    pub(crate) sends_traces: bool,
}

impl Exporter {
    /// Starts the task on the runtime that is there. `server` is what clients connect to.
    pub fn start(settings: Settings, server: Option<(String, u16)>) -> Result<Self, String> {
        let client = reqwest::Client::builder().timeout(settings.timeout).build();
        let client = client.map_err(|why| format!("the client for the collector cannot be made: {why}"))?;
        let (messages, queue) = channel(settings.queue_max);
        let counters = Arc::new(Counters::default());
        let (sampler, sends_traces) = (settings.sampler, settings.traces_url.is_some());
        let metrics = Metrics::new(nanoseconds(SystemTime::now()));
        let task = Task { settings, server, client, counters: Arc::clone(&counters), metrics, warned: None };
        tokio::spawn(task.run(queue));
        Ok(Self { messages, counters, sampler, sends_traces })
    }

    /// A request has come, with this `traceparent` if it had one.
    pub fn begin(&self, traceparent: Option<&str>) -> Span {
        let parent = traceparent.and_then(TraceContext::parse);
        Span {
            exporter: self.clone(),
            context: TraceContext::child(parent.as_ref(), self.sampler),
            parent_id: parent.map(|parent| parent.span_id),
            started: SystemTime::now(),
        }
    }

    /// Never waits: where the queue is full the record is dropped.
    pub(crate) fn send(&self, message: Message) {
        if self.messages.try_send(message).is_err() {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            exported: read(&self.counters.exported),
            dropped: read(&self.counters.dropped),
            failed: read(&self.counters.failed),
        }
    }

    /// Sends what is there, for at most so long.
    pub async fn flush(&self, patience: Duration) {
        let (done, is_done) = oneshot::channel();
        let flushed = async {
            if self.messages.send(Message::Flush(done)).await.is_ok() {
                let _ = is_done.await;
            }
        };
        // What did not make it is lost, as it would be if the process ended now.
        let _ = tokio::time::timeout(patience, flushed).await;
    }
}

/// A request under way.
pub struct Span {
    exporter: Exporter,
    context: TraceContext,
    parent_id: Option<u64>,
    started: SystemTime,
}

impl std::fmt::Debug for Span {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Span({})", self.context.header())
    }
}

impl Span {
    /// For those who are asked on its behalf. `operation` is the one that it ends with.
    pub fn parent(&self, operation: &'static str) -> Parent {
        Parent { exporter: self.exporter.clone(), context: self.context, operation }
    }

    /// Metrics count it in any case, the trace only if it is sampled. Never waits.
    pub fn end(self, ended: Ended) {
        let took_ns = (ended.duration_s * 1e9) as u64;
        let place = Place { context: self.context, parent_id: self.parent_id, started: self.started, took_ns };
        self.exporter.send(Message::Ended(Box::new(SpanRecord { place, ended })));
    }
}

struct Task {
    settings: Settings,
    server: Option<(String, u16)>,
    client: reqwest::Client,
    counters: Arc<Counters>,
    metrics: Metrics,
    warned: Option<Instant>,
}

impl Task {
    async fn run(mut self, mut queue: Receiver<Message>) {
        let (mut traces, mut metrics) = (ticks(self.settings.traces_every), ticks(self.settings.metrics_every));
        let mut spans = Vec::new();
        loop {
            tokio::select! {
                message = queue.recv() => match message {
                    None => break,
                    Some(Message::Ended(record)) => {
                        self.metrics.observe(&record.ended);
                        if record.place.context.is_sampled && self.settings.traces_url.is_some() {
                            spans.push(record.json(self.server.as_ref()));
                        }
                    }
                    Some(Message::Attempted(record)) => spans.push(record.json()),
                    Some(Message::Flush(done)) => {
                        self.send_spans(&mut spans).await;
                        self.send_metrics().await;
                        let _ = done.send(());
                    }
                },
                _ = traces.tick() => self.send_spans(&mut spans).await,
                _ = metrics.tick() => self.send_metrics().await,
            }
            if spans.len() >= self.settings.batch_max {
                self.send_spans(&mut spans).await;
            }
        }
        self.send_spans(&mut spans).await;
        self.send_metrics().await;
    }

    async fn send_spans(&mut self, spans: &mut Vec<Value>) {
        let Some(url) = self.settings.traces_url.clone().filter(|_| !spans.is_empty()) else { return };
        let count = spans.len() as u64;
        let scoped = json!([{"scope": scope(), "spans": std::mem::take(spans)}]);
        let body = json!({"resourceSpans": [{"resource": resource(&self.settings.resource), "scopeSpans": scoped}]});
        let went_well = self.post(&url, &body).await;
        let counter = if went_well { &self.counters.exported } else { &self.counters.failed };
        counter.fetch_add(count, Ordering::Relaxed);
    }

    async fn send_metrics(&mut self) {
        let Some(url) = self.settings.metrics_url.clone().filter(|_| !self.metrics.is_empty()) else { return };
        let metrics = self.metrics.json(nanoseconds(SystemTime::now()), self.server.as_ref());
        let scoped = json!([{"scope": scope(), "metrics": metrics}]);
        let body =
            json!({"resourceMetrics": [{"resource": resource(&self.settings.resource), "scopeMetrics": scoped}]});
        self.post(&url, &body).await;
    }

    /// Whether the collector took it. There is no second try: the next post is soon, and meanwhile the queue would grow.
    async fn post(&mut self, url: &str, body: &Value) -> bool {
        let mut request = self.client.post(url).json(body);
        for (name, value) in &self.settings.headers {
            request = request.header(name, value);
        }
        let why = match request.send().await {
            Ok(response) if response.status().is_success() => return true,
            Ok(response) => format!("it answered {}", response.status()),
            Err(why) => why.without_url().to_string(),
        };
        if self.warned.is_none_or(|at| at.elapsed() >= WARNINGS_EVERY) {
            self.warned = Some(Instant::now());
            tracing::warn!(%why, "the OpenTelemetry collector did not take what was sent; requests are not affected");
        }
        false
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}
