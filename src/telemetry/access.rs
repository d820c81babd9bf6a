//! One span and one log line a request.
//!
//! The line is written when the answer's last byte was handed over or when the request was dropped, whichever comes
//! first, and exactly once: [`AccessLine`] writes it on drop.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::Span;

use super::otel::Tracing;
use crate::request::Usage;

/// Status logged when the client went away before an answer was begun (as nginx does).
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// What is known of a request so far. Handlers fill it in; the middleware that made it logs it.
#[derive(Debug, Default)]
struct Details {
    model: String,
    tenant: String,
    finish: Option<&'static str>,
    usage: Usage,
    time_to_first_token_ms: Option<u64>,
}

/// A shared handle on a request's details.
#[derive(Debug, Clone)]
pub struct RequestLog {
    started: Instant,
    // Taken a handful of times a request, never a token.
    details: Arc<Mutex<Details>>,
    /// Tokens of prompt and answer so far, while it runs.
    running_tokens: Arc<AtomicU32>,
}

impl RequestLog {
    pub fn start() -> Self {
        Self { started: Instant::now(), details: Arc::default(), running_tokens: Arc::default() }
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn model(&self, model: &str) {
        self.with(|details| model.clone_into(&mut details.model));
    }

    pub fn tenant(&self, tenant: &str) {
        self.with(|details| tenant.clone_into(&mut details.tenant));
    }

    /// The first text of the answer exists.
    pub fn first_token(&self) {
        let elapsed_ms = milliseconds(self.started);
        self.with(|details| details.time_to_first_token_ms = Some(elapsed_ms));
    }

    /// How the answer ended: `done`, or the word for an error.
    pub fn finish(&self, finish: &'static str, usage: Usage) {
        self.with(|details| {
            details.finish = Some(finish);
            details.usage = usage;
        });
    }

    /// What the request took so far, before its end is known.
    pub fn took(&self, usage: Usage) {
        self.with(|details| details.usage = usage);
    }

    /// Tokens of prompt and answer so far; only an atomic store.
    pub fn running(&self, usage: Usage) {
        let tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens);
        self.running_tokens.store(tokens, Ordering::Relaxed);
    }

    pub fn running_tokens(&self) -> u32 {
        self.running_tokens.load(Ordering::Relaxed)
    }

    pub fn usage(&self) -> Usage {
        self.with(|details| details.usage)
    }

    fn with<T>(&self, change: impl FnOnce(&mut Details) -> T) -> T {
        change(&mut self.details.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Writes the access line when dropped.
#[derive(Debug)]
pub struct AccessLine {
    /// Ours, the unique part of every name this request has.
    id: String,
    /// The client's own, when it sent one.
    client_id: Option<String>,
    method: String,
    endpoint: String,
    /// Set once the answer's head was sent.
    status: Option<u16>,
    /// The body was sent to its end.
    complete: bool,
    log: RequestLog,
    span: Span,
    /// Where traces are exported.
    tracing: Option<Tracing>,
}

impl AccessLine {
    pub fn new(id: String, method: &str, endpoint: &str, log: RequestLog) -> Self {
        let span = tracing::info_span!("request", id, endpoint);
        Self {
            id,
            client_id: None,
            method: method.to_owned(),
            endpoint: endpoint.to_owned(),
            status: None,
            complete: false,
            log,
            span,
            tracing: None,
        }
    }

    /// The request becomes a span of a trace, too.
    #[must_use]
    pub fn with_tracing(mut self, tracing: Option<Tracing>) -> Self {
        self.tracing = tracing;
        self
    }

    #[must_use]
    pub fn with_client_id(mut self, client_id: Option<&str>) -> Self {
        self.client_id = client_id.map(str::to_owned);
        self
    }

    /// The span under which everything about this request is logged.
    pub fn span(&self) -> &Span {
        &self.span
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn answered(&mut self, status: u16) {
        self.status = Some(status);
    }

    pub fn complete(&mut self) {
        self.complete = true;
    }
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        let status = self.status.unwrap_or(CLIENT_CLOSED_REQUEST);
        let total_ms = milliseconds(self.log.started);
        self.log.with(|details| {
            let finish = details.finish.unwrap_or(match (self.complete, status) {
                (true, 400..) => "error",
                (true, _) => "done",
                (false, _) => "cancelled",
            });
            if let Some(tracing) = self.tracing.take().filter(|_| !details.model.is_empty()) {
                let about = (self.id.as_str(), self.endpoint.as_str(), details.model.as_str());
                let first_token_s = details.time_to_first_token_ms.map(|first_ms| first_ms as f64 / 1e3);
                tracing.end(about, (status, finish), details.usage, (self.log.started, first_token_s));
            }
            let not_yet_ready = self.endpoint == "/ready" && status == 503;
            if details.model.is_empty() && (status < 400 || not_yet_ready) {
                // Probes and scrapes: too many and too dull for the default level.
                tracing::debug!(
                    target: "sconce::access",
                    id = %self.id, client_id = self.client_id.as_deref(), method = %self.method,
                    endpoint = %self.endpoint, status, total_ms, finish, "request"
                );
                return;
            }
            tracing::info!(
                target: "sconce::access",
                id = %self.id, client_id = self.client_id.as_deref(), method = %self.method, endpoint = %self.endpoint,
                model = %details.model, tenant = %details.tenant, status, prompt_tokens = details.usage.prompt_tokens,
                cached_tokens = details.usage.cached_tokens, completion_tokens = details.usage.completion_tokens,
                ttft_ms = details.time_to_first_token_ms, total_ms, finish, "request"
            );
        });
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Collects what is logged on this thread.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic while writing").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(run: impl FnOnce()) -> Vec<serde_json::Value> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, run);
        let bytes = lines.0.lock().expect("no panic while writing").clone();
        let text = String::from_utf8(bytes).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    fn line(log: &RequestLog) -> AccessLine {
        AccessLine::new("0a".into(), "POST", "/v1/completions", log.clone()).with_client_id(Some("mine"))
    }

    #[test]
    fn a_finished_request_is_one_line_with_its_figures() {
        let lines = logged(|| {
            let log = RequestLog::start();
            let mut line = line(&log);
            log.model("m");
            log.tenant("key-1");
            log.first_token();
            log.finish(
                "length",
                Usage {
                    prompt_tokens: 3,
                    completion_tokens: 2,
                    cached_tokens: 1,
                    reasoning_tokens: 0,
                    ..Usage::default()
                },
            );
            line.answered(200);
            line.complete();
        });
        assert_eq!(lines.len(), 1);
        for (field, value) in [
            ("id", "0a".into()),
            ("client_id", "mine".into()),
            ("endpoint", "/v1/completions".into()),
            ("model", "m".into()),
            ("tenant", "key-1".into()),
            ("status", 200.into()),
            ("prompt_tokens", 3.into()),
            ("cached_tokens", 1.into()),
            ("completion_tokens", serde_json::Value::from(2)),
            ("finish", "length".into()),
        ] {
            assert_eq!(lines[0][field], value, "{field}");
        }
        assert!(lines[0]["ttft_ms"].is_u64() && lines[0]["total_ms"].is_u64());
    }

    #[test]
    fn a_dropped_request_is_one_line_too() {
        for (status, expected) in [(None, 499), (Some(200), 200)] {
            let lines = logged(|| {
                let log = RequestLog::start();
                log.model("m");
                let mut line = line(&log);
                if let Some(status) = status {
                    line.answered(status);
                }
            });
            assert_eq!(lines.len(), 1);
            assert_eq!((&lines[0]["status"], &lines[0]["finish"]), (&expected.into(), &"cancelled".into()));
        }
    }

    #[test]
    fn probes_are_silent_and_refusals_are_not() {
        let cases = [
            ("/health", 200, 0),
            ("/ready", 503, 0),
            ("/ready", 500, 1),
            ("/v1/models", 401, 1),
            ("/v1/models", 503, 1),
        ];
        for (endpoint, status, count) in cases {
            let lines = logged(|| {
                let mut line = AccessLine::new("0a".into(), "GET", endpoint, RequestLog::start());
                line.answered(status);
                line.complete();
            });
            assert_eq!(lines.len(), count, "{endpoint} {status}");
        }
    }
}
