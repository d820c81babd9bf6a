//! What has become worse between two results.
//!
//! Only like is held against like: the same load on the same machine. What intervals explain as noise is not named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sconce_vocabulary::error::{Error, Result};
use serde_json::Value;

use super::table::short;
use crate::metrics::Run;

/// (key, what it is, whether more is better)
const WATCHED: [(&str, &str, bool); 5] = [
    ("output_throughput", "output tokens/s", true),
    ("request_throughput", "requests/s", true),
    ("median_ttft_ms", "median TTFT", false),
    ("median_tpot_ms", "median TPOT", false),
    ("p99_itl_ms", "p99 ITL", false),
];

/// What is worse in `new` than in `old` by more than `percent`, in words. Where both results have intervals and these
/// overlap, it is noise and not named.
pub fn regressions(old: &Run, new: &Run, percent: f64) -> Vec<String> {
    let mut found = Vec::new();
    for (key, what, more_is_better) in WATCHED {
        let (Some(before), Some(after)) = (old.number(key), new.number(key)) else { continue };
        if before <= 0.0 || after <= 0.0 {
            continue;
        }
        let worse = if more_is_better { before / after } else { after / before };
        let ((old_low, old_high), (new_low, new_high)) = (old.interval(key), new.interval(key));
        let overlap = match (old_low, old_high, new_low, new_high) {
            (Some(old_low), Some(old_high), Some(new_low), Some(new_high)) => {
                old_low <= new_high && new_low <= old_high
            }
            _ => false,
        };
        let by = (worse - 1.0) * 100.0;
        if by > percent && !overlap {
            found.push(format!("{what}: {} before, {} now: worse by {by:.1} %", short(before), short(after)));
        }
    }
    let failed = |run: &Run| run.number("failed").unwrap_or(0.0);
    if failed(new) > failed(old) {
        found.push(format!("failed requests: {} before, {} now", failed(old), failed(new)));
    }
    found
}

/// Results of the engine: (case, part, tokens a second), and the machine.
fn engine_rates(value: &Value) -> (Vec<(String, f64)>, Value) {
    let mut rates = Vec::new();
    for case in value.get("engine").and_then(Value::as_array).into_iter().flatten() {
        for part in ["prefill", "decode"] {
            if let Some(rate) = case.get(format!("{part}_tokens_per_s")).and_then(Value::as_f64) {
                let of = |key: &str| case.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                rates.push((format!("{part} of {} {}", of("model"), of("case")), rate));
            }
        }
    }
    let machine = ["processor", "threads"].map(|key| value["hardware"].get(key).cloned().unwrap_or_default());
    (rates, Value::from(machine.to_vec()))
}

fn read(path: &Path) -> Result<Value> {
    let wrong = |why: String| Error::invalid("--check", format!("--check: {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|why| wrong(why.to_string()))?;
    serde_json::from_str(&text).map_err(|why| wrong(why.to_string()))
}

/// One line a regression between two files; `Err` says why they cannot be held against each other.
fn between(old: &Value, new: &Value, percent: f64) -> Result<Vec<String>, String> {
    let ((old_rates, old_machine), (new_rates, new_machine)) = (engine_rates(old), engine_rates(new));
    if !old_rates.is_empty() && !new_rates.is_empty() {
        if old_machine != new_machine || old_machine[0].is_null() {
            return Err("not of the same known machine".to_owned());
        }
        let before: BTreeMap<&str, f64> = old_rates.iter().map(|(what, rate)| (what.as_str(), *rate)).collect();
        let worse = new_rates.iter().filter_map(|(what, now)| {
            let before = *before.get(what.as_str())?;
            let by = (before / now.max(1e-9) - 1.0) * 100.0;
            (by > percent)
                .then(|| format!("{what}: {} tokens/s before, {} now: worse by {by:.1} %", short(before), short(*now)))
        });
        return Ok(worse.collect());
    }
    let (old_runs, new_runs) = (Run::find_all(old), Run::find_all(new));
    if old_runs.is_empty() || new_runs.is_empty() {
        return Err("no results that can be compared".to_owned());
    }
    let mut found = Vec::new();
    let mut pairs = 0;
    for new in &new_runs {
        let is_like = |old: &&Run| {
            let is_same = |key: &str| old.text(key) == new.text(key);
            old.load() == new.load() && is_same("label") && is_same("model_id") && is_same("dataset")
        };
        let Some(old) = old_runs.iter().find(is_like) else { continue };
        if old.text("machine").is_none() || old.text("machine") != new.text("machine") {
            return Err("not of the same known machine".to_owned());
        }
        pairs += 1;
        let named =
            regressions(old, new, percent).into_iter().map(|line| format!("{}, {}: {line}", new.name(), new.load()));
        found.extend(named);
    }
    if pairs == 0 { Err("no load is in both".to_owned()) } else { Ok(found) }
}

/// A name without the day at its beginning: `2026-11-22-engine.json` is a later `2026-11-21-engine.json`.
fn series(name: &str) -> Option<&str> {
    let (day, rest) = name.split_at_checked(11)?;
    let is_day = day.bytes().enumerate().all(|(at, byte)| match at {
        4 | 7 | 10 => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    (is_day && rest.ends_with(".json")).then_some(rest)
}

/// The newest result of each name in a folder against the one before it: what to print, and whether one became worse.
pub fn check(folder: &Path, percent: f64) -> Result<(String, bool)> {
    let failed = |why: std::io::Error| Error::invalid("--check", format!("--check: {}: {why}", folder.display()));
    let mut by_series: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(series) = series(&name) {
            by_series.entry(series.to_owned()).or_default().push(path);
        }
    }
    let (mut text, mut is_worse) = (String::new(), false);
    for (series, mut paths) in by_series {
        paths.sort();
        let [.., old, new] = paths.as_slice() else { continue };
        match between(&read(old)?, &read(new)?, percent) {
            Err(why) => text.push_str(&format!("{series}: not compared: {why}\n")),
            Ok(lines) if lines.is_empty() => text.push_str(&format!("{series}: no regression above {percent} %\n")),
            Ok(lines) => {
                is_worse = true;
                lines.iter().for_each(|line| text.push_str(&format!("{series}: regression: {line}\n")));
            }
        }
    }
    if text.is_empty() {
        text.push_str("nothing to check: no two results of one name (YYYY-MM-DD-NAME.json)\n");
    }
    Ok((text, is_worse))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(value: Value) -> Run {
        Run(value.as_object().expect("an object").clone())
    }

    #[test]
    fn regressions_are_named_beyond_noise_only() {
        let base = json!({"output_throughput": 100.0, "median_ttft_ms": 50.0, "failed": 0});
        let cases = [
            (json!({"output_throughput": 96.0, "median_ttft_ms": 50.0}), 0),
            (json!({"output_throughput": 90.0, "median_ttft_ms": 50.0}), 1),
            (json!({"output_throughput": 120.0, "median_ttft_ms": 60.0}), 1),
            (json!({"output_throughput": 100.0, "failed": 2}), 1),
        ];
        for (new, count) in cases {
            assert_eq!(regressions(&run(base.clone()), &run(new.clone()), 5.0).len(), count, "{new}");
        }
        let sure = |value: f64, spread: f64| {
            run(
                json!({"median_ttft_ms": value, "confidence_intervals_95": {"median_ttft_ms": [value - spread, value + spread]}}),
            )
        };
        assert_eq!(regressions(&sure(50.0, 10.0), &sure(60.0, 10.0), 5.0).len(), 0);
        assert_eq!(regressions(&sure(50.0, 1.0), &sure(60.0, 1.0), 5.0).len(), 1);
    }

    #[test]
    fn the_newest_of_a_name_is_held_against_the_one_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, value: Value| {
            std::fs::write(folder.path().join(name), value.to_string()).expect("written");
        };
        let engine = |rate: f64, processor: &str| {
            json!({"hardware": {"processor": processor, "threads": 2},
                   "engine": [{"model": "m", "case": "tg8", "decode_tokens_per_s": rate}]})
        };
        let load = |rate: f64| json!({"label": "x", "model_id": "m", "machine": "P", "max_concurrency": 4, "output_throughput": rate});
        assert!(check(folder.path(), 10.0).expect("a check").0.contains("nothing to check"));
        write("2026-01-01-e.json", engine(500.0, "P"));
        write("2026-01-02-e.json", engine(100.0, "P"));
        write("2026-01-03-e.json", engine(95.0, "P"));
        write("2026-01-01-f.json", engine(100.0, "P"));
        write("2026-01-02-f.json", engine(50.0, "Q"));
        write("notes.json", json!({}));
        let (text, is_worse) = check(folder.path(), 10.0).expect("a check");
        assert!(!is_worse && text.contains("e.json: no regression") && text.contains("f.json: not compared"), "{text}");
        write("2026-01-01-s.json", load(100.0));
        write("2026-01-02-s.json", load(80.0));
        let (text, is_worse) = check(folder.path(), 10.0).expect("a check");
        assert!(is_worse && text.contains("s.json: regression: x, 4 clients: output tokens/s"), "{text}");
        let (_, is_worse) = check(folder.path(), 30.0).expect("a check");
        assert!(!is_worse);
    }
}
