//! Workers of the pool: made with the plan, started with the load, exchanged at a reload, ended with the server.
//!
//! A worker whose configuration stays the same is kept through a reload. One that takes over cores, a port or the name
//! of another starts when that one has ended.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sconce_worker::neuron::{self, Report};
use sconce_worker::{User, WorkerSpec};
use tokio::task::JoinHandle;

use crate::config::env;
use crate::config::pool::{MemberKind, PoolConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::Node;
use crate::pool::worker::WorkerMember;
use crate::telemetry::Metrics;

/// How often it is looked whether a worker that is not needed has ended its requests, and how long it gets.
const DRAIN_LOOK: Duration = Duration::from_millis(100);
const DRAIN_MAX: Duration = Duration::from_secs(10 * 60);

/// The running workers, and what reads of their accelerators.
#[derive(Default)]
pub struct Workers {
    pub members: Vec<Arc<WorkerMember>>,
    monitor: Option<JoinHandle<()>>,
}

/// What a reload made: models that are new, and workers of which some are.
pub(super) struct Fresh<'a> {
    pub(super) models: &'a [super::Planned],
    pub(super) workers: &'a [Arc<WorkerMember>],
}

/// One for each member of that kind; those of before that are the same stay.
pub fn plan(config: &PoolConfig, known: &[Arc<WorkerMember>]) -> Vec<Arc<WorkerMember>> {
    let workers = config.members.iter().filter_map(|member| match &member.kind {
        MemberKind::Worker(worker) => Some((member, worker)),
        MemberKind::Local { .. } | MemberKind::Remote(_) => None,
    });
    let made = workers.map(|(member, worker)| {
        let same = known.iter().find(|known| *known.config() == **worker);
        same.map_or_else(|| Arc::new(WorkerMember::new(member, worker)), Arc::clone)
    });
    made.collect()
}

impl Workers {
    pub fn new(members: Vec<Arc<WorkerMember>>) -> Self {
        Self { members, monitor: None }
    }

    /// Starts all of them. They become ready in their own time.
    pub fn start(&mut self, metrics: &Arc<Metrics>) -> Result<()> {
        for member in &self.members {
            check_user(&member.config().spec)?;
        }
        for member in &self.members {
            member.supervisor().start();
        }
        self.monitor(metrics);
        Ok(())
    }

    /// Reads `neuron-monitor` where a worker has Neuron cores and the program is there.
    fn monitor(&mut self, metrics: &Arc<Metrics>) {
        let on_neuron = self.members.iter().map(|member| &member.config().spec).find(|spec| spec.cores.is_some());
        let Some(spec) = on_neuron.filter(|_| self.monitor.is_none()) else { return };
        let Some(program) = neuron::monitor(env::PATH.get().as_deref()) else {
            tracing::warn!("neuron-monitor is not in PATH nor in /opt/aws/neuron/bin: no figures of Neuron cores");
            return;
        };
        let spec = WorkerSpec {
            name: "neuron-monitor".to_owned(),
            cores: None,
            user: None,
            folder: "/".into(),
            ..spec.clone()
        };
        let metrics = Arc::clone(metrics);
        self.monitor = Some(tokio::spawn(neuron::follow(program, spec, move |report: Report| metrics.neuron(&report))));
    }

    /// Goes over to these members, which are in the pool's table already. `old` are the nodes of the table before.
    pub fn exchange(&mut self, next: Vec<Arc<WorkerMember>>, old: &[Arc<Node>], metrics: &Arc<Metrics>) {
        let is_in =
            |list: &[Arc<WorkerMember>], one: &Arc<WorkerMember>| list.iter().any(|other| Arc::ptr_eq(other, one));
        let before = std::mem::replace(&mut self.members, next);
        let gone: Vec<_> = before.iter().filter(|one| !is_in(&self.members, one)).cloned().collect();
        let (kept, fresh): (Vec<_>, Vec<_>) = self.members.iter().cloned().partition(|one| is_in(&before, one));
        // Whoever changes the configuration may have removed the reason of its failures.
        kept.iter().for_each(|one| one.supervisor().retry());
        let node_of = |one: &Arc<WorkerMember>| {
            let is_it = |node: &&Arc<Node>| std::ptr::addr_eq(Arc::as_ptr(&node.member), Arc::as_ptr(one));
            old.iter().find(is_it).cloned()
        };
        let ending: Vec<_> = gone.into_iter().map(|one| (node_of(&one), one)).collect();
        tokio::spawn(async move {
            let (in_the_way, rest): (Vec<_>, Vec<_>) =
                fresh.into_iter().partition(|one| ending.iter().any(|(_, gone)| collide(one, gone)));
            rest.iter().for_each(|one| one.supervisor().start());
            join_all(ending.iter().map(|(node, one)| end(node.as_ref(), one))).await;
            in_the_way.iter().for_each(|one| one.supervisor().start());
        });
        self.monitor(metrics);
    }
}

/// What a worker of another user needs.
pub fn check_user(spec: &WorkerSpec) -> Result<()> {
    let Some(user) = spec.user.as_ref().filter(|_| !User::can_change()) else { return Ok(()) };
    let message = format!(
        "member '{}': user = \"{}\" needs a server that runs as root; leave user out, or give the whole server this user",
        spec.name, user.name
    );
    Err(Error::new(ErrorKind::InvalidRequest, message))
}

/// Both cannot run at the same time.
fn collide(one: &WorkerMember, other: &WorkerMember) -> bool {
    let (one, other) = (&one.config().spec, &other.config().spec);
    let cores = one.cores.as_ref().zip(other.cores.as_ref());
    one.name == other.name
        || (one.port.is_some() && one.port == other.port)
        || cores.is_some_and(|(one, other)| one.shared_with(other).is_some())
}

/// Its requests first, then the process.
async fn end(node: Option<&Arc<Node>>, worker: &WorkerMember) {
    let drained = async {
        // A request that began with the table before may still be about to ask it.
        while node.is_some_and(|node| Arc::strong_count(node) > 1) {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    };
    if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
        tracing::warn!(worker = %worker.config().spec.name, "requests of a worker that is not needed any more are cut off");
    }
    worker.supervisor().stop().await;
    tracing::info!(worker = %worker.config().spec.name, "a worker that is not needed any more was ended");
}

/// Ends all at once: each takes its grace period at most.
pub async fn stop(workers: Workers) {
    if let Some(monitor) = workers.monitor {
        monitor.abort();
    }
    join_all(workers.members.iter().map(|worker| worker.supervisor().stop())).await;
}
