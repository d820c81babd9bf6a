//! What is asked of somebody else on a request's behalf, as a span below the request's.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::context::TraceContext;
use crate::exporter::{Exporter, Message};
use crate::record::{Place, number, text};

/// OTLP's number for spans of those who ask.
const CLIENT: u32 = 3;
/// Whoever gives an attempt up does not make it a failure.
const CANCELLED: &str = "cancelled";

/// A request's place in its trace, for whatever is asked on its behalf.
#[derive(Clone)]
pub struct Parent {
    pub(crate) exporter: Exporter,
    pub(crate) context: TraceContext,
    pub(crate) operation: &'static str,
}

impl fmt::Debug for Parent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Parent({})", self.context.header())
    }
}

impl Parent {
    /// What those are told who are asked without a span of their own.
    pub fn traceparent(&self) -> String {
        self.context.header()
    }

    /// Somebody is asked now. `None` where the trace is not recorded.
    pub fn attempt(&self) -> Option<AttemptSpan> {
        let is_recorded = self.context.is_sampled && self.exporter.sends_traces;
        is_recorded.then(|| AttemptSpan {
            parent: self.clone(),
            context: self.context.below(),
            started: SystemTime::now(),
            since: Instant::now(),
            took: None,
        })
    }
}

/// An attempt under way. One that is dropped is not recorded.
pub struct AttemptSpan {
    parent: Parent,
    context: TraceContext,
    started: SystemTime,
    since: Instant,
    took: Option<Duration>,
}

impl AttemptSpan {
    /// What whoever is asked is told: its own spans are below this one.
    pub fn traceparent(&self) -> String {
        self.context.header()
    }

    /// Its time ends here, where what became of it is known only later.
    pub fn stop(&mut self) {
        self.took = Some(self.since.elapsed());
    }

    /// Never waits.
    pub fn end(self, attempted: Attempted) {
        let took = self.took.unwrap_or_else(|| self.since.elapsed());
        let place = Place {
            context: self.context,
            parent_id: Some(self.parent.context.span_id),
            started: self.started,
            took_ns: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
        };
        let record = AttemptRecord { place, operation: self.parent.operation, attempted };
        self.parent.exporter.send(Message::Attempted(Box::new(record)));
    }
}

/// Who was asked for what.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// See `gen_ai.provider.name`.
    pub provider: &'static str,
    /// As the provider calls it.
    pub model: String,
    /// Host and port.
    pub server: Option<(String, u16)>,
}

/// What is known of an attempt when it ends. Nothing of what was asked or answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attempted {
    /// `None` where it failed before anybody was asked.
    pub peer: Option<Peer>,
    /// Our name for who was asked.
    pub member: String,
    /// From 1, of all attempts of the request.
    pub number: u32,
    /// Why this member, in one word.
    pub reason: &'static str,
    /// What became of it, in one word.
    pub outcome: &'static str,
    /// Of HTTP, where there was an answer.
    pub status: Option<u16>,
    /// The word for what went wrong, if something did; `cancelled` is no failure.
    pub error: Option<&'static str>,
}

pub(crate) struct AttemptRecord {
    place: Place,
    operation: &'static str,
    attempted: Attempted,
}

impl AttemptRecord {
    pub fn json(&self) -> Value {
        let attempted = &self.attempted;
        let mut name = self.operation.to_owned();
        let mut attributes = vec![
            text("gen_ai.operation.name", self.operation),
            text("sconce.member", &attempted.member),
            number("sconce.attempt", attempted.number.into()),
            text("sconce.reason", attempted.reason),
            text("sconce.outcome", attempted.outcome),
        ];
        if let Some(peer) = &attempted.peer {
            name += &format!(" {}", peer.model);
            attributes.push(text("gen_ai.provider.name", peer.provider));
            attributes.push(text("gen_ai.request.model", &peer.model));
            if let Some((address, port)) = &peer.server {
                attributes.push(text("server.address", address));
                attributes.push(number("server.port", (*port).into()));
            }
        }
        attributes.extend(attempted.status.map(|status| number("http.response.status_code", status.into())));
        if let Some(word) = attempted.error {
            // A provider's own number says more than our word for it.
            let own = attempted.status.filter(|status| *status >= 400).map(|status| status.to_string());
            attributes.push(text("error.type", own.as_deref().unwrap_or(word)));
        }
        let is_failure = attempted.error.is_some_and(|word| word != CANCELLED);
        self.place.json(&name, CLIENT, attributes, is_failure)
    }
}
