//! One question to a running server, for the commands that have one.

use reqwest::{Method, RequestBuilder, redirect};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

/// Sends what `finish` makes of a request for `path`, with the key if there is one. The server's own words on a failure
/// are the error. No redirect is followed, so the key goes nowhere else.
pub async fn ask(
    (base, key): (&str, Option<&str>),
    (method, path): (Method, &str),
    finish: impl FnOnce(RequestBuilder) -> RequestBuilder,
) -> Result<Value> {
    let url = format!("{}{path}", base.trim_end_matches('/'));
    let failed = |why: String| Error::new(ErrorKind::Unavailable, format!("cannot ask {url}: {why}; check --url"));
    let client = reqwest::Client::builder().redirect(redirect::Policy::none()).build();
    let mut request = finish(client.map_err(|why| failed(why.to_string()))?.request(method, &url));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let answer = request.send().await.map_err(|why| failed(why.without_url().to_string()))?;
    let answer: Value = answer.json().await.map_err(|why| failed(why.without_url().to_string()))?;
    match answer["error"]["message"].as_str() {
        Some(message) => Err(Error::new(ErrorKind::InvalidRequest, message.to_owned())),
        None => Ok(answer),
    }
}
