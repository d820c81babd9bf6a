//! `sconce doctor`: this machine, copies of others, models that fit and that do not, and what was predicted against what is.

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;

use super::{Server, answer, fails_with, sconce};

/// With a cache of its own, so that nothing is known of this machine, and nothing is measured.
fn doctor(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = sconce(&[&["doctor", "--no-measure"], arguments].concat());
    command.env("XDG_CACHE_HOME", folder.path()).env("HF_HOME", folder.path()).env_remove("HF_HUB_CACHE");
    command.env_remove("NEURON_LOGICAL_NC_CONFIG").stdin(Stdio::null()).output().expect("the binary runs")
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|why| panic!("{why}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A machine as files: `available` KiB of memory, and more.
fn machine(available_kib: u64, files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a folder");
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    };
    write("proc/meminfo", &format!("MemTotal: 99000000 kB\nMemAvailable: {available_kib} kB\n"));
    write("proc/cpuinfo", "model name : A processor\nflags : avx2 fma f16c avx512_vnni avx512_bf16\n");
    files.iter().for_each(|(path, text)| write(path, text));
    root
}

fn root(folder: &tempfile::TempDir) -> &str {
    folder.path().to_str().expect("a plain path")
}

#[test]
fn this_machine_is_described_and_nothing_is_configured() {
    let output = doctor(&[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = text(&output);
    for word in ["This machine", "CPU ", "memory ", "NVIDIA", "Neuron", "The catalogue", "smollm2:135m", "llama3.1:8b"]
    {
        assert!(said.contains(word), "'{word}' is missing in {said}");
    }
    assert!(!said.contains("\nModels\n") && !said.contains("Rented"), "{said}");
    let json = report(&doctor(&["--json"]));
    assert!(json["machine"]["cpu"]["memory_available_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    assert!(json["measured"].is_null() && json["fits"] == true);
    let listed = json["catalogue"].as_array().expect("a list");
    let smol = listed.iter().find(|listed| listed["model"] == "smollm2:135m").expect("listed");
    assert!(smol["fits"] == true && smol["memory_bytes"].as_u64() > smol["weight_bytes"].as_u64(), "{smol}");
}

#[test]
fn a_model_that_does_not_fit_fails_with_what_would() {
    let small = machine(600_000, &[]);
    let output = doctor(&["dummy:llama-3.2-1b", "--root", root(&small)]);
    fails_with(&output, &["not every model fits"]);
    assert!(text(&output).contains("NO "), "{}", text(&output));
    // 0.27 GB of weights fit, 8,192 tokens of f32 KV do not.
    let flags = ["dummy:smollm2-135m", "--max-model-len", "8192", "--kv-cache-dtype", "f32", "--root", root(&small)];
    let output = doctor(&flags);
    fails_with(&output, &["not every model fits"]);
    let said = text(&output);
    assert!(said.contains("would fit --max-model-len ") && said.contains("would fit --kv-cache-dtype fp8"), "{said}");
    let json = report(&doctor(&[&flags[..], &["--json"]].concat()));
    assert!(json["fits"] == false && json["models"][0]["verdict"] == "does_not_fit", "{json}");
    // What was advised does fit.
    let advised = json["models"][0]["what_would"][0].as_str().expect("advice").to_owned();
    let tokens = advised.strip_prefix("--max-model-len ").expect("a context");
    let shorter = ["dummy:smollm2-135m", "--max-model-len", tokens, "--kv-cache-dtype", "f32", "--root", root(&small)];
    assert!(doctor(&shorter).status.success(), "{advised}");
}

#[test]
fn models_of_a_file_share_one_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sconce.toml");
    let sections = ["dummy:smollm2-360m", "dummy:qwen2.5-0.5b"]
        .map(|model| format!("[[models]]\nmodel = \"{model}\"\nmax_model_len = 1024\n"));
    fs::write(&file, sections.concat()).expect("written");
    let file = file.to_str().expect("a plain path");
    let large = machine(20_000_000, &[]);
    let output = doctor(&["--config", file, "--root", root(&large)]);
    assert!(output.status.success() && text(&output).contains("together"), "{}", text(&output));
    // Each fits alone (0.7 and 1.0 GB), both do not.
    let tight = machine(1_700_000, &[]);
    let output = doctor(&["--config", file, "--root", root(&tight)]);
    fails_with(&output, &["not every model fits"]);
    let said = text(&output);
    assert!(said.matches("    fits ").count() == 2 && said.contains("    NO "), "{said}");
    fails_with(&doctor(&["--config", "/nowhere/sconce.toml"]), &["/nowhere/sconce.toml"]);
}

#[test]
fn what_would_not_start_is_no_better_than_what_does_not_fit() {
    let output = doctor(&["dummy:tiny", "--device", "cuda"]);
    fails_with(&output, &["not every model fits"]);
    assert!(text(&output).contains("without the feature 'cuda'"), "{}", text(&output));
    let output = doctor(&["dummy:tiny", "--device", "pjrt:/nowhere/plugin.so"]);
    fails_with(&output, &["not every model fits"]);
    let why = if cfg!(feature = "pjrt") { "there is no such file" } else { "without the feature 'pjrt'" };
    assert!(text(&output).contains(why), "{}", text(&output));
    fails_with(&doctor(&["/nowhere/model.gguf"]), &["/nowhere/model.gguf"]);
    fails_with(&doctor(&["--root", "/nowhere/at/all"]), &["--root"]);
    // Not downloaded is not known, which is no failure; the catalogue knows the size of its own.
    let unknown = doctor(&["org/never-heard-of"]);
    assert!(
        unknown.status.success() && text(&unknown).contains("sconce pull org/never-heard-of"),
        "{}",
        text(&unknown)
    );
    let estimated = report(&doctor(&["llama3.2:1b", "--json"]));
    assert_eq!(
        (&estimated["models"][0]["estimated"], &estimated["models"][0]["verdict"]),
        (&Value::from(true), &Value::from("fits"))
    );
    assert!(doctor(&["sim", "minilm"]).status.success());
}

#[test]
fn a_copy_of_another_machine_is_read_as_if_it_were_this_one() {
    let inf2 = machine(
        12_000_000,
        &[
            ("sys/module/neuron/version", "2.24.7.0\n"),
            ("sys/devices/virtual/dmi/id/product_name", "inf2.xlarge\n"),
            ("sys/devices/virtual/neuron_device/neuron0/info/architecture/device_name", "Inferentia2\n"),
            ("sys/bus/pci/devices/0000:00:1f.0/vendor", "0x1d0f\n"),
            ("sys/bus/pci/devices/0000:00:1f.0/device", "0x7264\n"),
            ("sys/bus/pci/devices/0000:17:00.0/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:17:00.0/device", "0x2330\n"),
            ("dev/neuron0", ""),
        ],
    );
    let listing = inf2.path().join("listing.json");
    let process = r#"[{"neuron_device":0,"memory_size":34359738368,"neuron_processes":[{"pid":9,"command":"x"}]}]"#;
    fs::write(&listing, process).expect("written");
    let output = doctor(&["--root", root(&inf2), "--neuron-ls", listing.to_str().expect("a plain path")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = text(&output);
    assert!(
        said.contains("1 of 1 devices of an inf2.xlarge: Inferentia2, 2 cores (2 logical) and 32.0 GiB each"),
        "{said}"
    );
    assert!(said.contains("problem   nvidia: 1 GPU on the bus and no driver loaded"), "{said}");
    assert!(said.contains("A processor") && said.contains("11.4 GiB available"), "{said}");
    fails_with(&doctor(&["--neuron-ls", "/nowhere.json"]), &["--neuron-ls"]);
    fs::write(&listing, "neuron-ls: no devices").expect("written");
    fails_with(&doctor(&["--neuron-ls", listing.to_str().expect("a plain path")]), &["--neuron-ls", "no JSON"]);
}

#[test]
fn rented_machines_are_listed_with_the_prices_that_are_known() {
    let json = report(&doctor(&["dummy:llama-3.1-8b:q4_0", "--max-model-len", "4096", "--instances", "--json"]));
    let all = json["instances"].as_array().expect("a list");
    let of = |name: &str| all.iter().find(|one| one["instance"] == name);
    let inf2 = of("inf2.xlarge").expect("32 GiB hold 5");
    assert!(inf2["usd_per_hour"] == 0.76 && inf2["usd_per_million_at_least"].as_f64().is_some_and(|usd| usd > 0.0));
    assert!(inf2["replicas"].as_u64().is_some_and(|copies| copies >= 2), "{inf2}");
    assert!(of("g6.xlarge").expect("it holds one")["usd_per_hour"].is_null(), "nobody said its price");
    let prices: Vec<f64> = all.iter().map(|one| one["usd_per_hour"].as_f64().unwrap_or(f64::INFINITY)).collect();
    assert!(prices.is_sorted(), "the cheapest first: {prices:?}");
    let mut own = tempfile::NamedTempFile::new().expect("a file");
    own.write_all(b"as_of = \"2026-11-22\"\n[[instance]]\nname = \"mine\"\nmemory_gib = 64\nusd_per_hour = 0.5\n")
        .expect("written");
    let path = own.path().to_str().expect("a plain path").to_owned();
    let json = report(&doctor(&["dummy:tiny", "--instances-file", &path, "--json"]));
    assert_eq!(json["instances"].as_array().map(Vec::len), Some(1), "{json}");
    own.write_all(b"colour = 3\n").expect("written");
    fails_with(&doctor(&["dummy:tiny", "--instances-file", &path]), &["--instances-file", "colour"]);
}

/// Predicted is what is measured when the KV cache is full, within 5 %: the most that was resident, beside what a process
/// holds for its own (code, threads, a small model).
#[test]
fn predicted_memory_is_what_a_full_server_takes() {
    const FLAGS: &[&str] = &[
        "--max-model-len=2048",
        "--max-num-seqs=1",
        "--kv-cache-memory-bytes=80MiB",
        "--speculative-config=off",
        "--threads=2",
    ];
    const MODEL: &str = "dummy:smollm2-360m:q8_0";
    let predicted = report(&doctor(&[&[MODEL, "--json"], FLAGS].concat()))["models"][0]["memory_bytes"].as_u64();
    let predicted = predicted.expect("it fits") as f64;
    let peak = |server: &Server| server.memory_of("VmHWM:") * 1024;
    let own = ["serve", "dummy:tiny", "--port", "0", "--kv-cache-memory-bytes=1MiB", "--threads=2"];
    let small = Server::begin(&own);
    assert!(small.get("/ready").contains("200 OK"));
    let without = peak(&small);
    drop(small);
    let server = Server::begin(&[&["serve", MODEL, "--port", "0"], FLAGS].concat());
    let said = fill(&server, MODEL);
    assert!(said.contains("200 OK"), "{said}");
    let grown = (peak(&server) - without) as f64;
    println!("predicted {:.1} MB, measured {:.1} MB", predicted / 1e6, grown / 1e6);
    let range = 0.95 * predicted..=1.05 * predicted;
    assert!(range.contains(&grown), "predicted {:.1} MB, measured {:.1} MB", predicted / 1e6, grown / 1e6);
}

/// One prompt and answer of nearly all the context.
fn fill(server: &Server, model: &str) -> String {
    let prompt: Vec<String> = (0..2000_u32).map(|at| (at * 7 % 250).to_string()).collect();
    let body = format!(
        r#"{{"model":"{model}","prompt":[{}],"max_tokens":40,"temperature":0,"ignore_eos":true}}"#,
        prompt.join(",")
    );
    let mut connection = server.connect();
    write!(
        connection,
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("the request is sent");
    answer(connection)
}

#[test]
fn help_says_what_it_is_for() {
    let help = text(&doctor(&["--help"]));
    for flag in ["--config", "--json", "--root", "--no-measure", "--instances", "--neuron-ls", "without network"] {
        assert!(help.contains(flag), "{help}");
    }
}
