//! What constraints cost: 16 streams that must write JSON beside 16 free ones, through the whole member.
//!
//! usage: cargo bench --bench constraint -- MODEL [STREAMS] [RUNS] [nodrafts]
//! One JSON line a kind and run, free and constrained runs in turn; then the medians and the losses. With `nodrafts` free
//! streams are not guessed ahead, as constrained ones never are.

use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt, future};
use sconce::config::speculation::Speculation;
use sconce::config::{DeviceChoice, ModelConfig, ModelLimits, ParserNames};
use sconce::hub::progress::Silent;
use sconce::launch::Launch;
use sconce::request::{Chat, Constraint, Content, Event, Message, Params, Prompt, Request, Tenant};
use serde_json::{Value, json};

const TOKENS: u32 = 128;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let Some(model) = arguments.first() else {
        eprintln!("usage: cargo bench --bench constraint -- MODEL [STREAMS] [RUNS] [nodrafts]");
        return;
    };
    let streams = arguments.get(1).map_or(16, |text| text.parse().expect("STREAMS is a number"));
    let runs = arguments.get(2).map_or(5, |text| text.parse().expect("RUNS is a number"));
    let speculation = match arguments.get(3).map(String::as_str) {
        None => Speculation::default(),
        Some("nodrafts") => Speculation::Off,
        Some(other) => panic!("{other}: only nodrafts may follow RUNS"),
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(measure(model, streams, runs, speculation));
}

/// All write for as long as they are let. `prose` is the hardest: one long string with a least length, of which each
/// place is a state of its own; almost nothing is forced, so that every token pays for its mask. `records` is what
/// programs ask for.
fn constraints() -> [(&'static str, Option<Constraint>); 4] {
    let object = |properties: Value| {
        let required: Vec<&String> = properties.as_object().map(|fields| fields.keys().collect()).unwrap_or_default();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    };
    let text = json!({"type": "string"});
    let prose =
        object(json!({"title": {"type": "string", "maxLength": 20}, "story": {"type": "string", "minLength": 2000}}));
    let lines = json!({"type": "array", "items": text, "minItems": 100});
    let record = object(json!({"name": text, "age": {"type": "integer"}, "city": text, "note": text}));
    let records = json!({"type": "array", "items": record, "minItems": 100});
    [
        ("free", None),
        ("prose", Some(Constraint::JsonSchema(prose))),
        ("lines", Some(Constraint::JsonSchema(lines))),
        ("records", Some(Constraint::JsonSchema(records))),
    ]
}

async fn measure(model: &str, streams: u32, runs: usize, speculation: Speculation) {
    let config = ModelConfig {
        lora: Default::default(),
        reference: model.to_owned(),
        served_names: vec!["model".to_owned()],
        device: DeviceChoice::Cpu,
        task: Default::default(),
        limits: ModelLimits { kv_cache_memory_bytes: Some(1 << 30), speculation, ..ModelLimits::default() },
        parsers: ParserNames::default(),
        loading: Default::default(),
        chat_template: None,
    };
    let launch = Launch::plan(&[config]).expect("a plan");
    launch.load(Arc::new(Silent)).await.expect("the model loads");
    let mut rates: Vec<Vec<f64>> = constraints().iter().map(|_| Vec::new()).collect();
    for run in 0..=runs {
        for (kind, (name, constraint)) in constraints().into_iter().enumerate() {
            let rate = rate(&launch, streams, constraint.as_ref()).await;
            // The first run builds the vocabulary's trie and warms the caches.
            if run > 0 {
                println!(
                    "{{\"model\":\"{model}\",\"streams\":{streams},\"kind\":\"{name}\",\"run\":{run},\"tokens_per_s\":{rate:.1}}}"
                );
                rates[kind].push(rate);
            }
        }
    }
    let medians: Vec<f64> = rates.into_iter().map(median).collect();
    for ((name, _), rate) in constraints().iter().zip(&medians) {
        let loss = 100.0 * (1.0 - rate / medians[0]);
        println!("{{\"streams\":{streams},\"kind\":\"{name}\",\"median\":{rate:.1},\"loss_percent\":{loss:.2}}}");
    }
}

/// Generated tokens per second over all streams, prompts included.
async fn rate(launch: &Launch, streams: u32, constraint: Option<&Constraint>) -> f64 {
    let started = Instant::now();
    let requests = (0..streams).map(|stream| async move {
        let events = launch.pool.submit(request(stream, constraint)).await.expect("there is room");
        let events: Vec<Event> = events.collect().await;
        match events.last() {
            Some(Event::Done(usage)) => usage.completion_tokens,
            other => panic!("stream {stream} ended with {other:?}"),
        }
    });
    let tokens: u32 = future::join_all(requests).await.into_iter().sum();
    assert_eq!(tokens, streams * TOKENS, "every stream has its full length");
    f64::from(tokens) / started.elapsed().as_secs_f64()
}

fn request(stream: u32, constraint: Option<&Constraint>) -> Request {
    let text = format!("Write a story number {stream} about a lighthouse, as JSON with a title and a long story.");
    let message = Message { role: "user".to_owned(), content: Content::Text(text), ..Message::default() };
    Request {
        id: "bench".to_owned(),
        model: "model".to_owned(),
        prompt: Prompt::Chat(Chat { messages: vec![message], add_generation_prompt: true, ..Chat::default() }),
        params: Params {
            max_tokens: Some(TOKENS),
            temperature: Some(0.0),
            ignore_eos: true,
            skip_special_tokens: true,
            n: 1,
            constraint: constraint.cloned(),
            ..Params::default()
        },
        tenant: Tenant::default(),
        priority: 0,
        end_user: None,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
