//! A real (tiny, random) model under the engine: what a sequence gives alone it gives in any crowd, bit for bit.

use sconce::engine::{
    EngineConfig, EngineHandle, Executor, FinishReason, ModelExecutor, Progress, SamplingParams, Submit, Token,
};
use sconce_models::{KvDtype, LoadOptions, Source};
use tokio::sync::mpsc::{Receiver, channel};

use crate::random::Random;

fn start(blocks: u32, enable_prefix_caching: bool) -> EngineHandle {
    let config = EngineConfig {
        block_size: 16,
        blocks,
        max_num_seqs: 16,
        max_num_batched_tokens: 96,
        max_model_len: 1024,
        enable_prefix_caching,
        max_waiting: 64,
    };
    EngineHandle::start("engine-model", config, move || {
        let model = sconce_models::load(&Source::Dummy("tiny:f32".into()), LoadOptions::default());
        let executor = ModelExecutor::new(model.map_err(|error| error.to_string())?, blocks, 16, KvDtype::F16)?;
        Ok(Box::new(executor) as Box<dyn Executor>)
    })
    .expect("the engine starts")
}

fn submit(engine: &EngineHandle, prompt: &[u32], params: &SamplingParams) -> Receiver<Progress> {
    let (progress, receiver) = channel(64);
    let (prompt, params) = (prompt.to_vec(), params.clone());
    engine.submit(Submit { prompt, params, priority: 0, salt: [0; 32], progress }).expect("there is room");
    receiver
}

fn read(mut receiver: Receiver<Progress>) -> Vec<Token> {
    let mut tokens = Vec::new();
    while let Some(progress) = receiver.blocking_recv() {
        tokens.extend(progress.tokens);
        assert!(progress.finish.is_none_or(|finish| finish == FinishReason::Length));
    }
    tokens
}

#[test]
fn a_model_answers_alone_as_in_a_crowd() {
    let mut random = Random::new(11);
    let shared: Vec<u32> = (0..70).map(|_| random.below(256)).collect();
    let requests: Vec<_> = (0..24_u64)
        .map(|index| {
            let mut prompt = if index % 2 == 0 { shared.clone() } else { Vec::new() };
            prompt.extend((0..1 + random.below(50)).map(|_| random.below(256)));
            let mut params = SamplingParams { logprobs: Some(2), ..SamplingParams::greedy(24) };
            if index % 3 == 0 {
                params = SamplingParams { temperature: 0.9, top_p: 0.95, seed: index, ..params };
            }
            (prompt, params)
        })
        .collect();

    let quiet = start(64, false);
    let alone: Vec<_> = requests.iter().map(|(prompt, params)| read(submit(&quiet, prompt, params))).collect();
    quiet.shutdown(std::time::Duration::from_secs(60));

    // Too few blocks for all at once, so that some are preempted and recomputed.
    let crowded = start(24, true);
    let receivers: Vec<_> = requests.iter().map(|(prompt, params)| submit(&crowded, prompt, params)).collect();
    for (index, (receiver, alone)) in receivers.into_iter().zip(alone).enumerate() {
        assert_eq!(alone.len(), 24);
        assert_eq!(read(receiver), alone, "request {index}");
    }
    crowded.shutdown(std::time::Duration::from_secs(60));
    let stats = crowded.stats();
    assert!(stats.preemptions > 0 && stats.prefix_hits > 0 && stats.recomputed_tokens > 0, "{stats:?}");
    assert_eq!((stats.blocks_owned, stats.finished_length), (0, 24));
}
