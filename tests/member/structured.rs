//! Constraints through the whole member: compiled, followed by the engine, ended by the grammar.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use sconce::config::ModelLimits;
use sconce::error::ErrorKind;
use sconce::launch::Launch;
use sconce::request::{Constraint, Event, Finish, Params, Request, StopMatch, TokenReport};
use serde_json::{Value, json};

use crate::{launch, request};

/// What a request came to, by choice.
#[derive(Debug, Default)]
struct Answer {
    texts: BTreeMap<u32, String>,
    finishes: BTreeMap<u32, Finish>,
    reports: Vec<TokenReport>,
    completion_tokens: u32,
}

async fn ask(launch: &Launch, params: Params) -> sconce::error::Result<Answer> {
    let mut events = launch.pool.submit(Request { params, ..request(1, 1) }).await?;
    let mut answer = Answer::default();
    while let Some(event) = events.next().await {
        match event {
            Event::Text { choice, text, tokens, .. } => {
                answer.texts.entry(choice).or_default().push_str(&text);
                answer.reports.extend(tokens);
            }
            Event::Finished { choice, reason } => _ = answer.finishes.insert(choice, reason),
            Event::Done(usage) => answer.completion_tokens = usage.completion_tokens,
            Event::Failed(error) => return Err(error),
            _ => {}
        }
    }
    Ok(answer)
}

fn params(constraint: Constraint) -> Params {
    Params { constraint: Some(constraint), max_tokens: Some(300), temperature: Some(0.0), n: 1, ..Params::default() }
}

fn regex(expression: &str) -> Params {
    params(Constraint::Regex(expression.to_owned()))
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "weather": {"enum": ["sunny", "rainy", "foggy"]},
            "degrees": {"type": "integer", "minimum": -30, "maximum": 45},
        },
        "required": ["city", "weather", "degrees"],
        "additionalProperties": false,
    })
}

#[tokio::test]
async fn an_answer_has_the_form_that_was_asked_for_and_ends_with_it() {
    let launch = launch(ModelLimits::default()).await;
    for temperature in [0.0, 1.5] {
        let wanted = Params { n: 3, temperature: Some(temperature), ..params(Constraint::JsonSchema(schema())) };
        let answer = ask(&launch, wanted).await.expect("it is answered");
        for (choice, text) in &answer.texts {
            let value: Value = serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text}"));
            assert_eq!(value.as_object().expect("an object").len(), 3, "{text}");
            assert!(["sunny", "rainy", "foggy"].iter().any(|weather| value["weather"] == **weather), "{text}");
            assert!((-30..=45).contains(&value["degrees"].as_i64().expect("a number")), "{text}");
            assert_eq!(answer.finishes[choice], Finish::Stop(None));
        }
        assert_eq!(answer.texts.len(), 3);
    }
    let answer = ask(&launch, params(Constraint::Choice(vec!["left".into(), "right".into()]))).await.expect("a choice");
    assert!(answer.texts[&0] == "left" || answer.texts[&0] == "right", "{answer:?}");
    launch.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn limits_and_stops_keep_their_meaning() {
    let launch = launch(ModelLimits::default()).await;
    let cases = [
        (Params { max_tokens: Some(5), ..regex("[a-z]{40}") }, Finish::Length, 5),
        (regex("[a-z]{40}"), Finish::Stop(None), 40),
        // Held back as long as there is a choice.
        (Params { ignore_eos: true, ..regex("[a-z]{0,40}") }, Finish::Stop(None), 40),
        (Params { min_tokens: 12, ..regex("[a-z0-9]{12}|q") }, Finish::Stop(None), 12),
        // What is forced counts as generated, up to the limit.
        (Params { max_tokens: Some(7), ..regex("the quick brown fox jumps") }, Finish::Length, 7),
        (Params { min_tokens: 200, ..regex("[a-z]{3}") }, Finish::Stop(None), 3),
    ];
    for (wanted, finish, bytes) in cases {
        let what = format!("{wanted:?}");
        let answer = ask(&launch, wanted).await.unwrap_or_else(|why| panic!("{what}: {why}"));
        assert_eq!((&answer.finishes[&0], answer.texts[&0].len()), (&finish, bytes), "{what}: {answer:?}");
    }
    let stopped = Params { stop: vec!["brown".to_owned()], ..regex("the quick brown fox jumps") };
    let answer = ask(&launch, stopped).await.expect("it stops");
    assert_eq!(answer.texts[&0], "the quick ");
    assert_eq!(answer.finishes[&0], Finish::Stop(Some(StopMatch::Text("brown".to_owned()))));
    let biased = Params { logit_bias: vec![(u32::from(b'z'), 100.0), (u32::from(b'!'), 100.0)], ..regex("[a-z]{4}") };
    assert_eq!(ask(&launch, biased).await.expect("it is answered").texts[&0], "zzzz", "what is forbidden stays so");
    launch.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn log_probabilities_are_those_among_the_allowed_tokens() {
    let launch = launch(ModelLimits::default()).await;
    let answer = ask(&launch, Params { logprobs: Some(5), ..regex("ab[xy]") }).await.expect("it is answered");
    let tokens: Vec<&TokenReport> = answer.reports.iter().filter(|report| !report.token.text.is_empty()).collect();
    assert_eq!(tokens.len(), answer.texts[&0].len(), "{answer:?}");
    for report in &tokens[..2] {
        assert_eq!((report.token.logprob, report.top.len()), (0.0, 1), "there was only one way on: {report:?}");
    }
    let sum: f32 = tokens[2].top.iter().map(|token| token.logprob.exp()).sum();
    assert!(tokens[2].top.len() == 2 && (sum - 1.0).abs() < 1e-5, "{:?}", tokens[2]);
    let without = ask(&launch, regex("ab[xy]")).await.expect("it is answered");
    assert_eq!((without.texts, without.completion_tokens), (answer.texts, answer.completion_tokens));
    launch.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn what_is_wrong_is_told_before_any_token_by_the_client_s_name_of_the_field() {
    let launch = launch(ModelLimits::default()).await;
    let nested = (0..90).fold(json!({}), |inner, _| json!({"type": "array", "items": inner}));
    for (constraint, param, part) in [
        (Constraint::JsonSchema(json!({"not": {}})), Some("guided_json"), "not"),
        (Constraint::JsonSchema(json!({"type": "array", "items": {"not": nested}})), None, "not"),
        (Constraint::Regex("(".to_owned()), None, "unclosed"),
        (Constraint::Regex("((a{1,1000}){1,1000}){1,1000}".to_owned()), Some("structured_outputs.regex"), "copies"),
        (Constraint::Choice(Vec::new()), None, "choice"),
        (Constraint::Grammar("start: other".to_owned()), None, "other"),
    ] {
        let wanted = Params { constraint_param: param, ..params(constraint.clone()) };
        let error = ask(&launch, wanted).await.expect_err(&format!("{constraint:?}"));
        assert_eq!((error.kind, error.code), (ErrorKind::InvalidRequest, Some("invalid_constraint")), "{error}");
        let named = error.param.clone().expect("the field is named");
        assert!(param.is_none_or(|param| param == named) && error.message.starts_with(&named), "{named}: {error}");
        assert!(error.message.contains(part), "{error}");
    }
    assert_eq!(launch.pool.live(), 0, "every place was given back");
    launch.stop(Duration::from_secs(30)).await;
}
