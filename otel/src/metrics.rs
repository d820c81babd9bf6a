//! Histograms of requests by the GenAI conventions, summed since the start.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::record::{Ended, text};

/// Bounds as the conventions advise them.
const DURATION_S: &[f64] = &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const FIRST_TOKEN_S: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const PER_TOKEN_S: &[f64] = &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
const TOKENS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// (name, unit, what it is, bounds), in the order of [`Metrics::series`].
const INSTRUMENTS: [(&str, &str, &str, &[f64]); 4] = [
    ("gen_ai.server.request.duration", "s", "from the request until the last byte of its answer", DURATION_S),
    ("gen_ai.server.time_to_first_token", "s", "until the first token of answers that went well", FIRST_TOKEN_S),
    ("gen_ai.server.time_per_output_token", "s", "per token after the first, of answers that went well", PER_TOKEN_S),
    ("gen_ai.client.token.usage", "{token}", "tokens that went in and came out", TOKENS),
];
/// Series of one instrument; models and errors are few, and a fault must not make them many.
const SERIES_MAX: usize = 1000;

/// What tells one series of an instrument from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    operation: &'static str,
    model: String,
    member: String,
    error: Option<String>,
    token_type: Option<&'static str>,
}

#[derive(Debug, Clone, Default)]
struct Series {
    counts: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Series {
    fn observe(&mut self, value: f64, bounds: &[f64]) {
        self.counts.resize(bounds.len() + 1, 0);
        self.counts[bounds.partition_point(|bound| *bound < value)] += 1;
        self.count += 1;
        self.sum += value;
    }
}

pub(crate) struct Metrics {
    series: [BTreeMap<Labels, Series>; INSTRUMENTS.len()],
    started_ns: u64,
}

impl Metrics {
    pub fn new(started_ns: u64) -> Self {
        Self { series: Default::default(), started_ns }
    }

    pub fn observe(&mut self, ended: &Ended) {
        let labels = |token_type| Labels {
            operation: ended.operation,
            model: ended.model.clone(),
            member: ended.member.clone().unwrap_or_else(|| ended.model.clone()),
            error: ended.error_type(),
            token_type,
        };
        let went_well = ended.error_type().is_none();
        self.add(0, labels(None), ended.duration_s);
        if let Some(first_s) = ended.time_to_first_token_s.filter(|_| went_well) {
            self.add(1, labels(None), first_s);
            if ended.output_tokens > 1 {
                let per_token = (ended.duration_s - first_s).max(0.0) / f64::from(ended.output_tokens - 1);
                self.add(2, labels(None), per_token);
            }
        }
        for (token_type, tokens) in [("input", ended.input_tokens), ("output", ended.output_tokens)] {
            if tokens > 0 {
                self.add(3, Labels { error: None, ..labels(Some(token_type)) }, tokens.into());
            }
        }
    }

    fn add(&mut self, instrument: usize, labels: Labels, value: f64) {
        let series = &mut self.series[instrument];
        if series.len() < SERIES_MAX || series.contains_key(&labels) {
            series.entry(labels).or_default().observe(value, INSTRUMENTS[instrument].3);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.series.iter().all(BTreeMap::is_empty)
    }

    /// The metrics of a scope, as of `now_ns`.
    pub fn json(&self, now_ns: u64, server: Option<&(String, u16)>) -> Vec<Value> {
        let with_any = INSTRUMENTS.iter().zip(&self.series).filter(|(_, series)| !series.is_empty());
        let metrics = with_any.map(|((name, unit, what, bounds), series)| {
            let points: Vec<Value> =
                series.iter().map(|(labels, one)| self.point(labels, one, bounds, (now_ns, server))).collect();
            json!({
                "name": name, "unit": unit, "description": what,
                "histogram": {"aggregationTemporality": 2, "dataPoints": points},
            })
        });
        metrics.collect()
    }

    fn point(
        &self,
        labels: &Labels,
        one: &Series,
        bounds: &[f64],
        (now_ns, server): (u64, Option<&(String, u16)>),
    ) -> Value {
        let mut attributes = vec![
            text("gen_ai.operation.name", labels.operation),
            text("gen_ai.provider.name", "sconce"),
            text("gen_ai.request.model", &labels.model),
            text("gen_ai.response.model", &labels.member),
        ];
        if let Some((address, port)) = server {
            attributes.push(text("server.address", address));
            attributes.push(json!({"key": "server.port", "value": {"intValue": port.to_string()}}));
        }
        attributes.extend(labels.error.as_deref().map(|error| text("error.type", error)));
        attributes.extend(labels.token_type.map(|kind| text("gen_ai.token.type", kind)));
        let counts: Vec<String> = one.counts.iter().map(u64::to_string).collect();
        json!({
            "startTimeUnixNano": self.started_ns.to_string(), "timeUnixNano": now_ns.to_string(),
            "count": one.count.to_string(), "sum": one.sum, "bucketCounts": counts, "explicitBounds": bounds,
            "attributes": attributes,
        })
    }
}
