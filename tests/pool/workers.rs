use std::path::Path;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use sconce::hub::progress;
use sconce::pool::{Member, MemberState};
use serde_json::Value;

use crate::fake::FakeProvider;
use crate::wires::{Said, answer};
use crate::world::{APIS, World, headers, member, question, read};

const SCONCE: &str = env!("CARGO_BIN_EXE_sconce");
/// Nothing here takes so long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A worker that is another Sconce. It says that it compiles until a file is there.
fn worker(folder: &Path, more: &str) -> String {
    let script = format!(
        "until test -e {0}/go; do echo Compiling model; sleep 0.05; done; exec {SCONCE} serve sim --port $0 \
         --responses-store off --files-dir off --web off",
        folder.display()
    );
    format!(
        "[[member]]\nname = \"w\"\nkind = \"worker\"\nmodel = \"sim\"\ncache = \"{}/cache\"\nhourly_usd = 1.0\ngrace_s = 5\n\
         command = [\"/bin/sh\", \"-c\", \"{script}\", \"{{port}}\"]\n{more}\n",
        folder.display()
    )
}

fn state(world: &World) -> MemberState {
    the_worker(world).state()
}

fn the_worker(world: &World) -> std::sync::Arc<dyn Member> {
    let table = world.launch.pool.table();
    let node = table.nodes.iter().find(|node| node.name == "w").expect("the worker");
    std::sync::Arc::clone(&node.member)
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "not within two minutes: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Processes that have this word on their command line.
fn with_word(word: &str) -> Vec<u32> {
    let listed = std::fs::read_dir("/proc").expect("a /proc").flatten();
    let pids = listed.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let has = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|part| part == word)
    };
    pids.filter(has).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_elsewhere_while_a_worker_compiles_or_is_gone() {
    let cloud = FakeProvider::start(|_| answer("openai", Said::Text("hello"), false)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let route =
        "[[route]]\nname = \"r\"\nmembers = [{ name = \"w\", priority = 1 }, { name = \"cloud\", priority = 2 }]\n";
    let restart = "restart = { backoff_first_s = 0.05, backoff_max_s = 0.1 }\n";
    let text = format!("{}{}{route}", worker(folder.path(), restart), member("cloud", "openai", &cloud.url()));
    let world = World::new(&text).await;
    assert_eq!(state(&world), MemberState::Loading("not started".into()), "a plan starts nothing");
    world.launch.load(progress::for_stderr().into()).await.expect("it starts");
    until("it compiles", || matches!(state(&world), MemberState::Loading(what) if what.ends_with(": compiling"))).await;
    let explained = world.post("/v1/route/explain", &[], &question(APIS[0], false, false, false)).await;
    let explained: Value = serde_json::from_str(&explained.text).expect("JSON");
    let why = explained["excluded"][0]["why"].as_str().expect("it is left out").to_owned();
    assert!(why.contains("not ready: starting for ") && why.contains("compiling"), "{why}");
    for api in APIS {
        let told = world.post(api, headers(api), &question(api, false, false, false)).await;
        assert_eq!((told.status, told.header("x-sconce-member")), (StatusCode::OK, "cloud"), "{}", told.text);
        let mut local = headers(api).to_vec();
        local.push(("x-sconce-stay", "local"));
        let told = world.post(api, &local, &question(api, false, false, false)).await;
        // Anthropic has a status of its own for that.
        let unavailable = if api == "/v1/messages" { 529 } else { 503 };
        assert_eq!(told.status.as_u16(), unavailable, "nobody else may have it: {}", told.text);
        assert!(told.text.contains("compiling"), "{}", told.text);
    }
    assert!(world.launch.pool.readiness().ready, "another member of the route can answer");

    std::fs::write(folder.path().join("go"), "").expect("written");
    until("it is ready", || state(&world) == MemberState::Ready).await;
    for api in APIS {
        for stream in [false, true] {
            let mut local = headers(api).to_vec();
            local.push(("x-sconce-stay", "local"));
            let told = world.post(api, &local, &question(api, stream, false, false)).await;
            assert_eq!((told.status, told.header("x-sconce-member")), (StatusCode::OK, "w"), "{}", told.text);
        }
    }
    assert!(the_worker(&world).card().max_model_len > 0, "as the worker says");
    assert!(the_worker(&world).snapshot().generation_tokens > 0, "from which its price follows");
    let page = world.get("/metrics").await.text;
    assert!(page.contains("sconce_worker_state{member=\"w\",state=\"ready\"} 1"), "{page}");
    assert!(page.contains("sconce_worker_restarts_total{member=\"w\"} 0"), "{page}");

    // It dies: everybody is answered all the same.
    let port = the_worker(&world).worker().and_then(|status| status.port).expect("a port").to_string();
    let engine = with_word(&port).into_iter().find(|pid| !with_word("--").contains(pid)).expect("it runs");
    let killed = std::process::Command::new("kill").args(["-9", &engine.to_string()]).status().expect("kill runs");
    assert!(killed.success());
    until("it was started again", || the_worker(&world).worker().is_some_and(|status| status.restarts == 1)).await;
    for api in APIS {
        let told = world.post(api, headers(api), &question(api, false, false, false)).await;
        assert_eq!(told.status, StatusCode::OK, "{}", told.text);
    }
    until("it is ready again", || state(&world) == MemberState::Ready).await;
    let port = the_worker(&world).worker().and_then(|status| status.port).expect("a port").to_string();
    world.launch.stop(Duration::ZERO).await;
    until("nothing is left", || with_word(&port).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_keeps_replaces_and_ends_workers() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("go"), "").expect("written");
    let route = "[[route]]\nname = \"r\"\nmembers = [\"w\"]\n";
    let text = |more: &str| format!("{}{route}", worker(folder.path(), more));
    let world = World::new(&text("")).await;
    world.launch.load(progress::for_stderr().into()).await.expect("it starts");
    let port = || the_worker(&world).worker().and_then(|status| status.port).expect("a port").to_string();
    until("it is ready", || state(&world) == MemberState::Ready).await;
    let node = || std::sync::Arc::as_ptr(&world.launch.pool.table().nodes[0]);
    let (first, first_node) = (port(), node());
    let reload = async |text: &str| {
        let (config, _) = read(world.folder.path(), text);
        world.launch.reload(&[], &config, progress::for_stderr().into()).await.expect("a good file")
    };
    assert!(reload(&text("")).await.is_none());
    assert_eq!(node(), first_node, "the same file, the same node");
    assert_eq!((state(&world), port()), (MemberState::Ready, first.clone()));

    assert_eq!(reload(&text("env = { NEW = \"yes\" }")).await.changed, ["member w"]);
    until("the new one is ready", || state(&world) == MemberState::Ready).await;
    let second = port();
    assert!(second == first || with_word(&first).is_empty(), "the old one has ended before");
    assert_eq!(with_word(&second).len(), 2, "a guard and a worker");

    let change = reload("").await;
    assert!(change.removed.contains(&"member w".to_owned()), "{change}");
    until("the last has ended", || with_word(&second).is_empty()).await;
    world.launch.stop(Duration::ZERO).await;
}
