//! Where log lines go: stderr, as text for people or as JSON for machines.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
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

/// The filter of the logging that was started.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// From now on this is logged.
pub fn set_filter(filter: &str) -> Result<()> {
    let parsed = parsed(filter, "filter")?;
    let gone = |why: String| Error::internal(format!("the log filter cannot be changed: {why}"));
    let handle = FILTER.get().ok_or_else(|| gone("logging was not started by this program".to_owned()))?;
    handle.reload(parsed).map_err(|why| gone(why.to_string()))
}

/// What is logged now; `None` where logging was started by another program.
pub fn filter() -> Option<String> {
    FILTER.get()?.with_current(ToString::to_string).ok()
}

fn parsed(filter: &str, param: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(filter).map_err(|error| {
        let message = format!("the log filter '{filter}' cannot be read: {error}; write e.g. 'info' or 'sconce=debug'");
        Error::invalid(param, message)
    })
}

/// Starts logging to stderr. A second call in the same process changes nothing.
pub fn start_logging(options: LogOptions) -> Result<()> {
    let filter = options.filter.as_deref().unwrap_or("info");
    let (filter, handle) = reload::Layer::new(parsed(filter, env::SCONCE_LOG.name)?);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // `try_init` fails only when a subscriber is there already: a test, or an embedding program that has its own.
    let started = if options.json {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        let colours = std::io::stderr().is_terminal() && env::NO_COLOR.get().is_none();
        registry.with(layer.with_ansi(colours)).try_init()
    };
    if started.is_ok() {
        let _first = FILTER.set(handle);
    }
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
        set_filter("sconce=debug,warn").expect("it can be read");
        assert!(filter().is_some_and(|filter| filter.contains("sconce=debug")));
        assert_eq!(set_filter("sconce=loud=x").expect_err("refused").param.as_deref(), Some("filter"));
    }
}
