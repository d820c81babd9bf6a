//! `streamGenerateContent`.

use super::{Transcript, sse};
use crate::gemini::reader;
use crate::stream::Framing;

fn check(name: &str, data: &[&str], expected: &[&str]) {
    let bytes = sse(data);
    Transcript { name, bytes, framing: Framing::Sse, reader, choices: 1, answer_tool: None }.check(expected);
}

fn parts(parts: &str) -> String {
    format!(
        r#"{{"candidates":[{{"content":{{"parts":{parts},"role":"model"}},"index":0}}],"usageMetadata":{{"promptTokenCount":9}}}}"#
    )
}

fn ended(reason: &str) -> String {
    format!(
        r#"{{"candidates":[{{"content":{{"parts":[{{"text":""}}]}},"finishReason":"{reason}","index":0}}],"usageMetadata":{{"promptTokenCount":9,"candidatesTokenCount":3,"thoughtsTokenCount":2,"cachedContentTokenCount":4,"totalTokenCount":14}}}}"#
    )
}

const COUNTED: &str = "done 9+5 cached 4 written 0 reasoned 2";

#[test]
fn answers() {
    let data = [&parts(r#"[{"text":"hm","thought":true}]"#), &parts(r#"[{"text":"hi"}]"#), &ended("STOP")];
    let events = ["prompt 9 0", "reasoning 0 hm", "text 0 hi", "finished 0 Stop(None)", COUNTED];
    check("thinking and text", &data.map(String::as_str), &events);
    let call = r#"{"functionCall":{"id":"a1","name":"f","args":{"x":1}},"thoughtSignature":"c2ln"}"#;
    let data = [&parts(&format!(r#"[{call},{{"functionCall":{{"name":"g"}}}}]"#)), &ended("STOP")];
    let events = [
        "prompt 9 0",
        "signature 0 gemini.c2ln",
        "call 0 0 a1 f",
        "arguments 0 0 {\"x\":1}",
        "call 0 1 call_70x1 g",
        "arguments 0 1 {}",
        "finished 0 ToolCalls",
        COUNTED,
    ];
    check("calls", &data.map(String::as_str), &events);
    for (reason, finish) in [
        ("FUNCTION_CALL", "finished 0 Stop(None)"),
        ("MAX_TOKENS", "finished 0 Length"),
        ("SAFETY", "finished 0 ContentFilter"),
        ("RECITATION", "finished 0 ContentFilter"),
        ("PROHIBITED_CONTENT", "finished 0 ContentFilter"),
    ] {
        check(reason, &[&ended(reason)], &["prompt 9 4", finish, COUNTED]);
    }
    let blocked = r#"{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":9}}"#;
    let events = ["prompt 9 0", "finished 0 ContentFilter", "done 9+0 cached 0 written 0 reasoned 0"];
    check("a blocked prompt", &[blocked], &events);
}

#[test]
fn what_goes_wrong() {
    let text = parts(r#"[{"text":"x"}]"#);
    let begun = |end: &'static str| vec!["prompt 9 0", "text 0 x", end];
    check("cut", &[&text], &begun("failed Upstream upstream_broken_off"));
    let exhausted = r#"{"error":{"code":429,"message":"quota","status":"RESOURCE_EXHAUSTED"}}"#;
    check("exhausted", &[&text, exhausted], &begun("failed RateLimited upstream_rate_limited"));
    let malformed = ended("MALFORMED_FUNCTION_CALL").replace(",\"thoughtsTokenCount\":2", "");
    check("malformed", &[&text, &malformed], &begun("failed Upstream upstream_failed"));
    check("garbage", &[&text, "[1"], &begun("failed Upstream upstream_garbled"));
}
