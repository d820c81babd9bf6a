//! What the tensors of encoders are called, by kind and by container.

use super::config::Kind;

/// Names of an encoder's tensors. Those of a layer stand behind its number; where weight and bias belong to one part,
/// the part is named.
pub(super) struct Names {
    /// Before all names but the head's, in files of models with a head.
    pub prefix: &'static str,
    pub words: &'static str,
    pub positions: &'static str,
    pub types: &'static str,
    pub embedding_norm: &'static str,
    /// Before a layer's number.
    pub layer: &'static str,
    /// Query, key and value, or one part of all three.
    pub qkv: &'static [&'static str],
    pub output: &'static str,
    pub attention_norm: &'static str,
    /// What is activated, and what it gates where it gates something; or one part of both.
    pub wide: &'static [&'static str],
    pub down: &'static str,
    pub norm: &'static str,
    pub final_norm: &'static str,
    pub head: HeadNames,
}

pub(super) struct HeadNames {
    pub dense: &'static str,
    /// The dense layer goes by the encoder's prefix.
    pub dense_has_prefix: bool,
    pub norm: &'static str,
    pub out: &'static str,
}

const BERT: Names = Names {
    prefix: "bert.",
    words: "embeddings.word_embeddings.weight",
    positions: "embeddings.position_embeddings.weight",
    types: "embeddings.token_type_embeddings.weight",
    embedding_norm: "embeddings.LayerNorm",
    layer: "encoder.layer.",
    qkv: &["attention.self.query", "attention.self.key", "attention.self.value"],
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    wide: &["intermediate.dense"],
    down: "output.dense",
    norm: "output.LayerNorm",
    final_norm: "",
    head: HeadNames { dense: "pooler.dense", dense_has_prefix: true, norm: "", out: "classifier" },
};

const ROBERTA: Names = Names {
    prefix: "roberta.",
    head: HeadNames { dense: "classifier.dense", dense_has_prefix: false, norm: "", out: "classifier.out_proj" },
    ..BERT
};

const MODERN: Names = Names {
    prefix: "model.",
    words: "embeddings.tok_embeddings.weight",
    positions: "",
    types: "",
    embedding_norm: "embeddings.norm",
    layer: "layers.",
    qkv: &["attn.Wqkv"],
    output: "attn.Wo",
    attention_norm: "attn_norm",
    wide: &["mlp.Wi"],
    down: "mlp.Wo",
    norm: "mlp_norm",
    final_norm: "final_norm",
    head: HeadNames { dense: "head.dense", dense_has_prefix: false, norm: "head.norm", out: "classifier" },
};

const NOMIC: Names = Names {
    prefix: "nomic_bert.",
    positions: "",
    embedding_norm: "emb_ln",
    layer: "encoder.layers.",
    qkv: &["attn.Wqkv"],
    output: "attn.out_proj",
    attention_norm: "norm1",
    wide: &["mlp.fc12", "mlp.fc11"],
    down: "mlp.fc2",
    norm: "norm2",
    ..BERT
};

const GGUF_BERT: Names = Names {
    prefix: "",
    words: "token_embd.weight",
    positions: "position_embd.weight",
    types: "token_types.weight",
    embedding_norm: "token_embd_norm",
    layer: "blk.",
    qkv: &["attn_q", "attn_k", "attn_v"],
    output: "attn_output",
    attention_norm: "attn_output_norm",
    wide: &["ffn_up"],
    down: "ffn_down",
    norm: "layer_output_norm",
    final_norm: "",
    head: HeadNames { dense: "cls", dense_has_prefix: false, norm: "cls.norm", out: "cls.output" },
};

const GGUF_MODERN: Names =
    Names { qkv: &["attn_qkv"], attention_norm: "attn_norm", norm: "ffn_norm", final_norm: "output_norm", ..GGUF_BERT };

const GGUF_NOMIC: Names = Names { qkv: &["attn_qkv"], wide: &["ffn_gate", "ffn_up"], ..GGUF_BERT };

impl Names {
    pub fn of(kind: Kind, is_gguf: bool) -> &'static Self {
        match (kind, is_gguf) {
            (Kind::Bert, false) => &BERT,
            (Kind::Roberta, false) => &ROBERTA,
            (Kind::Modern, false) => &MODERN,
            (Kind::Nomic, false) => &NOMIC,
            (Kind::Bert | Kind::Roberta, true) => &GGUF_BERT,
            (Kind::Modern, true) => &GGUF_MODERN,
            (Kind::Nomic, true) => &GGUF_NOMIC,
        }
    }
}
