//! Bodies and what becomes of them: a table of good ones and a table of bad ones.

use serde_json::{Value, json};

use super::convert::checked;
use super::wire::ChatBody;
use crate::api::ApiConfig;
use crate::api::json::{Bounds, parse};
use crate::api::openai::sampling::Call;
use crate::error::Result;
use crate::request::{Chat, Constraint, Content, Image, ImageSource, Params, Part, ToolChoice};

fn read(fields: Value) -> Result<(Call, Chat)> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    let config = ApiConfig::default();
    let bounds = Bounds { depth_max: config.json_depth_max, values_max: config.json_values_max };
    let (call, chat, _) = checked(parse::<ChatBody>(body.to_string().as_bytes(), bounds)?, &config)?;
    Ok((call, chat))
}

fn messages(messages: Value) -> Result<Chat> {
    read(json!({"messages": messages})).map(|(_, chat)| chat)
}

#[test]
fn nothing_but_messages_means_the_models_defaults() {
    let (call, chat) = read(json!({})).expect("good");
    assert_eq!(call.params, Params { n: 1, skip_special_tokens: true, ..Params::default() });
    assert!(chat.add_generation_prompt && !chat.continue_final_message);
    assert_eq!((call.priority, call.cache_salt), (0, None));
}

#[test]
fn every_field_arrives() {
    let (call, chat) = read(json!({
        "max_tokens": 7, "max_completion_tokens": 8, "min_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 40,
        "min_p": 0.05, "repetition_penalty": 1.1, "presence_penalty": -1, "frequency_penalty": 1.5,
        "logit_bias": {"5": -100, "6": 1.5}, "seed": -1, "n": 3, "stop": ["a", "b"], "stop_token_ids": [1, 2],
        "ignore_eos": true, "include_stop_str_in_output": true, "skip_special_tokens": false, "logprobs": true,
        "top_logprobs": 20, "prompt_logprobs": 3, "stream": false, "priority": -5, "cache_salt": "s",
        "add_generation_prompt": false, "continue_final_message": true, "chat_template_kwargs": {"thinking": false},
        "response_format": {"type": "json_object"}, "verbosity": "low", "user": "u", "safety_identifier": "s",
    }))
    .expect("good");
    let expected = Params {
        max_tokens: Some(8),
        context_may_cut: false,
        min_tokens: 2,
        temperature: Some(0.5),
        top_k: Some(40),
        top_p: Some(0.9),
        min_p: Some(0.05),
        repetition_penalty: Some(1.1),
        presence_penalty: -1.0,
        frequency_penalty: 1.5,
        logit_bias: vec![(5, -100.0), (6, 1.5)],
        seed: Some(u64::MAX),
        stop: vec!["a".into(), "b".into()],
        stop_token_ids: vec![1, 2],
        ignore_eos: true,
        include_stop_str_in_output: true,
        skip_special_tokens: false,
        n: 3,
        constraint: Some(Constraint::JsonObject),
        constraint_param: Some("response_format"),
        schema_strict: None,
        verbosity: Some("low".into()),
        logprobs: Some(20),
        count_tokens: false,
        prompt_logprobs: Some(3),
        echo: false,
    };
    assert_eq!(call.params, expected);
    assert_eq!((call.priority, call.cache_salt.as_deref(), call.end_user.as_deref()), (-5, Some("s"), Some("s")));
    assert!(!chat.add_generation_prompt && chat.continue_final_message);
    assert_eq!(chat.template_kwargs.get("thinking"), Some(&json!(false)));
}

#[test]
fn null_is_absent_and_fields_without_effect_pass() {
    let (call, _) = read(json!({
        "max_tokens": null, "temperature": null, "stop": null, "tools": null, "response_format": null,
        "stream_options": null, "logit_bias": null, "n": null, "reasoning_effort": null, "guided_json": null,
        "user": "u", "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "safety_identifier": "x",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "parallel_tool_calls": true, "tool_choice": "none",
        "functions": [], "modalities": ["text"], "use_beam_search": false, "best_of": 1, "echo": false,
    }))
    .expect("good");
    assert_eq!(call.params.max_tokens, None);
    assert!(read(json!({"response_format": {"type": "text"}, "tools": [], "tool_choice": "auto"})).is_ok());
    assert_eq!(read(json!({"top_k": -1})).expect("off").0.params.top_k, Some(0));
    assert_eq!(read(json!({"top_logprobs": 0})).expect("nothing asked").0.params.logprobs, None);
    assert_eq!(read(json!({"stop": "x"})).expect("one").0.params.stop, ["x"]);
}

#[test]
fn bad_values_are_refused_by_name() {
    for (fields, param) in [
        (json!({"verbosity": "loud"}), "verbosity"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": -0.01}), "top_p"),
        (json!({"top_p": 1.01}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": 4_294_967_296_u64}), "top_k"),
        (json!({"min_p": 1.5}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"repetition_penalty": 101}), "repetition_penalty"),
        (json!({"presence_penalty": 2.5}), "presence_penalty"),
        (json!({"frequency_penalty": -2.5}), "frequency_penalty"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"n": 1.5}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 4_294_967_296_u64}), "max_tokens"),
        (json!({"min_tokens": 5, "max_tokens": 4}), "min_tokens"),
        (json!({"seed": 9_223_372_036_854_775_808_u64}), "seed"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias.1"),
        (json!({"logit_bias": {"1": "a"}}), "logit_bias.1"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"stop": [1]}), "stop[0]"),
        (json!({"stop": ""}), "stop[0]"),
        (json!({"stop": {}}), "stop"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": -1}), "top_logprobs"),
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"prompt_logprobs": -1}), "prompt_logprobs"),
        (json!({"prompt_logprobs": 1, "stream": true}), "prompt_logprobs"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"usage": true}}), "stream_options.usage"),
        (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"add_generation_prompt": true, "continue_final_message": true}), "continue_final_message"),
        (json!({"priority": 3_000_000_000_u64}), "priority"),
        (json!({"model": 5}), "model"),
        (json!({"max_token": 5}), "max_token"),
    ] {
        let error = read(fields.clone()).expect_err(&fields.to_string());
        assert_eq!(error.param.as_deref(), Some(param), "{fields}: {error}");
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    for (field, value) in [
        ("guided_whitespace_pattern", json!("x")),
        ("structural_tag", json!({})),
        ("logits_processors", json!(["x"])),
        ("bad_words", json!(["x"])),
        ("allowed_token_ids", json!([1])),
        ("truncate_prompt_tokens", json!(5)),
        ("use_beam_search", json!(true)),
        ("best_of", json!(2)),
        ("echo", json!(true)),
        ("return_token_ids", json!(true)),
        ("no_stop_trim", json!(true)),
        ("return_hidden_states", json!(true)),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "x"})),
        ("prediction", json!({})),
        ("separate_reasoning", json!(false)),
        ("chat_template", json!("{{ x }}")),
        ("documents", json!([{}])),
    ] {
        let error = read(json!({field: value})).expect_err(field);
        assert_eq!((error.param.as_deref(), error.code), (Some(field), Some("unsupported_parameter")), "{error}");
        assert!(error.message.starts_with(field), "{error}");
    }
}

#[test]
fn messages_keep_their_shape() {
    let chat = messages(json!([
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [{"type": "text", "text": "d", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": ["a", {"type": "text", "text": "b"}], "name": "ann"},
        {"role": "assistant", "content": null, "refusal": null, "audio": null, "function_call": null, "annotations": [],
         "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "assistant", "content": "ok", "reasoning_content": "because"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "refusal": "no"},
        {"type": "text", "role": "user", "content": "as lm-eval writes it"},
        {"type": "message", "role": "user", "content": "as OpenAI's items are written"},
    ]))
    .expect("good");
    let roles: Vec<_> = chat.messages.iter().take(8).map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["system", "developer", "user", "assistant", "tool", "assistant", "assistant", "assistant"]);
    assert_eq!(chat.messages[1].content, Content::Parts(vec!["d".into()]));
    assert_eq!(chat.messages[2].content, Content::Parts(vec!["a".into(), "b".into()]));
    assert_eq!(chat.messages[2].name.as_deref(), Some("ann"));
    assert_eq!(chat.messages[3].content, Content::None);
    assert_eq!(chat.messages[3].tool_calls[0]["function"]["arguments"], json!({"x": 1}));
    assert_eq!(chat.messages[4].tool_call_id.as_deref(), Some("c1"));
    assert_eq!(chat.messages[5].reasoning.as_deref(), Some("because"));
    assert_eq!(chat.messages[6].content, Content::Parts(vec!["no".into()]));
    assert_eq!(chat.messages[7].content, Content::Text("no".into()));
}

#[test]
fn arguments_that_do_not_parse_stay_text() {
    let call = json!({"type": "function", "function": {"name": "f", "arguments": "{oops"}});
    let chat = messages(json!([{"role": "assistant", "tool_calls": [call]}])).expect("good");
    assert_eq!(chat.messages[0].tool_calls[0]["function"]["arguments"], "{oops");
}

#[test]
fn bad_messages_are_named_by_place() {
    for (value, param) in [
        (Value::Null, "messages"),
        (json!([]), "messages"),
        (json!("hi"), "messages"),
        (json!(["hi"]), "messages[0]"),
        (json!([{"content": "a"}]), "messages[0].role"),
        (json!([{"role": "robot", "content": "a"}]), "messages[0].role"),
        (json!([{"role": "user"}]), "messages[0].content"),
        (json!([{"role": "user", "content": null}]), "messages[0].content"),
        (json!([{"role": "user", "content": []}]), "messages[0].content"),
        (json!([{"role": "user", "content": 5}]), "messages[0].content"),
        (json!([{"role": "assistant"}]), "messages[0].content"),
        (json!([{"role": "user", "content": "a", "colour": 1}]), "messages[0].colour"),
        (json!([{"role": "user", "content": "a", "tool_calls": [{}]}]), "messages[0].tool_calls"),
        (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0].function"),
        (json!([{"role": "assistant", "tool_calls": [{"function": {}}]}]), "messages[0].tool_calls[0].function.name"),
        (
            json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}]),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (json!([{"role": "assistant", "function_call": {}}]), "messages[0].tool_calls[0].function.name"),
        (json!([{"role": "user", "content": "a", "function_call": {"name": "f"}}]), "messages[0].function_call"),
        (json!([{"role": "function", "content": "a"}]), "messages[0].name"),
        (json!([{"role": "user", "content": [{"text": "a"}]}]), "messages[0].content[0].type"),
        (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
        (
            json!([{"role": "user", "content": ["a", {"type": "image_url", "image_url": {"url": "x"}}]}]),
            "messages[0].content[1].image_url",
        ),
        (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0].image_url"),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a", "size": 1}}]}]),
            "messages[0].content[0].image_url.size",
        ),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a", "detail": "x"}}]}]),
            "messages[0].content[0]",
        ),
        (
            json!([{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://a"}}]}]),
            "messages[0].content[0]",
        ),
        (json!([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]), "messages[0].content[0]"),
        (json!([{"role": "user", "content": [{"type": "hologram", "beam": 1}]}]), "messages[0].content[0]"),
        (json!([{"role": "user", "content": [{"type": "text", "text": 5}]}]), "messages[0].content[0].text"),
    ] {
        let error = messages(value.clone()).expect_err(&value.to_string());
        assert_eq!(error.param.as_deref(), Some(param), "{value}: {error}");
    }
    let audio = json!([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]);
    assert!(messages(audio).expect_err("a sound").message.contains("'input_audio'"));
}

#[test]
fn images_stay_where_they_are() {
    let url = "https://a.example/b.png";
    let chat = messages(json!([
        {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
            "a",
            {"type": "image_url", "image_url": "data:image/png;base64,aGk="},
        ]},
    ]))
    .expect("good");
    let image = |source, detail: Option<&str>, at: usize| {
        let param = format!("messages[0].content[{at}]");
        Part::Image(Image { source, detail: detail.map(str::to_owned), param })
    };
    let data = ImageSource::Data { media_type: "image/png".into(), base64: "aGk=".into() };
    let expected = vec![image(ImageSource::Url(url.into()), Some("low"), 0), "a".into(), image(data, None, 2)];
    assert_eq!(chat.messages[0].content, Content::Parts(expected));
}

fn function(name: &str, parameters: Value) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

#[test]
fn tools_and_their_choice_arrive() {
    let tools = json!([function("f", json!({"type": "object", "properties": {}})), function("g_2-x", Value::Null)]);
    let (_, chat) = read(json!({"tools": tools})).expect("good");
    assert_eq!(Value::Array(chat.tools.clone()), tools, "as they were sent");
    assert_eq!((chat.tool_choice, chat.parallel_tool_calls, chat.reasoning_effort), (ToolChoice::Auto, true, None));
    for (choice, expected) in [
        (json!("none"), ToolChoice::None),
        (json!("auto"), ToolChoice::Auto),
        (json!("required"), ToolChoice::Required),
        (json!({"type": "function", "function": {"name": "f"}}), ToolChoice::Named("f".into())),
    ] {
        let body = json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false});
        let (_, chat) = read(body).expect("good");
        assert_eq!((chat.tool_choice, chat.parallel_tool_calls), (expected, false), "{choice}");
    }
    let old = json!({"functions": [{"name": "f", "description": "d"}], "function_call": {"name": "f"}});
    let (_, chat) = read(old).expect("good");
    assert_eq!(chat.tools, [json!({"type": "function", "function": {"name": "f", "description": "d"}})]);
    assert_eq!((chat.tool_choice, chat.parallel_tool_calls), (ToolChoice::Named("f".into()), false));
    let (_, chat) = read(json!({"reasoning_effort": "low", "include_reasoning": false})).expect("good");
    assert_eq!(chat.reasoning_effort.as_deref(), Some("low"));
}

#[test]
fn bad_tools_are_named_by_place() {
    let f = || function("f", json!({"type": "object"}));
    let bare = |function: Value| json!([{"type": "function", "function": function}]);
    for (fields, param) in [
        (json!({"tools": {}}), "tools"),
        (json!({"tools": [5]}), "tools[0]"),
        (json!({"tools": [{}]}), "tools[0].type"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": [f(), {"type": "function", "name": "f"}]}), "tools[1].name"),
        (json!({"tools": bare(json!({}))}), "tools[0].function.name"),
        (json!({"tools": bare(json!({"name": "a b"}))}), "tools[0].function.name"),
        (json!({"tools": bare(json!({"name": ""}))}), "tools[0].function.name"),
        (json!({"tools": bare(json!({"name": "x".repeat(65)}))}), "tools[0].function.name"),
        (json!({"tools": [f(), f()]}), "tools[1].function.name"),
        (json!({"tools": bare(json!({"name": "f", "description": 5}))}), "tools[0].function.description"),
        (json!({"tools": bare(json!({"name": "f", "strict": "yes"}))}), "tools[0].function.strict"),
        (json!({"tools": bare(json!({"name": "f", "parameters": []}))}), "tools[0].function.parameters"),
        (
            json!({"tools": bare(json!({"name": "f", "parameters": {"type": "string"}}))}),
            "tools[0].function.parameters.type",
        ),
        (
            json!({"tools": bare(json!({"name": "f", "parameters": {"properties": []}}))}),
            "tools[0].function.parameters.properties",
        ),
        (
            json!({"tools": bare(json!({"name": "f", "parameters": {"required": [1]}}))}),
            "tools[0].function.parameters.required",
        ),
        (json!({"tools": (0..513).map(|at| function(&format!("f{at}"), Value::Null)).collect::<Vec<_>>()}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}), "tool_choice"),
        (json!({"tools": [f()], "tool_choice": "any"}), "tool_choice"),
        (json!({"tools": [f()], "tool_choice": 5}), "tool_choice"),
        (json!({"tools": [f()], "tool_choice": {"type": "custom"}}), "tool_choice.type"),
        (json!({"tools": [f()], "tool_choice": {"type": "allowed_tools"}}), "tool_choice.allowed_tools"),
        (json!({"tools": [f()], "tool_choice": allowed("never", &["f"])}), "tool_choice.allowed_tools.mode"),
        (json!({"tools": [f()], "tool_choice": allowed("auto", &[])}), "tool_choice.allowed_tools.tools"),
        (
            json!({"tools": [f()], "tool_choice": allowed("auto", &["f", "g"])}),
            "tool_choice.allowed_tools.tools[1].function.name",
        ),
        (json!({"tools": [f()], "tool_choice": {"type": "function"}}), "tool_choice.function.name"),
        (json!({"tools": [f()], "tool_choice": {"type": "function", "function": {"name": "g"}}}), "tool_choice"),
        (json!({"tools": [f()], "functions": [{"name": "g"}]}), "functions"),
        (json!({"functions": [{}]}), "functions[0].name"),
        (json!({"functions": [{"name": "f"}], "function_call": "required"}), "function_call"),
        (json!({"tools": [f()], "tool_choice": "auto", "function_call": "auto"}), "function_call"),
        (json!({"reasoning_effort": "much"}), "reasoning_effort"),
        (json!({"include_reasoning": 1}), "include_reasoning"),
    ] {
        let error = read(fields.clone()).expect_err(&fields.to_string());
        assert_eq!(error.param.as_deref(), Some(param), "{fields}: {error}");
    }
}

fn allowed(mode: &str, names: &[&str]) -> Value {
    let tools: Vec<Value> = names.iter().map(|name| json!({"type": "function", "function": {"name": name}})).collect();
    json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
}

#[test]
fn allowed_tools_are_all_the_model_sees() {
    let tools = [function("f", Value::Null), function("g", Value::Null)];
    for (mode, expected) in [("auto", ToolChoice::Auto), ("required", ToolChoice::Required)] {
        let (_, chat) = read(json!({"tools": tools, "tool_choice": allowed(mode, &["g"])})).expect("good");
        assert_eq!((chat.tools.len(), chat.tool_choice), (1, expected));
        assert_eq!(chat.tools[0]["function"]["name"], "g");
    }
}

#[test]
fn older_calls_become_tool_calls() {
    let chat = messages(json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{\"x\": 1}"}},
        {"role": "function", "name": "f", "content": "42"},
    ]))
    .expect("good");
    let call = json!({"id": "call_f", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}});
    assert_eq!(chat.messages[1].tool_calls, [call]);
    assert_eq!(chat.messages[2].role, "tool");
    assert_eq!(chat.messages[2].tool_call_id.as_deref(), Some("call_f"));
}
