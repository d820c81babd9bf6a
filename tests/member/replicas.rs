//! A model with two engines (`--data-parallel-size 2`), the simulated one: who gets what, and that nothing else changes.

use std::time::Duration;

use futures_util::StreamExt;
use sconce::config::{DeviceChoice, ModelConfig, ModelLimits};
use sconce::launch::Launch;
use sconce::pool::EngineSnapshot;
use sconce::request::{Event, Prompt, Request, Usage};

use super::{launch, request};

fn two() -> ModelLimits {
    ModelLimits { data_parallel_size: 2, max_num_seqs: 8, ..ModelLimits::default() }
}

/// A prompt of 64 tokens that is `own`, and behind it `more`.
fn prompt(own: u32, more: &[u32]) -> Prompt {
    Prompt::Tokens((0..64).map(|at| (at + 7 * own) % 200).chain(more.iter().copied()).collect())
}

async fn ask(launch: &Launch, request: Request) -> Usage {
    let events: Vec<Event> = launch.pool.submit(request).await.expect("there is room").collect().await;
    let Some(Event::Done(usage)) = events.last() else { panic!("it ends with {:?}", events.last()) };
    *usage
}

fn replicas(launch: &Launch) -> Vec<EngineSnapshot> {
    let all = launch.pool.member("").expect("the only one").snapshot();
    assert_eq!(all.replicas.iter().map(|one| one.generation_tokens).sum::<u64>(), all.generation_tokens);
    all.replicas
}

#[tokio::test]
async fn conversations_stay_on_the_replica_that_has_computed_their_beginning() {
    let launch = launch(two()).await;
    for own in [1, 2] {
        let usage = ask(&launch, Request { prompt: prompt(own, &[]), ..request(1, 4) }).await;
        assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens), (64, 0, 4));
    }
    let given: Vec<_> = replicas(&launch).iter().map(|one| one.prompt_tokens).collect();
    assert_eq!(given, [64, 64], "one each");
    for turn in 1..4 {
        for own in [1, 2] {
            let usage = ask(&launch, Request { prompt: prompt(own, &vec![9; 16 * turn]), ..request(2, 4) }).await;
            assert!(usage.cached_tokens >= 48, "turn {turn} of {own}: {usage:?}");
            assert_eq!(usage.completion_tokens, 8, "both choices are counted");
        }
    }
    let hits: Vec<_> = replicas(&launch).iter().map(|one| one.prefix_hits).collect();
    assert!(hits[0] == hits[1] && hits[0] >= 3 * 48, "{hits:?}");
    launch.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn load_is_spread_and_a_client_that_goes_frees_its_replica() {
    let launch = launch(two()).await;
    let mut streams = Vec::new();
    for _ in 0..16 {
        // All alike: what they have in common does not hold them on one engine.
        let mut events =
            launch.pool.submit(Request { prompt: prompt(1, &[]), ..request(1, 1000) }).await.expect("there is room");
        assert!(!matches!(events.next().await, Some(Event::Failed(_)) | None));
        streams.push(events);
    }
    let running: Vec<_> = replicas(&launch).iter().map(|one| one.running).collect();
    assert_eq!(running, [8, 8], "twice --max-num-seqs run at once");
    drop(streams);
    let mut interval = tokio::time::interval(Duration::from_millis(5));
    while replicas(&launch).iter().any(|one| one.running > 0) {
        interval.tick().await;
    }
    assert_eq!(launch.pool.live(), 0);
    launch.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn a_shutdown_ends_every_replica() {
    let launch = launch(two()).await;
    let mut streams = Vec::new();
    for own in 0..2 {
        let long = Request { prompt: prompt(own, &[]), ..request(1, 30_000) };
        streams.push(launch.pool.submit(long).await.expect("there is room"));
    }
    let stopping = launch.stop(Duration::from_millis(50));
    let reading = futures_util::future::join_all(streams.into_iter().map(StreamExt::collect::<Vec<_>>));
    let ((), ended) = tokio::join!(stopping, reading);
    for events in ended {
        let ends = events.iter().filter(|event| matches!(event, Event::Done(_) | Event::Failed(_))).count();
        assert_eq!(ends, 1, "{:?}", events.last());
    }
}

#[tokio::test]
async fn one_processor_has_one_replica() {
    let model = ModelConfig {
        reference: "dummy:tiny".to_owned(),
        served_names: Vec::new(),
        device: DeviceChoice::Cpu,
        task: Default::default(),
        limits: two(),
        chat_template: None,
        parsers: Default::default(),
        lora: Default::default(),
        loading: Default::default(),
    };
    let error = Launch::plan(&[model]).err().expect("refused before anything is read");
    assert!(error.message.contains("--data-parallel-size") && error.message.contains("--device cuda"), "{error}");
}
