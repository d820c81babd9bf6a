//! An attempt at a member elsewhere as a branch of its request's trace: what the member is told, and the span it becomes.
//!
//! Where no trace is exported there is none; where the request is not sampled the member is told, and there is no span.

use std::sync::Arc;

use sconce_otel::{AttemptSpan, Attempted, Peer};
use sconce_providers::{EXCHANGE, Exchange};

use crate::pool::errand::Trace;
use crate::pool::node::Node;
use crate::telemetry::otel::provider_word;

pub struct Branch {
    exchange: Arc<Exchange>,
    span: Option<AttemptSpan>,
    reason: &'static str,
}

impl Branch {
    /// Begins now, for this reason.
    pub fn of(trace: &Trace, node: &Node, reason: &'static str) -> Option<Self> {
        let parent = trace.parent().filter(|_| !node.is_local())?;
        let span = parent.attempt();
        let traceparent = span.as_ref().map_or_else(|| parent.traceparent(), AttemptSpan::traceparent);
        Some(Self { exchange: Arc::new(Exchange::new(traceparent)), span, reason })
    }

    /// The member's last word was heard; whether it counts is known later.
    pub fn stop(&mut self) {
        if let Some(span) = &mut self.span {
            span.stop();
        }
    }

    /// Of (member, number of the attempt), with (outcome, word of the error).
    pub fn end(self, (member, number): (&str, u32), (outcome, error): (&'static str, Option<&'static str>)) {
        let Some(span) = self.span else { return };
        let peer = self.exchange.provider().map(|provider| Peer {
            provider: provider_word(provider.kind()),
            model: provider.model().to_owned(),
            server: provider.server(),
        });
        let (reason, status) = (self.reason, self.exchange.status());
        span.end(Attempted { peer, member: member.to_owned(), number, reason, outcome, status, error });
    }
}

/// What is asked of the member goes along with its branch.
pub async fn told<T>(branch: Option<&Branch>, asked: impl Future<Output = T>) -> T {
    match branch {
        Some(branch) => EXCHANGE.scope(Arc::clone(&branch.exchange), asked).await,
        None => asked.await,
    }
}
