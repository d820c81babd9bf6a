//! The built-in list of models with short names: data in `catalogue.toml`, parsed once.
//!
//! `catalogue.toml` is compiled in and read by a test, so a broken entry never leaves the repository.

use std::sync::LazyLock;

use serde::Deserialize;

/// The model that `sconce serve` serves when none is named.
pub const DEFAULT_MODEL: &str = "smollm2:135m";

/// Architectures, as `config.json` and GGUF headers spell them, that this version can serve.
const SERVED_ARCHITECTURES: &[&str] = &[
    "bert",
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "modernbert",
    "nomic_bert",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "roberta",
    "smollm3",
    "xlm-roberta",
];

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Chat,
    Base,
    Embedding,
    /// It scores pairs of texts, whatever its files look like.
    Reranker,
}

impl Kind {
    pub fn makes_text(self) -> bool {
        matches!(self, Self::Chat | Self::Base)
    }
}

/// One model of the catalogue.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Short name, lower case (`smollm2:135m`).
    pub name: String,
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Hub repository, `org/name`.
    pub repo: String,
    /// A commit, where the entry is pinned to one.
    pub revision: Option<String>,
    /// The file, for a GGUF repository. Without it the repository's safetensors are taken.
    pub file: Option<String>,
    /// SHA-256 of `file`, where it is known.
    pub sha256: Option<String>,
    /// Download size; exact where `sha256` is given, else to about 2 %.
    pub bytes: u64,
    pub parameters: u64,
    /// SPDX identifier, or the licence's own name.
    pub licence: String,
    /// Longest context that the model was trained for, in tokens.
    pub context: u32,
    pub kind: Kind,
    /// As `config.json` calls it in `model_type`.
    pub architecture: String,
    /// True where the hub asks for an account that accepted the licence.
    #[serde(default)]
    pub gated: bool,
    /// A Python wheel that holds the same model: the second source.
    pub wheel: Option<Wheel>,
}

impl Entry {
    /// Whether this version can serve it; the others are listed so that they can be pulled.
    pub fn is_served(&self) -> bool {
        SERVED_ARCHITECTURES.contains(&self.architecture.as_str())
    }
}

/// A pinned Python wheel and the files in it that make up the model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wheel {
    pub package: String,
    pub version: String,
    /// SHA-256 of the whole wheel.
    pub sha256: String,
    /// Size of the wheel.
    pub bytes: u64,
    /// The folder inside the wheel under which `files` lie, with a slash at its end.
    pub folder: String,
    pub files: Vec<WheelFile>,
}

/// One file of a wheel.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WheelFile {
    /// Below the wheel's `folder`, and below the model's folder once unpacked.
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    model: Vec<Entry>,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let catalogue: Catalogue =
        toml::from_str(include_str!("catalogue.toml")).expect("catalogue.toml is compiled in and read by a test");
    catalogue.model
});

/// All models, in the order of the file.
pub fn entries() -> &'static [Entry] {
    &ENTRIES
}

/// The entry of this short name or alias, in any case.
pub fn find(name: &str) -> Option<&'static Entry> {
    let name = name.to_ascii_lowercase();
    ENTRIES.iter().find(|entry| entry.name == name || entry.aliases.contains(&name))
}

/// Up to three short names that look most like `name`, the nearest first.
pub fn nearest(name: &str) -> Vec<&'static str> {
    let name = name.to_ascii_lowercase();
    let distance = |entry: &Entry| {
        let spellings = std::iter::once(&entry.name).chain(&entry.aliases);
        spellings.map(|spelling| edit_distance(&name, spelling)).min().unwrap_or(usize::MAX)
    };
    let mut ranked: Vec<(usize, &'static str)> =
        ENTRIES.iter().map(|entry| (distance(entry), entry.name.as_str())).collect();
    ranked.sort_by_key(|(distance, _)| *distance);
    ranked.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Levenshtein distance in bytes, one row at a time.
fn edit_distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.bytes().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::reference::{ModelRef, is_safe_relative};
    use super::*;

    fn is_sha256(text: &str) -> bool {
        text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    }

    #[test]
    fn every_entry_is_sound() {
        let mut seen = HashSet::new();
        for entry in entries() {
            let name = &entry.name;
            for spelling in std::iter::once(name).chain(&entry.aliases) {
                assert!(seen.insert(spelling.clone()), "{spelling} stands twice");
                assert_eq!(*spelling, spelling.to_ascii_lowercase(), "{spelling} is not lower case");
                assert!(!spelling.contains('/') && !spelling.ends_with(".gguf"), "{spelling} reads as a path");
                assert_eq!(ModelRef::parse(spelling).unwrap(), ModelRef::Catalogue(entry), "{spelling}");
            }
            let hub = match &entry.file {
                Some(file) => format!("{}:{file}", entry.repo),
                None => entry.repo.clone(),
            };
            assert!(matches!(ModelRef::parse(&hub).unwrap(), ModelRef::Hub { .. }), "{name}: {hub}");
            assert!(entry.parameters >= 20_000_000 && entry.parameters <= 9_500_000_000, "{name}: parameters");
            // Between 3 and 33 bits a weight, or the size or the count is wrong.
            let bits = entry.bytes as f64 * 8.0 / entry.parameters as f64;
            assert!((3.0..33.0).contains(&bits), "{name}: {bits:.1} bits a weight");
            assert!((256..=1_048_576).contains(&entry.context), "{name}: context");
            assert!(!entry.licence.is_empty() && !entry.architecture.is_empty(), "{name}");
            assert!(entry.sha256.as_deref().is_none_or(is_sha256), "{name}: sha256");
            assert!(entry.sha256.is_none() || entry.file.is_some(), "{name}: a hash of which file?");
        }
        assert!(entries().len() >= 30, "{} entries", entries().len());
        assert!(entries().iter().filter(|entry| entry.is_served()).count() >= 25);
    }

    #[test]
    fn wheels_are_pinned() {
        for wheel in entries().iter().filter_map(|entry| entry.wheel.as_ref()) {
            let name = &wheel.package;
            assert!(is_sha256(&wheel.sha256) && wheel.folder.ends_with('/'), "{name}");
            assert!(!wheel.files.is_empty(), "{name}");
            for file in &wheel.files {
                assert!(is_sha256(&file.sha256) && is_safe_relative(&file.path), "{name}: {}", file.path);
            }
        }
        for name in [DEFAULT_MODEL, "minilm"] {
            assert!(find(name).unwrap().wheel.is_some(), "{name} has no second source");
        }
        // The default's two sources hold the same bytes.
        let entry = find(DEFAULT_MODEL).unwrap();
        let file = &entry.wheel.as_ref().unwrap().files[0];
        assert_eq!(entry.file.as_ref(), Some(&file.path));
        assert_eq!(entry.sha256.as_ref(), Some(&file.sha256));
        assert_eq!(entry.bytes, file.bytes);
    }

    #[test]
    fn near_names_come_first() {
        for (typed, expected) in [("smollm:135m", "smollm2:135m"), ("qwen3:06b", "qwen3:0.6b"), ("minlm", "minilm")] {
            assert_eq!(nearest(typed)[0], expected, "{typed}");
        }
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
