//! From a model reference to files on this machine.
//!
//! - A model that is already here costs no request, so a start with a filled cache is instant and works offline.
//! - Nothing half-written is ever visible: bytes go to `*.incomplete`, are checked, and are then renamed.
//! - The cache has the layout of huggingface_hub, so both share what either has downloaded.
//! - hf-hub resolves revisions and lists files. Its downloads cannot resume and do not check hashes, so the bytes are
//!   fetched by `download.rs`; its cache lookups need a client, so `cache.rs` reads the layout itself.

mod cache;
pub mod catalogue;
#[cfg(feature = "hub")]
mod choose;
#[cfg(feature = "hub")]
mod download;
mod inventory;
mod options;
pub mod progress;
mod quantisation;
mod reference;
#[cfg(feature = "hub")]
mod remote;
mod source;
mod storage;
mod wheel;

use std::path::PathBuf;

pub use inventory::{CachedModel, Removed, list_local, remove};
pub use options::{FreeBytes, HubOptions, Patience};
pub use progress::Progress;
pub use reference::ModelRef;
use source::Wanted;
use wheel::wheel_repo;

use crate::error::Error;

/// A model whose files are on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalModel {
    /// Name to serve it under, unless the user gives another.
    pub name: String,
    /// The reference, in a form that `ModelRef::parse` reads back.
    pub reference: String,
    pub files: LocalFiles,
}

/// What there is to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalFiles {
    /// One GGUF file.
    Gguf(PathBuf),
    /// A folder with `config.json`, `tokenizer.json` and safetensors.
    Folder(PathBuf),
    /// True shapes, random weights, of the model with this name.
    Dummy(String),
    /// No files: timed tokens.
    Sim,
}

/// Finds the files of a model, downloading what is missing. Dropping the future stops the download; what has arrived
/// is kept for the next one.
pub async fn fetch(reference: &ModelRef, options: &HubOptions, progress: &dyn Progress) -> Result<LocalModel, Error> {
    let files = match reference {
        ModelRef::Folder(path) => LocalFiles::Folder(path.clone()),
        ModelRef::GgufFile(path) => LocalFiles::Gguf(path.clone()),
        ModelRef::Dummy(name) => LocalFiles::Dummy(name.clone()),
        ModelRef::Sim => LocalFiles::Sim,
        ModelRef::Hub { repo, revision, file } => {
            let wanted = Wanted { repo, revision: revision.as_deref(), file: file.as_deref(), sha256: None };
            source::fetch_repo(&wanted, options, progress).await?
        }
        ModelRef::Catalogue(entry) => source::fetch_entry(entry, options, progress).await?,
    };
    Ok(LocalModel { name: reference.short_name(), reference: reference.to_string(), files })
}
