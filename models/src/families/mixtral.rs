//! Mixtral: Mistral whose feed-forward blocks are experts, two of which see a token. In GGUF files it goes by the name of
//! `llama`.

use crate::family::{Family, FamilyTraits, LLAMA_LIKE, WindowRule};
use crate::names::{Expert, LayerPart};
use crate::spec::experts::{Experts, Routing};

pub(crate) const MIXTRAL: FamilyTraits = FamilyTraits {
    family: Family::Mixtral,
    classes: &["MixtralForCausalLM"],
    model_type: "mixtral",
    theta: 1e6,
    window: WindowRule::EveryLayer,
    norm_eps: ("rms_norm_eps", 1e-5),
    names: &[
        (LayerPart::Router, "block_sparse_moe.gate.weight"),
        (LayerPart::ExpertGate(Expert::ANY), "block_sparse_moe.experts.{}.w1.weight"),
        (LayerPart::ExpertUp(Expert::ANY), "block_sparse_moe.experts.{}.w3.weight"),
        (LayerPart::ExpertDown(Expert::ANY), "block_sparse_moe.experts.{}.w2.weight"),
    ],
    config: |fields, spec| {
        spec.experts = Some(Experts {
            count: fields.size("num_local_experts")?,
            per_token: fields.size("num_experts_per_tok")?,
            ffn: spec.ffn,
            shared_ffn: 0,
            normalised: true,
            has_bias: false,
            routing: Routing::PLAIN,
            layers: vec![true; spec.layers_believed()],
        });
        Ok(())
    },
    ..LLAMA_LIKE
};
