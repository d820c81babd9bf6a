//! Reads the source and enforces the house: who may import whom, file and function sizes, banned words.
//!
//! An exception is one line at the top of a file, `// architecture: exception RULE: why`; the test prints each.

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const EXCEPTION: &str = "// architecture: exception ";

/// (files under this prefix, must not mention any of these). A prefix may name a file without its extension.
const IMPORTS: &[(&str, &[&str])] = &[
    ("vocabulary/src", &["sconce_", "axum", "candle", "tokio", "std::fs", "Instant::now", "SystemTime"]),
    (
        "src/api",
        &["crate::engine", "crate::text", "crate::hub", "crate::launch", "sconce_models", "sconce_kernels", "reqwest"],
    ),
    ("device/src/fit", PURE),
    ("src/pool/local", &["sconce_models", "sconce_kernels", "candle", "crate::api", "axum"]),
    ("src/pool", &["crate::api", "crate::hub", "crate::launch", "axum", "reqwest"]),
    ("src/pool/dispatch/ask", PURE),
    ("src/pool/dispatch/judge", PURE),
    ("route/src", PURE_ROUTE),
    ("text/src", &["axum", "tokio::", "candle", "std::fs", "Instant::now", "SystemTime", "sconce_engine", "sconce::"]),
    ("engine/src/scheduler", PURE_ENGINE),
    ("engine/src/blocks", PURE_ENGINE),
    ("engine/src/states", PURE_ENGINE),
    ("engine/src/sequence", PURE_ENGINE),
    ("engine/src/batch", PURE_ENGINE),
    ("engine/src/sampler", PURE_ENGINE),
    ("engine/src/embed/queue", PURE_ENGINE),
    ("engine/src/costs", PURE_ENGINE),
    ("engine/src/lookup", PURE_ENGINE),
    ("engine/src/speculation", PURE_ENGINE),
    ("engine/src", &["axum", "serde_json", "tokenizers", "sconce_text", "sconce_vocabulary", "sconce::"]),
    (
        "src/hub",
        &["crate::engine", "crate::text", "crate::pool", "crate::api", "sconce_models", "sconce_kernels", "axum"],
    ),
    ("device/src", &["tokio", "axum", "candle", "sconce_", "sconce::"]),
    ("src/config", &["crate::engine", "crate::pool", "crate::api", "crate::hub", "axum", "candle"]),
    ("src/telemetry", &["crate::engine", "crate::text", "crate::hub", "crate::api", "candle"]),
    (
        "src/store",
        &["axum", "candle", "crate::api", "crate::pool", "crate::engine", "crate::text", "SystemTime", "Instant::now"],
    ),
    ("bench/src", &["axum", "candle", "sconce_engine", "sconce_text", "sconce_models", "sconce_kernels", "sconce::"]),
    ("bench/src/stats", PURE),
    ("src/bench", &["axum", "tokio", "crate::api", "crate::pool", "crate::launch"]),
    ("src/launch", &["axum", "crate::api", "crate::cli"]),
    (
        "providers/src",
        &["axum", "candle", "std::fs", "sconce_text", "sconce_engine", "sconce_models", "sconce_kernels", "sconce::"],
    ),
    ("models/src", &["tokio", "tokenizers", "axum", "sconce_engine", "sconce_text", "sconce_vocabulary", "sconce::"]),
    ("worker/src/state", PURE),
    ("worker/src/command", PURE),
    ("worker/src/cores", PURE),
    ("worker/src", &["axum", "candle", "reqwest", "sconce_", "sconce::"]),
    ("otel/src", &["axum", "candle", "std::fs", "std::env", "sconce_", "sconce::"]),
    ("kernels/src", &["sconce_cuda", "sconce_models", "sconce_engine", "sconce::", "tokio", "axum"]),
    ("pjrt/src/hlo", PURE),
    ("pjrt/src/lower", PURE),
    ("pjrt/src/buckets", PURE),
    ("pjrt/src", &["candle", "sconce_text", "sconce_vocabulary", "sconce::", "tokio", "axum"]),
    ("cuda/src", &["candle", "sconce_kernels", "sconce_models", "sconce_engine", "sconce::", "tokio", "axum"]),
];

const PURE: &[&str] =
    &["std::fs", "std::net", "std::io", "Instant::now", "SystemTime", "tokio", "rand::", "RandomState"];
const PURE_ROUTE: &[&str] = &[
    "tokio",
    "axum",
    "candle",
    "reqwest",
    "Instant::now",
    "SystemTime",
    "std::time",
    "std::fs",
    "std::net",
    "std::io",
    "rand::",
    "RandomState",
    "sconce_engine",
    "sconce_text",
    "sconce::",
];
const PURE_ENGINE: &[&str] = &[
    "tokio",
    "axum",
    "candle",
    "Instant::now",
    "SystemTime",
    "std::time",
    "std::fs",
    "std::sync::mpsc",
    "RandomState",
];

/// (word, where it is allowed, why it is banned elsewhere)
const BANNED: &[(&str, &[&str], &str)] = &[
    (".unwrap()", &[], "say why it cannot fail with expect, or return an error"),
    ("println!", &["src/cli", "cuda/build.rs"], "only commands write to stdout; use tracing"),
    ("dbg!(", &[], "a debugging aid"),
    ("unbounded_channel", &[], "no queue is unbounded"),
    ("std::env::var", &["src/config/env.rs"], "every environment variable is documented in config/env.rs"),
    ("TODO", &[], "finish it, or say in the README that it is not there"),
    ("FIXME", &[], "finish it, or say in the README that it is not there"),
    ("allow(dead_code)", &[], "remove what is not used"),
    (
        "unsafe ",
        &["kernels/src", "cuda/src", "pjrt/src/api", "models/src/weights"],
        "unsafe belongs into kernels, the GPU's driver, the C API of plugins and the weight mmap",
    ),
];

const BANNED_FILE_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "misc"];

struct Source {
    /// From the workspace root, with forward slashes.
    path: String,
    /// Every line, tests and comments included.
    lines: Vec<String>,
    /// Exceptions that the file claims, each a rule name.
    exceptions: Vec<String>,
    is_test: bool,
}

impl Source {
    /// Lines of product code with their numbers: up to the test module, without comments.
    fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.lines.iter().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(self.lines.len());
        let end = if self.is_test { 0 } else { end };
        self.lines[..end].iter().enumerate().filter_map(|(at, line)| {
            let code = line.split("//").next().unwrap_or_default();
            (!code.trim().is_empty()).then_some((at + 1, code))
        })
    }

    fn excepted(&self, rule: &str) -> bool {
        self.exceptions.iter().any(|claimed| claimed.starts_with(rule))
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in [
        "src",
        "vocabulary",
        "text",
        "engine",
        "route",
        "providers",
        "bench",
        "device",
        "models",
        "kernels",
        "cuda",
        "pjrt",
        "worker",
        "otel",
        "tests",
        "benches",
    ] {
        collect(&root.join(folder), &mut files);
    }
    assert!(files.len() > 20, "the source was not found under {}", root.display());
    let mut sources: Vec<_> = files.iter().map(|file| source(root, file)).collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" {
            collect(&path, files);
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
}

fn source(root: &Path, file: &Path) -> Source {
    let path = file.strip_prefix(root).expect("under the root").to_string_lossy().replace('\\', "/");
    let text = fs::read_to_string(file).expect("a readable file");
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let exceptions: Vec<String> =
        lines.iter().take(5).filter_map(|line| line.strip_prefix(EXCEPTION)).map(str::to_owned).collect();
    for exception in &exceptions {
        println!("exception in {path}: {exception}");
    }
    let is_test = path.split('/').any(|part| part == "tests" || part == "benches" || part == "examples")
        || path.ends_with("/tests.rs");
    Source { path, lines, exceptions, is_test }
}

fn check(rule: &str, faults: Vec<String>) {
    assert!(faults.is_empty(), "{rule}: {} faults\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn imports_follow_the_table() {
    let mut faults = Vec::new();
    for source in sources() {
        for (prefix, forbidden) in IMPORTS.iter().filter(|(prefix, _)| under(&source.path, prefix)) {
            if source.excepted("imports") {
                continue;
            }
            for (line, code) in source.product_lines() {
                for word in forbidden.iter().filter(|word| mentions(code, word)) {
                    faults.push(format!("{}:{line}: {prefix} must not use {word}", source.path));
                }
            }
        }
    }
    check("imports", faults);
}

/// `src/pool/local` covers `src/pool/local.rs` and everything in `src/pool/local/`.
fn under(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// The word as a path or macro of its own: `tokio` is not mentioned by `my_tokio`.
fn mentions(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|symbol| symbol.is_alphanumeric() || symbol == '_' || symbol == '"')
    })
}

#[test]
fn banned_words_do_not_occur() {
    let mut faults = Vec::new();
    for source in sources() {
        for (word, allowed, why) in BANNED {
            if allowed.iter().any(|prefix| source.path.starts_with(prefix)) || source.excepted(word.trim()) {
                continue;
            }
            for (line, code) in source.product_lines() {
                let spoken = code.contains(word) && !code.contains(&format!("e{word}"));
                if spoken {
                    faults.push(format!("{}:{line}: {word} ({why})", source.path));
                }
            }
        }
    }
    check("banned words", faults);
}

#[test]
fn files_and_functions_are_small() {
    let mut faults = Vec::new();
    for source in sources() {
        if source.lines.len() > FILE_LINES_MAX && !source.excepted("size") {
            faults.push(format!("{}: {} lines, at most {FILE_LINES_MAX}", source.path, source.lines.len()));
        }
        let stem = Path::new(&source.path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if BANNED_FILE_NAMES.contains(&stem.as_str()) {
            faults.push(format!("{}: a file name says what the file is for", source.path));
        }
        if source.is_test || source.excepted("function size") {
            continue;
        }
        faults.extend(long_functions(&source));
    }
    check("sizes", faults);
}

/// With rustfmt a function ends at the first line that is its own indentation and a brace.
fn long_functions(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    for (at, line) in source.lines.iter().enumerate() {
        let code = line.trim_start();
        let is_function =
            ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "async fn ", "pub async fn ", "unsafe fn "]
                .iter()
                .any(|start| code.starts_with(start));
        if !is_function || code.ends_with(';') {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        let length = source.lines[at..].iter().position(|line| *line == end).map_or(1, |length| length + 1);
        if length > FUNCTION_LINES_MAX {
            faults.push(format!(
                "{}:{}: a function of {length} lines, at most {FUNCTION_LINES_MAX}",
                source.path,
                at + 1
            ));
        }
    }
    faults
}

#[test]
fn the_checks_can_fail() {
    assert!(mentions("use tokio::sync;", "tokio") && !mentions("use my_tokio::sync;", "tokio"));
    assert!(under("src/pool/local/mod.rs", "src/pool/local") && under("device/src/fit.rs", "device/src/fit"));
    assert!(!under("src/pool/locals.rs", "src/pool/local"));
    let long = format!("fn long() {{\n{}}}\n", "    let a = 1;\n".repeat(FUNCTION_LINES_MAX));
    let lines = long.lines().map(str::to_owned).collect();
    let source = Source { path: "src/x.rs".to_owned(), lines, exceptions: Vec::new(), is_test: false };
    assert_eq!(long_functions(&source).len(), 1);
}
