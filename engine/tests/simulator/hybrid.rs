//! A real (tiny, random) model that keeps a state a sequence, under the engine: the same answers alone and in a crowd, from
//! saved states and from the start, before and after a preemption.

use std::path::Path;
use std::time::Duration;

use sconce_engine::{
    EngineConfig, EngineHandle, EngineStats, Executor, FinishReason, ItlTarget, ModelExecutor, NgramConfig, Progress,
    SamplingParams, Speculation, Submit, Token,
};
use sconce_models::{KvDtype, LoadOptions, Source};
use tokio::sync::mpsc::{Receiver, channel};

use crate::random::Random;

pub const VOCAB: u32 = 96;

/// Blocks and slots for states.
type Sizes = (u32, u32);

fn start(sizes: Sizes, enable_prefix_caching: bool) -> EngineHandle {
    let (blocks, slots) = sizes;
    let config = EngineConfig {
        block_size: 4,
        blocks,
        max_num_seqs: 16,
        max_num_batched_tokens: 40,
        max_model_len: 128,
        enable_prefix_caching,
        max_waiting: 64,
        itl_target: ItlTarget::Auto,
        // Without effect: a state takes no guesses back.
        speculation: Some(Speculation::Ngram(NgramConfig::default())),
    };
    EngineHandle::start("engine-hybrid", config, move || {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/qwen3_5");
        let model = sconce_models::load(&Source::Folder(folder), LoadOptions::default());
        let executor = ModelExecutor::new(model.map_err(|error| error.to_string())?, blocks, 4, KvDtype::F32)?;
        Ok(Box::new(executor.with_state_slots(slots)?) as Box<dyn Executor>)
    })
    .expect("the engine starts")
}

pub fn submit(engine: &EngineHandle, prompt: &[u32], params: &SamplingParams) -> Receiver<Progress> {
    let (progress, receiver) = channel(64);
    let (prompt, params) = (prompt.to_vec(), params.clone());
    engine
        .submit(Submit { prompt, params, filter: None, priority: 0, salt: [0; 32], adapter: None, progress })
        .expect("there is room");
    receiver
}

pub fn read(mut receiver: Receiver<Progress>) -> Vec<Token> {
    let mut tokens = Vec::new();
    while let Some(progress) = receiver.blocking_recv() {
        tokens.extend(progress.tokens);
        assert!(progress.finish.is_none_or(|finish| finish == FinishReason::Length));
    }
    tokens
}

pub fn end(engine: EngineHandle) -> EngineStats {
    engine.shutdown(Duration::from_secs(60));
    engine.stats()
}

#[cfg(feature = "cuda-host")]
pub fn ids(tokens: &[Token]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

/// Prompts that are the same, that share a beginning, and that share nothing.
fn requests() -> Vec<(Vec<u32>, SamplingParams)> {
    let mut random = Random::new(12);
    let shared: Vec<u32> = (0..45).map(|_| random.below(VOCAB)).collect();
    (0..18_u64)
        .map(|index| {
            let mut prompt = if index % 3 == 2 { Vec::new() } else { shared.clone() };
            if index % 3 > 0 {
                prompt.extend((0..1 + random.below(30)).map(|_| random.below(VOCAB)));
            }
            let params = SamplingParams { logprobs: Some(2), ..SamplingParams::greedy(20) };
            let sampled = SamplingParams { temperature: 0.9, seed: index, ..params.clone() };
            (prompt, if index % 2 == 0 { params } else { sampled })
        })
        .collect()
}

#[test]
fn a_hybrid_model_answers_alone_as_in_a_crowd() {
    let requests = requests();
    let quiet = start((32, 1), false);
    let alone: Vec<_> = requests.iter().map(|(prompt, params)| read(submit(&quiet, prompt, params))).collect();
    let stats = end(quiet);
    assert_eq!((stats.prefix_hits, stats.preemptions, stats.spec_draft_tokens), (0, 0, 0));
    // Few blocks, few slots, and enough of both.
    for sizes in [(60, 24), (400, 5), (400, 40)] {
        let engine = start(sizes, true);
        let receivers: Vec<_> = requests.iter().map(|(prompt, params)| submit(&engine, prompt, params)).collect();
        for (index, (receiver, alone)) in receivers.into_iter().zip(&alone).enumerate() {
            assert_eq!(&read(receiver), alone, "request {index} with {sizes:?}");
        }
        let stats = end(engine);
        // With fewer slots than sequences nothing is saved before all have a seat.
        assert!(stats.prefix_hits > 0 || sizes.1 < 16, "{sizes:?}: {stats:?}");
        assert_eq!(stats.spec_draft_tokens, 0);
        assert_eq!((stats.states_total, stats.blocks_owned), (u64::from(sizes.1), 0));
        assert!(sizes.0 > 100 || stats.preemptions > 0, "{stats:?}");
    }
}

#[test]
fn the_next_turn_of_a_conversation_begins_where_the_last_prompt_ended() {
    let mut random = Random::new(13);
    let params = SamplingParams { logprobs: Some(2), ..SamplingParams::greedy(8) };
    let (engine, forgetful) = (start((200, 4), true), start((200, 4), false));
    let mut prompt: Vec<u32> = (0..40).map(|_| random.below(VOCAB)).collect();
    let mut known = 0;
    for turn in 0..3 {
        let answer = read(submit(&engine, &prompt, &params));
        assert_eq!(answer, read(submit(&forgetful, &prompt, &params)), "turn {turn}");
        let before = known;
        known = engine.stats().prefix_hits;
        // Nothing at first, then all but the opening of the answer and part of a block.
        assert!(
            if turn == 0 { known == 0 } else { known - before >= prompt.len() as u64 - 28 },
            "turn {turn}: {known}"
        );
        prompt.extend(answer.iter().map(|token| token.id));
        prompt.extend((0..8).map(|_| random.below(VOCAB)));
    }
    end(engine);
    end(forgetful);
}
