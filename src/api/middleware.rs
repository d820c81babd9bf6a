//! Around every request: its id, its span, its counter and its access line.
//!
//! The access line travels with the answer's body, so that it is written when the body ends or is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tracing::Instrument;

use super::AppState;
use super::anthropic;
use super::ids;
use super::trace;
use crate::pool::Trace;
use crate::telemetry::access::{AccessLine, RequestLog};
use crate::telemetry::otel::Tracing;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");

/// The part of a request's name that is unique; endpoints put their own prefix before it.
#[derive(Debug, Clone)]
pub(super) struct UniqueId(pub String);

/// What a request is called towards its client: the client's own name for it, or ours.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub String);

pub(super) async fn observe(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let unique = ids::unique();
    let client_id = request.headers().get(REQUEST_ID).and_then(|id| ids::sane(id.as_bytes())).map(str::to_owned);
    // The pattern, not the path: a client must not be able to make new label values.
    let endpoint = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let head_only = request.method() == Method::HEAD;
    let log = RequestLog::start();
    let mut line = AccessLine::new(unique.clone(), request.method().as_str(), &endpoint, log.clone())
        .with_client_id(client_id.as_deref());
    let id = client_id.unwrap_or_else(|| format!("req-{unique}"));
    let in_anthropics_words = anthropic::is_spoken(&request);
    request.extensions_mut().insert(UniqueId(unique));
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(log.clone());
    let (tracing, trace) = match state.metrics.exporter() {
        None => (None, Trace::default()),
        Some(exporter) => {
            let traceparent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
            let (tracing, trace) = Tracing::begin(exporter, traceparent, &endpoint);
            (Some(tracing), trace)
        }
    };
    line = line.with_tracing(tracing);
    request.extensions_mut().insert(trace.clone());

    let mut response = next.run(request).instrument(line.span().clone()).await;

    if in_anthropics_words {
        response = anthropic::dressed(response, &id);
    }
    line.answered(response.status().as_u16());
    state.metrics.http_request(line.endpoint(), response.status().as_u16());
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    let elapsed_ms = u64::try_from(log.started().elapsed().as_millis()).unwrap_or(u64::MAX);
    headers.insert(PROCESSING_MS, HeaderValue::from(elapsed_ms));
    trace::add_headers(headers, &trace);
    if head_only || response.body().is_end_stream() {
        line.complete();
    }
    response.map(|inner| Body::new(LoggedBody { inner, line }))
}

/// A body that logs its request when it ends or is dropped.
struct LoggedBody {
    inner: Body,
    line: AccessLine,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let inner = &mut this.inner;
        let span = this.line.span();
        // A panic here would take every other request of the connection along.
        let polled = span.in_scope(|| catch_unwind(AssertUnwindSafe(|| Pin::new(inner).poll_frame(context))));
        let Ok(frame) = polled else {
            span.in_scope(|| tracing::error!("a panic broke off an answer that had begun"));
            this.inner = Body::empty();
            return Poll::Ready(Some(Err(axum::Error::new("the answer broke off by an internal error"))));
        };
        // Some bodies are not polled again after their last frame.
        if matches!(frame, Poll::Ready(None)) || this.inner.is_end_stream() {
            this.line.complete();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
