//! Requests as spans of OpenTelemetry traces, where a collector is named in the environment.
//!
//! A request's span begins with its `traceparent` and ends with its access line. Attempts at members elsewhere are spans
//! below it (`pool/dispatch/branch.rs`), and those members are told of theirs in the same header. What was asked and
//! answered is in neither.

use std::net::SocketAddr;
use std::time::Instant;

use sconce_otel::{Ended, Exporter, Settings, Span};
use sconce_providers::Kind;

use crate::config::env;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::Trace;
use crate::request::Usage;

/// Starts the export that the standard variables ask for; `None` if they do not.
pub fn start_export(address: SocketAddr) -> Result<Option<Exporter>> {
    let refused = |why| Error::new(ErrorKind::InvalidRequest, why);
    let variables = env::matching(|name| name.starts_with(env::OTEL_PREFIX)).into_iter().collect();
    let Some(settings) = Settings::read(&variables).map_err(refused)? else { return Ok(None) };
    let server = (address.ip().to_string(), address.port());
    Exporter::start(settings, Some(server)).map(Some).map_err(refused)
}

/// A request that is traced.
#[derive(Debug)]
pub struct Tracing {
    span: Span,
    trace: Trace,
}

impl Tracing {
    /// The request's place in its trace, and the note of who answers it, which puts attempts below that place.
    pub fn begin(exporter: &Exporter, traceparent: Option<&str>, route: &str) -> (Self, Trace) {
        let span = exporter.begin(traceparent);
        let trace = Trace::below(span.parent(operation(route)));
        (Self { span, trace: trace.clone() }, trace)
    }

    /// Of (id, route, model), with (status, how it finished), begun at the one and with its first token after the other.
    pub(super) fn end(
        self,
        (id, route, model): (&str, &str, &str),
        (status, finish): (u16, &'static str),
        usage: Usage,
        (started, time_to_first_token_s): (Instant, Option<f64>),
    ) {
        self.span.end(Ended {
            operation: operation(route),
            model: model.to_owned(),
            member: self.trace.get().member,
            id: id.to_owned(),
            route: route.to_owned(),
            status,
            finish,
            input_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            output_tokens: usage.completion_tokens,
            time_to_first_token_s,
            duration_s: started.elapsed().as_secs_f64(),
        });
    }
}

/// `gen_ai.operation.name`: the conventions' words, and our own for what they do not know.
fn operation(route: &str) -> &'static str {
    match route {
        "/v1/chat/completions" | "/v1/responses" | "/v1/messages" => "chat",
        "/v1/completions" => "text_completion",
        "/v1/embeddings" => "embeddings",
        _ if route.ends_with("rerank") || route.ends_with("score") => "rerank",
        _ => "request",
    }
}

/// `gen_ai.provider.name`: the conventions' words, and our own for servers of which only the wire format is known.
pub fn provider_word(kind: Kind) -> &'static str {
    match kind {
        Kind::OpenAi => "openai",
        Kind::Compatible => "openai_compatible",
        Kind::Anthropic => "anthropic",
        Kind::Bedrock => "aws.bedrock",
        Kind::Azure => "azure.ai.openai",
        Kind::Gemini => "gcp.gemini",
        Kind::Mistral => "mistral_ai",
    }
}
