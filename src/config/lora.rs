//! LoRA adapters beside a model: those that come with it, and what may be loaded later.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use crate::error::{Error, Result};

pub const MAX_LORAS_DEFAULT: u32 = 8;
pub const MAX_LORA_RANK_DEFAULT: u32 = 64;
/// As many as an engine takes.
const LORAS_MAX: u32 = 256;
const RANK_MAX: u32 = 4096;

/// One adapter: the name that clients use, and its folder.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraModule {
    pub name: String,
    pub path: String,
}

impl FromStr for LoraModule {
    type Err = String;

    /// `name=path`, or JSON as vLLM takes it: `{"name": "sql", "path": "adapters/sql"}`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('{') {
            return serde_json::from_str(text)
                .map_err(|why| format!("'{text}' is not {{\"name\": ..., \"path\": ...}}: {why}"));
        }
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), path: path.to_owned() })
            }
            _ => Err(format!("'{text}' is not name=path")),
        }
    }
}

/// What was asked for, by flags or in the file; flags win.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoraWishes {
    pub modules: Vec<LoraModule>,
    pub max_loras: Option<u32>,
    pub max_lora_rank: Option<u32>,
    pub folder: Option<PathBuf>,
}

/// Checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraConfig {
    pub modules: Vec<LoraModule>,
    /// Adapters at a time; all of them may be in one step.
    pub max_loras: u32,
    pub max_lora_rank: u32,
    /// Adapters below it may be loaded while the server runs.
    pub folder: Option<PathBuf>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { modules: Vec::new(), max_loras: MAX_LORAS_DEFAULT, max_lora_rank: MAX_LORA_RANK_DEFAULT, folder: None }
    }
}

impl LoraConfig {
    /// Whether there are adapters, or may be some.
    pub fn is_wanted(&self) -> bool {
        !self.modules.is_empty() || self.folder.is_some()
    }

    pub fn checked(wishes: LoraWishes) -> Result<Self> {
        let LoraWishes { modules, max_loras, max_lora_rank, folder } = wishes;
        let count = u32::try_from(modules.len()).unwrap_or(u32::MAX);
        let max_loras = max_loras.unwrap_or(MAX_LORAS_DEFAULT.max(count));
        let max_lora_rank = max_lora_rank.unwrap_or(MAX_LORA_RANK_DEFAULT);
        for (flag, value, most) in [("--max-loras", max_loras, LORAS_MAX), ("--max-lora-rank", max_lora_rank, RANK_MAX)]
        {
            if !(1..=most).contains(&value) {
                return Err(Error::invalid(flag, format!("{flag} {value} is not from 1 to {most}")));
            }
        }
        if count > max_loras {
            let message = format!("--lora-modules names {count} adapters and --max-loras is {max_loras}; raise it");
            return Err(Error::invalid("--max-loras", message));
        }
        for (index, module) in modules.iter().enumerate() {
            check_name(&module.name)
                .map_err(|why| Error::invalid("--lora-modules", format!("--lora-modules: {why}")))?;
            if modules[..index].iter().any(|other| other.name == module.name) {
                let message = format!("--lora-modules names two adapters '{}'; give one another name", module.name);
                return Err(Error::invalid("--lora-modules", message));
            }
        }
        if let Some(folder) = folder.as_ref().filter(|folder| !folder.is_dir()) {
            let message = format!("--lora-dir {} is not a folder; make it, or leave the flag out", folder.display());
            return Err(Error::invalid("--lora-dir", message));
        }
        Ok(Self { modules, max_loras, max_lora_rank, folder })
    }
}

/// Names stand in paths, logs and metrics.
pub fn check_name(name: &str) -> Result<(), String> {
    let harmless = |symbol: char| !symbol.is_control() && !symbol.is_whitespace() && symbol != ',';
    if name.is_empty() || name.len() > 256 || !name.chars().all(harmless) {
        return Err("the name of an adapter must have 1 to 256 bytes, none of them a space or a comma".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_read_as_vllm_reads_them() {
        let module = |name: &str, path: &str| LoraModule { name: name.to_owned(), path: path.to_owned() };
        for (text, expected) in [
            ("sql=adapters/sql", Some(module("sql", "adapters/sql"))),
            ("a=b=c", Some(module("a", "b=c"))),
            (r#"{"name": "sql", "path": "/x"}"#, Some(module("sql", "/x"))),
            ("sql", None),
            ("=x", None),
            ("x=", None),
            (r#"{"name": "sql"}"#, None),
            (r#"{"name": "sql", "path": "/x", "rank": 3}"#, None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_flag() {
        let module = |name: &str| LoraModule { name: name.to_owned(), path: "x".to_owned() };
        let some = LoraWishes { modules: vec![module("a"), module("b")], ..LoraWishes::default() };
        for (wishes, flag) in [
            (LoraWishes { max_loras: Some(1), ..some.clone() }, "--max-loras"),
            (LoraWishes { max_loras: Some(0), ..LoraWishes::default() }, "--max-loras"),
            (LoraWishes { max_loras: Some(257), ..LoraWishes::default() }, "--max-loras"),
            (LoraWishes { max_lora_rank: Some(0), ..LoraWishes::default() }, "--max-lora-rank"),
            (LoraWishes { modules: vec![module("a"), module("a")], ..LoraWishes::default() }, "--lora-modules"),
            (LoraWishes { modules: vec![module("a b")], ..LoraWishes::default() }, "--lora-modules"),
            (LoraWishes { folder: Some(PathBuf::from("/nowhere/at/all")), ..LoraWishes::default() }, "--lora-dir"),
        ] {
            assert_eq!(LoraConfig::checked(wishes).expect_err(flag).param.as_deref(), Some(flag));
        }
        let many = LoraWishes { modules: (0..20).map(|index| module(&index.to_string())).collect(), ..some };
        assert_eq!(LoraConfig::checked(many).expect("as many as are named").max_loras, 20);
    }
}
