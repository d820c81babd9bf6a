//! LFM2: most layers are gated short convolutions, some are attention with normed heads; LFM2-MoE routes tokens to
//! experts in all layers but the first.

use serde_json::Value;

use crate::error::Result;
use crate::family::{Family, FamilyTraits, LLAMA_LIKE};
use crate::names::{Expert, LayerPart};
use crate::spec::experts::{Experts, Routing, Scoring};
use crate::spec::fields::Fields;
use crate::spec::{Convolution, QkNorm, Spec};

/// Of both; the parts of experts are asked for where there are any.
const NAMES: &[(LayerPart, &str)] = &[
    (LayerPart::AttentionNorm, "operator_norm.weight"),
    (LayerPart::MlpNorm, "ffn_norm.weight"),
    (LayerPart::QueryNorm, "self_attn.q_layernorm.weight"),
    (LayerPart::KeyNorm, "self_attn.k_layernorm.weight"),
    (LayerPart::Output, "self_attn.out_proj.weight"),
    (LayerPart::Gate, "feed_forward.w1.weight"),
    (LayerPart::Up, "feed_forward.w3.weight"),
    (LayerPart::Down, "feed_forward.w2.weight"),
    (LayerPart::Router, "feed_forward.gate.weight"),
    (LayerPart::RouterCorrection, "feed_forward.expert_bias"),
    (LayerPart::ExpertGate(Expert::ANY), "feed_forward.experts.{}.w1.weight"),
    (LayerPart::ExpertUp(Expert::ANY), "feed_forward.experts.{}.w3.weight"),
    (LayerPart::ExpertDown(Expert::ANY), "feed_forward.experts.{}.w2.weight"),
];

pub(crate) const LFM2: FamilyTraits = FamilyTraits {
    family: Family::Lfm2,
    classes: &["Lfm2ForCausalLM"],
    model_type: "lfm2",
    gguf: Some("lfm2"),
    theta: 1e6,
    qk_norm: QkNorm::Heads,
    norm_eps: ("norm_eps", 1e-5),
    tied: true,
    is_uneven: true,
    sizes: &[("intermediate_size", 12288)],
    names: NAMES,
    renamed: &[("model.embedding_norm.weight", "model.norm.weight"), ("token_embd_norm.weight", "output_norm.weight")],
    config: |fields, spec| {
        if let Some(tied) = fields.bool("tie_embedding")? {
            spec.tied_embeddings = tied;
        }
        spec.ffn = feed_forward(fields, spec)?;
        spec.uneven.convolution = Some(convolution(fields, spec)?);
        Ok(())
    },
    metadata: |keys, spec| {
        let heads = keys.sizes("attention.head_count_kv")?.unwrap_or_default();
        if heads.len() != spec.layers {
            return Err(
                keys.wrong(format!("metadata key {} is no list of all layers", keys.full("attention.head_count_kv")))
            );
        }
        spec.uneven.convolution = Some(Convolution {
            taps: keys.size("shortconv.l_cache")?,
            has_bias: false,
            layers: heads.iter().map(|heads| *heads == 0).collect(),
        });
        Ok(())
    },
    ..LLAMA_LIKE
};

pub(crate) const LFM2_MOE: FamilyTraits = FamilyTraits {
    family: Family::Lfm2Moe,
    classes: &["Lfm2MoeForCausalLM"],
    model_type: "lfm2_moe",
    // Not proven yet.
    gguf: None,
    sizes: &[("intermediate_size", 7168)],
    names: NAMES,
    config: |fields, spec| {
        if let Some(tied) = fields.bool("tie_embedding")? {
            spec.tied_embeddings = tied;
        }
        spec.uneven.convolution = Some(convolution(fields, spec)?);
        let dense = fields.optional_size("num_dense_layers")?.unwrap_or(2);
        let scale = fields.number("routed_scaling_factor")?.unwrap_or(1.0) as f32;
        let corrected = fields.bool("use_expert_bias")?.unwrap_or(true);
        spec.experts = Some(Experts {
            count: fields.size("num_experts")?,
            per_token: fields.size("num_experts_per_tok")?,
            ffn: fields.size("moe_intermediate_size")?,
            shared_ffn: 0,
            normalised: fields.bool("norm_topk_prob")?.unwrap_or(true),
            has_bias: false,
            routing: Routing { scale, corrected, ..SIGMOIDS },
            layers: (0..spec.layers_believed()).map(|layer| layer >= dense).collect(),
        });
        Ok(())
    },
    ..LFM2
};

const SIGMOIDS: Routing = Routing { scoring: Scoring::Sigmoid, gates_shared: false, ..Routing::PLAIN };

fn convolution(fields: &Fields, spec: &Spec) -> Result<Convolution> {
    Ok(Convolution {
        taps: fields.optional_size("conv_L_cache")?.unwrap_or(3),
        has_bias: fields.bool("conv_bias")?.unwrap_or(false),
        layers: layers_that_convolve(fields, spec.layers_believed())?,
    })
}

/// The width as configured is one of a block without a gate, unless it says otherwise.
fn feed_forward(fields: &Fields, spec: &Spec) -> Result<usize> {
    let width = fields.optional_size("block_ff_dim")?.unwrap_or(spec.ffn);
    if !fields.bool("block_auto_adjust_ff_dim")?.unwrap_or(true) {
        return Ok(width);
    }
    let gated = width.saturating_mul(2) / 3;
    let wanted = (fields.number("block_ffn_dim_multiplier")?.unwrap_or(1.0) * gated as f64) as usize;
    let step = fields.optional_size("block_multiple_of")?.unwrap_or(256).max(1);
    Ok(wanted.div_ceil(step).saturating_mul(step))
}

fn layers_that_convolve(fields: &Fields, layers: usize) -> Result<Vec<bool>> {
    if let Some(kinds) = fields.list("layer_types")? {
        let convolves = |kind: &Value| match kind.as_str() {
            Some("conv") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(fields.wrong("layer_types", "a list of conv and full_attention")),
        };
        return kinds.iter().map(convolves).collect();
    }
    let Some(attending) = fields.list("full_attn_idxs")? else { return Ok(vec![false; layers]) };
    let attends = |layer: usize| attending.iter().any(|index| index.as_u64() == Some(layer as u64));
    Ok((0..layers).map(|layer| !attends(layer)).collect())
}
