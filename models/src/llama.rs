//! Llama 2, 3 and 3.x, the models built like them (SmolLM2, TinyLlama, ...), and Mistral, which adds a sliding window.

use sconce_kernels::RopeStyle;

use crate::family::{Family, FamilyTraits, Switch, WindowRule};

pub(crate) const LLAMA: FamilyTraits = FamilyTraits {
    family: Family::Llama,
    classes: &["LlamaForCausalLM"],
    model_type: "llama",
    gguf: Some("llama"),
    // The GGUF converter permutes the rows of q and k so that a rotated pair stands side by side.
    gguf_rope: RopeStyle::Interleaved,
    qkv_bias: Switch::Configured("attention_bias"),
    output_bias: Switch::Configured("attention_bias"),
    mlp_bias: Switch::Configured("mlp_bias"),
    qk_norm: false,
    window: WindowRule::None,
};

/// In GGUF files Mistral goes by the name of `llama`; its window is then a metadata key.
pub(crate) const MISTRAL: FamilyTraits = FamilyTraits {
    family: Family::Mistral,
    classes: &["MistralForCausalLM"],
    model_type: "mistral",
    gguf: None,
    gguf_rope: RopeStyle::Interleaved,
    qkv_bias: Switch::Never,
    output_bias: Switch::Never,
    mlp_bias: Switch::Never,
    qk_norm: false,
    window: WindowRule::EveryLayer,
};
