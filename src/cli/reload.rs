//! Takes a changed `sconce.toml` over while the server runs: on SIGHUP, on `/v1/reload`, and when the file has changed.
//!
//! The file is checked as a whole first; a bad one changes nothing and is told in the log. What a running server cannot
//! change is told, too.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::resolve::resolve;
use super::serve::ServeArgs;
use crate::api::{KeyRing, ReloadWish, Reloaded};
use crate::config::ServeConfig;
use crate::error::{Error, Result};
use crate::hub::progress;
use crate::launch::Launch;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

pub struct Reloader {
    pub args: ServeArgs,
    pub launch: Arc<Launch>,
    pub keys: KeyRing,
    pub current: ServeConfig,
}

/// What changes when a file is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed_ns: (i64, i64),
}

impl Stamp {
    /// `None` while there is no file: an editor may be replacing it.
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self { inode: found.ino(), bytes: found.len(), changed_ns: (found.mtime(), found.mtime_nsec()) })
    }
}

impl Reloader {
    /// Runs as long as the server does.
    pub async fn run(mut self, mut wishes: mpsc::Receiver<ReloadWish>) {
        let Ok(mut hangup) = signal(SignalKind::hangup()) else {
            tracing::error!("cannot listen for SIGHUP; changes of the configuration need a restart");
            return;
        };
        let Some(path) = self.args.config.clone() else {
            while hangup.recv().await.is_some() {
                tracing::warn!("SIGHUP: there is no configuration file to read again (--config)");
            }
            return;
        };
        let mut taken = Stamp::of(&path);
        let mut seen = taken;
        loop {
            let mut asked: Option<ReloadWish> = None;
            tokio::select! {
                _ = hangup.recv() => {}
                Some(wish) = wishes.recv() => asked = Some(wish),
                () = tokio::time::sleep(LOOK) => {
                    let now = Stamp::of(&path);
                    // Twice the same, or somebody is still writing.
                    let is_settled = now.is_some() && now == std::mem::replace(&mut seen, now);
                    if !is_settled || now == taken {
                        continue;
                    }
                }
            }
            taken = Stamp::of(&path);
            let outcome = self.reload().await;
            if let Err(error) = &outcome {
                tracing::error!(file = %path.display(), %error, "the configuration was not taken over; the old one stays");
            }
            if let Some(asked) = asked {
                // Who asked may have gone away meanwhile.
                let _ = asked.send(outcome);
            }
        }
    }

    async fn reload(&mut self) -> Result<Reloaded> {
        let args = self.args.clone();
        let next = tokio::task::spawn_blocking(move || resolve(&args)).await;
        let next = next.map_err(|panic| Error::internal(format!("reading the configuration failed: {panic}")))??;
        let progress = progress::for_stderr().into();
        let change = self.launch.reload(&next.models, &next.pool, progress).await?;
        self.keys.replace(&next.api_keys, &next.keys);
        let keys = next.api_keys.len() + next.keys.len();
        tracing::info!(%change, keys, "the configuration was taken over");
        let needs_restart = needs_restart(&self.current, &next);
        for what in &needs_restart {
            tracing::warn!("{what} changed in the configuration; that needs a restart");
        }
        self.current = next;
        Ok(Reloaded {
            added: change.added,
            removed: change.removed,
            changed: change.changed,
            keys,
            needs_restart: needs_restart.into_iter().map(str::to_owned).collect(),
        })
    }
}

/// Parts that a running server keeps as they were.
fn needs_restart(now: &ServeConfig, next: &ServeConfig) -> Vec<&'static str> {
    let parts = [
        ("host or port", (&now.host, now.port) != (&next.host, next.port)),
        ("the store of responses", now.responses != next.responses),
        ("the folder of files", now.files != next.files),
        ("web", now.web != next.web),
        ("orca_load_report", now.load_reports != next.load_reports),
        ("[[listing]]", now.listings != next.listings),
        ("http_threads", now.http_threads != next.http_threads),
        ("drain_delay_s", now.drain_delay != next.drain_delay),
        ("shutdown_timeout_s", now.shutdown_timeout != next.shutdown_timeout),
        ("[ledger]", now.pool.ledger != next.pool.ledger),
    ];
    parts.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_has_another_stamp() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sconce.toml");
        assert_eq!(Stamp::of(&path), None);
        std::fs::write(&path, "a").expect("written");
        let first = Stamp::of(&path);
        assert!(first.is_some() && first == Stamp::of(&path));
        std::fs::write(&path, "ab").expect("written");
        assert_ne!(Stamp::of(&path), first);
    }
}
