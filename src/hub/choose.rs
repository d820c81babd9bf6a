//! Which files of a repository make up the model: pure, from the list of names.

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

/// Quantisations to take when the user names no file, the best for its size first.
const PREFERRED: &[&str] = &["q4_k_m", "q8_0"];

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

/// The file to take when none is named: a preferred quantisation, or the only file there is.
pub(super) fn best_gguf(files: &[String]) -> Option<String> {
    let whole: Vec<&String> = files.iter().filter(|file| is_gguf(file) && !is_part(file)).collect();
    for quantisation in PREFERRED {
        let mut matching = whole.iter().filter(|file| has_word(file, quantisation));
        if let Some(file) = matching.next() {
            return Some((**file).clone());
        }
    }
    match whole.as_slice() {
        [only] => Some((*only).clone()),
        _ => None,
    }
}

/// Model files; projectors and importance matrices are no models.
fn is_gguf(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    lower.ends_with(".gguf") && !lower.contains("mmproj") && !lower.contains("imatrix")
}

/// `-00001-of-00003` before the extension.
fn is_part(file: &str) -> bool {
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let mut words = stem.rsplit('-');
    let is_number = |word: Option<&str>| word.is_some_and(|word| word.len() == 5 && word.parse::<u32>().is_ok());
    is_number(words.next()) && words.next() == Some("of") && is_number(words.next())
}

/// Whether the quantisation stands in the name by itself: `Q4_K_M` is not in `IQ4_K_M` or `Q4_K_M_L`.
fn has_word(file: &str, word: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    lower.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).map(|before| lower.as_bytes()[before]);
        let after = lower.as_bytes().get(at + word.len());
        !before.is_some_and(is_inside) && !after.copied().is_some_and(is_inside)
    })
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
    fn takes_the_best_gguf() {
        check("config.json m.Q2_K.gguf m.Q4_K_M.gguf m.Q8_0.gguf", None, "m.Q4_K_M.gguf", Some("m.Q4_K_M.gguf"));
        check("m-iq4_k_m.gguf m-q4_k_m_l.gguf m-q8_0.gguf", None, "m-q8_0.gguf", Some("m-q8_0.gguf"));
        check("mmproj-Q8_0.gguf m-f16.gguf", None, "m-f16.gguf", Some("m-f16.gguf"));
        check("m-Q4_K_M-00001-of-00002.gguf m-Q8_0.gguf", None, "m-Q8_0.gguf", Some("m-Q8_0.gguf"));
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
