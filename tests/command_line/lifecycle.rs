//! Models that come and go in a running process, and a process that is killed.

use std::io::Write;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use super::{Server, answer, fails_with, run};

fn told(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[test]
fn models_are_listed_loaded_and_stopped_from_the_command_line() {
    let flags = ["serve", "sim", "--load-on-demand", "--idle-unload", "3600", "--api-key", "k", "--port", "0"];
    let server = Server::begin(&flags);
    let url = format!("http://{}", server.address);
    let on = |words: &[&str]| run(&[words, &["--url", &url, "--api-key", "k"]].concat());
    assert!(told(&on(&["ps"])).contains("sim    configured"));
    assert!(told(&on(&["load", "sim"])).starts_with("sim is loaded ("));
    let ps = told(&on(&["ps"]));
    assert!(
        ps.contains("ready") && ps.contains("s ago") && (ps.contains("in 59 min") || ps.contains("in 60 min")),
        "{ps}"
    );
    assert_eq!(told(&on(&["stop", "sim"])), "sim is unloaded\n");
    assert!(told(&on(&["ps", "--json"])).contains("\"state\": \"unloaded\""));
    fails_with(&on(&["load", "other"]), &["'other'", "sim"]);
    fails_with(&run(&["ps", "--url", &url]), &["no API key"]);
    fails_with(&run(&["ps", "--url", "http://127.0.0.1:9"]), &["--url"]);
    fails_with(&run(&["serve", "sim", "--preload", "other", "--port", "0"]), &["--preload", "other"]);
}

/// Each model has weights of its own, which take most of what it takes.
#[test]
fn memory_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sconce.toml");
    let model = |name: &str| {
        format!(
            "[[models]]\nmodel = \"dummy:smollm2-135m:q8_0\"\nserved_model_names = [\"{name}\"]\nload = \"demand\"\n\
             max_model_len = 256\nmax_num_seqs = 1\nkv_cache_memory = \"8MiB\"\n"
        )
    };
    std::fs::write(&file, ["a", "b", "c"].map(model).concat()).expect("written");
    let arguments = ["serve", "--config", &file.display().to_string(), "--port", "0"];
    let server = Server::begin(&arguments);
    let url = format!("http://{}", server.address);
    let rounds: usize = std::env::var("SCONCE_TEST_MEMORY_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let round = |name: &str| {
        told(&run(&["load", name, "--url", &url]));
        let loaded = server.own_memory_kib();
        told(&run(&["stop", name, "--url", &url]));
        loaded
    };
    let before = server.own_memory_kib();
    let loaded = round("a");
    assert!(loaded > before + 100 * 1024, "{before} KiB before, {loaded} KiB loaded");
    let most = before + (loaded - before) / 20;
    // Threads that end a moment later may still hold some.
    let came_back = || {
        let begun = Instant::now();
        while server.own_memory_kib() > most && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(100));
        }
        server.own_memory_kib()
    };
    let first = came_back();
    for turn in 0..rounds {
        round(["b", "c", "a"][turn % 3]);
    }
    let last = came_back();
    println!("{before} KiB at first, {loaded} loaded, {first} after one round, {last} after {rounds} more");
    assert!(first <= most, "of {} KiB {} are left after one round", loaded - before, first - before);
    assert!(last <= most, "of {} KiB {} are left after {rounds} more", loaded - before, last - before);
}

fn configuration(folder: &Path) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "[server]\nresponses_store = \"{}\"\nfiles_dir = \"{}\"\n[[member]]\nname = \"home\"\nkind = \"local\"\n\
         model = \"sim\"\n[[route]]\nname = \"r\"\nmembers = [\"home\"]\n[ledger]\nfile = \"{}\"\n",
        path("responses.db"),
        path("files"),
        path("ledger.db")
    );
    std::fs::write(folder.join("sconce.toml"), text).expect("written");
    path("sconce.toml")
}

fn respond(server: &Server, tokens: u32) -> std::net::TcpStream {
    let body = format!(r#"{{"model":"r","input":"hi","max_output_tokens":{tokens}}}"#);
    let mut connection = server.connect();
    write!(
        connection,
        "POST /v1/responses HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("the request is sent");
    connection
}

#[test]
fn a_kill_under_load_leaves_everything_whole_and_the_port_free() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = configuration(folder.path());
    let mut server = Server::begin(&["serve", "--config", &file, "--port", "0"]);
    let port = server.address.rsplit(':').next().expect("a port").to_owned();
    let ids: Vec<String> = (0..4)
        .map(|_| {
            let text = answer(respond(&server, 5));
            let id = text.split("\"id\":\"").nth(1).and_then(|rest| rest.split('"').next());
            id.unwrap_or_else(|| panic!("{text}")).to_owned()
        })
        .collect();
    // Written down before, and with it everything that was answered before it.
    assert!(server.get("/v1/usage").contains("\"attempts\":4"));
    let running: Vec<_> = (0..16).map(|_| respond(&server, 2000)).collect();
    let started = Instant::now();
    while !server.get("/metrics").contains("vllm:num_requests_running{model_name=\"sim\",engine=\"0\"} 16") {
        assert!(started.elapsed() < Duration::from_secs(30), "they do not run");
    }
    server.child.kill().expect("it runs");
    server.child.wait().expect("it ends");
    let again = Server::begin(&["serve", "--config", &file, "--port", &port]);
    drop(running);
    for id in &ids {
        let text = again.get(&format!("/v1/responses/{id}"));
        assert!(text.contains("200 OK") && text.contains("\"completed\"") | text.contains("\"incomplete\""), "{text}");
    }
    let usage = again.get("/v1/usage");
    assert!(usage.contains("\"attempts\":4,"), "what was not ended is not counted as answered: {usage}");
    assert!(answer(respond(&again, 3)).contains("200 OK"));
    assert!(again.get("/v1/usage").contains("\"attempts\":5,"));
}
