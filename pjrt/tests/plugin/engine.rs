//! The engine on a plugin: the scheduler as it is, in the bounds of compiled programs.

use sconce_engine::{EngineConfig, EngineHandle, Executor, FinishReason, ItlTarget, Progress, SamplingParams, Submit};
use sconce_models::LoadOptions;
use sconce_pjrt::{ElementType, PjrtExecutor};
use tokio::sync::mpsc::{Receiver, channel};

use super::driver::{BLOCK_SIZE, device, goldens, greedy, options, source};

const NAME: &str = "qwen3";

/// With room for `blocks` blocks: fewer than the programs have, so that the scheduler runs out of them first.
fn start(blocks: u32, prefix_caching: bool) -> EngineHandle {
    let config = EngineConfig {
        block_size: BLOCK_SIZE,
        blocks,
        max_num_seqs: 4,
        max_num_batched_tokens: 32,
        max_model_len: 96,
        enable_prefix_caching: prefix_caching,
        max_waiting: 64,
        itl_target: ItlTarget::Auto,
        speculation: None,
    };
    EngineHandle::start("pjrt-test", config, move || {
        let options = options(ElementType::F32);
        let executor = PjrtExecutor::load(device(), &source(NAME), LoadOptions::default(), options)?;
        let capabilities = executor.capabilities();
        assert_eq!((capabilities.static_buckets, capabilities.mixed_batch), (vec![1, 4], false));
        assert_eq!((capabilities.max_prefills_per_step, capabilities.max_tokens_per_step), (1, 32));
        Ok(Box::new(executor))
    })
    .expect("the engine starts")
}

fn submit(engine: &EngineHandle, prompt: &[u32], max_tokens: u32) -> Receiver<Progress> {
    let (progress, receiver) = channel(256);
    let params = SamplingParams::greedy(max_tokens);
    let submit =
        Submit { prompt: prompt.to_vec(), params, filter: None, priority: 0, salt: [0; 32], adapter: None, progress };
    engine.submit(submit).expect("there is room");
    receiver
}

fn answer(mut receiver: Receiver<Progress>) -> Vec<u32> {
    let mut tokens = Vec::new();
    loop {
        let progress = receiver.blocking_recv().expect("a sequence ends with a reason");
        tokens.extend(progress.tokens.iter().map(|token| token.id));
        if let Some(finish) = progress.finish {
            assert_eq!(finish, FinishReason::Length);
            return tokens;
        }
    }
}

/// More sequences than rows, over fewer blocks than they need at once: some wait, some are preempted and computed again, some
/// begin with what the prefix cache has. All get what Transformers chose.
#[test]
#[ignore = "needs a PJRT plugin: SCONCE_PJRT_PLUGIN"]
fn the_engine_answers_as_transformers() {
    let (prompt, chosen) = (goldens(NAME).swap_remove(0).prompt, greedy(NAME));
    for (blocks, prefix_caching) in [(24, true), (9, true), (9, false)] {
        let engine = start(blocks, prefix_caching);
        let receivers: Vec<_> = (0..9).map(|_| submit(&engine, &prompt, chosen.len() as u32)).collect();
        for (index, receiver) in receivers.into_iter().enumerate() {
            assert_eq!(answer(receiver), chosen, "sequence {index} of {blocks} blocks");
        }
        // What was chosen as a prompt, of which the cache may have whole blocks by now.
        let longer = [&prompt[..], &chosen[..40]].concat();
        assert_eq!(answer(submit(&engine, &longer, 8)), chosen[40..48]);
        let stats = engine.stats();
        assert_eq!(engine.failure(), None);
        assert_eq!(stats.preemptions > 0, blocks == 9, "{blocks} blocks: {stats:?}");
        engine.shutdown(std::time::Duration::ZERO);
    }
}
