//! GGUF headers (versions 2 and 3, little-endian): metadata and where each tensor lies, every number checked.
//!
//! Invariants: no input makes the parser panic; memory stays within a small multiple of the file's own bytes, because a
//! count is believed only as far as the bytes behind it reach; in a [`Header`] every tensor lies inside the file,
//! aligned, and shares no byte with another. Format: the GGUF specification in ggml's `docs/gguf.md`.

mod reader;
mod types;
mod value;

use std::collections::BTreeMap;
use std::path::Path;

pub use types::TensorType;
pub use value::{Array, Value};

use crate::error::{Error, Result, shown};
use reader::Reader;

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT_DEFAULT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 20;
const DIMENSIONS_MAX: u32 = 4;
const NAME_BYTES_MAX: u64 = 1024;
/// A key (8 bytes of length), a value type (4) and the smallest value (1).
const KEY_VALUE_BYTES_MIN: u64 = 13;
/// A name length (8), dimension count (4), type (4) and offset (8).
const TENSOR_BYTES_MIN: u64 = 24;

#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    pub version: u32,
    pub metadata: BTreeMap<String, Value>,
    /// In the file's order.
    pub tensors: Vec<TensorInfo>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// Fastest-running dimension first, as stored: a matrix `[out, in]` reads `[in, out]` here.
    pub dimensions: Vec<u64>,
    pub kind: TensorType,
    /// From the beginning of the file.
    pub offset: u64,
    pub bytes: u64,
}

impl TensorInfo {
    pub fn elements(&self) -> u64 {
        self.dimensions.iter().product()
    }

    /// Slowest-running dimension first, as everything else in this crate counts.
    pub fn shape(&self) -> Vec<usize> {
        self.dimensions.iter().rev().map(|&size| size as usize).collect()
    }
}

/// Reads the header of a GGUF file; tensor data is not touched.
pub fn read_header(path: &Path) -> Result<Header> {
    Header::parse(crate::weights::MappedFile::open(path)?.as_ref(), path)
}

impl Header {
    /// Parses the whole file's bytes; `path` is for messages only.
    pub fn parse(file: &[u8], path: &Path) -> Result<Self> {
        parse(file).map_err(|detail| Error::Damaged { file: path.to_owned(), format: "GGUF", detail })
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub fn string(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    pub fn unsigned(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    pub fn bool(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    pub fn strings(&self, key: &str) -> Option<&[String]> {
        self.get(key)?.as_strings()
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

fn parse(file: &[u8]) -> Result<Header, String> {
    let mut reader = Reader::new(file);
    if reader.take(4, "the magic number")? != MAGIC {
        return Err("it does not begin with the letters GGUF".to_owned());
    }
    let version = reader.u32("the version")?;
    match version {
        2 | 3 => {}
        1 => return Err("GGUF version 1 is obsolete, versions 2 and 3 are read".to_owned()),
        _ if matches!(version.swap_bytes(), 1..=3) => return Err("it is big-endian, which is not read".to_owned()),
        _ => return Err(format!("GGUF version {version} is unknown, versions 2 and 3 are read")),
    }
    let tensor_count = reader.u64("the tensor count")?;
    let key_count = reader.u64("the metadata count")?;
    reader.expect_room(tensor_count, TENSOR_BYTES_MIN, "tensors")?;
    reader.expect_room(key_count, KEY_VALUE_BYTES_MIN, "metadata keys")?;

    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = reader.string("a metadata key", NAME_BYTES_MAX)?;
        let value = Value::read(&mut reader, &key)?;
        if metadata.contains_key(&key) {
            return Err(format!("metadata key {} appears twice", shown(&key)));
        }
        metadata.insert(key, value);
    }
    let alignment = alignment(&metadata)?;
    let mut tensors = Vec::with_capacity(tensor_count as usize);
    for _ in 0..tensor_count {
        tensors.push(read_tensor(&mut reader)?);
    }
    let data_start = reader.position().next_multiple_of(alignment);
    place_tensors(&mut tensors, data_start, alignment, file.len() as u64)?;
    Ok(Header { version, metadata, tensors })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, String> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(ALIGNMENT_DEFAULT) };
    match value.as_u64() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX => Ok(alignment),
        _ => Err(format!("general.alignment is not a power of two up to {ALIGNMENT_MAX}")),
    }
}

/// One entry of the tensor table; the offset is still relative to the data section.
fn read_tensor(reader: &mut Reader) -> Result<TensorInfo, String> {
    let name = reader.string("a tensor name", NAME_BYTES_MAX)?;
    let label = shown(&name);
    let dimension_count = reader.u32("a dimension count")?;
    if dimension_count == 0 || dimension_count > DIMENSIONS_MAX {
        return Err(format!("tensor {label} has {dimension_count} dimensions, expected 1 to {DIMENSIONS_MAX}"));
    }
    let dimensions = (0..dimension_count).map(|_| reader.u64("a dimension")).collect::<Result<Vec<_>, _>>()?;
    let id = reader.u32("a tensor type")?;
    let kind = TensorType::from_id(id).ok_or_else(|| format!("tensor {label} has unknown type number {id}"))?;
    let offset = reader.u64("a tensor offset")?;
    let bytes = kind.bytes_of(&dimensions).ok_or_else(|| {
        format!("tensor {label} of shape {dimensions:?} does not divide into {} blocks, or is too large", kind.name())
    })?;
    Ok(TensorInfo { name, dimensions, kind, offset, bytes })
}

/// Makes offsets absolute, and checks that every tensor is aligned, inside the file, named once and alone on its bytes.
fn place_tensors(tensors: &mut [TensorInfo], start: u64, alignment: u64, file_bytes: u64) -> Result<(), String> {
    for tensor in tensors.iter_mut() {
        let label = shown(&tensor.name);
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(format!("tensor {label} lies at offset {}, not a multiple of {alignment}", tensor.offset));
        }
        let end = tensor.offset.checked_add(start).and_then(|begin| begin.checked_add(tensor.bytes));
        match end {
            Some(end) if end <= file_bytes => tensor.offset += start,
            _ => {
                return Err(format!(
                    "tensor {label} needs {} bytes from byte {} on, but the file has {file_bytes} bytes",
                    tensor.bytes,
                    u128::from(tensor.offset) + u128::from(start),
                ));
            }
        }
    }
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_unstable_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            return Err(format!("tensors {} and {} overlap", shown(&pair[0].name), shown(&pair[1].name)));
        }
    }
    by_offset.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    match by_offset.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(format!("tensor {} appears twice", shown(&pair[0].name))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
