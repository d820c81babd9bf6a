//! The pool: members that can answer, routes over them, bounded admission in front of each, one stream of events behind.
//!
//! Local and remote members meet at [`Event`](crate::request::Event): nothing above this room knows which one ran.
//!
//! 1. Which member is asked is decided in `sconce-route`, purely; this room feeds it and does what it says (`dispatch`).
//! 2. No member is asked after the first content of another reached the client.
//! 3. What may not leave does not: residency is checked for every attempt, hedges and shadows included.
//! 4. Every attempt is settled exactly once: health, ledger, budget, metrics.

mod adapters;
mod admission;
mod budget;
mod decisions;
mod difficulty;
pub mod dispatch;
pub mod errand;
pub mod explain;
mod keeper;
pub mod lifecycle;
mod lines;
mod load;
pub mod local;
pub mod member;
pub mod node;
pub mod remote;
mod route;
mod shared;
mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::StreamExt;

use crate::error::{Error, ErrorKind, Result};
use crate::request::{EmbedRequest, Embedded, Request};
use crate::telemetry::MemberMetrics;
use lifecycle::Lifecycle;

pub use admission::{Admission, AdmissionLimits};
pub use budget::Budgets;
pub use decisions::DecisionLog;
pub use difficulty::vectors_of;
pub use dispatch::today;
pub use errand::{Errand, Trace, Traced};
pub use keeper::keep;
pub use load::Load;
pub use member::{
    AdapterFigures, EngineSnapshot, EventStream, Member, MemberState, Model, ModelCard, NewAdapter, Task,
    TokenizeInput, Tokenized, TokenizerInfo,
};
pub use node::{Declared, Node};
pub use route::Route;
pub use shared::Shared;
pub use table::Table;

/// Inputs of an embedding request that take one place: a step computes about as many.
const INPUTS_PER_PLACE: usize = 64;

/// Of requests that run in the gaps: behind every other that does not ask to be.
const SPARE_PRIORITY: i32 = 1000;

/// Every name this server answers for.
pub struct Pool {
    // Read once a request, written at a reload.
    table: RwLock<Arc<Table>>,
    shared: Arc<Shared>,
    /// Still takes requests, and asks balancers for no more.
    leaving: AtomicBool,
    lifecycle: Arc<Lifecycle>,
    draining: AtomicBool,
    /// Adapters are loaded and unloaded one at a time.
    adapting: tokio::sync::Mutex<()>,
}

/// Whether the server may be sent traffic, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    pub ready: bool,
    pub reasons: Vec<String>,
}

impl Pool {
    /// Of members that are each served under their own name.
    pub fn new(members: Vec<(Arc<dyn Member>, AdmissionLimits)>) -> Self {
        let node = |(member, limits): (Arc<dyn Member>, AdmissionLimits)| {
            let name = member.card().id.clone();
            let declared = Declared::local(&member.card().root);
            Arc::new(Node::new(&name, member, limits, declared, MemberMetrics::detached(&name)))
        };
        let nodes: Vec<_> = members.into_iter().map(node).collect();
        Self::with(Table::new(nodes.clone(), &nodes, Vec::new()), Shared::default())
    }

    pub fn with(table: Table, shared: Shared) -> Self {
        Self {
            table: RwLock::new(Arc::new(table.with_adapters())),
            shared: Arc::new(shared),
            leaving: AtomicBool::new(false),
            lifecycle: Arc::default(),
            draining: AtomicBool::new(false),
            adapting: tokio::sync::Mutex::default(),
        }
    }

    /// The table as it is now. Requests that have begun keep the one that they began with.
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on requests find this table.
    pub fn replace(&self, table: Table) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table.with_adapters());
    }

    /// Looks which adapters there are now.
    pub fn find_adapters(&self) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        *table = Arc::new(table.with_adapters());
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The models of this process, which come and go.
    pub fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.lifecycle
    }

    /// Admits the request or says why nobody takes it; the returned stream ends with `Done` or `Failed`.
    /// Dropping the stream cancels the request and gives its places back.
    pub async fn submit(&self, request: Request) -> Result<EventStream> {
        self.submit_for(request, Errand::default()).await
    }

    /// The same, by the rules of who asks.
    pub async fn submit_for(&self, request: Request, errand: Errand) -> Result<EventStream> {
        let route = self.open_route(&request.model)?;
        let places = request.params.n.max(1);
        dispatch::submit(&self.shared, &route, request, errand, Some(places)).await
    }

    /// Vectors or scores; places are taken by the number of inputs. Dropping the future cancels the request.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embedded> {
        self.embed_for(request, Errand::default()).await
    }

    /// The same, by the rules of who asks.
    pub async fn embed_for(&self, request: EmbedRequest, errand: Errand) -> Result<Embedded> {
        let route = self.open_route(&request.model)?;
        let places = request.inputs.len().div_ceil(INPUTS_PER_PLACE).max(1);
        let places = u32::try_from(places).unwrap_or(u32::MAX);
        dispatch::embed(&self.shared, &route, request, errand, Some(places)).await
    }

    /// The same in the gaps that live requests leave, behind every other.
    pub async fn embed_spare(&self, mut request: EmbedRequest, running_max: u32, errand: Errand) -> Result<Embedded> {
        let places = request.inputs.len().div_ceil(INPUTS_PER_PLACE).max(1);
        let places = u32::try_from(places).unwrap_or(u32::MAX);
        let route = self.open_route(&request.model)?;
        let turns = if route.is_plain { &route.seats[0].node.admission } else { &route.spare };
        let _permit = turns.admit_spare(places, running_max).await;
        // That may have taken hours.
        let route = self.open_route(&request.model)?;
        request.priority = request.priority.max(SPARE_PRIORITY);
        let errand = Errand { is_batch: true, ..errand };
        let places = (!route.is_plain).then_some(places);
        dispatch::embed(&self.shared, &route, request, errand, places).await
    }

    /// Runs the requests, which are for one model, in the gaps that live ones leave: waits until at most `running_max`
    /// sequences run with them, and then they are the last to be served.
    pub async fn submit_spare(
        &self,
        mut requests: Vec<Request>,
        running_max: u32,
        errand: Errand,
    ) -> Result<Vec<EventStream>> {
        let Some(model) = requests.first().map(|request| request.model.clone()) else { return Ok(Vec::new()) };
        let places = requests.iter().map(|request| request.params.n.max(1)).fold(0, u32::saturating_add);
        let route = self.open_route(&model)?;
        let turns = if route.is_plain { &route.seats[0].node.admission } else { &route.spare };
        let permit = Arc::new(turns.admit_spare(places, running_max).await);
        // That may have taken hours.
        let route = self.open_route(&model)?;
        for request in &mut requests {
            request.priority = request.priority.max(SPARE_PRIORITY);
        }
        let errand = Errand { is_batch: true, ..errand };
        // Elsewhere than on a plain route the turn is the route's, and each member has its own queue.
        let started = requests.into_iter().map(|request| {
            let places = (!route.is_plain).then_some(request.params.n.max(1));
            dispatch::submit(&self.shared, &route, request, errand.clone(), places)
        });
        let streams = futures_util::future::try_join_all(started).await?;
        let held = streams.into_iter().map(|mut events| {
            let permit = Arc::clone(&permit);
            Box::pin(async_stream::stream! {
                let _permit = permit;
                while let Some(event) = events.next().await {
                    yield event;
                }
            }) as EventStream
        });
        Ok(held.collect())
    }

    /// The route for `model`, while requests are taken at all.
    fn open_route(&self, model: &str) -> Result<Arc<Route>> {
        if self.draining.load(Ordering::Relaxed) {
            let message = "the server is shutting down and takes no new requests";
            return Err(Error::new(ErrorKind::Unavailable, message).with_code("server_draining").with_retry_after_s(1));
        }
        self.table().route(model).map(Arc::clone)
    }

    /// What answers for `model`: by name or alias; a pool of one also answers for an empty name.
    pub fn model(&self, model: &str) -> Result<Arc<dyn Model>> {
        let route = self.table().route(model).map(Arc::clone)?;
        Ok(if route.is_plain { Arc::clone(&route.seats[0].node.member) as _ } else { route })
    }

    /// The first member behind a name.
    pub fn member(&self, model: &str) -> Result<Arc<dyn Member>> {
        self.table().route(model).map(|route| Arc::clone(&route.seats[0].node.member))
    }

    /// Everything that clients can name.
    pub fn models(&self) -> Vec<Arc<dyn Model>> {
        self.table().routes.iter().map(|route| Arc::clone(route) as _).collect()
    }

    /// The models that this server runs itself.
    pub fn local_members(&self) -> Vec<Arc<dyn Member>> {
        let table = self.table();
        table.nodes.iter().filter(|node| node.is_local()).map(|node| Arc::clone(&node.member)).collect()
    }

    pub fn readiness(&self) -> Readiness {
        let mut reasons = self.departure();
        reasons.extend(self.table().faults());
        Readiness { ready: reasons.is_empty(), reasons }
    }

    /// Whether one model can answer now, without a wait for it to be loaded.
    pub fn readiness_of(&self, model: &str) -> Result<Readiness> {
        let mut reasons = self.departure();
        let route = self.table().route(model).map(Arc::clone)?;
        match route.state() {
            MemberState::Ready => {}
            MemberState::Loading(why) | MemberState::Asleep(why) => reasons.push(format!("{}: {why}", route.name)),
            MemberState::Failed(why) => reasons.push(format!("{}: failed: {why}", route.name)),
        }
        Ok(Readiness { ready: reasons.is_empty(), reasons })
    }

    fn departure(&self) -> Vec<String> {
        let leaves = self.leaving.load(Ordering::Relaxed) || self.draining.load(Ordering::Relaxed);
        leaves.then(|| "draining".to_owned()).into_iter().collect()
    }

    /// From now on it is not ready, so that balancers look elsewhere; requests are still taken.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// From now on every new request is refused; running ones go on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Requests that hold a place now, over all members.
    pub fn live(&self) -> u32 {
        self.table().nodes.iter().map(|node| node.admission.live()).sum()
    }
}
