//! What the pool is told of a request beside the request: who asks, where it may go, and where to note what became of it.

use std::sync::{Arc, Mutex, PoisonError};

use sconce_otel::Parent;
use sconce_route::{Nanos, Stay};

use crate::config::pool::Budget;

/// The rules of the caller's key, and those that came with the request.
#[derive(Debug, Clone, Default)]
pub struct Errand {
    /// The key's name, for the ledger.
    pub key: String,
    /// Of the key and the request together; the route's own comes on top.
    pub stay: Stay,
    /// Members that the key may use; `None` allows all.
    pub members: Option<Arc<[String]>>,
    /// Of the key.
    pub budget: Budget,
    pub trace: Trace,
    /// Nobody waits for it: charged as a batch.
    pub is_batch: bool,
}

/// What is known so far of who answers, shared between who dispatches and who tells the client.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    // Taken a handful of times a request, never a token.
    traced: Arc<Mutex<Traced>>,
    /// The request's span, where there is one: attempts at members elsewhere are below it.
    parent: Option<Arc<Parent>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traced {
    /// Who answers, or who failed last.
    pub member: Option<String>,
    /// Why this member, in one word.
    pub reason: &'static str,
    pub attempts: u32,
    /// Of all attempts that have ended.
    pub cost: Nanos,
    /// An attempt has ended of which the price is not known: the cost is not known either.
    pub is_cost_unknown: bool,
    /// Every attempt has ended.
    pub has_ended: bool,
    /// A soft limit of a budget has been passed.
    pub budget_warning: Option<String>,
}

impl Traced {
    /// The cost, once it is known.
    pub fn known_cost(&self) -> Option<Nanos> {
        (self.has_ended && !self.is_cost_unknown).then_some(self.cost)
    }
}

impl Trace {
    /// Of a request that is a span itself.
    pub fn below(parent: Parent) -> Self {
        Self { parent: Some(Arc::new(parent)), ..Self::default() }
    }

    pub fn parent(&self) -> Option<&Parent> {
        self.parent.as_deref()
    }

    pub fn get(&self) -> Traced {
        self.traced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn change(&self, change: impl FnOnce(&mut Traced)) {
        change(&mut self.traced.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Another attempt, at this member.
    pub fn attempt(&self, member: &str, reason: &'static str) {
        self.change(|traced| {
            traced.member = Some(member.to_owned());
            traced.reason = reason;
            traced.attempts += 1;
            traced.has_ended = false;
        });
    }

    /// Of several members that were asked at once, this one answers.
    pub fn answers(&self, member: &str, reason: &'static str) {
        self.change(|traced| {
            if traced.member.as_deref() != Some(member) {
                traced.member = Some(member.to_owned());
            }
            traced.reason = reason;
        });
    }

    /// An attempt has ended.
    pub fn cost(&self, cost: Option<Nanos>) {
        self.change(|traced| match cost {
            Some(cost) => traced.cost += cost,
            None => traced.is_cost_unknown = true,
        });
    }

    pub fn ended(&self) {
        self.change(|traced| traced.has_ended = true);
    }
}
