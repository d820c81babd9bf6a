//! The exporter against collectors: one that takes everything, one that is away, and one that never answers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sconce_otel::{Counts, Ended, Exporter, Settings};
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
    let passed_on = span.traceparent();
    assert!(passed_on.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && passed_on.ends_with("-01"));
    span.end(ended());
    exporter.begin(None).end(Ended { status: 503, finish: "error", time_to_first_token_s: None, ..ended() });
    let not_sampled = exporter.begin(Some(&PARENT.replace("b7-01", "b7-00")));
    assert!(not_sampled.traceparent().ends_with("-00"));
    not_sampled.end(ended());
    exporter.flush(PATIENCE).await;
    assert_eq!(exporter.counts(), Counts { exported: 2, dropped: 0, failed: 0 });

    let (path, head, traces) = posts.recv().await.expect("traces");
    assert!(path == "/v1/traces" && head.contains("x-key: secret"), "{head}");
    let resource = &traces["resourceSpans"][0]["resource"];
    assert_eq!(attribute(resource, "service.name"), "test");
    let spans = traces["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans");
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
        exporter.begin(None).end(ended());
        tokio::task::yield_now().await;
    }
    assert!(started.elapsed() < Duration::from_secs(5), "no request waits for the collector");
    assert!(exporter.counts().dropped >= 980, "{:?}", exporter.counts());
    exporter.flush(Duration::from_millis(50)).await;
    assert!(started.elapsed() < Duration::from_secs(6), "neither does the end");
}
