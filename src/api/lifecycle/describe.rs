//! What the document of endpoints says of models that come and go.

use serde_json::json;

use crate::api::json::Wire;
use crate::api::openapi::{Dialect, Operation};
use crate::api::schema::{Schemas, for_queries};

use super::sleep::{IsSleeping, SleepQuery, WakeQuery};
use super::{LoadFields, StatusList, StatusWire, UnloadFields};

pub(in crate::api) fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let example = [("a model", json!({"model": "smollm2:135m"}))];
    let operators = "Where there are keys it takes one of the operator's. A request for a model that is not in memory \
                     loads it as well, and waits for it.";
    vec![
        Operation::new("get", "/v1/models/status", "modelStatus")
            .says("Models", "What is in memory, and what is used", "The server's own models that the key may use.")
            .guarded(Dialect::OpenAi)
            .answers("The models.", schemas.written::<StatusList>()),
        Operation::new("post", "/v1/models/load", "loadModel")
            .says("Models", "Load a model", operators)
            .guarded(Dialect::OpenAi)
            .body(schemas.read::<Wire<LoadFields>>(), &example, Dialect::OpenAi)
            .answers("It is in memory.", schemas.written::<StatusWire>())
            .streams(schemas.written::<StatusWire>(), Some("[DONE]"))
            .refuses(&[403, 503], Dialect::OpenAi),
        Operation::new("post", "/v1/models/unload", "unloadModel")
            .says("Models", "Unload a model when it has finished what it has begun", operators)
            .guarded(Dialect::OpenAi)
            .body(schemas.read::<Wire<UnloadFields>>(), &example, Dialect::OpenAi)
            .answers("It is not in memory any more.", schemas.written::<StatusWire>())
            .refuses(&[403], Dialect::OpenAi),
        Operation::new("post", "/sleep", "sleepModel")
            .says(
                "Models",
                "Put a model on a GPU to sleep when it has finished what it has begun",
                "Weights go to host memory and the GPU's memory is free. Its next request wakes it. For operators.",
            )
            .guarded(Dialect::OpenAi)
            .query::<SleepQuery>(for_queries())
            .answers("It sleeps.", schemas.written::<StatusWire>())
            .refuses(&[400, 403, 404], Dialect::OpenAi),
        Operation::new("post", "/wake_up", "wakeModel")
            .says("Models", "Wake a model", "One that is not in memory is loaded. For operators.")
            .guarded(Dialect::OpenAi)
            .query::<WakeQuery>(for_queries())
            .answers("It can answer.", schemas.written::<StatusWire>())
            .refuses(&[400, 403, 404, 503], Dialect::OpenAi),
        Operation::new("get", "/is_sleeping", "isModelSleeping")
            .says("Models", "Whether a model sleeps", "For operators.")
            .guarded(Dialect::OpenAi)
            .query::<WakeQuery>(for_queries())
            .answers("Whether it does.", schemas.written::<IsSleeping>())
            .refuses(&[400, 403, 404], Dialect::OpenAi),
    ]
}
