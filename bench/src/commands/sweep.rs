//! `sconce bench sweep`: a ladder of loads up to the knee, and the throughput-latency curve.

use clap::Args;
use sconce_vocabulary::error::{Error, Result};
use serde_json::{Value, json};

use super::serve::write_all;
use super::{Pace, Prepared, Said, prepare};
use crate::args::{LoadArgs, OutputArgs, ServerArgs, positive};
use crate::metrics::Run;
use crate::report::table;

/// Raise the load step by step and find how much the server takes within its goals.
///
/// --concurrency and --request-rate take a list. Without a list of rates but with --goodput, the highest rate at which
/// --goal-share of the requests meet the goals is searched for: doubling from --rate-start, then halving the interval.
/// Requests of an open loop are judged from when they should have been sent.
#[derive(Args, Debug, Clone)]
pub struct SweepArgs {
    /// Address of the server, e.g. http://127.0.0.1:8080
    #[arg(long, visible_alias = "base-url", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    #[command(flatten)]
    pub server: ServerArgs,
    /// Numbers of clients, e.g. 1,2,4,8 [default without rates and goals: 1,2,4,8,16,32]
    #[arg(long, visible_alias = "max-concurrency", value_name = "LIST", value_delimiter = ',', conflicts_with = "request_rate", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub concurrency: Vec<u32>,
    /// Rates in requests a second, e.g. 1,2,4
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = positive)]
    pub request_rate: Vec<f64>,
    /// Where the search for the knee begins, in requests a second
    #[arg(long, value_name = "RATE", default_value_t = 1.0, value_parser = positive)]
    pub rate_start: f64,
    /// Loads that the search may try
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub steps_max: u32,
    /// Share of requests that must meet the goals
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, value_parser = share)]
    pub goal_share: f64,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err(format!("'{text}' is no share above 0 and up to 1")),
    }
}

const CLIENTS_DEFAULT: [u32; 6] = [1, 2, 4, 8, 16, 32];
/// The search ends when it knows the knee this well.
const KNEE_RATIO: f64 = 1.05;

pub fn run(args: &SweepArgs) -> Result<Said> {
    if args.load.dataset == crate::args::DatasetName::Replay {
        return Err(Error::invalid("--dataset", "--dataset: a log has its own times; use bench serve --replay-speed"));
    }
    let searching = args.concurrency.is_empty() && args.request_rate.is_empty() && !args.load.goodput.is_empty();
    let clients = match (args.concurrency.is_empty(), args.request_rate.is_empty()) {
        (true, true) if !searching => CLIENTS_DEFAULT.to_vec(),
        _ => args.concurrency.clone(),
    };
    let most = clients.iter().max().copied().unwrap_or(1) as usize;
    let prepared = prepare(&args.url, &args.server, &args.load, &args.output, most)?;
    prepared.warm_up()?;
    let mut points = Vec::new();
    let knee = if searching {
        let measure = |rate| {
            let point = one(&prepared, Pace::rate(rate), points.len())?;
            let kept = keeps(&point, args.goal_share);
            points.push(point);
            Ok(kept)
        };
        search(args.rate_start, args.steps_max, measure)?
    } else {
        let paces = clients.iter().map(|count| Pace::clients(*count as usize));
        for pace in paces.chain(args.request_rate.iter().map(|rate| Pace::rate(*rate))) {
            points.push(one(&prepared, pace, points.len())?);
        }
        let good = points.iter().filter(|point| keeps(point, args.goal_share));
        good.filter_map(|point| point.number("request_throughput"))
            .fold(None, |most: Option<f64>, rate| Some(most.map_or(rate, |most| most.max(rate))))
    };
    points.sort_by(|left, right| load_of(left).total_cmp(&load_of(right)));
    let list: Vec<Value> = points.iter().map(|point| Value::Object(point.0.clone())).collect();
    let json = json!({"kind": "sweep", "knee_requests_per_s": knee, "goal_share": args.goal_share, "points": list});
    write_all(&args.output, &points, &json)?;
    let mut text = table::ladder(&points);
    if !args.load.goodput.is_empty() {
        let percent = args.goal_share * 100.0;
        text.push_str(&match knee {
            // Where the highest load holds, the knee has not been seen.
            Some(rate) => {
                let held = points.last().is_some_and(|last| keeps(last, args.goal_share));
                let least = if held { "at least " } else { "" };
                format!("\nknee: {least}{rate:.2} requests/s with {percent:.0} % of requests within the goals\n")
            }
            None => format!("\nknee: none of these loads has {percent:.0} % of requests within the goals\n"),
        });
    }
    Ok(Said::well(text))
}

fn keeps(point: &Run, goal_share: f64) -> bool {
    point.number("goodput_share").is_some_and(|kept| kept >= goal_share)
}

fn load_of(point: &Run) -> f64 {
    point.number("request_rate").or_else(|| point.number("max_concurrency")).unwrap_or(f64::MAX)
}

fn one(prepared: &Prepared, pace: Pace, repeat: usize) -> Result<Run> {
    let what = match (pace.rate, pace.concurrency) {
        (Some(rate), _) => format!("{rate:.3} requests/s"),
        (None, clients) => format!("{} clients", clients.unwrap_or(1)),
    };
    let outcome = prepared.run(pace, repeat as u64, &what)?;
    Ok(prepared.result(pace, &[outcome]))
}

/// The highest rate that `holds`, by doubling and then halving the interval (geometrically); none when even far below
/// `start` nothing holds.
fn search(start: f64, steps_max: u32, mut holds: impl FnMut(f64) -> Result<bool>) -> Result<Option<f64>> {
    let (mut good, mut bad) = (None, None);
    for _ in 0..steps_max {
        let rate = match (good, bad) {
            (None, None) => start,
            (Some(low), None) => low * 2.0,
            (None, Some(high)) => high / 4.0,
            (Some(low), Some(high)) if high / low > KNEE_RATIO => f64::sqrt(low * high),
            (Some(_), Some(_)) => break,
        };
        if holds(rate)? {
            good = Some(rate);
        } else {
            bad = Some(rate);
        }
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_the_knee() {
        for (start, knee) in [(1.0, 37.0), (64.0, 3.0), (5.0, 5.2)] {
            let found = search(start, 20, |rate| Ok(rate <= knee)).expect("a search").expect("a knee");
            assert!(found <= knee && found * KNEE_RATIO >= knee, "{start} {knee}: {found}");
        }
        assert_eq!(search(1.0, 5, |_| Ok(false)).expect("a search"), None);
        let mut tries = 0;
        let unbounded = search(1.0, 4, |_| {
            tries += 1;
            Ok(true)
        });
        assert_eq!((unbounded.expect("a search"), tries), (Some(8.0), 4));
    }
}
