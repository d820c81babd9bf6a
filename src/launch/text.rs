//! The text half of a model, read from its files: tokenizer, chat template, sampling defaults.

use std::fs;
use std::path::Path;

use sconce_models::Source;
use sconce_models::gguf::{self, Array, Header, Value};
use serde::Deserialize;

use super::synthetic;
use crate::config::ParserNames;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::local::SamplingDefaults;
use crate::text::{
    AnswerFormat, ChatTemplate, GgufVocab, ReasoningFormat, SpecialTokens, TemplateSource, Tokenizer, ToolFormat,
};

pub struct Parts {
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    pub defaults: SamplingDefaults,
}

/// `template_file` replaces the model's own template.
pub fn read(source: &Source, vocab: usize, template_file: Option<&Path>) -> Result<Parts> {
    let mut parts = match source {
        Source::Gguf(path) => from_gguf(path),
        Source::Folder(folder) => from_folder(folder),
        Source::Dummy(_) => synthetic::vocabulary(vocab),
    }?;
    if let Some(path) = template_file {
        let text = fs::read_to_string(path).map_err(|why| {
            Error::new(ErrorKind::NotFound, format!("cannot read --chat-template {}: {why}", path.display()))
        })?;
        let special = parts.tokenizer.special_tokens().clone();
        parts.template = Some(compile(TemplateSource::new(text, special), path)?);
    }
    Ok(parts)
}

/// Names that no parser has are refused before anything is fetched.
pub fn check_parsers(names: &ParserNames) -> Result<()> {
    let unknown = |flag: &str, name: &str, known: Vec<&str>| {
        let known = known.join(", ");
        Error::invalid(flag, format!("{flag} '{name}' is not known; give none or one of {known}"))
    };
    if let Some(name) = named(names.tool_calls.as_deref()).filter(|name| ToolFormat::by_name(name).is_none()) {
        return Err(unknown("--tool-call-parser", name, ToolFormat::names().collect()));
    }
    if let Some(name) = named(names.reasoning.as_deref()).filter(|name| ReasoningFormat::by_name(name).is_none()) {
        return Err(unknown("--reasoning-parser", name, ReasoningFormat::names().collect()));
    }
    Ok(())
}

fn named(name: Option<&str>) -> Option<&str> {
    name.filter(|name| *name != "none")
}

/// How answers are read: as the operator says, else as the template shows.
pub fn answer_format(template: Option<&ChatTemplate>, names: &ParserNames) -> AnswerFormat {
    let Some(template) = template else { return AnswerFormat::default() };
    let found = AnswerFormat::of(template);
    let tools = match names.tool_calls.as_deref() {
        None => found.tools,
        Some(name) => ToolFormat::named(name, &template.source()),
    };
    let reasoning = match names.reasoning.as_deref() {
        None => found.reasoning,
        Some(name) => ReasoningFormat::by_name(name),
    };
    AnswerFormat { tools, reasoning }
}

fn from_gguf(path: &Path) -> Result<Parts> {
    let mut header = gguf::read_header(path).map_err(|why| Error::new(ErrorKind::InvalidRequest, why.to_string()))?;
    let template = take_string(&mut header, "tokenizer.chat_template");
    let tokenizer = Tokenizer::from_gguf(vocab(&mut header))
        .map_err(|why| Error { message: format!("{}: {}", path.display(), why.message), ..why })?;
    let template = template
        .map(|text| compile(TemplateSource::new(text, tokenizer.special_tokens().clone()), path))
        .transpose()?;
    Ok(Parts { tokenizer, template, defaults: SamplingDefaults::default() })
}

fn vocab(header: &mut Header) -> GgufVocab {
    let id =
        |name: &str| header.unsigned(&format!("tokenizer.ggml.{name}_token_id")).and_then(|id| u32::try_from(id).ok());
    let flag = |name: &str| header.bool(&format!("tokenizer.ggml.{name}"));
    let scores = header.get("tokenizer.ggml.scores").and_then(Value::as_f32s).unwrap_or_default();
    let types = header.get("tokenizer.ggml.token_type").and_then(Value::as_i32s).unwrap_or_default();
    let vocab = GgufVocab {
        bos: id("bos"),
        eos: id("eos"),
        unk: id("unknown"),
        pad: id("padding"),
        eot: id("eot"),
        // The key is spelled like that.
        sep: id("seperator"),
        add_sep: flag("add_sep_token"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        remove_extra_whitespaces: flag("remove_extra_whitespaces"),
        scores: scores.to_vec(),
        types: types.to_vec(),
        ..GgufVocab::default()
    };
    GgufVocab {
        model: take_string(header, "tokenizer.ggml.model").unwrap_or_default(),
        pre: take_string(header, "tokenizer.ggml.pre"),
        tokens: take_strings(header, "tokenizer.ggml.tokens"),
        merges: take_strings(header, "tokenizer.ggml.merges"),
        precompiled_charsmap: take_bytes(header, "tokenizer.ggml.precompiled_charsmap"),
        ..vocab
    }
}

fn take_string(header: &mut Header, key: &str) -> Option<String> {
    match header.metadata.remove(key) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

fn take_bytes(header: &mut Header, key: &str) -> Vec<u8> {
    match header.metadata.remove(key) {
        Some(Value::Array(Array::U8(bytes))) => bytes,
        Some(Value::Array(Array::I8(bytes))) => bytes.into_iter().map(i8::cast_unsigned).collect(),
        _ => Vec::new(),
    }
}

/// Hundreds of thousands of strings change hands without being copied.
fn take_strings(header: &mut Header, key: &str) -> Vec<String> {
    match header.metadata.remove(key) {
        Some(Value::Array(Array::String(texts))) => texts,
        _ => Vec::new(),
    }
}

fn from_folder(folder: &Path) -> Result<Parts> {
    let file = |name: &str| fs::read(folder.join(name)).ok();
    let json = file("tokenizer.json").ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("{} has no tokenizer.json; models with only tokenizer.model are not supported", folder.display()),
        )
    })?;
    let tokenizer_config = file("tokenizer_config.json");
    let generation_config = file("generation_config.json");
    let special = SpecialTokens::from_files(
        tokenizer_config.as_deref(),
        file("special_tokens_map.json").as_deref(),
        generation_config.clone().or_else(|| file("config.json")).as_deref(),
    )?;
    let tokenizer = Tokenizer::from_json(&json, &special).map_err(|why| Error {
        message: format!("{}: {}", folder.join("tokenizer.json").display(), why.message),
        ..why
    })?;
    let special = tokenizer.special_tokens().clone();
    let source = match (file("chat_template.jinja"), file("chat_template.json").or(tokenizer_config)) {
        (Some(text), _) => Some(TemplateSource::new(String::from_utf8_lossy(&text), special)),
        (None, Some(json)) => TemplateSource::from_json(&json, special)?,
        (None, None) => None,
    };
    let template = source.map(|source| compile(source, folder)).transpose()?;
    let defaults = sampling_defaults(generation_config.as_deref(), folder)?;
    Ok(Parts { tokenizer, template, defaults })
}

fn compile(source: TemplateSource, origin: &Path) -> Result<ChatTemplate> {
    ChatTemplate::compile(source).map_err(|why| Error {
        message: format!("{}: {}; replace it with --chat-template FILE", origin.display(), why.message),
        ..why
    })
}

/// The sampling half of generation_config.json.
#[derive(Deserialize)]
struct GenerationConfig {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

/// As vLLM does by default, the model's own sampling parameters stand in for what a request leaves open.
fn sampling_defaults(json: Option<&[u8]>, folder: &Path) -> Result<SamplingDefaults> {
    let fallback = SamplingDefaults::default();
    let Some(json) = json else { return Ok(fallback) };
    let config: GenerationConfig = serde_json::from_slice(json).map_err(|why| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("{}: {why}; mend or remove the file", folder.join("generation_config.json").display()),
        )
    })?;
    if config.do_sample == Some(false) {
        return Ok(fallback);
    }
    Ok(SamplingDefaults {
        temperature: config.temperature.unwrap_or(fallback.temperature),
        top_k: config.top_k.unwrap_or(fallback.top_k),
        top_p: config.top_p.unwrap_or(fallback.top_p),
        min_p: config.min_p.unwrap_or(fallback.min_p),
        repetition_penalty: config.repetition_penalty.unwrap_or(fallback.repetition_penalty),
    })
}
