//! Providers against a fake that stalls, breaks and lies: who is spoken to, with which credentials, how it ends.

#[path = "../fake/mod.rs"]
mod fake;
mod roles;

use std::time::Duration;

use futures_util::StreamExt;
use sconce_providers::{Credentials, EventStream, HttpClient, Kind, Provider, ProviderConfig, Secret, Timeouts};
use sconce_vocabulary::error::{Error, ErrorKind};
use sconce_vocabulary::request::{
    Chat, Content, EmbedFinish, EmbedInput, EmbedRequest, Event, Message, Overlong, Params, Prompt, Request, Tenant,
};
use tokio::time::Instant;

use fake::{FakeProvider, Play, Seen, Step};

const KEY: &str = "sk-this-is-the-secret-key";
const ANSWER: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"},\"finish_reason\":\"stop\"}]}\n\n\
                      data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n";

fn request() -> Request {
    let content = Content::Text("hello".into());
    let user = Message { role: "user".into(), content, ..Message::default() };
    Request {
        id: "chatcmpl-1".into(),
        model: "m".into(),
        prompt: Prompt::Chat(Chat { messages: vec![user], add_generation_prompt: true, ..Chat::default() }),
        params: Params { n: 1, skip_special_tokens: true, ..Params::default() },
        tenant: Tenant::default(),
        priority: 0,
        end_user: None,
    }
}

fn config(kind: Kind, url: &str) -> ProviderConfig {
    let ms = Duration::from_millis;
    ProviderConfig {
        base_url: Some(url.to_owned()),
        credentials: Credentials::ApiKey(Secret::new(KEY)),
        region: Some("eu-central-1".into()),
        timeouts: Timeouts { connect: ms(2000), first_byte: ms(150), idle: ms(150) },
        ..ProviderConfig::new(kind, "m")
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

async fn ask(provider: &Provider) -> Result<Vec<Event>, Error> {
    Ok(provider.start(&request(), soon()).await?.collect().await)
}

async fn asked(play: Play) -> Result<Vec<Event>, Error> {
    asked_of(Kind::OpenAi, play).await
}

async fn asked_of(kind: Kind, play: Play) -> Result<Vec<Event>, Error> {
    let fake = FakeProvider::start(move |_| play.clone()).await;
    let provider = Provider::new(config(kind, &fake.url()), &HttpClient::new()).expect("good");
    ask(&provider).await
}

#[tokio::test]
async fn every_kind_is_asked_at_its_place_with_its_key() {
    let fake = FakeProvider::start(|_| Play::json(500, "{}")).await;
    let client = HttpClient::new();
    for (kind, path, header, value) in [
        (Kind::OpenAi, "/chat/completions", "authorization", format!("Bearer {KEY}")),
        (Kind::Compatible, "/chat/completions", "authorization", format!("Bearer {KEY}")),
        (Kind::Anthropic, "/v1/messages", "x-api-key", KEY.to_owned()),
        (Kind::Bedrock, "/model/m/converse-stream", "authorization", format!("Bearer {KEY}")),
        (Kind::Azure, "/openai/v1/chat/completions", "api-key", KEY.to_owned()),
        (Kind::Gemini, "/models/m:streamGenerateContent?alt=sse", "x-goog-api-key", KEY.to_owned()),
        (Kind::Mistral, "/chat/completions", "authorization", format!("Bearer {KEY}")),
    ] {
        let provider = Provider::new(config(kind, &fake.url()), &client).expect("good");
        let error = ask(&provider).await.expect_err("a failure");
        assert_eq!((error.kind, error.code), (ErrorKind::Upstream, Some("upstream_failed")), "{kind:?}: {error}");
        let seen = fake.seen().pop().expect("a request");
        assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", path), "{kind:?}");
        assert_eq!(seen.header(header), Some(value.as_str()), "{kind:?}");
        assert!(!seen.body.contains(KEY) && !seen.path.contains(KEY), "{kind:?}");
    }
    let bedrock = ProviderConfig {
        credentials: Credentials::Aws {
            access_key_id: Secret::new("AKID"),
            secret_access_key: Secret::new(KEY),
            session_token: None,
        },
        ..config(Kind::Bedrock, &fake.url())
    };
    let provider = Provider::new(bedrock, &client).expect("good");
    ask(&provider).await.expect_err("a failure");
    let seen = fake.seen().pop().expect("a request");
    let signed = seen.header("authorization").expect("a signature");
    assert!(
        signed.starts_with("AWS4-HMAC-SHA256 Credential=AKID/") && signed.contains("/eu-central-1/bedrock/"),
        "{signed}"
    );
    assert!(seen.headers.iter().all(|(_, value)| !value.contains(KEY)));
}

#[tokio::test]
async fn an_answer_comes_and_the_connection_is_kept() {
    let fake = FakeProvider::start(|_| Play::sse(ANSWER)).await;
    let provider = Provider::new(config(Kind::OpenAi, &fake.url()), &HttpClient::new()).expect("good");
    for _ in 0..3 {
        let events = ask(&provider).await.expect("an answer");
        assert!(matches!(events.last(), Some(Event::Done(usage)) if usage.prompt_tokens == 3), "{events:?}");
    }
}

#[tokio::test]
async fn answers_that_are_not_streamed_are_taken_too() {
    let chat = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}"#;
    let gemini = r#"{"candidates":[{"content":{"parts":[{"text":"hi"}]},"finishReason":"STOP"}]}"#;
    for (kind, document) in [(Kind::OpenAi, chat), (Kind::Mistral, chat), (Kind::Gemini, gemini)] {
        let events = asked_of(kind, Play::json(200, document)).await.expect("an answer");
        assert!(matches!(&events[1], Event::Text { text, .. } if text == "hi"), "{kind:?}: {events:?}");
        assert!(matches!(events.last(), Some(Event::Done(_))), "{kind:?}: {events:?}");
        let events = asked_of(kind, Play::json(200, "{}")).await.expect("a start");
        assert!(matches!(events.last(), Some(Event::Failed(_))), "{kind:?}: an empty document is none: {events:?}");
    }
}

#[tokio::test]
async fn what_fails_before_the_answer_is_an_error_of_its_kind() {
    let echo = format!(r#"{{"error":{{"message":"Incorrect API key provided: {KEY}"}}}}"#);
    let limited = Play::Answer { status: 429, headers: vec![("retry-after".into(), "7".into())], body: b"{}".to_vec() };
    let elsewhere =
        Play::Answer { status: 307, headers: vec![("location".into(), "http://127.0.0.1:9/".into())], body: vec![] };
    let html =
        Play::Answer { status: 200, headers: vec![("content-type".into(), "text/html".into())], body: b"<p>".to_vec() };
    for (play, kind, code, retry_after_s) in [
        (Play::json(401, &echo), ErrorKind::Upstream, "upstream_credentials", None),
        (Play::json(400, &echo), ErrorKind::InvalidRequest, "upstream_invalid_request", None),
        (limited, ErrorKind::RateLimited, "upstream_rate_limited", Some(7)),
        (Play::json(529, "{}"), ErrorKind::Unavailable, "upstream_unavailable", None),
        (elsewhere, ErrorKind::Upstream, "upstream_redirect", None),
        (html, ErrorKind::Upstream, "upstream_garbled", None),
        (Play::HangUp, ErrorKind::Upstream, "upstream_broken_off", None),
        (Play::Silence, ErrorKind::Timeout, "first_byte_timeout", None),
    ] {
        let error = asked(play.clone()).await.expect_err("a failure");
        assert_eq!(
            (error.kind, error.code, error.retry_after_s),
            (kind, Some(code), retry_after_s),
            "{play:?}: {error}"
        );
        assert!(!error.message.contains("secret"), "{error}");
    }
    let nobody = Provider::new(config(Kind::OpenAi, "http://127.0.0.1:1"), &HttpClient::new()).expect("good");
    let error = ask(&nobody).await.expect_err("nobody there");
    assert_eq!((error.kind, error.code), (ErrorKind::Unavailable, Some("connect_failed")), "{error}");
}

#[tokio::test]
async fn what_fails_in_the_answer_ends_it_once() {
    let text = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"}}]}\n\n";
    let send = |text: &str| Step::Send(text.as_bytes().to_vec());
    for (steps, code) in [
        (vec![send(text), Step::Stall], "idle_timeout"),
        (vec![Step::Stall], "first_byte_timeout"),
        (vec![send(text), Step::Cut], "upstream_broken_off"),
        (vec![send(text), send("data: {\"cho"), Step::Cut], "upstream_broken_off"),
        (vec![send(text)], "upstream_broken_off"),
        (vec![send(text), send("data: nonsense\n\n")], "upstream_garbled"),
        (vec![send(text), send("data: {\"error\":{\"message\":\"no\"}}\n\n")], "upstream_failed"),
    ] {
        let events = asked(Play::events(steps.clone())).await.expect("accepted");
        let Some(Event::Failed(error)) = events.last() else { panic!("{steps:?}: {events:?}") };
        assert_eq!(error.code, Some(code), "{steps:?}: {error}");
        assert_eq!(events.iter().filter(|event| matches!(event, Event::Failed(_) | Event::Done(_))).count(), 1);
    }
    // Nothing is lost when the connection breaks after the last word, nor by pauses within the limits.
    let pause = Step::Wait(Duration::from_millis(5));
    for steps in [vec![send(ANSWER), Step::Cut], vec![pause.clone(), send(ANSWER), pause]] {
        let events = asked(Play::events(steps)).await.expect("accepted");
        assert!(matches!(events.last(), Some(Event::Done(_))), "{events:?}");
    }
}

#[tokio::test]
async fn who_goes_away_is_gone_at_the_provider_too() {
    let mut fake = FakeProvider::start(|_| {
        let text = b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"}}]}\n\n";
        Play::events(vec![Step::Send(text.to_vec()), Step::Stall])
    })
    .await;
    let patient =
        Timeouts { idle: Duration::from_secs(60), first_byte: Duration::from_secs(60), ..Timeouts::default() };
    let config = ProviderConfig { timeouts: patient, ..config(Kind::OpenAi, &fake.url()) };
    let provider = Provider::new(config, &HttpClient::new()).expect("good");
    let mut stream: EventStream = provider.start(&request(), soon()).await.expect("accepted");
    assert!(matches!(stream.next().await, Some(Event::Prompt(_))));
    drop(stream);
    fake.wait_gone(1).await;
    let deadline = Instant::now() + Duration::from_millis(50);
    let events: Vec<Event> = provider.start(&request(), deadline).await.expect("accepted").collect().await;
    assert!(matches!(events.last(), Some(Event::Failed(error)) if error.code == Some("request_timeout")), "{events:?}");
    fake.wait_gone(2).await;
}

#[tokio::test]
async fn vectors_and_probes() {
    let fake = FakeProvider::start(|seen: &Seen| match seen.path.as_str() {
        "/embeddings" => Play::json(
            200,
            r#"{"data":[{"index":1,"embedding":[3,4]},{"index":0,"embedding":[1,2]}],"usage":{"prompt_tokens":5}}"#,
        ),
        "/models/m:batchEmbedContents" => Play::json(200, r#"{"embeddings":[{"values":[1,2]},{"values":[3,4]}]}"#),
        "/model/amazon.titan-embed-text-v2%3A0/invoke" => {
            Play::json(200, r#"{"embedding":[1,2],"inputTextTokenCount":2}"#)
        }
        "/model/m/converse" => Play::json(400, r#"{"message":"messages must not be empty"}"#),
        "/models" | "/v1/models?limit=1" | "/models?pageSize=1" => Play::json(200, "{}"),
        _ => Play::json(404, "{}"),
    })
    .await;
    let client = HttpClient::new();
    let embed = EmbedRequest {
        model: "m".into(),
        inputs: vec![EmbedInput::Text("a".into()), EmbedInput::Text("b".into())],
        label: |index| format!("input[{index}]"),
        overlong: Overlong::Refuse,
        add_special_tokens: true,
        finish: EmbedFinish::default(),
        priority: 0,
    };
    for (kind, tokens) in [(Kind::OpenAi, 5), (Kind::Compatible, 5), (Kind::Mistral, 5), (Kind::Gemini, 0)] {
        let provider = Provider::new(config(kind, &fake.url()), &client).expect("good");
        let embedded = provider.embed(&embed, soon()).await.expect("vectors");
        assert_eq!((embedded.values.as_slice(), embedded.width), ([1.0, 2.0, 3.0, 4.0].as_slice(), 2), "{kind:?}");
        assert_eq!(embedded.prompt_tokens, tokens, "{kind:?}");
    }
    let titan = ProviderConfig { model: "amazon.titan-embed-text-v2:0".into(), ..config(Kind::Bedrock, &fake.url()) };
    let embedded = Provider::new(titan, &client).expect("good").embed(&embed, soon()).await.expect("vectors");
    assert_eq!((embedded.values.as_slice(), embedded.prompt_tokens), ([1.0, 2.0, 1.0, 2.0].as_slice(), 4));
    let cut = EmbedRequest { overlong: Overlong::Cut(None), ..embed };
    let provider = Provider::new(config(Kind::OpenAi, &fake.url()), &client).expect("good");
    let error = provider.embed(&cut, soon()).await.expect_err("no cutting");
    assert_eq!(error.param.as_deref(), Some("truncate_prompt_tokens"));
    for kind in Kind::ALL {
        let provider = Provider::new(config(kind, &fake.url()), &client).expect("good");
        provider.probe(soon()).await.unwrap_or_else(|why| panic!("{kind:?}: {why}"));
    }
    let refusing = FakeProvider::start(|_| Play::json(401, "{}")).await;
    for kind in Kind::ALL {
        let provider = Provider::new(config(kind, &refusing.url()), &client).expect("good");
        let error = provider.probe(soon()).await.expect_err("a wrong key");
        assert_eq!(error.code, Some("upstream_credentials"), "{kind:?}");
    }
}

#[test]
fn configurations_are_checked_without_telling_secrets() {
    let client = HttpClient::new();
    let aws = Credentials::Aws {
        access_key_id: Secret::new("AKID"),
        secret_access_key: Secret::new(KEY),
        session_token: None,
    };
    let base = |kind, url: Option<&str>| ProviderConfig {
        base_url: url.map(str::to_owned),
        credentials: Credentials::ApiKey(Secret::new(KEY)),
        ..ProviderConfig::new(kind, "m")
    };
    for (config, words) in [
        (base(Kind::Compatible, None), "base_url"),
        (base(Kind::Azure, None), "base_url"),
        (base(Kind::Bedrock, None), "region"),
        (base(Kind::OpenAi, Some("ftp://a")), "http"),
        (base(Kind::OpenAi, Some("nonsense")), "cannot be read"),
        (base(Kind::OpenAi, Some("https://user:pass@a")), "credentials"),
        (base(Kind::OpenAi, Some("https://a?key=b")), "query"),
        (ProviderConfig { model: String::new(), ..base(Kind::OpenAi, None) }, "model"),
        (ProviderConfig { credentials: aws.clone(), ..base(Kind::OpenAi, None) }, "AWS"),
        (ProviderConfig { credentials: aws, ..base(Kind::Bedrock, Some("https://a")) }, "region"),
        (ProviderConfig { region: Some("eu/../x".into()), ..base(Kind::Bedrock, None) }, "us-east-1"),
        (
            ProviderConfig { headers: vec![("bad header".into(), Secret::new(KEY))], ..base(Kind::OpenAi, None) },
            "bad header",
        ),
        (
            ProviderConfig {
                credentials: Credentials::ApiKey(Secret::new("sk-\u{1}secret")),
                ..base(Kind::OpenAi, None)
            },
            "authorization",
        ),
    ] {
        assert!(!format!("{config:?}").contains("secret-key"), "{words}");
        let error = Provider::new(config, &client).map(drop).expect_err(words);
        assert!(error.message.contains(words) && !error.message.contains("secret"), "{error}");
    }
}
