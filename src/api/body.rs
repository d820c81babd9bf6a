//! Request bodies: read within a size and a time, then parsed away from the event loop when they are large.

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::ApiConfig;
use super::error::{Failure, shortened};
use super::json::{Bounds, parse};
use crate::error::{Error, ErrorKind};

/// Parsing more than this at once would hold up other requests on the same thread.
const PARSE_INLINE_BYTES_MAX: usize = 256 * 1024;

/// The JSON object in a request's body.
pub(super) async fn read<T>(headers: &HeaderMap, body: Body, config: &ApiConfig) -> Result<T, Failure>
where
    T: DeserializeOwned + Send + 'static,
{
    require_json(headers)?;
    refuse_encoded(headers)?;
    let limit = config.body_read_timeout;
    let bytes = tokio::time::timeout(limit, collect(headers, body, config.body_bytes_max)).await.map_err(|_| {
        let message = format!("the body did not arrive within {} s; send it faster", limit.as_secs_f32());
        let error = Error::new(ErrorKind::Timeout, message).with_code("body_timeout");
        Failure::new(StatusCode::REQUEST_TIMEOUT, error)
    })??;
    let bounds = Bounds { depth_max: config.json_depth_max, values_max: config.json_values_max };
    if bytes.len() <= PARSE_INLINE_BYTES_MAX {
        return Ok(parse(&bytes, bounds)?);
    }
    let parsed = tokio::task::spawn_blocking(move || parse(&bytes, bounds)).await;
    Ok(parsed.map_err(|error| Error::internal(format!("parsing the body failed: {error}")))??)
}

/// Only JSON, as vLLM: a form or plain text would also be what a foreign web page can send without asking.
fn require_json(headers: &HeaderMap) -> Result<(), Failure> {
    let sent = headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let essence = sent.as_deref().and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    let (kind, subtype) = essence.split_once('/').unwrap_or_default();
    let subtype = subtype.to_ascii_lowercase();
    if kind.eq_ignore_ascii_case("application") && (subtype == "json" || subtype.ends_with("+json")) {
        return Ok(());
    }
    let message = match sent.as_deref() {
        None => "no content type was sent; set the header 'content-type: application/json'".to_owned(),
        Some(other) => format!(
            "the content type '{}' is not supported; set the header 'content-type: application/json'",
            shortened(other)
        ),
    };
    let error = Error::new(ErrorKind::InvalidRequest, message).with_code("unsupported_media_type");
    Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error))
}

/// A compressed body would only be called bad JSON, which helps nobody.
fn refuse_encoded(headers: &HeaderMap) -> Result<(), Failure> {
    let sent = headers.get(header::CONTENT_ENCODING).map(|value| String::from_utf8_lossy(value.as_bytes()));
    match sent.as_deref().map(str::trim) {
        None | Some("") => Ok(()),
        Some(plain) if plain.eq_ignore_ascii_case("identity") => Ok(()),
        Some(other) => {
            let message =
                format!("the content encoding '{}' is not supported; send the body as it is", shortened(other));
            let error = Error::new(ErrorKind::InvalidRequest, message).with_code("unsupported_content_encoding");
            Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error))
        }
    }
}

async fn collect(headers: &HeaderMap, mut body: Body, bytes_max: usize) -> Result<Bytes, Failure> {
    let too_large = |bytes: u64| {
        let message =
            format!("the body has at least {bytes} bytes, the limit is {bytes_max}; send less in one request");
        Failure::from(Error::new(ErrorKind::TooLarge, message))
    };
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(bytes) = declared.filter(|&bytes| bytes > bytes_max as u64) {
        return Err(too_large(bytes));
    }
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, format!("the body broke off: {error}")).with_code("body_incomplete")
        })?;
        if let Some(data) = frame.data_ref() {
            if data.len() > bytes_max - all.len() {
                return Err(too_large((all.len() + data.len()) as u64));
            }
            all.extend_from_slice(data);
        }
    }
    Ok(all.freeze())
}
