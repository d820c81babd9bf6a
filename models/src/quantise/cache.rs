//! The cache file: a safetensors file of bytes, whose metadata name what it was made of.
//!
//! Invariants: a file under its final name is complete, for it is renamed there when it is; one that does not fit the
//! plan, or was made of other files, is made anew; two processes that want the same file make it once. Whatever lies in
//! the folder may be deleted when no server starts.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde_json::json;

use crate::cache_names::{identities, short, stem};
use crate::error::{Error, Result};
use crate::load::Progress;
use crate::tensors::{Format, Stored};
use crate::weights::MappedFile;

use super::{Planned, Quantize, convert};

/// To be raised when the same input would give other bytes.
const VERSION: u32 = 1;
/// Key of the metadata.
const MADE_OF: &str = "sconce_made_of";
const NEXT: &str = "check the folder's permissions and free space, or give another with --quantization-cache";

/// Where each planned tensor lies in the cache file.
pub(super) fn open_or_make(
    source: &Path,
    planned: &[Planned],
    quantize: &Quantize,
    progress: &mut Progress,
) -> Result<Vec<Stored>> {
    let made_of = made_of(planned, quantize);
    let name = format!("{}-{}-{}.safetensors", stem(source), quantize.format.name(), short(&made_of));
    let path = quantize.cache.join(name);
    if let Some(found) = open(&path, planned, &made_of) {
        progress.add(planned.iter().map(|planned| planned.from.bytes as u64).sum());
        return Ok(found);
    }
    let failed = |action: &'static str, file: &Path| {
        let file = file.to_owned();
        move |source| Error::Io { file, action, source, next: NEXT }
    };
    fs::create_dir_all(&quantize.cache).map_err(failed("make the folder", &quantize.cache))?;
    let part = path.with_extension("part");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&part);
    let file = file.map_err(failed("write it", &part))?;
    // Another process may be at it: then what it leaves is looked at.
    file.lock().map_err(failed("lock it", &part))?;
    if let Some(found) = open(&path, planned, &made_of) {
        return Ok(found);
    }
    file.set_len(0).map_err(failed("write it", &part))?;
    let written = write(&file, &part, planned, &made_of, progress);
    let renamed = written.and_then(|()| fs::rename(&part, &path).map_err(failed("rename it", &part)));
    if let Err(error) = renamed {
        // Half a file is of no use to anybody.
        _ = fs::remove_file(&part);
        return Err(error);
    }
    let detail = "it was written and does not read back".to_owned();
    open(&path, planned, &made_of).ok_or(Error::Damaged { file: path, format: "cache", detail })
}

fn write(file: &File, path: &Path, planned: &[Planned], made_of: &str, progress: &mut Progress) -> Result<()> {
    let failed = |source| Error::Io { file: path.to_owned(), action: "write it", source, next: NEXT };
    let mut to = BufWriter::with_capacity(1 << 20, file);
    to.write_all(&header(planned, made_of)).map_err(failed)?;
    for planned in planned {
        convert::write(planned, &mut to, progress, failed)?;
    }
    to.flush().map_err(failed)?;
    drop(to);
    file.sync_all().map_err(failed)
}

/// Length and JSON of a safetensors header, as the format's README has them.
fn header(planned: &[Planned], made_of: &str) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".to_owned(), json!({ MADE_OF: made_of }));
    let mut offset = 0;
    for planned in planned {
        let end = offset + planned.bytes();
        let entry = json!({"dtype": "U8", "shape": [planned.bytes()], "data_offsets": [offset, end]});
        entries.insert(planned.name.clone(), entry);
        offset = end;
    }
    let mut text = serde_json::Value::Object(entries).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// The tensors of a file that fits the plan; `None` when it is not there or does not.
fn open(path: &Path, planned: &[Planned], made_of: &str) -> Option<Vec<Stored>> {
    let file = Arc::new(MappedFile::open(path).ok()?);
    let (header_bytes, metadata) = SafeTensors::read_metadata((*file).as_ref()).ok()?;
    if metadata.metadata().as_ref()?.get(MADE_OF)? != made_of {
        return None;
    }
    let tensors = tensors(&metadata);
    planned.iter().map(|planned| stored(planned, tensors.get(&planned.name)?, &file, 8 + header_bytes)).collect()
}

fn tensors(metadata: &Metadata) -> HashMap<String, &TensorInfo> {
    metadata.tensors().into_iter().collect()
}

fn stored(planned: &Planned, info: &TensorInfo, file: &Arc<MappedFile>, data_start: usize) -> Option<Stored> {
    let (start, end) = info.data_offsets;
    if info.dtype != Dtype::U8 || end - start != planned.bytes() {
        return None;
    }
    Some(Stored {
        format: Format::Known(planned.to),
        shape: planned.from.shape.clone(),
        file: Arc::clone(file),
        offset: data_start + start,
        bytes: end - start,
    })
}

/// Everything that the bytes follow from, as far as it can be told without reading them.
fn made_of(planned: &[Planned], quantize: &Quantize) -> String {
    let files = identities(planned.iter().map(|planned| &*planned.from.file));
    json!({"version": VERSION, "format": quantize.format.name(), "files": files}).to_string()
}
