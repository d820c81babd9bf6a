//! GGUF metadata and tensor table to [`Spec`]. Keys: the GGUF specification in ggml's `docs/gguf.md`.

use super::keys::Keys;
use super::rope::yarn_attention_factor;
use super::{LAYERS_MAX, NormKind, RopeScaling, RopeSpec, Scales, SlidingWindow, Spec, Uneven};
use crate::error::{Error, Result, shown};
use crate::family::{self, FamilyTraits, Switch, WindowRule};
use crate::gguf::{Array, Header, Value};
use crate::names::{GGUF_LONGROPE, GGUF_ROPE_FACTORS, LayerPart, Part};
use crate::tensors::TensorSet;

/// Keys of other architectures' features. Where one is set the answer would differ, so the file is refused.
const UNSUPPORTED_KEYS: [&str; 15] = [
    "expert_count",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "attention.scale",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope.dimension_sections",
    "use_parallel_residual",
    "router_logit_softcapping",
    "expert_group_used_count",
    "attention.key_length_swa",
    "leading_dense_block_count",
    "rope.scaling.yarn_log_multiplier",
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
    let keys = Keys { header, file, architecture, tensors };
    refuse_unsupported(&keys, traits)?;

    let (heads, hidden) = (keys.size("attention.head_count")?, keys.size("embedding_length")?);
    let head_dim = head_dim(&keys, traits, heads, hidden)?;
    let layers = keys.size("block_count")?;
    let totals = tensors.totals();
    let norm_eps = match traits.norm {
        NormKind::Rms => keys.required_number("attention.layer_norm_rms_epsilon")?,
        NormKind::Layer { .. } => keys.required_number("attention.layer_norm_epsilon")?,
    };
    let mut spec = Spec {
        architecture: architecture.to_owned(),
        family: traits.family,
        layers,
        hidden,
        ffn: feed_forward(&keys, traits)?,
        heads,
        kv_heads: kv_heads(&keys, traits)?.unwrap_or(heads),
        head_dim,
        vocab: vocab(&keys)?,
        context_max: u32::try_from(keys.size("context_length")?).unwrap_or(u32::MAX),
        norm_eps: norm_eps as f32,
        rope: rope(&keys, traits, head_dim)?,
        local_rope: None,
        unrotated: Vec::new(),
        tied_embeddings: !tensors.has(Part::Head),
        qkv_bias: has_part(tensors, traits.qkv_bias, LayerPart::QueryBias),
        output_bias: has_part(tensors, traits.output_bias, LayerPart::OutputBias),
        mlp_bias: has_part(tensors, traits.mlp_bias, LayerPart::UpBias),
        qk_norm: traits.qk_norm,
        norm: traits.norm,
        norms: traits.norms,
        activation: traits.activation.1,
        gated: traits.gated,
        scales: Scales::plain(head_dim),
        sinks: false,
        sliding_window: sliding_window(&keys, traits.window, layers)?,
        experts: None,
        latent: None,
        uneven: Uneven::default(),
        notes: Vec::new(),
        weight_format: totals.weight_format,
        parameters: totals.parameters,
        weight_bytes: totals.weight_bytes,
        fp8_bytes: 0,
    };
    (traits.metadata)(&keys, &mut spec)?;
    spec.check().map_err(|detail| Error::Config { file: file.to_owned(), detail })?;
    Ok(spec)
}

fn has_part(tensors: &TensorSet, switch: Switch, part: LayerPart) -> bool {
    match switch {
        Switch::Never => false,
        Switch::Always => true,
        Switch::Configured(_) | Switch::UnlessConfigured(_) => tensors.has(Part::Layer(0, part)),
    }
}

/// The width of the feed-forward block; files of models that have experts only need not say it.
fn feed_forward(keys: &Keys, traits: &FamilyTraits) -> Result<usize> {
    if traits.is_uneven
        && let Some(narrowest) = keys.sizes("feed_forward_length")?.into_iter().flatten().min()
        && narrowest > 0
    {
        return Ok(narrowest);
    }
    match keys.optional_size("feed_forward_length")?.filter(|&width| width > 0) {
        Some(width) => Ok(width),
        None if keys.get("expert_feed_forward_length").is_some() => keys.size("expert_feed_forward_length"),
        None => keys.size("feed_forward_length"),
    }
}

fn kv_heads(keys: &Keys, traits: &FamilyTraits) -> Result<Option<usize>> {
    const KEY: &str = "attention.head_count_kv";
    if traits.is_uneven { Ok(keys.sizes(KEY)?.into_iter().flatten().max()) } else { keys.optional_size(KEY) }
}

fn sliding_window(keys: &Keys, rule: WindowRule, layers: usize) -> Result<Option<SlidingWindow>> {
    let tokens = keys.optional_size("attention.sliding_window")?.filter(|&tokens| tokens > 0);
    let Some(tokens) = tokens else { return Ok(None) };
    let WindowRule::AllButEvery(usual) = rule else { return Ok(Some(SlidingWindow::every_layer(tokens, layers))) };
    const PATTERN: &str = "attention.sliding_window_pattern";
    let layers = match keys.get(PATTERN) {
        Some(Value::Array(Array::Bool(named))) => named.clone(),
        Some(_) => SlidingWindow::all_but_every(keys.size(PATTERN)?, layers.min(LAYERS_MAX)),
        None => SlidingWindow::all_but_every(usual, layers.min(LAYERS_MAX)),
    };
    Ok(Some(SlidingWindow { tokens: u32::try_from(tokens).unwrap_or(u32::MAX), layers }))
}

fn refuse_unsupported(keys: &Keys, traits: &FamilyTraits) -> Result<()> {
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
        if is_set && !traits.gguf_keys.contains(&name) {
            return Err(keys.unsupported(format!("metadata key {}", keys.full(name)), other_version));
        }
    }
    if keys.get("attention.causal").and_then(Value::as_bool) == Some(false) {
        return Err(keys.unsupported("attention that is not causal".to_owned(), other_version));
    }
    Ok(())
}

fn head_dim(keys: &Keys, traits: &FamilyTraits, heads: usize, hidden: usize) -> Result<usize> {
    let head_dim = match keys.optional_size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(keys.wrong(format!("embedding length {hidden} is not a multiple of {heads} heads"))),
    };
    if !traits.is_uneven {
        refuse_other_width(keys, "attention.value_length", head_dim)?;
    }
    Ok(head_dim)
}

fn refuse_other_width(keys: &Keys, key: &str, head_dim: usize) -> Result<()> {
    if keys.optional_size(key)?.is_none_or(|size| size == head_dim) {
        return Ok(());
    }
    let feature = format!("{} other than the head size {head_dim}", keys.full(key));
    Err(keys.unsupported(feature, "use another version of the model"))
}

/// Rows of the embedding, which must be enough for every token that the file's tokenizer can produce.
fn vocab(keys: &Keys) -> Result<usize> {
    let tensors = keys.tensors;
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

fn rope(keys: &Keys, traits: &FamilyTraits, head_dim: usize) -> Result<RopeSpec> {
    let tensors = keys.tensors;
    let rotated = match traits.rotary_factor {
        Some(_) => keys.optional_size("rope.dimension_count")?.unwrap_or(head_dim),
        None => {
            refuse_other_width(keys, "rope.dimension_count", head_dim)?;
            head_dim
        }
    };
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
        ("none" | "longrope", None) if tensors.get(GGUF_LONGROPE[0]).is_some() => longrope(keys)?,
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
    Ok(RopeSpec { theta, style: traits.gguf_rope, rotated, scaling })
}

fn longrope(keys: &Keys) -> Result<RopeScaling> {
    let divisors = |name: &str| -> Result<Vec<f64>> {
        let divisors = keys.tensors.optional_vector(name)?;
        let missing = || Error::MissingTensor { file: keys.file.to_owned(), tensor: name.to_owned() };
        Ok(divisors.ok_or_else(missing)?.into_iter().map(f64::from).collect())
    };
    let [short, long] = GGUF_LONGROPE;
    Ok(RopeScaling::LongRope {
        short: divisors(short)?,
        long: divisors(long)?,
        original_context: keys.required_number("rope.scaling.original_context_length")?,
        attention_factor: keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0),
    })
}

fn yarn(keys: &Keys, factor: f64) -> Result<RopeScaling> {
    const EXTRAPOLATION: &str = "rope.scaling.yarn_ext_factor";
    if keys.number(EXTRAPOLATION)?.is_some_and(|value| value != 1.0) {
        let feature = format!("metadata key {}", keys.full(EXTRAPOLATION));
        return Err(keys.unsupported(feature, "use another version of the model"));
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
