//! A file of JSON lines, appended by a thread of its own. Writing never waits: a line that finds the queue full is left out
//! and counted. Only its owner may read the file.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};

/// Lines that may wait for the disk.
const QUEUE_LINES: usize = 1024;

pub struct LineLog<T> {
    lines: SyncSender<Box<T>>,
    /// What the lines are, for messages.
    what: &'static str,
    dropped: AtomicU64,
}

impl<T: Serialize + Send + 'static> LineLog<T> {
    /// `key` is where the file stands in the configuration.
    pub fn start(path: &Path, what: &'static str, key: &str) -> Result<Self> {
        let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        let file = opened.map_err(|why| {
            let message = format!("cannot write the {what} to {}: {why}; check {key}", path.display());
            Error::new(ErrorKind::Unavailable, message)
        })?;
        let (lines, waiting) = sync_channel(QUEUE_LINES);
        std::thread::Builder::new()
            .name(what.to_owned())
            .spawn(move || write_all(file, what, &waiting))
            .map_err(|why| Error::internal(format!("cannot start the thread that writes the {what}: {why}")))?;
        Ok(Self { lines, what, dropped: AtomicU64::new(0) })
    }

    pub fn write(&self, line: T) {
        if self.lines.try_send(Box::new(line)).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(dropped, "the disk is too slow for the {}; some were left out", self.what);
            }
        }
    }
}

fn write_all<T: Serialize>(file: File, what: &'static str, waiting: &Receiver<Box<T>>) {
    let mut out = BufWriter::new(file);
    while let Ok(first) = waiting.recv() {
        let written = std::iter::once(first).chain(waiting.try_iter()).try_for_each(|line| {
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")
        });
        if let Err(why) = written.and_then(|()| out.flush()) {
            tracing::error!(%why, "one of the {what} could not be written");
        }
    }
}
