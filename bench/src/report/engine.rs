//! The parts of a page that are about the engine alone: what was measured of each case, and where a step's time goes.

use serde_json::Value;

use super::html::escape;
use super::table::short;

fn cases(source: &Value) -> &[Value] {
    source.get("engine").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The model, where there is one.
pub fn title(source: &Value) -> Option<String> {
    let model = cases(source).first()?.get("model")?.as_str()?;
    Some(format!("{}, the engine alone", model.rsplit('/').next().unwrap_or(model)))
}

/// The machine in one line.
pub fn lead(source: &Value) -> String {
    let Some(machine) = source.get("hardware").filter(|machine| machine.is_object()) else { return String::new() };
    let giga = |key: &str| machine.get(key).and_then(Value::as_f64).map(|rate| short(rate / 1e9));
    let mut parts = vec![machine["processor"].as_str().unwrap_or("unknown processor").to_owned()];
    parts.extend(machine["threads"].as_u64().map(|threads| format!("{threads} threads")));
    parts.extend(giga("read_bytes_per_s").map(|rate| format!("memory read {rate} GB/s")));
    for (key, what) in [("f32_per_s", "f32"), ("bf16_per_s", "bf16"), ("int8_per_s", "int8")] {
        parts.extend(giga(key).map(|rate| format!("{what} products {rate} GOP/s")));
    }
    format!("<p>{}</p>\n", escape(&parts.join(" · ")))
}

/// Rates of all cases, then the operations of each.
pub fn tables(source: &Value) -> String {
    let number = |case: &Value, key: &str| case.get(key).and_then(Value::as_f64);
    let mut rows = String::new();
    for case in cases(source) {
        let mut row = format!("<tr><td>{}</td>", escape(case["case"].as_str().unwrap_or_default()));
        for part in ["prefill", "decode"] {
            let rate = number(case, &format!("{part}_tokens_per_s"));
            let limit = number(case, &format!("{part}_limit_tokens_per_s"));
            let share = rate.zip(limit).map(|(rate, limit)| format!("{:.0} %", rate / limit * 100.0));
            for cell in [rate.map(short), share] {
                row.push_str(&format!("<td>{}</td>", cell.unwrap_or_else(|| "-".to_owned())));
            }
        }
        rows.push_str(&row);
        rows.push_str("</tr>");
    }
    let mut text = format!(
        "<section><h2>Rates</h2><div class=\"scroll\"><table><thead><tr><th>case</th><th>prefill, tokens/s</th><th>of limit</th>\
         <th>decode, tokens/s</th><th>of limit</th></tr></thead><tbody>{rows}</tbody></table></div></section>\n"
    );
    let breakdowns: String =
        cases(source).iter().flat_map(|case| ["prefill", "decode"].map(|part| breakdown(case, part))).collect();
    if !breakdowns.is_empty() {
        text.push_str(&format!(
            "<section><h2>Where the time of a step goes</h2><div class=\"charts\">{breakdowns}</div></section>\n"
        ));
    }
    text
}

/// One part of a case, longest operation first.
fn breakdown(case: &Value, part: &str) -> String {
    let list = case.get(format!("{part}_operations")).and_then(Value::as_array);
    let mut lines: Vec<&Value> = list.into_iter().flatten().collect();
    if lines.is_empty() {
        return String::new();
    }
    let number = |line: &Value, key: &str| line.get(key).and_then(Value::as_f64).unwrap_or(0.0);
    lines.sort_by(|left, right| number(right, "share").total_cmp(&number(left, "share")));
    let rows: String = lines
        .iter()
        .map(|line| {
            let percent = number(line, "share") * 100.0;
            let limit = line.get("limit_share").and_then(Value::as_f64);
            format!(
                "<tr><td>{}</td><td>{:.3}</td><td class=\"bar\"><i style=\"width:{percent:.1}%\"></i><b>{percent:.1} %</b></td><td>{}</td></tr>",
                escape(line["operation"].as_str().unwrap_or_default()),
                number(line, "ms_per_step"),
                limit.map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0)),
            )
        })
        .collect();
    format!(
        "<figure><figcaption>{} of {}</figcaption><table class=\"parts\"><thead><tr><th>operation</th><th>ms a step</th><th>share</th>\
         <th>of limit</th></tr></thead><tbody>{rows}</tbody></table></figure>",
        if part == "prefill" { "Prefill" } else { "Decode" },
        escape(case["case"].as_str().unwrap_or_default()),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_stand_longest_first() {
        let line = |name: &str, share: f64| json!({"operation": name, "ms_per_step": 1.0, "share": share, "limit_share": null});
        let case = json!({
            "model": "a/<b>.gguf", "case": "tg4", "decode_tokens_per_s": 50.0, "decode_limit_tokens_per_s": 100.0,
            "prefill_operations": [], "decode_operations": [line("qkv", 0.25), line("gate-up", 0.75)],
        });
        let source = json!({"engine": [case], "hardware": {"processor": "P", "threads": 2, "read_bytes_per_s": 3e10}});
        assert_eq!(title(&source).as_deref(), Some("<b>.gguf, the engine alone"));
        assert!(lead(&source).contains("P · 2 threads · memory read 30 GB/s"), "{}", lead(&source));
        let text = tables(&source);
        assert!(text.contains("50 %") && text.contains("Decode of tg4") && !text.contains("Prefill of"), "{text}");
        assert!(text.find("gate-up").expect("there") < text.find("qkv").expect("there"));
        assert_eq!(title(&json!({})), None);
    }
}
