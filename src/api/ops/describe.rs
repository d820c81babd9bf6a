//! What the document of endpoints says of the operators' endpoints.

use serde_json::json;

use crate::api::json::Wire;
use crate::api::openapi::{Dialect, Operation};
use crate::api::schema::{Schemas, for_queries};

use super::reload::{ReloadFields, Reloaded};
use super::{Health, Index, LogLevel, LogLevelFields, Readiness, Version, WhichModel};

pub(in crate::api) fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let text = || json!({"type": "string"});
    let readiness = schemas.written::<Readiness>();
    vec![
        Operation::new("get", "/", "index")
            .says("Operation", "Where to look next", "Who asks for `text/html` gets a page to chat with the models.")
            .answers("What this server is.", schemas.written::<Index>())
            .answers_with(200, "What this server is.", "text/html", text()),
        Operation::new("get", "/health", "health")
            .says("Operation", "Is the process alive", "")
            .answers("It can answer.", schemas.written::<Health>())
            .answers_with(
                503,
                "An engine is stuck: restart the server.",
                "application/json",
                schemas.written::<Health>(),
            ),
        Operation::new("get", "/ready", "ready")
            .says(
                "Operation",
                "Can every model serve",
                "Models that are loaded on demand count as ready; ask for one by name.",
            )
            .query::<WhichModel>(for_queries())
            .answers("Every model can.", readiness.clone())
            .answers_with(503, "Loading, failed or draining.", "application/json", readiness)
            .refuses(&[404], Dialect::OpenAi),
        Operation::new("get", "/v1/log-level", "logLevel")
            .says("Operation", "What is logged", "For operators.")
            .guarded(Dialect::OpenAi)
            .answers("The filter.", schemas.written::<LogLevel>())
            .refuses(&[403], Dialect::OpenAi),
        Operation::new("post", "/v1/log-level", "setLogLevel")
            .says("Operation", "Change what is logged", "For operators. Until the server is restarted.")
            .guarded(Dialect::OpenAi)
            .body(
                schemas.read::<Wire<LogLevelFields>>(),
                &[("more", json!({"filter": "sconce=debug,info"}))],
                Dialect::OpenAi,
            )
            .answers("The filter.", schemas.written::<LogLevel>())
            .refuses(&[403], Dialect::OpenAi),
        Operation::new("post", "/v1/reload", "reload")
            .says(
                "Operation",
                "Read the configuration file again",
                "For operators; as on SIGHUP. The file is checked as a whole and new models are loaded before anything is \
                 exchanged; a file with a fault changes nothing, and the error says what is wrong.",
            )
            .guarded(Dialect::OpenAi)
            .body(schemas.read::<ReloadFields>(), &[("nothing to say", json!({}))], Dialect::OpenAi)
            .answers("What was changed.", schemas.written::<Reloaded>())
            .refuses(&[403, 503], Dialect::OpenAi),
        Operation::new("get", "/metrics", "metrics")
            .says("Operation", "Figures for Prometheus", "With vLLM's names where it has one.")
            .answers_with(200, "The figures.", "text/plain", text()),
        Operation::new("get", "/version", "version")
            .says("Operation", "The version of the server", "")
            .answers("The version.", schemas.written::<Version>()),
        Operation::new("get", "/openapi.json", "openapi")
            .says("Operation", "This document", "")
            .answers("OpenAPI 3.2.", json!({"type": "object", "required": ["openapi", "info", "paths"]})),
    ]
}
