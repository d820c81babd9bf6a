//! The files that sentence-transformers puts beside a model: which steps follow it, how it is pooled, how long a text
//! may be. A step that is not one of Transformer, Pooling and Normalize is refused.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{EmbedderOptions, Pooling};
use crate::error::{Error, Result, shown};
use crate::safetensors::read_text;

const BYTES_MAX: u64 = 1 << 20;
const MODULES: &str = "modules.json";

/// What the files say.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sentence {
    pub pooling: Pooling,
    pub normalize: bool,
    pub tokens_max: Option<u32>,
    pub lower_case: bool,
    /// Size of the token vectors that are pooled, where the files name it.
    pub width: Option<usize>,
}

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

#[derive(Deserialize, Default)]
struct SentenceConfig {
    max_seq_length: Option<u32>,
    #[serde(default)]
    do_lower_case: bool,
}

impl Sentence {
    /// For models without such files.
    pub fn usual(pooling: Pooling) -> Self {
        Self { pooling, normalize: true, tokens_max: None, lower_case: false, width: None }
    }
}

pub(super) fn exists(folder: &Path) -> bool {
    folder.join(MODULES).is_file()
}

/// Reads the files of `folder`; `usual` is taken where there are none and the operator agreed. Cross-encoders have none.
pub(super) fn read(folder: &Path, options: EmbedderOptions, usual: Pooling, scores: bool) -> Result<Sentence> {
    if scores {
        return Ok(Sentence { normalize: false, ..Sentence::usual(Pooling::Cls) });
    }
    if !exists(folder) {
        if options.usual_pooling {
            return Ok(Sentence::usual(usual));
        }
        return Err(Error::Config {
            file: folder.to_owned(),
            detail: format!(
                "there is no {MODULES}, so how the model pools its vectors is not known (with --task embed the usual \
                 way is taken: {})",
                usual.name()
            ),
        });
    }
    let path = folder.join(MODULES);
    let modules: Vec<Module> = parse(&path)?;
    let mut pooling = None;
    let mut normalize = false;
    let mut transformer = None;
    for (index, module) in modules.iter().enumerate() {
        let kind = module.kind.rsplit('.').next().unwrap_or_default();
        match kind {
            "Transformer" if index == 0 => transformer = Some(inside(folder, &path, &module.path)?),
            "Pooling" if index == 1 => pooling = Some(inside(folder, &path, &module.path)?.join("config.json")),
            "Normalize" if index == 2 => normalize = true,
            _ => {
                return Err(Error::Unsupported {
                    file: path,
                    feature: format!("module {index} of type {}", shown(&module.kind)),
                    next: "use a model of Transformer, Pooling and Normalize",
                });
            }
        }
    }
    let (Some(transformer), Some(pooling)) = (transformer, pooling) else {
        return Err(Error::Config { file: path, detail: "it names no Transformer followed by Pooling".to_owned() });
    };
    if transformer != folder {
        return Err(Error::Unsupported {
            file: path,
            feature: "a Transformer in a folder of its own".to_owned(),
            next: "move its files beside modules.json and set its path to \"\"",
        });
    }
    let (pooling, width) = read_pooling(&pooling)?;
    let config = folder.join("sentence_bert_config.json");
    let config: SentenceConfig = if config.is_file() { parse(&config)? } else { SentenceConfig::default() };
    let (tokens_max, lower_case) = (config.max_seq_length, config.do_lower_case);
    Ok(Sentence { pooling, normalize, tokens_max, lower_case, width })
}

/// The config of the module of a kind that follows the Transformer, if the files name one.
pub(super) fn module_config(folder: &Path, kind: &str) -> Result<Option<PathBuf>> {
    let path = folder.join(MODULES);
    if !path.is_file() {
        return Ok(None);
    }
    let modules: Vec<Module> = parse(&path)?;
    match modules.get(1).filter(|module| module.kind.rsplit('.').next() == Some(kind)) {
        Some(module) => Ok(Some(inside(folder, &path, &module.path)?.join("config.json"))),
        None => Ok(None),
    }
}

/// A module's folder; no file can point outside the model's.
fn inside(folder: &Path, file: &Path, path: &str) -> Result<PathBuf> {
    let is_plain = Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if is_plain {
        return Ok(if path.is_empty() { folder.to_owned() } else { folder.join(path) });
    }
    let detail = format!("it names the path {}, expected a folder in this one", shown(path));
    Err(Error::Config { file: file.to_owned(), detail })
}

fn read_pooling(file: &Path) -> Result<(Pooling, Option<usize>)> {
    let config: Map<String, Value> = parse(file)?;
    let wrong = |detail: String| Error::Config { file: file.to_owned(), detail };
    let width = config.get("embedding_dimension").or_else(|| config.get("word_embedding_dimension"));
    let width = width.and_then(Value::as_u64).and_then(|width| usize::try_from(width).ok());
    if config.get("include_prompt") == Some(&Value::Bool(false)) {
        return Err(Error::Unsupported {
            file: file.to_owned(),
            feature: "include_prompt false (prompts that are left out of the pooling)".to_owned(),
            next: "use another version of the model",
        });
    }
    let named: Vec<&str> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode],
        Some(Value::Array(modes)) => modes.iter().map(|mode| mode.as_str().unwrap_or_default()).collect(),
        Some(other) => return Err(wrong(format!("pooling_mode is {}, expected a name", shown(&other.to_string())))),
        None => {
            let is_on = |key: &str| config.get(key) == Some(&Value::Bool(true));
            let modes: Vec<_> =
                Pooling::ALL.iter().filter(|(_, _, key)| is_on(key)).map(|(_, name, _)| *name).collect();
            if modes.is_empty() { vec!["mean"] } else { modes }
        }
    };
    let [mode] = named[..] else {
        return Err(Error::Unsupported {
            file: file.to_owned(),
            feature: format!("pooling in {} ways at once", named.len()),
            next: "use a model with a single pooling mode",
        });
    };
    match Pooling::ALL.iter().find(|(_, name, _)| *name == mode) {
        Some((pooling, _, _)) => Ok((*pooling, width)),
        None => Err(Error::Unsupported {
            file: file.to_owned(),
            feature: format!("pooling_mode {}", shown(mode)),
            next: "use a model with one of cls, mean, max, mean_sqrt_len_tokens, weightedmean, lasttoken",
        }),
    }
}

pub(super) fn parse<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<T> {
    let text = read_text(file, BYTES_MAX)?;
    serde_json::from_str(&text)
        .map_err(|error| Error::Config { file: file.to_owned(), detail: shown(&error.to_string()) })
}
