//! A page with plots that needs nothing from elsewhere: style, script and data are in it.
//!
//! Tables are HTML, so that figures can be read and copied without the script; the script draws inline SVG at the width
//! that there is.

use serde_json::{Map, Value, json};

use super::engine;
use super::table::{self, short};
use crate::metrics::Run;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Of any number of results; `source` is what was written as JSON, for what belongs to all of them together.
pub fn page(runs: &[Run], source: &Value) -> String {
    let data = json!({"runs": runs.iter().map(drawn).collect::<Vec<_>>(), "engine": source.get("engine"), "hardware": source.get("hardware")});
    // "</script>" inside a text would end the data.
    let data = data.to_string().replace('<', "\\u003c");
    let title = match runs {
        [] => engine::title(source).unwrap_or_else(|| "Sconce bench".to_owned()),
        [one] => format!("{}, {}", one.name(), one.load()),
        many => format!("{} results", many.len()),
    };
    let mut body = format!(
        "<header><h1>{}</h1><button id=\"theme\" type=\"button\">light / dark</button></header>\n",
        escape(&title)
    );
    body.push_str(&lead(runs));
    body.push_str(&engine::lead(source));
    if let [one] = runs {
        body.push_str(&tiles(one));
    }
    body.push_str(&extra(source));
    body.push_str(&section("How much for how long: the throughput-latency curve", "curve"));
    body.push_str(&section("Latencies", "distributions"));
    body.push_str(&section("Over time", "timeline"));
    if source.get("engine").is_some() {
        body.push_str(&section("Against the machine's limits", "limits"));
        body.push_str(&engine::tables(source));
    }
    if !runs.is_empty() {
        body.push_str(&figures(runs));
    }
    body.push_str(&doubts(runs));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body><main>\n{body}</main>\n<script id=\"data\" type=\"application/json\">{data}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        escape(&title)
    )
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What the script needs of a result.
fn drawn(run: &Run) -> Value {
    let mut map = Map::new();
    map.insert("name".into(), run.name().into());
    map.insert("title".into(), format!("{}, {}", run.name(), run.load()).into());
    for (key, value) in &run.0 {
        let wanted = value.is_number() || matches!(key.as_str(), "distributions" | "timeline");
        if wanted {
            map.insert(key.clone(), value.clone());
        }
    }
    Value::Object(map)
}

fn section(title: &str, id: &str) -> String {
    format!("<section><h2>{title}</h2><div class=\"charts\" id=\"{id}\"></div></section>\n")
}

fn lead(runs: &[Run]) -> String {
    let Some(first) = runs.first() else { return String::new() };
    let mut parts: Vec<String> = Vec::new();
    let servers: std::collections::BTreeSet<&str> = runs.iter().filter_map(|run| run.text("base_url")).collect();
    if !servers.is_empty() {
        parts.push(servers.into_iter().collect::<Vec<_>>().join(", "));
    }
    if let Some(dataset) = first.text("dataset") {
        let count = first.number("num_prompts").unwrap_or(0.0);
        parts.push(format!("{count} requests of the data set {dataset}"));
    }
    if let Some(date) = first.text("date") {
        parts.push(date.to_owned());
    }
    format!("<p>{}</p>\n", escape(&parts.join(" · ")))
}

fn tiles(run: &Run) -> String {
    let shown = [
        ("output tokens/s", "output_throughput"),
        ("requests/s", "request_throughput"),
        ("TTFT median, ms", "median_ttft_ms"),
        ("TTFT p99, ms", "p99_ttft_ms"),
        ("ITL median, ms", "median_itl_ms"),
        ("ITL p99, ms", "p99_itl_ms"),
        ("failed", "failed"),
    ];
    let tiles: String = shown
        .iter()
        .filter_map(|(what, key)| Some((what, run.number(key)?)))
        .map(|(what, value)| format!("<div class=\"tile\"><b>{}</b><span>{what}</span></div>", short(value)))
        .collect();
    format!("<div class=\"tiles\">{tiles}</div>\n")
}

/// The knee of a sweep, the verdicts of a comparison.
fn extra(source: &Value) -> String {
    let mut text = String::new();
    if let Some(knee) = source.get("knee_requests_per_s").and_then(Value::as_f64) {
        let percent = source.get("goal_share").and_then(Value::as_f64).unwrap_or(1.0) * 100.0;
        text.push_str(&format!(
            "<h2>Knee</h2><p>{} requests/s with {percent:.0} % of the requests within the goals</p>\n",
            short(knee)
        ));
    }
    if let Some(ratios) = source.get("ratios").and_then(Value::as_object) {
        let rows: String = ratios
            .iter()
            .map(|(key, value)| {
                let side =
                    |at: usize| value["interval_95"][at].as_f64().map_or("?".to_owned(), |side| format!("{side:.3}"));
                format!(
                    "<tr><td>{}</td><td>{:.3}</td><td>{} to {}</td><td>{}</td></tr>",
                    escape(key),
                    value["ratio"].as_f64().unwrap_or(0.0),
                    side(0),
                    side(1),
                    escape(value["verdict"].as_str().unwrap_or_default())
                )
            })
            .collect();
        text.push_str(&format!(
            "<h2>A over B</h2><div class=\"scroll\"><table><thead><tr><th>figure</th><th>ratio</th><th>95 % interval</th>\
             <th>verdict</th></tr></thead><tbody>{rows}</tbody></table></div>\n"
        ));
    }
    text
}

/// Every figure, one column a result.
fn figures(runs: &[Run]) -> String {
    let head: String = runs
        .iter()
        .map(|run| format!("<th>{}<br><small>{}</small></th>", escape(&run.name()), escape(&run.load())))
        .collect();
    let mut rows = String::new();
    let mut row = |what: &str, key: &str| {
        if runs.iter().all(|run| run.number(key).is_none()) {
            return;
        }
        let cells: String = runs.iter().map(|run| cell(run, key)).collect();
        rows.push_str(&format!("<tr><td>{what}</td>{cells}</tr>"));
    };
    for (what, key) in [
        ("completed", "completed"),
        ("failed", "failed"),
        ("duration, s", "duration"),
        ("requests/s", "request_throughput"),
        ("input tokens/s", "input_throughput"),
        ("output tokens/s", "output_throughput"),
        ("goodput, requests/s", "request_goodput"),
        ("share within goals", "goodput_share"),
        ("most in flight", "max_concurrent_requests"),
        ("load generator, share of a core", "client_processor_share"),
    ] {
        row(what, key);
    }
    let percentiles = runs.first().map(table::percentiles).unwrap_or_default();
    // Without a schedule there is no other time than that of the sending.
    let is_late = runs.iter().any(table::has_send_delay);
    for (metric, what) in table::METRICS.into_iter().filter(|(metric, _)| is_late || !table::is_from_schedule(metric)) {
        for part in ["mean", "median"].into_iter().chain(percentiles.iter().map(String::as_str)).chain(["max"]) {
            row(&format!("{what}: {part}, ms"), &format!("{part}_{metric}_ms"));
        }
    }
    format!(
        "<section><h2>All figures</h2><p>In brackets: 95 % confidence intervals.</p><div class=\"scroll\"><table><thead><tr><th></th>{head}</tr></thead>\
         <tbody>{rows}</tbody></table></div></section>\n"
    )
}

fn cell(run: &Run, key: &str) -> String {
    let side = |value: Option<f64>| value.map_or("?".to_owned(), short);
    let interval = match run.interval(key) {
        (None, None) => String::new(),
        (low, high) => format!(" <small>[{}, {}]</small>", side(low), side(high)),
    };
    run.number(key).map_or("<td>-</td>".to_owned(), |value| format!("<td>{}{interval}</td>", short(value)))
}

/// Errors, warnings and notes.
fn doubts(runs: &[Run]) -> String {
    let mut lines = Vec::new();
    for run in runs {
        let of = format!("{}, {}", run.name(), run.load());
        let errors = run.0.get("errors_by_kind").and_then(Value::as_object);
        lines.extend(
            errors.into_iter().flatten().map(|(kind, count)| format!("{of}: {count} requests failed with {kind}")),
        );
        lines.extend(run.strings("warnings").into_iter().map(|warning| format!("{of}: {warning}")));
    }
    let notes: std::collections::BTreeSet<String> = runs.iter().flat_map(|run| run.strings("notes")).collect();
    if lines.is_empty() && notes.is_empty() {
        return String::new();
    }
    let warnings: String = lines.iter().map(|line| format!("<div class=\"warn\">{}</div>", escape(line))).collect();
    let notes: String = notes.iter().map(|note| format!("<p>{}</p>", escape(note))).collect();
    format!("<section><h2>What to know</h2>{warnings}{notes}</section>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_need_nothing_from_elsewhere_and_cannot_be_broken_out_of() {
        let run = json!({
            "label": "</script><b>x", "request_rate": "inf", "max_concurrency": 2, "output_throughput": 10.0, "mean_ttft_ms": 1.0,
            "distributions": {"ttft": [1.0, 2.0]}, "warnings": ["a < b"], "confidence_intervals_95": {"mean_ttft_ms": [0.5, null]},
        });
        let runs = [Run(run.as_object().expect("an object").clone())];
        let source = json!({"ratios": {"x": {"ratio": 1.0, "interval_95": [0.9, 1.1], "verdict": "no difference"}}});
        let page = page(&runs, &source);
        assert_eq!(page.matches("</script>").count(), 2, "the data and the script end once each");
        assert!(page.contains("&lt;/script&gt;&lt;b&gt;x") && page.contains("a &lt; b") && page.contains("[0.500, ?]"));
        for outside in ["src=", "@import", "url(", "fetch(", "https://"] {
            assert!(!page.contains(outside), "{outside}");
        }
        let links = page.matches("http://").count();
        assert_eq!(links, page.matches("http://www.w3.org/2000/svg").count(), "only the name of SVG");
    }
}
