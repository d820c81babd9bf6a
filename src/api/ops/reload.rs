//! `POST /v1/reload`: the configuration file is read again, as on SIGHUP.
//!
//! What reloads lives where the command line is known. This hands the wish over and waits for what came of it; a client
//! that goes away does not stop a reload.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::api::error::Failure;
use crate::api::lifecycle::require_operator;
use crate::api::openai::origin::Origin;
use crate::api::{AppState, body};
use crate::error::{Error, ErrorKind, Result};

/// Wishes that may wait for the one before them.
const WISHES_MAX: usize = 8;

/// Somebody wants the file read again, and to be told.
pub type ReloadWish = oneshot::Sender<Result<Reloaded>>;

/// Where wishes go.
#[derive(Debug, Clone)]
pub struct Reload {
    wishes: mpsc::Sender<ReloadWish>,
}

impl Reload {
    pub fn new() -> (Self, mpsc::Receiver<ReloadWish>) {
        let (wishes, receiver) = mpsc::channel(WISHES_MAX);
        (Self { wishes }, receiver)
    }

    async fn ask(&self) -> Result<Reloaded> {
        let (wish, told) = oneshot::channel();
        let unavailable = |what: &str| Error::new(ErrorKind::Unavailable, what).with_retry_after_s(2);
        self.wishes.try_send(wish).map_err(|why| match why {
            mpsc::error::TrySendError::Full(_) => unavailable("other reloads wait already; retry when they are done"),
            mpsc::error::TrySendError::Closed(_) => unavailable("the server is stopping and reads nothing any more"),
        })?;
        told.await.map_err(|_| unavailable("the server stopped before it had read the file"))?
    }
}

/// Nothing has to be said.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ReloadRequest")]
#[serde(deny_unknown_fields)]
pub(super) struct ReloadFields {}

/// What the file changed, by kind and name (`member home`, `route smart`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct Reloaded {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
    /// Keys that are known now.
    pub keys: usize,
    /// What differs in the file and stays as it was until the server is restarted.
    pub needs_restart: Vec<String>,
}

/// Answers when the file was taken over, models that are new in it loaded, or says why nothing was changed.
pub(in crate::api) async fn reload(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Reloaded>, Failure> {
    let ReloadFields {} = body::read(&headers, body, &state.config).await?;
    require_operator(&origin)?;
    let Some(reload) = &state.config.reload else {
        let message = "there is no configuration file to read again; start the server with --config FILE";
        return Err(Error::new(ErrorKind::InvalidRequest, message).with_code("no_configuration_file").into());
    };
    tracing::info!(key = origin.caller.name(), "the configuration is to be read again");
    Ok(Json(reload.ask().await?))
}
