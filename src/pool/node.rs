//! A member with everything that the pool knows of it: its queue, its health, what it declares, what it costs.
//!
//! A node lives as long as its configuration stays the same; routes come and go around it, and a reload keeps it with all
//! that was learnt of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sconce_route::health::HealthOptions;
use sconce_route::price::MachinePrice;
use sconce_route::{Capabilities, Facts, Health, HealthView, Kind, LoadFigures, Nanos, Pricing, Residency};

use super::member::{Member, MemberState, Task};
use super::{Admission, AdmissionLimits};
use crate::config::pool::{self as config, RouteMember};
use crate::telemetry::MemberMetrics;

/// Over how long the speed of an own machine is measured.
const MEASURED_MS: u64 = 60 * 60 * 1000;
/// Samples of that time.
const SAMPLES_MAX: usize = 360;

/// What is declared of a member, apart from its part in a route.
#[derive(Debug, Clone, PartialEq)]
pub struct Declared {
    pub kind: Kind,
    /// What is reached; tells alike members apart.
    pub endpoint: String,
    pub residency: Residency,
    /// `None`: as the card of the loaded model says.
    pub capabilities: Option<Capabilities>,
    /// What the operator knows better than the card.
    pub overrides: config::Capabilities,
    pub pricing: Pricing,
    /// Of an own machine, from which the pricing follows when it was measured.
    pub hourly: Option<Nanos>,
    pub quality: Option<f64>,
    pub health: HealthOptions,
}

impl Declared {
    /// A model in this process of which nothing else was said.
    pub fn local(endpoint: &str) -> Self {
        Self {
            kind: Kind::Local,
            endpoint: endpoint.to_owned(),
            residency: Residency::Local,
            capabilities: None,
            overrides: config::Capabilities::default(),
            pricing: Pricing::Unknown,
            hourly: None,
            quality: None,
            health: HealthOptions::default(),
        }
    }
}

pub struct Node {
    /// What routes, logs and the ledger call it.
    pub name: String,
    pub member: Arc<dyn Member>,
    /// Shared with the adapters beside it.
    pub admission: Arc<Admission>,
    pub metrics: Arc<MemberMetrics>,
    /// Of a hosted member: changes with its secrets, and tells nothing of them.
    pub secrets_tag: [u8; 32],
    declared: Declared,
    running_max: u32,
    // Taken a few times an attempt, never a token.
    health: Mutex<Health>,
    measured: Mutex<Measured>,
    tokens_per_s_milli: AtomicU64,
    measurements: AtomicU64,
    started: Instant,
}

/// Tokens that an own machine had computed at a moment.
#[derive(Default)]
struct Measured {
    samples: VecDeque<(u64, u64)>,
}

impl Node {
    pub fn new(
        name: &str,
        member: Arc<dyn Member>,
        limits: AdmissionLimits,
        declared: Declared,
        metrics: Arc<MemberMetrics>,
    ) -> Self {
        let health = Mutex::new(Health::new(declared.health.clone()));
        Self {
            name: name.to_owned(),
            member,
            admission: Arc::new(Admission::new(limits)),
            metrics,
            secrets_tag: [0; 32],
            declared,
            running_max: limits.running_max,
            health,
            measured: Mutex::default(),
            tokens_per_s_milli: AtomicU64::new(0),
            measurements: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// An adapter beside this node's model: it takes its turn in the same queue and is accounted to the same member.
    pub fn beside(&self, adapter: Arc<dyn Member>) -> Self {
        let limits = AdmissionLimits { running_max: self.running_max, waiting_max: 0 };
        let node = Self::new(&self.name, adapter, limits, self.declared.clone(), Arc::clone(&self.metrics));
        Self { admission: Arc::clone(&self.admission), ..node }
    }

    pub fn declares(&self, declared: &Declared) -> bool {
        self.declared == *declared
    }

    pub fn is_local(&self) -> bool {
        self.declared.kind == Kind::Local
    }

    pub fn residency(&self) -> &Residency {
        &self.declared.residency
    }

    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn view(&self) -> HealthView {
        let mut view = self.health().view(self.now_ms(), self.load());
        let wake_ms = self.member.wake_ms();
        if wake_ms > 0 {
            // Whatever the queue is, its model must be loaded first.
            view.wait_ms = Some(view.wait_ms.unwrap_or(0).saturating_add(wake_ms));
        }
        view
    }

    /// Of an own engine all is known; a hosted one tells nobody what it takes.
    fn load(&self) -> LoadFigures {
        if !self.is_local() {
            return LoadFigures::default();
        }
        let live = self.admission.live();
        let running = live.min(self.running_max);
        LoadFigures { running, waiting: live - running, capacity: Some(self.running_max) }
    }

    /// Of an own engine: sequences that hold a place, and how many are computed at once.
    pub fn places(&self) -> (u32, u32) {
        (self.admission.live(), self.running_max)
    }

    /// Changes when its facts do.
    pub fn version(&self) -> u64 {
        let is_ready = u64::from(self.member.state() == MemberState::Ready);
        2 * self.measurements.load(Ordering::Relaxed) + is_ready
    }

    /// What is declared of it, for people.
    pub fn described(&self) -> Vec<String> {
        let place = match &self.declared.residency {
            Residency::Local => "this machine".to_owned(),
            Residency::Region(region) => region.clone(),
            Residency::Unknown => "unknown: left out where a request must stay somewhere".to_owned(),
        };
        let price = match (&self.declared.hourly, &self.declared.pricing) {
            (Some(hourly), _) => format!("{hourly} an hour, over measured tokens"),
            (None, Pricing::Tokens(price)) => {
                let dollars = |price: sconce_route::price::PerToken| price.dollars_a_million();
                format!("${} in, ${} out a million tokens", dollars(price.input), dollars(price.output))
            }
            (None, _) => "unknown: left out where a budget or 'cheapest' needs one".to_owned(),
        };
        vec![format!("model   {}", self.member.card().root), format!("place   {place}"), format!("price   {price}")]
    }

    /// What it declares, with its part in a route.
    pub fn facts(&self, part: &RouteMember) -> Facts {
        Facts {
            kind: self.declared.kind,
            endpoint: self.declared.endpoint.clone(),
            capabilities: self.declared.capabilities.clone().unwrap_or_else(|| self.own_capabilities()),
            residency: self.declared.residency.clone(),
            pricing: self.pricing(),
            quality: self.declared.quality,
            weight: part.weight,
            priority: part.priority,
            tier: part.tier,
            canary: part.canary,
        }
    }

    /// A local model answers what its card says; what it cannot it refuses itself, naming the field.
    fn own_capabilities(&self) -> Capabilities {
        let card = self.member.card();
        let is_ready = self.member.state() == MemberState::Ready;
        let generates = card.task == Task::Generate;
        let own = &self.declared.overrides;
        Capabilities {
            chat: generates && (card.chat || !is_ready),
            completion: generates,
            tools: generates && own.tools.unwrap_or(true),
            json_schema: generates && own.json_schema.unwrap_or(true),
            vision: generates && own.vision.unwrap_or(false),
            logprobs: generates && own.logprobs.unwrap_or(true),
            reasoning: generates && own.reasoning.unwrap_or(true),
            embeddings: !generates,
            grammar: generates,
            context_tokens: own.context_tokens.or(Some(card.max_model_len).filter(|tokens| *tokens > 0)),
            output_tokens: own.output_tokens_max,
        }
    }

    pub fn pricing(&self) -> Pricing {
        match self.declared.hourly {
            None => self.declared.pricing.clone(),
            Some(hourly) => {
                let tokens_per_s_milli = self.tokens_per_s_milli.load(Ordering::Relaxed);
                Pricing::Machine(MachinePrice { hourly, tokens_per_s_milli })
            }
        }
    }

    /// Looks how many tokens the machine has computed; to be called now and then. Idle time counts: it is paid for.
    pub fn measure(&self, now_ms: u64) {
        if self.declared.hourly.is_none() {
            return;
        }
        let snapshot = self.member.snapshot();
        let tokens = snapshot.prompt_tokens.saturating_sub(snapshot.cached_prompt_tokens) + snapshot.generation_tokens;
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = &mut measured.samples;
        while samples.len() >= SAMPLES_MAX || samples.front().is_some_and(|(at, _)| now_ms - at > MEASURED_MS) {
            samples.pop_front();
        }
        samples.push_back((now_ms, tokens));
        let Some(((from_ms, before), (to_ms, after))) = samples.front().copied().zip(samples.back().copied()) else {
            return;
        };
        let (made, took_ms) = (after.saturating_sub(before), to_ms.saturating_sub(from_ms));
        if let Some(per_s_milli) = made.saturating_mul(1_000_000).checked_div(took_ms) {
            self.tokens_per_s_milli.store(per_s_milli, Ordering::Relaxed);
            self.measurements.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::testing::Scripted;

    #[test]
    fn an_own_machine_costs_what_was_measured_and_nothing_is_invented() {
        let member = Scripted::answering("local", "hi");
        let declared = Declared { hourly: Some(Nanos(3_600_000_000_000)), ..Declared::local("sim") };
        let limits = AdmissionLimits { running_max: 1, waiting_max: 0 };
        let node = Node::new("local", Arc::clone(&member) as _, limits, declared, MemberMetrics::detached("local"));
        assert!(!node.pricing().is_known(), "nothing was measured");
        node.measure(0);
        assert!(!node.pricing().is_known(), "one look is no measurement");
        member.computed(500, 500);
        node.measure(10_000);
        // $3600 an hour is a dollar a second, in which 100 tokens were made.
        assert_eq!(node.pricing().estimate(50, 50, false), Some(Nanos(1_000_000_000)));
    }
}
