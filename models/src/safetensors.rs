//! A folder of safetensors, in one file or in shards under an index, as one set of tensors.
//!
//! Invariants: every shard's header agrees with its file byte for byte (the `safetensors` crate checks offsets,
//! overlaps and sizes), every tensor that the index promises is there, and no index can point outside its folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors};
use sconce_kernels::GgmlType;

use crate::error::{Error, Result, shown};
use crate::names::Naming;
use crate::tensors::{Format, Stored, TensorSet};
use crate::weights::MappedFile;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const INDEX_BYTES_MAX: u64 = 64 << 20;

/// Opens `model.safetensors`, or all shards of `model.safetensors.index.json`.
pub(crate) fn open(folder: &Path, naming: Naming) -> Result<TensorSet> {
    let index = folder.join(INDEX);
    let single = folder.join(SINGLE);
    let mut set = TensorSet::new(folder, naming);
    if single.exists() || !index.exists() {
        add_file(&mut set, &single)?;
        return Ok(set);
    }
    let promised = read_index(&index)?;
    let shards: BTreeSet<&str> = promised.values().map(String::as_str).collect();
    for shard in shards {
        let path = folder.join(shard);
        if !path.exists() {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            let next = "the model's index names this shard: download the model again";
            return Err(Error::Io { file: path, action: "open it", source, next });
        }
        add_file(&mut set, &path)?;
    }
    for (tensor, shard) in &promised {
        let file = folder.join(shard);
        if set.get(tensor).is_none_or(|stored| stored.file.path() != file) {
            return Err(Error::MissingTensor { file, tensor: shown(tensor) });
        }
    }
    Ok(set)
}

/// Opens one file whose name is known.
pub(crate) fn open_file(path: &Path, naming: Naming) -> Result<TensorSet> {
    let mut set = TensorSet::new(path, naming);
    add_file(&mut set, path)?;
    Ok(set)
}

/// Tensor name to shard file name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = read_text(path, INDEX_BYTES_MAX)?;
    let wrong = |detail: String| Error::Config { file: path.to_owned(), detail };
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_str(&text).map_err(|error| wrong(format!("not a shard index: {error}")))?;
    if index.weight_map.is_empty() {
        return Err(wrong("weight_map names no tensor".to_owned()));
    }
    for shard in index.weight_map.values() {
        let is_plain_name = Path::new(shard).file_name().is_some_and(|name| name == shard.as_str());
        if !is_plain_name || !shard.ends_with(".safetensors") {
            return Err(wrong(format!("weight_map names the shard {}, expected a file in this folder", shown(shard))));
        }
    }
    Ok(index.weight_map)
}

/// A small text file of a model's folder, refused beyond `bytes_max`.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> Result<String> {
    let next = "check the path and its permissions, or download the model again";
    let failed = |source| Error::Io { file: path.to_owned(), action: "read it", source, next };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > bytes_max {
        return Err(failed(std::io::Error::other(format!("it has {bytes} bytes, at most {bytes_max} are expected"))));
    }
    fs::read_to_string(path).map_err(failed)
}

fn add_file(set: &mut TensorSet, path: &Path) -> Result<()> {
    let file = Arc::new(MappedFile::open(path)?);
    let bytes: &[u8] = (*file).as_ref();
    let (header_bytes, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| damaged(path, &error, bytes.len()))?;
    let data_start = 8 + header_bytes;
    for (name, info) in metadata.tensors() {
        let stored = Stored {
            format: format_of(info.dtype),
            shape: info.shape.clone(),
            file: Arc::clone(&file),
            offset: data_start + info.data_offsets.0,
            bytes: info.data_offsets.1 - info.data_offsets.0,
        };
        set.insert(name, stored)?;
    }
    Ok(())
}

fn format_of(dtype: Dtype) -> Format {
    match dtype {
        Dtype::F32 => Format::Known(GgmlType::F32),
        Dtype::F16 => Format::Known(GgmlType::F16),
        Dtype::BF16 => Format::Known(GgmlType::Bf16),
        other => Format::Unknown(format!("{other:?}")),
    }
}

fn damaged(path: &Path, error: &SafeTensorError, file_bytes: usize) -> Error {
    let detail = match error {
        SafeTensorError::HeaderTooSmall => format!("it has {file_bytes} bytes, a header takes at least 8"),
        SafeTensorError::HeaderTooLarge => "it announces a header beyond 100 MB".to_owned(),
        SafeTensorError::InvalidHeaderLength => {
            format!("it announces a header longer than the file of {file_bytes} bytes")
        }
        SafeTensorError::InvalidOffset(tensor) => {
            format!("the bytes of tensor {} overlap or leave a gap before it", shown(tensor))
        }
        SafeTensorError::TensorInvalidInfo => "a tensor's byte range does not match its shape and dtype".to_owned(),
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("its tensors do not end where the file of {file_bytes} bytes ends, it may be cut short")
        }
        SafeTensorError::ValidationOverflow => "a tensor's shape is too large for any file".to_owned(),
        other => shown(&other.to_string()),
    };
    Error::Damaged { file: PathBuf::from(path), format: "safetensors", detail }
}
