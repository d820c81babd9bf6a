//! The cache folder: where a file lies, whether a model is complete, and which models there are.
//!
//! Layout of huggingface_hub: `models--ORG--NAME/{blobs/ETAG, snapshots/COMMIT/PATH -> blob, refs/BRANCH}` and
//! `.locks/models--ORG--NAME/ETAG.lock`. Beside them `models--ORG--NAME/.sconce/COMMIT.json` lists what a complete
//! download holds: a snapshot that another tool began may lack files, and looks no different otherwise.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::LocalFiles;
use super::quantisation::best_gguf;
use super::reference::is_safe_relative;
use super::storage::write_atomic;
use crate::error::Error;

/// One repository's folder in the cache.
#[derive(Debug, Clone)]
pub(super) struct RepoFolder {
    pub repo: String,
    pub path: PathBuf,
    locks: PathBuf,
}

/// The files that make up one loadable model of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The GGUF file, when the model is one; else the snapshot folder is the model.
    pub gguf: Option<String>,
    pub files: Vec<ManifestFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ManifestFile {
    pub path: String,
    pub bytes: u64,
}

/// What the cache knows of a model.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cached {
    /// Everything is here.
    Complete(LocalFiles),
    /// Another tool put files here that look like a whole model; only the hub could tell.
    Likely(LocalFiles),
    Missing,
}

/// A full commit: 40 hexadecimal digits. What it names never changes.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl RepoFolder {
    pub fn new(cache: &Path, repo: &str) -> Self {
        let folder = format!("models--{}", repo.replace('/', "--"));
        let locks = cache.join(".locks").join(&folder);
        Self { repo: repo.to_owned(), path: cache.join(folder), locks }
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.path.join("blobs").join(etag)
    }

    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.path.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.path.join("snapshots").join(commit)
    }

    pub fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    pub fn locks(&self) -> &Path {
        &self.locks
    }

    /// Our own notes and working files.
    pub fn own(&self) -> PathBuf {
        self.path.join(".sconce")
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.path.join("refs").join(revision)
    }

    pub fn write_reference(&self, revision: &str, commit: &str) -> Result<(), Error> {
        write_atomic(&self.reference(revision), commit.as_bytes())
    }

    /// The commit that a revision was when it was last looked up.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = std::fs::read_to_string(self.reference(revision)).ok()?;
        let commit = text.trim();
        is_safe_relative(commit).then(|| commit.to_owned())
    }

    fn manifest_path(&self, commit: &str) -> PathBuf {
        self.own().join(format!("{commit}.json"))
    }

    pub fn write_manifest(&self, commit: &str, manifest: &Manifest) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(manifest).expect("a list of names and numbers is valid JSON");
        write_atomic(&self.manifest_path(commit), &text)
    }

    fn manifest(&self, commit: &str) -> Option<Manifest> {
        let text = std::fs::read(self.manifest_path(commit)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Looks for a model: `file` of the repository, or what the repository as a whole is.
    pub fn find(&self, revision: &str, file: Option<&str>) -> Cached {
        let Some(commit) = self.commit_of(revision) else { return Cached::Missing };
        let snapshot = self.snapshot(&commit);
        if let Some(file) = file {
            // Every tool renames a file into place only when it is whole.
            let path = snapshot.join(file);
            return if path.is_file() { Cached::Complete(LocalFiles::Gguf(path)) } else { Cached::Missing };
        }
        if let Some(manifest) = self.manifest(&commit) {
            let is_here = |file: &ManifestFile| {
                is_safe_relative(&file.path)
                    && std::fs::metadata(snapshot.join(&file.path)).is_ok_and(|here| here.len() == file.bytes)
            };
            let names_its_file =
                manifest.gguf.as_ref().is_none_or(|gguf| manifest.files.iter().any(|f| f.path == *gguf));
            if manifest.files.iter().all(is_here) && !manifest.files.is_empty() && names_its_file {
                return Cached::Complete(match manifest.gguf {
                    Some(file) => LocalFiles::Gguf(snapshot.join(file)),
                    None => LocalFiles::Folder(snapshot),
                });
            }
        }
        if holds_model(&snapshot) {
            return Cached::Likely(LocalFiles::Folder(snapshot));
        }
        match best_gguf(&gguf_files(&snapshot)) {
            Some(file) => Cached::Complete(LocalFiles::Gguf(snapshot.join(file))),
            None => Cached::Missing,
        }
    }
}

/// Whether a folder holds a config, a tokenizer and all the safetensors that its index names.
pub(super) fn holds_model(folder: &Path) -> bool {
    if !folder.join("config.json").is_file() || !folder.join("tokenizer.json").is_file() {
        return false;
    }
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::HashMap<String, String>,
    }
    match std::fs::read(folder.join("model.safetensors.index.json")) {
        Ok(text) => serde_json::from_slice(&text).is_ok_and(|index: Index| {
            let is_here = |shard: &String| is_safe_relative(shard) && folder.join(shard).is_file();
            !index.weight_map.is_empty() && index.weight_map.values().all(is_here)
        }),
        Err(_) => folder.join("model.safetensors").is_file(),
    }
}

/// Paths of the GGUF files below a snapshot, relative to it, sorted.
pub(super) fn gguf_files(snapshot: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![snapshot.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            // A file is a link to a blob; a folder is a folder.
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file()
                && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
                && let Ok(relative) = path.strip_prefix(snapshot)
            {
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}
