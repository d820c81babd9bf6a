use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use sconce::config::env::Variable;
use sconce::hub::progress;
use sconce_route::health::Circuit;
use serde_json::Value;

use crate::fake::{FakeProvider, Play, Step};
use crate::wires::{COMPLETION_TOKENS, PROMPT_TOKENS, Said, answer};
use crate::world::{APIS, World, headers, member, question, read};

const SECONDS: Variable = Variable { name: "SCONCE_TEST_CHAOS_S", help: "how long the chaos test asks" };
const RELOADED: Variable = Variable { name: "SCONCE_TEST_RELOAD_REQUESTS", help: "requests of the reload test" };
const CLIENTS: usize = 50;
const REQUESTS: usize = 900;
/// So many requests after each other meet the same sick member.
const TURN: usize = 75;
const KINDS: [&str; 3] = ["openai", "anthropic", "gemini"];

/// How the sick one of three members is at the moment: whatever it does comes before the first content.
fn sick(turn: usize, kind: &str) -> Play {
    let Play::Stream { content_type, steps } = answer(kind, Said::Text("hello"), false) else {
        unreachable!("answers are streams")
    };
    match turn % 6 {
        0 => Play::json(500, "{}"),
        1 => Play::Answer { status: 429, headers: vec![("retry-after".into(), "1".into())], body: b"{}".to_vec() },
        2 => Play::HangUp,
        3 => Play::json(503, "{}"),
        4 => {
            // Gemini's first event has content already.
            let begun = steps.into_iter().take(usize::from(kind != "gemini"));
            Play::Stream { content_type, steps: begun.chain([Step::Cut]).collect() }
        }
        _ => {
            let slow = [Step::Wait(Duration::from_millis(30))].into_iter().chain(steps);
            Play::Stream { content_type, steps: slow.collect() }
        }
    }
}

/// What of the ledger's sums belongs to answers that clients got, and whatever else there is by outcome.
async fn outcomes(world: &World) -> Value {
    let usage: Value = serde_json::from_str(&world.get("/v1/usage?by=outcome").await.text).expect("JSON");
    usage["data"].clone()
}

fn circuits(world: &World) -> Vec<Circuit> {
    world.launch.pool.table().nodes.iter().map(|node| node.view().circuit).collect()
}

/// One client: asks until it is time, and wants every answer. Returns how many it got.
async fn client(number: usize, world: Arc<World>, asked: Arc<AtomicUsize>, opened: Arc<AtomicUsize>) -> usize {
    let until = SECONDS.get().and_then(|text| text.parse().ok()).map(|most| Instant::now() + Duration::from_secs(most));
    let mut answered = 0;
    loop {
        let before = asked.fetch_add(1, Ordering::Relaxed);
        if until.map_or(before >= REQUESTS, |until| Instant::now() >= until) {
            return answered;
        }
        let api = APIS[number % APIS.len()];
        let told = world.post(api, headers(api), &question(api, number.is_multiple_of(2), false, false)).await;
        assert_eq!(told.status, StatusCode::OK, "{api}: {}", told.text);
        assert!(told.text.contains("hello") && !told.text.contains("\"error\":{"), "{api}: {}", told.text);
        answered += 1;
        let open = circuits(&world).iter().filter(|circuit| matches!(circuit, Circuit::Open { .. })).count();
        opened.fetch_max(open, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_member_sick_at_a_time_everybody_is_answered_once() {
    let (asked, all_well) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut fakes = Vec::new();
    let mut text = String::new();
    for (place, kind) in KINDS.into_iter().enumerate() {
        let (asked, all_well) = (Arc::clone(&asked), Arc::clone(&all_well));
        let fake = FakeProvider::start(move |_| {
            let turn = asked.load(Ordering::Relaxed) / TURN;
            let is_sick = turn % 3 == place && !all_well.load(Ordering::Relaxed);
            if is_sick { sick(turn / 3, kind) } else { answer(kind, Said::Text("hello"), false) }
        })
        .await;
        text += &member(&format!("m{place}"), kind, &fake.url());
        text += "health = { breaker = { open_ms = 50 }, rate = { hold_ms = 20 } }\n";
        fakes.push(fake);
    }
    text += "[[route]]\nname = \"r\"\npolicy = \"weighted\"\nmembers = [\"m0\", \"m1\", \"m2\"]\nattempts_max = 10\n";
    let world = Arc::new(World::new(&text).await);
    let opened = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(client(number, Arc::clone(&world), Arc::clone(&asked), Arc::clone(&opened))))
        .collect();
    let mut requests = 0;
    for client in clients {
        requests += client.await.expect("no client saw a fault");
    }
    let rows = outcomes(&world).await;
    println!("{requests} requests were answered; by what became of the attempts: {rows:#}");
    let answered = rows.as_array().expect("rows").iter().find(|row| row["outcome"] == "answered").expect("answers");
    assert_eq!(answered["attempts"], requests, "each request was answered once: {rows}");
    let (prompt, completion) =
        (requests as u64 * u64::from(PROMPT_TOKENS), requests as u64 * u64::from(COMPLETION_TOKENS));
    assert_eq!(
        (answered["prompt_tokens"].as_u64(), answered["completion_tokens"].as_u64()),
        (Some(prompt), Some(completion))
    );
    assert_eq!(world.launch.pool.live(), 0);
    assert!(opened.load(Ordering::Relaxed) > 0, "who fails again and again is left alone");
    all_well.store(true, Ordering::Relaxed);
    let healed = async {
        while circuits(&world).iter().any(|circuit| *circuit != Circuit::Closed) {
            let told = world.post(APIS[0], headers(APIS[0]), &question(APIS[0], false, false, false)).await;
            assert_eq!(told.status, StatusCode::OK, "{}", told.text);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), healed).await.expect("who is well again is asked again");
}

/// After a failure one request finds out how the member is, and the others wait for that instead of failing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_only_member_is_probed_the_others_wait() {
    let failing = Arc::new(AtomicBool::new(true));
    let is_failing = Arc::clone(&failing);
    let fake = FakeProvider::start(move |_| {
        let Play::Stream { content_type, steps } = answer("openai", Said::Text("hello"), false) else {
            unreachable!("answers are streams")
        };
        if is_failing.load(Ordering::Relaxed) {
            return Play::json(500, "{}");
        }
        let slow = [Step::Wait(Duration::from_millis(100))].into_iter().chain(steps);
        Play::Stream { content_type, steps: slow.collect() }
    })
    .await;
    let health = "health = { breaker = { failures_in_row = 1, open_ms = 1 } }\n";
    let route = "[[route]]\nname = \"r\"\nmembers = [\"m\"]\nattempts_max = 1\n";
    let world = World::new(&format!("{}{health}{route}", member("m", "openai", &fake.url()))).await;
    let ask = |at: usize| {
        let api = APIS[at % APIS.len()];
        let body = question(api, at.is_multiple_of(2), false, false);
        let world = &world;
        async move { world.post(api, headers(api), &body).await }
    };
    assert_eq!(ask(0).await.status, StatusCode::BAD_GATEWAY);
    failing.store(false, Ordering::Relaxed);
    for told in futures_util::future::join_all((0..12).map(ask)).await {
        assert!(told.status == StatusCode::OK && told.text.contains("hello"), "{}: {}", told.status, told.text);
        assert_eq!(told.header("x-sconce-attempts"), "1", "to wait is no attempt");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_under_load_fails_nobody() {
    let hello = |kind: &'static str| FakeProvider::start(move |_| answer(kind, Said::Text("hello"), false));
    let (one, two) = (hello("openai").await, hello("anthropic").await);
    let route = "[[route]]\nname = \"r\"\nmembers = [\"m\"]\n";
    let texts = [
        format!("{}{route}", member("m", "openai", &one.url())),
        format!("{}{route}", member("m", "anthropic", &two.url())),
    ];
    let world = Arc::new(World::new(&texts[0]).await);
    let each = RELOADED.get().and_then(|text| text.parse::<usize>().ok()).map_or(10, |all| all.div_ceil(CLIENTS));
    let done = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (world, done) = (Arc::clone(&world), Arc::clone(&done));
            tokio::spawn(async move {
                for _ in 0..each {
                    let api = APIS[client % APIS.len()];
                    let told = world.post(api, headers(api), &question(api, client % 2 == 0, false, false)).await;
                    assert!(told.status == StatusCode::OK && told.text.contains("hello"), "{}", told.text);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut reloads = 0;
    while done.load(Ordering::Relaxed) < CLIENTS * each && !clients.iter().all(|client| client.is_finished()) {
        reloads += 1;
        let (config, _) = read(world.folder.path(), &texts[reloads % 2]);
        let change = world.launch.reload(&[], &config, progress::for_stderr().into()).await.expect("a good file");
        assert_eq!(change.changed, ["member m"], "{change}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for client in clients {
        client.await.expect("no client saw a fault");
    }
    assert!(reloads > 1 && !one.seen().is_empty() && !two.seen().is_empty(), "{reloads} reloads");
    let same = world.launch.pool.table();
    let (config, _) = read(world.folder.path(), &texts[reloads % 2]);
    let change = world.launch.reload(&[], &config, progress::for_stderr().into()).await.expect("a good file");
    assert!(change.is_none(), "{change}");
    let kept = world.launch.pool.table();
    assert!(Arc::ptr_eq(&same.nodes[0], &kept.nodes[0]), "what stays keeps what was learnt of it");
}
