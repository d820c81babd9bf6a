//! Qwen2 and Qwen2.5: Llama with a bias on q, k and v, and a window on the late layers where a config turns it on.

use sconce_kernels::RopeStyle;

use crate::family::{Family, FamilyTraits, Switch, WindowRule};

pub(crate) const QWEN2: FamilyTraits = FamilyTraits {
    family: Family::Qwen2,
    classes: &["Qwen2ForCausalLM"],
    model_type: "qwen2",
    gguf: Some("qwen2"),
    gguf_rope: RopeStyle::Halves,
    qkv_bias: Switch::Always,
    output_bias: Switch::Never,
    mlp_bias: Switch::Never,
    qk_norm: false,
    window: WindowRule::LateLayers,
};
