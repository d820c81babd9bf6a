//! `GET /openrouter/v1/models`: what is on offer here, as OpenRouter's directory of providers reads it.
//!
//! Only what `[[listing]]` names is on offer. Prices are text, because they must be exact.

mod describe;
mod wire;

use axum::Json;
use axum::extract::State;

use super::AppState;
use super::openai::origin::Origin;

pub(super) use describe::operations;

use wire::{ListedModel, Offers};

pub(super) async fn list(State(state): State<AppState>, origin: Origin) -> Json<Offers> {
    let models = state.pool.models();
    let offered = state.config.listings.iter().filter_map(|listing| {
        // A reload may have taken the model away; then there is nothing to sell.
        let model = models.iter().find(|model| model.card().answers_to(&listing.model))?;
        origin.caller.may_use(model.card()).then(|| ListedModel::new(listing, model.card(), &state.config))
    });
    Json(Offers { data: offered.collect() })
}
