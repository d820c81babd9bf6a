//! A real (tiny, random) model under the engine: what a sequence gives alone it gives in any crowd, bit for bit.

use sconce_engine::{
    EngineConfig, EngineHandle, Executor, FinishReason, ItlTarget, ModelExecutor, NgramConfig, Progress,
    SamplingParams, SimExecutor, SimOptions, Speculation, Submit, Token,
};
use sconce_models::{KvDtype, LoadOptions, Source};
use tokio::sync::mpsc::{Receiver, channel};

use crate::random::Random;

pub fn executor(name: &str, blocks: u32) -> Result<ModelExecutor, String> {
    let model = sconce_models::load(&Source::Dummy(name.into()), LoadOptions::default());
    ModelExecutor::new(model.map_err(|error| error.to_string())?, blocks, 16, KvDtype::F16)
}

/// Builds what guesses for `Speculation::DraftModel`, for so many blocks.
type Draft = fn(u32) -> Result<Box<dyn Executor>, String>;

fn start(
    blocks: u32,
    enable_prefix_caching: bool,
    speculation: Option<Speculation>,
    draft: Option<Draft>,
) -> EngineHandle {
    let config = EngineConfig {
        block_size: 16,
        blocks,
        max_num_seqs: 16,
        max_num_batched_tokens: 96,
        max_model_len: 1024,
        enable_prefix_caching,
        max_waiting: 64,
        itl_target: ItlTarget::Auto,
        speculation,
    };
    EngineHandle::start("engine-model", config, move || {
        let mut model = executor("tiny:f32", blocks)?;
        if let Some(draft) = draft {
            model = model.with_draft(draft(blocks)?);
        }
        Ok(Box::new(model) as Box<dyn Executor>)
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

/// Prompts that share a beginning and some that do not, greedy and sampled.
pub fn requests() -> Vec<(Vec<u32>, SamplingParams)> {
    let mut random = Random::new(11);
    let shared: Vec<u32> = (0..70).map(|_| random.below(256)).collect();
    (0..24_u64)
        .map(|index| {
            let mut prompt = if index % 2 == 0 { shared.clone() } else { Vec::new() };
            prompt.extend((0..1 + random.below(50)).map(|_| random.below(256)));
            let mut params = SamplingParams { logprobs: Some(2), ..SamplingParams::greedy(24) };
            if index % 3 == 0 {
                params = SamplingParams { temperature: 0.9, top_p: 0.95, seed: index, ..params };
            }
            (prompt, params)
        })
        .collect()
}

pub fn answers_alone(requests: &[(Vec<u32>, SamplingParams)]) -> Vec<Vec<Token>> {
    let quiet = start(64, false, None, None);
    let alone = requests.iter().map(|(prompt, params)| read(submit(&quiet, prompt, params))).collect();
    quiet.shutdown(std::time::Duration::from_secs(60));
    alone
}

#[test]
fn a_draft_model_changes_no_answer() {
    let requests = requests();
    let alone = answers_alone(&requests);
    // The model itself; one that is nearly it; one that knows nothing and refuses batches that break their own rules.
    let drafts: [(&str, Draft); 3] = [
        ("itself", |blocks| Ok(Box::new(executor("tiny:f32", blocks)?))),
        ("nearly it", |blocks| Ok(Box::new(executor("tiny:q4_0", blocks)?))),
        ("a stranger", |blocks| Ok(Box::new(SimExecutor::new(SimOptions::new(256, blocks, 16))))),
    ];
    let speculation = Speculation::DraftModel { num_speculative_tokens: 3 };
    for (name, draft) in drafts {
        let engine = start(24, true, Some(speculation), Some(draft));
        // Nothing is known of the first one's steps, so it is drafted for; beside others it may not pay.
        let (prompt, params) = &requests[0];
        assert_eq!(read(submit(&engine, prompt, params)), alone[0], "with {name}");
        let receivers: Vec<_> = requests.iter().map(|(prompt, params)| submit(&engine, prompt, params)).collect();
        for (index, (receiver, alone)) in receivers.into_iter().zip(&alone).enumerate() {
            assert_eq!(&read(receiver), alone, "request {index} with {name}");
        }
        engine.shutdown(std::time::Duration::from_secs(60));
        let stats = engine.stats();
        assert!(stats.spec_draft_tokens > 0 && stats.preemptions > 0 && stats.prefix_hits > 0, "{name}: {stats:?}");
    }

    // What a model guesses of its own greedy answers is right.
    let engine = start(24, true, Some(speculation), Some(drafts[0].1));
    for (prompt, params) in requests.iter().filter(|(_, params)| params.temperature == 0.0) {
        drop(read(submit(&engine, prompt, params)));
    }
    engine.shutdown(std::time::Duration::from_secs(60));
    let stats = engine.stats();
    assert!(stats.spec_draft_tokens > 0 && stats.spec_accepted_tokens == stats.spec_draft_tokens, "{stats:?}");
}

#[test]
fn a_model_answers_alone_as_in_a_crowd() {
    let requests = requests();
    let alone = answers_alone(&requests);

    // Too few blocks for all at once, so that some are preempted and recomputed.
    let single_tokens = Speculation::Ngram(NgramConfig { prompt_lookup_min: 1, ..NgramConfig::default() });
    let crowded = start(24, true, Some(single_tokens), None);
    // Some one by one, for which drafts pay more surely than for a crowd.
    for (index, (prompt, params)) in requests.iter().enumerate().take(6) {
        assert_eq!(read(submit(&crowded, prompt, params)), alone[index], "request {index}");
    }
    let receivers: Vec<_> = requests.iter().map(|(prompt, params)| submit(&crowded, prompt, params)).collect();
    for (index, (receiver, alone)) in receivers.into_iter().zip(alone).enumerate() {
        assert_eq!(alone.len(), 24);
        assert_eq!(read(receiver), alone, "request {index}");
    }
    crowded.shutdown(std::time::Duration::from_secs(60));
    let stats = crowded.stats();
    assert!(stats.preemptions > 0 && stats.prefix_hits > 0 && stats.recomputed_tokens > 0, "{stats:?}");
    // How many pay depends on how long steps take here.
    assert!(stats.spec_draft_tokens > 0 && stats.spec_accepted_tokens <= stats.spec_draft_tokens, "{stats:?}");
    assert_eq!((stats.blocks_owned, stats.finished_length), (0, 30));
}
