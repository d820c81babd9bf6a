//! Pages for people: one to chat with the models at `/`, the reference at `/docs`, the ledger at `/usage`.
//!
//! Plain HTML, CSS and JavaScript modules that are part of the binary. Nothing is loaded from elsewhere, and the content
//! security policy sees to it; what models say is never read as HTML.

mod assets;

use axum::body::Body;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::json;

use super::error::{Failure, shortened};
use super::openapi::Operation;
use crate::error::{Error, ErrorKind};

use assets::Asset;

/// Only what this server sends, in no frame, and no form or plug-in leads elsewhere.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

/// The client prefers HTML to JSON, as browsers do. `*/*` alone, which programs send, is no wish for a page.
pub(super) fn wants_page(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut html, mut json) = (0.0, 0.0);
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
        if kind.eq_ignore_ascii_case("text/html") {
            html = f32::max(html, quality);
        } else if kind.eq_ignore_ascii_case("application/json") {
            json = f32::max(json, quality);
        }
    }
    html > json
}

/// The page to chat.
pub(super) fn page(headers: &HeaderMap) -> Response {
    served(assets::named("chat.html"), headers)
}

/// The reference.
pub(super) async fn docs(headers: HeaderMap) -> Response {
    served(assets::named("docs.html"), &headers)
}

/// What was used and what it cost.
pub(super) async fn usage(headers: HeaderMap) -> Response {
    served(assets::named("usage.html"), &headers)
}

/// A part of a page.
pub(super) async fn asset(name: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Result<Response, Failure> {
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let found = assets::named(&name).filter(|asset| !asset.is_page());
    if found.is_none() {
        let message = format!("there is no part of a page called '{}'", shortened(&name));
        return Err(Error::new(ErrorKind::NotFound, message).with_code("unknown_url").into());
    }
    Ok(served(found, &headers))
}

fn served(asset: Option<&'static Asset>, headers: &HeaderMap) -> Response {
    let Some(asset) = asset else {
        return Failure::from(Error::internal("a page is missing in this build")).into_response();
    };
    tagged(Bytes::from_static(asset.text.as_bytes()), asset.kind, asset.tag(), headers)
}

/// A document that clients may keep and ask after by its tag.
pub(super) fn tagged(body: Bytes, kind: &'static str, tag: &str, headers: &HeaderMap) -> Response {
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known.flat_map(|value| value.split(',')).any(|sent| {
        let sent = sent.trim();
        sent == "*" || sent.trim_start_matches("W/") == tag
    });
    let mut response = match is_known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => Body::from(body).into_response(),
    };
    let constant = [
        (header::CONTENT_TYPE, kind),
        // Kept, but asked after each time: pages of one version are never mixed with another's.
        (header::CACHE_CONTROL, "no-cache"),
        (header::VARY, "accept"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    let headers = response.headers_mut();
    for (name, value) in constant {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
    if is_known {
        headers.remove(header::CONTENT_TYPE);
    }
    response
}

/// What identifies a document's text.
pub(super) fn tag_of(text: &str) -> String {
    format!("\"{}\"", &blake3::hash(text.as_bytes()).to_hex()[..24])
}

/// What the document of endpoints says of the pages.
pub(super) fn operations() -> Vec<Operation> {
    let page = |path, id, summary: &str, kind| {
        let text = json!({"type": "string"});
        let page = Operation::new("get", path, id).says("Pages", summary, "Unchanged where `if-none-match` names it.");
        page.answers_with(200, "The text.", kind, text)
    };
    vec![
        page("/docs", "docs", "This document, to read", "text/html"),
        page("/usage", "usagePage", "The ledger, to read", "text/html"),
        page("/web/{file}", "asset", "A part of a page", "text/javascript")
            .answers_with(200, "The text.", "text/css", json!({"type": "string"}))
            .answers_with(200, "The text.", "image/svg+xml", json!({"type": "string"}))
            .parameter("path", "file", "A name that a page uses.", json!({"type": "string"}))
            .refuses(&[404], super::openapi::Dialect::OpenAi),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_a_page_and_programs_do_not() {
        for (accept, expected) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("text/html", true),
            ("application/json;q=0.5, text/html;q=0.9", true),
            ("*/*", false),
            ("", false),
            ("application/json", false),
            ("application/json, text/html;q=0.9", false),
            ("text/html;q=0", false),
            ("text/html;q=x", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(wants_page(&headers), expected, "{accept}");
        }
        assert!(!wants_page(&HeaderMap::new()));
    }
}
