//! Which models lie in the cache, and how one is taken out of it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::cache::{RepoFolder, gguf_files, holds_model};
use super::catalogue::{self, Entry};
use super::options::HubOptions;
use super::reference::ModelRef;
use super::storage::{FileLock, disk_error};
use super::wheel_repo;
use crate::error::{Error, ErrorKind};

/// One model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// The short name where the catalogue has one, else the reference.
    pub name: String,
    /// What to give to `serve` or `rm`.
    pub reference: String,
    /// The GGUF file or the folder; for an unfinished download the repository's folder.
    pub path: PathBuf,
    pub bytes: u64,
    /// Number of files.
    pub files: usize,
    pub modified: SystemTime,
    /// False for what an interrupted download left; the next one goes on from there.
    pub is_complete: bool,
}

/// What `remove` took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    pub bytes: u64,
}

/// All models in the cache, by name.
pub fn list_local(options: &HubOptions) -> Result<Vec<CachedModel>, Error> {
    let entries = match std::fs::read_dir(&options.cache) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(disk_error(&options.cache, &error)),
    };
    let mut models = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        // Names on the hub hold no `--`, so the first one after `models` parts organisation and model.
        if let Some(repo) = name.to_str().and_then(|name| name.strip_prefix("models--")) {
            list_repo(&RepoFolder::new(&options.cache, &repo.replacen("--", "/", 1)), &mut models);
        }
    }
    models.sort_by(|a, b| (&a.name, &a.reference).cmp(&(&b.name, &b.reference)));
    Ok(models)
}

fn list_repo(repo: &RepoFolder, models: &mut Vec<CachedModel>) {
    let before = models.len();
    let current = repo.commit_of("main");
    for commit in names_in(&repo.path.join("snapshots")) {
        let snapshot = repo.snapshot(&commit);
        let revision = (current.as_ref() != Some(&commit)).then_some(commit.as_str());
        for file in gguf_files(&snapshot) {
            models.push(row(repo, revision, Some(&file), snapshot.join(&file), &[snapshot.join(&file)]));
        }
        if holds_model(&snapshot) {
            models.push(row(repo, revision, None, snapshot.clone(), &files_below(&snapshot)));
        }
    }
    if models.len() == before {
        let files = files_below(&repo.path.join("blobs"));
        if !files.is_empty() {
            let unfinished = row(repo, None, None, repo.path.clone(), &files);
            models.push(CachedModel { is_complete: false, ..unfinished });
        }
    }
}

fn row(repo: &RepoFolder, revision: Option<&str>, file: Option<&str>, path: PathBuf, files: &[PathBuf]) -> CachedModel {
    let known = files.iter().filter_map(|file| std::fs::metadata(file).ok());
    let (mut bytes, mut modified) = (0, SystemTime::UNIX_EPOCH);
    for metadata in known {
        bytes += metadata.len();
        modified = modified.max(metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH));
    }
    let own =
        ModelRef::Hub { repo: repo.repo.clone(), revision: revision.map(str::to_owned), file: file.map(str::to_owned) };
    let reference = short_name(&repo.repo, revision, file).map_or_else(|| own.to_string(), str::to_owned);
    CachedModel { name: reference.clone(), reference, path, bytes, files: files.len(), modified, is_complete: true }
}

/// The catalogue's name of this copy, if `serve` with that name would take this very copy.
fn short_name(repo: &str, revision: Option<&str>, file: Option<&str>) -> Option<&'static str> {
    let is_from_hub =
        |entry: &Entry| entry.repo == repo && entry.file.as_deref() == file && entry.revision.as_deref() == revision;
    let is_from_wheel = |entry: &Entry| entry.wheel.as_ref().is_some_and(|wheel| wheel_repo(wheel) == repo);
    catalogue::entries()
        .iter()
        .find(|entry| is_from_hub(entry) || is_from_wheel(entry))
        .map(|entry| entry.name.as_str())
}

/// Takes a model out of the cache: of `org/name` all, of `org/name:file` that file, of a short name both its sources.
pub fn remove(reference: &ModelRef, options: &HubOptions) -> Result<Removed, Error> {
    let bytes = match reference {
        ModelRef::Hub { repo, revision, file } => {
            remove_repo(&RepoFolder::new(&options.cache, repo), revision.as_deref(), file.as_deref())?
        }
        ModelRef::Catalogue(entry) => {
            let hub = RepoFolder::new(&options.cache, &entry.repo);
            let from_hub = remove_repo(&hub, entry.revision.as_deref(), entry.file.as_deref())?;
            let from_wheel = match &entry.wheel {
                Some(wheel) => remove_repo(&RepoFolder::new(&options.cache, &wheel_repo(wheel)), None, None)?,
                None => None,
            };
            from_hub.or(from_wheel).map(|_| from_hub.unwrap_or(0) + from_wheel.unwrap_or(0))
        }
        ModelRef::Folder(_) | ModelRef::GgufFile(_) => {
            let message = format!("'{reference}' is your own file and not in the cache: delete it by hand");
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        ModelRef::Dummy(_) | ModelRef::Sim => {
            return Err(Error::new(ErrorKind::InvalidRequest, format!("'{reference}' has no files to remove")));
        }
    };
    bytes.map(|bytes| Removed { bytes }).ok_or_else(|| {
        let message =
            format!("'{reference}' is not in the cache {}: `sconce list` shows what is", options.cache.display());
        Error::new(ErrorKind::NotFound, message)
    })
}

/// Freed bytes, or `None` when there is nothing of that name.
fn remove_repo(repo: &RepoFolder, revision: Option<&str>, file: Option<&str>) -> Result<Option<u64>, Error> {
    if !repo.path.is_dir() {
        return Ok(None);
    }
    let _locks = take_all_locks(repo)?;
    let snapshots = repo.path.join("snapshots");
    let wanted_commit = match revision {
        Some(revision) => match repo.commit_of(revision) {
            Some(commit) => Some(commit),
            None => return Ok(None),
        },
        None => None,
    };
    let commits: Vec<String> = names_in(&snapshots)
        .into_iter()
        .filter(|commit| wanted_commit.as_ref().is_none_or(|wanted| wanted == commit))
        .collect();
    let mut is_found = wanted_commit.is_none() && file.is_none();
    for commit in &commits {
        let snapshot = repo.snapshot(commit);
        let gone = match file {
            Some(file) => delete_file(&snapshot.join(file))?,
            None => delete_folder(&snapshot)?,
        };
        is_found |= gone;
        if gone && file.is_none() {
            delete_file(&repo.own().join(format!("{commit}.json")))?;
        }
    }
    if !is_found {
        return Ok(None);
    }
    let before = bytes_below(&repo.path.join("blobs"));
    let is_empty = names_in(&snapshots).iter().all(|commit| files_below(&repo.snapshot(commit)).is_empty());
    if is_empty {
        delete_folder(&repo.path)?;
        return Ok(Some(before));
    }
    delete_unused_blobs(repo)?;
    Ok(Some(before - bytes_below(&repo.path.join("blobs"))))
}

/// Holds every lock that a download of this repository could hold, or refuses.
fn take_all_locks(repo: &RepoFolder) -> Result<Vec<FileLock>, Error> {
    let mut locks = Vec::new();
    for path in files_below(repo.locks()) {
        match FileLock::try_take(&path)? {
            Some(lock) => locks.push(lock),
            None => {
                let message = format!("another process is downloading {}: stop it or wait, then try again", repo.repo);
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        }
    }
    Ok(locks)
}

/// Blobs that no snapshot points at any more, and what unfinished downloads left.
fn delete_unused_blobs(repo: &RepoFolder) -> Result<(), Error> {
    let mut used = HashSet::new();
    for commit in names_in(&repo.path.join("snapshots")) {
        used.extend(files_below(&repo.snapshot(&commit)).iter().filter_map(|file| file.canonicalize().ok()));
    }
    for blob in files_below(&repo.path.join("blobs")) {
        if !blob.canonicalize().is_ok_and(|blob| used.contains(&blob)) {
            delete_file(&blob)?;
        }
    }
    Ok(())
}

fn delete_file(path: &Path) -> Result<bool, Error> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(disk_error(path, &error)),
    }
}

fn delete_folder(path: &Path) -> Result<bool, Error> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(disk_error(path, &error)),
    }
}

/// Names of the entries of a folder, sorted; none when it does not exist.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Files and links below a folder, at any depth.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) => files.push(entry.path()),
                Err(_) => {}
            }
        }
    }
    files
}

fn bytes_below(folder: &Path) -> u64 {
    files_below(folder).iter().filter_map(|file| std::fs::metadata(file).ok()).map(|metadata| metadata.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::super::storage::{link, write_atomic};
    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn put(repo: &RepoFolder, commit: &str, file: &str, content: &str) {
        let blob = repo.blob(&format!("etag-{content}"));
        write_atomic(&blob, content.as_bytes()).unwrap();
        link(&repo.snapshot(commit).join(file), &blob).unwrap();
    }

    fn listed(options: &HubOptions) -> Vec<(String, u64, bool)> {
        let models = list_local(options).unwrap();
        models.into_iter().map(|model| (model.reference, model.bytes, model.is_complete)).collect()
    }

    #[test]
    fn lists_and_removes_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let options = HubOptions::new(folder.path().join("hub"));
        assert_eq!(list_local(&options).unwrap(), []);

        let quants = RepoFolder::new(&options.cache, "org/quants");
        quants.write_reference("main", COMMIT).unwrap();
        put(&quants, COMMIT, "m-Q8_0.gguf", "12345678");
        put(&quants, COMMIT, "sub/m-Q4_K_M.gguf", "1234");
        let tensors = RepoFolder::new(&options.cache, "org/tensors");
        for (file, content) in [("config.json", "{}"), ("tokenizer.json", "[]"), ("model.safetensors", "abc")] {
            put(&tensors, COMMIT, file, content);
        }
        let partial = RepoFolder::new(&options.cache, "org/partial");
        write_atomic(&partial.incomplete("x"), b"123").unwrap();

        let pinned = format!("org/tensors@{COMMIT}");
        assert_eq!(
            listed(&options),
            [
                ("org/partial".into(), 3, false),
                ("org/quants:m-Q8_0.gguf".into(), 8, true),
                ("org/quants:sub/m-Q4_K_M.gguf".into(), 4, true),
                (pinned.clone(), 7, true),
            ]
        );

        let removed = |text: &str| remove(&ModelRef::parse(text).unwrap(), &options).map(|removed| removed.bytes);
        assert_eq!(removed("org/quants:sub/m-Q4_K_M.gguf").unwrap(), 4);
        assert!(quants.snapshot(COMMIT).join("m-Q8_0.gguf").is_file());
        assert_eq!(removed("org/quants:sub/m-Q4_K_M.gguf").unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(removed("org/quants:m-Q8_0.gguf").unwrap(), 8);
        assert!(!quants.path.exists(), "an empty repository was left");
        assert_eq!(removed("org/tensors@other").unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(removed(&pinned).unwrap(), 7);
        assert_eq!(removed("org/partial").unwrap(), 3);
        assert_eq!(removed("org/partial").unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(listed(&options), []);
        assert_eq!(removed("sim").unwrap_err().kind, ErrorKind::InvalidRequest);
    }

    #[test]
    fn short_names_stand_for_their_own_copies() {
        let folder = tempfile::tempdir().unwrap();
        let options = HubOptions::new(folder.path());
        let entry = catalogue::find(catalogue::DEFAULT_MODEL).unwrap();
        let hub = RepoFolder::new(&options.cache, &entry.repo);
        put(&hub, entry.revision.as_ref().unwrap(), entry.file.as_ref().unwrap(), "12");
        let wheel = RepoFolder::new(&options.cache, &wheel_repo(entry.wheel.as_ref().unwrap()));
        put(&wheel, COMMIT, entry.file.as_ref().unwrap(), "345");
        assert_eq!(listed(&options), [("smollm2:135m".into(), 2, true), ("smollm2:135m".into(), 3, true)]);
        assert_eq!(remove(&ModelRef::Catalogue(entry), &options).unwrap().bytes, 5);
        assert_eq!(listed(&options), []);
    }

    #[test]
    fn a_running_download_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let options = HubOptions::new(folder.path());
        let repo = RepoFolder::new(&options.cache, "org/m");
        put(&repo, COMMIT, "m.gguf", "1");
        let lock = FileLock::try_take(&repo.lock("etag")).unwrap().unwrap();
        let error = remove(&ModelRef::parse("org/m").unwrap(), &options).unwrap_err();
        assert!(error.message.contains("is downloading org/m"), "{error}");
        drop(lock);
        assert_eq!(remove(&ModelRef::parse("org/m").unwrap(), &options).unwrap().bytes, 1);
    }
}
