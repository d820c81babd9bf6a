//! The families, one file each: what its files are called and look like, as data over [`LLAMA_LIKE`].
//!
//! [`LLAMA_LIKE`]: crate::family::LLAMA_LIKE

pub(crate) mod cohere;
pub(crate) mod deepseek;
pub(crate) mod ernie4_5;
pub(crate) mod exaone4;
pub(crate) mod gemma;
pub(crate) mod gemma4;
pub(crate) mod glm4;
pub(crate) mod gpt_oss;
pub(crate) mod granite;
pub(crate) mod lfm2;
pub(crate) mod llama;
pub(crate) mod llama4;
pub(crate) mod mixtral;
pub(crate) mod olmo2;
pub(crate) mod olmoe;
pub(crate) mod phi3;
pub(crate) mod qwen2;
pub(crate) mod qwen3;
pub(crate) mod qwen3_5;
pub(crate) mod qwen3_next;
pub(crate) mod seed_oss;
pub(crate) mod smollm3;
pub(crate) mod stablelm;
pub(crate) mod starcoder2;
