//! A whole local member without HTTP: launch, pool, engine thread and text, on the simulated model.

mod embed;
mod lora;
mod replicas;
mod structured;
mod tools;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use sconce::config::{DeviceChoice, ModelConfig, ModelLimits};
use sconce::hub::progress::Silent;
use sconce::launch::Launch;
use sconce::request::{CHOICES_MAX, Event, Finish, Params, Prompt, Request, Tenant};

async fn launch(limits: ModelLimits) -> Launch {
    let model = ModelConfig {
        reference: "sim".to_owned(),
        served_names: Vec::new(),
        device: DeviceChoice::Cpu,
        task: Default::default(),
        limits,
        chat_template: None,
        parsers: Default::default(),
        lora: Default::default(),
        loading: Default::default(),
    };
    let launch = Launch::plan(&[model]).expect("sim is a model");
    launch.load(Arc::new(Silent)).await.expect("it loads");
    launch
}

fn request(n: u32, max_tokens: u32) -> Request {
    Request {
        id: "test".to_owned(),
        model: String::new(),
        prompt: Prompt::Text("a prompt".to_owned()),
        params: Params {
            n,
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            temperature: Some(0.0),
            ..Params::default()
        },
        tenant: Tenant::default(),
        priority: 0,
        end_user: None,
    }
}

#[tokio::test]
async fn a_request_with_more_choices_than_places_runs_alone() {
    let launch = launch(ModelLimits { max_num_seqs: 1, max_queue: 0, ..ModelLimits::default() }).await;
    let events: Vec<Event> = launch.pool.submit(request(CHOICES_MAX, 1)).await.expect("it runs alone").collect().await;
    let ended = events.iter().filter(|event| matches!(event, Event::Finished { reason: Finish::Length, .. })).count();
    assert_eq!(ended, CHOICES_MAX as usize);
    let Some(Event::Done(usage)) = events.last() else { panic!("it ends with {:?}", events.last()) };
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), ("a prompt".len() as u32, CHOICES_MAX));
    assert_eq!(launch.pool.live(), 0, "every place was given back");
    launch.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn a_reader_that_lags_behind_gets_all_choices_in_turn() {
    let launch = launch(ModelLimits::default()).await;
    let mut events = launch.pool.submit(request(2, 400)).await.expect("there is room");
    let member = launch.pool.member("").expect("the only one");
    let mut interval = tokio::time::interval(Duration::from_millis(5));
    // Both choices have as much to be read as they may have, then.
    while member.snapshot().generation_tokens < 2 * 60 || member.snapshot().running > 0 {
        interval.tick().await;
    }
    let mut texts = [0_u32; 2];
    while texts.iter().sum::<u32>() < 40 {
        match events.next().await.expect("it is not over") {
            Event::Text { choice, .. } => texts[choice as usize] += 1,
            Event::Prompt(_) => {}
            other => panic!("{other:?} after {texts:?}"),
        }
    }
    // The first choice begins, for its report on the prompt; from then on they alternate.
    assert!(texts[0].abs_diff(texts[1]) <= 2, "{texts:?}");
    let rest: Vec<Event> = events.collect().await;
    assert!(matches!(rest.last(), Some(Event::Done(usage)) if usage.completion_tokens == 800), "{:?}", rest.last());
    launch.stop(Duration::from_secs(30)).await;
}
