//! `config.json` to [`Spec`], in the forms of Transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).
//!
//! Absent keys take the value that Transformers gives them; what Transformers would do and this crate cannot is
//! refused.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::{Fields, NEXT};
use super::rope::yarn_attention_factor;
use super::{Activation, LAYERS_MAX, RopeScaling, RopeSpec, Scales, SlidingWindow, Spec, Uneven};
use crate::embedder;
use crate::error::{Error, Result, shown};
use crate::family::{self, FamilyTraits, WindowRule};
use crate::quantised::Quantisation;

/// Models of text and images whose text part is one of the families, under `text_config`.
const WRAPPERS: [&str; 6] = [
    "Gemma3ForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
];

/// What a config says.
pub(crate) struct Parsed {
    pub spec: Spec,
    pub quantisation: Option<Quantisation>,
    /// The model is the text part of one that sees images, too.
    pub is_text_part: bool,
}

/// Parses the text of a config; `file` is for messages only. Weight totals are left at zero.
pub(crate) fn parse(text: &str, file: &Path) -> Result<Parsed> {
    let wrong = |detail| Error::Config { file: file.to_owned(), detail };
    let root: Value = serde_json::from_str(text).map_err(|error| wrong(format!("it is not JSON: {error}")))?;
    let Value::Object(root) = root else { return Err(wrong("it is not a JSON object".to_owned())) };
    let whole = Fields { object: &root, file };
    let (architecture, traits, text_part) = architecture(&whole)?;
    let quantisation = Quantisation::parse(&whole)?;
    let is_text_part = text_part.is_some();
    let mut object = text_part.unwrap_or_else(|| root.clone());
    if let Some(tied) = root.get("tie_word_embeddings") {
        object.entry("tie_word_embeddings").or_insert(tied.clone());
    }
    for &(key, size) in traits.sizes {
        object.entry(key).or_insert(size.into());
    }
    let fields = Fields { object: &object, file };

    let heads = fields.size("num_attention_heads")?;
    let hidden = fields.size("hidden_size")?;
    let head_dim = match fields.optional_size("head_dim")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(wrong(format!("hidden_size {hidden} is not a multiple of {heads} attention heads"))),
    };
    let layers = fields.size("num_hidden_layers")?;
    let context_max = fields.size("max_position_embeddings")?;
    let (rope, local_rope) = rope(&fields, traits, (head_dim, context_max))?;
    let mut spec = Spec {
        architecture,
        family: traits.family,
        layers,
        hidden,
        ffn: fields.size("intermediate_size")?,
        heads,
        kv_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        vocab: fields.size("vocab_size")?,
        context_max: u32::try_from(context_max).unwrap_or(u32::MAX),
        norm_eps: fields.number(traits.norm_eps.0)?.unwrap_or(traits.norm_eps.1) as f32,
        rope,
        local_rope,
        unrotated: Vec::new(),
        tied_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(traits.tied),
        qkv_bias: fields.switch(traits.qkv_bias)?,
        output_bias: fields.switch(traits.output_bias)?,
        mlp_bias: fields.switch(traits.mlp_bias)?,
        qk_norm: traits.qk_norm,
        norm: traits.norm,
        norms: traits.norms,
        activation: activation(&fields, traits)?,
        gated: traits.gated,
        scales: Scales::plain(head_dim),
        sinks: false,
        sliding_window: sliding_window(&fields, traits.window, layers)?,
        experts: None,
        latent: None,
        uneven: Uneven::default(),
        notes: notes(quantisation, is_text_part),
        weight_format: String::new(),
        parameters: 0,
        weight_bytes: 0,
        fp8_bytes: 0,
    };
    (traits.config)(&fields, &mut spec)?;
    spec.check().map_err(wrong)?;
    Ok(Parsed { spec, quantisation, is_text_part })
}

fn notes(quantisation: Option<Quantisation>, is_text_part: bool) -> Vec<String> {
    let text_only = is_text_part.then_some("the text part of the model only: images are not read");
    quantisation.map(Quantisation::note).into_iter().chain(text_only).map(str::to_owned).collect()
}

/// The text of a config, an inner model's class (`Qwen3Model`) written as that of the model around it
/// (`Qwen3ForCausalLM`): both have the same layers. A decoder that was made to look in both directions is refused.
pub(crate) fn as_causal(text: &str, file: &Path) -> Result<String> {
    let Ok(Value::Object(mut root)) = serde_json::from_str(text) else { return Ok(text.to_owned()) };
    let looks_both_ways = [("is_causal", false), ("use_bidirectional_attention", true)];
    if let Some((key, value)) = looks_both_ways.iter().find(|(key, value)| root.get(*key) == Some(&Value::Bool(*value)))
    {
        let feature = format!("{key} {value} (a decoder that looks in both directions)");
        return Err(Error::Unsupported { file: file.to_owned(), feature, next: NEXT });
    }
    if let Some(Value::Array(classes)) = root.get_mut("architectures")
        && let Some(Value::String(class)) = classes.first_mut()
        && let Some(family) = class.strip_suffix("Model")
    {
        *class = format!("{family}ForCausalLM");
    }
    Ok(Value::Object(root).to_string())
}

/// The class as found, the family, and the config of the text part if there is one.
type Architecture = (String, &'static FamilyTraits, Option<Map<String, Value>>);

fn architecture(fields: &Fields) -> Result<Architecture> {
    let class = match fields.get("architectures") {
        Some(Value::Array(classes)) => classes.first().and_then(Value::as_str),
        Some(_) => return Err(fields.wrong("architectures", "a list of class names")),
        None => None,
    };
    if let Some(class) = class.filter(|class| WRAPPERS.contains(class)) {
        let text_part = fields.object_at("text_config")?.ok_or_else(|| fields.wrong("text_config", "an object"))?;
        let inner = Fields { object: text_part, file: fields.file }.text("model_type")?.unwrap_or("mistral");
        if let Some(traits) = family::by_model_type(inner) {
            return Ok((class.to_owned(), traits, Some(text_part.clone())));
        }
    }
    let model_type = fields.text("model_type")?;
    let (found, traits) = match (class, model_type) {
        (Some(class), _) => (class, family::by_class(class)),
        (None, Some(model_type)) => (model_type, family::by_model_type(model_type)),
        (None, None) => return Err(fields.wrong("architectures", "a list of class names")),
    };
    match traits {
        Some(traits) => Ok((found.to_owned(), traits, None)),
        None => Err(Error::Architecture {
            file: fields.file.to_owned(),
            found: shown(found),
            supported: format!("{}, {}", family::supported_classes(), embedder::supported_classes()),
        }),
    }
}

fn activation(fields: &Fields, traits: &FamilyTraits) -> Result<Activation> {
    let (keys, default) = traits.activation;
    for key in keys {
        let known = match fields.text(key)? {
            None => continue,
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu_pytorch_tanh") => Activation::GeluTanh,
            Some(other) => return Err(fields.unsupported(format!("{key} {}", shown(other)))),
        };
        if !traits.gated && known != Activation::GeluTanh {
            return Err(fields.unsupported(format!("{key} without a gate")));
        }
        return Ok(known);
    }
    Ok(default)
}

/// The rotation, and that of the layers with a window where the config has one for them.
fn rope(fields: &Fields, traits: &FamilyTraits, sizes: (usize, usize)) -> Result<(RopeSpec, Option<RopeSpec>)> {
    let nested = match (fields.object_at("rope_parameters")?, fields.object_at("rope_scaling")?) {
        (Some(parameters), _) => Some(parameters),
        (None, scaling) => scaling,
    };
    let empty = Map::new();
    let nested = Fields { object: nested.unwrap_or(&empty), file: fields.file };
    let (full, local) = (nested.object_at("full_attention")?, nested.object_at("sliding_attention")?);
    let Some(full) = full.or(local) else { return Ok((one_rope(fields, &nested, traits, sizes)?, None)) };
    let of = |object| one_rope(fields, &Fields { object, file: fields.file }, traits, sizes);
    Ok((of(full)?, local.map(of).transpose()?))
}

/// `nested` is where one rotation is described, `sizes` a head's and the longest context.
fn one_rope(fields: &Fields, nested: &Fields, traits: &FamilyTraits, sizes: (usize, usize)) -> Result<RopeSpec> {
    let (head_dim, context_max) = sizes;
    let theta = match nested.number("rope_theta")? {
        Some(theta) => theta,
        None => fields.number("rope_theta")?.unwrap_or(traits.theta),
    };
    let partial = match nested.number("partial_rotary_factor")? {
        Some(partial) => Some(partial),
        None => fields.number("partial_rotary_factor")?,
    };
    if traits.rotary_factor.is_none() && partial.is_some_and(|factor| factor != 1.0) {
        return Err(fields.unsupported("partial_rotary_factor".to_owned()));
    }
    let rotated = (head_dim as f64 * partial.or(traits.rotary_factor).unwrap_or(1.0)) as usize;
    let kind = match nested.text("rope_type")? {
        Some(kind) => kind,
        None => nested.text("type")?.unwrap_or("default"),
    };
    let original_context = match nested.number("original_max_position_embeddings")? {
        Some(context) => context,
        None => fields.number("original_max_position_embeddings")?.unwrap_or(context_max as f64),
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: nested.required_number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: nested.required_number("factor")?,
            low_freq_factor: nested.required_number("low_freq_factor")?,
            high_freq_factor: nested.required_number("high_freq_factor")?,
            original_context,
        },
        "yarn" => yarn(nested, original_context, context_max)?,
        "proportional" => {
            RopeScaling::Proportional { share: partial.unwrap_or(1.0), factor: nested.number("factor")?.unwrap_or(1.0) }
        }
        // Early Phi-3 files say `su`.
        "longrope" | "su" => longrope(nested, original_context, context_max)?,
        other => return Err(fields.unsupported(format!("rope type {}", shown(other)))),
    };
    Ok(RopeSpec { theta, style: traits.rope, rotated, scaling })
}

fn longrope(nested: &Fields, original_context: f64, context_max: usize) -> Result<RopeScaling> {
    let factor = nested.number("factor")?.unwrap_or(context_max as f64 / original_context);
    let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original_context.ln()).sqrt() };
    Ok(RopeScaling::LongRope {
        short: nested.numbers("short_factor")?,
        long: nested.numbers("long_factor")?,
        original_context,
        attention_factor: nested.number("attention_factor")?.unwrap_or(usual),
    })
}

fn yarn(nested: &Fields, original_context: f64, context_max: usize) -> Result<RopeScaling> {
    let factor = nested.number("factor")?.unwrap_or(context_max as f64 / original_context);
    let scales = (nested.number("mscale")?, nested.number("mscale_all_dim")?);
    let attention_factor = match (nested.number("attention_factor")?, scales) {
        (Some(attention_factor), _) => attention_factor,
        (None, (Some(mscale), Some(all))) if mscale != 0.0 && all != 0.0 => {
            yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, all)
        }
        _ => yarn_attention_factor(factor, 1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast: nested.number("beta_fast")?.unwrap_or(32.0),
        beta_slow: nested.number("beta_slow")?.unwrap_or(1.0),
        attention_factor,
        truncate: nested.bool("truncate")?.unwrap_or(true),
    })
}

fn sliding_window(fields: &Fields, rule: WindowRule, layers: usize) -> Result<Option<SlidingWindow>> {
    let is_on = match rule {
        WindowRule::None => false,
        WindowRule::EveryLayer | WindowRule::AllButEvery(_) => true,
        WindowRule::LateLayers => fields.bool("use_sliding_window")?.unwrap_or(false),
        WindowRule::Refused => {
            fields.refuse_if("use_sliding_window")?;
            false
        }
    };
    let Some(tokens) = fields.optional_size("sliding_window")?.filter(|_| is_on) else { return Ok(None) };
    let believed = layers.min(LAYERS_MAX);
    let layers = match (rule, fields.list("layer_types")?) {
        (WindowRule::LateLayers | WindowRule::AllButEvery(_), Some(kinds)) => windowed_layers(fields, kinds, layers)?,
        (WindowRule::LateLayers, None) => {
            let first = fields.optional_size("max_window_layers")?.unwrap_or(28);
            (0..believed).map(|layer| layer >= first).collect()
        }
        (WindowRule::AllButEvery(usual), None) => {
            let step = fields.optional_size("sliding_window_pattern")?.unwrap_or(usual);
            SlidingWindow::all_but_every(step, believed)
        }
        _ => return Ok(Some(SlidingWindow::every_layer(tokens, layers))),
    };
    Ok(Some(SlidingWindow { tokens: u32::try_from(tokens).unwrap_or(u32::MAX), layers }))
}

fn windowed_layers(fields: &Fields, kinds: &[Value], layers: usize) -> Result<Vec<bool>> {
    if kinds.len() != layers {
        return Err(fields.wrong("layer_types", "one entry a layer"));
    }
    let is_windowed = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(fields.unsupported(format!("layer type {}", shown(&kind.to_string())))),
    };
    kinds.iter().map(is_windowed).collect()
}
