//! A new configuration for a running pool, without a request that fails for it.
//!
//! Everything is made and loaded first; then one exchange of the table, which new requests find; then what is not needed
//! any more ends its requests and is stopped. What cannot be made leaves all as it was.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::workers::{self, Fresh};
use super::{Launch, Planned, loader, plan_model, pool, set_sleep_memory, stop_one, watch_steps};
use crate::config::ModelConfig;
use crate::config::pool::PoolConfig;
use crate::error::Result;
use crate::hub::Progress;
use crate::pool::{MemberState, Model, Node, Pool, Table};

/// How often it is looked whether anything still may ask a model that is not needed.
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
            match before.iter().find(|known| known.config.is_same_model(model)) {
                Some(known) => planned.push(Planned { config: model.clone(), ..known.clone() }),
                None => {
                    let made = plan_model(model, &self.metrics)?;
                    fresh.push(made.clone());
                    planned.push(made);
                }
            }
        }
        let memory_before = self.pool.lifecycle().memory_max_bytes();
        let workers = workers::plan(config, &self.workers().members);
        let made = Fresh { models: &fresh, workers: &workers };
        let loaded = self.prepared(config, &planned, (&before, made), progress).await;
        let table = match loaded {
            Ok(table) => table,
            Err(error) => {
                for made in fresh {
                    stop_one(made.member, Duration::ZERO).await;
                }
                self.pool.lifecycle().set(loader::managed(&before), memory_before);
                return Err(error);
            }
        };
        let old = self.pool.table();
        let change = Change::between(&old, &table);
        self.pool.replace(table);
        *self.planned() = planned.clone();
        self.workers().exchange(workers, &old.nodes, &self.metrics);
        let is_gone = |gone: &Planned| !planned.iter().any(|kept| Arc::ptr_eq(&kept.member, &gone.member));
        let gone: Vec<_> = before.into_iter().filter(is_gone).collect();
        // What is let finish takes memory until then.
        let all = loader::managed(&planned).into_iter().chain(loader::managed(&gone)).collect();
        self.pool.lifecycle().set(all, config.models_memory_bytes);
        if config.sleep_memory_bytes.is_some() {
            set_sleep_memory(self.pool.lifecycle(), config);
        }
        for gone in gone {
            let node =
                old.nodes.iter().find(|node| std::ptr::addr_eq(Arc::as_ptr(&node.member), Arc::as_ptr(&gone.member)));
            tokio::spawn(unload(Arc::clone(&self.pool), node.cloned(), gone));
        }
        Ok(change)
    }

    async fn prepared(
        &self,
        config: &PoolConfig,
        planned: &[Planned],
        (before, fresh): (&[Planned], Fresh<'_>),
        progress: Arc<dyn Progress>,
    ) -> Result<Table> {
        let known = self.pool.table().nodes.clone();
        let Fresh { models: fresh, workers } = fresh;
        workers.iter().try_for_each(|worker| workers::check_user(&worker.config().spec))?;
        let parts = pool::Parts { client: &self.client, metrics: &self.metrics, planned, workers, known: &known };
        let table = pool::table(config, &parts)?;
        watch_steps(planned, config);
        let same_name = |made: &Planned| {
            let names = made.member.card();
            before.iter().find(|known| known.member.card().id == names.id)
        };
        // Whoever is asked now must be there until the new one is.
        let mut all = loader::managed(before);
        for one in &mut all {
            one.policy.pinned |= fresh.iter().filter_map(same_name).any(|old| Arc::ptr_eq(&old.member, &one.member));
        }
        let lifecycle = self.pool.lifecycle();
        lifecycle.set(loader::managed(fresh).into_iter().chain(all).collect(), config.models_memory_bytes);
        for made in fresh {
            let was_loaded = same_name(made).is_some_and(|old| old.member.state() == MemberState::Ready);
            if !made.config.loading.on_demand || was_loaded {
                progress.note(&format!("loading {}", made.member.card().id));
                made.member.managed_by(Arc::downgrade(lifecycle), true);
                lifecycle.bring(loader::managed_one(made)).await?;
            }
        }
        Ok(table)
    }
}

/// Ends what runs, then gives memory back. A request that began with the table before may still be about to ask it.
async fn unload(pool: Arc<Pool>, node: Option<Arc<Node>>, gone: Planned) {
    while node.as_ref().is_some_and(|node| Arc::strong_count(node) > 1) {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    let name = gone.member.card().id.clone();
    stop_one(Arc::clone(&gone.member), Duration::ZERO).await;
    pool.lifecycle().forget(&gone.member);
    tracing::info!(model = %name, "a model that is not served any more was unloaded");
}
