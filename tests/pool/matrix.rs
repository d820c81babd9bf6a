use axum::http::StatusCode;
use serde_json::Value;

use crate::fake::{FakeProvider, Play, Step};
use crate::wires::{COMPLETION_TOKENS, KINDS, PROMPT_TOKENS, Said, answer};
use crate::world::{APIS, World, headers, member, question};

fn route() -> &'static str {
    "[[route]]\nname = \"r\"\nmembers = [\"m\"]\nattempts_max = 1\n"
}

async fn world(kind: &'static str, play: Play) -> (World, FakeProvider) {
    let fake = FakeProvider::start(move |_| play.clone()).await;
    (World::new(&format!("{}{}", member("m", kind, &fake.url()), route())).await, fake)
}

async fn asked(world: &World, api: &str, stream: bool, (tools, schema): (bool, bool)) -> crate::world::Answer {
    world.post(api, headers(api), &question(api, stream, tools, schema)).await
}

/// What the ledger has in all.
async fn totals(world: &World) -> (u64, u64, u64) {
    let answer = world.get("/v1/usage").await;
    let usage: Value = serde_json::from_str(&answer.text).expect("JSON");
    let row = &usage["data"][0];
    let count = |name: &str| row[name].as_u64().unwrap_or(0);
    (count("attempts"), count("prompt_tokens"), count("completion_tokens"))
}

/// Otherwise Bedrock's fake would show that Sconce reads what Sconce writes.
#[test]
fn the_fake_of_bedrock_sends_what_botocore_reads() {
    let text = include_str!("../../providers/tests/oracle/frames.json");
    let cases: std::collections::BTreeMap<String, Vec<String>> = serde_json::from_str(text).expect("JSON");
    for (name, said) in [("text", Said::Text("hello")), ("call", Said::Call), ("form", Said::Text(r#"{"n": 1}"#))] {
        let Play::Stream { steps, .. } = answer("bedrock", said, false) else { unreachable!("answers are streams") };
        let sent: Vec<String> = steps
            .iter()
            .map(|step| match step {
                Step::Send(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
                other => panic!("{name}: {other:?}"),
            })
            .collect();
        assert_eq!(sent, cases[name], "{name}");
    }
}

#[tokio::test]
async fn every_api_gets_answers_of_every_kind() {
    for kind in KINDS {
        let (texts, _one) = world(kind, answer(kind, Said::Text("hello"), false)).await;
        let (calls, _two) = world(kind, answer(kind, Said::Call, false)).await;
        for api in APIS {
            for stream in [false, true] {
                let told = asked(&texts, api, stream, (false, false)).await;
                assert_eq!(told.status, StatusCode::OK, "{kind} {api} {stream}: {}", told.text);
                assert!(told.text.contains("hello"), "{kind} {api} {stream}: {}", told.text);
                let said =
                    (told.header("x-sconce-member"), told.header("x-sconce-reason"), told.header("x-sconce-attempts"));
                assert_eq!(said, ("m", "only", "1"), "{kind} {api}");
                // 10 tokens at a dollar and 2 at ten dollars a million.
                let cost = if stream {
                    told.text.contains("x-sconce-cost=0.00003\n")
                } else {
                    told.header("x-sconce-cost") == "0.00003"
                };
                assert!(cost, "{kind} {api} {stream}: {}", told.text);
                let told = asked(&calls, api, stream, (true, false)).await;
                assert_eq!(told.status, StatusCode::OK, "{kind} {api} {stream}: {}", told.text);
                assert!(told.text.contains("weather") && told.text.contains("Paris"), "{kind} {api}: {}", told.text);
            }
        }
        let answers = (2 * APIS.len()) as u64;
        for world in [&texts, &calls] {
            let expected = (answers, answers * u64::from(PROMPT_TOKENS), answers * u64::from(COMPLETION_TOKENS));
            assert_eq!(totals(world).await, expected, "{kind}: the ledger has every token, once");
        }
    }
}

#[tokio::test]
async fn schemas_reach_every_kind() {
    for kind in KINDS {
        let (world, fake) = world(kind, answer(kind, Said::Text(r#"{"n": 1}"#), false)).await;
        for (api, stream) in APIS.into_iter().flat_map(|api| [(api, false), (api, true)]) {
            let told = asked(&world, api, stream, (false, true)).await;
            assert_eq!(told.status, StatusCode::OK, "{kind} {api} {stream}: {}", told.text);
            let seen = fake.seen().pop().expect("a request");
            assert!(seen.body.contains("integer") || seen.body.contains("INTEGER"), "{kind} {api}: {}", seen.body);
        }
    }
}

#[tokio::test]
async fn failures_of_every_kind_are_told_as_what_they_are() {
    let limited =
        || Play::Answer { status: 429, headers: vec![("retry-after".into(), "7".into())], body: b"{}".to_vec() };
    for kind in KINDS {
        for api in APIS {
            for stream in [false, true] {
                let (broken, _one) = world(kind, Play::json(500, "{}")).await;
                let told = asked(&broken, api, stream, (false, false)).await;
                assert_eq!(told.status, StatusCode::BAD_GATEWAY, "{kind} {api}: {}", told.text);
                assert_eq!((told.header("x-sconce-member"), told.header("x-sconce-attempts")), ("m", "1"));
                let (busy, _two) = world(kind, limited()).await;
                let told = asked(&busy, api, stream, (false, false)).await;
                assert_eq!(told.status, StatusCode::TOO_MANY_REQUESTS, "{kind} {api}: {}", told.text);
                assert_eq!(told.header("retry-after"), "7", "{kind} {api}");
                let (refused, _three) =
                    world(kind, Play::json(401, r#"{"error":{"message":"sk-secret-of-the-provider is wrong"}}"#)).await;
                let told = asked(&refused, api, stream, (false, false)).await;
                assert_eq!(told.status, StatusCode::BAD_GATEWAY, "{kind} {api}: our fault, not the client's key's");
                assert!(!told.text.contains("secret-of"), "{kind} {api}: {}", told.text);
                let (cut, _four) = world(kind, answer(kind, Said::Text("hello"), true)).await;
                let told = asked(&cut, api, stream, (false, false)).await;
                match stream {
                    false => assert_eq!(told.status, StatusCode::BAD_GATEWAY, "{kind} {api}: {}", told.text),
                    true => {
                        assert!(told.text.contains("hello"), "{kind} {api}: {}", told.text);
                        assert!(told.text.contains("error"), "{kind} {api}: an honest end: {}", told.text);
                    }
                }
                assert_eq!(totals(&cut).await.0, 1, "{kind} {api}: nobody was asked twice");
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_is_felt_at_the_provider() {
    for kind in KINDS {
        let Play::Stream { content_type, steps } = answer(kind, Said::Text("hello"), false) else {
            unreachable!("answers are streams")
        };
        // Gemini says its first word with its first event, the others a little later.
        let begun: Vec<Step> = steps.into_iter().take(2).chain([Step::Stall]).collect();
        let play = Play::Stream { content_type, steps: begun };
        let mut fake = FakeProvider::start(move |_| play.clone()).await;
        let patient = member("m", kind, &fake.url()).replace("timeout_s = 2", "timeout_s = 60");
        let world = World::new(&format!("{patient}{}", route())).await;
        for (turn, (api, stream)) in APIS.into_iter().flat_map(|api| [(api, false), (api, true)]).enumerate() {
            let request = asked(&world, api, stream, (false, false));
            let begun = async {
                // The client goes once the provider has the request.
                while fake.seen().len() <= turn {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                told = request => panic!("{kind} {api}: it was answered: {}", told.text),
                () = begun => {}
            }
            fake.wait_gone(turn + 1).await;
            assert_eq!(world.launch.pool.live(), 0, "{kind} {api} {stream}");
        }
        assert_eq!(totals(&world).await.0, 6, "{kind}: every attempt is in the ledger, once");
    }
}
