//! LoRA adapters against Transformers with PEFT, alone and beside each other in one batch.
//!
//! Fixtures: `fixtures/make_adapters.py`.

use std::fs;
use std::sync::Arc;

use safetensors::SafeTensors;
use sconce_models::{AdapterId, Error, KvDtype, LoadOptions, Model, Precision, load, load_adapter, read_spec};

use super::ragged::{Ragged, Sample};
use super::{TOLERANCE, bits, fixtures, goldens, options, relative_error, source, whole};

const RANK_MAX: usize = 16;
/// Model, the base model whose adapters it takes, and the goldens of their company.
const MODELS: [(&str, &str, &str); 8] = [
    ("llama3", "llama3", "llama3"),
    // Q and k lie in another order here.
    ("llama3_f32", "llama3", "llama3"),
    ("llama3_q8_0", "llama3", "llama3_q8_0"),
    ("qwen2", "qwen2", "qwen2"),
    ("phi3_short", "phi3_short", "phi3_short"),
    ("gemma2", "gemma2", "gemma2"),
    ("mixtral", "mixtral", "mixtral"),
    ("starcoder2", "starcoder2", "starcoder2"),
];

/// The model with all adapters of its base, by name.
fn adapted(name: &str, base: &str) -> (Box<dyn Model>, Vec<(String, AdapterId)>) {
    let precision = Precision::High;
    let mut model = load(&source(name), LoadOptions { precision, ..options(name, precision) }).unwrap();
    let folder = fixtures().join("adapters").join(base);
    let mut names: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut adapters = Vec::new();
    for (index, adapter) in names.into_iter().enumerate() {
        let id = AdapterId(index as u32 + 7);
        let loaded = load_adapter(&folder.join(&adapter), model.spec(), RANK_MAX).unwrap();
        assert_eq!(loaded.base_model(), Some(base));
        model.set_adapter(id, Some(Arc::new(loaded))).unwrap();
        adapters.push((adapter, id));
    }
    (model, adapters)
}

fn expected(golden: &str, adapter: &str, prompt: usize) -> Vec<f32> {
    let bytes = fs::read(fixtures().join("adapters").join(format!("{golden}.golden.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(&format!("logits.{adapter}.{prompt}")).unwrap();
    tensor.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

fn alone(model: &dyn Model, prompt: &[u32], adapter: Option<AdapterId>) -> Vec<(usize, Vec<f32>)> {
    let mut ragged = Ragged::new(model, 16, &[prompt.to_vec()], 0);
    ragged.sequences[0].adapter = adapter;
    ragged.step(&[(0, prompt.len())], Sample::Every);
    ragged.sequences.remove(0).sampled
}

#[test]
fn every_adapter_is_what_transformers_and_peft_compute() {
    for (name, base, golden) in MODELS {
        let (model, adapters) = adapted(name, base);
        for (adapter, id) in &adapters {
            for (index, prompt) in goldens(name).into_iter().map(|golden| golden.prompt).enumerate() {
                let found = alone(&*model, &prompt, Some(*id));
                let expected = expected(golden, adapter, index);
                for ((position, row), truth) in found.iter().zip(expected.chunks(model.spec().vocab)) {
                    let error = relative_error(row, truth);
                    assert!(error < TOLERANCE, "{name}, {adapter}, prompt {index} at {position}: off by {error}");
                }
                // It does something, so that being right means something.
                let plain = whole(&*model, &prompt);
                assert!(relative_error(&found[0].1, &plain[0].1) > 10.0 * TOLERANCE, "{name}: {adapter} does nothing");
            }
        }
    }
}

#[test]
fn rows_of_several_adapters_in_one_batch_are_bit_for_bit_as_alone() {
    for (name, base, _) in MODELS {
        let (model, adapters) = adapted(name, base);
        let prompt = goldens(name).swap_remove(0).prompt;
        // Each adapter twice, next to each other and apart, with rows of the base model between and around them.
        let mut who = vec![None];
        for (_, id) in &adapters {
            who.extend([Some(*id), Some(*id), None]);
        }
        who.extend(adapters.iter().map(|(_, id)| Some(*id)));
        let truths: Vec<_> = who.iter().map(|id| bits(&alone(&*model, &prompt, *id))).collect();
        assert_eq!(truths[0], bits(&whole(&*model, &prompt)), "{name}: the base model is as without adapters");
        for chunks in [vec![prompt.len()], vec![5, 1, 1, prompt.len() - 7], vec![1; prompt.len()]] {
            let mut ragged = Ragged::new(&*model, 4, &vec![prompt.clone(); who.len()], 0);
            for (sequence, id) in ragged.sequences.iter_mut().zip(&who) {
                sequence.adapter = *id;
            }
            for count in &chunks {
                let work: Vec<_> = (0..who.len()).map(|index| (index, *count)).collect();
                ragged.step(&work, Sample::Every);
            }
            for (index, sequence) in ragged.sequences.iter().enumerate() {
                assert_eq!(bits(&sequence.sampled), truths[index], "{name}, row {index} in chunks {chunks:?}");
            }
        }
    }
}

#[test]
fn only_sampled_rows_are_computed_to_the_end_with_adapters_too() {
    let (model, adapters) = adapted("llama3", "llama3");
    let prompt = goldens("llama3").swap_remove(0).prompt;
    let (id, last) = (Some(adapters[0].1), prompt.len() - 1);
    let truth = alone(&*model, &prompt, id).swap_remove(last);
    let mut ragged = Ragged::with_kv(&*model, KvDtype::F32, 16, &vec![prompt.clone(); 3], 0);
    ragged.sequences[1].adapter = id;
    // No row of the adapter is sampled in the first step, nobody's in the second, and one alone in the third.
    ragged.step(&[(0, prompt.len()), (1, 3)], Sample::Nothing);
    ragged.step(&[(1, 4), (2, 2)], Sample::Last);
    ragged.step(&[(1, prompt.len() - 7), (2, 1)], Sample::Last);
    assert_eq!(bits(&[ragged.sequences[1].sampled.pop().unwrap()]), bits(&[truth]));
}

#[test]
fn an_adapter_that_was_taken_away_is_refused_and_the_others_stay() {
    let (mut model, adapters) = adapted("llama3", "llama3");
    let (gone, stays) = (adapters[0].1, adapters[1].1);
    let prompt = goldens("llama3").swap_remove(0).prompt;
    let before = bits(&alone(&*model, &prompt, Some(stays)));
    model.set_adapter(gone, None).unwrap();
    assert_eq!(bits(&alone(&*model, &prompt, Some(stays))), before);
    let mut kv = model.new_kv_cache(4, 4, KvDtype::F32).unwrap();
    let batch = sconce_models::BatchInput {
        tokens: vec![1],
        positions: vec![0],
        slots: vec![0],
        row_ends: vec![1],
        context_lens: vec![1],
        block_tables: vec![0],
        block_table_ends: vec![1],
        sample_rows: vec![0],
        adapters: vec![Some(gone)],
        ..Default::default()
    };
    let refused = model.forward(&batch, &mut kv, &mut Default::default()).unwrap_err();
    assert!(matches!(&refused, Error::Batch(why) if why.contains("not loaded")), "{refused}");
    let short = sconce_models::BatchInput { adapters: vec![None, None], ..batch };
    let refused = model.forward(&short, &mut kv, &mut Default::default()).unwrap_err();
    assert!(matches!(&refused, Error::Batch(why) if why.contains("1 rows with 2 adapters")), "{refused}");
}

#[test]
fn an_adapter_of_another_model_is_refused_by_its_tensor() {
    let folder = fixtures().join("adapters");
    for (model, adapter, names) in [
        ("phi3_short", "llama3/all", "shape"),
        ("llama3", "phi3_short/fused", "shape"),
        ("mixtral", "llama3/all", "mlp."),
        ("gemma2", "llama3/all", "shape"),
    ] {
        let spec = read_spec(&source(model)).unwrap();
        let error = load_adapter(&folder.join(adapter), &spec, RANK_MAX).unwrap_err().to_string();
        assert!(error.contains(names) && !error.contains('\n'), "{model} with {adapter}: {error}");
    }
    let spec = read_spec(&source("llama3")).unwrap();
    let error = load_adapter(&folder.join("llama3/all"), &spec, 3).unwrap_err().to_string();
    assert!(error.contains("rank 4") && error.contains("--max-lora-rank"), "{error}");
}
