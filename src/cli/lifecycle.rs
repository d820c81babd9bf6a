//! `sconce ps`, `sconce load`, `sconce stop` and `sconce reload`: the models and the configuration of a running server.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::ask::ask;
use super::output;
use crate::device::fit::human_bytes;
use crate::error::Result;

/// Which server is meant.
#[derive(Args)]
pub struct ServerArgs {
    /// Address of the server
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Key of the server; for load, stop and reload one with admin = true
    #[arg(long, value_name = "KEY", env = crate::config::env::SCONCE_API_KEY.name, hide_env_values = true)]
    api_key: Option<String>,
}

#[derive(Args)]
pub struct PsArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// JSON in place of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct ModelArgs {
    /// A name that the server knows, see `sconce ps`
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// JSON in place of lines
    #[arg(long)]
    json: bool,
}

pub async fn ps(args: &PsArgs) -> Result<()> {
    let answer = asked(&args.server, Method::GET, "/v1/models/status", None).await?;
    let text = if args.json { format!("{answer:#}\n") } else { table(&answer, now_s()) };
    // Nobody reads any more: there is no one to tell either.
    let _ = output::print(&text);
    Ok(())
}

pub async fn load(args: &ModelArgs) -> Result<()> {
    for model in &args.models {
        let body = json!({"model": model});
        let status = asked(&args.server, Method::POST, "/v1/models/load", Some(&body)).await?;
        let seconds = status["load_time_ms"].as_f64().unwrap_or(0.0) / 1000.0;
        output::line(&format!("{} is loaded ({seconds:.2} s, {})", word(&status["id"]), memory(&status)));
    }
    Ok(())
}

pub async fn stop(args: &ModelArgs) -> Result<()> {
    for model in &args.models {
        let body = json!({"model": model});
        let status = asked(&args.server, Method::POST, "/v1/models/unload", Some(&body)).await?;
        output::line(&format!("{} is {}", word(&status["id"]), word(&status["state"])));
    }
    Ok(())
}

/// Prints what changed, one line each.
pub async fn reload(args: &ReloadArgs) -> Result<()> {
    let answer = asked(&args.server, Method::POST, "/v1/reload", Some(&json!({}))).await?;
    let text = if args.json { format!("{answer:#}\n") } else { changes(&answer) };
    // Nobody reads any more: there is no one to tell either.
    let _ = output::print(&text);
    Ok(())
}

fn changes(answer: &Value) -> String {
    let marked = [("+ ", "added"), ("- ", "removed"), ("~ ", "changed"), ("needs a restart: ", "needs_restart")];
    let lines = marked.iter().flat_map(|(mark, list)| {
        let names = answer[*list].as_array().into_iter().flatten();
        names.map(move |name| format!("{mark}{}\n", word(name)))
    });
    let text: String = lines.collect();
    if text.is_empty() { "nothing changed\n".to_owned() } else { text }
}

async fn asked(server: &ServerArgs, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
    let with_body = |request: RequestBuilder| match body {
        Some(body) => request.json(body),
        None => request,
    };
    ask((&server.url, server.api_key.as_deref()), (method, path), with_body).await
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn memory(status: &Value) -> String {
    let of = |part: &str| status["memory"][part].as_u64().unwrap_or(0);
    human_bytes(of("weights_bytes") + of("kv_bytes") + of("step_bytes"))
}

/// One line a model, names left and figures right.
fn table(answer: &Value, now_s: u64) -> String {
    let heads = ["MODEL", "STATE", "WEIGHTS", "KV", "RUNNING", "WAITING", "USED", "UNLOADS"];
    let mut lines = vec![heads.map(str::to_owned)];
    for status in answer["data"].as_array().into_iter().flatten() {
        let figure = |part: &Value| part.as_u64().unwrap_or(0);
        let bytes = |part: &str| match figure(&status["memory"][part]) {
            0 => "-".to_owned(),
            bytes => human_bytes(bytes),
        };
        let state = match (figure(&status["bytes_done"]) * 100).checked_div(figure(&status["bytes_total"])) {
            Some(percent) => format!("{} {percent} %", word(&status["state"])),
            None => word(&status["state"]).to_owned(),
        };
        let used = status["last_used"].as_u64().map_or("never".to_owned(), |at| ago(now_s.saturating_sub(at), " ago"));
        let unloads = match (status["pinned"].as_bool(), status["unloads_at"].as_u64()) {
            (Some(true), _) => "pinned".to_owned(),
            (_, Some(at)) => format!("in {}", ago(at.saturating_sub(now_s), "")),
            _ => "-".to_owned(),
        };
        lines.push([
            word(&status["id"]).to_owned(),
            state,
            bytes("weights_bytes"),
            bytes("kv_bytes"),
            figure(&status["requests_running"]).to_string(),
            (figure(&status["requests_waiting"]) + figure(&status["requests_waiting_for_load"])).to_string(),
            used,
            unloads,
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..heads.len()).map(width).collect();
    let padded = |line: &[String; 8]| {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            2..=5 => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(padded).collect()
}

fn ago(seconds: u64, suffix: &str) -> String {
    let text = match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    };
    text + suffix
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_by_people() {
        let answer = json!({
            "added": ["route a"], "removed": [], "changed": ["member b", "route c"], "keys": 1, "needs_restart": ["web"],
        });
        assert_eq!(changes(&answer), "+ route a\n~ member b\n~ route c\nneeds a restart: web\n");
        assert_eq!(changes(&json!({"added": [], "keys": 1})), "nothing changed\n");
    }

    #[test]
    fn a_table_is_read_by_people() {
        let memory = json!({"weights_bytes": 94_000_000, "kv_bytes": 0, "step_bytes": 1});
        let answer = json!({"data": [
            {"id": "small", "state": "ready", "memory": memory, "requests_running": 2, "requests_waiting": 1,
             "requests_waiting_for_load": 0, "last_used": 95, "unloads_at": 400, "pinned": false},
            {"id": "b", "state": "loading", "bytes_done": 1, "bytes_total": 4, "memory": {}, "pinned": true},
        ]});
        let table = table(&answer, 100);
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..2], ["small", "ready"]);
        assert!(table.contains("5 s ago") && table.contains("in 5 min"), "{table}");
        assert_eq!(lines[2][..4], ["b", "loading", "25", "%"]);
        assert!(table.lines().nth(2).is_some_and(|line| line.ends_with("never    pinned")), "{table}");
    }
}
