//! What is looked after beside the requests: the speed of own machines, and members that are left alone after failures.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use sconce_route::Outcome;
use sconce_route::health::Circuit;

use super::dispatch::judge;
use super::node::Node;
use super::{MemberState, Pool};

const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks at what own machines computed.
const MEASURE_TICKS: u64 = 10;
/// The longest a probe is waited for.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until the pool is gone.
pub async fn keep(pool: Weak<Pool>) {
    let mut ticks = 0_u64;
    loop {
        let Some(table) = pool.upgrade().map(|pool| pool.table()) else { return };
        if ticks.is_multiple_of(MEASURE_TICKS) {
            for node in table.nodes.iter().filter(|node| node.member.state() == MemberState::Ready) {
                node.measure(node.now_ms());
            }
        }
        if let Some(lifecycle) = pool.upgrade().map(|pool| Arc::clone(pool.lifecycle())) {
            lifecycle.tick().await;
        }
        join_all(table.nodes.iter().filter(|node| !node.is_local()).map(probe)).await;
        drop(table);
        ticks += 1;
        tokio::time::sleep(TICK).await;
    }
}

/// Asks a member that may be well again whether it answers, with nothing of any request and before a client has to try.
async fn probe(node: &Arc<Node>) {
    let is_due = matches!(node.view().circuit, Circuit::HalfOpen { probes_free: 1.. });
    let started = if is_due { node.health().try_start(node.now_ms()).ok() } else { None };
    let Some(attempt) = started else { return };
    let outcome = match tokio::time::timeout(PROBE_TIMEOUT, node.member.probe()).await {
        Ok(Ok(())) => Outcome::Success,
        Ok(Err(error)) => judge(&error, false).health,
        Err(_) => Outcome::Failure,
    };
    node.health().finish(node.now_ms(), attempt, outcome);
    tracing::info!(member = %node.name, ?outcome, "a member was probed after failures");
}
