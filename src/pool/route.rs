//! A name that clients use, and the members that can answer for it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sconce_route::{Facts, Nanos, Policy, Rule, Stay};

use super::difficulty::Scorer;
use super::dispatch::compare::Comparisons;
use super::member::{MemberState, Model, ModelCard, Task, TokenizeInput, Tokenized, TokenizerInfo};
use super::node::Node;
use super::{Admission, AdmissionLimits};
use crate::config::pool::{Budget, RouteConfig, RouteMember};
use crate::error::{Error, Result};

/// One rule over members.
pub struct Route {
    pub name: String,
    pub policy: Policy,
    pub stay: Stay,
    pub deadline: Option<Duration>,
    pub attempts_max: u32,
    pub cost_max: Option<Nanos>,
    pub hedge_after: Option<Duration>,
    pub budget: Budget,
    pub shadow: Option<Shadow>,
    /// Of routes that go by difficulty.
    pub scorer: Option<Scorer>,
    pub seats: Vec<Seat>,
    /// A served model under its own name: it alone answers, and what it says of a request is said as it is.
    pub is_plain: bool,
    /// Where work that nobody waits for takes its turn.
    pub spare: Admission,
    card: OnceLock<ModelCard>,
    provisional: ModelCard,
}

/// A share of requests goes to this member too, unseen.
pub struct Shadow {
    pub node: Arc<Node>,
    pub share_permille: u32,
    /// Both answers go here, and where that is.
    pub answers: Option<(PathBuf, Arc<Comparisons>)>,
}

/// A member's place in a route.
pub struct Seat {
    pub node: Arc<Node>,
    part: RouteMember,
    /// The facts, and the version of what they were made from.
    facts: RwLock<Option<(u64, Arc<Facts>)>>,
}

impl Seat {
    pub fn new(node: Arc<Node>, part: RouteMember) -> Self {
        Self { node, part, facts: RwLock::default() }
    }

    /// Made anew when the member became ready or was measured.
    pub fn facts(&self) -> Arc<Facts> {
        let version = self.node.version();
        let known = self.facts.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, facts)) = known.filter(|(made_from, _)| *made_from == version) {
            return facts;
        }
        let facts = Arc::new(self.node.facts(&self.part));
        *self.facts.write().unwrap_or_else(PoisonError::into_inner) = Some((version, Arc::clone(&facts)));
        facts
    }
}

impl Route {
    /// A served model under its own name.
    pub fn plain(node: &Arc<Node>) -> Self {
        let part = RouteMember { name: node.name.clone(), weight: 1, priority: 0, tier: 0, canary: None };
        Self {
            name: node.member.card().id.clone(),
            policy: Policy::new(Rule::Priority),
            stay: Stay::Anywhere,
            deadline: None,
            attempts_max: 1,
            cost_max: None,
            hedge_after: None,
            budget: Budget::default(),
            shadow: None,
            scorer: None,
            seats: vec![Seat::new(Arc::clone(node), part)],
            is_plain: true,
            spare: unbounded(),
            card: OnceLock::new(),
            provisional: node.member.card().clone(),
        }
    }

    /// A `[[route]]` over these nodes, which have its members' names.
    pub fn configured(config: &RouteConfig, nodes: &[Arc<Node>], created_s: u64) -> Result<Self> {
        let find = |name: &str| {
            let by_name = nodes.iter().find(|node| node.name == name);
            let by_model = || nodes.iter().find(|node| node.is_local() && node.member.card().answers_to(name));
            let found = by_name.or_else(by_model).map(Arc::clone);
            found.ok_or_else(|| Error::invalid("route", format!("route '{}' has no member '{name}'", config.name)))
        };
        let seat = |part: &RouteMember| Ok(Seat::new(find(&part.name)?, part.clone()));
        let seats = config.members.iter().map(seat).collect::<Result<Vec<_>>>()?;
        let shadow = match &config.shadow {
            None => None,
            Some(shadow) => {
                let start = |path: &PathBuf| {
                    let log = Comparisons::start(path, "answers of shadows", "shadow.answers")?;
                    Ok::<_, Error>((path.clone(), Arc::new(log)))
                };
                let answers = shadow.answers.as_ref().map(start).transpose()?;
                Some(Shadow { node: find(&shadow.member)?, share_permille: shadow.share_permille, answers })
            }
        };
        let goes_by_difficulty = matches!(config.policy.rule, Rule::Score { .. });
        let scorer = goes_by_difficulty.then(|| Scorer::new(config.fitted.as_deref(), nodes)).transpose()?;
        let provisional = ModelCard {
            id: config.name.clone(),
            aliases: config.aliases.clone(),
            root: format!("route:{}", config.policy.rule.word()),
            parent: None,
            max_model_len: 0,
            created_s,
            chat: true,
            task: Task::Generate,
        };
        Ok(Self {
            name: config.name.clone(),
            policy: config.policy.clone(),
            stay: config.stay.clone(),
            deadline: config.deadline,
            attempts_max: config.attempts_max,
            cost_max: config.cost_max,
            hedge_after: config.hedge_after,
            budget: config.budget,
            shadow,
            scorer,
            seats,
            is_plain: false,
            spare: unbounded(),
            card: OnceLock::new(),
            provisional,
        })
    }

    /// What was configured, to see whether it changed.
    pub fn outline(&self) -> String {
        let parts: Vec<_> = self.seats.iter().map(|seat| &seat.part).collect();
        let shadow = self.shadow.as_ref().map(|shadow| {
            let answers = shadow.answers.as_ref().map(|(path, _)| path);
            (&shadow.node.name, shadow.share_permille, answers)
        });
        let limits = (self.deadline, self.attempts_max, self.cost_max, self.hedge_after, self.budget);
        format!("{:?} {:?} {:?} {:?} {limits:?} {shadow:?}", self.provisional.aliases, self.policy, self.stay, parts)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.seats.iter().map(|seat| &seat.node)
    }

    /// The first member that can tell tokens from text.
    fn tokenizing(&self) -> Result<&Arc<Node>> {
        let local = self.nodes().find(|node| node.is_local());
        local.ok_or_else(|| {
            let message = format!(
                "the route '{}' has no local model, so nothing here knows its tokens; ask for another model",
                self.name
            );
            Error::invalid("model", message).with_code("no_tokenizer")
        })
    }
}

/// Spare work is bounded by what each caller of it gives as its limit.
fn unbounded() -> Admission {
    Admission::new(AdmissionLimits { running_max: u32::MAX, waiting_max: 0 })
}

impl Model for Route {
    /// What its members have in common is known when all are loaded.
    fn card(&self) -> &ModelCard {
        if self.is_plain {
            return self.seats[0].node.member.card();
        }
        let is_unknown = |node: &Arc<Node>| match node.member.state() {
            MemberState::Loading(_) => true,
            MemberState::Asleep(_) => node.member.card().max_model_len == 0,
            MemberState::Ready | MemberState::Failed(_) => false,
        };
        if self.nodes().any(is_unknown) {
            return &self.provisional;
        }
        self.card.get_or_init(|| {
            let cards = || self.nodes().map(|node| node.member.card());
            ModelCard {
                // The longest: who takes less is left out of what is longer.
                max_model_len: cards().map(|card| card.max_model_len).max().unwrap_or(0),
                chat: cards().any(|card| card.chat),
                task: cards().map(|card| card.task).next().unwrap_or_default(),
                ..self.provisional.clone()
            }
        })
    }

    /// Ready as soon as any member is.
    fn state(&self) -> MemberState {
        let mut worst = MemberState::Failed("it has no members".to_owned());
        for node in self.nodes() {
            match node.member.state() {
                MemberState::Ready => return MemberState::Ready,
                better @ MemberState::Asleep(_) => worst = better,
                loading @ MemberState::Loading(_) if !matches!(worst, MemberState::Asleep(_)) => worst = loading,
                failed @ MemberState::Failed(_) if matches!(worst, MemberState::Failed(_)) => worst = failed,
                MemberState::Loading(_) | MemberState::Failed(_) => {}
            }
        }
        worst
    }

    fn awake(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match self.nodes().find(|node| node.is_local()) {
                Some(node) => node.member.awake().await,
                None => Ok(()),
            }
        })
    }

    fn tokenize(&self, input: TokenizeInput) -> Result<Tokenized> {
        self.tokenizing()?.member.tokenize(input)
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizing()?.member.detokenize(tokens)
    }

    fn tokenizer_info(&self) -> Result<TokenizerInfo> {
        self.tokenizing()?.member.tokenizer_info()
    }
}

/// Numbers that no two requests share: ties are parted by them.
pub fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    KEYS.get_or_init(RandomState::new).hash_one(COUNTER.fetch_add(1, Ordering::Relaxed))
}
