//! One report, in the encodings that balancers read.

use serde_json::json;

use super::rate::Rates;
use crate::pool::Load;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Text,
}

impl Encoding {
    /// In any case, as vLLM takes it.
    pub fn named(name: &str) -> Option<Self> {
        let known = [("json", Self::Json), ("text", Self::Text)];
        known.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name.trim())).map(|(_, encoding)| encoding)
    }
}

/// What a balancer is told with an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Report {
    pub load: Load,
    pub answers: Rates,
}

impl Report {
    /// The header's value.
    pub fn encoded(&self, encoding: Encoding) -> String {
        let [utilization, rps, eps] = self.figures();
        match encoding {
            Encoding::Json => {
                let named: serde_json::Map<_, _> =
                    self.named().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
                let report = json!({
                    "application_utilization": utilization, "rps_fractional": rps, "eps": eps, "named_metrics": named,
                });
                format!("JSON {report}")
            }
            Encoding::Text => {
                let mut text = format!("TEXT application_utilization:{utilization},rps_fractional:{rps},eps:{eps}");
                for (name, value) in self.named() {
                    text += &format!(",named_metrics.{name}:{value}");
                }
                text
            }
        }
    }

    /// Utilisation, requests a second and failures a second.
    fn figures(&self) -> [f64; 3] {
        let Rates { answers_per_s, failures_per_s, utilization } = self.answers;
        // Rounded to nothing it would be no report; without a model here there is none either.
        let utilization = if utilization > 0.0 { utilization.max(0.0001) } else { 0.0 };
        [utilization, answers_per_s, failures_per_s].map(rounded)
    }

    /// vLLM's names, which other balancers than Envoy look for.
    fn named(&self) -> [(&'static str, f64); 3] {
        [
            ("kv_cache_usage_perc", rounded(self.load.kv_usage)),
            ("num_requests_waiting", f64::from(self.load.waiting)),
            ("num_requests_running", f64::from(self.load.running)),
        ]
    }
}

/// Four places: nobody reads more, and headers stay short.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_written_as_envoy_reads_them() {
        let load = Load { running: 8, waiting: 4, kv_usage: 1.0 / 3.0, utilization: 1.75, share_of_one: 0.125 };
        let answers = Rates { answers_per_s: 2.0, failures_per_s: 0.25, utilization: 1.5 };
        let [json, text] = [Encoding::Json, Encoding::Text].map(|encoding| Report { load, answers }.encoded(encoding));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(json.strip_prefix("JSON ").expect("the prefix")).expect("JSON"),
            json!({
                "application_utilization": 1.5, "rps_fractional": 2.0, "eps": 0.25,
                "named_metrics": {
                    "kv_cache_usage_perc": 0.3333, "num_requests_waiting": 4.0, "num_requests_running": 8.0,
                },
            })
        );
        assert_eq!(
            text,
            "TEXT application_utilization:1.5,rps_fractional:2,eps:0.25,named_metrics.kv_cache_usage_perc:0.3333,\
             named_metrics.num_requests_waiting:4,named_metrics.num_requests_running:8"
        );
    }

    #[test]
    fn a_utilization_is_not_rounded_away() {
        let answers = Rates { utilization: 0.000_01, ..Rates::default() };
        let text = Report { load: Load::default(), answers }.encoded(Encoding::Text);
        assert!(text.starts_with("TEXT application_utilization:0.0001,"), "{text}");
    }

    #[test]
    fn encodings_are_named_in_any_case() {
        for (name, encoding) in
            [("JSON", Some(Encoding::Json)), (" text", Some(Encoding::Text)), ("bin", None), ("", None)]
        {
            assert_eq!(Encoding::named(name), encoding, "{name}");
        }
    }
}
