//! The binary as a user meets it: bad input gives one line and exit code 1, overload and signals are handled.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn sconce(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
    command.args(arguments).env_remove("SCONCE_API_KEY").env_remove("SCONCE_LOG").env("HF_HUB_OFFLINE", "1");
    // Not the user's own data.
    command.env("XDG_DATA_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

fn run(arguments: &[&str]) -> Output {
    sconce(arguments).stdin(Stdio::null()).output().expect("the binary runs")
}

/// Exit code 1 and one line on stderr that has all of `words`.
#[track_caller]
fn fails_with(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(errors.len(), 1, "one line says what is wrong: {stderr}");
    for word in words {
        assert!(errors[0].contains(word), "'{word}' is missing in: {}", errors[0]);
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    assert_eq!(run(&["serve", "--no-such-flag"]).status.code(), Some(2));
    assert_eq!(run(&["serve", "sim", "--kv-cache-dtype", "fp4"]).status.code(), Some(2));
    assert_eq!(run(&[]).status.code(), Some(2));
}

#[test]
fn help_names_every_command() {
    let help = String::from_utf8_lossy(&run(&["--help"]).stdout).into_owned();
    for command in [
        "serve", "run", "pull", "list", "rm", "ps", "load", "stop", "bench", "doctor", "keys", "check", "route",
        "usage",
    ] {
        assert!(help.contains(command), "{help}");
    }
}

#[test]
fn bench_says_what_is_wrong() {
    let help = String::from_utf8_lossy(&run(&["bench", "--help"]).stdout).into_owned();
    for command in ["serve", "sweep", "compare", "quality", "cost", "report", "engine", "hardware"] {
        assert!(help.contains(command), "{help}");
    }
    assert_eq!(run(&["bench", "serve", "--goodput", "speed:1"]).status.code(), Some(2));
    fails_with(&run(&["bench", "serve", "--url", "http://127.0.0.1:1"]), &["--url", "is the server running"]);
    fails_with(&run(&["bench", "engine", "sim"]), &["no arithmetic"]);
    fails_with(&run(&["bench", "engine", "dummy:tiny", "tg1@100000", "--no-limit"]), &["context of 2048"]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let result = |rate: f64| format!("{{\"output_throughput\": {rate}, \"max_concurrency\": 1}}");
    std::fs::write(path("old.json"), result(100.0)).expect("a file");
    std::fs::write(path("new.json"), result(80.0)).expect("a file");
    let report =
        |percent: &str| run(&["bench", "report", &path("old.json"), &path("new.json"), "--fail-above", percent]);
    fails_with(&report("5"), &["worse than the first"]);
    let fine = report("50");
    assert!(fine.status.success() && String::from_utf8_lossy(&fine.stdout).contains("no regression above 50 %"));
}

#[test]
fn the_engine_is_measured_without_a_server() {
    let arguments = ["bench", "engine", "dummy:tiny", "pp4", "2x4+2", "--runs", "1", "--no-limit", "--json"];
    let output = run(&arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    assert_eq!(lines.len(), 2, "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(lines[0]["prefill_tokens_per_s"].is_number() && lines[0]["decode_tokens_per_s"].is_null());
    assert!(lines[1]["decode_tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0));
}

#[test]
fn files_that_are_wrong_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("a file");
    fails_with(&run(&["serve", &path("absent.gguf"), "--port", "0"]), &["absent.gguf"]);
    write("empty.gguf", b"");
    fails_with(&run(&["serve", &path("empty.gguf"), "--port", "0"]), &["empty.gguf"]);
    // Version 3, then a tensor count and a metadata count that no file could hold.
    write("huge.gguf", &[b"GGUF".as_slice(), &3_u32.to_le_bytes(), &[0xff; 16]].concat());
    fails_with(&run(&["serve", &path("huge.gguf"), "--port", "0"]), &["huge.gguf"]);
    std::fs::create_dir(folder.path().join("model")).expect("a folder");
    fails_with(&run(&["serve", &path("model"), "--port", "0"]), &["config.json"]);
    write("model/config.json", br#"{"architectures": ["MysteryForCausalLM"], "model_type": "mystery"}"#);
    fails_with(&run(&["serve", &path("model"), "--port", "0"]), &["ystery"]);
    write("bad.toml", b"[server]\nprot = 1\n");
    fails_with(&run(&["serve", "--config", &path("bad.toml")]), &["bad.toml", "prot", "line 2"]);
    fails_with(&run(&["serve", "--config", &path("absent.toml")]), &["absent.toml"]);
}

#[test]
fn a_model_that_nobody_knows_is_named() {
    fails_with(&run(&["serve", "smolm2:135m", "--port", "0"]), &["smolm2:135m", "smollm2:135m"]);
    fails_with(&run(&["serve", "nobody/nothing", "--port", "0"]), &["nobody/nothing"]);
    fails_with(&run(&["rm", "nobody/nothing"]), &["nobody/nothing"]);
}

#[test]
fn a_hub_that_cannot_be_reached_is_named() {
    // Port 9 (discard) refuses connections.
    let home = tempfile::tempdir().expect("a folder");
    let output = sconce(&["pull", "nobody/nothing"])
        .env("HF_HUB_OFFLINE", "0")
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("HF_HOME", home.path())
        .output()
        .expect("the binary runs");
    fails_with(&output, &["127.0.0.1:9"]);
    assert_eq!(files_under(home.path()), 0, "nothing half-written is left behind");
}

fn files_under(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .map(|entry| entry.expect("readable").path())
        .map(
            |path| {
                if path.is_dir() {
                    files_under(&path)
                } else {
                    usize::from(path.extension().is_none_or(|e| e != "lock"))
                }
            },
        )
        .sum()
}

#[test]
fn limits_that_cannot_work_are_refused() {
    fails_with(
        &run(&["serve", "sim", "--port", "0", "--kv-cache-memory-bytes", "1KiB"]),
        &["KV cache", "--max-model-len"],
    );
    fails_with(&run(&["serve", "sim", "--port", "0", "--max-model-len", "99999999"]), &["--max-model-len", "at most"]);
    fails_with(&run(&["serve", "sim", "--port", "0", "--max-num-seqs", "0"]), &["--max-num-seqs"]);
    fails_with(&run(&["serve", "sim", "--port", "0", "--device", "cuda:0"]), &["cuda:0", "--device cpu"]);
    fails_with(&run(&["serve", "sim", "sim", "--port", "0"]), &["sim", "--served-model-name"]);
}

#[test]
fn keys_that_nobody_could_send_are_refused() {
    for key in ["", " secret", "good,"] {
        let output = run(&["serve", "sim", "--port", "0", "--api-key", key]);
        fails_with(&output, &["API key"]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("secret"));
    }
}

#[test]
fn a_made_key_opens_the_server_with_its_table() {
    let made = String::from_utf8(run(&["keys", "new", "ann"]).stdout).expect("UTF-8");
    let key = made.lines().next().and_then(|line| line.rsplit(' ').next()).expect("a key").to_owned();
    assert!(key.starts_with("sk-sconce-") && key.len() == 74, "{made}");
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("sconce.toml");
    std::fs::write(&config, made.replace("# requests_per_minute", "requests_per_minute")).expect("a file");
    let config = config.to_string_lossy().into_owned();
    let server = Server::start(&["--config", &config, "--responses-store", "off"]);
    let models = |key: &str| {
        let mut connection = server.connect();
        write!(connection, "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-api-key: {key}\r\n\r\n")
            .expect("the request is sent");
        answer(connection)
    };
    assert!(models(&key).starts_with("HTTP/1.1 200 "), "{}", models(&key));
    assert!(models("sk-sconce-other").starts_with("HTTP/1.1 401 "));
    std::fs::write(&config, made.replace("# models = [\"smollm2:135m\"]", "models = [\"other\"]")).expect("a file");
    fails_with(&run(&["serve", "sim", "--port", "0", "--config", &config]), &["'ann'", "'other'"]);
    std::fs::write(&config, made.replace("sha256:", "md5:")).expect("a file");
    fails_with(&run(&["serve", "sim", "--port", "0", "--config", &config]), &["'ann'", "sha256:"]);
    fails_with(&run(&["keys", "hash", "ann"]), &["stdin"]);
    fails_with(&run(&["keys", "new", "a b"]), &["name"]);
}

#[test]
fn a_store_that_was_named_and_cannot_be_used_ends_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_string_lossy().into_owned();
    fails_with(&run(&["serve", "sim", "--port", "0", "--responses-store", &path]), &[&path, "--responses-store"]);
}

#[test]
fn a_run_ends_with_its_reader_and_asks_nothing_of_no_one() {
    fails_with(&run(&["run", "sim"]), &["standard input"]);
    let mut child = sconce(&["run", "sim", "hello"]).stdout(Stdio::piped()).spawn().expect("the binary runs");
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0; 1]).expect("an answer begins");
    drop(stdout);
    // The whole answer would take the simulator five minutes.
    let deadline = Instant::now() + Duration::from_secs(30);
    while child.try_wait().expect("a child").is_none() {
        assert!(Instant::now() < deadline, "it goes on for nobody");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(child.wait().expect("a child").success());
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    fails_with(&run(&["serve", "sim", "--port", &port]), &[&port, "--port"]);
}

#[path = "command_line/batches.rs"]
mod batches;
#[path = "command_line/doctor.rs"]
mod doctor;
#[path = "command_line/lifecycle.rs"]
mod lifecycle;
#[path = "command_line/outcomes.rs"]
mod outcomes;
#[path = "command_line/pool.rs"]
mod pool;

/// A running `sconce serve sim`.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        Self::begin(&[&["serve", "sim", "--port", "0"], flags].concat())
    }

    fn begin(arguments: &[&str]) -> Self {
        Self::begin_with(arguments, &[])
    }

    fn begin_with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut child =
            sconce(arguments).envs(variables.iter().copied()).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("http://")?.1.split(' ').next()?.to_owned()))
            .expect("the banner has an address");
        // Nobody may wait for a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("the server accepts");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        stream
    }

    fn chat(&self, max_tokens: u32, stream: bool) -> TcpStream {
        self.chat_with("sim", max_tokens, stream)
    }

    fn chat_with(&self, model: &str, max_tokens: u32, stream: bool) -> TcpStream {
        let body = format!(
            r#"{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}],"max_tokens":{max_tokens},"stream":{stream},"ignore_eos":true}}"#
        );
        let mut connection = self.connect();
        write!(
            connection,
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("the request is sent");
        connection
    }

    fn get(&self, path: &str) -> String {
        let mut connection = self.connect();
        write!(connection, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("the request is sent");
        answer(connection)
    }

    fn memory_kib(&self) -> u64 {
        self.memory_of("VmRSS:")
    }

    /// Without pages of files: those of the binary come with its first use, stay, and are anybody's.
    fn own_memory_kib(&self) -> u64 {
        self.memory_of("RssAnon:")
    }

    fn memory_of(&self, kind: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a live process");
        let line = status.lines().find(|line| line.starts_with(kind)).expect("a resident size");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already ended in the tests that stop it themselves.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answer(mut connection: TcpStream) -> String {
    let mut text = String::new();
    connection.read_to_string(&mut text).expect("the answer is read");
    text
}

#[test]
fn a_thousand_requests_against_a_queue_of_a_hundred() {
    let server = Server::start(&["--max-num-seqs", "16", "--max-queue", "84"]);
    assert!(server.get("/ready").starts_with("HTTP/1.1 200"));
    drop(answer(server.chat(2, false)));
    let before_kib = server.memory_kib();
    let started = Instant::now();
    let answers: Vec<(String, Duration)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..1000)
            .map(|_| {
                std::thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn_scoped(scope, || (answer(server.chat(60, false)), started.elapsed()))
                    .expect("a thread")
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("an answer")).collect()
    });
    let (served, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(text, _)| text.starts_with("HTTP/1.1 200"));
    assert!(served.len() >= 100, "{} served", served.len());
    assert!(!refused.is_empty(), "somebody was refused");
    for (text, _) in &refused {
        let head = text.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 429") || head.starts_with("http/1.1 503"), "{text}");
        let seconds = head.split_once("retry-after: ").expect("when to come back").1;
        let seconds: u32 = seconds.split("\r\n").next().expect("a line").parse().expect("seconds");
        assert!((1..=600).contains(&seconds));
    }
    let grown_kib = server.memory_kib().saturating_sub(before_kib);
    assert!(grown_kib < 150 * 1024, "memory grew by {grown_kib} KiB");
    println!("{} served, {} refused, {grown_kib} KiB more", served.len(), refused.len());
}

#[test]
fn sigterm_finishes_what_runs_and_takes_nothing_new() {
    let mut server = Server::start(&[]);
    let mut running = BufReader::new(server.chat(100, true));
    let mut line = String::new();
    while !line.contains("\"content\":\"") || line.contains("\"content\":\"\"") {
        line.clear();
        assert!(running.read_line(&mut line).expect("a line") > 0, "the answer ended early");
    }
    server.terminate();
    let mut rest = String::new();
    running.read_to_string(&mut rest).expect("the rest of the answer");
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"), "{rest}");
    let status = server.child.wait().expect("an exit code");
    assert_eq!(status.code(), Some(0));
    assert!(TcpStream::connect(&server.address).is_err(), "nothing listens any more");
}

#[test]
fn sigterm_cuts_what_outlasts_the_timeout() {
    let mut server = Server::start(&["--shutdown-timeout", "1"]);
    let mut running = BufReader::new(server.chat(20_000, true));
    let mut line = String::new();
    assert!(running.read_line(&mut line).expect("a line") > 0);
    server.terminate();
    let started = Instant::now();
    assert_eq!(server.child.wait().expect("an exit code").code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(20), "it stopped after {:?}", started.elapsed());
}

#[test]
fn the_pages_are_there_unless_switched_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sconce.toml");
    std::fs::write(&path, "[server]\nweb = false\n").expect("a file");
    let path = path.to_string_lossy();
    for (flags, status) in [
        (&[][..], "200"),
        (&["--web", "off"], "404"),
        (&["--config", &path], "404"),
        (&["--config", &path, "--web", "on"], "200"),
    ] {
        let server = Server::start(flags);
        let answer = server.get("/docs");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{flags:?}: {answer}");
        assert!(server.get("/openapi.json").starts_with("HTTP/1.1 200"), "{flags:?}");
    }
    assert_eq!(run(&["serve", "sim", "--web", "maybe"]).status.code(), Some(2));
}
