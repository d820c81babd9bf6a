//! OpenAI's endpoints, with vLLM's extra fields where they mean something here.

pub(super) mod answer;
pub(super) mod batches;
pub(super) mod chat;
pub(super) mod completions;
pub(super) mod embeddings;
pub(super) mod files;
mod logprobs;
pub(super) mod lora;
pub(super) mod models;
pub(super) mod origin;
mod page;
pub(super) mod rerank;
pub(super) mod responses;
pub(super) mod sampling;
mod structured;
pub(super) mod tokenize;
pub(super) mod values;
mod vectors;
mod wire;
