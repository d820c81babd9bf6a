use super::*;
use crate::load::Failure;

/// Sent `delay` after it was meant, first token after `ttft`, then four tokens `gap` apart.
fn record(intended: f64, delay: f64, ttft: f64, gap: f64) -> Record {
    let first = intended + delay + ttft;
    Record {
        intended_s: intended,
        sent_s: intended + delay,
        first_s: Some(first),
        last_s: Some(first + 4.0 * gap),
        end_s: first + 4.0 * gap,
        gaps_s: vec![gap as f32; 4],
        input_tokens: Some(10),
        output_tokens: Some(5),
        chunks: 5,
        output_wanted: Some(5),
        ..Record::default()
    }
}

fn outcome(records: Vec<Record>, duration_s: f64) -> LoadOutcome {
    LoadOutcome {
        records,
        duration_s,
        in_flight_max: 3,
        workers: 1,
        processor_share: 0.1,
        processor_share_busiest: 0.1,
        lags_s: vec![0.0001; 100],
        reads: Reads::default(),
    }
}

fn run(outcomes: &[LoadOutcome], goals: &[&str]) -> Run {
    let goals = goals.iter().map(|goal| parse_goals(goal).expect("a goal")).collect();
    let options = MeasureOptions { percentiles: vec![90.0, 99.0], goals, detailed: true, seed: 1 };
    Run(measure(outcomes, &options))
}

#[track_caller]
fn close(run: &Run, key: &str, expected: f64) {
    let found = run.number(key).unwrap_or_else(|| panic!("{key} is missing"));
    assert!((found - expected).abs() < 1e-3 * expected.abs().max(1.0), "{key}: {found}, expected {expected}");
}

#[test]
fn figures_are_those_of_the_records() {
    let mut failed = record(0.0, 0.0, 0.1, 0.01);
    failed.failure = Some(Failure { kind: "http_503".into(), message: "busy".into() });
    let records = vec![record(0.0, 0.0, 0.1, 0.02), record(1.0, 0.5, 0.3, 0.04), failed];
    let run = run(&[outcome(records, 2.0)], &["ttft:350", "tpot:30"]);
    for (key, value) in [
        ("completed", 2.0),
        ("failed", 1.0),
        ("duration", 2.0),
        ("total_input_tokens", 20.0),
        ("total_output_tokens", 10.0),
        ("request_throughput", 1.0),
        ("output_throughput", 5.0),
        ("total_token_throughput", 15.0),
        ("mean_ttft_ms", 200.0),
        ("median_ttft_ms", 200.0),
        ("p90_ttft_ms", 280.0),
        ("max_ttft_ms", 300.0),
        ("std_ttft_ms", 100.0),
        ("mean_tpot_ms", 30.0),
        ("mean_itl_ms", 30.0),
        ("mean_e2el_ms", 320.0),
        ("max_ttft_intended_ms", 800.0),
        ("max_send_delay_ms", 500.0),
        // The second misses its pace; the first is good.
        ("request_goodput", 0.5),
        ("goodput_share", 1.0 / 3.0),
    ] {
        close(&run, key, value);
    }
    assert_eq!(run.0["errors_by_kind"], json!({"http_503": 1}));
    assert_eq!(run.0["ttfts"].as_array().map(Vec::len), Some(3));
    assert_eq!(run.0["distributions"]["ttft"].as_array().map(Vec::len), Some(201));
    assert_eq!(run.strings("warnings"), Vec::<String>::new());
}

#[test]
fn goals_count_from_the_intended_time_too() {
    let run = run(&[outcome(vec![record(0.0, 1.0, 0.1, 0.01)], 2.0)], &["ttft:200"]);
    close(&run, "request_goodput", 0.5);
    close(&run, "request_goodput_intended", 0.0);
}

#[test]
fn repeats_bound_the_rates() {
    let each = |duration| outcome(vec![record(0.0, 0.0, 0.1, 0.01); 10], duration);
    let run = run(&[each(1.0), each(1.1), each(0.9)], &[]);
    close(&run, "request_throughput", 10.0);
    let (low, high) = run.interval("request_throughput");
    assert!(low.is_some_and(|low| low > 7.0 && low < 10.0) && high.is_some_and(|high| high < 13.0), "{low:?} {high:?}");
    // Thirty equal samples cannot bound their p99 from above, and say so.
    let (_, high) = run.interval("p99_ttft_ms");
    assert_eq!(high, None);
}

#[test]
fn doubts_are_named() {
    let mut lumpy = record(0.0, 0.0, 0.1, 0.01);
    lumpy.output_tokens = Some(20);
    let mut silent = record(0.0, 0.0, 0.1, 0.01);
    silent.output_tokens = None;
    let mut slow = outcome(vec![lumpy, silent], 1.0);
    slow.processor_share_busiest = 0.95;
    slow.lags_s = vec![0.02; 10];
    let warnings = run(&[slow], &[]).strings("warnings").join("\n");
    for words in ["95 % of a core", "20.0 ms late", "without usage", "tokens on average", "not as long"] {
        assert!(warnings.contains(words), "{words} is missing in {warnings}");
    }
}

/// Where the kernel dates chunks a late generator changes no latency, unless it read several chunks at once.
#[test]
fn late_generators_are_judged_by_whose_times_stand() {
    let cases =
        [(None, 1, "too high by up to that"), (Some(0.02), 1, "latencies are right"), (Some(0.02), 2, "50.0 %")];
    for (lain_s, chunks, words) in cases {
        let mut late = outcome(vec![record(0.0, 0.0, 0.1, 0.01)], 1.0);
        late.lags_s = vec![0.02; 10];
        let lain = lain_s.map(std::time::Duration::from_secs_f64);
        late.reads.count(crate::http::Stamp { came_at: std::time::Instant::now(), lain }, chunks);
        let run = run(&[late], &[]);
        let warnings = run.strings("warnings").join("\n");
        assert!(warnings.contains(words), "{words} is missing in {warnings}");
        assert_eq!(run.text("client_times_from"), Some(if lain_s.is_some() { "kernel" } else { "reads" }));
    }
}

#[test]
fn goals_are_parsed() {
    assert_eq!(parse_goals("ttft:200").map(|goal| goal.most_ms), Ok(200.0));
    for wrong in ["ttft", "ttft:", "ttft:-1", "x:1", "tpot:inf"] {
        assert!(parse_goals(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn nothing_at_all_is_still_a_result() {
    let run = run(&[outcome(Vec::new(), 0.0)], &["e2el:1"]);
    close(&run, "completed", 0.0);
    close(&run, "median_itl_ms", 0.0);
}
