//! Where log lines go: stderr, as text for people or as JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::env;
use crate::error::{Error, Result};

/// What is logged and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// One JSON object a line instead of text.
    pub json: bool,
    /// A tracing filter (`info`, `sconce=debug,hyper=warn`); `None` means `info`.
    pub filter: Option<String>,
}

/// Starts logging to stderr. A second call in the same process changes nothing.
pub fn start_logging(options: LogOptions) -> Result<()> {
    let filter = options.filter.as_deref().unwrap_or("info");
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Error::invalid(
            env::SCONCE_LOG.name,
            format!("the log filter '{filter}' cannot be read: {error}; write e.g. 'info' or 'sconce=debug'"),
        )
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // `try_init` fails only when a subscriber is there already: a test, or an embedding program that has its own.
    let _already_started = if options.json {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        let colours = std::io::stderr().is_terminal() && env::NO_COLOR.get().is_none();
        registry.with(layer.with_ansi(colours)).try_init()
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_refused_by_name() {
        let error = start_logging(LogOptions { json: false, filter: Some("sconce=loud=x".into()) });
        assert!(error.expect_err("refused").message.contains("sconce=loud=x"));
    }

    #[test]
    fn starting_twice_is_harmless() {
        let options = LogOptions { json: true, filter: None };
        start_logging(options.clone()).expect("starts");
        start_logging(options).expect("stays");
    }
}
