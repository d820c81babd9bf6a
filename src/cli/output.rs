//! Data on stdout. A reader that went away (`sconce list | head`) is no failure.

use std::io::Write;

pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    // Nobody reads any more: there is no one to tell either.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

pub fn line(text: &str) {
    print(&format!("{text}\n"));
}
