//! Load reports (ORCA) in the heads of answers: what balancers weigh several servers by.
//!
//! The form is the one that Envoy reads, which is not quite the one that vLLM sends: a prefix names the encoding, text
//! parts names and values with colons, and the weight is requests a second over utilisation, so that both must be there
//! and above zero. A request that is being answered counts, so they always are.

mod rate;
mod report;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use crate::config::orca::LoadReports;
use crate::pool::Pool;

use rate::AnswerRate;
use report::{Encoding, Report};

/// How a client asks, and in which encoding.
pub(super) const ASKS: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
const REPORTS: HeaderName = HeaderName::from_static("endpoint-load-metrics");

pub(super) struct Reporter {
    when: LoadReports,
    pool: Arc<Pool>,
    started: Instant,
    /// Somebody has asked: before, answers need not be counted.
    is_asked: AtomicBool,
    // Taken once an answer.
    rate: Mutex<AnswerRate>,
}

impl Reporter {
    pub fn new(when: LoadReports, pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self { when, pool, started: Instant::now(), is_asked: AtomicBool::new(false), rate: Mutex::default() })
    }

    /// How a report is wanted, if one is. An encoding that is not known is not guessed at.
    fn encoding(&self, headers: &HeaderMap) -> Option<Encoding> {
        let asked = headers.get(ASKS).map(|value| value.to_str().ok().and_then(Encoding::named));
        match (self.when, asked) {
            (LoadReports::Off, _) | (LoadReports::Asked, None) => None,
            (LoadReports::Always, None) => Some(Encoding::Json),
            (_, Some(encoding)) => encoding,
        }
    }

    /// Whether this answer counts. A balancer asks with every request; where none ever asked there is nobody to tell.
    fn counts(&self, encoding: Option<Encoding>) -> bool {
        match self.when {
            LoadReports::Off => false,
            LoadReports::Always => true,
            LoadReports::Asked if encoding.is_some() => {
                self.is_asked.store(true, Ordering::Relaxed);
                true
            }
            LoadReports::Asked => self.is_asked.load(Ordering::Relaxed),
        }
    }

    fn report(&self, is_failure: bool) -> Report {
        let now_s = self.started.elapsed().as_secs_f64();
        let load = self.pool.load();
        // The request that is answered counts, although it may have given its place back: a weight cannot be made of none.
        let utilization = load.utilization.max(load.share_of_one);
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        Report { load, answers: rate.count(now_s, is_failure, utilization) }
    }
}

/// Adds a report to the answer where one is wanted. Other answers are counted as well: the next report tells their rate.
pub(super) async fn report(State(reporter): State<Arc<Reporter>>, request: Request, next: Next) -> Response {
    let encoding = reporter.encoding(request.headers());
    if !reporter.counts(encoding) {
        return next.run(request).await;
    }
    let mut response = next.run(request).await;
    let report = reporter.report(response.status().is_server_error());
    if let Some(value) = encoding.and_then(|encoding| HeaderValue::from_str(&report.encoded(encoding)).ok()) {
        response.headers_mut().insert(REPORTS, value);
    }
    response
}
