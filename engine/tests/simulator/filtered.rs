//! Token filters on the real engine thread: quick, slow, failing, panicking and stuck ones beside free sequences.

use std::sync::mpsc;
use std::time::Duration;

use sconce_engine::{EngineHandle, FinishReason, NextTokens, SamplingLimits, SamplingParams, Submit, TokenFilter};

use crate::oracle::{self, Expected};
use crate::puzzle::{Follower, Puzzle};
use crate::threads::{DEVICES, VOCAB, config, drained, read_all, start, start_on, submit};

fn puzzle(seed: u64) -> Puzzle {
    Puzzle { seed, vocab: VOCAB }
}

fn follower(seed: u64, fails_at: Option<(usize, bool)>) -> Box<dyn TokenFilter> {
    Box::new(Follower { puzzle: puzzle(seed), taken: Vec::new(), fails_at })
}

fn expected(prompt: &[u32], params: &SamplingParams, puzzle: Option<Puzzle>) -> Expected {
    let tokens_max = prompt.len() + params.max_tokens as usize;
    oracle::expect_filtered(VOCAB as usize, prompt, params, tokens_max, puzzle)
}

fn sampled(seed: u64) -> SamplingParams {
    SamplingParams { temperature: 1.0, seed, stop_token_ids: vec![3], min_tokens: 4, ..SamplingParams::greedy(60) }
}

#[test]
fn filtered_and_free_streams_get_what_they_would_get_alone() {
    DEVICES.into_iter().for_each(filtered_and_free_streams);
}

fn filtered_and_free_streams(device: Option<SamplingLimits>) {
    // Few blocks: preempted sequences keep their filters.
    let engine = start_on(device, sconce_engine::EngineConfig { blocks: 24, ..config() });
    let mut receivers = Vec::new();
    for index in 0..48_u64 {
        let prompt: Vec<u32> = (0..20 + index as u32 % 7).map(|at| at % VOCAB).collect();
        let mut params = sampled(index);
        if index % 5 == 0 {
            params.logprobs = Some(3);
        }
        let puzzle = (index % 3 != 0).then(|| puzzle(index));
        let (mut submit, receiver) = submit(&prompt, params.clone(), 8);
        submit.filter = puzzle.map(|puzzle| follower(puzzle.seed, None));
        engine.submit(submit).expect("there is room");
        receivers.push((expected(&prompt, &params, puzzle), receiver));
    }
    for (index, (expected, receiver)) in receivers.into_iter().enumerate() {
        let got = read_all(receiver);
        assert_eq!((&got.finish, &got.tokens), (&expected.finish, &expected.tokens), "stream {index}");
    }
    let stats = drained(&engine);
    assert!(stats.preemptions > 0, "the test meets preemption");
}

#[test]
fn a_filter_that_fails_or_panics_fails_its_own_sequence() {
    DEVICES.into_iter().for_each(one_that_fails);
}

fn one_that_fails(device: Option<SamplingLimits>) {
    let engine = start_on(device, config());
    for (fails_at, part) in
        [((0, false), "cannot go on"), ((5, false), "cannot go on"), ((7, true), "the puzzle is a bad one")]
    {
        let (mut bad, bad_receiver) = submit(&[1, 2, 3], SamplingParams::greedy(40), 64);
        bad.filter = Some(follower(1, Some(fails_at)));
        let (good, good_receiver) = submit(&[1, 2, 3], SamplingParams::greedy(40), 64);
        engine.submit(bad).expect("there is room");
        engine.submit(good).expect("there is room");
        let (bad, good) = (read_all(bad_receiver), read_all(good_receiver));
        let FinishReason::Failed(why) = &bad.finish else { panic!("{fails_at:?} ended as {:?}", bad.finish) };
        assert!(why.contains(part), "{why}");
        let params = SamplingParams::greedy(40);
        let whole = expected(&[1, 2, 3], &params, Some(puzzle(1)));
        assert_eq!(bad.tokens, whole.tokens[..bad.tokens.len()], "until then it was right");
        assert!(bad.tokens.len() >= fails_at.0);
        assert_eq!(good.tokens, expected(&[1, 2, 3], &params, None).tokens);
    }
    drained(&engine);
}

/// Waits at every token until the test lets it go on.
struct Gated {
    inner: Follower,
    gate: mpsc::Receiver<()>,
}

impl TokenFilter for Gated {
    fn advance(&mut self, tokens: &[u32], next: &mut NextTokens) -> Result<(), String> {
        let opened = self.gate.recv_timeout(Duration::from_secs(60)).map_err(|_| "the gate stays shut".to_owned());
        // Long enough to count as slow.
        std::thread::sleep(Duration::from_millis(4));
        opened.and_then(|()| self.inner.advance(tokens, next))
    }
}

fn submit_gated(
    engine: &EngineHandle,
    params: SamplingParams,
) -> (mpsc::Sender<()>, tokio::sync::mpsc::Receiver<sconce_engine::Progress>) {
    let (opener, gate) = mpsc::channel();
    let inner = Follower { puzzle: puzzle(9), taken: Vec::new(), fails_at: None };
    let (submit, receiver) = submit(&[1, 2, 3], params, 64);
    let filter: Box<dyn TokenFilter> = Box::new(Gated { inner, gate });
    engine.submit(Submit { filter: Some(filter), ..submit }).expect("there is room");
    (opener, receiver)
}

#[test]
fn a_slow_filter_holds_up_nobody_else() {
    let engine = start(config());
    let params = SamplingParams::greedy(30);
    let (opener, slow) = submit_gated(&engine, params.clone());
    for _ in 0..2 {
        opener.send(()).expect("the filter listens");
    }
    // From its second token on the slow one sits out the steps until its filter is back, which it now is not.
    let free: Vec<_> = (0..8_u32)
        .map(|at| {
            let (submit, receiver) = submit(&[at], SamplingParams::greedy(200), 256);
            engine.submit(submit).expect("there is room");
            receiver
        })
        .collect();
    for receiver in free {
        assert_eq!(read_all(receiver).finish, FinishReason::Length);
    }
    for _ in 0..40 {
        let _ = opener.send(());
    }
    let got = read_all(slow);
    assert_eq!(got.tokens, expected(&[1, 2, 3], &params, Some(puzzle(9))).tokens);
    drained(&engine);
}

#[test]
fn a_filter_that_never_comes_back_fails_its_sequence_and_the_engine_goes_on() {
    let engine = start(config());
    let (opener, stuck) = submit_gated(&engine, SamplingParams::greedy(30));
    let FinishReason::Failed(why) = read_all(stuck).finish else { panic!("a stuck filter fails its sequence") };
    assert!(why.contains("took too long"), "{why}");
    // Its worker is still held; another one has taken its place.
    let params = sampled(4);
    let (mut next, receiver) = submit(&[5, 6], params.clone(), 64);
    next.filter = Some(follower(2, None));
    engine.submit(next).expect("there is room");
    assert_eq!(read_all(receiver).tokens, expected(&[5, 6], &params, Some(puzzle(2))).tokens);
    drop(opener);
    drained(&engine);
}

#[test]
fn a_client_that_leaves_takes_its_filter_along() {
    let engine = start(config());
    let (opener, receiver) = submit_gated(&engine, SamplingParams::greedy(30));
    drop(receiver);
    opener.send(()).expect("the filter listens");
    let (submit, receiver) = submit(&[1], SamplingParams::greedy(5), 64);
    engine.submit(submit).expect("there is room");
    assert_eq!(read_all(receiver).finish, FinishReason::Length);
    drained(&engine);
    // The filter is gone: nobody holds the other end.
    assert!((0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        opener.send(()).is_err()
    }));
}
