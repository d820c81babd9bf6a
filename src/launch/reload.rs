//! A new configuration for a running pool, without a request that fails for it.
//!
//! Everything is made and loaded first; then one exchange of the table, which new requests find; then what is not needed
//! any more ends its requests and is stopped. What cannot be made leaves all as it was.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Launch, Planned, load_one, plan_model, pool, stop_one, workers};
use crate::config::ModelConfig;
use crate::config::pool::PoolConfig;
use crate::error::Result;
use crate::hub::Progress;
use crate::pool::worker::WorkerMember;
use crate::pool::{Model, Node, Table};

/// How often it is looked whether a model that is not needed has ended its requests.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// What a reload changed, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
}

impl Change {
    fn between(before: &Table, after: &Table) -> Self {
        let mut change = Self::default();
        for node in &after.nodes {
            match before.nodes.iter().find(|other| other.name == node.name) {
                None => change.added.push(format!("member {}", node.name)),
                Some(other) if !Arc::ptr_eq(other, node) => change.changed.push(format!("member {}", node.name)),
                Some(_) => {}
            }
        }
        let gone = before.nodes.iter().filter(|node| !after.nodes.iter().any(|other| other.name == node.name));
        change.removed.extend(gone.map(|node| format!("member {}", node.name)));
        let names = |table: &Table| -> Vec<(String, String)> {
            table.routes.iter().map(|route| (route.name.clone(), route.outline())).collect()
        };
        let (old, new) = (names(before), names(after));
        for (name, outline) in &new {
            match old.iter().find(|(other, _)| other == name) {
                None => change.added.push(format!("route {name}")),
                Some((_, other)) if other != outline => change.changed.push(format!("route {name}")),
                Some(_) => {}
            }
        }
        let gone = old.iter().filter(|(name, _)| !new.iter().any(|(other, _)| other == name));
        change.removed.extend(gone.map(|(name, _)| format!("route {name}")));
        change
    }

    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("nothing changed");
        }
        let marked = [("+", &self.added), ("-", &self.removed), ("~", &self.changed)];
        let words: Vec<String> = marked
            .into_iter()
            .flat_map(|(mark, names)| names.iter().map(move |name| format!("{mark} {name}")))
            .collect();
        f.write_str(&words.join(", "))
    }
}

impl Launch {
    /// Goes over to a checked configuration. One at a time: the caller sees to it.
    pub async fn reload(
        &self,
        models: &[ModelConfig],
        config: &PoolConfig,
        progress: Arc<dyn Progress>,
    ) -> Result<Change> {
        let before = self.planned().clone();
        let mut planned: Vec<Planned> = Vec::with_capacity(models.len());
        let mut fresh: Vec<Planned> = Vec::new();
        for model in models {
            match before.iter().find(|known| known.config == *model) {
                Some(known) => planned.push(known.clone()),
                None => {
                    let made = plan_model(model, &self.metrics)?;
                    fresh.push(made.clone());
                    planned.push(made);
                }
            }
        }
        let known = self.workers().members.clone();
        let workers = workers::plan(config, &known);
        let loaded = self.prepared(config, &planned, (&fresh, &workers), progress).await;
        let table = match loaded {
            Ok(table) => table,
            Err(error) => {
                for made in fresh {
                    stop_one(made.member, Duration::ZERO).await;
                }
                return Err(error);
            }
        };
        let old = self.pool.table();
        let change = Change::between(&old, &table);
        self.pool.replace(table);
        *self.planned() = planned.clone();
        self.workers().exchange(workers, &old.nodes, &self.metrics);
        for gone in
            before.into_iter().filter(|gone| !planned.iter().any(|kept| Arc::ptr_eq(&kept.member, &gone.member)))
        {
            let name = gone.member.card().id.clone();
            let node =
                old.nodes.iter().find(|node| std::ptr::addr_eq(Arc::as_ptr(&node.member), Arc::as_ptr(&gone.member)));
            tokio::spawn(unload(name, node.cloned(), gone));
        }
        Ok(change)
    }

    async fn prepared(
        &self,
        config: &PoolConfig,
        planned: &[Planned],
        (fresh, workers): (&[Planned], &[Arc<WorkerMember>]),
        progress: Arc<dyn Progress>,
    ) -> Result<Table> {
        let known = self.pool.table().nodes.clone();
        for worker in workers {
            workers::check_user(&worker.config().spec)?;
        }
        let parts = pool::Parts { client: &self.client, metrics: &self.metrics, planned, workers, known: &known };
        let table = pool::table(config, &parts)?;
        for made in fresh {
            load_one(made, Arc::clone(&progress)).await?;
        }
        Ok(table)
    }
}

/// Ends what runs, then gives memory back.
async fn unload(name: String, node: Option<Arc<Node>>, gone: Planned) {
    while node.as_ref().is_some_and(|node| node.admission.is_busy()) {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    stop_one(gone.member, Duration::ZERO).await;
    tracing::info!(model = %name, "a model that is not served any more was unloaded");
}
