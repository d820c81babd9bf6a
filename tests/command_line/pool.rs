//! Members, the ledger and a changed file, as an operator meets them.

use super::{Server, fails_with, run, sconce};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A file of one local model under a route's name.
fn configuration(folder: &Path, route: &str) -> String {
    let ledger = folder.join("ledger.db");
    let text = format!(
        "[[member]]\nname = \"home\"\nkind = \"local\"\nmodel = \"sim\"\nhourly_usd = 1\n\n[[route]]\nname = \"{route}\"\n\
         members = [\"home\"]\n\n[ledger]\nfile = \"{}\"\n",
        ledger.display()
    );
    let path = folder.join("sconce.toml");
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

fn used(folder: &Path) -> String {
    let ledger = folder.join("ledger.db").display().to_string();
    String::from_utf8(run(&["usage", "--ledger", &ledger, "--by", "route,outcome", "--csv"]).stdout).expect("UTF-8")
}

#[test]
fn a_ledger_survives_a_kill() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = configuration(folder.path(), "smart");
    let mut server = Server::begin(&["serve", "--config", &file, "--port", "0"]);
    for _ in 0..5 {
        let text = super::answer(server.chat_with("smart", 7, false));
        assert!(text.contains("200 OK") && text.to_ascii_lowercase().contains("x-sconce-member: home"), "{text}");
    }
    // What was asked after a row was written down sees that row, so that it is on its way to the disk no more.
    assert!(server.get("/v1/usage").contains("\"attempts\":5"));
    server.child.kill().expect("it runs");
    server.child.wait().expect("it ends");
    let usage = used(folder.path());
    let row: Vec<&str> = usage.lines().nth(1).expect("a row").split(',').collect();
    assert_eq!((row[2], row[4], row[5], row[9]), ("smart", "answered", "5", "35"), "{usage}");
}

#[test]
fn a_changed_file_is_taken_over_and_a_bad_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = configuration(folder.path(), "before");
    let server = Server::begin(&["serve", "--config", &file, "--port", "0"]);
    assert!(server.get("/v1/models").contains("\"before\""));
    std::fs::write(&file, "[[route]]\nname = 3\n").expect("written");
    let hangup = |server: &Server| {
        let status = Command::new("kill").args(["-HUP", &server.child.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
    };
    hangup(&server);
    assert!(super::answer(server.chat_with("before", 2, false)).contains("200 OK"), "the old one stays");
    configuration(folder.path(), "after");
    hangup(&server);
    let started = Instant::now();
    while !server.get("/v1/models").contains("\"after\"") {
        assert!(started.elapsed() < Duration::from_secs(30), "the new file was not taken over");
        std::thread::yield_now();
    }
    assert!(super::answer(server.chat_with("after", 2, false)).contains("200 OK"));
    assert!(super::answer(server.chat_with("before", 2, false)).contains("model_not_found"));
}

#[test]
fn a_file_is_checked_without_serving() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = configuration(folder.path(), "smart");
    let told = String::from_utf8(run(&["check", &file]).stdout).expect("UTF-8");
    assert!(told.contains("route smart (priority)") && told.contains("$1 an hour"), "{told}");
    let secret = "[[member]]\nname = \"a\"\nkind = \"openai\"\nmodel = \"m\"\napi_key = ";
    for (rest, words) in [
        ("\"sk-visible\"", &["line 5", "{ env = "][..]),
        ("{ env = \"SCONCE_TEST_THAT_NOBODY_SETS\" }", &["SCONCE_TEST_THAT_NOBODY_SETS", "is not set"]),
        ("{ env = \"A\" }\nprise = 1", &["line 6", "did you mean 'price'"]),
    ] {
        std::fs::write(&file, format!("{secret}{rest}\n")).expect("written");
        let output = run(&["check", &file]);
        fails_with(&output, words);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("sk-visible"));
    }
    let nothing = sconce(&["usage", "--ledger", "/nowhere/ledger.db"]).stdin(Stdio::null()).output().expect("it runs");
    fails_with(&nothing, &["there is no ledger"]);
}

/// Processes that have this word on their command line.
fn with_word(word: &str) -> usize {
    let listed = std::fs::read_dir("/proc").expect("a /proc").flatten();
    let lines = listed.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).split('\0').any(|part| part == word)).count()
}

#[test]
fn no_worker_outlives_its_server() {
    for (round, signal) in ["-KILL", "-TERM"].into_iter().enumerate() {
        let folder = tempfile::tempdir().expect("a folder");
        // A child in a session of its own, whose command line nobody else has.
        let word = format!("{}.{round}", 100_000 + std::process::id());
        let script = format!(
            "setsid sleep {word} & exec {} serve sim --port $0 --responses-store off --files-dir off",
            env!("CARGO_BIN_EXE_sconce")
        );
        let text = format!(
            "[[member]]\nname = \"w\"\nkind = \"worker\"\nmodel = \"sim\"\ncache = \"{0}/cache\"\n\
             command = [\"/bin/sh\", \"-c\", \"{script}\", \"{{port}}\"]\n\n[[route]]\nname = \"r\"\nmembers = [\"w\"]\n\n\
             [ledger]\nfile = \"off\"\n",
            folder.path().display()
        );
        let file = folder.path().join("sconce.toml");
        std::fs::write(&file, text).expect("written");
        let mut server = Server::begin(&["serve", "--config", &file.display().to_string(), "--port", "0"]);
        let started = Instant::now();
        let wait = |what: &str, is_so: &dyn Fn() -> bool| {
            while !is_so() {
                assert!(started.elapsed() < Duration::from_secs(120), "{signal}: {what}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        wait("the worker is ready", &|| server.get("/ready").contains("200 OK"));
        assert!(super::answer(server.chat_with("r", 3, false)).contains("200 OK"));
        let page = server.get("/metrics");
        assert!(page.contains("sconce_worker_state{member=\"w\",state=\"ready\"} 1"), "{page}");
        assert_eq!(with_word(&word), 1, "{signal}");
        let status = Command::new("kill").args([signal, &server.child.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
        let ended = server.child.wait().expect("it ends");
        assert_eq!(ended.success(), signal == "-TERM", "{ended}");
        wait("a child of the worker is still there", &|| with_word(&word) == 0);
        wait("a guard is still there", &|| with_word(&script) == 0);
    }
}

#[test]
fn an_operator_has_the_file_read_again_and_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = configuration(folder.path(), "before");
    let server = Server::begin(&["serve", "--config", &file, "--port", "0"]);
    let url = format!("http://{}", server.address);
    let reload = |more: &[&str]| run(&[&["reload", "--url", &url], more].concat());
    let told = |more: &[&str]| String::from_utf8(reload(more).stdout).expect("UTF-8");
    assert_eq!(told(&[]), "nothing changed\n");
    configuration(folder.path(), "after");
    let text = std::fs::read_to_string(&file).expect("a file") + "decisions = \"/tmp/nowhere\"\n";
    std::fs::write(&file, text).expect("written");
    assert_eq!(told(&[]), "+ route after\n- route before\nneeds a restart: [ledger]\n");
    assert!(super::answer(server.chat_with("after", 2, false)).contains("200 OK"));
    let json: serde_json::Value = serde_json::from_str(&told(&["--json"])).expect("JSON");
    assert_eq!((json["added"].as_array().map(Vec::len), &json["keys"]), (Some(0), &0.into()), "{json}");
    std::fs::write(&file, "[[route]]\nname = 3\n").expect("written");
    fails_with(&reload(&[]), &["sconce.toml", "line 2"]);
    assert!(super::answer(server.chat_with("after", 2, false)).contains("200 OK"), "the old one stays");
}
