//! `sconce route`: ask a server what it would decide, a log what another policy would have decided, and outcomes what is
//! hard.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reqwest::{Method, RequestBuilder};
use sconce_route::replay::{parse_log, replay};
use sconce_route::{Policy, Rule};
use serde_json::{Value, json};

use super::ask::ask;
use super::outcomes::{self, EvalArgs, FitArgs};
use super::output;
use crate::config::env;
use crate::error::{Error, Result};

#[derive(Args)]
pub struct RouteArgs {
    #[command(subcommand)]
    command: RouteCommand,
}

#[derive(Subcommand)]
enum RouteCommand {
    /// Ask a running server which member would answer a prompt, and why; nothing is sent to any member
    Explain(ExplainArgs),
    /// Decide a log of decisions again under another policy, and compare
    Replay(ReplayArgs),
    /// Learn from recorded outcomes which prompts are hard, for routes with policy score
    Fit(FitArgs),
    /// Judge a fit, or what is built in, on recorded outcomes: APGR, CPT50, CPT80
    Eval(EvalArgs),
}

#[derive(Args)]
struct ExplainArgs {
    /// The route
    #[arg(value_name = "ROUTE")]
    route: String,
    /// What would be asked
    #[arg(value_name = "PROMPT", default_value = "Hello")]
    prompt: String,
    /// Where the server is
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Where the request may be worked on: local, or regions with commas between them
    #[arg(long, value_name = "PLACES")]
    stay: Option<String>,
    /// The key to show, where the server wants one
    #[arg(long, value_name = "KEY", env = env::SCONCE_API_KEY.name, hide_env_values = true)]
    api_key: Option<String>,
}

#[derive(Args)]
struct ReplayArgs {
    /// The file of [ledger] decisions
    #[arg(value_name = "FILE")]
    log: PathBuf,
    /// priority, weighted, least_wait or cheapest, or a whole policy as TOML
    #[arg(long, value_name = "POLICY", value_parser = policy)]
    policy: Policy,
    /// Members whose predicted wait is longer stand behind the others
    #[arg(long, value_name = "MS")]
    spill_wait_ms: Option<u64>,
}

pub async fn route(args: RouteArgs) -> Result<()> {
    let text = match args.command {
        RouteCommand::Explain(args) => explained(&asked(&args).await?),
        RouteCommand::Replay(args) => replayed(&args)?,
        RouteCommand::Fit(args) => outcomes::fit(&args).await?,
        RouteCommand::Eval(args) => outcomes::eval(&args).await?,
    };
    // Nobody reads any more: there is no one to tell either.
    let _ = output::print(&text);
    Ok(())
}

fn policy(text: &str) -> Result<Policy, String> {
    let rule = match text {
        "priority" => Rule::Priority,
        "weighted" => Rule::Weighted,
        "least_wait" => Rule::LeastWait,
        "cheapest" => Rule::Cheapest,
        _ => {
            let policy: Policy = toml::from_str(text).map_err(|why| why.message().to_owned())?;
            policy.check()?;
            return Ok(policy);
        }
    };
    Ok(Policy::new(rule))
}

fn replayed(args: &ReplayArgs) -> Result<String> {
    let path = args.log.display();
    let wrong = |why: String| Error::invalid("FILE", format!("the decisions in {path}: {why}"));
    let text = std::fs::read_to_string(&args.log).map_err(|why| wrong(why.to_string()))?;
    let log = parse_log(&text).map_err(wrong)?;
    let spill_wait_ms = args.spill_wait_ms.or(args.policy.spill_wait_ms);
    Ok(replay(&log, &Policy { spill_wait_ms, ..args.policy.clone() }).to_string())
}

async fn asked(args: &ExplainArgs) -> Result<Value> {
    let body = json!({"model": args.route, "messages": [{"role": "user", "content": args.prompt}]});
    let with_body = |request: RequestBuilder| {
        let request = request.json(&body);
        match &args.stay {
            Some(stay) => request.header("x-sconce-stay", stay),
            None => request,
        }
    };
    ask((&args.url, args.api_key.as_deref()), (Method::POST, "/v1/route/explain"), with_body).await
}

fn explained(answer: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (route, policy, stay) = (word(&answer["route"]), word(&answer["policy"]), word(&answer["stay"]));
    let mut text = format!("{route}: {policy}, about {} prompt tokens, may go {stay}\n", answer["prompt_tokens"]);
    for (place, candidate) in (1..).zip(answer["candidates"].as_array().into_iter().flatten()) {
        text += &format!("{place}. {}  {}", word(&candidate["member"]), word(&candidate["why"]));
        if let Some(usd) = candidate["estimate_usd"].as_f64() {
            text += &format!("; about ${usd:.6}");
        }
        if let Some(wait) = candidate["predicted_wait_ms"].as_u64() {
            text += &format!("; waits {wait} ms");
        }
        text.push('\n');
    }
    for excluded in answer["excluded"].as_array().into_iter().flatten() {
        text += &format!("-  {}  {}\n", word(&excluded["member"]), word(&excluded["why"]));
    }
    if let Some(error) = answer["error"].as_str() {
        text += &format!("nobody would answer: {error}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_words_or_toml() {
        assert_eq!(policy("cheapest").expect("a word").rule, Rule::Cheapest);
        let whole = policy("spill_wait_ms = 5\n[rule.score]\nthresholds = [0.5]\n").expect("TOML");
        assert_eq!((whole.rule, whole.spill_wait_ms), (Rule::Score { thresholds: vec![0.5] }, Some(5)));
        assert!(policy("best").is_err());
    }

    #[test]
    fn an_explanation_is_read_by_people() {
        let answer = json!({
            "route": "smart", "policy": "cheapest", "prompt_tokens": 5, "stay": "local",
            "candidates": [{"member": "home", "why": "cheapest", "estimate_usd": 0.001, "predicted_wait_ms": 7}],
            "excluded": [{"member": "cloud", "why": "is elsewhere"}],
            "error": null,
        });
        assert_eq!(
            explained(&answer),
            "smart: cheapest, about 5 prompt tokens, may go local\n1. home  cheapest; about $0.001000; waits 7 ms\n\
             -  cloud  is elsewhere\n"
        );
    }
}
