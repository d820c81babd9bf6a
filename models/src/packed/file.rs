//! The form of a file: a safetensors file of one tensor of bytes, whose metadata say what it was made of and where in
//! it each matrix lies.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use safetensors::tensor::SafeTensors;
use sconce_kernels::{FiledPart, GgmlType, PACKED_ALIGN, PackedFile, PackedWeight, Precision};
use serde_json::{Value, json};

use super::Laid;
use crate::load::Progress;

pub(super) const EXTENSION: &str = "packed.safetensors";
/// Keys of the metadata.
const MADE_OF: &str = "sconce_made_of";
const MATRICES: &str = "sconce_matrices";
const TENSOR: &str = "panels";
/// Where the bytes start is a multiple of it: a page, hence a cache line.
const START_ALIGN: usize = 4096;

/// A file that was made of the right things.
pub(super) struct Opened {
    pub map: PackedFile,
    /// Offsets count from the start of the file.
    matrices: HashMap<String, Matrix>,
}

/// ggml's id of the type, rows, and the first byte, counted from the first of all panels.
type WrittenPart = (u32, usize, usize);

struct Matrix {
    input: usize,
    parts: Vec<FiledPart>,
}

/// `None` when it is not there, or is another.
pub(super) fn open(path: &Path, made_of: &str) -> Option<Opened> {
    let file = File::open(path).ok()?;
    let map = PackedFile::map(&file).ok()?;
    let (header_bytes, metadata) = SafeTensors::read_metadata(map.bytes()).ok()?;
    let texts = metadata.metadata().as_ref()?;
    let (start, end) = metadata.info(TENSOR)?.data_offsets;
    let data = header_bytes + size_of::<u64>() + start;
    // A file that was cut short says so here, and not when its last panel is read.
    if texts.get(MADE_OF)? != made_of || data - start + end != map.bytes().len() {
        return None;
    }
    let matrices: HashMap<String, (usize, Vec<WrittenPart>)> = serde_json::from_str(texts.get(MATRICES)?).ok()?;
    let part = |(ty, rows, offset): WrittenPart| {
        Some(FiledPart { ty: GgmlType::from_id(ty)?, rows, offset: offset.checked_add(data)? })
    };
    let matrix = |(key, (input, parts)): (String, (usize, Vec<_>))| {
        Some((key, Matrix { input, parts: parts.into_iter().map(part).collect::<Option<_>>()? }))
    };
    let matrices = matrices.into_iter().map(matrix).collect::<Option<_>>()?;
    // Says that it is in use; where that is not allowed, it is as old as it is.
    _ = file.set_modified(SystemTime::now());
    Some(Opened { map, matrices })
}

impl Opened {
    /// False when the disk does not give it.
    pub fn read_in(&self, progress: &mut Progress) -> bool {
        self.map.read_in(|bytes| progress.add(bytes)).is_ok()
    }

    pub fn weight(&self, key: &str, (rows, input): (usize, usize), precision: Precision) -> Option<PackedWeight> {
        let matrix = self.matrices.get(key).filter(|matrix| matrix.input == input)?;
        let weight = PackedWeight::mapped(&matrix.parts, input, precision, &self.map).ok()?;
        (weight.out() == rows).then_some(weight)
    }
}

/// What stands before the panels, and the bytes of those.
pub(super) fn header(laid: &[Laid], made_of: &str) -> (Vec<u8>, usize) {
    let mut offset = 0;
    let mut matrices = serde_json::Map::new();
    for Laid { key, weight } in laid {
        let mut parts = Vec::new();
        for (ty, rows, panels) in weight.parts() {
            parts.push((ty.id(), rows, offset));
            offset += panels.len().next_multiple_of(PACKED_ALIGN);
        }
        matrices.insert(key.clone(), json!([weight.input(), parts]));
    }
    let metadata = json!({ MADE_OF: made_of, MATRICES: Value::Object(matrices).to_string() });
    let tensor = json!({"dtype": "U8", "shape": [offset], "data_offsets": [0, offset]});
    let mut text = json!({"__metadata__": metadata, TENSOR: tensor}).to_string().into_bytes();
    let padded = (size_of::<u64>() + text.len()).next_multiple_of(START_ALIGN) - size_of::<u64>();
    text.resize(padded, b' ');
    ([&(padded as u64).to_le_bytes(), text.as_slice()].concat(), offset)
}

/// Zeros that stand behind a part's panels.
pub(super) fn padding(bytes: usize) -> &'static [u8] {
    const ZEROS: [u8; PACKED_ALIGN] = [0; PACKED_ALIGN];
    &ZEROS[..bytes.next_multiple_of(PACKED_ALIGN) - bytes]
}
