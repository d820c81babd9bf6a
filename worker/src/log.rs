//! What a worker writes: line by line to the server's log, cleaned, capped and no faster than a log can be read.
//!
//! The last lines are kept for error messages whether or not they were logged. A flood is counted, not stored, and never
//! holds the worker up.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

pub const LINE_CHARS_MAX: usize = 2000;
pub const TAIL_LINES: usize = 50;
/// Lines a second that reach the log, and how many at once.
const LINES_PER_S: f64 = 50.0;
const BURST_LINES: f64 = 200.0;
/// Of a line without an end this much is looked at.
const LINE_BYTES_MAX: usize = 16 << 10;

/// One process's log.
pub struct Log {
    worker: String,
    // Taken once a line, by its two readers and who asks for the tail.
    inner: Mutex<Inner>,
}

struct Inner {
    /// Lines ever, those that only overwrite themselves included.
    lines: u64,
    tail: VecDeque<String>,
    doing: Option<&'static str>,
    allowance: f64,
    refilled: Instant,
    left_out: u64,
}

impl Log {
    pub fn new(worker: &str) -> Self {
        let inner = Inner {
            lines: 0,
            tail: VecDeque::with_capacity(TAIL_LINES),
            doing: None,
            allowance: BURST_LINES,
            refilled: Instant::now(),
            left_out: 0,
        };
        Self { worker: worker.to_owned(), inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lines(&self) -> u64 {
        self.inner().lines
    }

    /// What it said last that it is doing.
    pub fn doing(&self) -> Option<&'static str> {
        self.inner().doing
    }

    pub fn tail(&self) -> Vec<String> {
        self.inner().tail.iter().cloned().collect()
    }

    /// The line that most likely says why it ended: the last that speaks of an error, else the last.
    pub fn telling(&self) -> Option<String> {
        let inner = self.inner();
        let speaks = |line: &&String| {
            let line = line.to_ascii_lowercase();
            ["error", "exception", "fatal", "panicked", "killed", "cannot "].iter().any(|word| line.contains(word))
        };
        inner.tail.iter().rev().find(speaks).or(inner.tail.back()).cloned()
    }

    /// A progress bar overwrites its line: that is a sign of life and nothing to be logged.
    pub fn push(&self, bytes: &[u8], is_overwritten: bool) {
        let line = cleaned(bytes);
        if line.is_empty() {
            return;
        }
        let worker = self.worker.as_str();
        let mut inner = self.inner();
        inner.lines += 1;
        inner.doing = doing(&line).or(inner.doing);
        if is_overwritten {
            return;
        }
        if inner.tail.len() == TAIL_LINES {
            inner.tail.pop_front();
        }
        inner.tail.push_back(line.clone());
        let now = Instant::now();
        let earned = now.duration_since(inner.refilled).as_secs_f64() * LINES_PER_S;
        inner.allowance = (inner.allowance + earned).min(BURST_LINES);
        inner.refilled = now;
        if inner.allowance < 1.0 {
            inner.left_out += 1;
            return;
        }
        inner.allowance -= 1.0;
        let left_out = std::mem::take(&mut inner.left_out);
        drop(inner);
        if left_out > 0 {
            tracing::warn!(worker, left_out, "lines of the worker's log were left out: there are too many");
        }
        tracing::info!(worker, "{line}");
    }

    /// Reads one of the worker's outputs to its end.
    pub async fn read(&self, mut from: impl AsyncRead + Unpin) {
        let mut piece = vec![0; 8 << 10];
        let mut line = Vec::new();
        // Between two line ends \r\n there is nothing, which is no line.
        while let Ok(read @ 1..) = from.read(&mut piece).await {
            for byte in &piece[..read] {
                match byte {
                    b'\n' | b'\r' => {
                        self.push(&line, *byte == b'\r');
                        line.clear();
                    }
                    _ if line.len() < LINE_BYTES_MAX => line.push(*byte),
                    _ => {}
                }
            }
        }
        self.push(&line, false);
    }

    /// Waits until both readers are through, but not for long: somebody else may still hold the pipe.
    pub async fn finish(readers: Vec<tokio::task::JoinHandle<()>>) {
        const FINISH_MAX: Duration = Duration::from_millis(500);
        let until = Instant::now() + FINISH_MAX;
        for mut reader in readers {
            if tokio::time::timeout_at(until, &mut reader).await.is_err() {
                reader.abort();
            }
        }
    }
}

/// Without colours and whatever else a terminal would obey.
fn cleaned(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len().min(LINE_CHARS_MAX));
    let (mut symbols, mut kept) = (text.chars().peekable(), 0);
    while let Some(symbol) = symbols.next() {
        if symbol == '\u{1b}' {
            if symbols.next_if_eq(&'[').is_some() {
                // Parameters, then one letter.
                while symbols.next().is_some_and(|symbol| !('@'..='~').contains(&symbol)) {}
            }
            continue;
        }
        if kept == LINE_CHARS_MAX {
            out.push_str(" ...");
            break;
        }
        if symbol == '\t' {
            out.push(' ');
        } else if !symbol.is_control() && !is_direction(symbol) {
            out.push(symbol);
        }
        kept += 1;
    }
    out.trim_end().to_owned()
}

/// Marks that turn the direction of text around, so that a line reads as something else.
fn is_direction(symbol: char) -> bool {
    matches!(symbol, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What engines say while they start, as one word for it.
fn doing(line: &str) -> Option<&'static str> {
    const WORDS: &[(&str, &str)] = &[
        ("compil", "compiling"),
        ("neuronx-cc", "compiling"),
        ("tracing model", "compiling"),
        ("warmup", "warming up"),
        ("warming up", "warming up"),
        ("capturing", "capturing graphs"),
        ("download", "downloading"),
        ("fetching", "downloading"),
        ("load", "loading"),
    ];
    let line = line.to_ascii_lowercase();
    WORDS.iter().find(|(word, _)| line.contains(word)).map(|(_, meaning)| *meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cleaned() {
        let long = "x".repeat(LINE_CHARS_MAX + 1);
        let cut = format!("{} ...", "x".repeat(LINE_CHARS_MAX));
        for (line, meant) in [
            ("plain", "plain"),
            ("\u{1b}[31mred\u{1b}[0m  ", "red"),
            ("a\tb\u{7}c\u{0}", "a bc"),
            ("\u{1b}", ""),
            ("\u{1b}[", ""),
            ("\u{202e}evil", "evil"),
            (long.as_str(), cut.as_str()),
        ] {
            assert_eq!(cleaned(line.as_bytes()), meant);
        }
        assert_eq!(cleaned(b"\xffa"), "\u{fffd}a");
    }

    #[test]
    fn what_it_does_is_read_off_its_lines() {
        for (line, meant) in [
            ("INFO: Compiling model with neuronx-cc", Some("compiling")),
            ("Fetching 4 files: 25%", Some("downloading")),
            ("Loading safetensors checkpoint shards", Some("loading")),
            ("hello", None),
        ] {
            assert_eq!(doing(line), meant, "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_keeps_its_end_and_nothing_more() {
        let log = Log::new("w");
        let mut flood = Vec::new();
        for number in 0..100_000 {
            flood.extend_from_slice(format!("line {number}\n").as_bytes());
        }
        flood.extend_from_slice(b"RuntimeError: no cores\nbye\r\n10%\r20%\r");
        flood.extend(std::iter::repeat_n(b'y', 1 << 20));
        log.read(flood.as_slice()).await;
        assert_eq!(log.lines(), 100_005);
        let tail = log.tail();
        assert_eq!(tail.len(), TAIL_LINES);
        assert!(tail[TAIL_LINES - 1].starts_with("yyy") && tail[TAIL_LINES - 1].len() == LINE_CHARS_MAX + 4);
        assert_eq!(log.telling().as_deref(), Some("RuntimeError: no cores"));
        let inner = log.inner();
        assert!(inner.left_out > 99_000, "{} lines were left out", inner.left_out);
    }
}
