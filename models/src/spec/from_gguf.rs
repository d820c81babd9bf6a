//! GGUF metadata and tensor table to [`Spec`]. Keys: the GGUF specification in ggml's `docs/gguf.md`.

use std::path::Path;

use super::rope::yarn_attention_factor;
use super::{RopeScaling, RopeSpec, SlidingWindow, Spec};
use crate::error::{Error, Result, shown};
use crate::family::{self, FamilyTraits, Switch};
use crate::gguf::{Header, Value};
use crate::names::{GGUF_ROPE_FACTORS, LayerPart, Part};
use crate::tensors::TensorSet;

/// Keys of other architectures' features. Where one is set the answer would differ, so the file is refused.
const UNSUPPORTED_KEYS: [&str; 9] = [
    "expert_count",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "attention.scale",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope.dimension_sections",
];

/// `tensors` must stem from `header`; the file that both stem from is named in messages.
pub(crate) fn spec(header: &Header, tensors: &TensorSet) -> Result<Spec> {
    let file = tensors.source.as_path();
    let architecture = header.string("general.architecture").ok_or_else(|| Error::Config {
        file: file.to_owned(),
        detail: "metadata key general.architecture is missing or no text".to_owned(),
    })?;
    let traits = family::by_gguf(architecture).ok_or_else(|| Error::Architecture {
        file: file.to_owned(),
        found: shown(architecture),
        supported: family::supported_gguf(),
    })?;
    let keys = Keys { header, file, architecture };
    refuse_unsupported(&keys)?;

    let (heads, hidden) = (keys.size("attention.head_count")?, keys.size("embedding_length")?);
    let head_dim = head_dim(&keys, heads, hidden)?;
    let layers = keys.size("block_count")?;
    let totals = tensors.totals();
    let spec = Spec {
        architecture: architecture.to_owned(),
        family: traits.family,
        layers,
        hidden,
        ffn: keys.size("feed_forward_length")?,
        heads,
        kv_heads: keys.optional_size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        vocab: vocab(&keys, tensors)?,
        context_max: u32::try_from(keys.size("context_length")?).unwrap_or(u32::MAX),
        norm_eps: keys.required_number("attention.layer_norm_rms_epsilon")? as f32,
        rope: rope(&keys, tensors, traits)?,
        tied_embeddings: !tensors.has(Part::Head),
        qkv_bias: has_part(tensors, traits.qkv_bias, LayerPart::QueryBias),
        output_bias: has_part(tensors, traits.output_bias, LayerPart::OutputBias),
        mlp_bias: has_part(tensors, traits.mlp_bias, LayerPart::GateBias),
        qk_norm: traits.qk_norm,
        sliding_window: keys
            .optional_size("attention.sliding_window")?
            .filter(|&tokens| tokens > 0)
            .map(|tokens| SlidingWindow::every_layer(tokens, layers)),
        weight_format: totals.weight_format,
        parameters: totals.parameters,
        weight_bytes: totals.weight_bytes,
    };
    spec.check().map_err(|detail| Error::Config { file: file.to_owned(), detail })?;
    Ok(spec)
}

fn has_part(tensors: &TensorSet, switch: Switch, part: LayerPart) -> bool {
    match switch {
        Switch::Never => false,
        Switch::Always => true,
        Switch::Configured(_) => tensors.has(Part::Layer(0, part)),
    }
}

fn refuse_unsupported(keys: &Keys) -> Result<()> {
    let kind = keys.header.string("general.type").unwrap_or("model");
    if kind != "model" {
        return Err(keys.unsupported(format!("general.type {}", shown(kind)), "name the file of the model itself"));
    }
    if keys.header.unsigned("split.count").is_some_and(|parts| parts > 1) {
        let next = "join the parts with llama-gguf-split --merge first";
        return Err(keys.unsupported("a model split into several GGUF files".to_owned(), next));
    }
    let other_version = "use another version of the model";
    for name in UNSUPPORTED_KEYS {
        let is_set = match keys.get(name) {
            None => false,
            Some(value) => value.as_f64() != Some(0.0) && value.as_bool() != Some(false),
        };
        if is_set {
            return Err(keys.unsupported(format!("metadata key {}", keys.full(name)), other_version));
        }
    }
    if keys.get("attention.causal").and_then(Value::as_bool) == Some(false) {
        return Err(keys.unsupported("attention that is not causal".to_owned(), other_version));
    }
    Ok(())
}

fn head_dim(keys: &Keys, heads: usize, hidden: usize) -> Result<usize> {
    let head_dim = match keys.optional_size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(keys.wrong(format!("embedding length {hidden} is not a multiple of {heads} heads"))),
    };
    let next = "use another version of the model";
    for key in ["attention.value_length", "rope.dimension_count"] {
        if keys.optional_size(key)?.is_some_and(|size| size != head_dim) {
            let feature = format!("{} other than the head size {head_dim}", keys.full(key));
            return Err(keys.unsupported(feature, next));
        }
    }
    Ok(head_dim)
}

/// Rows of the embedding, which must be enough for every token that the file's tokenizer can produce.
fn vocab(keys: &Keys, tensors: &TensorSet) -> Result<usize> {
    let name = Part::Embedding.name(tensors.naming);
    let stored =
        tensors.get(&name).ok_or_else(|| Error::MissingTensor { file: keys.file.to_owned(), tensor: name.clone() })?;
    let rows = stored.shape[0];
    let tokens = keys.header.get("tokenizer.ggml.tokens").and_then(Value::as_array).map(|tokens| tokens.len());
    let configured = keys.optional_size("vocab_size")?;
    for (what, size) in [("tokenizer.ggml.tokens", tokens), ("vocab_size", configured)] {
        if size.is_some_and(|size| size > rows) {
            return Err(keys.wrong(format!("{what} counts {} tokens, {name} has {rows} rows", size.unwrap_or(0))));
        }
    }
    Ok(rows)
}

fn rope(keys: &Keys, tensors: &TensorSet, traits: &FamilyTraits) -> Result<RopeSpec> {
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let divisors = tensors.optional_vector(GGUF_ROPE_FACTORS)?;
    // Files from before `rope.scaling.*` say a linear factor only.
    let old_factor = keys.number("rope.scale_linear")?.filter(|&factor| factor != 1.0 && factor != 0.0);
    let kind = match keys.get("rope.scaling.type") {
        None => {
            if old_factor.is_some() {
                "linear"
            } else {
                "none"
            }
        }
        Some(value) => value.as_str().ok_or_else(|| keys.wrong("rope.scaling.type is not a text".to_owned()))?,
    };
    let factor = || match (keys.number("rope.scaling.factor")?, old_factor) {
        (Some(factor), _) | (None, Some(factor)) => Ok(factor),
        (None, None) => keys.required_number("rope.scaling.factor"),
    };
    let scaling = match (kind, divisors) {
        ("none", None) => RopeScaling::None,
        ("none", Some(divisors)) => RopeScaling::Divisors(divisors),
        ("linear", None) => RopeScaling::Linear { factor: factor()? },
        ("yarn", None) => yarn(keys, factor()?)?,
        (kind, divisors) => {
            let beside = if divisors.is_some() { " beside rope_freqs.weight" } else { "" };
            let feature = format!("rope scaling type {}{beside}", shown(kind));
            return Err(keys.unsupported(feature, "use another version of the model"));
        }
    };
    Ok(RopeSpec { theta, style: traits.gguf_rope, scaling })
}

fn yarn(keys: &Keys, factor: f64) -> Result<RopeScaling> {
    for (key, plain) in [("rope.scaling.yarn_log_multiplier", 0.0), ("rope.scaling.yarn_ext_factor", 1.0)] {
        if keys.number(key)?.is_some_and(|value| value != plain) {
            let feature = format!("metadata key {}", keys.full(key));
            return Err(keys.unsupported(feature, "use another version of the model"));
        }
    }
    let first = |names: [&str; 2]| -> Result<f64> {
        Ok(match keys.number(names[0])? {
            Some(value) => value,
            None => keys.number(names[1])?.unwrap_or(1.0),
        })
    };
    let scale = first(["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"])?;
    let original_context = match keys.number("rope.scaling.original_context_length")? {
        Some(context) => context,
        None => keys.required_number("context_length")?,
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast: keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        attention_factor: scale * yarn_attention_factor(factor, 1.0),
        truncate: true,
    })
}

/// The metadata under the architecture's prefix, with complaints that name the file and the key.
struct Keys<'a> {
    header: &'a Header,
    file: &'a Path,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.header.get(&self.full(key))
    }

    fn wrong(&self, detail: String) -> Error {
        Error::Config { file: self.file.to_owned(), detail }
    }

    fn unsupported(&self, feature: String, next: &'static str) -> Error {
        Error::Unsupported { file: self.file.to_owned(), feature, next }
    }

    /// A size, given once or as an array with one entry a layer, all equal.
    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = match value {
            Value::Array(array) => {
                let sizes = array.to_u64s().unwrap_or_default();
                if sizes.windows(2).any(|pair| pair[0] != pair[1]) {
                    let feature = format!("{} that differs from layer to layer", self.full(key));
                    return Err(self.unsupported(feature, "use another version of the model"));
                }
                sizes.first().copied()
            }
            value => value.as_u64(),
        };
        match size.and_then(|size| usize::try_from(size).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(self.wrong(format!("metadata key {} is not a whole number", self.full(key)))),
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.wrong(format!("metadata key {} is missing", self.full(key))))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(format!("metadata key {} is not a number", self.full(key)))),
        }
    }

    fn required_number(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.wrong(format!("metadata key {} is missing", self.full(key))))
    }
}
