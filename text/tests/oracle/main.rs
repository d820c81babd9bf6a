//! The text room against transformers and tokenizers: golden files made by `tests/fixtures/make_text.py`.

mod altered;
mod answer;
mod answer_cases;
mod stream;
mod template;
mod tokenizer;

use std::path::PathBuf;

use serde_json::Value;

/// Reads one of the committed golden files.
fn fixture(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    read_json(&path)
}

fn read_json(path: &std::path::Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
