//! From a provider's status and body to an error whose kind alone says whether another member may be tried.
//!
//! A provider's 401 is our configuration's fault, never the client's key. No secret gets into a message.

use std::time::{Duration, SystemTime};

use http::header::HeaderMap;
use sconce_vocabulary::error::{Error, ErrorKind};
use serde_json::Value;

use crate::config::Kind;
use crate::secret::{Secret, cut};

/// Who is spoken to, for messages.
#[derive(Debug, Clone)]
pub(crate) struct Party {
    pub kind: Kind,
    pub secrets: Vec<Secret>,
}

/// At most this much of a provider's own words is repeated.
const WORDS_BYTES_MAX: usize = 600;
/// A provider that asks for more patience is not coming back for this request.
const RETRY_AFTER_S_MAX: u32 = 24 * 3600;

impl Party {
    pub fn name(&self) -> String {
        format!("the provider ({})", self.kind.name())
    }

    /// Something that is not the client's fault.
    pub fn upstream(&self, what: impl AsRef<str>) -> Error {
        Error::new(ErrorKind::Upstream, format!("{} {}", self.name(), what.as_ref()))
    }

    /// Bytes that are not what the wire format says.
    pub fn garbled(&self, what: &str) -> Error {
        self.upstream(format!("sent what cannot be read: {what}")).with_code("upstream_garbled")
    }

    /// The answer ended before its end.
    pub fn broken_off(&self) -> Error {
        self.upstream("broke off in the middle of its answer").with_code("upstream_broken_off")
    }

    /// A provider's words on one line, short and without secrets.
    pub fn words(&self, text: &str) -> String {
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        // Cut before it is shortened, so that no half of a secret stays at the end.
        let bounded = shortened(&line, WORDS_BYTES_MAX * 4);
        let clean = cut(bounded, &self.secrets);
        let short = shortened(&clean, WORDS_BYTES_MAX);
        if short.len() < clean.len() { format!("{short}…") } else { clean }
    }

    /// What a status other than 2xx means.
    pub fn refused(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> Error {
        let mut told = Told::read(body);
        if let Some(kind) = headers.get("x-amzn-errortype").and_then(|kind| kind.to_str().ok()) {
            kind.split(':').next().unwrap_or_default().clone_into(&mut told.code);
        }
        let retry_after_s = retry_after_s(headers, SystemTime::now()).or(told.retry_after_s);
        let mut error = self.told(status, &told);
        error.retry_after_s = match error.kind {
            ErrorKind::RateLimited | ErrorKind::Unavailable | ErrorKind::Upstream => retry_after_s,
            _ => None,
        };
        error
    }

    /// An error that came inside a stream, as a status that would have said the same.
    pub fn told(&self, status: u16, told: &Told) -> Error {
        let name = self.name();
        let words = self.words(&told.message);
        let says = if words.is_empty() { String::new() } else { format!(": {words}") };
        match told.true_status(status) {
            // Its words may name the key, and are not for clients.
            401 | 403 => self
                .upstream(format!(
                    "refused this server's credentials ({status}); check the key and its rights in the configuration"
                ))
                .with_code("upstream_credentials"),
            402 => self.upstream("wants payment (402); check the account").with_code("upstream_payment"),
            404 => self
                .upstream(format!("does not know the model or path (404); check the configuration{says}"))
                .with_code("upstream_not_found"),
            408 => {
                Error::new(ErrorKind::Timeout, format!("{name} timed out (408){says}")).with_code("upstream_timeout")
            }
            400 | 413 | 422 => {
                let mut error = Error::new(ErrorKind::InvalidRequest, format!("{name} refused the request{says}"));
                error.param = told.param.as_deref().map(|param| self.words(param));
                error.code = Some(told.invalid_code(status));
                error
            }
            429 if told.is_out_of_credit() => self
                .upstream("has no quota left for this server (429); check the account")
                .with_code("upstream_payment"),
            429 => Error::new(ErrorKind::RateLimited, format!("{name} limits this server's rate (429){says}"))
                .with_code("upstream_rate_limited"),
            409 | 425 | 503 | 529 => {
                Error::new(ErrorKind::Unavailable, format!("{name} cannot take requests now ({status}){says}"))
                    .with_code("upstream_unavailable")
            }
            300..=399 => self
                .upstream(format!("answered with a redirect ({status}), which is never followed; check base_url"))
                .with_code("upstream_redirect"),
            _ => self.upstream(format!("failed ({status}){says}")).with_code("upstream_failed"),
        }
    }
}

fn shortened(text: &str, bytes_max: usize) -> &str {
    if text.len() <= bytes_max {
        return text;
    }
    let end = (0..=bytes_max).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    &text[..end]
}

/// What a body says of an error, in any of the shapes that providers have.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Told {
    pub message: String,
    pub code: String,
    pub param: Option<String>,
    /// Where the body repeats its status, as errors inside of streams do.
    pub status: Option<u16>,
    pub retry_after_s: Option<u32>,
}

impl Told {
    pub fn read(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => Self::of(&value),
            // A proxy's page says nothing that a client could use.
            Err(_) => Self::default(),
        }
    }

    pub fn of(value: &Value) -> Self {
        // Gemini may wrap its error into an array.
        let value = value.as_array().and_then(|list| list.first()).unwrap_or(value);
        let inner = [&value["error"], &value["detail"]].into_iter().find(|inner| !inner.is_null()).unwrap_or(value);
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        let mut message = match inner {
            Value::String(text) => text.clone(),
            inner => text(&inner["message"]),
        };
        if message.is_empty() {
            message = [&value["message"], &value["Message"], &inner["msg"]]
                .into_iter()
                .map(text)
                .find(|text| !text.is_empty())
                .unwrap_or_default();
        }
        if let (true, Some(first)) = (message.is_empty(), inner.as_array().and_then(|list| list.first())) {
            // Validation errors of FastAPI, which Mistral and vLLM have.
            message = text(&first["msg"]);
        }
        let code = [&inner["innererror"]["code"], &inner["code"], &inner["status"], &inner["type"], &value["__type"]]
            .into_iter()
            .map(text)
            .find(|code| !code.is_empty() && code.parse::<u16>().is_err())
            .unwrap_or_default();
        let param = inner["param"].as_str().filter(|param| !param.is_empty()).map(str::to_owned);
        let status = [&inner["code"], &inner["status"], &inner["status_code"]].into_iter().find_map(|status| {
            let number = status.as_u64().or_else(|| status.as_str().and_then(|text| text.parse().ok()))?;
            u16::try_from(number).ok().filter(|status| (400..600).contains(status))
        });
        Self { message, code, param, status, retry_after_s: retry_delay_s(&inner["details"]) }
    }

    /// The status that an error inside of a stream would have had before it.
    pub fn status(&self) -> u16 {
        const WORDS: [(&str, u16); 12] = [
            ("rate_limit", 429),
            ("throttl", 429),
            ("resource_exhausted", 429),
            ("overloaded", 529),
            ("unavailable", 503),
            ("context_length", 400),
            ("invalid", 400),
            ("validation", 400),
            ("authentication", 401),
            ("permission", 403),
            ("timeout", 408),
            ("deadline", 408),
        ];
        let code = self.code.to_ascii_lowercase();
        let named = || WORDS.iter().find(|(word, _)| code.contains(word)).map(|(_, status)| *status);
        self.status.or_else(named).unwrap_or(500)
    }

    /// Some providers call their own or our fault a bad request.
    fn true_status(&self, status: u16) -> u16 {
        const FAULTS: [(&str, u16); 7] = [
            ("api key not valid", 401),
            ("api key expired", 401),
            ("credit balance is too low", 402),
            ("model identifier is invalid", 404),
            ("on-demand throughput isn", 404),
            ("is not a supported model", 404),
            ("user location is not supported", 403),
        ];
        if status != 400 {
            return status;
        }
        let (message, code) = (self.message.to_ascii_lowercase(), self.code.to_ascii_lowercase());
        if code.contains("throttling") || code.contains("quotaexceeded") {
            return 429;
        }
        FAULTS.iter().find(|(words, _)| message.contains(words)).map_or(status, |(_, status)| *status)
    }

    fn invalid_code(&self, status: u16) -> &'static str {
        const TOO_LONG: [&str; 10] = [
            "context length",
            "context window",
            "context_length",
            "prompt is too long",
            "input is too long",
            "too many tokens",
            "too many input tokens",
            "maximum number of tokens",
            "too large for model",
            "input token count",
        ];
        let (message, code) = (self.message.to_ascii_lowercase(), self.code.to_ascii_lowercase());
        if code.contains("context_length") || TOO_LONG.iter().any(|words| message.contains(words)) {
            "context_length_exceeded"
        } else if ["content_filter", "content_policy", "responsibleai"].iter().any(|word| code.contains(word)) {
            "content_filter"
        } else if status == 413 {
            "request_too_large"
        } else {
            "upstream_invalid_request"
        }
    }

    fn is_out_of_credit(&self) -> bool {
        matches!(self.code.as_str(), "insufficient_quota" | "billing_error" | "billing_hard_limit_reached")
    }
}

/// Google's `RetryInfo`: `"retryDelay": "34.07s"`.
fn retry_delay_s(details: &Value) -> Option<u32> {
    let delay = details.as_array()?.iter().find_map(|detail| detail["retryDelay"].as_str())?;
    duration(delay).map(whole_s)
}

/// After how many seconds the provider will take more, by whichever header says it.
pub(crate) fn retry_after_s(headers: &HeaderMap, now: SystemTime) -> Option<u32> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|ms| ms.parse::<f64>().ok()).filter(|ms| *ms >= 0.0) {
        return Some(whole_s(Duration::from_secs_f64((ms / 1000.0).min(f64::from(RETRY_AFTER_S_MAX)))));
    }
    if let Some(after) = text("retry-after") {
        if let Some(seconds) = after.parse::<f64>().ok().filter(|seconds| *seconds >= 0.0) {
            return Some(whole_s(Duration::from_secs_f64(seconds.min(f64::from(RETRY_AFTER_S_MAX)))));
        }
        if let Ok(at) = httpdate::parse_http_date(after) {
            return Some(whole_s(at.duration_since(now).unwrap_or_default()));
        }
    }
    // OpenAI says it for requests and tokens apart; what is used up is what must be waited for.
    ["requests", "tokens"]
        .into_iter()
        .filter(|of| text(&format!("x-ratelimit-remaining-{of}")).is_none_or(|left| left == "0"))
        .filter_map(|of| text(&format!("x-ratelimit-reset-{of}")))
        .chain(text("x-ratelimit-reset"))
        .filter_map(duration)
        .map(whole_s)
        .max()
}

/// `1s`, `6m0s`, `120ms`, `1h2m3.5s`, or a bare number of seconds.
fn duration(text: &str) -> Option<Duration> {
    let seconds = |number: f64| Duration::try_from_secs_f64(number).ok();
    if let Ok(number) = text.parse::<f64>() {
        // More than a year is a point in time, which needs a clock that both agree on.
        return seconds(number).filter(|duration| duration.as_secs() < 366 * 24 * 3600);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|symbol: char| !symbol.is_ascii_digit() && symbol != '.')?;
        let number = rest[..digits].parse::<f64>().ok()?;
        rest = &rest[digits..];
        let unit_s = [("ms", 0.001), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let (unit, factor) = unit_s.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total = total.checked_add(seconds(number * factor)?)?;
    }
    (!text.is_empty()).then_some(total)
}

/// Rounded up: a moment too early is refused again.
fn whole_s(duration: Duration) -> u32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(RETRY_AFTER_S_MAX).min(RETRY_AFTER_S_MAX)
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    fn party() -> Party {
        Party { kind: Kind::OpenAi, secrets: vec![Secret::new("sk-very-secret-key")] }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn the_kind_says_whether_another_member_may_be_tried() {
        let openai = |code: &str| json!({"error": {"message": "bad sk-very-secret-key", "code": code, "param": "n"}});
        for (status, body, kind, code) in [
            (400, openai("x"), ErrorKind::InvalidRequest, "upstream_invalid_request"),
            (400, openai("context_length_exceeded"), ErrorKind::InvalidRequest, "context_length_exceeded"),
            (400, openai("content_filter"), ErrorKind::InvalidRequest, "content_filter"),
            (
                400,
                json!({"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"}}),
                ErrorKind::InvalidRequest,
                "context_length_exceeded",
            ),
            (
                400,
                json!({"message": "Input is too long for requested model."}),
                ErrorKind::InvalidRequest,
                "context_length_exceeded",
            ),
            (
                400,
                json!({"message": "The provided model identifier is invalid."}),
                ErrorKind::Upstream,
                "upstream_not_found",
            ),
            (
                400,
                json!({"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "API key not valid. Please pass one."}}),
                ErrorKind::Upstream,
                "upstream_credentials",
            ),
            (413, json!({}), ErrorKind::InvalidRequest, "request_too_large"),
            (
                422,
                json!({"detail": [{"msg": "field required"}]}),
                ErrorKind::InvalidRequest,
                "upstream_invalid_request",
            ),
            (401, openai("invalid_api_key"), ErrorKind::Upstream, "upstream_credentials"),
            (403, openai("x"), ErrorKind::Upstream, "upstream_credentials"),
            (404, openai("model_not_found"), ErrorKind::Upstream, "upstream_not_found"),
            (429, openai("rate_limit_exceeded"), ErrorKind::RateLimited, "upstream_rate_limited"),
            (429, openai("insufficient_quota"), ErrorKind::Upstream, "upstream_payment"),
            (408, json!({}), ErrorKind::Timeout, "upstream_timeout"),
            (503, json!({}), ErrorKind::Unavailable, "upstream_unavailable"),
            (
                529,
                json!({"error": {"type": "overloaded_error", "message": "Overloaded"}}),
                ErrorKind::Unavailable,
                "upstream_unavailable",
            ),
            (500, json!("oops"), ErrorKind::Upstream, "upstream_failed"),
            (302, json!({}), ErrorKind::Upstream, "upstream_redirect"),
        ] {
            let error = party().refused(status, &HeaderMap::new(), body.to_string().as_bytes());
            assert_eq!((error.kind, error.code), (kind, Some(code)), "{status} {body}");
            assert!(!error.message.contains("secret"), "{error}");
        }
        let quota = headers(&[("x-amzn-errortype", "ServiceQuotaExceededException:http://x")]);
        assert_eq!(party().refused(400, &quota, b"{}").kind, ErrorKind::RateLimited);
        let html = party().refused(502, &HeaderMap::new(), b"<html>Bad gateway</html>");
        assert_eq!(html.message, "the provider (openai) failed (502)");
    }

    #[test]
    fn what_providers_say_is_found_in_every_shape() {
        for (body, message, code) in [
            (json!({"error": {"message": "a", "type": "t", "code": null}}), "a", "t"),
            (
                json!({"error": {"message": "a", "code": "c", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
                "a",
                "ResponsibleAIPolicyViolation",
            ),
            (json!({"error": "a"}), "a", ""),
            (
                json!([{"error": {"code": 429, "message": "a", "status": "RESOURCE_EXHAUSTED"}}]),
                "a",
                "RESOURCE_EXHAUSTED",
            ),
            (json!({"object": "error", "message": "a", "type": "t", "code": 400}), "a", "t"),
            (json!({"message": "a"}), "a", ""),
            (json!({"Message": "a"}), "a", ""),
            (json!({"detail": [{"loc": ["body"], "msg": "a"}]}), "a", ""),
            (json!({"detail": "a"}), "a", ""),
            (json!(5), "", ""),
        ] {
            let told = Told::of(&body);
            assert_eq!((told.message.as_str(), told.code.as_str()), (message, code), "{body}");
        }
        let details = json!({"error": {"details": [{"@type": "x"}, {"retryDelay": "34.07s"}]}});
        assert_eq!(Told::of(&details).retry_after_s, Some(35));
    }

    #[test]
    fn every_header_about_patience_is_understood() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").expect("a date");
        for (pairs, expected) in [
            (&[][..], None),
            (&[("retry-after", "7")], Some(7)),
            (&[("retry-after", "0")], Some(0)),
            (&[("retry-after", "1.2")], Some(2)),
            (&[("retry-after", "Wed, 21 Oct 2015 07:28:30 GMT")], Some(30)),
            (&[("retry-after", "Wed, 21 Oct 2015 07:27:00 GMT")], Some(0)),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "-5")], None),
            (&[("retry-after", "99999999999")], Some(RETRY_AFTER_S_MAX)),
            (&[("retry-after-ms", "1500"), ("retry-after", "9")], Some(2)),
            (&[("x-ratelimit-reset-requests", "6m0s"), ("x-ratelimit-remaining-requests", "0")], Some(360)),
            (
                &[
                    ("x-ratelimit-reset-requests", "6m0s"),
                    ("x-ratelimit-remaining-requests", "5"),
                    ("x-ratelimit-reset-tokens", "120ms"),
                    ("x-ratelimit-remaining-tokens", "0"),
                ],
                Some(1),
            ),
            (&[("x-ratelimit-reset", "20")], Some(20)),
            (&[("x-ratelimit-reset", "1445412510")], None),
            (&[("x-ratelimit-reset", "5 minutes")], None),
        ] {
            assert_eq!(retry_after_s(&headers(pairs), now), expected, "{pairs:?}");
        }
    }

    #[test]
    fn words_are_one_short_line() {
        let party = party();
        assert_eq!(party.words("a\n  b sk-very-secret-key c"), "a b [redacted] c");
        assert!(party.words(&"é".repeat(5000)).len() <= WORDS_BYTES_MAX + 3);
    }
}
