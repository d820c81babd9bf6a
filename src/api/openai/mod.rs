//! OpenAI's endpoints, with vLLM's extra fields where they mean something here.

pub(super) mod answer;
pub(super) mod chat;
pub(super) mod completions;
mod logprobs;
pub(super) mod models;
mod origin;
mod sampling;
mod structured;
pub(super) mod tokenize;
mod values;
mod wire;
