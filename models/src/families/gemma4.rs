//! Gemma 4 (text): as Gemma 3 with other heads in the layers without a window, of which a share turns; values are normed;
//! the last layers may read the K and V of earlier ones; each layer scales what it gives, and in the small models gets an
//! input of its own. Norms are stored as they are, scores are not scaled.

use serde_json::Value;

use super::gemma::GEMMA2;
use crate::error::Result;
use crate::family::{Family, FamilyTraits, WindowRule};
use crate::names::{LayerPart, Part};
use crate::spec::fields::Fields;
use crate::spec::keys::Keys;
use crate::spec::{KvHeads, QkNorm, RopeScaling, RopeSpec, Spec};

/// What Transformers takes where a config is silent: heads of layers without a window, and their turning share and base.
const GLOBAL_HEAD_DIM: usize = 512;
const GLOBAL_ROPE: (f64, f64) = (0.25, 1e6);
const LOCAL_THETA: f64 = 10_000.0;
const OWN_INPUT: usize = 256;

pub(crate) const GEMMA4: FamilyTraits = FamilyTraits {
    family: Family::Gemma4,
    classes: &["Gemma4ForCausalLM"],
    model_type: "gemma4_text",
    gguf: Some("gemma4"),
    norms_less_one: false,
    qk_norm: QkNorm::Heads,
    rotary_factor: Some(1.0),
    window: WindowRule::AllButEvery(6),
    is_uneven: true,
    sizes: &[
        ("num_key_value_heads", 4),
        ("head_dim", 256),
        ("vocab_size", 262_144),
        ("max_position_embeddings", 131_072),
        ("sliding_window", 512),
    ],
    gguf_keys: &["final_logit_softcapping", "attention.sliding_window_pattern", "attention.key_length_swa"],
    config: from_config,
    metadata: from_metadata,
    ..GEMMA2
};

fn from_config(fields: &Fields, spec: &mut Spec) -> Result<()> {
    fields.refuse_if("enable_moe_block")?;
    fields.refuse_if("attention_bias")?;
    if fields.text("use_bidirectional_attention").is_ok_and(|how| how == Some("all")) {
        return Err(fields.unsupported("use_bidirectional_attention all".to_owned()));
    }
    let keys_are_values = fields.bool("attention_k_eq_v")?.unwrap_or(false);
    let mut global = KvHeads { kv_heads: spec.kv_heads, head_dim: GLOBAL_HEAD_DIM };
    let kv_heads = fields.optional_size("num_global_key_value_heads")?.filter(|_| keys_are_values);
    global.kv_heads = kv_heads.unwrap_or(global.kv_heads);
    global.head_dim = fields.optional_size("global_head_dim")?.unwrap_or(global.head_dim);
    if let Some(listed) = fields.object_at("per_layer_config")? {
        global = of_layers(fields, spec, listed)?;
    }
    if let Some(window) = &mut spec.sliding_window
        && let Some(last) = window.layers.last_mut()
    {
        // As in Transformers: the last layer sees everything.
        *last = false;
    }
    let vocab = fields.optional_size("vocab_size_per_layer_input")?;
    spec.uneven.own_input = fields.optional_size("hidden_size_per_layer_input")?.unwrap_or(OWN_INPUT);
    if spec.uneven.own_input > 0 && vocab.is_some_and(|vocab| vocab != spec.vocab) {
        return Err(fields.unsupported("vocab_size_per_layer_input other than vocab_size".to_owned()));
    }
    spec.uneven.global_keys_are_values = keys_are_values;
    spec.uneven.shared_kv_layers = fields.optional_size("num_kv_shared_layers")?.unwrap_or(0);
    spec.uneven.shared_are_wide = fields.bool("use_double_wide_mlp")?.unwrap_or(false);
    if fields.get("rope_parameters").is_none() {
        let (share, theta) = GLOBAL_ROPE;
        spec.rope = RopeSpec { theta, scaling: RopeScaling::Proportional { share, factor: 1.0 }, ..spec.rope.clone() };
        spec.local_rope = Some(spec.rope.plain(LOCAL_THETA));
    }
    spec.rope.rotated = global.head_dim;
    spec.scales.logit_cap = fields.number("final_logit_softcapping")?.map(|cap| cap as f32);
    finish(spec, global);
    Ok(())
}

/// The sizes that single layers have of their own, which must be the same for all layers without a window.
fn of_layers(fields: &Fields, spec: &Spec, listed: &serde_json::Map<String, Value>) -> Result<KvHeads> {
    let usual = KvHeads { kv_heads: spec.kv_heads, head_dim: spec.head_dim };
    let mut found = None;
    for (layer, sizes) in listed {
        let Value::Object(object) = sizes else { return Err(fields.wrong("per_layer_config", "sizes by layer")) };
        let of_layer = Fields { object, file: fields.file };
        let heads = KvHeads {
            kv_heads: of_layer.optional_size("num_key_value_heads")?.unwrap_or(usual.kv_heads),
            head_dim: of_layer.optional_size("head_dim")?.unwrap_or(usual.head_dim),
        };
        let is_global = match layer.parse::<usize>() {
            Ok(index) => index.saturating_add(1) == spec.layers || spec.window(index).is_none(),
            Err(_) => layer == "full_attention",
        };
        if !is_global && heads == usual {
            continue;
        }
        if !is_global || found.is_some_and(|found| found != heads) {
            return Err(fields.unsupported("per_layer_config that is not the same for all layers of a kind".to_owned()));
        }
        found = Some(heads);
    }
    Ok(found.unwrap_or(usual))
}

fn from_metadata(keys: &Keys, spec: &mut Spec) -> Result<()> {
    if keys.tensors.has(Part::Layer(0, LayerPart::Router)) {
        return Err(keys.unsupported("Gemma 4 with experts".to_owned(), "use a model of the family without experts"));
    }
    // What stands for the model in all families is here the size of layers without a window.
    let head_dim = spec.head_dim;
    spec.head_dim = keys.optional_size("attention.key_length_swa")?.unwrap_or(head_dim);
    let is_global = |layer: &usize| spec.window(*layer).is_none();
    let first = (0..spec.layers_believed()).find(is_global);
    let windowed = (0..spec.layers_believed()).find(|layer| !is_global(layer));
    let kv_heads = keys.sizes("attention.head_count_kv")?.unwrap_or_default();
    let of = |layer: Option<usize>| match (layer, &kv_heads[..]) {
        (_, [same]) => Some(*same),
        (Some(layer), listed) => listed.get(layer).copied(),
        (None, _) => None,
    };
    let global = KvHeads { kv_heads: of(first).unwrap_or(spec.kv_heads), head_dim };
    spec.kv_heads = of(windowed).unwrap_or(spec.kv_heads);
    spec.local_rope = Some(RopeSpec {
        rotated: keys.optional_size("rope.dimension_count_swa")?.unwrap_or(spec.head_dim),
        ..spec.rope.plain(keys.number("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA))
    });
    spec.uneven.own_input = keys.optional_size("embedding_length_per_layer_input")?.unwrap_or(0);
    spec.uneven.shared_kv_layers = keys.optional_size("attention.shared_kv_layers")?.unwrap_or(0);
    let widths = keys.sizes("feed_forward_length")?.unwrap_or_default();
    spec.uneven.shared_are_wide = widths.first() != widths.last();
    spec.uneven.global_keys_are_values =
        first.is_some_and(|layer| !keys.tensors.has(Part::Layer(layer, LayerPart::Value)));
    spec.scales.logit_cap = keys.number("final_logit_softcapping")?.filter(|&cap| cap != 0.0).map(|cap| cap as f32);
    finish(spec, global);
    Ok(())
}

fn finish(spec: &mut Spec, global: KvHeads) {
    spec.uneven.global_heads = Some(global);
    spec.uneven.value_norm = true;
    spec.uneven.scaled = true;
    spec.scales.attention = 1.0;
    spec.scales.embedding = (spec.hidden as f64).sqrt() as f32;
}
