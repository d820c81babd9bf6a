//! What the document of endpoints says of adapters.

use serde_json::json;

use crate::api::openapi::{Dialect, Operation};
use crate::api::schema::Schemas;

use super::wire::{LoadBody, UnloadBody};

pub(in crate::api) fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let load = [("an adapter", json!({"lora_name": "sql", "lora_path": "sql"}))];
    let unload = [("an adapter", json!({"lora_name": "sql"}))];
    let text = || json!({"type": "string"});
    vec![
        Operation::new("post", "/v1/load_lora_adapter", "loadLoraAdapter")
            .says("Models", "Load a LoRA adapter", "From the folder of `--lora-dir`; without that flag it is refused.")
            .guarded(Dialect::OpenAi)
            .body(schemas.read::<LoadBody>(), &load, Dialect::OpenAi)
            .answers_with(200, "It is loaded.", "text/plain", text())
            .refuses(&[403, 404, 503], Dialect::OpenAi),
        Operation::new("post", "/v1/unload_lora_adapter", "unloadLoraAdapter")
            .says("Models", "Unload a LoRA adapter", "Requests that have begun go on with it.")
            .guarded(Dialect::OpenAi)
            .body(schemas.read::<UnloadBody>(), &unload, Dialect::OpenAi)
            .answers_with(200, "New requests do not find it any more.", "text/plain", text())
            .refuses(&[403, 404], Dialect::OpenAi),
    ]
}
