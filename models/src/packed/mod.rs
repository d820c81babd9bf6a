//! Packed weights kept on disk: what the first load of a large model packed, later ones map as it is, at the speed at
//! which its file is read.
//!
//! Invariants: a file under its final name is complete, for it is renamed there when it is; one that was made of other
//! files, by another version or on another kind of machine is not looked at. Whatever lies in the folder may be deleted
//! at any time. Nothing here can fail a load: what cannot be kept or read is said, and packed as if this did not exist.

mod file;
mod keep;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use sconce_kernels::{PACKED_VERSION, PackedFile, PackedWeight, Precision};
use serde_json::json;

use self::file::Opened;
use crate::cache_names::{identities, short, stem};
use crate::load::Progress;
use crate::names::Part;
use crate::tensors::TensorSet;

/// Smaller models are packed before anybody has noticed.
const WORTH_BYTES: u64 = 256 << 20;
/// To be raised when the same parts would be packed of other rows of the same files.
const ORDER_VERSION: u32 = 1;

/// Where packed weights are kept, and how much of them.
#[derive(Clone)]
pub struct PackedCache {
    pub folder: PathBuf,
    /// Of all files together. Those that were not used for longest make room for new ones.
    pub bytes_max: u64,
    /// Keep models of any size, for tests.
    pub keeps_small: bool,
    /// Hears what became of it, perhaps on another thread and after the load.
    pub told: Arc<dyn Fn(PackedNews) + Send + Sync>,
}

/// What became of a model's packed weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackedNews {
    /// They were there and are mapped.
    Used { file: PathBuf, bytes: u64 },
    /// They were packed, and the next load finds them.
    Kept { file: PathBuf, bytes: u64 },
    /// They were packed, and the next load will do it again.
    NotKept { file: PathBuf, why: String },
}

/// One model's place in the cache while it is loaded.
pub(crate) struct Shelf {
    cache: PackedCache,
    path: PathBuf,
    made_of: String,
    opened: Option<Opened>,
    laid: Vec<Laid>,
    /// Something was packed that the file did not have.
    has_new: bool,
}

/// What goes by a key in the file.
struct Laid {
    key: String,
    weight: PackedWeight,
}

impl Shelf {
    /// Opens what is kept of a model, if it is large enough to be worth it, and reads it in.
    pub fn open(cache: &PackedCache, tensors: &TensorSet, weight_bytes: u64, progress: &mut Progress) -> Option<Self> {
        if weight_bytes < WORTH_BYTES && !cache.keeps_small {
            return None;
        }
        let made_of = json!({
            "packed": PACKED_VERSION,
            "order": ORDER_VERSION,
            "machine": std::env::consts::ARCH,
            "files": identities(tensors.iter().map(|(_, stored)| &*stored.file)),
        })
        .to_string();
        let name = format!("{}-{}.{}", stem(&tensors.source), short(&made_of), file::EXTENSION);
        let path = cache.folder.join(name);
        let opened = file::open(&path, &made_of).filter(|opened| opened.read_in(progress));
        Some(Self { cache: cache.clone(), path, made_of, opened, laid: Vec::new(), has_new: false })
    }

    /// The matrix of these parts as it was packed before.
    pub fn take(&mut self, parts: &[(Part, usize)], input: usize, precision: Precision) -> Option<PackedWeight> {
        let rows = parts.iter().map(|(_, rows)| rows).sum::<usize>();
        let key = key(parts);
        let weight = self.opened.as_ref()?.weight(&key, (rows, input), precision)?;
        self.laid.push(Laid { key, weight: weight.clone() });
        Some(weight)
    }

    /// Notes a matrix that was packed now.
    pub fn lay(&mut self, parts: &[(Part, usize)], weight: &PackedWeight) {
        self.has_new = true;
        self.laid.push(Laid { key: key(parts), weight: weight.clone() });
    }

    /// The model is loaded: what is new is written, what was mapped moves to huge pages, both behind the model's back.
    pub fn close(self) {
        let Self { cache, path, made_of, opened, laid, has_new } = self;
        let run = move || match opened {
            Some(Opened { map, .. }) if !has_new => {
                let bytes = map.bytes().len() as u64;
                drop(laid);
                (cache.told)(PackedNews::Used { file: path, bytes });
                PackedFile::settle(map);
            }
            _ => {
                let news = match keep::keep(&cache, &path, &made_of, &laid) {
                    Ok(bytes) => PackedNews::Kept { file: path, bytes },
                    Err(why) => PackedNews::NotKept { file: path, why },
                };
                (cache.told)(news);
            }
        };
        // Without a thread nothing is kept, which is all that is lost.
        _ = thread::Builder::new().name("sconce-packed".to_owned()).spawn(run);
    }
}

fn key(parts: &[(Part, usize)]) -> String {
    format!("{parts:?}")
}
