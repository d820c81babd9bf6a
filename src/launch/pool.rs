//! From checked members and routes to the pool's table, with the nodes that may stay.

use std::sync::Arc;

use sconce_providers::HttpClient;
use sconce_route::Pricing;
use sconce_route::price::PriceTable;

use super::{Planned, unix_time_s};
use crate::calendar::month_start;
use crate::config::StorePlace;
use crate::config::pool::{MemberConfig, MemberKind, PoolConfig, RemoteConfig, WorkerConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::remote::{self, RemoteMember};
use crate::pool::worker::{self, WorkerMember};
use crate::pool::{
    AdmissionLimits, Budgets, DecisionLog, Declared, Member, MemberState, Model, Node, Route, Shared, Table, today,
};
use crate::store::ledger::Ledger;
use crate::telemetry::Metrics;

/// What a table is made of.
pub struct Parts<'a> {
    pub client: &'a HttpClient,
    pub metrics: &'a Metrics,
    pub planned: &'a [Planned],
    pub workers: &'a [Arc<WorkerMember>],
    /// Nodes of the table before: those of unchanged members are taken over.
    pub known: &'a [Arc<Node>],
}

/// The ledger and what it knows of this month, and the log of decisions.
pub async fn shared(config: &PoolConfig) -> Result<Shared> {
    let age_days = config.ledger.entries_age_days;
    let ledger = match &config.ledger.file {
        StorePlace::Off => None,
        StorePlace::Default(path) | StorePlace::Named(path) => Some(Ledger::start(path, age_days)?),
    };
    let today = today();
    let spent = match &ledger {
        // What was spent decides what may be: a ledger that cannot be read must not start with nothing spent.
        Some(ledger) => ledger.spent_since(month_start(today)).await?,
        None => Vec::new(),
    };
    let decisions = config.ledger.decisions.as_ref();
    let decisions = decisions.map(|log| DecisionLog::start(&log.file, log.share_permille)).transpose()?;
    Ok(Shared { ledger, budgets: Arc::new(Budgets::new(today, &spent)), decisions, ..Shared::default() })
}

pub fn table(config: &PoolConfig, parts: &Parts<'_>) -> Result<Table> {
    let prices = prices(config)?;
    let mut nodes = Vec::new();
    for planned in parts.planned {
        nodes.push(local(config, planned, parts)?);
    }
    let served = nodes.clone();
    for member in &config.members {
        match &member.kind {
            MemberKind::Local { .. } => {}
            MemberKind::Remote(remote) => nodes.push(hosted(member, remote, &prices, parts)?),
            MemberKind::Worker(config) => nodes.push(supervised(member, config, parts)?),
        }
    }
    let route = |route| Route::configured(route, &nodes, unix_time_s());
    let routes = config.routes.iter().map(route).collect::<Result<Vec<_>>>()?;
    Ok(Table::new(nodes, &served, routes))
}

/// The built-in prices, under those of the operator's file.
fn prices(config: &PoolConfig) -> Result<PriceTable> {
    let Some(path) = &config.prices else { return Ok(PriceTable::builtin()) };
    let wrong = |why: String| Error::new(ErrorKind::InvalidRequest, format!("the prices in {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|why| wrong(why.to_string()))?;
    Ok(PriceTable::builtin().overlaid(PriceTable::parse(&text).map_err(wrong)?))
}

fn local(config: &PoolConfig, planned: &Planned, parts: &Parts<'_>) -> Result<Arc<Node>> {
    let card = planned.member.card().clone();
    let mut naming = config.members.iter().filter(|member| match &member.kind {
        MemberKind::Local { model, .. } => card.answers_to(model) || *model == planned.config.reference,
        MemberKind::Remote(_) | MemberKind::Worker(_) => false,
    });
    let member = naming.next();
    if let (Some(one), Some(other)) = (member, naming.next()) {
        let message =
            format!("the members '{}' and '{}' are the same model '{}'; keep one", one.name, other.name, card.id);
        return Err(Error::invalid("member", message));
    }
    let name = member.map_or(card.id.as_str(), |member| &member.name);
    let declared = member.map_or_else(|| Declared::local(&card.root), |member| declared_local(member, &card.root));
    if let Some(node) = unchanged(parts.known, name, &declared)
        && std::ptr::addr_eq(Arc::as_ptr(&node.member), Arc::as_ptr(&planned.member))
    {
        return Ok(node);
    }
    let limits = &planned.config.limits;
    let running_max = limits.max_num_seqs.saturating_mul(limits.data_parallel_size);
    let limits = AdmissionLimits { running_max, waiting_max: limits.max_queue };
    let metrics = parts.metrics.member(name);
    Ok(Arc::new(Node::new(name, Arc::clone(&planned.member) as Arc<dyn Member>, limits, declared, metrics)))
}

fn declared_local(member: &MemberConfig, root: &str) -> Declared {
    let hourly = match &member.kind {
        MemberKind::Local { hourly, .. } => *hourly,
        MemberKind::Remote(_) | MemberKind::Worker(_) => None,
    };
    Declared {
        hourly,
        pricing: member.price.clone().map_or(Pricing::Unknown, Pricing::Tokens),
        quality: member.quality,
        health: member.health.clone(),
        overrides: member.capabilities,
        ..Declared::local(root)
    }
}

fn hosted(member: &MemberConfig, remote: &RemoteConfig, prices: &PriceTable, parts: &Parts<'_>) -> Result<Arc<Node>> {
    let made = RemoteMember::new(member, remote, parts.client)?;
    let declared = remote::declared(member, remote, prices);
    if let Some(node) = unchanged(parts.known, &member.name, &declared)
        && node.secrets_tag == made.tag()
    {
        return Ok(node);
    }
    let limits = AdmissionLimits { running_max: remote.max_concurrent, waiting_max: 0 };
    let metrics = parts.metrics.member(&member.name);
    let tag = made.tag();
    let mut node = Node::new(&member.name, Arc::new(made), limits, declared, metrics);
    node.secrets_tag = tag;
    Ok(Arc::new(node))
}

fn supervised(member: &MemberConfig, config: &WorkerConfig, parts: &Parts<'_>) -> Result<Arc<Node>> {
    let planned = parts.workers.iter().find(|worker| worker.config() == config);
    let planned = planned.ok_or_else(|| Error::internal(format!("the worker '{}' was not planned", member.name)))?;
    let declared = worker::declared(member, config);
    // In whatever state it is: its process goes on.
    let known = parts.known.iter().find(|node| {
        let is_it = std::ptr::addr_eq(Arc::as_ptr(&node.member), Arc::as_ptr(planned));
        is_it && node.name == member.name && node.declares(&declared)
    });
    if let Some(node) = known {
        return Ok(Arc::clone(node));
    }
    let limits = AdmissionLimits { running_max: config.max_concurrent, waiting_max: 0 };
    let metrics = parts.metrics.member(&member.name);
    Ok(Arc::new(Node::new(&member.name, Arc::clone(planned) as Arc<dyn Member>, limits, declared, metrics)))
}

/// The node of the table before, when nothing was declared otherwise.
fn unchanged(known: &[Arc<Node>], name: &str, declared: &Declared) -> Option<Arc<Node>> {
    let same = |node: &&Arc<Node>| node.name == name && node.declares(declared);
    let found = known.iter().find(same)?;
    matches!(found.member.state(), MemberState::Ready | MemberState::Loading(_)).then(|| Arc::clone(found))
}
