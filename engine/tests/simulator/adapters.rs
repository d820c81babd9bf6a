//! Adapters of a real (tiny, random) model under the engine: each sequence gets its own, whoever stands beside it, and
//! one that is taken away goes with the last sequence that uses it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sconce_engine::{
    EngineConfig, EngineHandle, Executor, FinishReason, ItlTarget, LoadedAdapter, ModelExecutor, NgramConfig, Progress,
    SamplingParams, Speculation, Submit, Token,
};
use sconce_models::{Adapter, KvDtype, LoadOptions, Source, load_adapter, read_spec};
use tokio::sync::mpsc::{Receiver, channel};

use crate::random::Random;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures")
}

fn source() -> Source {
    Source::Folder(fixtures().join("llama3"))
}

fn adapter(name: &str) -> Arc<Adapter> {
    let spec = read_spec(&source()).expect("the fixture is sound");
    Arc::new(load_adapter(&fixtures().join("adapters/llama3").join(name), &spec, 16).expect("it fits"))
}

fn start(enable_prefix_caching: bool, speculation: Option<Speculation>) -> EngineHandle {
    let config = EngineConfig {
        block_size: 4,
        blocks: 256,
        max_num_seqs: 16,
        max_num_batched_tokens: 24,
        max_model_len: 96,
        enable_prefix_caching,
        max_waiting: 64,
        itl_target: ItlTarget::Auto,
        speculation,
    };
    EngineHandle::start("engine-adapters", config, || {
        let model = sconce_models::load(&source(), LoadOptions::default()).map_err(|error| error.to_string())?;
        Ok(Box::new(ModelExecutor::new(model, 256, 4, KvDtype::F32)?) as Box<dyn Executor>)
    })
    .expect("the engine starts")
}

fn submit(
    engine: &EngineHandle,
    prompt: &[u32],
    adapter: Option<&LoadedAdapter>,
    max_tokens: u32,
) -> Receiver<Progress> {
    let (progress, receiver) = channel(256);
    let params = SamplingParams { logprobs: Some(1), ..SamplingParams::greedy(max_tokens) };
    let adapter = adapter.map(LoadedAdapter::id);
    let submit =
        Submit { prompt: prompt.to_vec(), params, filter: None, priority: 0, salt: [0; 32], adapter, progress };
    engine.submit(submit).expect("there is room");
    receiver
}

fn read(mut receiver: Receiver<Progress>) -> (Vec<Token>, u32, FinishReason) {
    let (mut tokens, mut cached) = (Vec::new(), 0);
    loop {
        let progress = receiver.blocking_recv().expect("a sequence ends with a finish");
        tokens.extend(progress.tokens);
        cached += progress.prompt.map_or(0, |prompt| prompt.cached_tokens);
        if let Some(finish) = progress.finish {
            return (tokens, cached, finish);
        }
    }
}

#[test]
fn sequences_of_several_adapters_get_what_they_get_alone() {
    let names = ["all", "linear", "patterns", "second_layer"];
    let mut random = Random::new(3);
    let shared: Vec<u32> = (0..19).map(|_| random.below(96)).collect();
    let prompts: Vec<Vec<u32>> = (0..4).map(|index| [&shared[..], &[index, 7]].concat()).collect();
    let work = || (0..=names.len()).flat_map(|who| prompts.iter().map(move |prompt| (who, prompt)));
    let alone: Vec<Vec<Token>> = {
        let engine = start(false, None);
        let loaded: Vec<_> = names.map(|name| engine.load_adapter(adapter(name)).expect("it is taken")).into();
        work()
            .map(|(who, prompt)| read(submit(&engine, prompt, who.checked_sub(1).map(|who| &loaded[who]), 20)).0)
            .collect()
    };
    let differ = (1..=names.len()).all(|who| alone[who * prompts.len()] != alone[0]);
    assert!(differ, "every adapter changes what is said");
    for speculation in [None, Some(Speculation::Ngram(NgramConfig::default()))] {
        let engine = start(true, speculation);
        let loaded: Vec<_> = names.map(|name| engine.load_adapter(adapter(name)).expect("it is taken")).into();
        for round in 0..2 {
            let receivers: Vec<_> = work()
                .map(|(who, prompt)| submit(&engine, prompt, who.checked_sub(1).map(|who| &loaded[who]), 20))
                .collect();
            for (index, receiver) in receivers.into_iter().enumerate() {
                let (tokens, cached, finish) = read(receiver);
                assert_eq!(tokens, alone[index], "sequence {index} of round {round}");
                assert_eq!(finish, FinishReason::Length);
                assert!(round == 0 || cached >= 16, "an adapter's own prefix is found again: {cached}");
            }
        }
    }
}

#[test]
fn a_prefix_is_never_shared_between_adapters() {
    let engine = start(true, None);
    let (one, other) = (engine.load_adapter(adapter("all")), engine.load_adapter(adapter("all")));
    let (one, other) = (one.expect("it is taken"), other.expect("it is taken"));
    let prompt: Vec<u32> = (0..17).collect();
    // The same matrices under two names, and the base model: nobody finds what another left.
    for (adapter, expected) in [(None, 0), (Some(&one), 0), (Some(&other), 0), (Some(&one), 16), (None, 16)] {
        let (_, cached, _) = read(submit(&engine, &prompt, adapter, 1));
        assert_eq!(cached, expected);
    }
}

#[test]
fn an_adapter_goes_with_the_last_sequence_that_uses_it() {
    let engine = start(true, None);
    let prompt: Vec<u32> = (0..9).collect();
    let alone = {
        let loaded = engine.load_adapter(adapter("all")).expect("it is taken");
        read(submit(&engine, &prompt, Some(&loaded), 60)).0
    };
    let loaded = engine.load_adapter(adapter("all")).expect("it is taken");
    let id = loaded.id();
    let running = submit(&engine, &prompt, Some(&loaded), 60);
    drop(loaded);
    let (tokens, _, finish) = read(running);
    assert_eq!((tokens, finish), (alone, FinishReason::Length), "what runs is not cut short");
    let (progress, late) = channel(4);
    let params = SamplingParams::greedy(4);
    let submit = Submit { prompt, params, filter: None, priority: 0, salt: [0; 32], adapter: Some(id), progress };
    engine.submit(submit).expect("there is room");
    let (tokens, _, finish) = read(late);
    assert!(
        tokens.is_empty() && matches!(&finish, FinishReason::Failed(why) if why.contains("unloaded")),
        "{finish:?}"
    );
}

#[test]
fn no_more_adapters_than_there_is_room_for_and_none_after_the_end() {
    let engine = start(true, None);
    let many: Vec<_> = (0..sconce_engine::ADAPTERS_MAX).map(|_| engine.load_adapter(adapter("second_layer"))).collect();
    assert!(many.iter().all(Result::is_ok));
    let refused = engine.load_adapter(adapter("second_layer")).map(|_| ()).expect_err("one too many");
    assert!(refused.contains("256 adapters"), "{refused}");
    drop(many);
    engine.shutdown(std::time::Duration::ZERO);
    let refused = engine.load_adapter(adapter("all")).map(|_| ()).expect_err("it has stopped");
    assert!(!refused.is_empty() && !refused.contains('\n'), "{refused}");
}
