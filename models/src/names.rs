//! Where each tensor of a decoder is found: its name in Hugging Face files and in GGUF files, in one table, with what a
//! family calls otherwise laid over it.

/// Tensors that a family calls otherwise than the table.
type Others = &'static [(LayerPart, &'static str)];

/// How a file names its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    HuggingFace(Others),
    Gguf(Others),
}

/// A tensor outside the layers, or one of a layer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Embedding,
    FinalNorm,
    FinalNormBias,
    Head,
    /// What layers get of a token beside the hidden state: a table, a projection of the embedding, and its norm.
    InputTable,
    InputsProjection,
    InputsNorm,
    Layer(usize, LayerPart),
}

/// One of a layer's experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expert {
    pub index: usize,
    pub of: usize,
}

impl Expert {
    /// Stands for every expert in a table of names, where `{}` is the index.
    pub const ANY: Expert = Expert { index: 0, of: 0 };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerPart {
    AttentionNorm,
    AttentionNormBias,
    AttentionPostNorm,
    Query,
    QueryBias,
    QueryNorm,
    Key,
    KeyBias,
    KeyNorm,
    Value,
    ValueBias,
    /// Query above key above value.
    Qkv,
    Output,
    OutputBias,
    Sinks,
    MlpNorm,
    MlpNormBias,
    MlpPostNorm,
    Gate,
    GateBias,
    Up,
    UpBias,
    /// Gate above up.
    GateUp,
    Down,
    DownBias,
    Router,
    RouterBias,
    ExpertGate(Expert),
    ExpertGateBias(Expert),
    ExpertUp(Expert),
    ExpertUpBias(Expert),
    ExpertDown(Expert),
    ExpertDownBias(Expert),
    SharedGate,
    SharedUp,
    SharedDown,
    /// How much of the shared expert a token takes.
    SharedRouter,
    /// Numbers that are added to the router's scores while experts are chosen.
    RouterCorrection,
    /// Latent attention: queries on their way through a narrow layer, its norm, and back.
    QueryDown,
    QueryDownBias,
    QueryDownNorm,
    QueryUp,
    /// The latent above the key that all heads share, the latent's norm, and what heads make of it: each head's key
    /// above its value.
    Latent,
    LatentBias,
    LatentNorm,
    LatentUp,
    /// The halves of that, a head each; the first with rows and columns changed.
    LatentKey(Expert),
    LatentValue(Expert),
    /// A short convolution: both factors and the gate, the taps, and the way out.
    ConvolutionIn,
    ConvolutionInBias,
    Taps,
    TapsBias,
    ConvolutionOut,
    ConvolutionOutBias,
    /// A layer of the gated delta rule.
    Delta(DeltaPart),
    /// What a layer does with its own input.
    InputGate,
    InputProjection,
    InputNorm,
    /// Factor on what the layer gives.
    LayerScale,
}

/// A tensor of a layer of the gated delta rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeltaPart {
    /// What is convolved: query above key above value.
    Mixed,
    /// On the result.
    Gate,
    /// How much each head writes, and how much it keeps.
    Written,
    Kept,
    /// The first two, and the last two, key head by key head.
    MixedAndGate,
    WrittenAndKept,
    Taps,
    Decay,
    DecayBias,
    Norm,
    Out,
}

/// Scaled rope frequencies of a GGUF; not a weight.
pub(crate) const GGUF_ROPE_FACTORS: &str = "rope_freqs.weight";
/// LongRoPE's divisors for contexts up to the original length, and beyond.
pub(crate) const GGUF_LONGROPE: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

impl Part {
    pub fn name(self, naming: Naming) -> String {
        match (naming, self) {
            (Naming::HuggingFace(_), Part::Embedding) => "model.embed_tokens.weight".to_owned(),
            (Naming::HuggingFace(_), Part::FinalNorm) => "model.norm.weight".to_owned(),
            (Naming::HuggingFace(_), Part::FinalNormBias) => "model.norm.bias".to_owned(),
            (Naming::HuggingFace(_), Part::Head) => "lm_head.weight".to_owned(),
            (Naming::HuggingFace(_), Part::InputTable) => "model.embed_tokens_per_layer.weight".to_owned(),
            (Naming::HuggingFace(_), Part::InputsProjection) => "model.per_layer_model_projection.weight".to_owned(),
            (Naming::HuggingFace(_), Part::InputsNorm) => "model.per_layer_projection_norm.weight".to_owned(),
            (Naming::HuggingFace(others), Part::Layer(layer, part)) => {
                format!("model.layers.{layer}.{}", part.name(others, part.names().0))
            }
            (Naming::Gguf(_), Part::Embedding) => "token_embd.weight".to_owned(),
            (Naming::Gguf(_), Part::FinalNorm) => "output_norm.weight".to_owned(),
            (Naming::Gguf(_), Part::FinalNormBias) => "output_norm.bias".to_owned(),
            (Naming::Gguf(_), Part::Head) => "output.weight".to_owned(),
            (Naming::Gguf(_), Part::InputTable) => "per_layer_token_embd.weight".to_owned(),
            (Naming::Gguf(_), Part::InputsProjection) => "per_layer_model_proj.weight".to_owned(),
            (Naming::Gguf(_), Part::InputsNorm) => "per_layer_proj_norm.weight".to_owned(),
            (Naming::Gguf(others), Part::Layer(layer, part)) => {
                format!("blk.{layer}.{}", part.name(others, part.names().1))
            }
        }
    }

    /// The expert whose tensor it is.
    pub fn expert(self) -> Option<Expert> {
        if let Part::Layer(_, part) = self { part.expert() } else { None }
    }
}

impl LayerPart {
    fn expert(self) -> Option<Expert> {
        match self {
            Self::ExpertGate(expert) | Self::ExpertUp(expert) | Self::ExpertDown(expert) => Some(expert),
            Self::ExpertGateBias(expert) | Self::ExpertUpBias(expert) | Self::ExpertDownBias(expert) => Some(expert),
            Self::LatentKey(expert) | Self::LatentValue(expert) => Some(expert),
            _ => None,
        }
    }

    /// The same part of any expert, as it stands in tables.
    fn of_any_expert(self) -> Self {
        match self {
            Self::ExpertGate(_) => Self::ExpertGate(Expert::ANY),
            Self::ExpertGateBias(_) => Self::ExpertGateBias(Expert::ANY),
            Self::ExpertUp(_) => Self::ExpertUp(Expert::ANY),
            Self::ExpertUpBias(_) => Self::ExpertUpBias(Expert::ANY),
            Self::ExpertDown(_) => Self::ExpertDown(Expert::ANY),
            Self::ExpertDownBias(_) => Self::ExpertDownBias(Expert::ANY),
            Self::LatentKey(_) => Self::LatentKey(Expert::ANY),
            Self::LatentValue(_) => Self::LatentValue(Expert::ANY),
            other => other,
        }
    }

    fn name(self, others: Others, usual: &str) -> String {
        let part = self.of_any_expert();
        let name = others.iter().find(|(other, _)| *other == part).map_or(usual, |(_, name)| name);
        match self.expert() {
            Some(expert) => name.replace("{}", &expert.index.to_string()),
            None => name.to_owned(),
        }
    }

    /// The usual names behind the layer's prefix: Hugging Face, GGUF. The experts of a GGUF lie in one tensor.
    #[rustfmt::skip]
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::AttentionNorm => ("input_layernorm.weight", "attn_norm.weight"),
            Self::AttentionNormBias => ("input_layernorm.bias", "attn_norm.bias"),
            Self::AttentionPostNorm => ("attention_post_norm.weight", "post_attention_norm.weight"),
            Self::Query => ("self_attn.q_proj.weight", "attn_q.weight"),
            Self::QueryBias => ("self_attn.q_proj.bias", "attn_q.bias"),
            Self::QueryNorm => ("self_attn.q_norm.weight", "attn_q_norm.weight"),
            Self::Key => ("self_attn.k_proj.weight", "attn_k.weight"),
            Self::KeyBias => ("self_attn.k_proj.bias", "attn_k.bias"),
            Self::KeyNorm => ("self_attn.k_norm.weight", "attn_k_norm.weight"),
            Self::Value => ("self_attn.v_proj.weight", "attn_v.weight"),
            Self::ValueBias => ("self_attn.v_proj.bias", "attn_v.bias"),
            Self::Qkv => ("self_attn.qkv_proj.weight", "attn_qkv.weight"),
            Self::Output => ("self_attn.o_proj.weight", "attn_output.weight"),
            Self::OutputBias => ("self_attn.o_proj.bias", "attn_output.bias"),
            Self::Sinks => ("self_attn.sinks", "attn_sinks.weight"),
            Self::MlpNorm => ("post_attention_layernorm.weight", "ffn_norm.weight"),
            Self::MlpNormBias => ("post_attention_layernorm.bias", "ffn_norm.bias"),
            Self::MlpPostNorm => ("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
            Self::Gate => ("mlp.gate_proj.weight", "ffn_gate.weight"),
            Self::GateBias => ("mlp.gate_proj.bias", "ffn_gate.bias"),
            Self::Up => ("mlp.up_proj.weight", "ffn_up.weight"),
            Self::UpBias => ("mlp.up_proj.bias", "ffn_up.bias"),
            Self::GateUp => ("mlp.gate_up_proj.weight", "ffn_gate_up.weight"),
            Self::Down => ("mlp.down_proj.weight", "ffn_down.weight"),
            Self::DownBias => ("mlp.down_proj.bias", "ffn_down.bias"),
            Self::Router => ("mlp.gate.weight", "ffn_gate_inp.weight"),
            Self::RouterBias => ("mlp.gate.bias", "ffn_gate_inp.bias"),
            Self::ExpertGate(_) => ("mlp.experts.{}.gate_proj.weight", "ffn_gate_exps.weight"),
            Self::ExpertGateBias(_) => ("mlp.experts.{}.gate_proj.bias", "ffn_gate_exps.bias"),
            Self::ExpertUp(_) => ("mlp.experts.{}.up_proj.weight", "ffn_up_exps.weight"),
            Self::ExpertUpBias(_) => ("mlp.experts.{}.up_proj.bias", "ffn_up_exps.bias"),
            Self::ExpertDown(_) => ("mlp.experts.{}.down_proj.weight", "ffn_down_exps.weight"),
            Self::ExpertDownBias(_) => ("mlp.experts.{}.down_proj.bias", "ffn_down_exps.bias"),
            Self::SharedGate => ("mlp.shared_expert.gate_proj.weight", "ffn_gate_shexp.weight"),
            Self::SharedUp => ("mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight"),
            Self::SharedDown => ("mlp.shared_expert.down_proj.weight", "ffn_down_shexp.weight"),
            Self::SharedRouter => ("mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight"),
            Self::RouterCorrection => ("mlp.gate.e_score_correction_bias", "exp_probs_b.bias"),
            Self::QueryDown => ("self_attn.q_a_proj.weight", "attn_q_a.weight"),
            Self::QueryDownBias => ("self_attn.q_a_proj.bias", "attn_q_a.bias"),
            Self::QueryDownNorm => ("self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"),
            Self::QueryUp => ("self_attn.q_b_proj.weight", "attn_q_b.weight"),
            Self::Latent => ("self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"),
            Self::LatentBias => ("self_attn.kv_a_proj_with_mqa.bias", "attn_kv_a_mqa.bias"),
            Self::LatentNorm => ("self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"),
            Self::LatentUp => ("self_attn.kv_b_proj.weight", "attn_kv_b.weight"),
            Self::LatentKey(_) => ("self_attn.k_b_proj.weight", "attn_k_b.weight"),
            Self::LatentValue(_) => ("self_attn.v_b_proj.weight", "attn_v_b.weight"),
            Self::ConvolutionIn => ("conv.in_proj.weight", "shortconv.in_proj.weight"),
            Self::ConvolutionInBias => ("conv.in_proj.bias", "shortconv.in_proj.bias"),
            Self::Taps => ("conv.conv.weight", "shortconv.conv.weight"),
            Self::TapsBias => ("conv.conv.bias", "shortconv.conv.bias"),
            Self::ConvolutionOut => ("conv.out_proj.weight", "shortconv.out_proj.weight"),
            Self::ConvolutionOutBias => ("conv.out_proj.bias", "shortconv.out_proj.bias"),
            Self::Delta(part) => part.names(),
            Self::InputGate => ("per_layer_input_gate.weight", "inp_gate.weight"),
            Self::InputProjection => ("per_layer_projection.weight", "proj.weight"),
            Self::InputNorm => ("post_per_layer_input_norm.weight", "post_norm.weight"),
            Self::LayerScale => ("layer_scalar", "layer_output_scale.weight"),
        }
    }
}

impl DeltaPart {
    /// As [`LayerPart::names`].
    #[rustfmt::skip]
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Mixed => ("linear_attn.in_proj_qkv.weight", "attn_qkv.weight"),
            Self::Gate => ("linear_attn.in_proj_z.weight", "attn_gate.weight"),
            Self::Written => ("linear_attn.in_proj_b.weight", "ssm_beta.weight"),
            Self::Kept => ("linear_attn.in_proj_a.weight", "ssm_alpha.weight"),
            Self::MixedAndGate => ("linear_attn.in_proj_qkvz.weight", "ssm_in.weight"),
            Self::WrittenAndKept => ("linear_attn.in_proj_ba.weight", "ssm_ba.weight"),
            Self::Taps => ("linear_attn.conv1d.weight", "ssm_conv1d.weight"),
            Self::Decay => ("linear_attn.A_log", "ssm_a"),
            Self::DecayBias => ("linear_attn.dt_bias", "ssm_dt.bias"),
            Self::Norm => ("linear_attn.norm.weight", "ssm_norm.weight"),
            Self::Out => ("linear_attn.out_proj.weight", "ssm_out.weight"),
        }
    }
}

/// Tensors that files carry and inference does not need: precomputed tables, masks, and a copy of a tied head.
pub(crate) fn is_ignorable(name: &str, tied_embeddings: bool) -> bool {
    name == GGUF_ROPE_FACTORS
        || GGUF_LONGROPE.contains(&name)
        || name.ends_with(".rotary_emb.inv_freq")
        || name.ends_with(".self_attn.masked_bias")
        || (tied_embeddings && matches!(name, "lm_head.weight" | "output.weight" | "cls.output.weight"))
}
