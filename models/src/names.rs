//! Where each tensor of a decoder is found: its name in Hugging Face files and in GGUF files, in one table.

/// How a file names its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    HuggingFace,
    Gguf,
}

/// A tensor outside the layers, or one of a layer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Embedding,
    FinalNorm,
    Head,
    Layer(usize, LayerPart),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerPart {
    AttentionNorm,
    Query,
    QueryBias,
    QueryNorm,
    Key,
    KeyBias,
    KeyNorm,
    Value,
    ValueBias,
    Output,
    OutputBias,
    MlpNorm,
    Gate,
    GateBias,
    Up,
    UpBias,
    Down,
    DownBias,
}

/// Scaled rope frequencies of a GGUF; not a weight.
pub(crate) const GGUF_ROPE_FACTORS: &str = "rope_freqs.weight";

impl Part {
    pub fn name(self, naming: Naming) -> String {
        match (naming, self) {
            (Naming::HuggingFace, Part::Embedding) => "model.embed_tokens.weight".to_owned(),
            (Naming::HuggingFace, Part::FinalNorm) => "model.norm.weight".to_owned(),
            (Naming::HuggingFace, Part::Head) => "lm_head.weight".to_owned(),
            (Naming::HuggingFace, Part::Layer(layer, part)) => format!("model.layers.{layer}.{}", part.names().0),
            (Naming::Gguf, Part::Embedding) => "token_embd.weight".to_owned(),
            (Naming::Gguf, Part::FinalNorm) => "output_norm.weight".to_owned(),
            (Naming::Gguf, Part::Head) => "output.weight".to_owned(),
            (Naming::Gguf, Part::Layer(layer, part)) => format!("blk.{layer}.{}", part.names().1),
        }
    }
}

impl LayerPart {
    /// The names behind the layer's prefix: Hugging Face, GGUF.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::AttentionNorm => ("input_layernorm.weight", "attn_norm.weight"),
            Self::Query => ("self_attn.q_proj.weight", "attn_q.weight"),
            Self::QueryBias => ("self_attn.q_proj.bias", "attn_q.bias"),
            Self::QueryNorm => ("self_attn.q_norm.weight", "attn_q_norm.weight"),
            Self::Key => ("self_attn.k_proj.weight", "attn_k.weight"),
            Self::KeyBias => ("self_attn.k_proj.bias", "attn_k.bias"),
            Self::KeyNorm => ("self_attn.k_norm.weight", "attn_k_norm.weight"),
            Self::Value => ("self_attn.v_proj.weight", "attn_v.weight"),
            Self::ValueBias => ("self_attn.v_proj.bias", "attn_v.bias"),
            Self::Output => ("self_attn.o_proj.weight", "attn_output.weight"),
            Self::OutputBias => ("self_attn.o_proj.bias", "attn_output.bias"),
            Self::MlpNorm => ("post_attention_layernorm.weight", "ffn_norm.weight"),
            Self::Gate => ("mlp.gate_proj.weight", "ffn_gate.weight"),
            Self::GateBias => ("mlp.gate_proj.bias", "ffn_gate.bias"),
            Self::Up => ("mlp.up_proj.weight", "ffn_up.weight"),
            Self::UpBias => ("mlp.up_proj.bias", "ffn_up.bias"),
            Self::Down => ("mlp.down_proj.weight", "ffn_down.weight"),
            Self::DownBias => ("mlp.down_proj.bias", "ffn_down.bias"),
        }
    }
}

/// Tensors that files carry and inference does not need: precomputed tables, masks, and a copy of a tied head.
pub(crate) fn is_ignorable(name: &str, tied_embeddings: bool) -> bool {
    name == GGUF_ROPE_FACTORS
        || name.ends_with(".rotary_emb.inv_freq")
        || name.ends_with(".self_attn.masked_bias")
        || (tied_embeddings && matches!(name, "lm_head.weight" | "output.weight"))
}
