//! Builds an encoder: every tensor that its config asks for, found, checked, and put in its place.

use std::collections::BTreeSet;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use sconce_kernels::{Arena, PackedWeight, Precision, RopeStyle, RopeTable};

use super::config::{Class, EncoderConfig, Kind, Rotation};
use super::encoder::{Encoder, EncoderLayer, Head, NormPlace, ScoreActivation, ScoreHead};
use super::names::Names;
use super::sentence::Sentence;
use super::{EmbedderOptions, EmbedderSpec, Output};
use crate::error::{Error, Result};
use crate::layers::{Linear, Norm};
use crate::load::Progress;
use crate::spec::{RopeScaling, RopeSpec};
use crate::tensors::TensorSet;

/// Everything that is known of an encoder before its weights are read.
pub(crate) struct EncoderPlan {
    pub spec: EmbedderSpec,
    config: EncoderConfig,
    kind: Kind,
    names: &'static Names,
    /// What stands before the names of the encoder in this file.
    prefix: &'static str,
    tensors: TensorSet,
}

/// An encoder as its file describes it.
pub(super) struct Described {
    pub file: PathBuf,
    pub class: Class,
    pub config: EncoderConfig,
    pub sentence: Sentence,
    pub tensors: TensorSet,
}

impl EncoderPlan {
    pub(super) fn new(described: Described, options: EmbedderOptions) -> Result<Self> {
        let Described { file, class, config, sentence, tensors } = described;
        if let Some(width) = sentence.width.filter(|width| *width != config.hidden) {
            let detail =
                format!("hidden_size is {}, but the vectors that are pooled have {width} values", config.hidden);
            return Err(Error::Config { file, detail });
        }
        let positions = u32::try_from(config.tokens_max(class.kind)).unwrap_or(u32::MAX);
        let model_max = sentence.tokens_max.unwrap_or(u32::MAX).min(positions);
        if model_max == 0 {
            return Err(Error::Config { file, detail: "max_seq_length is 0".to_owned() });
        }
        let output = match class.scores {
            true => Output::Score { sigmoid: config.sigmoid },
            false => Output::Embedding { normalize: sentence.normalize },
        };
        let totals = tensors.totals();
        let spec = EmbedderSpec {
            architecture: class.name.to_owned(),
            output,
            pooling: if class.scores { config.score_pooling } else { sentence.pooling },
            layers: config.layers,
            width: if class.scores { 1 } else { config.hidden },
            vocab: config.vocab,
            types: config.types.max(1),
            tokens_max: options.tokens_max.unwrap_or(u32::MAX).min(model_max),
            lower_case: sentence.lower_case,
            judges: false,
            weight_format: totals.weight_format,
            parameters: totals.parameters,
            weight_bytes: totals.weight_bytes,
            // Input, q, k and v, perhaps turned, what was seen, two sums with their norms, and the wide layer, in f32.
            step_bytes_per_token: 4 * (12 * config.hidden + config.wide.factor() * config.ffn) as u64,
        };
        let names = Names::of(class.kind, !tensors.is_hugging_face());
        let prefix = if tensors.get(names.words).is_some() { "" } else { names.prefix };
        Ok(Self { spec, config, kind: class.kind, names, prefix, tensors })
    }

    pub(super) fn load(self, device: Device, precision: Precision, progress: Progress) -> Result<Encoder> {
        let Self { spec, config, kind, names, prefix, tensors } = self;
        let mut take = Taking {
            tensors: &tensors,
            device,
            precision,
            progress,
            names,
            prefix,
            used: BTreeSet::new(),
            arena: Arena::default(),
        };
        let (hidden, norm_bias) = (config.hidden, config.biases.norms);
        let words = take.tensors.named_matrix(&take.used(names.words), config.vocab, hidden)?;
        let learned = if config.rotation.is_some() { 0 } else { config.positions };
        let positions = take.table(names.positions, learned, hidden)?;
        let types = take.table(names.types, config.types, hidden)?;
        let embedding_norm = take.norm(names.embedding_norm, hidden, config.eps, norm_bias)?;
        let layers = take.layers(&config, kind, spec.tokens_max)?;
        let final_norm = match names.final_norm {
            "" => Norm::None,
            name => take.norm(name, hidden, config.eps, norm_bias)?,
        };
        let score = match spec.output {
            Output::Embedding { .. } => None,
            Output::Score { .. } => Some(take.score_head(kind, &config)?),
        };
        let Taking { used, .. } = take;
        tensors.refuse_others(&used, |name| is_ignorable(name.strip_prefix(prefix).unwrap_or(name), kind))?;
        let (offset, padding) = (config.position_offset(kind), (kind == Kind::Roberta).then_some(config.padding));
        Ok(Encoder {
            head: Head { pooling: spec.pooling, score },
            spec,
            hidden,
            heads: config.heads,
            place: if kind == Kind::Modern { NormPlace::Before } else { NormPlace::Behind },
            wide: config.wide.prologue(),
            words,
            positions,
            offset,
            padding,
            types,
            embedding_norm,
            layers,
            final_norm,
        })
    }
}

/// Tensors that files carry and inference does not need: indices, a pooler that nobody asked for, training heads.
fn is_ignorable(name: &str, kind: Kind) -> bool {
    let heads: &[&str] = match kind {
        Kind::Bert | Kind::Roberta | Kind::Nomic => &["pooler.", "cls.", "lm_head."],
        Kind::Modern => &["head.", "decoder."],
    };
    matches!(name, "embeddings.position_ids" | "embeddings.token_type_ids")
        || heads.iter().any(|head| name.starts_with(head))
}

/// Hands out weights and keeps count of what was asked for.
struct Taking<'a, 'p> {
    tensors: &'a TensorSet,
    device: Device,
    precision: Precision,
    progress: Progress<'p>,
    names: &'static Names,
    prefix: &'static str,
    used: BTreeSet<String>,
    arena: Arena,
}

impl Taking<'_, '_> {
    /// The full name of a tensor of the encoder, noted as used.
    fn used(&mut self, name: &str) -> String {
        let name = format!("{}{name}", self.prefix);
        self.used.insert(name.clone());
        name
    }

    /// A small table as f32.
    fn table(&mut self, name: &str, rows: usize, columns: usize) -> Result<Vec<f32>> {
        if rows == 0 {
            return Ok(Vec::new());
        }
        let name = self.used(name);
        let weight = self.tensors.named_matrix(&name, rows, columns)?;
        let mut values = vec![0.0; rows * columns];
        values.chunks_mut(columns).enumerate().for_each(|(row, values)| weight.row_f32(row, values));
        self.progress.add(weight.bytes().len() as u64);
        Ok(values)
    }

    fn vector(&mut self, full_name: String, len: usize) -> Result<Tensor> {
        let (vector, bytes) = self.tensors.named_vector(&full_name, len, &self.device)?;
        self.used.insert(full_name);
        self.progress.add(bytes);
        Ok(vector)
    }

    /// In files from before 2020 weight and bias go by the names of the paper.
    fn norm(&mut self, name: &str, hidden: usize, eps: f32, has_bias: bool) -> Result<Norm> {
        let full = format!("{}{name}", self.prefix);
        let old = self.tensors.get(&format!("{full}.gamma")).is_some();
        let (weight, bias) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let weight = self.vector(format!("{full}.{weight}"), hidden)?;
        let bias = if has_bias { Some(self.vector(format!("{full}.{bias}"), hidden)?) } else { None };
        Ok(Norm::Layer { weight, bias, eps })
    }

    /// Projections of one input, as one of `out` rows in all. `names` are full.
    fn linear(&mut self, names: &[String], (out, input): (usize, usize), has_bias: bool) -> Result<Linear> {
        let out = out / names.len();
        let mut weights = Vec::with_capacity(names.len());
        let mut biases = Vec::with_capacity(names.len());
        for name in names {
            let matrix = format!("{name}.weight");
            weights.push(self.tensors.named_matrix(&matrix, out, input)?);
            self.used.insert(matrix);
            if has_bias {
                biases.push(self.vector(format!("{name}.bias"), out)?);
            }
        }
        let packed = PackedWeight::new(&weights.iter().collect::<Vec<_>>(), self.precision, &mut self.arena)?;
        for (weight, name) in weights.iter().zip(names) {
            self.tensors.let_go(&format!("{name}.weight"));
            self.progress.add(weight.bytes().len() as u64);
        }
        let bias = if has_bias { Some(Tensor::cat(&biases, 0)?) } else { None };
        Ok(Linear { weight: packed, bias })
    }

    fn layers(&mut self, config: &EncoderConfig, kind: Kind, tokens_max: u32) -> Result<Vec<EncoderLayer>> {
        let table = |theta: f64| {
            let head_dim = config.hidden / config.heads;
            let rope = RopeSpec { theta, style: RopeStyle::Halves, rotated: head_dim, scaling: RopeScaling::None };
            RopeTable::new(&rope.inverse_frequencies(tokens_max), tokens_max as usize, 1.0, &Device::Cpu)
        };
        let tables = match &config.rotation {
            Some(Rotation { theta, local_theta, .. }) => Some([table(*theta)?, table(*local_theta)?]),
            None => None,
        };
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            let mut layer = self.layer(index, config, kind)?;
            if let (Some([whole, local]), Some(rotation)) = (&tables, &config.rotation) {
                let is_local = rotation.is_local[index];
                layer.rope = Some(if is_local { local } else { whole }.clone());
                layer.reach = is_local.then_some(rotation.reach);
            }
            layers.push(layer);
        }
        Ok(layers)
    }

    fn layer(&mut self, index: usize, config: &EncoderConfig, kind: Kind) -> Result<EncoderLayer> {
        let (hidden, ffn, eps, biases) = (config.hidden, config.ffn, config.eps, config.biases);
        let names = self.names;
        let name = |part: &str| format!("{}{index}.{part}", names.layer);
        let full = |prefix: &str, part: &str| format!("{prefix}{}", name(part));
        let all = |prefix, parts: &[&str]| parts.iter().map(|part| full(prefix, part)).collect::<Vec<_>>();
        let prefix = self.prefix;
        // ModernBERT's first layer takes what was normed as an embedding.
        let attention_norm = match (kind, index) {
            (Kind::Modern, 0) => Norm::None,
            _ => self.norm(&name(names.attention_norm), hidden, eps, biases.norms)?,
        };
        let wide = config.wide.factor() * ffn;
        Ok(EncoderLayer {
            attention_norm,
            qkv: self.linear(&all(prefix, names.qkv), (3 * hidden, hidden), biases.attention)?,
            rope: None,
            reach: None,
            output: self.linear(&[full(prefix, names.output)], (hidden, hidden), biases.attention)?,
            norm: self.norm(&name(names.norm), hidden, eps, biases.norms)?,
            wide: self.linear(&all(prefix, names.wide), (wide, hidden), biases.ffn)?,
            down: self.linear(&[full(prefix, names.down)], (hidden, ffn), biases.ffn)?,
        })
    }

    /// A dense layer, activated and in ModernBERT normed, with a linear layer behind it.
    fn score_head(&mut self, kind: Kind, config: &EncoderConfig) -> Result<ScoreHead> {
        let (hidden, names) = (config.hidden, &self.names.head);
        let prefix = if names.dense_has_prefix { self.prefix } else { "" };
        let dense = self.linear(&[format!("{prefix}{}", names.dense)], (hidden, hidden), config.biases.head)?;
        let (activation, norm) = match kind {
            Kind::Bert | Kind::Roberta | Kind::Nomic => (ScoreActivation::Tanh, Norm::None),
            Kind::Modern => {
                let weight = self.vector(format!("{}.weight", names.norm), hidden)?;
                let bias = match config.biases.norms {
                    true => Some(self.vector(format!("{}.bias", names.norm), hidden)?),
                    false => None,
                };
                (ScoreActivation::Gelu, Norm::Layer { weight, bias, eps: config.eps })
            }
        };
        let out = self.linear(&[names.out.to_owned()], (1, hidden), true)?;
        Ok(ScoreHead { dense, activation, norm, out })
    }
}
