//! Logs, traces and metrics.

pub mod access;
mod batches;
mod exposition;
mod logging;
pub mod members;
mod metrics;
mod process;
mod workers;

pub use batches::BatchMetrics;
pub use logging::{LogOptions, start_logging};
pub use members::MemberMetrics;
pub use metrics::{FinishLabel, Metrics, ModelMetrics, RequestTimes};
