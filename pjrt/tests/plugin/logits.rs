//! Logits on a plugin against Transformers, on the tiny models of `models/tests/fixtures`.

use sconce_models::{LoadOptions, Source};
use sconce_pjrt::{ElementType, PjrtRunner};

use super::driver::{Driver, Golden, best, device, goldens, greedy, options, relative_error, runner, source};

/// As for the CPU's own kernels with all products in F32.
const TOLERANCE: f32 = 1e-3;
/// Products of BF16, on hidden states of 64 values.
const BF16_TOLERANCE: f32 = 6e-2;

/// Every family and every switch that is lowered: shards, tied heads, biases, head norms, windows, both styles of rotation,
/// matrices that are dequantised on the way.
const NAMES: [&str; 11] = [
    "llama2",
    "llama3",
    "llama3_f32",
    "llama3_q8_0",
    "llama_biased",
    "mistral",
    "qwen2",
    "qwen2_f16",
    "qwen2_window",
    "qwen3",
    "smollm2",
];

fn check(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let error = relative_error(found, expected);
    assert!(error < tolerance, "{name}: {error:e}");
}

/// Whole prompts, and the same in parts that end anywhere in a block.
fn check_prefill(name: &str, driver: &mut Driver, golden: &Golden, tolerance: f32) {
    let vocab = driver.runner.spec().vocab;
    let len = golden.prompt.len();
    for part in [len, 1, 3] {
        driver.clear();
        let sequence = driver.add(&golden.prompt);
        while driver.sequences[sequence].done < len {
            let done = driver.sequences[sequence].done;
            let count = part.min(len - done);
            driver.step(&[(sequence, count)], true).unwrap();
            let expected = &golden.logits[done * vocab..(done + count) * vocab];
            check(&format!("{name} in parts of {part}"), &driver.logits.values, expected, tolerance);
        }
    }
}

/// Rows of different lengths that decode together; some leave and the order changes.
fn check_decode(name: &str, driver: &mut Driver, goldens: &[Golden]) {
    let vocab = driver.runner.spec().vocab;
    driver.clear();
    for golden in goldens {
        driver.add(&golden.prompt);
    }
    // The second prompt is longest ahead, the last has just begun.
    let ahead = [goldens[0].prompt.len() - 3, goldens[1].prompt.len() - 2, goldens[2].prompt.len() - 1];
    for (sequence, count) in ahead.into_iter().enumerate().filter(|(_, count)| *count > 0) {
        driver.step(&[(sequence, count)], false).unwrap();
    }
    for order in [&[2, 0, 1][..], &[1, 0][..], &[0][..]] {
        let at: Vec<usize> = order.iter().map(|sequence| driver.sequences[*sequence].done).collect();
        let work: Vec<(usize, usize)> = order.iter().map(|sequence| (*sequence, 1)).collect();
        driver.step(&work, false).unwrap();
        for (row, (sequence, at)) in order.iter().zip(at).enumerate() {
            let expected = &goldens[*sequence].logits[at * vocab..(at + 1) * vocab];
            check(&format!("{name} with {} rows", order.len()), driver.logits.row(row), expected, TOLERANCE);
        }
    }
}

fn check_greedy(name: &str, driver: &mut Driver, prompt: &[u32], chosen: &[u32]) {
    driver.clear();
    let sequence = driver.add(prompt);
    driver.step(&[(sequence, prompt.len())], false).unwrap();
    let mut found = Vec::new();
    loop {
        let next = best(driver.logits.row(0));
        found.push(next);
        if found.len() == chosen.len() {
            break;
        }
        driver.sequences[sequence].tokens.push(next);
        driver.step(&[(sequence, 1)], false).unwrap();
    }
    assert_eq!(found, chosen, "{name}");
}

#[test]
#[ignore = "needs a PJRT plugin: SCONCE_PJRT_PLUGIN"]
fn logits_are_those_of_transformers() {
    for name in NAMES {
        let mut driver = Driver::new(runner(name, ElementType::F32));
        let goldens = goldens(name);
        for golden in &goldens {
            check_prefill(name, &mut driver, golden, TOLERANCE);
        }
        check_decode(name, &mut driver, &goldens);
        check_greedy(name, &mut driver, &goldens[0].prompt, &greedy(name));
    }
}

#[test]
#[ignore = "needs a PJRT plugin: SCONCE_PJRT_PLUGIN"]
fn bf16_is_near() {
    for name in ["llama3", "qwen2", "qwen3"] {
        let mut driver = Driver::new(runner(name, ElementType::Bf16));
        for golden in &goldens(name) {
            check_prefill(name, &mut driver, golden, BF16_TOLERANCE);
        }
    }
}

#[test]
#[ignore = "needs a PJRT plugin: SCONCE_PJRT_PLUGIN"]
fn models_that_are_not_plain_are_refused_by_name() {
    for (name, expected) in [
        ("gemma2", "Gemma2ForCausalLM ("),
        ("qwen3_moe", "(experts)"),
        ("deepseek2", "(experts)"),
        ("smollm3", "(rotations that differ by layer)"),
        ("phi3_short", "(a family that was not tried there)"),
    ] {
        let loaded = PjrtRunner::load(device(), &source(name), LoadOptions::default(), options(ElementType::F32));
        let why = loaded.err().expect("it is not plain").to_string();
        assert!(why.contains(expected) && why.ends_with("use --device cpu"), "{name}: {why}");
    }
    let made_up = Source::Dummy("qwen3-0.6b".to_owned());
    let why = PjrtRunner::load(device(), &made_up, LoadOptions::default(), options(ElementType::I32)).err().unwrap();
    assert!(why.to_string().contains("not of i32"), "{why}");
}
