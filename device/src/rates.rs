//! What a machine was measured to do at best, kept in the user's cache: measured once, then read.
//!
//! An entry holds for its processor and number of threads. A file that cannot be read or is of another version is as
//! one that is not there.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::fit::roofline::Ceiling;

const VERSION: u32 = 1;
/// A cache of home folders that many machines share stays small.
const ENTRIES_MAX: usize = 64;

/// Rates of the best of some rounds: what disturbs a round is not the machine's limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hardware {
    pub processor: String,
    pub threads: usize,
    pub read_bytes_per_s: f64,
    /// Multiply-adds count as two. `None`: no instruction, products are made in f32.
    pub f32_per_s: f64,
    pub bf16_per_s: Option<f64>,
    pub int8_per_s: Option<f64>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    measured: Vec<Hardware>,
}

impl Hardware {
    /// The rate of products by the weights' format: 8 bits where weights are quantised (activations are too then).
    pub fn operations_per_s(&self, format: &str) -> f64 {
        let fastest = match format {
            "BF16" => self.bf16_per_s,
            "F32" | "F16" => None,
            _ => self.int8_per_s,
        };
        // Where products of a kind are slower than f32 ones (bf16 on some processors), converting first is the way.
        fastest.unwrap_or(0.0).max(self.f32_per_s)
    }

    pub fn ceiling(&self, format: &str) -> Ceiling {
        Ceiling { read_bytes_per_s: Some(self.read_bytes_per_s), operations_per_s: Some(self.operations_per_s(format)) }
    }

    fn is_sound(&self) -> bool {
        let rates = [Some(self.read_bytes_per_s), Some(self.f32_per_s), self.bf16_per_s, self.int8_per_s];
        rates.into_iter().flatten().all(|rate| rate.is_finite() && rate > 0.0)
    }
}

/// What was measured with this processor and so many threads.
pub fn load(file: &Path, processor: &str, threads: usize) -> Option<Hardware> {
    let is_wanted = |known: &Hardware| known.processor == processor && known.threads == threads;
    kept(file).into_iter().find(|known| is_wanted(known) && known.is_sound())
}

/// Replaces what was measured with the same processor and threads.
pub fn store(file: &Path, measured: &Hardware) -> io::Result<()> {
    let is_other = |known: &Hardware| known.processor != measured.processor || known.threads != measured.threads;
    let mut all: Vec<Hardware> = kept(file).into_iter().filter(is_other).take(ENTRIES_MAX - 1).collect();
    all.insert(0, measured.clone());
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // Readers see the old file or the new one, never half of one.
    let draft = file.with_extension(format!("json.{}", std::process::id()));
    let mut written = fs::File::create(&draft)?;
    serde_json::to_writer_pretty(&mut written, &Kept { version: VERSION, measured: all })?;
    written.write_all(b"\n")?;
    fs::rename(&draft, file)
}

fn kept(file: &Path) -> Vec<Hardware> {
    let kept = fs::read_to_string(file).ok().and_then(|text| serde_json::from_str::<Kept>(&text).ok());
    kept.filter(|kept| kept.version == VERSION).map_or_else(Vec::new, |kept| kept.measured)
}
