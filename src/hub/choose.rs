//! Which files of a repository make up the model: pure, from the list of names.

use super::quantisation::{best_gguf, is_gguf, is_part};
use crate::error::{Error, ErrorKind};

/// Small files that a folder of safetensors is loaded with, where the repository has them.
const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    // Pooling and normalisation of embedding models.
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
];

const INDEX: &str = "model.safetensors.index.json";

/// The files to download, and the one that is the model if it is a GGUF file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub files: Vec<String>,
    pub gguf: Option<String>,
}

/// Chooses among the files of `repo`: the named one, else safetensors, else the best GGUF file.
pub(super) fn choose(repo: &str, files: &[String], named: Option<&str>) -> Result<Choice, Error> {
    let missing = |message: String| Error::new(ErrorKind::NotFound, message);
    if let Some(named) = named {
        // The hub tells upper from lower case, people do not.
        let exact = files.iter().find(|file| *file == named);
        let found = exact.or_else(|| files.iter().find(|file| file.eq_ignore_ascii_case(named)));
        let Some(file) = found else {
            let message = match gguf_names(files).as_slice() {
                [] => format!("no file '{named}' in {repo}, and no .gguf file at all: give the model as {repo}"),
                names => format!("no file '{named}' in {repo}: choose one of {}", names.join(", ")),
            };
            return Err(missing(message));
        };
        if is_part(file) {
            let message = format!("'{file}' in {repo} is one part of a split GGUF file: choose one that is not split");
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        return Ok(Choice { files: vec![file.clone()], gguf: Some(file.clone()) });
    }

    let weights = safetensors(files);
    if !weights.is_empty() && files.iter().any(|file| file == "config.json") {
        let companions = COMPANIONS.iter().map(|name| (*name).to_owned()).filter(|name| files.contains(name));
        // Small files first: a wrong model is noticed before the gigabytes.
        return Ok(Choice { files: companions.chain(weights).collect(), gguf: None });
    }
    if let Some(file) = best_gguf(files) {
        return Ok(Choice { files: vec![file.clone()], gguf: Some(file) });
    }
    let message = match gguf_names(files).as_slice() {
        [] if files.iter().any(|file| file.ends_with(".bin") || file.ends_with(".pth") || file.ends_with(".pt")) => {
            format!(
                "{repo} has its weights only as pickled PyTorch files: choose a repository with safetensors or GGUF"
            )
        }
        [] => format!("{repo} holds neither config.json with safetensors nor a .gguf file: choose another repository"),
        names => format!("{repo} has no Q4_K_M or Q8_0 file: name one, {repo}:FILE, of {}", names.join(", ")),
    };
    Err(missing(message))
}

fn gguf_names(files: &[String]) -> Vec<&str> {
    files.iter().map(String::as_str).filter(|file| is_gguf(file) && !is_part(file)).collect()
}

/// The index and its shards, or the one file; never a second copy of the weights under another name.
fn safetensors(files: &[String]) -> Vec<String> {
    if files.iter().any(|file| file == INDEX) {
        let is_shard = |file: &&String| {
            file.ends_with(".safetensors") && file.starts_with("model-") && !file.contains('/') && is_part(file)
        };
        let shards: Vec<String> = files.iter().filter(is_shard).cloned().collect();
        if !shards.is_empty() {
            return std::iter::once(INDEX.to_owned()).chain(shards).collect();
        }
    }
    files.iter().filter(|file| *file == "model.safetensors").cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn check(listing: &str, named: Option<&str>, files: &str, gguf: Option<&str>) {
        let choice = choose("org/m", &names(listing), named).unwrap_or_else(|error| panic!("{listing}: {error}"));
        assert_eq!(choice.files, names(files), "{listing}");
        assert_eq!(choice.gguf.as_deref(), gguf, "{listing}");
    }

    #[test]
    fn takes_safetensors_and_their_companions_only() {
        check(
            "README.md config.json model.safetensors pytorch_model.bin tokenizer.json onnx/model.onnx",
            None,
            "config.json tokenizer.json model.safetensors",
            None,
        );
        check(
            "config.json consolidated.safetensors model-00001-of-00002.safetensors model-00002-of-00002.safetensors \
             model.safetensors.index.json original/model-00001-of-00002.safetensors tokenizer.model",
            None,
            "config.json model.safetensors.index.json model-00001-of-00002.safetensors \
             model-00002-of-00002.safetensors",
            None,
        );
        check("config.json model.safetensors m-Q8_0.gguf", None, "config.json model.safetensors", None);
        // The index of one file that is not split.
        check(
            "config.json model.safetensors.index.json model.safetensors",
            None,
            "config.json model.safetensors",
            None,
        );
    }

    #[test]
    fn takes_one_gguf_file() {
        check("config.json m.Q4_K_M.gguf m.Q8_0.gguf", None, "m.Q4_K_M.gguf", Some("m.Q4_K_M.gguf"));
        check("a.gguf m-Q4_1.gguf", Some("m-q4_1.gguf"), "m-Q4_1.gguf", Some("m-Q4_1.gguf"));
    }

    #[test]
    fn says_what_there_is_instead() {
        let table = [
            ("m-Q2_K.gguf m-Q3_K.gguf", None, "org/m:FILE, of m-Q2_K.gguf, m-Q3_K.gguf"),
            ("m-Q2_K.gguf", Some("x.gguf"), "no file 'x.gguf' in org/m: choose one of m-Q2_K.gguf"),
            ("config.json model.safetensors", Some("x.gguf"), "no .gguf file at all"),
            ("m-Q8_0-00001-of-00002.gguf", Some("m-Q8_0-00001-of-00002.gguf"), "not split"),
            ("config.json pytorch_model.bin", None, "pickled PyTorch"),
            ("README.md", None, "neither config.json"),
            ("model.safetensors", None, "neither config.json"),
        ];
        for (listing, named, part) in table {
            let error = choose("org/m", &names(listing), named).expect_err(listing);
            assert!(error.message.contains(part), "{listing}: {error}");
        }
    }
}
