//! What a user types for MODEL, parsed once: a hub repository, a folder, a file, a short name, `dummy:NAME` or `sim`.
//!
//! Parsing touches the file system (does this path exist?) and never the network.

use std::path::{Path, PathBuf};

use super::catalogue::{self, Entry};
use crate::config::env;
use crate::error::{Error, ErrorKind};

/// Where a model is to come from.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelRef {
    /// `org/name`, `org/name@revision`, `org/name:file.gguf`, `org/name@revision:file.gguf`.
    Hub { repo: String, revision: Option<String>, file: Option<String> },
    /// A folder that holds `config.json` and safetensors.
    Folder(PathBuf),
    /// One GGUF file.
    GgufFile(PathBuf),
    /// A short name of the built-in catalogue.
    Catalogue(&'static Entry),
    /// `dummy:NAME`: true shapes, random weights.
    Dummy(String),
    /// No model at all: timed tokens.
    Sim,
}

impl ModelRef {
    /// Parses what the user typed. Reserved words come first, then existing paths, then hub ids, then short names.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() {
            return Err(wrong("the model name is empty: give org/name, a folder, a .gguf file or a short name"));
        }
        if text == "sim" {
            return Ok(Self::Sim);
        }
        if let Some(name) = text.strip_prefix("dummy:") {
            if name.is_empty() {
                return Err(wrong("dummy: lacks a name: write for example dummy:llama3.2:1b"));
            }
            return Ok(Self::Dummy(name.to_owned()));
        }
        if text.starts_with("http://") || text.starts_with("https://") || text.starts_with("hf://") {
            return Err(wrong(format!("'{text}' is an address: give the model as org/name or org/name:file.gguf")));
        }
        let path = expand_home(text)?;
        if looks_like_path(text) || path.exists() {
            return local(text, path);
        }
        if text.contains('/') {
            return hub(text);
        }
        if text.ends_with(".gguf") {
            return local(text, path);
        }
        match catalogue::find(text) {
            Some(entry) => Ok(Self::Catalogue(entry)),
            None => Err(unknown_name(text)),
        }
    }

    /// The name under which the model is served unless the user gives another.
    pub fn short_name(&self) -> String {
        match self {
            Self::Hub { repo, .. } => repo.clone(),
            Self::Folder(path) => {
                // `.` and `..` have no name of their own.
                let full = path.canonicalize().unwrap_or_else(|_| path.clone());
                full.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
            }
            Self::GgufFile(path) => {
                path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned())
            }
            Self::Catalogue(entry) => entry.name.clone(),
            Self::Dummy(name) => format!("dummy:{name}"),
            Self::Sim => "sim".to_owned(),
        }
    }
}

impl std::fmt::Display for ModelRef {
    /// A form that `parse` reads back.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hub { repo, revision, file } => {
                f.write_str(repo)?;
                if let Some(revision) = revision {
                    write!(f, "@{revision}")?;
                }
                file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
            }
            Self::Folder(path) | Self::GgufFile(path) => write!(f, "{}", path.display()),
            Self::Catalogue(_) | Self::Dummy(_) | Self::Sim => f.write_str(&self.short_name()),
        }
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidRequest, message)
}

fn looks_like_path(text: &str) -> bool {
    matches!(text, "." | ".." | "~") || ["./", "../", "/", "~/"].iter().any(|prefix| text.starts_with(prefix))
}

/// `~` and `~/x` with the user's folder put in; anything else as it is.
pub(super) fn expand_home(text: &str) -> Result<PathBuf, Error> {
    let rest = match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.trim_start_matches('/'),
        _ => return Ok(PathBuf::from(text)),
    };
    let home = env::HOME.path().ok_or_else(|| wrong(format!("HOME is not set: write '{text}' as a full path")))?;
    Ok(if rest.is_empty() { home } else { home.join(rest) })
}

fn local(text: &str, path: PathBuf) -> Result<ModelRef, Error> {
    let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if path.is_dir() {
        return Ok(ModelRef::Folder(path));
    }
    if !path.exists() {
        let message = if is_gguf && !text.contains('/') {
            format!("no file '{text}' in this folder: check the path, or write org/name:{text} to download it")
        } else {
            format!("no file or folder '{text}': check the path, or give a hub model as org/name")
        };
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    if !is_gguf {
        return Err(wrong(format!(
            "'{text}' is not a .gguf file: give a .gguf file, or the folder that holds config.json and safetensors"
        )));
    }
    Ok(ModelRef::GgufFile(path))
}

/// `org/name[@revision][:file.gguf]`. A revision may hold `/` (`refs/pr/3`), a file may lie in a sub-folder.
fn hub(text: &str) -> Result<ModelRef, Error> {
    let (head, file) = match text.split_once(':') {
        Some((head, file)) => (head, Some(file)),
        None => (text, None),
    };
    let (repo, revision) = match head.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (head, None),
    };
    let is_part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
            && !part.contains("--")
            && !part.contains("..")
    };
    let parts: Vec<&str> = repo.split('/').collect();
    if parts.len() != 2 || !parts.iter().all(|part| is_part(part)) {
        let message =
            format!("no file or folder '{text}', and it is not a hub model of the form org/name[@rev][:file]");
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    if revision.is_some_and(|revision| !is_safe_relative(revision)) {
        return Err(wrong(format!("the revision in '{text}' is not a branch, tag or commit: write org/name@rev")));
    }
    if let Some(file) = file
        && !(is_safe_relative(file) && file.to_ascii_lowercase().ends_with(".gguf"))
    {
        return Err(wrong(format!("'{file}' in '{text}' is not a .gguf file: write org/name:file.gguf")));
    }
    Ok(ModelRef::Hub { repo: repo.to_owned(), revision: revision.map(str::to_owned), file: file.map(str::to_owned) })
}

/// A relative path of plain parts: safe to join to a folder of ours. File names from the hub are checked with it too.
pub(super) fn is_safe_relative(path: &str) -> bool {
    let is_plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    !path.is_empty()
        && !path.contains(['\\', '\0', '\n', '\r'])
        && path.split('/').all(|part| !part.is_empty())
        && Path::new(path).components().all(is_plain)
        // `components` drops a `.` in the middle.
        && !path.split('/').any(|part| part == "." || part == "..")
}

fn unknown_name(text: &str) -> Error {
    let near = catalogue::nearest(text).join(", ");
    let message = format!(
        "unknown model '{text}': nearest names are {near}; `sconce list --catalogue` shows all, \
         or give org/name, a folder or a .gguf file"
    );
    Error::new(ErrorKind::NotFound, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(repo: &str, revision: Option<&str>, file: Option<&str>) -> ModelRef {
        ModelRef::Hub { repo: repo.into(), revision: revision.map(Into::into), file: file.map(Into::into) }
    }

    #[test]
    fn reads_every_form() {
        let table = [
            ("sim", ModelRef::Sim),
            ("dummy:qwen3:0.6b", ModelRef::Dummy("qwen3:0.6b".into())),
            ("org/name", repo("org/name", None, None)),
            (" org/name ", repo("org/name", None, None)),
            ("Org-1/na.me_2@main", repo("Org-1/na.me_2", Some("main"), None)),
            ("org/name@refs/pr/3", repo("org/name", Some("refs/pr/3"), None)),
            ("org/name:a.gguf", repo("org/name", None, Some("a.gguf"))),
            ("org/name:Q4/a.GGUF", repo("org/name", None, Some("Q4/a.GGUF"))),
            ("org/name@v1:a.gguf", repo("org/name", Some("v1"), Some("a.gguf"))),
        ];
        for (text, expected) in table {
            let parsed = ModelRef::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed, expected, "{text}");
            assert_eq!(ModelRef::parse(&parsed.to_string()).unwrap(), expected, "{text} read back");
        }
        for name in ["smollm2:135m", "SmolLM2:135M", "smollm2"] {
            assert_eq!(ModelRef::parse(name).unwrap().short_name(), "smollm2:135m", "{name}");
        }
    }

    #[test]
    fn refuses_by_name_and_with_a_next_step() {
        let table = [
            ("", ErrorKind::InvalidRequest, "is empty"),
            ("dummy:", ErrorKind::InvalidRequest, "lacks a name"),
            ("./none", ErrorKind::NotFound, "no file or folder './none'"),
            ("/none/at/all", ErrorKind::NotFound, "'/none/at/all'"),
            ("none.gguf", ErrorKind::NotFound, "org/name:none.gguf"),
            ("a/b/c", ErrorKind::NotFound, "org/name"),
            ("a/../b", ErrorKind::NotFound, "org/name"),
            ("a/", ErrorKind::NotFound, "org/name"),
            ("-a/b", ErrorKind::NotFound, "org/name"),
            ("org/name@", ErrorKind::InvalidRequest, "org/name@rev"),
            ("org/name@../../x", ErrorKind::InvalidRequest, "org/name@rev"),
            ("org/name:", ErrorKind::InvalidRequest, "org/name:file.gguf"),
            ("org/name:model.bin", ErrorKind::InvalidRequest, "'model.bin'"),
            ("org/name:../a.gguf", ErrorKind::InvalidRequest, "'../a.gguf'"),
            ("https://hub.example/org/name", ErrorKind::InvalidRequest, "give the model as org/name"),
            ("smolm2:135m", ErrorKind::NotFound, "smollm2:135m"),
        ];
        for (text, kind, part) in table {
            let error = ModelRef::parse(text).expect_err(text);
            assert_eq!(error.kind, kind, "{text}: {error}");
            assert!(error.message.contains(part), "{text}: {error}");
            assert!(!error.message.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn takes_existing_paths_before_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tiny.Q8_0.gguf");
        std::fs::write(&file, b"GGUF").unwrap();
        let text = folder.path().join("notes.txt");
        std::fs::write(&text, b"x").unwrap();

        let parsed = ModelRef::parse(folder.path().to_str().unwrap()).unwrap();
        assert_eq!(parsed, ModelRef::Folder(folder.path().into()));
        assert_eq!(parsed.short_name(), folder.path().file_name().unwrap().to_str().unwrap());
        let parsed = ModelRef::parse(file.to_str().unwrap()).unwrap();
        assert_eq!(parsed, ModelRef::GgufFile(file));
        assert_eq!(parsed.short_name(), "tiny.Q8_0");
        let error = ModelRef::parse(text.to_str().unwrap()).unwrap_err();
        assert!(error.message.contains("is not a .gguf file"), "{error}");
        assert_ne!(ModelRef::parse(".").unwrap().short_name(), "model");
    }
}
