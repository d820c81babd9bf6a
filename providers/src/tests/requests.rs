//! What goes out: bodies of every kind for one conversation that has everything, and what is refused before.

use sconce_vocabulary::request::{
    Chat, Constraint, Content, Image, ImageSource, Message, Params, Part, Prompt, Request, Seal, Tenant, Thinking,
    Thought, ToolChoice,
};
use serde_json::{Value, json};

use crate::config::{Kind, ProviderConfig, SchemaBy};
use crate::{HttpClient, Provider};

fn said(role: &str, text: &str) -> Message {
    Message { role: role.to_owned(), content: Content::Text(text.to_owned()), ..Message::default() }
}

/// A conversation with system words, an image, sealed thoughts, two calls and their results.
fn conversation() -> Chat {
    let source = ImageSource::Data { media_type: "image/png".into(), base64: "aGk=".into() };
    let image = Part::Image(Image { source, detail: Some("low".into()), param: "messages[1].content[1]".into() });
    let call = |id: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
    let thought = |seal: &str| Thought { text: "hm".into(), seal: Seal::Signature(seal.into()) };
    let result = |id: &str| Message { tool_call_id: Some(id.into()), name: Some("f".into()), ..said("tool", "42") };
    Chat {
        messages: vec![
            said("developer", "be brief"),
            Message { content: Content::Parts(vec!["look".into(), image]), ..said("user", "") },
            Message {
                tool_calls: vec![call("call_1", json!({"x": 1})), call("b c", json!("oops"))],
                reasoning: Some("hm".into()),
                thoughts: vec![thought("anthropic.s1"), thought("gemini.s2"), thought("openai.rs_1.s3")],
                ..said("assistant", "well")
            },
            result("call_1"),
            result("b c"),
            said("user", "so?"),
        ],
        tools: vec![json!({"type": "function", "function": {
            "name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {}}},
        }, "cache_control": {}})],
        parallel_tool_calls: true,
        add_generation_prompt: true,
        ..Chat::default()
    }
}

fn request(mut chat: Chat, params: Params) -> Request {
    chat.add_generation_prompt = !chat.continue_final_message;
    Request {
        id: "chatcmpl-7".into(),
        model: "m".into(),
        prompt: Prompt::Chat(chat),
        params: Params { n: params.n.max(1), skip_special_tokens: true, ..params },
        tenant: Tenant::default(),
        priority: 0,
        end_user: Some("u".into()),
    }
}

fn config(kind: Kind, model: &str) -> ProviderConfig {
    ProviderConfig { base_url: Some("http://127.0.0.1:1/v1".into()), ..ProviderConfig::new(kind, model) }
}

fn body(config: ProviderConfig, request: &Request) -> (String, Value) {
    let provider = Provider::new(config, &HttpClient::new()).expect("a good configuration");
    let refused = provider.unsupported(request);
    assert!(refused.is_none(), "{refused:?}");
    let prepared = provider.prepared(request).expect("a body");
    (prepared.path, Value::Object(prepared.body))
}

fn sampled() -> Params {
    Params {
        max_tokens: Some(100),
        temperature: Some(0.7),
        top_p: Some(0.9),
        constraint: Some(Constraint::JsonSchema(json!({
            "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
        }))),
        ..Params::default()
    }
}

#[test]
fn chat_completions() {
    let params = Params { seed: Some(5), stop: vec!["END".into()], logprobs: Some(2), ..sampled() };
    let (path, sent) = body(config(Kind::OpenAi, "gpt-x"), &request(conversation(), params.clone()));
    assert_eq!(path, "/chat/completions");
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let call = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
    let second = crate::turns::fitted_id("b c", 40);
    let expected = json!({
        "model": "gpt-x", "stream": true, "stream_options": {"include_usage": true},
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}}]},
            {"role": "assistant", "content": "well", "tool_calls": [call("call_1", "{\"x\":1}"), call(&second, "oops")]},
            {"role": "tool", "content": "42", "tool_call_id": "call_1"},
            {"role": "tool", "content": "42", "tool_call_id": second},
            {"role": "user", "content": "so?"}],
        "safety_identifier": "u", "max_completion_tokens": 100, "temperature": 0.7, "top_p": 0.9, "seed": 5,
        "stop": ["END"], "logprobs": true, "top_logprobs": 2,
        "response_format": {"type": "json_schema",
                            "json_schema": {"name": "answer", "schema": schema, "strict": false}},
        "tools": [{"type": "function", "function": {
            "name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {}}}}}],
    });
    assert_eq!(sent, expected);
    // A compatible server gets the older names, and everything that it knows besides.
    let params =
        Params { top_k: Some(40), min_p: Some(0.05), constraint: Some(Constraint::Regex("a+".into())), ..params };
    let mut chat = conversation();
    chat.template_kwargs.insert("enable_thinking".into(), json!(true));
    let (_, sent) = body(config(Kind::Compatible, "m"), &request(chat, params));
    for (field, value) in [
        ("max_tokens", json!(100)),
        ("top_k", json!(40)),
        ("min_p", json!(0.05)),
        ("structured_outputs", json!({"regex": "a+"})),
        ("chat_template_kwargs", json!({"enable_thinking": true})),
        ("user", json!("u")),
        ("max_completion_tokens", Value::Null),
    ] {
        assert_eq!(sent[field], value, "{field}");
    }
    assert_eq!(
        (&sent["messages"][0]["role"], &sent["messages"][2]["reasoning_content"]),
        (&json!("system"), &json!("hm"))
    );
}

#[test]
fn azure_paths() {
    let chat = || request(Chat { messages: vec![said("user", "a")], ..Chat::default() }, Params::default());
    for (base, version, responses, expected) in [
        ("https://x.openai.azure.com", None, false, "/openai/v1/chat/completions"),
        ("https://x.openai.azure.com/openai/v1/", None, true, "/responses"),
        (
            "https://x.openai.azure.com/",
            Some("2024-10-21"),
            false,
            "/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21",
        ),
        ("https://x.openai.azure.com/openai", Some("preview"), true, "/responses?api-version=preview"),
    ] {
        let config = ProviderConfig {
            base_url: Some(base.into()),
            api_version: version.map(str::to_owned),
            responses,
            ..ProviderConfig::new(Kind::Azure, "my gpt")
        };
        assert_eq!(body(config, &chat()).0, expected, "{base} {version:?}");
    }
}

#[test]
fn responses() {
    let mut chat = conversation();
    chat.tool_choice = ToolChoice::Named("f".into());
    chat.thinking =
        Box::new(Thinking { effort: Some("low".into()), summary: Some("auto".into()), ..Thinking::default() });
    let config = ProviderConfig { responses: true, ..config(Kind::OpenAi, "gpt-x") };
    let (path, sent) = body(config, &request(chat, Params { schema_strict: Some(true), ..sampled() }));
    assert_eq!(path, "/responses");
    let items: Vec<&str> = sent["input"].as_array().expect("items").iter().filter_map(|i| i["type"].as_str()).collect();
    let expected = [
        "message",
        "message",
        "reasoning",
        "message",
        "function_call",
        "function_call",
        "function_call_output",
        "function_call_output",
        "message",
    ];
    assert_eq!(items, expected);
    let reasoning = json!({
        "type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "s3",
    });
    assert_eq!(sent["input"][2], reasoning);
    assert_eq!(sent["input"][1]["content"][1]["type"], "input_image");
    assert_eq!(sent["reasoning"], json!({"effort": "low", "summary": "auto"}));
    assert_eq!(sent["text"]["format"]["strict"], true);
    assert_eq!(sent["tool_choice"], json!({"type": "function", "name": "f"}));
    assert_eq!((&sent["store"], &sent["include"]), (&json!(false), &json!(["reasoning.encrypted_content"])));
}

#[test]
fn messages() {
    let mut chat = conversation();
    chat.parallel_tool_calls = false;
    chat.thinking = Box::new(Thinking { enabled: Some(true), budget_tokens: Some(1024), ..Thinking::default() });
    let params = Params { max_tokens: None, stop: vec!["END".into()], top_k: Some(5), ..sampled() };
    let anthropic = ProviderConfig { prompt_caching: true, ..config(Kind::Anthropic, "claude-x") };
    let (path, sent) = body(anthropic.clone(), &request(chat.clone(), params.clone()));
    assert_eq!(path, "/v1/messages");
    let second = crate::turns::fitted_id("b c", 64);
    let schema = json!({
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false,
    });
    let expected = json!({
        "model": "claude-x", "max_tokens": 8192, "stream": true, "temperature": 0.7, "top_p": 0.9, "top_k": 5,
        "stop_sequences": ["END"], "metadata": {"user_id": "u"}, "cache_control": {"type": "ephemeral"},
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s1"},
                {"type": "text", "text": "well"},
                {"type": "tool_use", "id": "call_1", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": second, "name": "f", "input": {"INVALID_JSON": "oops"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "42"},
                {"type": "tool_result", "tool_use_id": second, "content": "42"},
                {"type": "text", "text": "so?"}]}],
        "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {"x": {}}}, "description": "d"}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": true},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
    });
    assert_eq!(sent, expected);
    // By a tool: it must be called, or one of the others. Then there is no thinking before it.
    let by_tool = ProviderConfig { schema_by: SchemaBy::ForcedTool, ..anthropic };
    let provider = Provider::new(by_tool.clone(), &HttpClient::new()).expect("good");
    let refused = provider.prepared(&request(chat.clone(), params.clone())).map(drop).expect_err("both");
    assert_eq!(refused.param.as_deref(), Some("reasoning_effort"));
    chat.thinking = Box::default();
    let (_, sent) = body(by_tool, &request(chat, params));
    assert_eq!(sent["tool_choice"], json!({"type": "any", "disable_parallel_tool_use": true}));
    assert_eq!((&sent["tools"][1]["name"], &sent["output_config"]), (&json!("json_answer"), &Value::Null));
}

#[test]
fn converse() {
    let mut chat = conversation();
    chat.tool_choice = ToolChoice::Required;
    chat.thinking = Box::new(Thinking { enabled: Some(true), effort: Some("high".into()), ..Thinking::default() });
    let model = "us.anthropic.claude-x-v1:0";
    let params = Params { top_k: Some(5), stop: vec!["END".into()], ..sampled() };
    let (path, sent) = body(config(Kind::Bedrock, model), &request(chat, params));
    assert_eq!(path, "/model/us.anthropic.claude-x-v1%3A0/converse-stream");
    let second = crate::turns::fitted_id("b c", 64);
    let schema = json!({
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false,
    });
    let result = |id: &str| json!({"toolResult": {"toolUseId": id, "content": [{"text": "42"}]}});
    let expected = json!({
        "additionalModelResponseFieldPaths": ["/stop_sequence"],
        "inferenceConfig": {"maxTokens": 100, "temperature": 0.7, "topP": 0.9, "stopSequences": ["END"]},
        "system": [{"text": "be brief"}],
        "messages": [
            {"role": "user", "content": [
                {"text": "look"}, {"image": {"format": "png", "source": {"bytes": "aGk="}}}]},
            {"role": "assistant", "content": [
                {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s1"}}},
                {"text": "well"},
                {"toolUse": {"toolUseId": "call_1", "name": "f", "input": {"x": 1}}},
                {"toolUse": {"toolUseId": second, "name": "f", "input": {"INVALID_JSON": "oops"}}}]},
            {"role": "user", "content": [result("call_1"), result(&second), {"text": "so?"}]}],
        "toolConfig": {
            "tools": [{"toolSpec": {
                "name": "f", "description": "d",
                "inputSchema": {"json": {"type": "object", "properties": {"x": {}}}}}}],
            "toolChoice": {"any": {}}},
        "outputConfig": {
            "textFormat": {"type": "json_schema",
                           "structure": {"jsonSchema": {"name": "answer", "schema": schema.to_string()}}},
            "effort": "high"},
        "additionalModelRequestFields": {"top_k": 5, "thinking": {"type": "adaptive", "display": "summarized"}},
    });
    assert_eq!(sent, expected);
}

#[test]
fn generate_content() {
    let mut chat = conversation();
    chat.tool_choice = ToolChoice::Named("f".into());
    chat.thinking = Box::new(Thinking { enabled: Some(true), effort: Some("low".into()), ..Thinking::default() });
    let (path, sent) = body(config(Kind::Gemini, "gemini-3-pro"), &request(chat.clone(), Params { n: 2, ..sampled() }));
    assert_eq!(path, "/models/gemini-3-pro:streamGenerateContent?alt=sse");
    let result = |id: &str| json!({"functionResponse": {"id": id, "name": "f", "response": {"output": "42"}}});
    let expected = json!({
        "systemInstruction": {"parts": [{"text": "be brief"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "look"}, {"inlineData": {"mimeType": "image/png", "data": "aGk="}}]},
            {"role": "model", "parts": [
                {"text": "well"},
                {"functionCall": {"id": "call_1", "name": "f", "args": {"x": 1}}, "thoughtSignature": "s2"},
                {"functionCall": {"id": "b c", "name": "f", "args": {"INVALID_JSON": "oops"}}}]},
            {"role": "user", "parts": [result("call_1"), result("b c"), {"text": "so?"}]}],
        "tools": [{"functionDeclarations": [{
            "name": "f", "description": "d", "parametersJsonSchema": {"type": "object", "properties": {"x": {}}}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
        "generationConfig": {
            "maxOutputTokens": 100, "temperature": 0.7, "topP": 0.9, "candidateCount": 2,
            "responseMimeType": "application/json",
            "responseJsonSchema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            "thinkingConfig": {"includeThoughts": true, "thinkingLevel": "low"}},
    });
    assert_eq!(sent, expected);
    // Signatures that got lost are excused; the second generation has budgets and misses none.
    chat.messages[2].thoughts.clear();
    let (_, sent) = body(config(Kind::Gemini, "gemini-3-pro"), &request(chat.clone(), sampled()));
    assert_eq!(sent["contents"][1]["parts"][1]["thoughtSignature"], "skip_thought_signature_validator");
    let (_, sent) = body(config(Kind::Gemini, "gemini-2.5-flash"), &request(chat, sampled()));
    assert_eq!(sent["contents"][1]["parts"][1]["thoughtSignature"], Value::Null);
    assert_eq!(sent["generationConfig"]["thinkingConfig"]["thinkingBudget"], 1024);
}

#[test]
fn mistral() {
    let mut chat = conversation();
    chat.tool_choice = ToolChoice::Required;
    let (path, sent) = body(config(Kind::Mistral, "m"), &request(chat, Params { seed: Some(u64::MAX), ..sampled() }));
    assert_eq!(path, "/chat/completions");
    let ids: Vec<&str> = [&sent["messages"][2]["tool_calls"][0]["id"], &sent["messages"][3]["tool_call_id"]]
        .into_iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(ids[0] == ids[1] && ids[0].len() == 9, "{ids:?}");
    assert_eq!((&sent["random_seed"], &sent["tool_choice"]), (&json!(0x7fff_ffff), &json!("any")));
    for field in ["stream_options", "seed", "user", "safety_identifier"] {
        assert_eq!(sent[field], Value::Null, "{field} is refused there");
    }
}

#[test]
fn what_cannot_be_honoured_is_named() {
    use Kind::{Anthropic, Azure, Bedrock, Gemini, Mistral, OpenAi};
    let refused = |kind: Kind, chat: Chat, params: Params| {
        let provider = Provider::new(config(kind, "m"), &HttpClient::new()).expect("good");
        provider.unsupported(&request(chat, params)).map(|error| error.param.unwrap_or_default())
    };
    let none = Params::default;
    let schema = || Some(Constraint::Grammar("g".into()));
    for (params, field, kinds) in [
        (Params { n: 2, ..none() }, "n", &[Anthropic, Bedrock][..]),
        (Params { top_k: Some(4), ..none() }, "top_k", &[OpenAi, Azure, Bedrock]),
        (Params { min_p: Some(0.1), ..none() }, "min_p", &[OpenAi, Azure, Anthropic, Bedrock, Gemini, Mistral]),
        (Params { presence_penalty: 1.0, ..none() }, "presence_penalty", &[Anthropic, Bedrock]),
        (Params { logit_bias: vec![(1, 1.0)], ..none() }, "logit_bias", &[Anthropic, Bedrock, Gemini, Mistral]),
        (Params { seed: Some(1), ..none() }, "seed", &[Anthropic, Bedrock]),
        (Params { logprobs: Some(0), ..none() }, "logprobs", &[Anthropic, Bedrock, Gemini, Mistral]),
        (Params { prompt_logprobs: Some(0), ..none() }, "prompt_logprobs", &Kind::ALL),
        (Params { min_tokens: 1, ..none() }, "min_tokens", &[OpenAi, Azure, Anthropic, Bedrock, Gemini]),
        (
            Params { constraint: schema(), constraint_param: Some("guided_grammar"), ..none() },
            "guided_grammar",
            &[OpenAi, Azure, Anthropic, Bedrock, Gemini, Mistral],
        ),
        (Params { verbosity: Some("low".into()), ..none() }, "verbosity", &[Anthropic, Bedrock, Gemini, Mistral]),
        (Params { verbosity: Some("medium".into()), top_k: Some(0), min_p: Some(0.0), ..none() }, "", &[]),
    ] {
        for kind in Kind::ALL {
            let expected = kinds.contains(&kind).then(|| field.to_owned());
            assert_eq!(refused(kind, Chat::default(), params.clone()), expected, "{kind:?} {params:?}");
        }
    }
    let prefill = Chat { continue_final_message: true, ..Chat::default() };
    assert_eq!(refused(OpenAi, prefill.clone(), none()).as_deref(), Some("continue_final_message"));
    assert_eq!(refused(Anthropic, prefill, none()), None);
    let thinking = Box::new(Thinking { enabled: Some(true), ..Thinking::default() });
    assert_eq!(refused(Bedrock, Chat { thinking, ..Chat::default() }, none()).as_deref(), Some("reasoning_effort"));
    let source = ImageSource::Url("https://a.example".into());
    let image = || Part::Image(Image { source: source.clone(), detail: None, param: "p".into() });
    let shown = |role: &str| Chat {
        messages: vec![Message { content: Content::Parts(vec![image()]), ..said(role, "") }],
        ..Chat::default()
    };
    assert_eq!(refused(Gemini, shown("user"), none()).as_deref(), Some("p"));
    assert_eq!(refused(OpenAi, shown("tool"), none()).as_deref(), Some("p"));
    assert_eq!(refused(OpenAi, shown("user"), none()), None);
}

#[test]
fn a_provider_says_where_it_is() {
    for (base_url, host, port) in [
        (None, "api.openai.com", 443),
        (Some("http://home.example/v1"), "home.example", 80),
        (Some("http://[::1]:8080/v1"), "::1", 8080),
    ] {
        let config = ProviderConfig { base_url: base_url.map(str::to_owned), ..config(Kind::OpenAi, "gpt-x") };
        let provider = Provider::new(config, &HttpClient::new()).expect("good");
        assert_eq!(provider.server(), Some((host.to_owned(), port)));
    }
}
