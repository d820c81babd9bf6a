//! Traces and metrics of requests by OpenTelemetry's GenAI conventions, sent to a collector as OTLP over HTTP in JSON.
//!
//! [`Settings`] are read from the standard variables; [`Exporter::begin`] takes a request's `traceparent` and makes a
//! [`Span`], which becomes one record when it ends ([`Span::end`]). Whatever is asked of others on its behalf becomes a
//! span below it ([`Parent::attempt`]). Records go through one bounded queue to one task, which sends spans in batches and
//! adds metrics up.
//!
//! Invariants: nothing here waits on the way of a request: where the queue is full the record is dropped and counted. A
//! collector that is away costs records and one warning a minute. What was asked and answered is never recorded.

#![forbid(unsafe_code)]

mod attempt;
mod context;
mod exporter;
mod metrics;
mod record;
mod settings;

pub use attempt::{AttemptSpan, Attempted, Parent, Peer};
pub use context::{Sampler, TraceContext};
pub use exporter::{Counts, Exporter, Span};
pub use record::Ended;
pub use settings::Settings;
