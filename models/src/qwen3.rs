//! Qwen3 (dense): RMSNorm on each head of q and k before the rotation, no biases unless configured, and a head size of
//! its own.

use sconce_kernels::RopeStyle;

use crate::family::{Family, FamilyTraits, Switch, WindowRule};

pub(crate) const QWEN3: FamilyTraits = FamilyTraits {
    family: Family::Qwen3,
    classes: &["Qwen3ForCausalLM"],
    model_type: "qwen3",
    gguf: Some("qwen3"),
    gguf_rope: RopeStyle::Halves,
    qkv_bias: Switch::Configured("attention_bias"),
    output_bias: Switch::Configured("attention_bias"),
    mlp_bias: Switch::Never,
    qk_norm: true,
    window: WindowRule::LateLayers,
};
