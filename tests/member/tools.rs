//! Forced calls of every format through a whole member: the grammar makes the simulated model write them, and the
//! parser reads them back.

use std::time::Duration;

use futures_util::StreamExt;
use sconce::config::{DeviceChoice, ModelConfig, ModelLimits, ParserNames};
use sconce::error::Error;
use sconce::hub::progress::Silent;
use sconce::launch::Launch;
use sconce::request::{Chat, Content, Event, Finish, Message, Params, Prompt, Request, Tenant, ToolChoice};
use sconce::text::ToolFormat;
use serde_json::{Value, json};

async fn launch(tool_calls: Option<&str>, reasoning: Option<&str>) -> Launch {
    let parsers = ParserNames { tool_calls: tool_calls.map(str::to_owned), reasoning: reasoning.map(str::to_owned) };
    let model = ModelConfig {
        reference: "sim".to_owned(),
        served_names: Vec::new(),
        device: DeviceChoice::Cpu,
        task: Default::default(),
        limits: ModelLimits { max_model_len: Some(8192), ..ModelLimits::default() },
        chat_template: None,
        parsers,
        lora: Default::default(),
        loading: Default::default(),
    };
    let launch = Launch::plan(&[model]).expect("sim is a model");
    launch.load(std::sync::Arc::new(Silent)).await.expect("it loads");
    launch
}

/// No free text in the arguments: the simulated model would never end it.
fn tools(strict: bool) -> Vec<Value> {
    let tool = |name: &str, properties: Value, required: Value| {
        let parameters = json!({
            "type": "object", "properties": properties, "required": required, "additionalProperties": false,
        });
        json!({"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}})
    };
    let unit = json!({"type": "string", "enum": ["celsius", "say \"kelvin\"", "é"]});
    let days = json!({"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 1, "maxItems": 2});
    vec![
        tool("get_weather", json!({"unit": unit, "days": days, "now": {"type": "boolean"}}), json!(["unit", "days"])),
        tool("ping", json!({}), json!([])),
        tool("flip", json!({"up": {"type": "boolean"}, "by": {"enum": [1, 2]}}), json!([])),
    ]
}

fn request(choice: ToolChoice, tools: Vec<Value>, seed: u64) -> Request {
    // Another prompt is another answer of the simulated model, whatever the seed.
    let content = Content::Text(format!("go {seed}"));
    let user = Message { role: "user".to_owned(), content, ..Message::default() };
    let chat =
        Chat { messages: vec![user], tools, tool_choice: choice, add_generation_prompt: true, ..Chat::default() };
    Request {
        id: "test".to_owned(),
        model: String::new(),
        prompt: Prompt::Chat(chat),
        params: Params {
            n: 1,
            max_tokens: Some(400),
            seed: Some(seed),
            temperature: Some(1.0),
            skip_special_tokens: true,
            ..Params::default()
        },
        tenant: Tenant::default(),
        priority: 0,
        end_user: None,
    }
}

#[derive(Debug, Default)]
struct Answer {
    text: String,
    reasoning: String,
    /// Id, name, arguments.
    calls: Vec<(String, String, String)>,
    finish: Option<Finish>,
    tokens: usize,
    usage: sconce::request::Usage,
}

async fn ask(launch: &Launch, request: Request) -> Result<Answer, Error> {
    let mut events = launch.pool.submit(request).await?;
    let mut answer = Answer::default();
    while let Some(event) = events.next().await {
        match event {
            Event::Prompt(_) => {}
            Event::Text { text, token_ids, .. } => {
                answer.text.push_str(&text);
                answer.tokens += token_ids.len();
            }
            Event::Reasoning { text, token_ids, .. } => {
                answer.reasoning.push_str(&text);
                answer.tokens += token_ids.len();
            }
            Event::ToolCall { part, .. } => {
                if let Some(start) = part.start {
                    assert_eq!((part.index as usize, part.arguments.as_str()), (answer.calls.len(), ""));
                    answer.calls.push((start.id, start.name, String::new()));
                }
                answer.calls[part.index as usize].2.push_str(&part.arguments);
                answer.tokens += part.token_ids.len();
            }
            Event::ReasoningSeal { .. } | Event::Refusal { .. } => {
                unreachable!("no local model seals or marks refusals")
            }
            Event::Finished { reason, .. } => answer.finish = Some(reason),
            Event::Done(usage) => answer.usage = usage,
            Event::Failed(error) => return Err(error),
        }
    }
    Ok(answer)
}

fn check_call((id, name, arguments): &(String, String, String)) {
    assert!(id.starts_with("call_") && id.len() == 29, "{id}");
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|why| panic!("{why}: {arguments}"));
    let one_of = |value: &Value, allowed: Value| allowed.as_array().unwrap().contains(value);
    match name.as_str() {
        "get_weather" => {
            assert!(one_of(&arguments["unit"], json!(["celsius", "say \"kelvin\"", "é"])), "{arguments}");
            assert!(matches!(arguments["days"].as_array().map(Vec::len), Some(1 | 2)), "{arguments}");
        }
        "ping" => assert_eq!(arguments, json!({})),
        "flip" => assert!(arguments.get("up").is_none_or(Value::is_boolean), "{arguments}"),
        other => panic!("{other} was not offered"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forced_calls_of_every_format_are_good_calls() {
    for format in ToolFormat::names() {
        let launch = launch(Some(format), None).await;
        for seed in 0..4 {
            let answer = ask(&launch, request(ToolChoice::Required, tools(false), seed)).await.expect(format);
            assert_eq!(
                (answer.text.as_str(), answer.finish),
                ("", Some(Finish::ToolCalls)),
                "{format}: {:?}",
                answer.calls
            );
            assert_eq!(answer.calls.len(), 1, "{format}: parallel calls were not asked for");
            check_call(&answer.calls[0]);
        }
        let named = ToolChoice::Named("flip".to_owned());
        let answer = ask(&launch, request(named, tools(false), 1)).await.expect(format);
        assert_eq!(answer.finish, Some(Finish::Stop(None)), "{format}: as OpenAI says it");
        assert_eq!(answer.calls[0].1, "flip", "{format}");
        check_call(&answer.calls[0]);
        launch.stop(Duration::ZERO).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_calls_come_one_after_the_other() {
    for format in ["hermes", "mistral", "deepseek_v3", "pythonic", "qwen3_coder", "gemma4"] {
        let launch = launch(Some(format), None).await;
        let mut most = 0;
        // Whether it goes on is the simulated model's whim, which differs from prompt to prompt.
        for seed in 0..64 {
            if most > 1 && seed >= 8 {
                break;
            }
            let mut request = request(ToolChoice::Required, tools(false), seed);
            if let Prompt::Chat(chat) = &mut request.prompt {
                chat.parallel_tool_calls = true;
            }
            let answer = ask(&launch, request).await.expect(format);
            // A mark that max_tokens cuts in two is no mark: it comes out as text.
            assert!(answer.text.is_empty() || answer.finish == Some(Finish::Length), "{format}: {}", answer.text);
            let whole = if answer.finish == Some(Finish::Length) { answer.calls.len() - 1 } else { answer.calls.len() };
            answer.calls[..whole].iter().for_each(check_call);
            most = most.max(answer.calls.len());
        }
        assert!(most > 1, "{format}: the model never called twice");
        launch.stop(Duration::ZERO).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_tools_leave_text_free_and_text_may_be_json() {
    for format in ToolFormat::names() {
        let launch = launch(Some(format), None).await;
        let mut free = request(ToolChoice::Auto, tools(true), 1);
        free.params.max_tokens = Some(8);
        let answer = ask(&launch, free).await.unwrap_or_else(|error| panic!("{format}: {error}"));
        assert!(answer.finish.is_some(), "{format}");
        let mut json_or_call = request(ToolChoice::Auto, tools(true), 2);
        let schema = json!({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": false});
        json_or_call.params.constraint = Some(sconce::request::Constraint::JsonSchema(schema));
        let answer = ask(&launch, json_or_call).await.unwrap_or_else(|error| panic!("{format}: {error}"));
        match answer.calls.first() {
            Some(call) => check_call(call),
            None => {
                let value: Value =
                    serde_json::from_str(&answer.text).unwrap_or_else(|why| panic!("{format} {why}: {}", answer.text));
                assert!(value["a"].is_u64(), "{format}: {value}");
            }
        }
        launch.stop(Duration::ZERO).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_a_parser_leaves_text_or_refuses() {
    let launch = launch(Some("none"), None).await;
    for choice in [ToolChoice::Auto, ToolChoice::Required] {
        let error = ask(&launch, request(choice, tools(false), 1)).await.expect_err("no parser");
        assert_eq!(error.param.as_deref(), Some("tools"), "{error}");
    }
    let mut none = request(ToolChoice::None, tools(false), 1);
    none.params.max_tokens = Some(5);
    let answer = ask(&launch, none).await.expect("text");
    assert!(answer.calls.is_empty() && !answer.text.is_empty());
    launch.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reasoning_is_told_apart_and_counted() {
    let launch = launch(None, Some("deepseek_r1")).await;
    let mut request = request(ToolChoice::Auto, Vec::new(), 3);
    request.params.max_tokens = Some(20);
    let answer = ask(&launch, request).await.expect("an answer");
    assert!(answer.text.is_empty() && !answer.reasoning.is_empty(), "{answer:?}");
    assert_eq!(answer.usage.reasoning_tokens, answer.usage.completion_tokens);
    assert_eq!(answer.tokens as u32, answer.usage.completion_tokens, "every token is in an event");
    launch.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn unknown_parsers_and_efforts_are_refused() {
    let mut model = ModelConfig {
        reference: "sim".to_owned(),
        served_names: Vec::new(),
        device: DeviceChoice::Cpu,
        task: Default::default(),
        limits: ModelLimits::default(),
        chat_template: None,
        parsers: ParserNames { tool_calls: Some("hermse".to_owned()), reasoning: None },
        lora: Default::default(),
        loading: Default::default(),
    };
    let error = Launch::plan(&[model.clone()]).err().expect("no such parser");
    assert_eq!(error.param.as_deref(), Some("--tool-call-parser"));
    assert!(error.message.contains("hermes"), "{error}");
    model.parsers = ParserNames { tool_calls: None, reasoning: Some("x".to_owned()) };
    assert_eq!(Launch::plan(&[model]).err().expect("no such parser").param.as_deref(), Some("--reasoning-parser"));

    let launch = launch(None, None).await;
    let mut request = request(ToolChoice::Auto, Vec::new(), 1);
    if let Prompt::Chat(chat) = &mut request.prompt {
        chat.reasoning_effort = Some("low".to_owned());
    }
    let error = ask(&launch, request).await.expect_err("the template reads none");
    assert_eq!(error.param.as_deref(), Some("reasoning_effort"));
    launch.stop(Duration::ZERO).await;
}
