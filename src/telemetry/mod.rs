//! Logs, traces and metrics.

pub mod access;
mod batches;
mod exposition;
mod lifecycle;
mod logging;
mod members;
mod metrics;
pub mod otel;
mod process;
mod workers;

pub use batches::BatchMetrics;
pub use logging::{LogOptions, filter as log_filter, set_filter as set_log_filter, start_logging};
pub use members::MemberMetrics;
pub use metrics::{FinishLabel, Metrics, ModelMetrics, RequestTimes};
