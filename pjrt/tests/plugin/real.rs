//! SmolLM2-135M-Instruct on a plugin against Transformers: greedy answers, four at a time.
//!
//! Fixture: `models/tests/fixtures/make_smollm2_greedy.py`. The weights are not in the repository: `SCONCE_REAL_MODEL_GGUF`.

use std::path::PathBuf;

use sconce_models::{LoadOptions, Source};
use sconce_pjrt::{ElementType, PjrtRunner};
use serde_json::Value;

use super::driver::{Driver, best, device, options};

/// Below this distance between the two best logits, sums in another order may choose the other token.
const TIE: f64 = 1e-3;
/// As many as are computed in reasonable time; `models/tests/real_model.rs` has them all.
const CASES: usize = 8;

struct Case {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    gaps: Vec<f64>,
}

fn cases() -> Vec<Case> {
    let text = include_str!("../../../models/tests/fixtures/smollm2_greedy.json");
    let whole: Value = serde_json::from_str(text).unwrap();
    let numbers = |case: &Value, key: &str| -> Vec<f64> {
        case[key].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let ids = |case: &Value, key: &str| numbers(case, key).into_iter().map(|id| id as u32).collect();
    let case =
        |case: &Value| Case { prompt: ids(case, "prompt"), tokens: ids(case, "tokens"), gaps: numbers(case, "gaps") };
    whole["cases"].as_array().unwrap().iter().take(CASES).map(case).collect()
}

/// Answers to prompts, computed side by side.
fn answers(driver: &mut Driver, cases: &[Case]) -> Vec<Vec<u32>> {
    driver.clear();
    let mut found: Vec<Vec<u32>> = Vec::new();
    for (sequence, case) in cases.iter().enumerate() {
        driver.add(&case.prompt);
        driver.step(&[(sequence, case.prompt.len())], false).unwrap();
        found.push(vec![best(driver.logits.row(0))]);
    }
    for _ in 1..cases[0].tokens.len() {
        for (sequence, found) in driver.sequences.iter_mut().zip(&found) {
            sequence.tokens.extend(found.last());
        }
        let work: Vec<(usize, usize)> = (0..cases.len()).map(|sequence| (sequence, 1)).collect();
        driver.step(&work, false).unwrap();
        for (row, found) in found.iter_mut().enumerate() {
            found.push(best(driver.logits.row(row)));
        }
    }
    found
}

#[test]
#[ignore = "needs a PJRT plugin and the model's file: SCONCE_PJRT_PLUGIN, SCONCE_REAL_MODEL_GGUF"]
fn a_real_model_answers_as_in_transformers() {
    let Some(path) = std::env::var_os("SCONCE_REAL_MODEL_GGUF").map(PathBuf::from) else {
        eprintln!("skipped: SCONCE_REAL_MODEL_GGUF does not name a SmolLM2-135M-Instruct.Q4_1.gguf");
        return;
    };
    let loaded = LoadOptions::default();
    let runner = PjrtRunner::load(device(), &Source::Gguf(path), loaded, options(ElementType::F32)).unwrap();
    let mut driver = Driver::new(runner);
    let all = cases();
    assert_eq!(all.len(), CASES);
    for four in all.chunks(4) {
        for (found, case) in answers(&mut driver, four).iter().zip(four) {
            let differs = (0..found.len()).find(|at| found[*at] != case.tokens[*at]);
            // Behind a tie the two say different things.
            if let Some(at) = differs {
                assert!(case.gaps[at] < TIE, "{found:?} is not {:?} from {at} on", case.tokens);
            }
        }
    }
}
