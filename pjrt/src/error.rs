//! What can go wrong between a model file and a plugin's device.

use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is no plugin that this version can talk to.
    #[error("{}: {detail}", path.display())]
    Plugin { path: PathBuf, detail: String },

    /// A call came back with an error; the message is the plugin's own.
    #[error("{call} of the pjrt plugin failed: {message}")]
    Call { call: &'static str, message: String },

    /// An operation was asked for operands that do not fit together: a bug in a lowering.
    #[error("{operation}: {detail}; this is a bug, please report it")]
    Program { operation: &'static str, detail: String },

    /// What no program here can do.
    #[error("{0}")]
    Refused(String),

    #[error(transparent)]
    Model(#[from] sconce_models::Error),
}

/// Text of a plugin, fit for one line of a message.
pub(crate) fn one_line(text: &str) -> String {
    const CHARS_MAX: usize = 600;
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(CHARS_MAX + 1).collect();
    if line.chars().count() > CHARS_MAX {
        line.pop();
        line.push_str("...");
    }
    line.chars().map(|symbol| if symbol.is_control() { '?' } else { symbol }).collect()
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn messages_of_plugins_stay_on_one_line() {
        assert_eq!(one_line("a\n  b\t c"), "a b c");
        assert_eq!(one_line("a\u{1b}[31mb"), "a?[31mb");
        let long = one_line(&"x".repeat(2000));
        assert!(long.len() == 603 && long.ends_with("..."), "{}", long.len());
    }
}
