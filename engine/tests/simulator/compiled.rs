//! A real (tiny, random) model behind what a compiled back end asks for: fixed sizes of steps that are really filled up,
//! one prompt a step and never beside decodes, nobody preempted. The answers are those of an executor without limits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sconce_engine::sampler::Workers;
use sconce_engine::{
    Capabilities, EngineConfig, EngineHandle, EngineStats, Executor, FinishReason, ItlTarget, ModelExecutor,
    PaddedExecutor, Progress, SamplingParams, Token, scratch_blocks,
};
use sconce_models::{BatchInput, Logits};
use tokio::sync::mpsc::Receiver;

use crate::model::{answers_alone, executor, read, requests, submit};

const BLOCK_SIZE: u32 = 16;
/// Three or four of the requests at once.
const BLOCKS: u32 = 30;
const PROGRESS_WAIT: Duration = Duration::from_secs(60);

/// A device that has compiled these steps and runs no other.
struct Compiled {
    model: ModelExecutor,
    capabilities: Capabilities,
    padding: Arc<AtomicU64>,
    /// Tokens of the steps it saw, each size once.
    sizes: Arc<Mutex<Vec<usize>>>,
}

impl Executor for Compiled {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn vocab(&self) -> usize {
        self.model.vocab()
    }

    fn workers(&self) -> Workers {
        self.model.workers()
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        let (rows, tokens) = (batch.rows(), batch.tokens.len());
        let Capabilities { static_buckets, token_buckets, .. } = &self.capabilities;
        let padding = batch.slots.iter().filter(|slot| **slot >= BLOCKS * BLOCK_SIZE).count();
        let first_row = batch.row_ends[0] as usize;
        let buckets = if rows == tokens {
            // Every row of a compiled decode has logits.
            assert_eq!(
                batch.sample_rows.len(),
                rows.max(batch.sample_rows.len()),
                "all rows sample, or a prompt goes on"
            );
            static_buckets
        } else {
            assert_eq!(first_row, tokens - padding, "one prompt, and padding behind it");
            token_buckets
        };
        assert!(buckets.contains(&(tokens as u32)), "{tokens} tokens in {rows} rows are not compiled");
        // Where the next smaller bucket is half of this one; prompts are cut so that it holds for theirs in any case.
        let smallest = buckets.iter().min().is_some_and(|smallest| *smallest as usize == tokens);
        let halves = buckets.windows(2).all(|pair| pair[0] * 2 >= pair[1]);
        let bounded = !smallest && (halves || rows < tokens);
        assert!(!bounded || padding * 2 <= tokens, "{padding} of {tokens} tokens are padding");
        self.padding.fetch_add(padding as u64, Ordering::Relaxed);
        let mut sizes = self.sizes.lock().expect("nobody panics with it");
        if !sizes.contains(&tokens) {
            sizes.push(tokens);
        }
        drop(sizes);
        self.model.execute(batch, logits)
    }
}

struct Machine {
    engine: EngineHandle,
    padding: Arc<AtomicU64>,
    sizes: Arc<Mutex<Vec<usize>>>,
}

fn start(decode_rows: &[u32], prefill_tokens: &[u32]) -> Machine {
    let config = EngineConfig {
        block_size: BLOCK_SIZE,
        blocks: BLOCKS,
        max_num_seqs: 16,
        max_num_batched_tokens: 512,
        max_model_len: 1024,
        enable_prefix_caching: true,
        max_waiting: 64,
        itl_target: ItlTarget::Auto,
        speculation: None,
    };
    let (padding, sizes) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (counted, seen) = (Arc::clone(&padding), Arc::clone(&sizes));
    let capabilities = Capabilities::compiled(decode_rows, prefill_tokens);
    let engine = EngineHandle::start("engine-compiled", config, move || {
        let model = executor("tiny:f32", BLOCKS + scratch_blocks(&capabilities, BLOCK_SIZE))?;
        let device = Compiled { model, capabilities: capabilities.clone(), padding: counted, sizes: seen };
        Ok(Box::new(PaddedExecutor::new(device, capabilities, BLOCKS, BLOCK_SIZE)) as Box<dyn Executor>)
    })
    .expect("the engine starts");
    Machine { engine, padding, sizes }
}

/// Runs the requests, which come one after the other while those before them are under way; every fifth client leaves
/// after a few tokens and never reads more.
fn run(machine: &Machine, requests: &[(Vec<u32>, SamplingParams)], alone: &[Vec<Token>]) -> EngineStats {
    let mut under_way: VecDeque<(usize, Receiver<Progress>)> = VecDeque::new();
    let mut left = 0;
    let mut settle = |under_way: &mut VecDeque<(usize, Receiver<Progress>)>| {
        let Some((index, mut receiver)) = under_way.pop_front() else { return false };
        if index % 5 != 4 {
            assert_eq!(read(receiver), alone[index], "request {index}");
            return true;
        }
        let mut tokens = Vec::new();
        while tokens.len() <= index % 3 {
            tokens.extend(receiver.blocking_recv().expect("it goes on").tokens);
        }
        assert_eq!(tokens, alone[index][..tokens.len()], "request {index}, which its client left");
        left += 1;
        true
    };
    for (index, (prompt, params)) in requests.iter().enumerate() {
        let long =
            SamplingParams { max_tokens: if index % 5 == 4 { 100 } else { params.max_tokens }, ..params.clone() };
        under_way.push_back((index, submit(&machine.engine, prompt, &long)));
        if under_way.len() > 5 + index % 4 {
            settle(&mut under_way);
        }
    }
    while settle(&mut under_way) {}
    machine.engine.shutdown(PROGRESS_WAIT);
    let stats = machine.engine.stats();
    assert_eq!((stats.finished_cancelled, stats.finished_length), (left, requests.len() as u64 - left), "{stats:?}");
    assert_eq!((stats.preemptions, stats.recomputed_tokens, stats.blocks_owned), (0, 0, 0), "{stats:?}");
    stats
}

#[test]
fn compiled_sizes_change_no_answer_and_waste_little() {
    let requests = requests();
    let alone = answers_alone(&requests);
    // (rows of decodes, tokens of prompts, the most of all computed tokens that padding may be in percent). How many decode
    // together depends on the threads: alone among eight rows, seven are padding.
    let cases: [(&[u32], &[u32], u64); 3] =
        [(&[1, 2, 4, 8, 16], &[16, 32, 64, 128], 40), (&[4, 16], &[64], 75), (&[8], &[128], 88)];
    for (decode_rows, prefill_tokens, percent_max) in cases {
        let machine = start(decode_rows, prefill_tokens);
        let stats = run(&machine, &requests, &alone);
        let padding = stats.padding_tokens;
        assert_eq!(padding, machine.padding.load(Ordering::Relaxed), "what is counted is what was computed");
        let computed = stats.step_tokens.sum + padding;
        let percent = padding * 100 / computed;
        println!("{decode_rows:?} {prefill_tokens:?}: {padding} of {computed} tokens are padding, {percent} %");
        assert!(padding > 0 && percent <= percent_max, "{percent} % of all tokens are padding");
        assert!(stats.prefix_hits > 0, "compiled steps share prefixes too: {stats:?}");
        let sizes = machine.sizes.lock().expect("nobody panics with it").len();
        assert!(sizes <= decode_rows.len() + prefill_tokens.len(), "{sizes} sizes of steps");
    }
}

#[test]
fn who_does_not_read_keeps_its_blocks_and_others_wait_for_them() {
    let machine = start(&[4], &[64]);
    let params = SamplingParams::greedy(300);
    // Most of the blocks are set aside for it, and its client lets it stand after some tokens.
    let mut first = submit(&machine.engine, &[7; 20], &params);
    let mut tokens = Vec::new();
    while tokens.is_empty() {
        tokens.extend(first.blocking_recv().expect("it goes on").tokens);
    }
    let second = submit(&machine.engine, &[9; 20], &params);
    // The engine stands still now and comes back when the first is read on: neither is lost.
    let mut finish = None;
    while finish.is_none() {
        let progress = first.blocking_recv().expect("a sequence ends with a finish");
        tokens.extend(progress.tokens);
        finish = progress.finish;
    }
    assert_eq!((finish, tokens.len()), (Some(FinishReason::Length), 300));
    assert_eq!(read(second).len(), 300);
    machine.engine.shutdown(PROGRESS_WAIT);
    assert_eq!(machine.engine.stats().preemptions, 0);
}
