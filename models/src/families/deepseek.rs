//! DeepSeek-V2 and V3 (also Kimi K2, Moonlight) and GLM-4.7-Flash: latent attention, and after the first layers many small
//! experts beside some that every token sees. V3 scores experts by sigmoids, corrects the scores while it chooses, and
//! chooses among the best groups only. Layers behind the last, which predict further tokens, are left out.

use serde_json::Value;

use crate::error::Result;
use crate::family::{Family, FamilyTraits, LLAMA_LIKE, Switch};
use crate::names::{LayerPart, Part};
use crate::spec::experts::{self, Experts, GroupScore, Groups, Routing, Scoring};
use crate::spec::fields::Fields;
use crate::spec::keys::Keys;
use crate::spec::{Spec, latent};
use sconce_kernels::RopeStyle;

pub(crate) const DEEPSEEK_V2: FamilyTraits = FamilyTraits {
    family: Family::DeepseekV2,
    classes: &["DeepseekV2ForCausalLM"],
    model_type: "deepseek_v2",
    gguf: Some("deepseek2"),
    rope: RopeStyle::Interleaved,
    gguf_rope: RopeStyle::Interleaved,
    rotary_factor: Some(1.0),
    qkv_bias: Switch::Configured("attention_bias"),
    output_bias: Switch::Configured("attention_bias"),
    // Not the width of any head; the latent's sizes say what is.
    sizes: &[("head_dim", 64)],
    names: &[
        (LayerPart::SharedGate, "mlp.shared_experts.gate_proj.weight"),
        (LayerPart::SharedUp, "mlp.shared_experts.up_proj.weight"),
        (LayerPart::SharedDown, "mlp.shared_experts.down_proj.weight"),
    ],
    gguf_keys: &latent::GGUF_KEYS,
    is_uneven: true,
    has_extra_layers: true,
    config: |fields, spec| {
        fields.refuse_if("mlp_bias")?;
        // Transformers does not read it here, other engines do.
        fields.refuse_if("norm_topk_prob")?;
        let best = match fields.text("topk_method")?.unwrap_or("greedy") {
            "greedy" => None,
            "group_limited_greedy" => Some(GroupScore::Best),
            other => return Err(fields.unsupported(format!("topk_method {}", crate::error::shown(other)))),
        };
        let routing = Routing { gates_shared: false, ..Routing::PLAIN };
        from_config(fields, spec, (routing, best), 0)
    },
    metadata: from_metadata,
    ..LLAMA_LIKE
};

pub(crate) const DEEPSEEK_V3: FamilyTraits = FamilyTraits {
    family: Family::DeepseekV3,
    classes: &["DeepseekV3ForCausalLM"],
    model_type: "deepseek_v3",
    gguf: None,
    config: |fields, spec| {
        if fields.bool("rope_interleave")? == Some(false) {
            spec.rope.style = RopeStyle::Halves;
        }
        let routing = Routing { scoring: Scoring::Sigmoid, corrected: true, gates_shared: false, ..Routing::PLAIN };
        from_config(fields, spec, (routing, Some(GroupScore::BestTwo)), 3)
    },
    ..DEEPSEEK_V2
};

pub(crate) const GLM4_MOE_LITE: FamilyTraits = FamilyTraits {
    family: Family::Glm4MoeLite,
    classes: &["Glm4MoeLiteForCausalLM"],
    model_type: "glm4_moe_lite",
    norm_eps: ("rms_norm_eps", 1e-5),
    ..DEEPSEEK_V3
};

/// `dense` is how many layers have no experts where the config is silent.
fn from_config(
    fields: &Fields,
    spec: &mut Spec,
    (routing, by): (Routing, Option<GroupScore>),
    dense: usize,
) -> Result<()> {
    latent::from_config(fields, spec)?;
    if spec.qkv_bias && fields.optional_size("q_lora_rank")?.is_none() {
        return Err(fields.unsupported("attention_bias without q_lora_rank".to_owned()));
    }
    if fields.get("n_routed_experts").is_none() {
        return Ok(());
    }
    let groups = (fields.optional_size("n_group")?.unwrap_or(1), fields.optional_size("topk_group")?.unwrap_or(1));
    let groups = by.filter(|_| groups.0 > 1).map(|score| Groups { count: groups.0, used: groups.1, score });
    let scale = fields.number("routed_scaling_factor")?.unwrap_or(1.0) as f32;
    let ffn = fields.size("moe_intermediate_size")?;
    let shared = fields.optional_size("n_shared_experts")?.unwrap_or(0);
    spec.experts = Some(Experts {
        count: fields.size("n_routed_experts")?,
        per_token: fields.size("num_experts_per_tok")?,
        ffn,
        shared_ffn: shared.saturating_mul(ffn),
        normalised: routing.scoring == Scoring::Sigmoid && fields.bool("norm_topk_prob")?.unwrap_or(true),
        has_bias: false,
        routing: Routing { groups, scale, ..routing },
        layers: layers_with_experts(fields, spec.layers_believed(), dense)?,
    });
    Ok(())
}

fn layers_with_experts(fields: &Fields, layers: usize, dense: usize) -> Result<Vec<bool>> {
    if let Some(kinds) = fields.list("mlp_layer_types")? {
        let has_experts = |kind: &Value| match kind.as_str() {
            Some("sparse") => Ok(true),
            Some("dense") => Ok(false),
            _ => Err(fields.wrong("mlp_layer_types", "a list of dense and sparse")),
        };
        return kinds.iter().map(has_experts).collect();
    }
    let dense = match spec_of_glm(fields) {
        true => 1,
        false => fields.optional_size("first_k_dense_replace")?.unwrap_or(dense),
    };
    let step = fields.optional_size("moe_layer_freq")?.unwrap_or(1).max(1);
    Ok((0..layers).map(|layer| layer >= dense && layer.is_multiple_of(step)).collect())
}

/// GLM's config names the kinds of layers, and only the first is dense where it does not.
fn spec_of_glm(fields: &Fields) -> bool {
    fields.get("first_k_dense_replace").is_none()
        && fields.get("model_type").and_then(Value::as_str) == Some("glm4_moe_lite")
}

fn from_metadata(keys: &Keys, spec: &mut Spec) -> Result<()> {
    const SIGMOID: usize = 2;
    latent::from_metadata(keys, spec)?;
    if let Some(extra) = keys.optional_size("nextn_predict_layers")? {
        spec.layers = spec.layers.saturating_sub(extra);
    }
    // Files from before the key are of V2.
    let scoring = keys.optional_size("expert_gating_func")?.unwrap_or(1);
    let scoring = if scoring == SIGMOID { Scoring::Sigmoid } else { Scoring::Softmax };
    if scoring == Scoring::Sigmoid {
        spec.family = Family::DeepseekV3;
    }
    let found = experts::from_metadata(keys, spec)?;
    let first = found.layers.iter().position(|has_experts| *has_experts);
    let corrected = first.is_some_and(|layer| keys.tensors.has(Part::Layer(layer, LayerPart::RouterCorrection)));
    let count = keys.optional_size("expert_group_count")?.unwrap_or(1);
    let score = if scoring == Scoring::Sigmoid { GroupScore::BestTwo } else { GroupScore::Best };
    let used = keys.optional_size("expert_group_used_count")?.unwrap_or(1);
    let groups = (count > 1).then_some(Groups { count, used, score });
    let scale = keys.number("expert_weights_scale")?.filter(|&scale| scale != 0.0).unwrap_or(1.0) as f32;
    let shared = keys.optional_size("expert_shared_count")?.unwrap_or(0);
    spec.experts = Some(Experts {
        shared_ffn: shared.saturating_mul(found.ffn),
        routing: Routing { scoring, groups, scale, corrected, gates_shared: false, ..Routing::PLAIN },
        ..found
    });
    Ok(())
}
