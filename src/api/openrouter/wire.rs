//! The directory's format, version 2.4.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use sconce_route::price::PerToken;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::ApiConfig;
use crate::api::openai::sampling::LOGPROBS_MAX;
use crate::config::listing::{Datacenter, Listing, Quantization};
use crate::pool::{ModelCard, Task};

#[derive(Serialize, JsonSchema)]
pub(in crate::api) struct Offers {
    pub(super) data: Vec<ListedModel>,
}

/// A model and what it costs.
#[derive(Serialize, JsonSchema)]
pub(super) struct ListedModel {
    #[schemars(extend("const" = "2.4"))]
    schema_version: &'static str,
    /// What requests call it.
    id: String,
    /// What people call it.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hugging_face_id: Option<String>,
    /// Unix time in seconds.
    created: u64,
    /// Null where it is not declared.
    quantization: Option<Quantization>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    input_modalities: [Input; 1],
    output_modalities: [Output; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    deprecation_date: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    openrouter: Option<Slug>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    datacenters: Vec<Datacenter>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ListedInput")]
struct Input {
    #[schemars(extend("const" = "text"))]
    r#type: &'static str,
    supported_inputs: Limits,
    pricing: Vec<Price>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ListedLimits")]
struct Limits {
    max_context_length: Quantity,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ListedOutput")]
struct Output {
    #[schemars(extend("enum" = ["text", "embeddings", "rerank"]))]
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_length: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    streaming: Option<bool>,
    /// Each with the values it takes.
    supported_parameters: BTreeMap<&'static str, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pricing: Vec<Price>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ListedQuantity")]
struct Quantity {
    value: u32,
    #[schemars(extend("const" = "token"))]
    unit: &'static str,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ListedPrice")]
struct Price {
    #[schemars(extend("enum" = ["prompt", "cached_prompt", "completion"]))]
    r#type: &'static str,
    #[schemars(extend("const" = "token"))]
    unit: &'static str,
    /// US dollars, exact.
    cost_usd: String,
    /// The server caches without being asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    implicit: Option<bool>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ListedSlug")]
struct Slug {
    slug: String,
}

impl ListedModel {
    pub fn new(listing: &Listing, card: &ModelCard, config: &ApiConfig) -> Self {
        let price = listing.price;
        let cached =
            price.cached_input.map(|cached| Price { implicit: Some(true), ..Price::of("cached_prompt", cached) });
        let pricing = std::iter::once(Price::of("prompt", price.input)).chain(cached).collect();
        let supported_inputs = Limits { max_context_length: Quantity::tokens(card.max_model_len) };
        Self {
            schema_version: "2.4",
            id: listing.model.clone(),
            name: listing.name.clone(),
            hugging_face_id: listing.hugging_face_id.clone(),
            created: card.created_s,
            quantization: listing.quantization,
            tokenizer: listing.tokenizer.clone(),
            description: listing.description.clone(),
            input_modalities: [Input { r#type: "text", supported_inputs, pricing }],
            output_modalities: [Output::new(listing, card, config)],
            deprecation_date: listing.deprecation_date.clone(),
            is_ready: listing.is_ready,
            openrouter: listing.slug.clone().map(|slug| Slug { slug }),
            datacenters: listing.datacenters.clone(),
        }
    }
}

impl Output {
    fn new(listing: &Listing, card: &ModelCard, config: &ApiConfig) -> Self {
        let longest = listing.output_tokens_max.unwrap_or(card.max_model_len).min(card.max_model_len);
        match card.task {
            Task::Generate => Self {
                r#type: "text",
                max_length: Some(Quantity::tokens(longest)),
                streaming: Some(true),
                supported_parameters: generating(card, config, longest, listing.reasoning),
                pricing: listing.price.output.map(|price| Price::of("completion", price)).into_iter().collect(),
            },
            Task::Embed { .. } => {
                let encodings = json!({"type": "enum", "values": ["float", "base64"]});
                Self::of_texts("embeddings", [("encoding_format", encodings)].into())
            }
            Task::Score => {
                let most = json!({"type": "integer", "min": 1, "max": config.inputs_max});
                Self::of_texts("rerank", [("top_n", most), ("return_documents", json!({"type": "boolean"}))].into())
            }
        }
    }

    /// Of models that are paid for by what they read.
    fn of_texts(r#type: &'static str, supported_parameters: BTreeMap<&'static str, Value>) -> Self {
        Self { r#type, max_length: None, streaming: None, supported_parameters, pricing: Vec::new() }
    }
}

/// What chats and text completions take, with the bounds that requests are checked against.
fn generating(card: &ModelCard, config: &ApiConfig, longest: u32, thinks: bool) -> BTreeMap<&'static str, Value> {
    let range = |min: f64, max: f64| json!({"type": "range", "min": min, "max": max});
    let yes = || json!({"type": "boolean"});
    let mut parameters: BTreeMap<_, _> = [
        ("max_tokens", json!({"type": "integer", "min": 1, "max": longest, "unit": "token"})),
        ("temperature", range(0.0, 2.0)),
        ("top_p", range(0.0, 1.0)),
        ("top_k", json!({"type": "integer", "min": 0, "max": u32::MAX})),
        ("min_p", range(0.0, 1.0)),
        ("repetition_penalty", range(0.01, 100.0)),
        ("presence_penalty", range(-2.0, 2.0)),
        ("frequency_penalty", range(-2.0, 2.0)),
        ("logit_bias", json!({"type": "unknown"})),
        ("seed", yes()),
        ("stop", json!({"type": "array", "max_items": config.stops_max})),
        ("logprobs", yes()),
        ("top_logprobs", json!({"type": "integer", "min": 0, "max": LOGPROBS_MAX})),
        ("response_format", yes()),
        ("structured_outputs", yes()),
    ]
    .into();
    if card.chat {
        parameters.extend([("tools", yes()), ("tool_choice", yes())]);
    }
    if thinks {
        parameters.insert("reasoning", yes());
    }
    parameters
}

impl Quantity {
    fn tokens(value: u32) -> Self {
        Self { value, unit: "token" }
    }
}

impl Price {
    fn of(r#type: &'static str, price: PerToken) -> Self {
        Self { r#type, unit: "token", cost_usd: dollars_a_token(price), implicit: None }
    }
}

/// Without an exponent and without zeros that say nothing.
fn dollars_a_token(PerToken(pico): PerToken) -> String {
    const DOLLAR: u64 = 1_000_000_000_000;
    let text = format!("{}.{:012}", pico / DOLLAR, pico % DOLLAR);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_exact_text() {
        for (dollars_a_million, text) in
            [(0.0, "0"), (0.02, "0.00000002"), (3.0, "0.000003"), (0.000_001, "0.000000000001"), (1e6, "1")]
        {
            let price = PerToken::from_dollars_a_million(dollars_a_million).expect("a price");
            assert_eq!(dollars_a_token(price), text);
        }
    }
}
