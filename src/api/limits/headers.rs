//! What is left of a key's limits, in OpenAI's headers or in Anthropic's.

use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::calendar::rfc3339;

use super::{Left, Lefts};

const OPENAI: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ],
    [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ],
];

const ANTHROPIC: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("anthropic-ratelimit-requests-limit"),
        HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
        HeaderName::from_static("anthropic-ratelimit-requests-reset"),
    ],
    [
        HeaderName::from_static("anthropic-ratelimit-tokens-limit"),
        HeaderName::from_static("anthropic-ratelimit-tokens-remaining"),
        HeaderName::from_static("anthropic-ratelimit-tokens-reset"),
    ],
];

pub(super) fn add(headers: &mut HeaderMap, lefts: Lefts, in_anthropics_words: bool) {
    let names = if in_anthropics_words { ANTHROPIC } else { OPENAI };
    for (names, left) in names.into_iter().zip([lefts.requests, lefts.tokens]) {
        let Some(Left { limit, remaining, reset }) = left else { continue };
        let reset = if in_anthropics_words { moment(reset) } else { duration(reset) };
        let [limit_name, remaining_name, reset_name] = names;
        headers.insert(limit_name, HeaderValue::from(limit));
        headers.insert(remaining_name, HeaderValue::from(remaining));
        if let Ok(reset) = HeaderValue::from_str(&reset) {
            headers.insert(reset_name, reset);
        }
    }
}

/// As OpenAI writes it: `120ms`, `6s`, `1m30s`, `2h0m5s`.
fn duration(time: Duration) -> String {
    let (seconds, ms) = (time.as_secs(), time.subsec_millis());
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0) => format!("{ms}ms"),
        (0, 0, s) if ms > 0 => format!("{s}.{ms:03}s"),
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

/// As Anthropic writes it: the moment, rounded up to a second.
fn moment(time: Duration) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let then = now + time;
    rfc3339(then.as_secs() + u64::from(then.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_does() {
        for (ms, text) in
            [(0, "0ms"), (120, "120ms"), (1000, "1s"), (1500, "1.500s"), (90_000, "1m30s"), (7_205_000, "2h0m5s")]
        {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }
}
