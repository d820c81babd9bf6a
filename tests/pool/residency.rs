//! Whatever fails, and whoever demands it: what must stay somewhere is asked of nobody elsewhere.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sconce::config::env::Variable;
use serde_json::json;

use crate::fake::{FakeProvider, Play};
use crate::wires::{KINDS, Said, answer};
use crate::world::{APIS, World, headers, member, question};

const LONG: Variable = Variable { name: "SCONCE_TEST_RESIDENCY_CASES", help: "cases of the residency test" };
const REGION: &str = "eu-central-1";
/// What a client says that nobody else may read.
const SECRET: &str = "the patient in room 12";

/// Who demands that a request stays.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Demand {
    Route,
    Key,
    Header,
}

#[derive(Debug, Clone)]
struct Case {
    demand: Demand,
    stay: &'static str,
    policy: &'static str,
    /// How the member fares that is at the right place.
    inside: u8,
    outside_region: Option<&'static str>,
    kinds: (usize, usize),
    hedge: bool,
    shadow: bool,
    attempts: u32,
    asked: Vec<(usize, bool)>,
}

fn case() -> impl Strategy<Value = Case> {
    let demand = prop_oneof![Just(Demand::Route), Just(Demand::Key), Just(Demand::Header)];
    let policy = prop_oneof![
        Just("priority"),
        Just("weighted"),
        Just("least_wait"),
        Just("cheapest"),
        Just("cascade"),
        Just("score"),
    ];
    let places = (prop_oneof![Just("local"), Just(REGION)], prop_oneof![Just(None), Just(Some("us-east-1"))]);
    let who = (0..KINDS.len(), 0..KINDS.len());
    let options = (any::<bool>(), any::<bool>(), 1..5_u32);
    let asked = proptest::collection::vec((0..APIS.len(), any::<bool>()), 1..6);
    (demand, places, policy, 0..5_u8, who, options, asked).prop_map(
        |(demand, (stay, outside_region), policy, inside, kinds, (hedge, shadow, attempts), asked)| Case {
            demand,
            stay,
            policy,
            inside,
            outside_region,
            kinds,
            hedge,
            shadow,
            attempts,
            asked,
        },
    )
}

fn inside(kind: &'static str, how: u8) -> Play {
    match how {
        0 => answer(kind, Said::Text("hello"), false),
        1 => answer(kind, Said::Text("hello"), true),
        2 => Play::json(500, "{}"),
        3 => Play::Answer { status: 429, headers: vec![("retry-after".into(), "1".into())], body: b"{}".to_vec() },
        _ => Play::HangUp,
    }
}

impl Case {
    fn text(&self, inside: &str, outside: &str) -> String {
        let at = |name: &str, kind: &str, url: &str, region: Option<&str>| {
            let plain = member(name, kind, url).replace(&format!("region = \"{REGION}\"\n"), "");
            // Bedrock cannot be asked without a region: it is elsewhere then.
            let region = region.or((kind == "bedrock").then_some("us-east-1"));
            plain + &region.map_or_else(String::new, |region| format!("region = \"{region}\"\n"))
        };
        let mut text = at("inside", KINDS[self.kinds.0], inside, Some(REGION));
        text += &at("outside", KINDS[self.kinds.1], outside, self.outside_region);
        text += &format!("[[route]]\nname = \"r\"\npolicy = \"{}\"\n", self.policy);
        text += match self.policy {
            "priority" => "members = [{ name = \"outside\", priority = 0 }, { name = \"inside\", priority = 1 }]\n",
            "cascade" | "score" => "members = [{ name = \"outside\", tier = 0 }, { name = \"inside\", tier = 1 }]\n",
            _ => "members = [\"outside\", \"inside\"]\n",
        };
        text += &format!("attempts_max = {}\ndeadline_s = 0.1\n", self.attempts);
        for (is_on, line) in [
            (self.hedge && self.policy != "cascade", "hedge_after_ms = 1\n".to_owned()),
            (self.shadow, "shadow = { member = \"outside\", share = 1.0 }\n".to_owned()),
            (self.demand == Demand::Route, format!("stay = {}\n", self.stay_value())),
        ] {
            text += if is_on { &line } else { "" };
        }
        text += &format!("[[keys]]\nname = \"k\"\nhash = \"{}\"\n", sconce::config::keys::hash_text("k"));
        if self.demand == Demand::Key {
            text += &format!("stay = {}\n", self.stay_value());
        }
        text
    }

    fn stay_value(&self) -> String {
        if self.stay == "local" { "\"local\"".to_owned() } else { format!("[\"{}\"]", self.stay) }
    }

    /// Returns how many requests reached the member that may have them.
    async fn holds(&self) -> usize {
        let (kind, how) = (KINDS[self.kinds.0], self.inside);
        let near = FakeProvider::start(move |_| inside(kind, how)).await;
        let far = FakeProvider::start(|_| Play::json(200, "{}")).await;
        let world = World::new(&self.text(&near.url(), &far.url())).await;
        for (api, stream) in &self.asked {
            let api = APIS[*api];
            let mut sent = headers(api).to_vec();
            sent.push(("authorization", "Bearer k"));
            if self.demand == Demand::Header {
                sent.push(("x-sconce-stay", self.stay));
            }
            let mut body = question(api, *stream, false, false);
            body[if api == "/v1/responses" { "instructions" } else { "system" }] = json!(SECRET);
            if api == "/v1/chat/completions" {
                body.as_object_mut().expect("an object").remove("system");
                body["messages"][0]["content"] = json!(SECRET);
            }
            let told = world.post(api, &sent, &body).await;
            if self.stay == "local" {
                assert!(!told.status.is_success(), "{self:?}: {}", told.text);
            }
            assert_ne!(told.header("x-sconce-member"), "outside", "{self:?}");
        }
        // A shadow or hedge has a task of its own: it ends, or would have begun, with the pool at rest.
        tokio::task::yield_now().await;
        assert!(far.seen().is_empty(), "{self:?}: {:?}", far.seen());
        let near = near.seen();
        assert!(self.stay != "local" || near.is_empty(), "{self:?}: {near:?}");
        let reached = near.iter().all(|seen| seen.body.contains(SECRET));
        assert!(reached, "{self:?}: what was allowed is what was sent");
        near.len()
    }
}

#[test]
fn no_byte_leaves_whatever_fails() {
    let cases = LONG.get().and_then(|text| text.parse().ok()).unwrap_or(32);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let reached = std::cell::Cell::new(0);
    let run = runner.run(&case(), |case| {
        reached.set(reached.get() + runtime.block_on(case.holds()));
        Ok(())
    });
    run.expect("no case sends anything elsewhere");
    assert!(reached.get() > 0, "somebody was asked at all");
}
