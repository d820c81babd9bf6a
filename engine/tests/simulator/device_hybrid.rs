//! The model of `hybrid.rs` on the stand-in of a GPU: its states are saved, copied and gone on with there.

use std::path::Path;

use sconce_cuda::Device;
use sconce_engine::{
    CudaExecutor, EngineConfig, EngineHandle, Executor, ItlTarget, NgramConfig, SamplingParams, Speculation,
};
use sconce_models::cuda::{CudaModel, CudaSizes};
use sconce_models::{LoadOptions, Precision, Source};

use crate::hybrid::{VOCAB, end, ids, read, submit};
use crate::random::Random;

fn start(blocks: u32, slots: u32, enable_prefix_caching: bool) -> EngineHandle {
    let sizes = CudaSizes {
        max_num_seqs: 8,
        max_num_batched_tokens: 40,
        max_model_len: 128,
        blocks,
        block_size: 4,
        kv_dtype: None,
    };
    let config = EngineConfig {
        block_size: sizes.block_size,
        blocks,
        max_num_seqs: sizes.max_num_seqs,
        max_num_batched_tokens: sizes.max_num_batched_tokens,
        max_model_len: sizes.max_model_len,
        enable_prefix_caching,
        max_waiting: 64,
        itl_target: ItlTarget::Auto,
        // Without effect: a state takes no guesses back.
        speculation: Some(Speculation::Ngram(NgramConfig::default())),
    };
    EngineHandle::start("engine-hybrid-device", config, move || {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/qwen3_5");
        let options = LoadOptions { precision: Precision::High, max_model_len: Some(128), ..LoadOptions::default() };
        let model = CudaModel::load(&Source::Folder(folder), &Device::host(), options);
        let executor = CudaExecutor::new(model.map_err(|error| error.to_string())?, sizes)?;
        Ok(Box::new(executor.with_state_slots(slots)?) as Box<dyn Executor>)
    })
    .expect("the engine starts")
}

/// Prompts that share a beginning, all at once: preempted where there are few blocks, from saved states where there are many.
#[test]
fn a_hybrid_model_on_a_gpu_answers_alone_as_in_a_crowd() {
    let mut random = Random::new(21);
    let shared: Vec<u32> = (0..45).map(|_| random.below(VOCAB)).collect();
    let prompts: Vec<Vec<u32>> = (0..9)
        .map(|index| {
            let mut prompt = if index % 3 == 2 { Vec::new() } else { shared.clone() };
            prompt.extend((0..1 + random.below(20)).map(|_| random.below(VOCAB)));
            prompt
        })
        .collect();
    let params = SamplingParams::greedy(12);
    let quiet = start(32, 1, false);
    let alone: Vec<_> = prompts.iter().map(|prompt| ids(&read(submit(&quiet, prompt, &params)))).collect();
    end(quiet);
    for (blocks, slots) in [(40, 20), (300, 30)] {
        let engine = start(blocks, slots, true);
        for round in 0..2 {
            let receivers: Vec<_> = prompts.iter().map(|prompt| submit(&engine, prompt, &params)).collect();
            for (index, (receiver, alone)) in receivers.into_iter().zip(&alone).enumerate() {
                assert_eq!(&ids(&read(receiver)), alone, "prompt {index} of round {round} with {blocks} blocks");
            }
        }
        let stats = end(engine);
        assert!(stats.prefix_hits > 0 || blocks < 100, "{stats:?}");
        assert!(stats.preemptions > 0 || blocks > 100, "{stats:?}");
        assert_eq!((stats.spec_draft_tokens, stats.states_total), (0, u64::from(slots)));
    }
}

/// A conversation goes on from the state behind its last prompt.
#[test]
fn a_conversation_on_a_gpu_goes_on_from_saved_states() {
    let mut random = Random::new(13);
    let params = SamplingParams::greedy(8);
    let (engine, forgetful) = (start(200, 4, true), start(200, 4, false));
    let mut prompt: Vec<u32> = (0..40).map(|_| random.below(VOCAB)).collect();
    for turn in 0..3 {
        let answer = ids(&read(submit(&engine, &prompt, &params)));
        assert_eq!(answer, ids(&read(submit(&forgetful, &prompt, &params))), "turn {turn}");
        prompt.extend(answer);
        prompt.extend((0..8).map(|_| random.below(VOCAB)));
    }
    assert!(end(engine).prefix_hits > 40);
    end(forgetful);
}
