//! Records become figures: one flat JSON object, with the keys of `vllm bench serve --save-result` where they mean the
//! same.
//!
//! - `*_ttft_ms`, `*_tpot_ms`, `*_itl_ms`, `*_e2el_ms` count from the moment a request was sent, as everywhere.
//! - `*_ttft_intended_ms`, `*_e2el_intended_ms` count from when it should have been sent: what users wait who come
//!   whether or not the server keeps up. `*_send_delay_ms` is the difference.
//! - Figures of several repeats are those of all their requests together; rates are totals over the summed duration.

mod goodput;
mod run;
mod timeline;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

pub use goodput::{Goal, parse_goals};
pub use run::Run;

use crate::load::{LoadOutcome, Reads, Record};
use crate::stats::{self, Figure, Interval, Summary};

/// What to report beside what is always reported.
#[derive(Debug, Clone, Default)]
pub struct MeasureOptions {
    /// Percentiles, e.g. 90 and 99.9.
    pub percentiles: Vec<f64>,
    pub goals: Vec<Goal>,
    /// Every request's own figures as well.
    pub detailed: bool,
    pub seed: u64,
}

/// Above it the generator's own speed may be what was measured.
const PROCESSOR_SHARE_MAX: f64 = 0.8;
const LAG_MAX_S: f64 = 0.005;
/// Share of chunks without a time of their own that a p99 may have in it.
const TOGETHER_MAX: f64 = 0.001;

/// The figures of one load, run once or several times.
pub fn measure(outcomes: &[LoadOutcome], options: &MeasureOptions) -> Map<String, Value> {
    let records: Vec<&Record> = outcomes.iter().flat_map(|outcome| &outcome.records).collect();
    let good: Vec<&Record> = records.iter().copied().filter(|record| record.is_good()).collect();
    let mut out = Map::new();
    let mut intervals = Map::new();
    totals(outcomes, &records, &mut out);
    rates(outcomes, options, (&mut out, &mut intervals));
    let mut distributions = Map::new();
    let shares: Vec<f64> =
        [50.0].iter().chain(&options.percentiles).map(|percentile: &f64| percentile / 100.0).collect();
    for (name, mut samples) in per_request(&good) {
        let summary = stats::summarize(&mut samples, &shares);
        put_summary(name, &summary, options, (&mut out, &mut intervals));
        distributions.insert(name.to_owned(), distribution(&samples));
    }
    let mut gaps: Vec<(f64, u32)> = Vec::new();
    for (group, record) in good.iter().enumerate() {
        gaps.extend(record.gaps_s.iter().map(|gap| (f64::from(*gap) * 1000.0, group as u32)));
    }
    let summary = stats::summarize_groups(&mut gaps, &shares, options.seed);
    put_summary("itl", &summary, options, (&mut out, &mut intervals));
    let sorted: Vec<f64> = gaps.iter().map(|gap| gap.0).collect();
    distributions.insert("itl".to_owned(), distribution(&sorted));
    out.insert("confidence_intervals_95".to_owned(), intervals.into());
    out.insert("distributions".to_owned(), distributions.into());
    if let Some(outcome) = outcomes.last() {
        out.insert("timeline".to_owned(), timeline::timeline(outcome));
    }
    out.insert("warnings".to_owned(), warnings(outcomes, &records).into());
    if options.detailed {
        details(&records, &mut out);
    }
    out
}

/// Milliseconds of each metric that a request has one of.
fn per_request(good: &[&Record]) -> [(&'static str, Vec<f64>); 6] {
    let all = |pick: &dyn Fn(&Record) -> Option<f64>| -> Vec<f64> {
        good.iter().filter_map(|record| pick(record)).map(|seconds| seconds * 1000.0).collect()
    };
    [
        ("ttft", all(&Record::ttft_s)),
        ("tpot", all(&Record::tpot_s)),
        ("e2el", all(&|record| Some(record.e2e_s()))),
        ("ttft_intended", all(&|record| Some(record.ttft_s()? + record.send_delay_s()))),
        ("e2el_intended", all(&|record| Some(record.e2e_s() + record.send_delay_s()))),
        ("send_delay", all(&|record| Some(record.send_delay_s()))),
    ]
}

fn put_summary(
    name: &str,
    summary: &Summary,
    options: &MeasureOptions,
    (out, intervals): (&mut Map<String, Value>, &mut Map<String, Value>),
) {
    let mut put = |key: String, figure: Figure| {
        if figure.interval != Interval(None, None) {
            intervals.insert(key.clone(), json!(figure.interval));
        }
        out.insert(key, json!(figure.value));
    };
    let plain = |value| Figure { value, interval: Interval(None, None) };
    put(format!("mean_{name}_ms"), summary.mean);
    put(format!("median_{name}_ms"), summary.quantiles[0]);
    put(format!("std_{name}_ms"), plain(summary.std));
    for (percentile, figure) in options.percentiles.iter().zip(&summary.quantiles[1..]) {
        put(format!("p{percentile}_{name}_ms"), *figure);
    }
    put(format!("min_{name}_ms"), plain(summary.min));
    put(format!("max_{name}_ms"), plain(summary.max));
}

/// 201 quantiles, 0 % to 100 %, of samples in ascending order: enough to draw and to merge.
fn distribution(sorted: &[f64]) -> Value {
    if sorted.is_empty() {
        return Value::Array(Vec::new());
    }
    (0..=200).map(|at| json!((stats::quantile(sorted, f64::from(at) / 200.0) * 1000.0).round() / 1000.0)).collect()
}

fn totals(outcomes: &[LoadOutcome], records: &[&Record], out: &mut Map<String, Value>) {
    let good = || records.iter().filter(|record| record.is_good());
    let mut errors: BTreeMap<&str, u64> = BTreeMap::new();
    let mut examples: BTreeMap<&str, &str> = BTreeMap::new();
    for failure in records.iter().filter_map(|record| record.failure.as_ref()) {
        *errors.entry(&failure.kind).or_default() += 1;
        examples.entry(&failure.kind).or_insert(&failure.message);
    }
    let completed = good().count();
    out.insert("duration".into(), json!(outcomes.iter().map(|outcome| outcome.duration_s).sum::<f64>()));
    out.insert("completed".into(), json!(completed));
    out.insert("failed".into(), json!(records.len() - completed));
    out.insert("errors_by_kind".into(), json!(errors));
    out.insert("error_examples".into(), json!(examples));
    out.insert("total_input_tokens".into(), json!(good().map(|record| u64::from(record.tokens_in())).sum::<u64>()));
    out.insert("total_output_tokens".into(), json!(good().map(|record| u64::from(record.tokens_out())).sum::<u64>()));
    let in_flight = outcomes.iter().map(|outcome| outcome.in_flight_max).max();
    out.insert("max_concurrent_requests".into(), json!(in_flight.unwrap_or(0)));
    let peak = outcomes.iter().map(timeline::peak_tokens_per_s).fold(0.0, f64::max);
    out.insert("max_output_tokens_per_s".into(), json!(peak));
    let share = outcomes.iter().map(|outcome| outcome.processor_share).fold(0.0, f64::max);
    out.insert("client_processor_share".into(), json!(share));
    out.insert("client_workers".into(), json!(outcomes.iter().map(|outcome| outcome.workers).max().unwrap_or(0)));
    out.insert("client_lag_p99_ms".into(), json!(lag_p99_s(outcomes) * 1000.0));
    let reads = reads(outcomes);
    out.insert("client_read_lag_p99_ms".into(), json!(reads.lain_s(0.99) * 1000.0));
    out.insert("client_times_from".into(), json!(if reads.are_stamped() { "kernel" } else { "reads" }));
}

fn reads(outcomes: &[LoadOutcome]) -> Reads {
    let mut all = Reads::default();
    outcomes.iter().for_each(|outcome| all.add(&outcome.reads));
    all
}

fn lag_p99_s(outcomes: &[LoadOutcome]) -> f64 {
    let mut lags: Vec<f64> = outcomes.iter().flat_map(|outcome| outcome.lags_s.iter().copied()).collect();
    lags.sort_unstable_by(f64::total_cmp);
    stats::quantile(&lags, 0.99)
}

/// Rates: totals over the duration; their intervals are of the repeats, where there are several.
fn rates(
    outcomes: &[LoadOutcome],
    options: &MeasureOptions,
    (out, intervals): (&mut Map<String, Value>, &mut Map<String, Value>),
) {
    let duration: f64 = outcomes.iter().map(|outcome| outcome.duration_s).sum();
    let mut put = |key: &str, count: &dyn Fn(&Record) -> f64| {
        let of = |outcome: &LoadOutcome| -> f64 {
            outcome.records.iter().filter(|record| record.is_good()).map(count).sum()
        };
        let total: f64 = outcomes.iter().map(of).sum();
        out.insert(key.to_owned(), json!(total / duration.max(1e-9)));
        if outcomes.len() > 1 {
            let each: Vec<f64> = outcomes.iter().map(|outcome| of(outcome) / outcome.duration_s.max(1e-9)).collect();
            intervals.insert(key.to_owned(), json!(stats::mean_figure(&each).interval));
        }
    };
    put("request_throughput", &|_| 1.0);
    put("output_throughput", &|record| f64::from(record.tokens_out()));
    put("input_throughput", &|record| f64::from(record.tokens_in()));
    put("total_token_throughput", &|record| f64::from(record.tokens_out()) + f64::from(record.tokens_in()));
    if options.goals.is_empty() {
        out.insert("request_goodput".into(), Value::Null);
        return;
    }
    put("request_goodput", &|record| f64::from(goodput::meets(&options.goals, record, false)));
    put("request_goodput_intended", &|record| f64::from(goodput::meets(&options.goals, record, true)));
    out.insert("goodput_config".into(), goodput::as_json(&options.goals));
    let all: Vec<&Record> = outcomes.iter().flat_map(|outcome| &outcome.records).collect();
    let met = all.iter().filter(|record| record.is_good() && goodput::meets(&options.goals, record, true)).count();
    out.insert("goodput_share".into(), json!(met as f64 / all.len().max(1) as f64));
}

/// Where the generator itself may be in the figures.
fn generator_warnings(outcomes: &[LoadOutcome], found: &mut Vec<String>) {
    let share = outcomes.iter().map(|outcome| outcome.processor_share_busiest).fold(0.0, f64::max);
    if share > PROCESSOR_SHARE_MAX {
        let percent = share * 100.0;
        found.push(format!(
            "a thread of the load generator used {percent:.0} % of a core: it may be what was measured; raise --workers"
        ));
    }
    let lag_s = lag_p99_s(outcomes);
    if lag_s <= LAG_MAX_S {
        return;
    }
    let (lag_ms, reads) = (lag_s * 1000.0, reads(outcomes));
    if !reads.are_stamped() {
        found.push(format!(
            "the load generator was {lag_ms:.1} ms late at times (p99): latencies are too high by up to that"
        ));
        return;
    }
    found.push(format!(
        "the load generator was {lag_ms:.1} ms late at times (p99): latencies are right, by the kernel's times, but requests \
         went out later by up to that"
    ));
    let together = reads.together as f64 / reads.chunks.max(1) as f64;
    if together > TOGETHER_MAX {
        let percent = together * 100.0;
        found.push(format!(
            "{percent:.1} % of the chunks were read together with one before, and have its time: that tail of ITL is the \
             generator's or the server writes several at once; compare with fewer streams or more --workers"
        ));
    }
}

/// What a reader must know before believing the figures.
fn warnings(outcomes: &[LoadOutcome], records: &[&Record]) -> Vec<String> {
    let mut found = Vec::new();
    let good: Vec<&&Record> = records.iter().filter(|record| record.is_good()).collect();
    generator_warnings(outcomes, &mut found);
    let estimated = good.iter().filter(|record| record.output_tokens.is_none()).count();
    if estimated > 0 {
        found.push(format!("{estimated} answers came without usage: their chunks were counted as tokens"));
    }
    let (tokens, chunks) = good.iter().fold((0_u64, 0_u64), |(tokens, chunks), record| {
        (tokens + u64::from(record.tokens_out()), chunks + u64::from(record.chunks))
    });
    if chunks > 0 && (tokens as f64 / chunks as f64 - 1.0).abs() > 0.05 {
        let each = tokens as f64 / chunks as f64;
        found.push(format!("a chunk carries {each:.2} tokens on average: ITL is between chunks, TPOT a token"));
    }
    let shorter =
        good.iter().filter(|record| record.output_wanted.is_some_and(|wanted| record.tokens_out() != wanted)).count();
    if shorter > 0 {
        found.push(format!("{shorter} answers are not as long as asked"));
    }
    found
}

/// As `vllm bench serve --save-detailed` has them.
fn details(records: &[&Record], out: &mut Map<String, Value>) {
    let list = |pick: &dyn Fn(&Record) -> Value| -> Value { records.iter().map(|record| pick(record)).collect() };
    out.insert("input_lens".into(), list(&|record| json!(record.tokens_in())));
    out.insert("output_lens".into(), list(&|record| json!(if record.is_good() { record.tokens_out() } else { 0 })));
    out.insert("ttfts".into(), list(&|record| json!(record.ttft_s().unwrap_or(0.0))));
    out.insert("itls".into(), list(&|record| json!(record.gaps_s)));
    out.insert("start_times".into(), list(&|record| json!(record.sent_s)));
    out.insert("intended_start_times".into(), list(&|record| json!(record.intended_s)));
    out.insert("e2els".into(), list(&|record| json!(record.e2e_s())));
    out.insert("generated_texts".into(), list(&|record| json!(record.text)));
    let message = |record: &Record| record.failure.as_ref().map_or("", |failure| &failure.message).to_owned();
    out.insert("errors".into(), list(&|record| json!(message(record))));
}

#[cfg(test)]
mod tests;
