//! Qwen3.5: as Qwen3-Next with what the delta rule projects in matrices of their own, dense feed-forward blocks in the small
//! models, and positions on three axes that are one and the same in text.

use sconce_kernels::HeadOrder;

use super::qwen3_next::{
    QWEN3_NEXT, delta_from_config, delta_from_metadata, experts_from_config, experts_from_metadata,
};
use crate::family::{Family, FamilyTraits};
use crate::names::{Expert, LayerPart};

/// Metadata keys that other families refuse. Sections say which pairs turn with which axis: with the same position on
/// all of them that makes no difference.
const SECTIONS: &str = "rope.dimension_sections";

pub(crate) const QWEN3_5: FamilyTraits = FamilyTraits {
    family: Family::Qwen35,
    classes: &["Qwen3_5ForCausalLM"],
    model_type: "qwen3_5_text",
    gguf: Some("qwen35"),
    sizes: &[
        ("head_dim", 256),
        ("num_key_value_heads", 4),
        ("intermediate_size", 12_288),
        ("max_position_embeddings", 32_768),
    ],
    gguf_keys: &[SECTIONS],
    config: delta_from_config,
    // ggml repeats heads in turns, so its converter has changed the order of values.
    metadata: |keys, spec| delta_from_metadata(keys, spec, HeadOrder::Tiled),
    ..QWEN3_NEXT
};

pub(crate) const QWEN3_5_MOE: FamilyTraits = FamilyTraits {
    family: Family::Qwen35Moe,
    classes: &["Qwen3_5MoeForCausalLM"],
    model_type: "qwen3_5_moe_text",
    gguf: Some("qwen35moe"),
    sizes: &[
        ("head_dim", 256),
        ("num_key_value_heads", 2),
        ("moe_intermediate_size", 512),
        ("shared_expert_intermediate_size", 512),
        ("num_experts_per_tok", 8),
        ("num_experts", 256),
        // There is no plain block that could be so wide.
        ("intermediate_size", 512),
        ("max_position_embeddings", 32_768),
    ],
    names_in_one: &[
        (LayerPart::ExpertGate(Expert::ANY), "mlp.experts.gate_up_proj"),
        (LayerPart::ExpertUp(Expert::ANY), "mlp.experts.gate_up_proj"),
        (LayerPart::ExpertDown(Expert::ANY), "mlp.experts.down_proj"),
    ],
    gguf_keys: &[SECTIONS, "expert_count"],
    config: |fields, spec| {
        delta_from_config(fields, spec)?;
        // Transformers normalises shares without asking the config.
        experts_from_config(fields, spec, true)
    },
    metadata: |keys, spec| {
        delta_from_metadata(keys, spec, HeadOrder::Tiled)?;
        experts_from_metadata(keys, spec)
    },
    ..QWEN3_NEXT
};
