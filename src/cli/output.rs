//! Data on stdout. A reader that went away (`sconce list | head`) is no failure.

use std::io::{Result, Write};

/// Tells when nobody reads any more, so that no more is made for them.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
}

pub fn line(text: &str) {
    // Nobody reads any more: there is no one to tell either.
    let _ = print(&format!("{text}\n"));
}
