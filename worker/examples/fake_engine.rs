//! An engine that behaves as badly as asked, for the tests of the supervisor. It is its own guard, too.
//!
//! `fake_engine PORT WAY [SECONDS]`: after the seconds it serves `/health` and `/v1/models`, or does what the way says.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == sconce_worker::guard::SUBCOMMAND) {
        return ExitCode::from(guard(&arguments[1..]).run());
    }
    let port: u16 = arguments[0].parse().expect("a port");
    let wait = arguments.get(2).map_or(Duration::ZERO, |text| Duration::from_secs_f64(text.parse().expect("seconds")));
    match arguments[1].as_str() {
        "serve" => std::thread::sleep(wait),
        "compile" => {
            let until = Instant::now() + wait;
            while Instant::now() < until {
                println!("Compiling model: neuronx-cc is at work");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        "crash" => {
            eprintln!("RuntimeError: no Neuron cores");
            return ExitCode::from(3);
        }
        "leave" => {
            println!("nothing to do");
            return ExitCode::SUCCESS;
        }
        "hang" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "garbage" => return garbage(port),
        "flood" => {
            let line = "x".repeat(500);
            for _ in 0..100_000 {
                println!("{line}");
            }
        }
        "family" => {
            let mut child = Command::new("setsid");
            child.args(["sleep", "3600"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            println!("child {}", child.spawn().expect("setsid is there").id());
        }
        "environment" => {
            for (name, value) in std::env::vars() {
                println!("{name}={value}");
            }
            println!("in {}", std::env::current_dir().expect("a folder").display());
        }
        other => panic!("the way '{other}' is not known"),
    }
    serve(port)
}

fn guard(arguments: &[String]) -> sconce_worker::guard::Guard {
    let at = arguments.iter().position(|word| word == "--").expect("a command");
    let option = |name: &str| arguments[..at].iter().skip_while(|word| *word != name).nth(1);
    sconce_worker::guard::Guard {
        user: option("--user").map(|ids| ids.parse().expect("ids")),
        exec_below: option("--exec-below").map(|pid| pid.parse().expect("a pid")),
        command: arguments[at + 1..].to_vec(),
    }
}

fn garbage(port: u16) -> ExitCode {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
    for stream in listener.incoming().flatten() {
        let mut stream = stream;
        let _ = stream.write_all(b"\x16\x03\x01 this is no HTTP");
    }
    ExitCode::SUCCESS
}

fn serve(port: u16) -> ExitCode {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
    for stream in listener.incoming().flatten() {
        let mut stream = stream;
        let mut request = [0; 1024];
        let read = stream.read(&mut request).unwrap_or(0);
        let path = String::from_utf8_lossy(&request[..read]);
        let body = if path.starts_with("GET /v1/models") {
            r#"{"object":"list","data":[{"id":"m","max_model_len":2048}]}"#
        } else {
            "{}"
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let _ = stream.write_all((head + body).as_bytes());
    }
    ExitCode::SUCCESS
}
