//! An engine whose executor sleeps: never under a live sequence, and with nothing of before left when it wakes.

use sconce_engine::{
    Capabilities, EngineHandle, Executor, FinishReason, SamplingParams, SimExecutor, SimOptions, WakeError,
};
use sconce_models::{BatchInput, Logits};

use crate::oracle;
use crate::threads::{VOCAB, config, drained, read_all, submit};

const ASLEEP_BYTES: u64 = 7;

/// Refuses to wake the first time, and to compute while it sleeps.
struct Sleeper {
    sim: SimExecutor,
    is_asleep: bool,
    wakes: u32,
}

impl Executor for Sleeper {
    fn capabilities(&self) -> Capabilities {
        self.sim.capabilities()
    }

    fn vocab(&self) -> usize {
        self.sim.vocab()
    }

    fn sleep(&mut self) -> Result<u64, String> {
        self.sim.scramble();
        self.is_asleep = true;
        Ok(ASLEEP_BYTES)
    }

    fn wake(&mut self) -> Result<(), WakeError> {
        self.wakes += 1;
        if self.wakes == 1 {
            return Err(WakeError::Memory("others have it".to_owned()));
        }
        self.is_asleep = false;
        Ok(())
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        assert!(!self.is_asleep, "a step of an executor that sleeps");
        self.sim.execute(batch, logits)
    }
}

fn start() -> EngineHandle {
    let options = SimOptions::new(VOCAB, config().blocks, config().block_size);
    let make =
        || Ok(Box::new(Sleeper { sim: SimExecutor::new(options), is_asleep: false, wakes: 0 }) as Box<dyn Executor>);
    EngineHandle::start("engine-asleep", config(), make).expect("the engine starts")
}

#[test]
fn it_sleeps_when_nothing_is_live_and_wakes_with_an_empty_cache() {
    let engine = start();
    let prompt: Vec<u32> = (0..40).collect();
    let params = SamplingParams::greedy(30);
    let expected = oracle::expect(VOCAB as usize, &prompt, &params, 70).tokens;

    // A client that does not read keeps its sequence alive.
    let (slow, receiver) = submit(&prompt, params.clone(), 2);
    engine.submit(slow).expect("there is room");
    let refused = engine.sleep().expect_err("a sequence is live");
    assert!(refused.contains("1 sequences are live"), "{refused}");
    assert_eq!(read_all(receiver).tokens, expected, "it is not disturbed");

    assert_eq!(engine.sleep(), Ok(ASLEEP_BYTES));
    assert_eq!(engine.stats().blocks_cached, 0, "the prefix cache holds nothing any more");
    let (early, receiver) = submit(&prompt, params.clone(), 64);
    engine.submit(early).expect("there is room");
    let got = read_all(receiver);
    assert!(matches!(&got.finish, FinishReason::Failed(why) if why.contains("sleeps")), "{got:?}");

    assert_eq!(engine.wake(), Err(WakeError::Memory("others have it".to_owned())));
    assert_eq!(engine.wake(), Ok(()));
    let (again, receiver) = submit(&prompt, params, 64);
    engine.submit(again).expect("there is room");
    let got = read_all(receiver);
    assert_eq!(got.prompt.expect("the prompt was done").cached_tokens, 0);
    assert_eq!(got.tokens, expected);
    drained(&engine);
}

#[test]
fn a_client_that_has_gone_keeps_nobody_awake_and_a_stopped_engine_says_so() {
    let engine = start();
    let (left, receiver) = submit(&[1, 2, 3], SamplingParams::greedy(200), 2);
    engine.submit(left).expect("there is room");
    drop(receiver);
    assert_eq!(engine.sleep(), Ok(ASLEEP_BYTES));
    // It stops asleep, too.
    drained(&engine);
    assert_eq!(engine.sleep(), Err("the engine has stopped".to_owned()));
    assert!(matches!(engine.wake(), Err(WakeError::Failed(why)) if why.contains("stopped")));
}
