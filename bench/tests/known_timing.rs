//! Measured figures are those of a server whose timing is known, also when it stalls.

mod known;

use std::sync::Arc;
use std::time::Duration;

use known::{KnownServer, Timing};
use sconce_bench::commands::serve::ServeArgs;
use sconce_bench::http::Endpoint;
use sconce_bench::load::{self, ApiKind, Arrivals, Live, Load, LoadOutcome, RequestShape, Turn};
use sconce_bench::stats;

/// Far above what the generator adds, far below what would be a wrong figure: tests share their machine.
const TOLERANCE_MS: f64 = 4.0;

fn load(server: &KnownServer, count: usize, arrivals: Arrivals) -> LoadOutcome {
    let endpoint = Endpoint::resolve(&format!("http://{}", server.address), &[]).expect("an address");
    let shape = RequestShape {
        kind: ApiKind::Chat,
        path: "/v1/chat/completions".into(),
        model: "known".into(),
        ignore_eos: true,
        max_tokens_field: "max_tokens",
        extra: serde_json::Map::new(),
        timeout: Duration::from_secs(20),
    };
    let turn = Turn { messages: vec![("user".into(), "hello".into())], output_tokens: Some(4), ..Turn::default() };
    let conversations = Arc::new(vec![vec![turn]; count]);
    let load =
        Load { endpoint, shape, conversations, arrivals, duration: None, cycle: false, keep_text: false, workers: 2 };
    load::run(load, &Arc::new(Live::default())).expect("the load runs")
}

fn milliseconds(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.map(|seconds| seconds * 1000.0).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// The medians of what was measured and of what was written: tails of a machine that others use too are theirs.
#[track_caller]
fn agrees(what: &str, measured: &[f64], truth: &[f64]) {
    assert_eq!(measured.len(), truth.len(), "{what}");
    let (found, real) = (stats::quantile(measured, 0.5), stats::quantile(truth, 0.5));
    assert!((found - real).abs() < TOLERANCE_MS, "{what}: measured {found:.3} ms, written {real:.3} ms");
}

#[test]
fn figures_are_those_of_the_server() {
    let timing = Timing { first: Duration::from_millis(60), gap: Duration::from_millis(15), tokens: 12, stall: None };
    for concurrency in [1, 16] {
        let server = KnownServer::start("127.0.0.1:0", timing);
        let outcome = load(&server, 3 * concurrency, Arrivals::Closed { concurrency, ramp: Duration::ZERO });
        assert!(outcome.records.iter().all(|record| record.is_good() && record.output_tokens == Some(12)));
        assert_eq!(outcome.in_flight_max, concurrency);
        let truths = server.truths();
        agrees(
            "TTFT",
            &milliseconds(outcome.records.iter().filter_map(load::Record::ttft_s)),
            &milliseconds(truths.iter().map(|truth| (truth.written[0] - truth.came).as_secs_f64())),
        );
        agrees(
            "ITL",
            &milliseconds(outcome.records.iter().flat_map(|record| &record.gaps_s).map(|gap| f64::from(*gap))),
            &milliseconds(
                truths.iter().flat_map(|truth| truth.written.windows(2)).map(|pair| (pair[1] - pair[0]).as_secs_f64()),
            ),
        );
    }
}

/// A server that stands still for half a second, asked 100 times a second. Whoever counts from when requests should have
/// gone out sees it in a fifth of them; a few clients that wait for their answers would meet it once each.
#[test]
fn a_stall_cannot_hide() {
    let stall = Some((Duration::from_millis(300), Duration::from_millis(800)));
    let timing = Timing { first: Duration::from_millis(5), gap: Duration::from_millis(1), tokens: 3, stall };
    let server = KnownServer::start("127.0.0.1:0", timing);
    let offsets_s: Vec<f64> = (0..120).map(|at| f64::from(at) / 100.0).collect();
    // With room for four in flight requests go out late, and the wait is part of what users see.
    let outcome = load(&server, 120, Arrivals::Open { offsets_s: offsets_s.clone(), in_flight_max: Some(4) });
    let from_send = milliseconds(outcome.records.iter().filter_map(load::Record::ttft_s));
    let from_intended =
        milliseconds(outcome.records.iter().filter_map(|record| Some(record.ttft_s()? + record.send_delay_s())));
    assert!(outcome.records.iter().all(load::Record::is_good));
    // Every request that came in the stall waited for its end: half of them over 250 ms.
    let late = from_intended.iter().filter(|wait| **wait > 250.0).count();
    assert!((24..=70).contains(&late), "{late} of 120 waited over 250 ms");
    // From the sending only the four that were in flight look slow.
    let seen = from_send.iter().filter(|wait| **wait > 250.0).count();
    assert!(seen <= 8, "{seen}");
    // Without a limit requests go out at their times, and both figures see the same.
    let server = KnownServer::start("127.0.0.1:0", timing);
    let outcome = load(&server, 120, Arrivals::Open { offsets_s, in_flight_max: None });
    let delays = milliseconds(outcome.records.iter().map(load::Record::send_delay_s));
    assert!(stats::quantile(&delays, 0.5) < TOLERANCE_MS, "sent {:.2} ms late", stats::quantile(&delays, 0.5));
    let truth = milliseconds(server.truths().iter().map(|truth| (truth.written[0] - truth.came).as_secs_f64()));
    agrees("TTFT", &milliseconds(outcome.records.iter().filter_map(load::Record::ttft_s)), &truth);
}

/// What a run of many streams found, as (figure, share, measured, written) in milliseconds, where they differ by more than
/// 1 % and 0.5 ms.
fn tails_that_differ(outcome: &LoadOutcome, server: &KnownServer) -> Vec<String> {
    let truths = server.truths();
    let ttft = milliseconds(outcome.records.iter().filter_map(load::Record::ttft_s));
    let itl = milliseconds(outcome.records.iter().flat_map(|record| &record.gaps_s).map(|gap| f64::from(*gap)));
    let ttft_written = milliseconds(truths.iter().map(|truth| (truth.written[0] - truth.came).as_secs_f64()));
    let gaps = truths.iter().flat_map(|truth| truth.written.windows(2));
    let itl_written = milliseconds(gaps.map(|pair| (pair[1] - pair[0]).as_secs_f64()));
    assert_eq!((ttft.len(), itl.len()), (ttft_written.len(), itl_written.len()));
    let mut found = Vec::new();
    for (what, measured, written) in [("TTFT", ttft, ttft_written), ("ITL", itl, itl_written)] {
        for share in [0.5, 0.9, 0.99] {
            let (seen, real) = (stats::quantile(&measured, share), stats::quantile(&written, share));
            println!("{what} {:.0} %: measured {seen:.3} ms, written {real:.3} ms", share * 100.0);
            if (seen - real).abs() > (0.01 * real).max(0.5) {
                found.push(format!("{what} at {share}: measured {seen:.3} ms, written {real:.3} ms"));
            }
        }
    }
    found
}

/// Percentiles of many streams at once are those of the server, also while it stands still. The machine is shared and
/// interrupts either side between looking at the clock and the call that it looked for: one of a few tries must hold.
/// `SCONCE_BENCH_STREAMS=5000` runs it with as many.
#[cfg(target_os = "linux")]
#[test]
fn tails_are_those_of_the_server() {
    const TRIES: usize = 6;
    let streams: u32 = std::env::var("SCONCE_BENCH_STREAMS").map_or(200, |count| count.parse().expect("a number"));
    let (first_ms, gap_ms, tokens) = if streams > 1000 { (500, 250, 12) } else { (100, 20, 10) };
    let whole_ms = first_ms + gap_ms * (tokens as u64 - 1);
    // So many that all of them overlap, at an even pace.
    let offsets_s: Vec<f64> =
        (0..2 * streams).map(|at| f64::from(at) * whole_ms as f64 / 1000.0 / f64::from(streams)).collect();
    let stall = (Duration::from_millis(whole_ms), Duration::from_millis(whole_ms + 5 * gap_ms));
    for stall in [None, Some(stall)] {
        let timing =
            Timing { first: Duration::from_millis(first_ms), gap: Duration::from_millis(gap_ms), tokens, stall };
        let mut differ = Vec::new();
        for _ in 0..TRIES {
            let server = KnownServer::start("127.0.0.1:0", timing);
            let arrivals = Arrivals::Open { offsets_s: offsets_s.clone(), in_flight_max: None };
            let outcome = load(&server, offsets_s.len(), arrivals);
            assert!(outcome.records.iter().all(load::Record::is_good));
            assert!(outcome.reads.are_stamped(), "{} reads without a time", outcome.reads.unstamped);
            println!(
                "{} at once, stall {stall:?}, generator {:.2} cores, bytes had lain {:.3} ms (p99)",
                outcome.in_flight_max,
                outcome.processor_share,
                outcome.reads.lain_s(0.99) * 1000.0
            );
            differ = tails_that_differ(&outcome, &server);
            if differ.is_empty() {
                break;
            }
        }
        assert!(differ.is_empty(), "in {TRIES} tries, stall {stall:?}: {differ:?}");
    }
}

#[test]
fn a_server_that_is_not_there_is_named() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeArgs,
    }
    let cli =
        <Cli as clap::Parser>::try_parse_from(["x", "--url", "http://127.0.0.1:1", "--no-progress"]).expect("flags");
    let error = sconce_bench::commands::serve::run(&cli.serve).expect_err("nobody listens");
    assert!(
        error.message.contains("cannot connect") && error.message.contains("is the server running"),
        "{}",
        error.message
    );
}

/// The whole command: files are written, words are calibrated by the usage that the server reports.
#[test]
fn serve_measures_a_server_without_a_tokenizer() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeArgs,
    }
    let timing = Timing { first: Duration::from_millis(5), gap: Duration::from_millis(2), tokens: 8, stall: None };
    let server = KnownServer::start("127.0.0.1:0", timing);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (url, json, csv, html) = (format!("http://{}", server.address), path("a.json"), path("a.csv"), path("a.html"));
    let flags = [
        "x",
        "--url",
        &url,
        "--num-prompts",
        "10",
        "--concurrency",
        "4",
        "--repeats",
        "2",
        "--no-progress",
        "--goodput",
        "ttft:1000",
        "tpot:500",
        "--output-json",
        &json,
        "--output-csv",
        &csv,
        "--html",
        &html,
        "--output-len",
        "8",
        "--save-detailed",
    ];
    let cli = <Cli as clap::Parser>::try_parse_from(flags).expect("flags");
    let said = sconce_bench::commands::serve::run(&cli.serve).expect("it runs");
    assert!(said.text.contains("1.00 tokens a word") && said.text.contains("goodput"), "{}", said.text);
    let result: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).expect("JSON")).expect("JSON");
    assert_eq!((&result["completed"], &result["failed"]), (&20.into(), &0.into()));
    assert_eq!(result["model_id"], "known");
    assert_eq!(result["ttfts"].as_array().map(Vec::len), Some(20));
    assert!(result["confidence_intervals_95"]["output_throughput"][0].is_number());
    assert!(std::fs::read_to_string(&csv).expect("CSV").lines().count() == 2);
    assert!(std::fs::read_to_string(&html).expect("a page").contains("</html>"));
}
