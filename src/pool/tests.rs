use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use sconce_route::cascade::Confidence;
use sconce_route::price::{PerToken, TokenPrice};
use sconce_route::{Capabilities, Kind, Nanos, Policy, Pricing, Residency, Rule, Stay};

use super::testing::{Scripted, Step, answer, text, usage};
use super::*;
use crate::config::pool::{Budget, BudgetLimit, RouteConfig, RouteMember, Shadow};
use crate::request::{Chat, Event, Message, Params, Prompt, Tenant, TokenLogprob, TokenReport, Usage};
use crate::store::ledger::{AttemptOutcome, Ledger, LedgerEntry, UsageQuery};

/// A dollar for a thousand tokens, so that costs are easy to count.
fn price() -> Pricing {
    let dollars = PerToken::from_dollars_a_million(1000.0).expect("a price");
    Pricing::Tokens(TokenPrice { input: dollars, output: dollars, ..TokenPrice::default() })
}

struct World {
    pool: Pool,
    ledger: Ledger,
    _folder: tempfile::TempDir,
}

fn declared(name: &str) -> Declared {
    let kind = if name.starts_with("local") { Kind::Local } else { Kind::Remote };
    let residency = match name.split('@').nth(1) {
        _ if kind == Kind::Local => Residency::Local,
        Some(region) => Residency::Region(region.to_owned()),
        None => Residency::Unknown,
    };
    let capabilities = Capabilities {
        chat: true,
        completion: true,
        tools: true,
        json_schema: true,
        logprobs: true,
        embeddings: true,
        ..Capabilities::default()
    };
    Declared { kind, residency, capabilities: Some(capabilities), pricing: price(), ..Declared::local(name) }
}

fn part(name: &str, order: u32) -> RouteMember {
    RouteMember { name: name.to_owned(), weight: 1, priority: order, tier: order, canary: None }
}

/// A route `r` that asks its members in this order.
fn route(members: &[Arc<Scripted>]) -> RouteConfig {
    RouteConfig {
        name: "r".into(),
        aliases: vec![],
        policy: Policy::new(Rule::Priority),
        fitted: None,
        members: members.iter().zip(0..).map(|(member, order)| part(&member.card().id, order)).collect(),
        stay: Stay::Anywhere,
        deadline: None,
        attempts_max: 3,
        cost_max: None,
        hedge_after: None,
        shadow: None,
        budget: Budget::default(),
    }
}

fn world(members: &[Arc<Scripted>], config: &RouteConfig) -> World {
    let limits = AdmissionLimits { running_max: 2, waiting_max: 0 };
    let node = |member: &Arc<Scripted>| {
        let name = member.card().id.clone();
        let metrics = MemberMetrics::detached(&name);
        Arc::new(Node::new(&name, Arc::clone(member) as _, limits, declared(&name), metrics))
    };
    let nodes: Vec<_> = members.iter().map(node).collect();
    let route = Route::configured(config, &nodes, 0).expect("all members are there");
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::start(&folder.path().join("ledger.db"), 30).expect("started");
    let shared = Shared { ledger: Some(ledger.clone()), ..Shared::default() };
    World { pool: Pool::with(Table::new(nodes, &[], vec![route]), shared), ledger, _folder: folder }
}

fn request() -> Request {
    let chat = Chat { messages: vec![Message { role: "user".into(), ..Message::default() }], ..Chat::default() };
    Request {
        id: "req-1".into(),
        model: "r".into(),
        prompt: Prompt::Chat(chat),
        params: Params { n: 1, max_tokens: Some(100), ..Params::default() },
        tenant: Tenant::default(),
        priority: 0,
        end_user: None,
    }
}

fn errand() -> Errand {
    Errand { key: "ann".into(), ..Errand::default() }
}

impl World {
    /// The texts of the answer, how it ended, and what the client is told of it.
    async fn ask(&self, errand: Errand) -> (String, Result<Usage>, Traced) {
        let trace = errand.trace.clone();
        let events = match self.pool.submit_for(request(), errand).await {
            Ok(events) => events.collect::<Vec<_>>().await,
            Err(error) => return (String::new(), Err(error), trace.get()),
        };
        let mut said = String::new();
        let mut ends = Vec::new();
        for event in events {
            assert!(ends.is_empty(), "something came after the end");
            match event {
                Event::Text { text, .. } => said += &text,
                Event::Done(usage) => ends.push(Ok(usage)),
                Event::Failed(error) => ends.push(Err(error)),
                _ => {}
            }
        }
        (said, ends.pop().expect("an end"), trace.get())
    }

    async fn entries(&self) -> Vec<(String, AttemptOutcome, u32)> {
        let entries = self.ledger.entries(UsageQuery::default(), 100).await.expect("read");
        entries
            .iter()
            .map(|entry: &LedgerEntry| (entry.member.clone(), entry.outcome, entry.usage.completion_tokens))
            .collect()
    }
}

fn upstream() -> Error {
    Error::new(ErrorKind::Upstream, "it failed")
}

#[tokio::test]
async fn the_next_member_answers_when_one_fails_before_content() {
    let broken = Scripted::new("a", |_| {
        let mut steps = answer("no");
        steps.truncate(1);
        steps.push(Step::Event(Event::Failed(upstream())));
        Ok(steps)
    });
    for first in [Scripted::failing("a", upstream()), broken] {
        let members = [first, Scripted::answering("b", "hello")];
        let world = world(&members, &route(&members));
        let (said, end, traced) = world.ask(errand()).await;
        assert_eq!((said.as_str(), end.expect("answered")), ("hello!", usage()));
        assert_eq!((traced.member.as_deref(), traced.reason, traced.attempts), (Some("b"), "fallback", 2));
        let entries = world.entries().await;
        assert_eq!(
            entries.iter().map(|entry| (entry.0.as_str(), entry.1)).collect::<Vec<_>>(),
            [("a", AttemptOutcome::Failed), ("b", AttemptOutcome::Answered)]
        );
    }
}

#[tokio::test]
async fn nobody_takes_over_after_the_first_content() {
    let breaks = Scripted::new("a", |_| Ok(vec![Step::Event(text("half ")), Step::Event(Event::Failed(upstream()))]));
    let ends = Scripted::new("a", |_| Ok(vec![Step::Event(text("half "))]));
    for first in [breaks, ends] {
        let members = [first, Scripted::answering("b", "hello")];
        let world = world(&members, &route(&members));
        let (said, end, _) = world.ask(errand()).await;
        assert_eq!(said, "half ");
        let error = end.expect_err("it broke off");
        assert!(error.kind == ErrorKind::Upstream && error.message.contains("member 'a'"), "{error:?}");
        assert_eq!(members[1].asked(), 0);
        assert_eq!(world.entries().await, [("a".to_owned(), AttemptOutcome::Failed, 1)]);
    }
}

#[tokio::test]
async fn a_clients_fault_is_nobody_elses_business() {
    let bad = Error::invalid("tools", "no such tool");
    let members = [Scripted::failing("a", bad), Scripted::answering("b", "hello")];
    let world = world(&members, &route(&members));
    let (_, end, traced) = world.ask(errand()).await;
    assert_eq!(end.expect_err("refused").param.as_deref(), Some("tools"));
    assert_eq!((members[1].asked(), traced.attempts), (0, 1));
    let too_long = Error::invalid("messages", "too long").with_code("context_length_exceeded");
    let members = [Scripted::failing("a", too_long), Scripted::answering("b", "hello")];
    let world = self::world(&members, &route(&members));
    assert_eq!(world.ask(errand()).await.0, "hello!", "another's context may be longer");
}

#[tokio::test]
async fn the_same_member_is_asked_again_after_a_short_pause_only() {
    let twice = |error: Error| {
        Scripted::new("a", move |asked| if asked == 0 { Err(error.clone()) } else { Ok(answer("hello")) })
    };
    let members = [twice(upstream())];
    let world = world(&members, &route(&members));
    assert_eq!(world.ask(errand()).await.0, "hello!");
    let limited = Error::new(ErrorKind::RateLimited, "slow down");
    let members = [twice(limited.clone().with_retry_after_s(1))];
    let world = self::world(&members, &route(&members));
    let started = std::time::Instant::now();
    assert_eq!(world.ask(errand()).await.0, "hello!");
    assert!(started.elapsed() >= Duration::from_secs(1), "it was asked to wait a second");
    let members = [twice(limited.with_retry_after_s(60))];
    let world = self::world(&members, &route(&members));
    let error = world.ask(errand()).await.1.expect_err("a minute is too long");
    assert_eq!((error.kind, error.retry_after_s), (ErrorKind::RateLimited, Some(60)));
    let error = world.ask(errand()).await.1.expect_err("still on hold");
    assert!(error.kind == ErrorKind::RateLimited && error.retry_after_s > Some(50), "{error:?}");
    assert_eq!(members[0].asked(), 1, "who asked for a pause is left alone");
}

#[tokio::test]
async fn what_must_stay_stays_whatever_fails() {
    for (stay, expected) in
        [(Stay::Local, None), (Stay::Regions(vec!["eu".into()]), Some("cloud@eu")), (Stay::Anywhere, Some("cloud@us"))]
    {
        let down = Scripted::failing("local", Error::new(ErrorKind::QueueFull, "full"));
        let members = [
            down,
            Scripted::answering("cloud@us", "hi"),
            Scripted::answering("nowhere", "hi"),
            Scripted::answering("cloud@eu", "hi"),
        ];
        let mut config = route(&members);
        config.hedge_after = Some(Duration::from_millis(1));
        config.shadow = Some(Shadow { member: "cloud@us".into(), share_permille: 1000, answers: None });
        let world = world(&members, &config);
        let (_, end, traced) = world.ask(Errand { stay: stay.clone(), ..errand() }).await;
        assert_eq!(end.is_ok(), expected.is_some(), "{stay:?}");
        assert_eq!(end.is_ok().then_some(traced.member.as_deref()).flatten(), expected);
        for member in &members {
            let allowed = stay.allows(&declared(&member.card().id).residency);
            assert!(allowed || member.asked() == 0, "{stay:?} reached {}", member.card().id);
        }
    }
    let members = [Scripted::answering("cloud@us", "hi")];
    let world = world(&members, &RouteConfig { stay: Stay::Local, ..route(&members) });
    let error = world.ask(errand()).await.1.expect_err("the route's own rule");
    assert_eq!((error.kind, error.code), (ErrorKind::Forbidden, Some("no_member_allowed")));
}

#[tokio::test]
async fn keys_and_budgets_are_limits() {
    let members = [Scripted::answering("a", "hello"), Scripted::answering("b", "hello")];
    let world = world(&members, &route(&members));
    let only_b = Errand { members: Some(vec!["b".to_owned()].into()), ..errand() };
    assert_eq!(world.ask(only_b).await.2.member.as_deref(), Some("b"));
    // An answer costs 12 tokens, $0.012, and is expected to cost up to $0.104.
    let budget = |hard: f64| Budget {
        day: BudgetLimit { soft: Nanos::from_dollars(0.001), hard: Nanos::from_dollars(hard) },
        ..Budget::default()
    };
    let rich = Errand { budget: budget(0.2), ..errand() };
    let (_, end, traced) = world.ask(rich).await;
    assert!(end.is_ok() && traced.known_cost() == Nanos::from_dollars(0.012), "{traced:?}");
    assert!(traced.budget_warning.is_some(), "the soft limit is behind");
    for poor in [budget(0.012), budget(0.05)] {
        let error = world.ask(Errand { budget: poor, ..errand() }).await.1.expect_err("too much");
        assert_eq!((error.kind, error.code), (ErrorKind::RateLimited, Some("budget_exceeded")));
    }
    assert_eq!(members[0].asked() + members[1].asked(), 2, "nothing was sent beyond a budget");
}

#[tokio::test]
async fn one_deadline_holds_for_all_attempts() {
    let members = [Scripted::new("a", |_| Ok(vec![Step::Hang])), Scripted::answering("b", "hi")];
    let world = world(&members, &RouteConfig { deadline: Some(Duration::from_millis(30)), ..route(&members) });
    let error = world.ask(errand()).await.1.expect_err("too late");
    assert_eq!((error.kind, error.code), (ErrorKind::Timeout, Some("deadline_exceeded")));
    assert_eq!(world.entries().await, [("a".to_owned(), AttemptOutcome::Failed, 0)]);
}

#[tokio::test]
async fn a_hedge_is_heard_when_the_first_is_silent() {
    let members = [Scripted::new("a", |_| Ok(vec![Step::Hang])), Scripted::answering("b", "hi")];
    let world = world(&members, &RouteConfig { hedge_after: Some(Duration::from_millis(20)), ..route(&members) });
    let (said, _, traced) = world.ask(errand()).await;
    assert_eq!((said.as_str(), traced.member.as_deref(), traced.reason), ("hi!", Some("b"), "hedge"));
    let mut entries = world.entries().await;
    entries.sort();
    assert_eq!(
        entries,
        [("a".to_owned(), AttemptOutcome::Discarded, 0), ("b".to_owned(), AttemptOutcome::Answered, 2)]
    );
    let quick = [Scripted::answering("a", "hello"), Scripted::answering("b", "hi")];
    let world = self::world(&quick, &RouteConfig { hedge_after: Some(Duration::from_secs(5)), ..route(&quick) });
    assert_eq!((world.ask(errand()).await.0.as_str(), quick[1].asked()), ("hello!", 0));
}

#[tokio::test]
async fn a_dropped_stream_is_settled_and_gives_its_place_back() {
    let members = [Scripted::new("a", |_| Ok(vec![Step::Event(text("half")), Step::Hang]))];
    let world = world(&members, &route(&members));
    let mut events = world.pool.submit_for(request(), errand()).await.expect("begun");
    assert!(matches!(events.next().await, Some(Event::Text { .. })));
    assert_eq!(world.pool.live(), 1);
    drop(events);
    assert_eq!(world.pool.live(), 0);
    assert_eq!(world.entries().await, [("a".to_owned(), AttemptOutcome::Cancelled, 1)]);
}

#[tokio::test]
async fn a_member_that_fails_is_left_alone_until_a_probe_finds_it_well() {
    let members = [Scripted::failing("a", upstream()), Scripted::answering("b", "hi")];
    let world = world(&members, &route(&members));
    for _ in 0..10 {
        assert_eq!(world.ask(errand()).await.0, "hi!");
    }
    assert_eq!(members[0].asked(), 5, "the circuit opens after five failures in a row");
    assert_eq!(world.pool.table().nodes[0].view().circuit.word(), "open");
    let explanation = world.pool.explain(&request(), errand()).await.expect("the route is known");
    assert_eq!((explanation.excluded[0].member.as_str(), explanation.excluded[0].reason), ("a", "circuit_open"));
    assert_eq!(explanation.candidates[0].member, "b");
}

/// An answer whose two tokens had this probability.
fn sure(said: &'static str, probability: f32) -> impl Fn(usize) -> Result<Vec<Step>> + Send + Sync + 'static {
    move |_| {
        let token = TokenLogprob { id: 1, text: said.into(), bytes: vec![], logprob: probability.ln() };
        let report = TokenReport { token, rank: 1, top: vec![] };
        let event =
            Event::Text { choice: 0, text: said.into(), tokens: vec![report.clone(), report], token_ids: vec![] };
        let mut steps = answer(said);
        steps.splice(1..3, [Step::Event(event)]);
        Ok(steps)
    }
}

#[tokio::test]
async fn a_cascade_escalates_what_is_not_sure_and_shows_nothing_of_it() {
    let cascade = Policy::new(Rule::Cascade { confidence: Confidence::default() });
    for (probability, strong, said, reason, outcome) in [
        (0.9, Scripted::answering("b", "strong"), "weak", "tier", AttemptOutcome::Answered),
        (0.1, Scripted::answering("b", "strong"), "strong!", "escalation", AttemptOutcome::Discarded),
        (0.1, Scripted::failing("b", Error::invalid("x", "no")), "weak", "unsure", AttemptOutcome::Answered),
    ] {
        let members = [Scripted::new("a", sure("weak", probability)), strong];
        let world = world(&members, &RouteConfig { policy: cascade.clone(), ..route(&members) });
        let (answered, end, traced) = world.ask(errand()).await;
        assert!(end.is_ok());
        assert_eq!((answered.as_str(), traced.reason), (said, reason));
        assert_eq!(members[0].requests.lock().unwrap()[0].params.logprobs, Some(0), "the pool wants them itself");
        let entries = world.entries().await;
        assert!(entries.contains(&("a".to_owned(), outcome, 2)), "{entries:?}");
    }
}

#[tokio::test]
async fn a_shadow_is_seen_by_nobody_and_written_down_apart() {
    let members = [Scripted::answering("a", "hello"), Scripted::answering("candidate", "hm")];
    let mut config = route(&members[..1]);
    let folder = tempfile::tempdir().expect("a folder");
    let answers = folder.path().join("both.jsonl");
    config.shadow = Some(Shadow { member: "candidate".into(), share_permille: 1000, answers: Some(answers.clone()) });
    let world = world(&members, &config);
    let (said, _, traced) = world.ask(errand()).await;
    assert_eq!((said.as_str(), traced.attempts, traced.known_cost()), ("hello!", 1, Nanos::from_dollars(0.012)));
    while world.pool.live() > 0 {
        tokio::task::yield_now().await;
    }
    let mut entries = world.entries().await;
    entries.sort();
    assert_eq!(
        entries,
        [("a".to_owned(), AttemptOutcome::Answered, 2), ("candidate".to_owned(), AttemptOutcome::Shadow, 2)]
    );
    assert_eq!(world.ledger.spent_since(0).await.expect("read").len(), 1, "nobody pays for it");
    let line = || std::fs::read_to_string(&answers).ok().filter(|text| text.ends_with('\n'));
    while line().is_none() {
        tokio::task::yield_now().await;
    }
    let both: serde_json::Value = serde_json::from_str(line().expect("a line").trim()).expect("JSON");
    assert_eq!((&both["answer"]["member"], &both["answer"]["text"]), (&"a".into(), &"hello!".into()), "{both}");
    assert_eq!((&both["shadow"]["member"], &both["shadow"]["finish"]), (&"candidate".into(), &"stop".into()), "{both}");
    assert!(both["asked"].as_array().is_some_and(|asked| !asked.is_empty()), "{both}");
}

#[tokio::test]
async fn a_member_that_cannot_honour_a_request_says_why_when_it_is_the_last() {
    let members = [Scripted::answering("a", "hello"), Scripted::answering("b", "hi")];
    *members[0].unsupported.lock().unwrap() = Some(Error::invalid("top_k", "a takes no top_k"));
    let world = world(&members, &route(&members));
    assert_eq!(world.ask(errand()).await.2.member.as_deref(), Some("b"));
    let only_a = Errand { members: Some(vec!["a".to_owned()].into()), ..errand() };
    assert_eq!(world.ask(only_a).await.1.expect_err("refused").param.as_deref(), Some("top_k"));
}

#[tokio::test]
async fn a_full_queue_spills_at_once() {
    let members =
        [Scripted::new("local", |_| Ok(vec![Step::Event(text("x")), Step::Hang])), Scripted::answering("b", "hi")];
    let world = world(&members, &route(&members));
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut events = world.pool.submit_for(request(), errand()).await.expect("there is room");
        events.next().await;
        held.push(events);
    }
    let (said, _, traced) = world.ask(errand()).await;
    assert_eq!((said.as_str(), traced.member.as_deref()), ("hi!", Some("b")));
}
