//! A real model against Transformers: the greedy continuation of SmolLM2-135M-Instruct in Q4_1.
//!
//! Fixture: `fixtures/make_smollm2_greedy.py`. The weights are not in the repository: name the GGUF in
//! `SCONCE_REAL_MODEL_GGUF`, and run
//! `cargo test --release -p sconce-models --test real_model -- --ignored --nocapture`.

use std::path::PathBuf;

use sconce_models::{BatchInput, KvDtype, LoadOptions, Logits, Model, Precision, Source, load};

/// Below this distance between the two best logits, f32 sums in another order may choose the other token.
const TIE: f64 = 1e-3;

#[derive(serde::Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    gaps: Vec<f64>,
}

/// One sequence in consecutive blocks: the prompt at once, then token by token.
fn continue_greedily(model: &dyn Model, prompt: &[u32], steps: usize) -> Vec<u32> {
    const BLOCK: u32 = 16;
    let blocks = ((prompt.len() + steps) as u32).div_ceil(BLOCK);
    let mut kv = model.new_kv_cache(blocks, BLOCK, KvDtype::F16).unwrap();
    let (mut logits, mut found, mut next, mut done) = (Logits::default(), Vec::new(), prompt.to_vec(), 0);
    while found.len() < steps {
        let end = done + next.len() as u32;
        let batch = BatchInput {
            tokens: next,
            positions: (done..end).collect(),
            slots: (done..end).collect(),
            row_ends: vec![end - done],
            context_lens: vec![end],
            block_tables: (0..blocks).collect(),
            block_table_ends: vec![blocks],
            sample_rows: vec![end - done - 1],
            ..BatchInput::default()
        };
        model.forward(&batch, &mut kv, &mut logits).unwrap();
        let token = sconce_kernels::argmax(logits.row(0));
        found.push(token);
        (next, done) = (vec![token], end);
    }
    found
}

#[test]
#[ignore = "needs the model's file: set SCONCE_REAL_MODEL_GGUF and run with --ignored"]
fn real_model_greedy_equals_transformers() {
    let Some(path) = std::env::var_os("SCONCE_REAL_MODEL_GGUF").map(PathBuf::from) else {
        eprintln!("skipped: SCONCE_REAL_MODEL_GGUF does not name a SmolLM2-135M-Instruct.Q4_1.gguf");
        return;
    };
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/smollm2_greedy.json")).unwrap();
    assert_eq!(fixture.cases.len(), 20);
    let model =
        load(&Source::Gguf(path), LoadOptions { precision: Precision::High, ..LoadOptions::default() }).unwrap();
    let mut wrong = Vec::new();
    for (index, case) in fixture.cases.iter().enumerate() {
        let found = continue_greedily(&*model, &case.prompt, case.tokens.len());
        let Some(at) = (0..found.len()).find(|&at| found[at] != case.tokens[at]) else { continue };
        if case.gaps[at] < TIE {
            eprintln!("prompt {index}: tie at step {at} (gap {}), compared up to there", case.gaps[at]);
        } else {
            wrong.push(format!("prompt {index} step {at}: {} not {}", found[at], case.tokens[at]));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    eprintln!("{} prompts continue as in Transformers", fixture.cases.len());
}
