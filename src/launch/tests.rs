//! Engines that fail and engines that hang, under the lifecycle.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use sconce_models::{BatchInput, Logits};

use super::model::load_sim_on;
use super::*;
use crate::config::{LoadPolicy, ModelLimits};
use crate::engine::scheduler::Capabilities;
use crate::engine::{Executor, SimExecutor};
use crate::pool::lifecycle::{Loader, Managed, State};
use crate::pool::{AdmissionLimits, Member, MemberState};
use crate::request::{Event, Params, Prompt, Request, Tenant};

/// Does before a step what it is told to.
struct Told {
    sim: SimExecutor,
    before: Box<dyn FnMut() -> std::result::Result<(), String> + Send>,
}

impl Executor for Told {
    fn capabilities(&self) -> Capabilities {
        self.sim.capabilities()
    }

    fn vocab(&self) -> usize {
        self.sim.vocab()
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> std::result::Result<(), String> {
        (self.before)()?;
        self.sim.execute(batch, logits)
    }
}

/// The first load brings an engine whose steps do what `before` says, later ones a good one.
struct Faulty {
    config: ModelConfig,
    card: ModelCard,
    loads: AtomicU32,
    before: fn() -> std::result::Result<(), String>,
    gate: Mutex<Option<Receiver<()>>>,
}

impl Loader for Faulty {
    fn need(&self, _room_bytes: Option<u64>) -> BoxFuture<'_, Result<Memory>> {
        std::future::ready(Ok(Memory::default())).boxed()
    }

    fn load(&self, _room_bytes: Option<u64>) -> BoxFuture<'_, Result<(Held, Memory)>> {
        let is_first = self.loads.fetch_add(1, Ordering::Relaxed) == 0;
        let (before, gate) = (self.before, Arc::new(Mutex::new(self.gate.lock().expect("no panic").take())));
        let loaded = load_sim_on(&self.config, self.card.clone(), move |options| {
            let sim = SimExecutor::new(options);
            let before = move || {
                if let Some(gate) = &*gate.lock().expect("no panic") {
                    // An end means that it may go on.
                    let _ = gate.recv();
                }
                if is_first { before() } else { Ok(()) }
            };
            Box::new(Told { sim, before: Box::new(before) })
        });
        let held = loaded.map(|(loaded, memory, _)| (Held::Generating(Arc::new(loaded)), memory));
        std::future::ready(held).boxed()
    }
}

/// A pool of one such model.
fn pool(before: fn() -> std::result::Result<(), String>, gate: Option<Receiver<()>>) -> (Arc<Pool>, Managed) {
    let config = ModelConfig {
        reference: "sim".to_owned(),
        served_names: vec!["m".to_owned()],
        device: DeviceChoice::Cpu,
        task: Default::default(),
        limits: ModelLimits { max_model_len: Some(256), max_num_seqs: 4, ..ModelLimits::default() },
        chat_template: None,
        parsers: Default::default(),
        loading: LoadPolicy { on_demand: true, ..LoadPolicy::default() },
        lora: Default::default(),
    };
    let card = provisional_card(&config, &ModelRef::parse("sim").expect("a model"));
    let member = Arc::new(LocalMember::loading(card.clone(), Metrics::new().model("m")));
    member.set_step_timeout(Duration::from_millis(50));
    let policy = config.loading;
    let loader = Faulty { config, card, loads: AtomicU32::new(0), before, gate: Mutex::new(gate) };
    let managed = Managed { member: Arc::clone(&member), loader: Arc::new(loader), policy };
    let limits = AdmissionLimits { running_max: 4, waiting_max: 64 };
    let pool = Arc::new(Pool::new(vec![(member as Arc<dyn Member>, limits)]));
    pool.lifecycle().set(vec![managed.clone()], None);
    (pool, managed)
}

fn request() -> Request {
    Request {
        id: "r".to_owned(),
        model: "m".to_owned(),
        prompt: Prompt::Tokens(vec![1, 2, 3]),
        params: Params { max_tokens: Some(2), ignore_eos: true, ..Params::default() },
        tenant: Tenant::default(),
        priority: 0,
        end_user: None,
    }
}

async fn ask(pool: &Arc<Pool>) -> Result<()> {
    let mut events = pool.submit(request()).await?;
    while let Some(event) = events.next().await {
        match event {
            Event::Done(_) => return Ok(()),
            Event::Failed(error) => return Err(error),
            _ => {}
        }
    }
    panic!("a stream ends with an end");
}

#[tokio::test]
async fn an_engine_that_keeps_failing_is_loaded_again_and_requests_wait_for_it() {
    let (pool, managed) = pool(|| Err("a kernel failed".to_owned()), None);
    let mut failed = 0;
    let started = Instant::now();
    while let Err(error) = ask(&pool).await {
        // One may come just when the engine gives up.
        let is_stopped = error.code == Some("engine_stopped");
        assert!(
            is_stopped || (error.kind == ErrorKind::Internal && error.message.contains("a kernel failed")),
            "{error}"
        );
        failed += 1;
        assert!(started.elapsed() < Duration::from_secs(30), "{failed} failures");
    }
    // Three steps, four times: the engine starts over three times with what it has, and then it is loaded again.
    assert!((12..=14).contains(&failed), "{failed} failures");
    let status = managed.status();
    assert_eq!((status.state, status.loads, status.restarts), (State::Ready, 2, 1));
}

#[tokio::test]
async fn an_engine_that_hangs_is_seen_and_is_well_when_it_comes_back() {
    let (go, gate) = channel();
    let (pool, managed) = pool(|| Ok(()), Some(gate));
    let asking = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { ask(&pool).await }
    });
    let started = Instant::now();
    while managed.member.stuck_for().is_none() {
        assert!(started.elapsed() < Duration::from_secs(30), "nobody saw it");
        tokio::task::yield_now().await;
    }
    assert!(matches!(managed.member.state(), MemberState::Failed(why) if why.contains("in one step")));
    assert!(!pool.readiness().ready);
    assert_eq!(ask(&pool).await.expect_err("refused at once").code, Some("model_failed"));
    drop(go);
    asking.await.expect("no panic").expect("it is answered after all");
    assert_eq!((managed.member.stuck_for(), managed.member.state()), (None, MemberState::Ready));
    ask(&pool).await.expect("an answer");
}
