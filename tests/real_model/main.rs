//! The whole engine on the real model: a crowd of clients, cancels, shared prefixes, no leaks.
//!
//! Runs when SCONCE_REAL_MODEL_GGUF names the file (tests/run downloads it), else says that it was skipped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, future};
use sconce::config::{ModelConfig, ModelLimits};
use sconce::hub::progress::Silent;
use sconce::launch::Launch;
use sconce::pool::{EventStream, Member};
use sconce::request::{Event, Finish, Params, Prompt, Request, Tenant, Usage};

async fn launch() -> Option<Launch> {
    let Ok(reference) = std::env::var("SCONCE_REAL_MODEL_GGUF") else {
        println!("skipped: SCONCE_REAL_MODEL_GGUF names no model file");
        return None;
    };
    let config = ModelConfig {
        reference,
        served_names: vec!["real".to_owned()],
        device: sconce::config::DeviceChoice::Cpu,
        task: Default::default(),
        limits: ModelLimits { kv_cache_memory_bytes: Some(1 << 30), ..ModelLimits::default() },
        chat_template: None,
        parsers: Default::default(),
        lora: Default::default(),
        loading: Default::default(),
    };
    let launch = Launch::plan(&[config]).expect("a plan");
    launch.load(Arc::new(Silent)).await.expect("the model loads");
    Some(launch)
}

fn request(prompt: Prompt, max_tokens: u32) -> Request {
    Request {
        id: "test".to_owned(),
        model: "real".to_owned(),
        prompt,
        params: Params {
            max_tokens: Some(max_tokens),
            temperature: Some(0.0),
            ignore_eos: true,
            skip_special_tokens: true,
            n: 1,
            ..Params::default()
        },
        tenant: Tenant::default(),
        priority: 0,
        end_user: None,
    }
}

struct Answer {
    ids: Vec<u32>,
    usage: Usage,
    first_token: Duration,
}

/// Reads at most `take` tokens; fewer than were asked for means: go away early.
async fn read(mut events: EventStream, take: usize) -> Answer {
    let started = Instant::now();
    let mut answer = Answer { ids: Vec::new(), usage: Usage::default(), first_token: Duration::ZERO };
    while let Some(event) = events.next().await {
        match event {
            Event::Text { token_ids, .. } => {
                if answer.ids.is_empty() {
                    answer.first_token = started.elapsed();
                }
                answer.ids.extend(token_ids);
                if answer.ids.len() >= take {
                    return answer;
                }
            }
            Event::ReasoningSeal { .. } | Event::Refusal { .. } => {}
            Event::Finished { reason, .. } => assert_eq!(reason, Finish::Length),
            Event::Done(usage) => {
                answer.usage = usage;
                return answer;
            }
            Event::Failed(error) => panic!("failed: {error}"),
            Event::Prompt(_) | Event::Reasoning { .. } | Event::ToolCall { .. } => {}
        }
    }
    panic!("the stream ended without a terminal event");
}

/// A prompt that differs from every other number's in its first word.
fn story(number: usize) -> Prompt {
    let words = 3 + (number * 37) % 90;
    let body: Vec<_> = (0..words).map(|at| format!("item {}", (at * 7 + number) % 50)).collect();
    Prompt::Text(format!("{number}. A list of things: {}", body.join(", ")))
}

async fn settled(member: &Arc<dyn Member>) {
    for _ in 0..200 {
        let now = member.snapshot();
        if now.running == 0 && now.waiting == 0 && now.kv_usage == 0.0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("blocks or sequences leaked: {:?}", member.snapshot());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_model_crowd_of_64_with_cancels() {
    let Some(launch) = launch().await else { return };
    let pool = &launch.pool;
    const TOKENS: u32 = 12;
    let mut alone = Vec::new();
    for number in (0..64).step_by(8) {
        let events = pool.submit(request(story(number), TOKENS)).await.expect("admitted");
        alone.push((number, read(events, usize::MAX).await.ids));
    }
    let crowd = future::join_all((0..64).map(|number| async move {
        // Every third client leaves after a few tokens; those that were asked alone stay.
        let leaves = number % 3 == 1 && number % 8 != 0;
        let tokens = if leaves { 400 } else { TOKENS };
        let events = pool.submit(request(story(number), tokens)).await.expect("admitted");
        read(events, if leaves { 1 + number % 5 } else { usize::MAX }).await
    }))
    .await;
    for (number, ids) in alone {
        assert_eq!(crowd[number].ids, ids, "prompt {number} was answered differently in the crowd");
    }
    settled(&pool.member("real").expect("the member")).await;
    launch.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_model_computes_a_shared_prefix_once() {
    let Some(launch) = launch().await else { return };
    let pool = &launch.pool;
    let member = pool.member("real").expect("the member");
    let prefix: String = (0..330).map(|number| format!("Rule {number}: be kind. ")).collect();
    let asked = |question: &str| Prompt::Text(format!("{prefix}{question}"));
    let first = read(pool.submit(request(asked("One?"), 4)).await.expect("admitted"), usize::MAX).await;
    assert!(first.usage.prompt_tokens >= 1000, "{} tokens", first.usage.prompt_tokens);
    assert_eq!(first.usage.cached_tokens, 0);
    let second = read(pool.submit(request(asked("Two?"), 4)).await.expect("admitted"), usize::MAX).await;
    assert!(second.usage.cached_tokens >= 1000, "{} cached", second.usage.cached_tokens);
    println!("first token {:?} cold, {:?} with the prefix cached", first.first_token, second.first_token);

    // Clients that arrive together share the prefix as well: it is computed by one of them.
    let fresh: String = (0..330).map(|number| format!("Law {number}: be brave. ")).collect();
    let before = member.snapshot();
    let together = future::join_all((0..8).map(|number| {
        let prompt = Prompt::Text(format!("{fresh}Question {number}?"));
        async move { read(pool.submit(request(prompt, 2)).await.expect("admitted"), usize::MAX).await }
    }))
    .await;
    let after = member.snapshot();
    let prompts: u64 = together.iter().map(|answer| u64::from(answer.usage.prompt_tokens)).sum();
    let computed = prompts - (after.cached_prompt_tokens - before.cached_prompt_tokens);
    let longest = u64::from(together[0].usage.prompt_tokens);
    assert!(computed < longest + 8 * 40, "{computed} tokens computed for {longest} shared ones");

    // Another tenant must not see that the prefix is cached.
    let mut stranger = request(asked("One?"), 1);
    stranger.tenant.salt = [7; 32];
    let strange = read(pool.submit(stranger).await.expect("admitted"), usize::MAX).await;
    assert_eq!(strange.usage.cached_tokens, 0);
    settled(&member).await;
    launch.stop(Duration::ZERO).await;
}
