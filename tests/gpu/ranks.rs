//! One model shared out among several cards, through the whole server.

use std::time::Duration;

use sconce::config::{DeviceChoice, MatmulPrecision, ModelConfig, ModelLimits};
use sconce::hub::progress::Silent;
use sconce::launch::Launch;
use sconce::pool::lifecycle::State;
use serde_json::{Value, json};

use super::{Server, free, model, one_at_a_time};

/// `replicas` of `ranks` cards each, from `device` on; others have left little of some cards.
fn shared_out(device: u32, replicas: u32, ranks: u32) -> ModelConfig {
    let model = model(device, replicas);
    let limits = ModelLimits {
        tensor_parallel_size: ranks,
        matmul_precision: MatmulPrecision::High,
        memory_share_permille: 1000,
        ..model.limits.clone()
    };
    ModelConfig { limits, ..model }
}

fn question(first: u32, extra: Value) -> Value {
    let prompt: Vec<u32> = (first..first + 45).collect();
    let mut body = json!({"model": "m", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": true});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body
}

/// The texts of some questions, asked at once and then one by one; log probabilities of one.
async fn answers(server: &Server) -> (Vec<Value>, Vec<f64>) {
    let asked = (0..6).map(|index| server.complete(question(20 * index, json!({}))));
    let together = futures_util::future::join_all(asked).await;
    let mut texts: Vec<Value> = together.iter().map(|answer| answer["choices"][0]["text"].clone()).collect();
    let sampled = json!({"temperature": 1, "seed": 5, "presence_penalty": 0.5, "logit_bias": {"7": -100}});
    texts.push(server.complete(question(3, sampled)).await["choices"][0]["text"].clone());
    let scored = server.complete(question(0, json!({"logprobs": 3}))).await;
    let scores = scored["choices"][0]["logprobs"]["token_logprobs"].as_array().expect("scores").clone();
    (texts, scores.iter().filter_map(Value::as_f64).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_of_a_model_answer_as_the_whole() {
    let _cards = one_at_a_time().await;
    let server = Server::start(&[shared_out(0, 1, 1)]).await;
    let (texts, scores) = answers(&server).await;
    assert_eq!(scores.len(), 12);
    server.launch.stop(Duration::from_secs(10)).await;
    drop(server);
    for ranks in [2, 4] {
        let before: Vec<u64> = (0..ranks).map(free).collect();
        let server = Server::start(&[shared_out(0, 1, ranks)]).await;
        let taken: Vec<u64> = (0..ranks).map(|card| before[card as usize] - free(card)).collect();
        assert!(taken.iter().all(|taken| *taken > 1 << 20), "weights and a cache on each: {taken:?}");
        let (found, found_scores) = answers(&server).await;
        assert_eq!(found, texts, "{ranks} cards");
        let apart = found_scores.iter().zip(&scores).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(found_scores.len() == 12 && apart < 1e-3, "{ranks} cards: {apart}");
        asleep_and_awake(&server, &before, &texts).await;
        server.launch.stop(Duration::from_secs(10)).await;
        drop(server);
        assert_eq!((0..ranks).map(free).collect::<Vec<_>>(), before, "all memory was given back");
    }
}

async fn asleep_and_awake(server: &Server, before: &[u64], texts: &[Value]) {
    server.post("/sleep?level=1", json!({})).await;
    assert_eq!(server.status("m").state, State::Sleeping);
    let asleep: Vec<u64> = (0..before.len() as u32).map(free).collect();
    assert_eq!(asleep, before, "all memory of all cards is free");
    // The next request wakes it.
    let again = server.complete(question(0, json!({}))).await;
    assert_eq!(again["choices"][0]["text"], texts[0]);
    assert_eq!((server.status("m").state, server.status("m").loads), (State::Ready, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_shared_out_too() {
    let _cards = one_at_a_time().await;
    let before: Vec<u64> = (0..4).map(free).collect();
    let config = shared_out(0, 2, 2);
    let launch = Launch::plan(std::slice::from_ref(&config)).expect("four cards");
    let reports = launch.load(std::sync::Arc::new(Silent)).await.expect("it loads");
    assert!(reports[0].device.contains("4 x") && reports[0].device.contains("2 replicas"), "{}", reports[0].device);
    launch.stop(Duration::from_secs(10)).await;
    drop(launch);
    let server = Server::start(&[config]).await;
    assert!((0..4).all(|card| before[card as usize] > free(card)), "something of it is on each");
    let first = server.complete(question(1, json!({}))).await;
    let asked = (0..8).map(|index| server.complete(question(1 + 7 * (index % 2), json!({"n": 1 + index % 3}))));
    for (index, answer) in futures_util::future::join_all(asked).await.into_iter().enumerate() {
        let choices = answer["choices"].as_array().expect("choices");
        assert_eq!(choices.len(), 1 + index % 3);
        if index % 2 == 0 {
            assert!(choices.iter().all(|choice| choice["text"] == first["choices"][0]["text"]), "{answer}");
        }
    }
    let tokens = async |engine| server.tokens("m", engine).await;
    server.counted(async || tokens(0).await + tokens(1).await, 12 * (1 + 1 + 2 + 3 + 1 + 2 + 3 + 1 + 2)).await;
    assert!(tokens(0).await > 0 && tokens(1).await > 0, "both replicas have answered");
    server.launch.stop(Duration::from_secs(10)).await;
    drop(server);
    assert_eq!((0..4).map(free).collect::<Vec<_>>(), before, "all memory was given back");
}

#[tokio::test]
async fn what_cannot_be_shared_out_is_refused() {
    let error = |model: ModelConfig| Launch::plan(&[model]).err().expect("refused before anything is read");
    let too_many = error(shared_out(2, 1, 4));
    assert_eq!(too_many.param.as_deref(), Some("--tensor-parallel-size"));
    let said = ["--tensor-parallel-size 4", "cuda:2", "cuda:5", "there are 4"];
    assert!(said.iter().all(|part| too_many.message.contains(part)), "{too_many}");
    let both = error(shared_out(0, 3, 2));
    assert!(both.message.contains("--data-parallel-size 3 times --tensor-parallel-size 2"), "{both}");
    for (reference, device) in [("dummy:tiny", DeviceChoice::Cpu), ("sim", DeviceChoice::Cuda(0))] {
        let refused = error(ModelConfig { reference: reference.to_owned(), device, ..shared_out(0, 1, 2) });
        assert_eq!(refused.param.as_deref(), Some("--tensor-parallel-size"), "{refused}");
    }
    // Four heads: known when the files are read, and before weights are.
    let launch = Launch::plan(&[shared_out(0, 1, 3)]).expect("there are three cards");
    let refused = launch.load(std::sync::Arc::new(Silent)).await.expect_err("three have no share of four heads");
    assert!(refused.message.contains("4 attention heads") && refused.message.contains("1, 2, 4"), "{refused}");
    assert_eq!(refused.param.as_deref(), Some("--tensor-parallel-size"));
}
