//! What the document of endpoints says of the directory.

use crate::api::openapi::{Dialect, Operation};
use crate::api::schema::Schemas;

use super::wire::Offers;

pub(in crate::api) fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    vec![
        Operation::new("get", "/openrouter/v1/models", "listOffers")
            .says(
                "Models",
                "List what is on offer, for OpenRouter",
                "The models of `[[listing]]`, in version 2.4 of its format.",
            )
            .guarded(Dialect::OpenAi)
            .answers("What the key may use of it.", schemas.written::<Offers>()),
    ]
}
