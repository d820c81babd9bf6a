//! How cache files are named, and what says which files one was made of.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use crate::weights::MappedFile;

/// The name of a model's file or folder, in what every file system takes.
pub(crate) fn stem(source: &Path) -> String {
    let name = source.file_stem().unwrap_or_default().to_string_lossy();
    name.chars()
        .map(|symbol| if symbol.is_ascii_alphanumeric() || ".-_".contains(symbol) { symbol } else { '_' })
        .collect()
}

/// Sixteen digits for a longer text.
pub(crate) fn short(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Path, length and time of change of each file once, by path: a file that was replaced is another.
pub(crate) fn identities<'a>(files: impl Iterator<Item = &'a MappedFile>) -> Value {
    let files: BTreeSet<&Path> = files.map(MappedFile::path).collect();
    files.into_iter().map(identity).collect()
}

fn identity(path: &Path) -> Value {
    let metadata = fs::metadata(path).ok();
    let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    json!([
        path.to_string_lossy(),
        metadata.map(|metadata| metadata.len()),
        modified.map(|at| at.as_nanos().to_string())
    ])
}
