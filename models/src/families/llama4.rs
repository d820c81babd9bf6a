//! Llama 4's text: layers without rotation among others, normed heads without weights, and experts beside one that
//! every token sees, each of which takes its input times a sigmoid.
//!
//! Layers with rotation see chunks of the context, and scores of the others grow from some position on. Contexts end
//! where the first of the two would begin to matter, so that neither is needed.

use sconce_kernels::RopeStyle;

use super::smollm3::{every, named_layers};
use crate::error::Result;
use crate::family::{Family, FamilyTraits, LLAMA_LIKE, Switch};
use crate::names::{Expert, LayerPart};
use crate::spec::experts::{Experts, Routing, Scoring};
use crate::spec::fields::Fields;
use crate::spec::{QkNorm, Spec};

const INTERVAL: usize = 4;
const CHUNK: usize = 8192;

pub(crate) const LLAMA4: FamilyTraits = FamilyTraits {
    family: Family::Llama4,
    classes: &["Llama4ForCausalLM"],
    model_type: "llama4_text",
    rope: RopeStyle::Interleaved,
    theta: 500_000.0,
    norm_eps: ("rms_norm_eps", 1e-5),
    qkv_bias: Switch::Configured("attention_bias"),
    output_bias: Switch::Configured("attention_bias"),
    transposed_experts: true,
    sizes: &[
        ("head_dim", 128),
        ("intermediate_size", 8192),
        ("intermediate_size_mlp", 16384),
        ("num_local_experts", 16),
    ],
    names: &[
        (LayerPart::Gate, "feed_forward.gate_proj.weight"),
        (LayerPart::Up, "feed_forward.up_proj.weight"),
        (LayerPart::Down, "feed_forward.down_proj.weight"),
        (LayerPart::Router, "feed_forward.router.weight"),
        (LayerPart::ExpertGate(Expert::ANY), "feed_forward.experts.gate_up_proj"),
        (LayerPart::ExpertUp(Expert::ANY), "feed_forward.experts.gate_up_proj"),
        (LayerPart::ExpertDown(Expert::ANY), "feed_forward.experts.down_proj"),
        (LayerPart::SharedGate, "feed_forward.shared_expert.gate_proj.weight"),
        (LayerPart::SharedUp, "feed_forward.shared_expert.up_proj.weight"),
        (LayerPart::SharedDown, "feed_forward.shared_expert.down_proj.weight"),
    ],
    config: |fields, spec| {
        let interval = fields.optional_size("no_rope_layer_interval")?.unwrap_or(INTERVAL);
        spec.unrotated = match fields.list("no_rope_layers")?.filter(|named| !named.is_empty()) {
            Some(named) => named_layers(fields, spec, named)?,
            None => every(interval, spec.layers_believed()),
        };
        if fields.bool("use_qk_norm")?.unwrap_or(true) {
            spec.qk_norm = QkNorm::RotatedHeads;
        }
        let expert_ffn = std::mem::replace(&mut spec.ffn, fields.size("intermediate_size_mlp")?);
        let routing = Routing { scoring: Scoring::Sigmoid, gates_shared: false, scales_input: true, ..Routing::PLAIN };
        spec.experts = Some(Experts {
            count: fields.size("num_local_experts")?,
            per_token: fields.optional_size("num_experts_per_tok")?.unwrap_or(1),
            ffn: expert_ffn,
            shared_ffn: expert_ffn,
            normalised: false,
            has_bias: false,
            routing,
            layers: layers_with_experts(fields, spec.layers_believed())?,
        });
        end_contexts(fields, spec)
    },
    ..LLAMA_LIKE
};

fn layers_with_experts(fields: &Fields, layers: usize) -> Result<Vec<bool>> {
    if let Some(named) = fields.list("moe_layers")? {
        let is_named = |layer: usize| named.iter().any(|entry| entry.as_u64() == Some(layer as u64));
        return Ok((0..layers).map(is_named).collect());
    }
    let step = fields.optional_size("interleave_moe_layer_step")?.unwrap_or(1);
    Ok((1..=layers).map(|layer| step > 0 && layer.is_multiple_of(step)).collect())
}

fn end_contexts(fields: &Fields, spec: &mut Spec) -> Result<()> {
    let chunk = match fields.get("attention_chunk_size") {
        Some(value) if value.is_null() => usize::MAX,
        _ => fields.optional_size("attention_chunk_size")?.unwrap_or(CHUNK),
    };
    let grows = fields.bool("attn_temperature_tuning")?.unwrap_or(true);
    let plain = match grows {
        true => fields.optional_size("floor_scale")?.unwrap_or(CHUNK).saturating_sub(1),
        false => usize::MAX,
    };
    let most = chunk.min(plain);
    if (spec.context_max as usize) > most {
        spec.context_max = most as u32;
        spec.notes.push(format!("attention by chunks is not built in: contexts end at {most} tokens"));
    }
    Ok(())
}
