//! A request in an OpenTelemetry trace: the client's `traceparent`, our span, and what a hosted member is told.

use std::collections::BTreeMap;
use std::time::Duration;

use sconce_otel::{Counts, Exporter, Settings};
use serde_json::Value;

use crate::fake::{FakeProvider, Play};
use crate::wires::{Said, answer};
use crate::world::{APIS, World, headers, member, question};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn export_to(world: &World, collector: &FakeProvider) -> Exporter {
    let variables = BTreeMap::from([("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), collector.url())]);
    let settings = Settings::read(&variables).expect("sound").expect("on");
    let exporter = Exporter::start(settings, None).expect("it starts");
    world.launch.metrics.export_to(exporter.clone());
    exporter
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
    assert_eq!(exporter.counts(), Counts { exported: 3, dropped: 0, failed: 0 }, "only what a model was asked");

    let posts = collector.seen();
    let body = |path: &str| {
        let post = posts.iter().find(|post| post.path == path).unwrap_or_else(|| panic!("a post to {path}"));
        serde_json::from_str::<Value>(&post.body).expect("JSON")
    };
    let traces = body("/v1/traces");
    let spans = traces["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans");
    let calls = provider.seen();
    for ((span, api), call) in spans.iter().zip(APIS).zip(&calls[1..]) {
        assert_eq!((&span["traceId"], &span["name"]), (&TRACE.into(), &"chat r".into()));
        assert_eq!(span["parentSpanId"], "00f067aa0ba902b7");
        assert_eq!(attribute(span, "http.route")["stringValue"], api);
        assert_eq!(attribute(span, "gen_ai.response.model")["stringValue"], "one");
        assert_ne!(attribute(span, "gen_ai.usage.output_tokens")["intValue"], "0");
        let passed_on = format!("00-{TRACE}-{}-01", span["spanId"].as_str().expect("an id"));
        assert_eq!(call.header("traceparent"), Some(passed_on.as_str()), "{api}");
    }
    let metrics = body("/v1/metrics").to_string();
    assert!(metrics.contains("gen_ai.server.request.duration") && metrics.contains("gen_ai.client.token.usage"));
    for post in &posts {
        let text = &post.body;
        assert!(!text.contains("weather") && !text.contains("hello") && !text.contains("sk-"), "{text}");
    }
    let page = world.get("/metrics").await.text;
    assert!(page.contains("sconce_otel_spans_exported_total 3"), "{page}");
}
