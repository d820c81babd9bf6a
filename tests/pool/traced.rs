//! A request in an OpenTelemetry trace: the client's `traceparent`, our span, those of its attempts at members, and what the
//! members are told.

use std::collections::BTreeMap;
use std::time::Duration;

use sconce_otel::{Counts, Exporter, Settings};
use serde_json::{Value, json};

use crate::fake::{FakeProvider, Play, Step};
use crate::wires::{KINDS, Said, answer};
use crate::world::{APIS, Answer, World, headers, member, question};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn export_to(world: &World, collector: &FakeProvider) -> Exporter {
    let variables = BTreeMap::from([("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), collector.url())]);
    let settings = Settings::read(&variables).expect("sound").expect("on");
    let exporter = Exporter::start(settings, None).expect("it starts");
    world.launch.metrics.export_to(exporter.clone());
    exporter
}

/// A server that is told of a trace, and the collector that hears of it.
struct Watched {
    world: World,
    collector: FakeProvider,
    exporter: Exporter,
}

impl Watched {
    async fn new(text: &str) -> Self {
        let collector = FakeProvider::start(|_| Play::json(200, "{}")).await;
        let world = World::new(text).await;
        let exporter = export_to(&world, &collector);
        Self { world, collector, exporter }
    }

    async fn ask(&self, stream: bool) -> Answer {
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        self.world.post(APIS[0], &[("traceparent", &parent)], &question(APIS[0], stream, false, false)).await
    }

    /// The request's span and those of its attempts, once there are so many of them.
    async fn spans(&self, attempts: usize) -> (Value, Vec<Value>) {
        let all_there = async {
            while self.exporter.counts().exported <= attempts as u64 {
                self.exporter.flush(Duration::from_secs(10)).await;
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), all_there).await.expect("every attempt ends");
        let (mut servers, clients) = spans(&self.collector);
        assert_eq!((servers.len(), clients.len()), (1, attempts), "{servers:?} {clients:?}");
        let server = servers.remove(0);
        for client in &clients {
            assert_eq!((&client["traceId"], &client["parentSpanId"]), (&TRACE.into(), &server["spanId"]));
        }
        for post in self.collector.seen() {
            let text = &post.body;
            assert!(!text.contains("weather") && !text.contains("hello") && !text.contains("sk-"), "{text}");
        }
        (server, clients)
    }
}

/// All spans that the collector was sent: of kind server and of kind client, each in the order of their ends.
fn spans(collector: &FakeProvider) -> (Vec<Value>, Vec<Value>) {
    let posts = collector.seen().into_iter().filter(|post| post.path == "/v1/traces");
    let of = |post: crate::fake::Seen| {
        let traces: Value = serde_json::from_str(&post.body).expect("JSON");
        traces["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans").clone()
    };
    let (servers, others): (Vec<_>, Vec<_>) = posts.flat_map(of).partition(|span| span["kind"] == 2);
    assert!(others.iter().all(|span| span["kind"] == 3), "{others:?}");
    (servers, others)
}

/// The header that puts others below this span.
fn below(span: &Value) -> String {
    format!("00-{TRACE}-{}-01", span["spanId"].as_str().expect("an id"))
}

fn took_ms(span: &Value) -> u64 {
    let [start, end] = ["startTimeUnixNano", "endTimeUnixNano"]
        .map(|key| span[key].as_str().expect("a text").parse::<u64>().expect("a number"));
    (end - start) / 1_000_000
}

/// An attribute's value as text; empty where it is not there.
fn said(span: &Value, key: &str) -> String {
    let all = span["attributes"].as_array().expect("a list");
    let value = all.iter().find(|one| one["key"] == key).map(|one| &one["value"]);
    let text = value.and_then(|value| value["stringValue"].as_str().or_else(|| value["intValue"].as_str()));
    text.unwrap_or_default().to_owned()
}

/// A route that asks the second when the first fails.
fn ordered([first, second]: [&str; 2]) -> String {
    let part = |name, priority| format!("{{ name = \"{name}\", priority = {priority} }}");
    format!("[[route]]\nname = \"r\"\nmembers = [{}, {}]\n", part(first, 1), part(second, 2))
}

fn port(of: &FakeProvider) -> String {
    of.url().rsplit(':').next().expect("a port").to_owned()
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let all = span["attributes"].as_array().expect("a list");
    &all.iter().find(|one| one["key"] == key).unwrap_or_else(|| panic!("{key} in {span}"))["value"]
}

#[tokio::test]
async fn every_api_is_traced_through_to_the_provider_and_nothing_said_is_recorded() {
    let provider = FakeProvider::start(|_| answer("openai", Said::Text("hello"), false)).await;
    let collector = FakeProvider::start(|_| Play::json(200, "{}")).await;
    let route = "[[route]]\nname = \"r\"\nmembers = [\"one\"]\n";
    let world = World::new(&format!("{}{route}", member("one", "openai", &provider.url()))).await;

    // Before there is a collector, nobody is told where a request came from.
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let mut sent = headers(APIS[0]).to_vec();
    sent.push(("traceparent", &parent));
    world.post(APIS[0], &sent, &question(APIS[0], false, false, false)).await;
    assert_eq!(provider.seen()[0].header("traceparent"), None);

    let exporter = export_to(&world, &collector);
    for (at, api) in APIS.into_iter().enumerate() {
        let mut sent = headers(api).to_vec();
        sent.push(("traceparent", &parent));
        let told = world.post(api, &sent, &question(api, at % 2 == 0, false, false)).await;
        assert_eq!(told.status, 200, "{api}: {}", told.text);
    }
    assert_eq!(world.get("/v1/models").await.status, 200);
    exporter.flush(Duration::from_secs(10)).await;
    assert_eq!(exporter.counts(), Counts { exported: 6, dropped: 0, failed: 0 }, "only what a model was asked");

    let posts = collector.seen();
    let body = |path: &str| {
        let post = posts.iter().find(|post| post.path == path).unwrap_or_else(|| panic!("a post to {path}"));
        serde_json::from_str::<Value>(&post.body).expect("JSON")
    };
    let (servers, clients) = spans(&collector);
    let calls = provider.seen();
    assert_eq!((servers.len(), clients.len(), calls.len()), (3, 3, 4));
    for (((span, client), api), call) in servers.iter().zip(&clients).zip(APIS).zip(&calls[1..]) {
        assert_eq!((&span["traceId"], &span["name"]), (&TRACE.into(), &"chat r".into()));
        assert_eq!(span["parentSpanId"], "00f067aa0ba902b7");
        assert_eq!(attribute(span, "http.route")["stringValue"], api);
        assert_eq!(attribute(span, "gen_ai.response.model")["stringValue"], "one");
        assert_ne!(attribute(span, "gen_ai.usage.output_tokens")["intValue"], "0");
        assert_eq!((&client["name"], &client["parentSpanId"]), (&"chat m".into(), &span["spanId"]));
        assert_eq!(call.header("traceparent"), Some(below(client).as_str()), "{api}");
    }
    let metrics = body("/v1/metrics").to_string();
    assert!(metrics.contains("gen_ai.server.request.duration") && metrics.contains("gen_ai.client.token.usage"));
    for post in &posts {
        let text = &post.body;
        assert!(!text.contains("weather") && !text.contains("hello") && !text.contains("sk-"), "{text}");
    }
    let page = world.get("/metrics").await.text;
    assert!(page.contains("sconce_otel_spans_exported_total 6"), "{page}");
}

#[tokio::test]
async fn a_failover_is_two_attempts_below_one_request() {
    for stream in [false, true] {
        let bad = FakeProvider::start(|_| Play::json(503, "{}")).await;
        let good = FakeProvider::start(|_| answer("openai", Said::Text("hello"), false)).await;
        let route = ordered(["bad", "good"]);
        let members = format!("{}{}", member("bad", "anthropic", &bad.url()), member("good", "openai", &good.url()));
        let watched = Watched::new(&format!("{members}{route}")).await;
        let told = watched.ask(stream).await;
        assert_eq!(told.status, 200, "{}", told.text);
        let (server, clients) = watched.spans(2).await;
        assert_eq!((said(&server, "gen_ai.response.model").as_str(), &server["status"]), ("good", &json!({})));
        let expected = [
            ("bad", "anthropic", "503", "503", "1", "priority", "failed"),
            ("good", "openai", "200", "", "2", "fallback", "answered"),
        ];
        for ((client, expected), fake) in clients.iter().zip(expected).zip([&bad, &good]) {
            let [member, provider, status, error, number, reason, outcome] = [
                "sconce.member",
                "gen_ai.provider.name",
                "http.response.status_code",
                "error.type",
                "sconce.attempt",
                "sconce.reason",
                "sconce.outcome",
            ]
            .map(|key| said(client, key));
            let found = (&*member, &*provider, &*status, &*error, &*number, &*reason, &*outcome);
            assert_eq!(found, expected);
            let code = if error.is_empty() { Value::Null } else { 2.into() };
            assert_eq!((&client["name"], &client["status"]["code"]), (&"chat m".into(), &code));
            assert_eq!(
                (said(client, "gen_ai.operation.name"), said(client, "gen_ai.request.model")),
                ("chat".into(), "m".into())
            );
            assert_eq!((said(client, "server.address"), said(client, "server.port")), ("127.0.0.1".into(), port(fake)));
            let calls = fake.seen();
            assert_eq!(calls.len(), 1);
            assert_eq!(calls[0].header("traceparent"), Some(below(client).as_str()), "each is told of its own attempt");
        }
        // A stream's head is sent before it is known who answers.
        if !stream {
            assert_eq!(told.header("x-sconce-reason"), said(&clients[1], "sconce.reason"));
            assert_eq!(told.header("x-sconce-attempts"), "2");
        }
    }
}

#[tokio::test]
async fn failures_say_what_they_were_and_a_stream_ends_with_its_last_event() {
    let begun = || answer("openai", Said::Text("hello"), true);
    let late = || {
        let Play::Stream { content_type, mut steps } = answer("openai", Said::Text("hello"), false) else {
            unreachable!("answers are streams")
        };
        steps.insert(2, Step::Wait(Duration::from_millis(200)));
        Play::Stream { content_type, steps }
    };
    let plays = [
        ("no key", Play::json(401, "{}"), ("401", "401", "failed"), 0),
        ("too many", Play::json(429, "{}"), ("429", "429", "failed"), 0),
        ("no word", Play::HangUp, ("", "upstream", "failed"), 0),
        ("half an answer", begun(), ("200", "upstream", "failed"), 0),
        ("a slow answer", late(), ("200", "", "answered"), 200),
    ];
    for (what, play, expected, least_ms) in plays {
        let one = FakeProvider::start(move |_| play.clone()).await;
        let route = "[[route]]\nname = \"r\"\nmembers = [\"one\"]\nattempts_max = 1\n";
        let watched = Watched::new(&format!("{}{route}", member("one", "openai-compatible", &one.url()))).await;
        watched.ask(true).await;
        let (_, clients) = watched.spans(1).await;
        let client = &clients[0];
        let found = ["http.response.status_code", "error.type", "sconce.outcome"].map(|key| said(client, key));
        assert_eq!((&*found[0], &*found[1], &*found[2]), expected, "{what}");
        let code = if found[1].is_empty() { Value::Null } else { 2.into() };
        assert_eq!(client["status"]["code"], code, "{what}");
        assert!(took_ms(client) >= least_ms, "{what}: {client}");
    }
}

#[tokio::test]
async fn a_hedge_and_a_shadow_are_attempts_of_their_own() {
    let mut silent = FakeProvider::start(|_| Play::Silence).await;
    let good = FakeProvider::start(|_| answer("openai", Said::Text("hello"), false)).await;
    let third = FakeProvider::start(|_| answer("mistral", Said::Text("hello"), false)).await;
    let members = [("one", "openai", &silent), ("two", "openai", &good), ("three", "mistral", &third)];
    let members: String = members.map(|(name, kind, fake)| member(name, kind, &fake.url())).concat();
    let route = ordered(["one", "two"]);
    let more = "hedge_after_ms = 200\nshadow = { member = \"three\", share = 1.0 }\n";
    let watched = Watched::new(&format!("{members}{route}{more}")).await;
    assert_eq!(watched.ask(false).await.status, 200);
    silent.wait_gone(1).await;
    let (_, mut clients) = watched.spans(3).await;
    clients.sort_by_key(|client| said(client, "gen_ai.provider.name") + &said(client, "sconce.attempt"));
    let expected = [
        ("three", "1", "shadow", "shadow", &third),
        ("one", "1", "priority", "discarded", &silent),
        ("two", "2", "hedge", "answered", &good),
    ];
    for (client, (member, number, reason, outcome, fake)) in clients.iter().zip(expected) {
        let found = ["sconce.member", "sconce.attempt", "sconce.reason", "sconce.outcome"].map(|key| said(client, key));
        assert_eq!(found, [member, number, reason, outcome]);
        assert_eq!(
            (said(client, "error.type"), &client["status"]),
            (String::new(), &json!({})),
            "{member}: no failure"
        );
        assert_eq!(fake.seen()[0].header("traceparent"), Some(below(client).as_str()), "{member}");
    }
}

#[tokio::test]
async fn every_kind_of_provider_has_its_word_and_vectors_are_traced_too() {
    let words =
        ["openai", "openai_compatible", "anthropic", "aws.bedrock", "azure.ai.openai", "gcp.gemini", "mistral_ai"];
    for (kind, word) in KINDS.into_iter().zip(words) {
        let one = FakeProvider::start(move |_| answer(kind, Said::Text("hello"), false)).await;
        let route = "[[route]]\nname = \"r\"\nmembers = [\"one\"]\n";
        let watched = Watched::new(&format!("{}{route}", member("one", kind, &one.url()))).await;
        let told = watched.ask(false).await;
        assert_eq!(told.status, 200, "{kind}: {}", told.text);
        assert_eq!(said(&watched.spans(1).await.1[0], "gen_ai.provider.name"), word);
    }
    let vectors = r#"{"data":[{"index":0,"embedding":[0.5,0.25]}],"usage":{"prompt_tokens":3,"total_tokens":3}}"#;
    let one = FakeProvider::start(move |_| Play::json(200, vectors)).await;
    let embedder = format!("{}task = \"embed\"\n", member("one", "openai", &one.url()));
    let route = "[[route]]\nname = \"r\"\nmembers = [\"one\"]\n";
    let watched = Watched::new(&format!("{embedder}{route}")).await;
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let asked = json!({"model": "r", "input": "weather"});
    let told = watched.world.post("/v1/embeddings", &[("traceparent", &parent)], &asked).await;
    assert_eq!(told.status, 200, "{}", told.text);
    let (server, clients) = watched.spans(1).await;
    assert_eq!((&server["name"], &clients[0]["name"]), (&"embeddings r".into(), &"embeddings m".into()));
    assert_eq!(one.seen()[0].header("traceparent"), Some(below(&clients[0]).as_str()));
}

#[tokio::test]
async fn whoever_is_not_sampled_is_passed_on_and_not_recorded() {
    let one = FakeProvider::start(|_| answer("openai", Said::Text("hello"), false)).await;
    let route = "[[route]]\nname = \"r\"\nmembers = [\"one\"]\n";
    let watched = Watched::new(&format!("{}{route}", member("one", "openai", &one.url()))).await;
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-00");
    let told = watched.world.post(APIS[0], &[("traceparent", &parent)], &question(APIS[0], false, false, false)).await;
    assert_eq!(told.status, 200, "{}", told.text);
    watched.exporter.flush(Duration::from_secs(10)).await;
    assert_eq!(watched.exporter.counts(), Counts::default());
    let calls = one.seen();
    let passed_on = calls[0].header("traceparent").expect("it is told");
    assert!(passed_on.starts_with(&format!("00-{TRACE}-")) && passed_on.ends_with("-00"), "{passed_on}");
}
