//! Encoders from GGUF files: llama.cpp's architectures `bert`, `modern-bert` and `nomic-bert`.
//!
//! RoBERTa's files are `bert`, too: the rows of the position table that no text reaches are cut off there.

use std::path::Path;
use std::sync::Arc;

use sconce_kernels::Activation;

use super::assemble::Described;
use super::config::{Biases, Class, EncoderConfig, Kind, Rotation, Wide};
use super::sentence::Sentence;
use super::{EmbedderOptions, Pooling};
use crate::error::{Error, Result};
use crate::gguf::Header;
use crate::spec::LAYERS_MAX;
use crate::spec::keys::Keys;
use crate::tensors::TensorSet;
use crate::weights::MappedFile;

const NEXT: &str = "use the model's safetensors";
pub(super) const SCORE: &str = "cls.output.weight";
const ARCHITECTURES: [(&str, Kind); 3] =
    [("bert", Kind::Bert), ("modern-bert", Kind::Modern), ("nomic-bert", Kind::Nomic)];

/// llama.cpp's numbers for a pooling.
const NONE: u64 = 0;
const RANK: u64 = 4;

/// The encoder class that the header names, `None` for every other architecture.
pub(super) fn class(header: &Header) -> Option<Class> {
    let name = header.string("general.architecture")?;
    let (name, kind) = ARCHITECTURES.into_iter().find(|(known, _)| *known == name)?;
    Some(Class { name, kind, scores: header.tensor(SCORE).is_some() })
}

/// What a header says of pooling; `None` where it says nothing, or that there is none.
pub(super) fn pooling(header: &Header, file: &Path) -> Result<Option<Pooling>> {
    let Some(architecture) = header.string("general.architecture") else { return Ok(None) };
    match header.unsigned(&format!("{architecture}.pooling_type")) {
        None | Some(NONE | RANK) => Ok(None),
        Some(number) => numbered(number, file).map(Some),
    }
}

/// Whether the file is a decoder that scores pairs.
pub(super) fn ranks(header: &Header) -> bool {
    let architecture = header.string("general.architecture").unwrap_or_default();
    class(header).is_none() && header.unsigned(&format!("{architecture}.pooling_type")) == Some(RANK)
}

fn numbered(number: u64, file: &Path) -> Result<Pooling> {
    match number {
        1 => Ok(Pooling::Mean),
        2 => Ok(Pooling::Cls),
        3 => Ok(Pooling::LastToken),
        other => {
            Err(Error::Unsupported { file: file.to_owned(), feature: format!("pooling_type {other}"), next: NEXT })
        }
    }
}

pub(super) fn describe(path: &Path, class: Class, options: EmbedderOptions) -> Result<Described> {
    let file = Arc::new(MappedFile::open(path)?);
    let header = Header::parse((*file).as_ref(), path)?;
    let tensors = TensorSet::from_gguf(&file, &header);
    let keys = Keys { header: &header, file: path, architecture: class.name, tensors: &tensors };
    let config = config(&keys, class.kind)?;
    config.check(class.kind).map_err(|detail| keys.wrong(detail))?;
    let sentence = match pooling(&header, path)? {
        _ if class.scores => Sentence { normalize: false, ..Sentence::usual(Pooling::Cls) },
        Some(pooling) => Sentence::usual(pooling),
        None if options.usual_pooling => Sentence::usual(Pooling::Mean),
        None => {
            let detail = "there is no pooling_type, so how the model pools its vectors is not known (with --task embed \
                          the usual way is taken: mean)";
            return Err(keys.wrong(detail.to_owned()));
        }
    };
    Ok(Described { file: path.to_owned(), class, config, sentence, tensors })
}

fn config(keys: &Keys, kind: Kind) -> Result<EncoderConfig> {
    if keys.bool("attention.causal") == Some(true) {
        return Err(keys.unsupported("an encoder with attention.causal".to_owned(), NEXT));
    }
    // One row may be stored as a vector.
    let rows_of = |shape: &[usize]| if let [rows, _] = shape { *rows } else { 1 };
    let rows = |name: &str| keys.tensors.get(name).map(|stored| rows_of(&stored.shape));
    let missing = |tensor: &str| Error::MissingTensor { file: keys.file.to_owned(), tensor: tensor.to_owned() };
    const WORDS: &str = "token_embd.weight";
    const POSITIONS: &str = "position_embd.weight";
    let layers = keys.size("block_count")?;
    let heads = keys.size("attention.head_count")?;
    if keys.optional_size("attention.head_count_kv")?.is_some_and(|kv_heads| kv_heads != heads) {
        return Err(keys.unsupported("an encoder whose heads share K and V".to_owned(), NEXT));
    }
    let hidden_act = match keys.get("hidden_activation") {
        None => None,
        Some(value) => Some(value.as_str().ok_or_else(|| keys.wrong("hidden_activation is no text".to_owned()))?),
    };
    let wide = match (kind, hidden_act) {
        (Kind::Bert | Kind::Roberta, None | Some("gelu")) => Wide::Plain(Activation::Gelu),
        (Kind::Modern, None | Some("gelu")) => Wide::GatedGelu,
        (Kind::Modern | Kind::Nomic, Some("silu")) | (Kind::Nomic, None) => Wide::GatedSilu,
        (_, Some(other)) => {
            return Err(keys.unsupported(format!("hidden_activation {}", crate::error::shown(other)), NEXT));
        }
    };
    let (positions, biases, rotation) = match kind {
        Kind::Bert | Kind::Roberta => (rows(POSITIONS).ok_or_else(|| missing(POSITIONS))?, Biases::ALL, None),
        Kind::Modern => {
            let biases = Biases { attention: false, ffn: false, norms: false, head: rows("cls.bias").is_some() };
            (keys.size("context_length")?, biases, Some(modern_rotation(keys, layers)?))
        }
        Kind::Nomic => {
            let theta = keys.number("rope.freq_base")?.unwrap_or(1000.0);
            let is_local = vec![false; layers.min(LAYERS_MAX)];
            let biases = Biases { attention: false, ffn: false, norms: true, head: true };
            let rotation = Rotation { theta, local_theta: theta, reach: 0, is_local };
            (keys.size("context_length")?, biases, Some(rotation))
        }
    };
    let score_pooling = match keys.header.unsigned(&keys.full("classifier.pooling_type")) {
        Some(number) => numbered(number, keys.file)?,
        None if kind == Kind::Modern => Pooling::Mean,
        None => Pooling::Cls,
    };
    Ok(EncoderConfig {
        hidden: keys.size("embedding_length")?,
        ffn: keys.size("feed_forward_length")?,
        layers,
        heads,
        vocab: rows(WORDS).ok_or_else(|| missing(WORDS))?,
        positions,
        types: rows("token_types.weight").unwrap_or(0),
        eps: keys.required_number("attention.layer_norm_epsilon")? as f32,
        wide,
        biases,
        padding: 0,
        rotation,
        score_pooling,
        sigmoid: true,
    })
}

fn modern_rotation(keys: &Keys, layers: usize) -> Result<Rotation> {
    let believed = layers.min(LAYERS_MAX);
    let window = keys.optional_size("attention.sliding_window")?.unwrap_or(0);
    let step = keys.sizes("attention.sliding_window_pattern")?;
    let is_local = match step.as_deref() {
        _ if window == 0 => vec![false; believed],
        None => (0..believed).map(|layer| !layer.is_multiple_of(3)).collect(),
        Some([step]) if *step > 0 => (0..believed).map(|layer| !layer.is_multiple_of(*step)).collect(),
        Some(all) if all.len() == layers => all.iter().map(|local| *local != 0).collect(),
        Some(_) => {
            return Err(keys.wrong("sliding_window_pattern is neither a step nor a list of all layers".to_owned()));
        }
    };
    Ok(Rotation {
        theta: keys.required_number("rope.freq_base")?,
        local_theta: keys.number("rope.freq_base_swa")?.unwrap_or(10_000.0),
        reach: u32::try_from(window / 2).unwrap_or(u32::MAX),
        is_local,
    })
}
