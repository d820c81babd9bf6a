//! `sconce route fit` and `eval` with vectors of a local model.

use super::{fails_with, run};

fn fixture(name: &str) -> String {
    format!("{}/models/tests/fixtures/embed/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn outcomes_are_fitted_by_the_vectors_of_a_local_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (outcomes, fitted) = (path("outcomes.jsonl"), path("fitted.json"));
    let line = |number: usize| {
        let (words, weak) = if number.is_multiple_of(2) { ("two and two", 1) } else { ("the proof of it", 0) };
        format!("{{\"id\": \"{number}\", \"prompt\": \"what is {words} {number}\", \"weak\": {weak}, \"strong\": 1}}\n")
    };
    std::fs::write(&outcomes, (0..120).map(line).collect::<String>()).expect("written");

    let made = run(&["route", "fit", &outcomes, "--out", &fitted, "--embedder", &fixture("bert")]);
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(made.status.success(), "{said}{}", String::from_utf8_lossy(&made.stderr));
    assert!(said.contains("APGR") && said.contains("needs 'bert' served here"), "{said}");
    let artefact = std::fs::read_to_string(&fitted).expect("written");
    assert!(artefact.contains("\"embedder\":{\"name\":\"bert\""), "{}", &artefact[..200]);

    let judged = run(&["route", "eval", &outcomes, "--fitted", &fitted, "--embedder", &fixture("bert")]);
    let said = String::from_utf8_lossy(&judged.stdout).into_owned();
    assert!(judged.status.success() && said.contains("120 prompts"), "{said}");

    let eval = |more: &[&str]| run(&[&["route", "eval", &outcomes], more].concat());
    fails_with(&eval(&["--embedder", &fixture("bert")]), &["leave --embedder out"]);
    fails_with(&eval(&["--fitted", &fitted, "--embedder", &fixture("reranker")]), &["embedding model"]);
}
