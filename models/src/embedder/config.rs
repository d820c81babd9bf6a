//! `config.json` of the encoders: BERT, RoBERTa and XLM-RoBERTa here, the younger ones in `younger.rs`; plain or with a
//! head that scores a pair.

use std::path::{Path, PathBuf};

use sconce_kernels::{Activation, Prologue};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Pooling;
use crate::error::{Error, Result, shown};
use crate::safetensors::read_text;
use crate::spec::LAYERS_MAX;

const BYTES_MAX: u64 = 16 << 20;

/// An encoder's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class {
    pub name: &'static str,
    pub kind: Kind,
    /// It has a head that scores a pair.
    pub scores: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bert,
    /// Positions are counted from behind the padding token's id, and padding tokens stand at that id.
    Roberta,
    /// ModernBERT (arXiv 2412.13663): norms before the blocks, rotation, and a window in most layers.
    Modern,
    /// Nomic's BERT (arXiv 2402.01613): BERT with rotation and a gated feed-forward block.
    Nomic,
}

const fn class(name: &'static str, kind: Kind, scores: bool) -> Class {
    Class { name, kind, scores }
}

const CLASSES: [Class; 17] = [
    class("BertModel", Kind::Bert, false),
    class("BertForMaskedLM", Kind::Bert, false),
    class("BertForPreTraining", Kind::Bert, false),
    class("BertForSequenceClassification", Kind::Bert, true),
    class("RobertaModel", Kind::Roberta, false),
    class("RobertaForMaskedLM", Kind::Roberta, false),
    class("RobertaForSequenceClassification", Kind::Roberta, true),
    class("XLMRobertaModel", Kind::Roberta, false),
    class("XLMRobertaForMaskedLM", Kind::Roberta, false),
    class("XLMRobertaForSequenceClassification", Kind::Roberta, true),
    class("ModernBertModel", Kind::Modern, false),
    class("ModernBertForMaskedLM", Kind::Modern, false),
    class("ModernBertForSequenceClassification", Kind::Modern, true),
    class("NomicBertModel", Kind::Nomic, false),
    class("NomicBertForMaskedLM", Kind::Nomic, false),
    class("NomicBertForPreTraining", Kind::Nomic, false),
    class("NomicBertForSequenceClassification", Kind::Nomic, true),
];

/// For the message that refuses an unknown class.
pub(crate) fn supported_classes() -> String {
    CLASSES.map(|class| class.name).join(", ")
}

/// The file, not yet understood.
pub(super) struct ConfigFile {
    pub path: PathBuf,
    object: Map<String, Value>,
}

/// Reads the file, whatever its architecture.
pub(super) fn read(folder: &Path) -> Result<ConfigFile> {
    let path = folder.join("config.json");
    let text = read_text(&path, BYTES_MAX)?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(ConfigFile { path, object }),
        Ok(_) => Err(Error::Config { file: path, detail: "it is not a JSON object".to_owned() }),
        Err(error) => Err(Error::Config { file: path, detail: format!("it is not JSON: {error}") }),
    }
}

/// What this crate must know of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EncoderConfig {
    pub hidden: usize,
    pub ffn: usize,
    pub layers: usize,
    pub heads: usize,
    pub vocab: usize,
    /// Rows of the position table; without one, the longest text that the model was made for.
    pub positions: usize,
    /// Rows of the token type table; 0 without one.
    pub types: usize,
    pub eps: f32,
    pub wide: Wide,
    pub biases: Biases,
    /// For [`Kind::Roberta`].
    pub padding: u32,
    pub rotation: Option<Rotation>,
    /// How the head of a cross-encoder gets its vector.
    pub score_pooling: Pooling,
    /// A cross-encoder's logit is made a score from 0 to 1.
    pub sigmoid: bool,
}

/// What stands between the two halves of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wide {
    Plain(Activation),
    /// `gelu(a) * b`, exact.
    GatedGelu,
    /// `silu(a) * b`
    GatedSilu,
}

impl Wide {
    /// Rows of the block's first half for each value that its second half takes.
    pub fn factor(self) -> usize {
        if matches!(self, Self::Plain(_)) { 1 } else { 2 }
    }

    pub fn prologue(self) -> Prologue<'static> {
        match self {
            Self::Plain(activation) => Prologue::Activation(activation),
            Self::GatedGelu => Prologue::GeluMul,
            Self::GatedSilu => Prologue::SiluMul,
        }
    }
}

/// Which parts have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Biases {
    pub attention: bool,
    pub ffn: bool,
    pub norms: bool,
    /// The dense layer of a head.
    pub head: bool,
}

impl Biases {
    pub const ALL: Self = Self { attention: true, ffn: true, norms: true, head: true };
}

/// Queries and keys are turned by their positions.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rotation {
    pub theta: f64,
    /// In layers with a window.
    pub local_theta: f64,
    /// Positions that a token sees on either side, in layers with a window.
    pub reach: u32,
    /// Whether layer `i` has the window. `[layers]`
    pub is_local: Vec<bool>,
}

impl EncoderConfig {
    /// The longest text.
    pub fn tokens_max(&self, kind: Kind) -> usize {
        self.positions - self.position_offset(kind)
    }

    /// Positions that stand before the first token's.
    pub fn position_offset(&self, kind: Kind) -> usize {
        if kind == Kind::Roberta { self.padding as usize + 1 } else { 0 }
    }
}

#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
}

/// What all kinds may hold.
#[derive(Deserialize)]
struct Shared {
    #[serde(default)]
    is_decoder: bool,
    id2label: Option<Map<String, Value>>,
    num_labels: Option<usize>,
    quantization_config: Option<Value>,
    sentence_transformers: Option<Map<String, Value>>,
    sbert_ce_default_activation_function: Option<String>,
}

impl ConfigFile {
    /// The encoder class that the file names, `None` for every other architecture.
    pub fn class(&self) -> Option<Class> {
        let name = self.object.get("architectures")?.as_array()?.first()?.as_str()?;
        CLASSES.into_iter().find(|class| class.name == name)
    }

    pub fn checked(&self, class: Class) -> Result<EncoderConfig> {
        let config = match class.kind {
            Kind::Bert | Kind::Roberta => self.of_bert(class)?,
            Kind::Modern => self.of_modern_bert(class)?,
            Kind::Nomic => self.of_nomic_bert(class)?,
        };
        let wrong = |detail: String| Error::Config { file: self.path.clone(), detail };
        config.check(class.kind).map_err(wrong)?;
        Ok(config)
    }

    /// The file as a struct of what it may hold.
    pub fn typed<T: for<'de> Deserialize<'de>>(&self) -> Result<T> {
        let typed = T::deserialize(Value::Object(self.object.clone()));
        typed.map_err(|error| self.wrong(shown(&error.to_string())))
    }

    pub fn wrong(&self, detail: String) -> Error {
        Error::Config { file: self.path.clone(), detail }
    }

    fn of_bert(&self, class: Class) -> Result<EncoderConfig> {
        let raw: Raw = self.typed()?;
        self.refuse_shared(class)?;
        if let Some(kind) = raw.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(self.unsupported(format!("position_embedding_type {}", shown(kind))));
        }
        let activation = match raw.hidden_act.as_deref().unwrap_or("gelu") {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => return Err(self.unsupported(format!("hidden_act {}", shown(other)))),
        };
        Ok(EncoderConfig {
            hidden: raw.hidden_size,
            ffn: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            vocab: raw.vocab_size,
            positions: raw.max_position_embeddings,
            types: raw.type_vocab_size.unwrap_or(2),
            eps: raw.layer_norm_eps.unwrap_or(1e-12) as f32,
            wide: Wide::Plain(activation),
            biases: Biases::ALL,
            padding: raw.pad_token_id.unwrap_or(if class.kind == Kind::Roberta { 1 } else { 0 }),
            rotation: None,
            score_pooling: Pooling::Cls,
            sigmoid: self.sigmoid()?,
        })
    }

    pub fn unsupported(&self, feature: String) -> Error {
        Error::Unsupported { file: self.path.clone(), feature, next: "use another version of the model" }
    }

    /// What no encoder may ask for.
    pub fn refuse_shared(&self, class: Class) -> Result<()> {
        let raw: Shared = self.typed()?;
        if raw.quantization_config.is_some() {
            return Err(self.unsupported("quantization_config in an encoder".to_owned()));
        }
        if raw.is_decoder {
            return Err(self.unsupported("an encoder used as a decoder (is_decoder)".to_owned()));
        }
        // As Transformers counts them: the names where there are some, else the number, else two.
        let labels = raw.id2label.as_ref().map(Map::len).or(raw.num_labels).unwrap_or(2);
        if class.scores && labels != 1 {
            return Err(self.unsupported(format!("a classifier of {labels} labels (a reranker has one)")));
        }
        Ok(())
    }

    /// As sentence-transformers' CrossEncoder: a sigmoid for one label, unless the file names another activation.
    pub fn sigmoid(&self) -> Result<bool> {
        let raw: Shared = self.typed()?;
        let newer = raw.sentence_transformers.as_ref().and_then(|section| section.get("activation_fn")?.as_str());
        let named = newer.or(raw.sbert_ce_default_activation_function.as_deref());
        match named.map(|name| name.rsplit('.').next().unwrap_or_default()) {
            None | Some("Sigmoid") => Ok(true),
            Some("Identity") => Ok(false),
            Some(_) => Err(self.unsupported(format!("activation_fn {}", shown(named.unwrap_or_default())))),
        }
    }
}

impl EncoderConfig {
    pub fn check(&self, kind: Kind) -> Result<(), String> {
        // Generous beyond any known encoder, and small enough that no product of two sizes overflows.
        const SIZE_MAX: usize = 1 << 24;
        let sizes = [
            ("hidden_size", self.hidden, 1 << 20),
            ("intermediate_size", self.ffn, SIZE_MAX),
            ("num_hidden_layers", self.layers, LAYERS_MAX),
            ("num_attention_heads", self.heads, 1 << 16),
            ("vocab_size", self.vocab, SIZE_MAX),
            ("max_position_embeddings", self.positions, SIZE_MAX),
        ];
        for (name, value, max) in sizes {
            if value == 0 || value > max {
                return Err(format!("{name} is {value}, expected 1 to {max}"));
            }
        }
        if self.types > 1 << 16 || (self.types == 0 && kind != Kind::Modern) {
            return Err(format!("type_vocab_size is {}, expected 1 to {}", self.types, 1 << 16));
        }
        if !self.hidden.is_multiple_of(self.heads) {
            return Err(format!("hidden_size {} is not a multiple of {} attention heads", self.hidden, self.heads));
        }
        if !(self.eps > 0.0 && self.eps < 1.0) {
            return Err(format!("layer_norm_eps is {}, expected a small positive number", self.eps));
        }
        if let Some(rotation) = &self.rotation {
            let head_dim = self.hidden / self.heads;
            if !head_dim.is_multiple_of(2) {
                return Err(format!("heads of {head_dim} values cannot be rotated by halves"));
            }
            for theta in [rotation.theta, rotation.local_theta] {
                if !(theta >= 1.0 && theta.is_finite()) {
                    return Err(format!("rope_theta is {theta}, expected at least 1"));
                }
            }
        }
        if self.position_offset(kind) >= self.positions {
            let (positions, padding) = (self.positions, self.padding);
            return Err(format!("{positions} positions leave none behind pad_token_id {padding}"));
        }
        Ok(())
    }
}
