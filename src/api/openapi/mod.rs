//! `/openapi.json`: every endpoint, from the types that it reads and writes.
//!
//! Each endpoint describes itself beside its handler; here the descriptions become one document. The same document is
//! committed as `openapi.json`, and the API's tests check every answer that they get against it.

mod operation;

use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::schema::Schemas;
use super::{anthropic, lifecycle, openai, openrouter, ops, routing, web};

pub(super) use operation::{Dialect, Operation};

/// What there is, as OpenAPI 3.2: the same bytes in every process of one version.
pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(made)
}

/// Families of endpoints, in the order in which they are shown.
const TAGS: &[(&str, &str)] = &[
    ("Chat", "OpenAI's Chat Completions API, with vLLM's extra fields."),
    ("Completions", "OpenAI's older Completions API, with vLLM's extra fields."),
    ("Responses", "OpenAI's Responses API."),
    ("Messages", "Anthropic's Messages API. Errors come in its words."),
    ("Embeddings", "OpenAI's Embeddings API; reranking and scoring in Jina's, Cohere's and vLLM's shapes."),
    ("Files", "OpenAI's Files and Batches APIs."),
    ("Models", "What is served."),
    ("Pool", "Several members under one name: decisions explained, use and cost."),
    ("Tokens", "Text to token ids and back, in vLLM's shapes."),
    ("Operation", "Probes, figures, and what this server is."),
    ("Pages", "Pages for people. `--web off` removes them."),
];

fn made() -> Value {
    let mut schemas = Schemas::new();
    let mut paths: Map<String, Value> = Map::new();
    let operations = [
        openai::chat::operations(&mut schemas),
        openai::completions::operations(&mut schemas),
        openai::responses::operations(&mut schemas),
        anthropic::operations(&mut schemas),
        openai::embeddings::operations(&mut schemas),
        openai::rerank::operations(&mut schemas),
        openai::files::operations(),
        openai::batches::operations(&mut schemas),
        openai::models::operations(&mut schemas),
        openai::lora::operations(&mut schemas),
        openrouter::operations(&mut schemas),
        lifecycle::operations(&mut schemas),
        openai::tokenize::operations(&mut schemas),
        routing::operations(&mut schemas),
        ops::operations(&mut schemas),
        web::operations(),
    ];
    for operation in operations.into_iter().flatten() {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.described;
    }
    let errors = operation::error_responses(&mut schemas);
    let tags = TAGS.iter().map(|(name, description)| json!({"name": name, "description": description}));
    json!({
        "openapi": "3.2.0",
        "info": {
            "title": "Sconce",
            "version": super::ops::VERSION,
            "summary": "Open-weight models on your own hardware behind the OpenAI and Anthropic APIs.",
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": tags.collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "headers": operation::headers(),
            "responses": errors,
            "schemas": schemas.into_definitions(),
        },
    })
}

const DESCRIPTION: &str = "\
Clients of OpenAI and Anthropic change nothing but their base address. A field that would change the answer and is not \
supported is refused by name; in schemas, `x-use` marks fields that are accepted without effect (`none`) or only with \
values that ask for nothing (`refused`). Sizes and numbers are bounded as the schemas say, a body by 32 MiB, 64 levels \
and a million values. Some rules join fields and are in their descriptions; a model may refuse more, such as a prompt \
that is longer than its context. Without configured keys no key is needed. Anything else is a 404 or, with the right path, a 405 in the same envelope.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere_and_every_tag_is_known() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(object) => {
                    found.extend(object.get("$ref").and_then(Value::as_str));
                    object.values().for_each(|value| references(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        references(document, &mut found);
        assert!(found.len() > 50);
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("within the document");
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        let mut ids = std::collections::HashSet::new();
        for operation in
            document["paths"].as_object().expect("paths").values().flat_map(|path| path.as_object()).flatten()
        {
            let (method, operation) = operation;
            let tag = operation["tags"][0].as_str().expect("a tag");
            assert!(TAGS.iter().any(|(name, _)| *name == tag), "{tag}");
            assert!(ids.insert(operation["operationId"].as_str().expect("an id")), "{method} {operation}");
        }
    }
}
