//! The exporter against collectors: one that takes everything, one that is away, and one that never answers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sconce_otel::{Attempted, Counts, Ended, Exporter, Peer, Settings};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, channel};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const PATIENCE: Duration = Duration::from_secs(10);

/// Path, headers and body of each post, in the order of their coming.
type Posts = Receiver<(String, String, Value)>;

async fn collector(status: &'static str) -> (String, Posts) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let (posts, seen) = channel(64);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let posts = posts.clone();
            tokio::spawn(async move {
                while let Some(post) = read_post(&mut stream).await {
                    let _ = posts.send(post).await;
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}");
                    stream.write_all(answer.as_bytes()).await.expect("it listens");
                }
            });
        }
    });
    (format!("http://{address}"), seen)
}

async fn read_post(stream: &mut TcpStream) -> Option<(String, String, Value)> {
    let mut bytes = Vec::new();
    loop {
        let head_end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = head_end {
            let head = String::from_utf8(bytes[..end].to_vec()).expect("text").to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.trim().parse::<usize>();
            let body_end = end + 4 + length.expect("a number");
            if bytes.len() >= body_end {
                let body = serde_json::from_slice(&bytes[end + 4..body_end]).expect("JSON");
                let path = head.split(' ').nth(1).expect("a path").to_owned();
                return Some((path, head, body));
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await.ok()? {
            0 => return None,
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

fn settings(pairs: &[(&str, &str)]) -> Settings {
    let pairs: BTreeMap<_, _> = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Settings::read(&pairs).expect("sound").expect("on")
}

fn ended() -> Ended {
    Ended {
        operation: "chat",
        model: "m".into(),
        member: Some("m-hosted".into()),
        id: "0a".into(),
        route: "/v1/chat/completions".into(),
        status: 200,
        finish: "stop",
        input_tokens: 30,
        cached_tokens: 16,
        output_tokens: 5,
        time_to_first_token_s: Some(0.2),
        duration_s: 1.0,
    }
}

/// The value of an attribute, whatever its type.
fn attribute(of: &Value, key: &str) -> Value {
    let all = of["attributes"].as_array().expect("a list");
    let found = all.iter().find(|one| one["key"] == key).map(|one| one["value"].as_object().expect("a value"));
    found.and_then(|value| value.values().next().cloned()).unwrap_or(Value::Null)
}

#[tokio::test]
async fn a_request_is_one_span_and_counts_in_the_metrics() {
    let (url, mut posts) = collector("200 OK").await;
    let settings = settings(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret"),
        ("OTEL_SERVICE_NAME", "test"),
    ]);
    let exporter = Exporter::start(settings, Some(("home".into(), 8080))).expect("it starts");
    let span = exporter.begin(Some(PARENT));
    let passed_on = span.parent("chat").traceparent();
    assert!(passed_on.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && passed_on.ends_with("-01"));
    span.end(ended());
    exporter.begin(None).end(Ended { status: 503, finish: "error", time_to_first_token_s: None, ..ended() });
    let not_sampled = exporter.begin(Some(&PARENT.replace("b7-01", "b7-00")));
    assert!(not_sampled.parent("chat").traceparent().ends_with("-00"));
    not_sampled.end(ended());
    exporter.flush(PATIENCE).await;
    assert_eq!(exporter.counts(), Counts { exported: 2, dropped: 0, failed: 0 });

    let (path, head, traces) = posts.recv().await.expect("traces");
    assert!(path == "/v1/traces" && head.contains("x-key: secret"), "{head}");
    let resource = &traces["resourceSpans"][0]["resource"];
    assert_eq!(attribute(resource, "service.name"), "test");
    let spans = spans_of(&traces);
    assert_eq!(spans.len(), 2, "who is not sampled is not there");
    let (good, bad) = (&spans[0], &spans[1]);
    assert_eq!((&good["name"], &good["kind"]), (&"chat m".into(), &2.into()));
    assert_eq!(good["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(good["parentSpanId"], "00f067aa0ba902b7");
    assert!(passed_on.contains(good["spanId"].as_str().expect("an id")));
    for (key, value) in [
        ("gen_ai.operation.name", Value::from("chat")),
        ("gen_ai.request.model", "m".into()),
        ("gen_ai.response.model", "m-hosted".into()),
        ("gen_ai.usage.input_tokens", "30".into()),
        ("gen_ai.usage.output_tokens", "5".into()),
        ("server.address", "home".into()),
        ("server.port", "8080".into()),
        ("error.type", Value::Null),
    ] {
        assert_eq!(attribute(good, key), value, "{key}");
    }
    assert_eq!(attribute(good, "gen_ai.response.finish_reasons")["values"][0]["stringValue"], "stop");
    let times = ["startTimeUnixNano", "endTimeUnixNano"].map(|key| good[key].as_str()?.parse::<u64>().ok());
    assert!(matches!(times, [Some(start), Some(end)] if end - start == 1_000_000_000), "{times:?}");
    assert_eq!((attribute(bad, "error.type"), &bad["status"]["code"]), ("503".into(), &2.into()));
    assert!(bad.get("parentSpanId").is_none());

    let (path, _, metrics) = posts.recv().await.expect("metrics");
    assert_eq!(path, "/v1/metrics");
    let metrics = metrics["resourceMetrics"][0]["scopeMetrics"][0]["metrics"].as_array().expect("metrics");
    let of = |name: &str| metrics.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} is there"));
    for (name, points, count) in [
        ("gen_ai.server.request.duration", 2, "2"),
        ("gen_ai.server.time_to_first_token", 1, "2"),
        ("gen_ai.server.time_per_output_token", 1, "2"),
        ("gen_ai.client.token.usage", 2, "3"),
    ] {
        let found = of(name)["histogram"]["dataPoints"].as_array().expect("points");
        assert_eq!(found.len(), points, "{name}");
        assert_eq!(found[0]["count"], count, "{name}");
        let counts = found[0]["bucketCounts"].as_array().expect("counts");
        let sum: u64 = counts.iter().map(|count| count.as_str().expect("text").parse::<u64>().expect("a number")).sum();
        assert_eq!(sum.to_string(), count, "{name}");
        assert_eq!(counts.len(), found[0]["explicitBounds"].as_array().expect("bounds").len() + 1, "{name}");
    }
    let per_token = &of("gen_ai.server.time_per_output_token")["histogram"]["dataPoints"][0];
    assert_eq!(per_token["sum"], 0.4, "0.8 s for four tokens, twice");
}

fn spans_of(traces: &Value) -> &Vec<Value> {
    traces["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans")
}

fn time(span: &Value, key: &str) -> u64 {
    span[key].as_str().expect("a text").parse().expect("a number")
}

fn attempted(number: u32) -> Attempted {
    let server = Some(("api.example".into(), 443));
    let peer = Peer { provider: "anthropic", model: "m-2".into(), server };
    let member = format!("member-{number}");
    let (reason, outcome) = ("fallback", "answered");
    Attempted { peer: Some(peer), member, number, reason, outcome, status: Some(200), error: None }
}

#[tokio::test]
async fn attempts_are_spans_below_their_request() {
    let (url, mut posts) = collector("200 OK").await;
    let end = ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str());
    let exporter = Exporter::start(settings(&[end]), None).expect("it starts");
    let span = exporter.begin(Some(PARENT));
    let parent = span.parent("chat");
    let mut first = parent.attempt().expect("it is sampled");
    first.stop();
    let second = parent.attempt().expect("it is sampled");
    let told = [first.traceparent(), second.traceparent()];
    first.end(Attempted { status: Some(503), error: Some("unavailable"), outcome: "failed", ..attempted(1) });
    second.end(attempted(2));
    let third = parent.attempt().expect("it is sampled");
    third.end(Attempted { status: None, error: Some("cancelled"), peer: None, ..attempted(3) });
    drop(parent.attempt());
    let request = parent.traceparent();
    span.end(ended());
    exporter.flush(PATIENCE).await;
    assert_eq!(exporter.counts(), Counts { exported: 4, dropped: 0, failed: 0 }, "who is dropped is not recorded");

    let (_, _, traces) = posts.recv().await.expect("traces");
    let spans = spans_of(&traces);
    let server = &spans[3];
    assert!(request.contains(server["spanId"].as_str().expect("an id")));
    for (span, name) in spans.iter().zip(["chat m-2", "chat m-2", "chat"]) {
        assert_eq!((&span["name"], &span["kind"]), (&name.into(), &3.into()));
        assert_eq!((&span["traceId"], &span["parentSpanId"]), (&server["traceId"], &server["spanId"]));
    }
    for (span, told) in spans.iter().zip(&told) {
        let own = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", span["spanId"].as_str().expect("an id"));
        assert_eq!(*told, own, "whoever is asked is told of the attempt's own span");
    }
    for (key, values) in [
        ("gen_ai.operation.name", ["chat".into(), "chat".into(), "chat".into()]),
        ("gen_ai.provider.name", ["anthropic".into(), "anthropic".into(), Value::Null]),
        ("gen_ai.request.model", ["m-2".into(), "m-2".into(), Value::Null]),
        ("server.address", ["api.example".into(), "api.example".into(), Value::Null]),
        ("server.port", ["443".into(), "443".into(), Value::Null]),
        ("http.response.status_code", ["503".into(), "200".into(), Value::Null]),
        ("error.type", ["503".into(), Value::Null, "cancelled".into()]),
        ("sconce.attempt", ["1".into(), "2".into(), "3".into()]),
        ("sconce.reason", ["fallback".into(), "fallback".into(), "fallback".into()]),
        ("sconce.outcome", ["failed".into(), "answered".into(), "answered".into()]),
        ("sconce.member", ["member-1".into(), "member-2".into(), "member-3".into()]),
    ] {
        let found = [0, 1, 2].map(|at: usize| attribute(&spans[at], key));
        assert_eq!(found, values, "{key}");
    }
    let codes = [0, 1, 2].map(|at: usize| spans[at]["status"]["code"].clone());
    assert_eq!(codes, [2.into(), Value::Null, Value::Null], "only the first failed");
    let took = |span| time(span, "endTimeUnixNano") - time(span, "startTimeUnixNano");
    assert!(took(&spans[0]) < 1_000_000_000 && took(&spans[1]) > 0);
}

#[tokio::test]
async fn what_is_not_recorded_has_no_attempts() {
    let (url, _posts) = collector("200 OK").await;
    let end = ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str());
    let exporter = Exporter::start(settings(&[end]), None).expect("it starts");
    let parent = exporter.begin(Some(&PARENT.replace("b7-01", "b7-00"))).parent("chat");
    assert!(parent.attempt().is_none() && parent.traceparent().ends_with("-00"));
    let only_metrics = settings(&[end, ("OTEL_TRACES_EXPORTER", "none")]);
    let exporter = Exporter::start(only_metrics, None).expect("it starts");
    assert!(exporter.begin(Some(PARENT)).parent("chat").attempt().is_none());
}

#[tokio::test]
async fn a_collector_that_fails_costs_records_and_nothing_else() {
    let (refusing, _posts) = collector("500 Internal Server Error").await;
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        format!("http://{}", listener.local_addr().expect("it is bound"))
    };
    for url in [refusing, gone] {
        let exporter = Exporter::start(settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]), None).expect("it starts");
        (0..3).for_each(|_| exporter.begin(None).end(ended()));
        exporter.flush(PATIENCE).await;
        assert_eq!(exporter.counts(), Counts { exported: 0, dropped: 0, failed: 3 });
    }
}

#[tokio::test]
async fn a_collector_that_never_answers_fills_the_queue_and_holds_up_nobody() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("it is bound"));
    let exporter = Exporter::start(
        settings(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000"),
        ]),
        None,
    )
    .expect("it starts");
    let started = Instant::now();
    for _ in 0..1000 {
        let span = exporter.begin(None);
        span.parent("chat").attempt().expect("it is sampled").end(attempted(1));
        span.end(ended());
        tokio::task::yield_now().await;
    }
    assert!(started.elapsed() < Duration::from_secs(5), "no request waits for the collector");
    assert!(exporter.counts().dropped >= 1980, "{:?}", exporter.counts());
    exporter.flush(Duration::from_millis(50)).await;
    assert!(started.elapsed() < Duration::from_secs(6), "neither does the end");
}
