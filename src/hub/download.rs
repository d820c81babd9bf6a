//! The hub's files into the cache: resumed, checked, and published by a rename.
//!
//! - `blobs/ETAG.incomplete` holds a prefix of the file, whoever wrote it. Only the holder of the lock appends to it.
//! - A blob that exists is complete: its size was checked, and its SHA-256 where the hub gives one.
//! - The bytes are hashed as they arrive, on the thread that writes them; a network read never waits for the disk
//!   beyond a few chunks.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::header::{CONTENT_RANGE, HeaderMap};
use reqwest::{Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::LocalFiles;
use super::cache::{Manifest, ManifestFile, RepoFolder, is_commit};
use super::choose::choose;
use super::options::HubOptions;
use super::progress::Progress;
use super::remote::{Asset, Hub, Retry, Trouble, UNREACHABLE};
use super::source::Wanted;
use super::storage::{FileLock, check_space, create_folder, disk_error, hash_all, hex, link};
use crate::error::{Error, ErrorKind};

/// Questions and files at once.
const QUESTIONS_MAX: usize = 8;
const FILES_MAX: usize = 4;
/// Chunks between the network and the disk.
const CHUNKS_MAX: usize = 16;

/// Brings a model of the hub into the cache.
pub(super) async fn download_repo(
    wanted: &Wanted<'_>,
    folder: &RepoFolder,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<LocalFiles, Error> {
    let hub = &Hub::new(options)?;
    let listing = hub.list(wanted, progress).await?;
    let choice = choose(wanted.repo, &listing.files, wanted.file)?;
    let commit = listing.commit.as_str();
    let questions: Vec<_> = choice.files.iter().map(|path| hub.describe(wanted.repo, commit, path, progress)).collect();
    let mut assets: Vec<Asset> = stream::iter(questions).buffered(QUESTIONS_MAX).try_collect().await?;
    if let Some(pinned) = wanted.sha256 {
        for asset in &mut assets {
            check_pin(wanted.repo, asset, pinned)?;
        }
    }
    let needed = assets.iter().map(|asset| missing_bytes(folder, asset)).sum();
    check_space(options, wanted.repo, needed)?;

    let downloads: Vec<_> = assets.iter().map(|asset| fetch_blob(hub, folder, commit, asset, progress)).collect();
    let blobs: Vec<PathBuf> = stream::iter(downloads).buffered(FILES_MAX).try_collect().await?;

    let snapshot = folder.snapshot(commit);
    for (asset, blob) in assets.iter().zip(&blobs) {
        link(&snapshot.join(&asset.path), blob)?;
    }
    let files = assets.iter().map(|asset| ManifestFile { path: asset.path.clone(), bytes: asset.bytes }).collect();
    folder.write_manifest(commit, &Manifest { gguf: choice.gguf.clone(), files })?;
    // Last, so that a name never leads to a snapshot that lacks files.
    if !is_commit(wanted.revision_or_main()) {
        folder.write_reference(wanted.revision_or_main(), commit)?;
    }
    Ok(match choice.gguf {
        Some(file) => LocalFiles::Gguf(snapshot.join(file)),
        None => LocalFiles::Folder(snapshot),
    })
}

/// The hub's hash must be the pinned one; where the hub gives none, the pinned one is what the bytes must have.
fn check_pin(repo: &str, asset: &mut Asset, pinned: &str) -> Result<(), Error> {
    match &asset.sha256 {
        Some(sha256) if sha256 != pinned => {
            let message = format!(
                "'{}' of '{repo}' has sha256 {sha256} on the hub, the catalogue pins {pinned}: the file was replaced; \
                 to take it all the same name it as {repo}:{}",
                asset.path, asset.path
            );
            Err(Error::new(ErrorKind::Unavailable, message))
        }
        _ => {
            asset.sha256 = Some(pinned.to_owned());
            Ok(())
        }
    }
}

fn missing_bytes(folder: &RepoFolder, asset: &Asset) -> u64 {
    if is_complete(&folder.blob(&asset.etag), asset) {
        return 0;
    }
    let kept = std::fs::metadata(folder.incomplete(&asset.etag)).map_or(0, |metadata| metadata.len());
    asset.bytes.saturating_sub(kept)
}

fn is_complete(blob: &Path, asset: &Asset) -> bool {
    std::fs::metadata(blob).is_ok_and(|metadata| metadata.is_file() && metadata.len() == asset.bytes)
}

/// One download in progress: the open file, and what has been hashed of it.
struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    /// Bytes in the file, all of them hashed.
    bytes: u64,
    /// Whether some of them come from an earlier process.
    is_inherited: bool,
    /// Held by the writing thread too: it may outlive a cancelled download by a few chunks.
    _lock: Arc<FileLock>,
}

impl Partial {
    fn open(path: PathBuf, asset: &Asset, lock: Arc<FileLock>) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        if file.metadata()?.len() > asset.bytes {
            file.set_len(0)?;
        }
        let (hasher, bytes) = hash_all(&mut file)?;
        Ok(Self { path, file, hasher, bytes, is_inherited: bytes > 0, _lock: lock })
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.hasher, self.bytes, self.is_inherited) = (Sha256::new(), 0, false);
        Ok(())
    }

    fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        self.hasher.update(chunk);
        self.bytes += chunk.len() as u64;
        Ok(())
    }
}

/// The blob of one file, downloaded unless it is there.
async fn fetch_blob(
    hub: &Hub<'_>,
    folder: &RepoFolder,
    commit: &str,
    asset: &Asset,
    progress: &dyn Progress,
) -> Result<PathBuf, Error> {
    let blob = folder.blob(&asset.etag);
    if is_complete(&blob, asset) {
        return Ok(blob);
    }
    let lock = Arc::new(FileLock::take(&folder.lock(&asset.etag), &asset.path, progress).await?);
    if is_complete(&blob, asset) {
        return Ok(blob);
    }
    if let Some(folder) = blob.parent() {
        create_folder(folder)?;
    }
    let path = folder.incomplete(&asset.etag);
    let opening = {
        let (path, asset) = (path.clone(), asset.clone());
        blocking(move || Partial::open(path, &asset, lock))
    };
    let mut partial = opening.await.map_err(|error| disk_error(&path, &error))?;
    progress.started(&asset.path, partial.bytes, Some(asset.bytes));
    loop {
        partial = fill(hub, &folder.repo, commit, asset, (partial, progress)).await?;
        let found = hex(partial.hasher.clone());
        let Some(expected) = asset.sha256.as_ref().filter(|expected| **expected != found) else { break };
        if partial.is_inherited {
            // What an earlier process left may be at fault: once more, from the start.
            progress.note(&format!("{}: what was kept of an earlier download is damaged, starting again", asset.path));
            partial.restart().map_err(|error| disk_error(&path, &error))?;
            progress.advanced(&asset.path, 0);
            continue;
        }
        // The error to tell is the mismatch, even if the file cannot be deleted.
        let _ = std::fs::remove_file(&path);
        let message = format!(
            "'{}' of '{}' is damaged: {} bytes with sha256 {found}, expected {expected}; deleted, start again",
            asset.path, folder.repo, partial.bytes
        );
        return Err(Error::new(ErrorKind::Unavailable, message));
    }
    let publish = {
        let blob = blob.clone();
        // The rename must not reach the disk before the bytes do.
        blocking(move || partial.file.sync_data().and_then(|()| std::fs::rename(&partial.path, &blob)))
    };
    publish.await.map_err(|error| disk_error(&blob, &error))?;
    progress.finished(&asset.path);
    Ok(blob)
}

/// Fetches what is missing, trying again from where it broke off for as long as tries bring something.
async fn fill(
    hub: &Hub<'_>,
    repo: &str,
    commit: &str,
    asset: &Asset,
    (mut partial, progress): (Partial, &dyn Progress),
) -> Result<Partial, Error> {
    let mut failures = 0;
    while partial.bytes < asset.bytes {
        let before = partial.bytes;
        let response = hub.open(repo, commit, asset, before).await;
        let (kept, outcome) = match response {
            Ok(response) => receive(hub, asset, response, (partial, progress)).await?,
            Err(trouble) => (partial, Err(trouble)),
        };
        partial = kept;
        let Err(mut trouble) = outcome else { continue };
        failures = if partial.bytes > before { 1 } else { failures + 1 };
        if trouble.error.code == Some(UNREACHABLE) {
            // It was reachable a moment ago.
            trouble.retry = Retry::After(None);
        }
        hub.pause(progress, &trouble, failures).await?;
    }
    Ok(partial)
}

/// Where the bytes of an answer belong.
enum Place {
    Append,
    Restart,
    /// The answer cannot be used.
    Nowhere(&'static str),
}

fn place(status: StatusCode, headers: &HeaderMap, offset: u64, asset: &Asset) -> Place {
    match status {
        StatusCode::PARTIAL_CONTENT => {
            let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).and_then(parse_range);
            match range {
                Some((start, total)) if start == offset && total.is_none_or(|total| total == asset.bytes) => {
                    Place::Append
                }
                _ => Place::Nowhere("another range than asked for"),
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE => Place::Nowhere("no such range"),
        _ => Place::Restart,
    }
}

/// `bytes 100-199/200` or `bytes 100-199/*`: start and total.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.parse().ok()?, total))
}

/// Writes one answer behind what is there. The outer error is the disk's, the inner one the network's.
async fn receive(
    hub: &Hub<'_>,
    asset: &Asset,
    response: Response,
    (mut partial, progress): (Partial, &dyn Progress),
) -> Result<(Partial, Result<(), Trouble>), Error> {
    let path = partial.path.clone();
    let disk = |error: io::Error| disk_error(&path, &error);
    match place(response.status(), response.headers(), partial.bytes, asset) {
        Place::Append => {}
        Place::Restart if partial.bytes == 0 => {}
        Place::Restart => partial.restart().map_err(disk)?,
        Place::Nowhere(problem) => {
            partial.restart().map_err(disk)?;
            return Ok((partial, Err(broken(hub, asset, problem, Retry::After(None)))));
        }
    }
    let mut received = partial.bytes;
    let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_MAX);
    let writer = blocking(move || {
        while let Some(chunk) = chunks.blocking_recv() {
            partial.write(&chunk)?;
        }
        Ok(partial)
    });
    let mut body = response.bytes_stream();
    let outcome = loop {
        match body.next().await {
            None if received < asset.bytes => {
                break Err(broken(hub, asset, "the answer ended early", Retry::After(None)));
            }
            None => break Ok(()),
            Some(Err(error)) => break Err(hub.transport_trouble(&error, &asset.path)),
            Some(Ok(chunk)) => {
                received += chunk.len() as u64;
                if received > asset.bytes {
                    break Err(broken(hub, asset, "more bytes than announced", Retry::Never));
                }
                // Fails when the disk does; the writer then tells why.
                if sender.send(chunk).await.is_err() {
                    break Ok(());
                }
                progress.advanced(&asset.path, received);
            }
        }
    };
    drop(sender);
    let partial = writer.await.map_err(disk)?;
    Ok((partial, outcome))
}

fn broken(hub: &Hub<'_>, asset: &Asset, problem: &str, retry: Retry) -> Trouble {
    let message = format!(
        "{} sent a wrong answer for {} ({problem}; {} bytes expected): start again to go on from there",
        hub.options.host(),
        asset.path,
        asset.bytes
    );
    Trouble { error: Error::new(ErrorKind::Unavailable, message), retry }
}

/// Starts disk work on the blocking pool at once, before the first poll: the writer must run while chunks arrive.
/// A panic there goes on here.
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> impl Future<Output = io::Result<T>> + Send {
    let task = tokio::task::spawn_blocking(work);
    async {
        match task.await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(io::Error::other("the program is stopping")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let table = [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 0-9/*", Some((0, None))),
            ("bytes */10", None),
            ("items 0-9/10", None),
            ("bytes 5-9", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_range(text), expected, "{text}");
        }
    }
}
