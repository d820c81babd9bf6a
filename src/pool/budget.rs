//! What keys and routes have spent and may spend, by day and by month (UTC).
//!
//! A hard limit is checked before anything is sent; while a request runs its estimate is held back, so that many requests
//! at once do not overrun it together. Sums outlive the process in the ledger.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sconce_route::Nanos;

use crate::calendar::{date_of, month_start};
use crate::config::pool::{Budget, BudgetLimit};
use crate::error::{Error, ErrorKind, Result};
use crate::store::ledger::Spent;

/// Whose money it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Payer {
    Key(String),
    Route(String),
}

impl std::fmt::Display for Payer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(name) => write!(f, "key '{name}'"),
            Self::Route(name) => write!(f, "route '{name}'"),
        }
    }
}

/// All sums of the current day and month.
#[derive(Default)]
pub struct Budgets {
    // Taken twice an attempt, never a token.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    day: u32,
    payers: HashMap<Payer, Sums>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    day: Nanos,
    month: Nanos,
    /// Estimates of what runs.
    held: Nanos,
}

/// What may still be spent, and what has been overdrawn softly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowance {
    /// `None` where nothing is limited.
    pub left: Option<Nanos>,
    pub warning: Option<String>,
}

/// Money that is held back while an attempt runs; dropping it lets it go.
pub struct Hold {
    budgets: Arc<Budgets>,
    payers: Vec<Payer>,
    amount: Nanos,
}

impl Budgets {
    /// With what the ledger knows of this month.
    pub fn new(today: u32, spent: &[Spent]) -> Self {
        let budgets = Self::default();
        {
            let mut state = budgets.lock(today);
            for row in spent.iter().filter(|row| row.day >= month_start(today) && row.day <= today) {
                for payer in [Payer::Key(row.key.clone()), Payer::Route(row.route.clone())] {
                    let sums = state.payers.entry(payer).or_default();
                    sums.month += Nanos(row.cost_nano_usd);
                    if row.day == today {
                        sums.day += Nanos(row.cost_nano_usd);
                    }
                }
            }
        }
        budgets
    }

    /// What these payers may still spend, or the refusal that names the limit.
    pub fn allowance(&self, today: u32, payers: &[(Payer, Budget)]) -> Result<Allowance> {
        let mut allowance = Allowance::default();
        if payers.iter().all(|(_, budget)| budget.is_none()) {
            return Ok(allowance);
        }
        let state = self.lock(today);
        for (payer, budget) in payers {
            let sums = state.payers.get(payer).copied().unwrap_or_default();
            for (limit, spent, period) in [(budget.day, sums.day, "day"), (budget.month, sums.month, "month")] {
                check(&mut allowance, payer, limit, (spent, sums.held, period), today)?;
            }
        }
        Ok(allowance)
    }

    /// Holds back what an attempt is expected to cost.
    pub fn hold(self: &Arc<Self>, today: u32, payers: Vec<Payer>, amount: Nanos) -> Hold {
        let mut state = self.lock(today);
        for payer in &payers {
            state.payers.entry(payer.clone()).or_default().held += amount;
        }
        drop(state);
        Hold { budgets: Arc::clone(self), payers, amount }
    }

    /// An attempt has cost this.
    pub fn spend(&self, today: u32, payers: &[Payer], cost: Nanos) {
        let mut state = self.lock(today);
        for payer in payers {
            let sums = state.payers.entry(payer.clone()).or_default();
            sums.day += cost;
            sums.month += cost;
        }
    }

    fn lock(&self, today: u32) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if today > state.day {
            let is_new_month = month_start(today) > state.day;
            for sums in state.payers.values_mut() {
                sums.day = Nanos::ZERO;
                if is_new_month {
                    sums.month = Nanos::ZERO;
                }
            }
            state.day = today;
        }
        state
    }
}

fn check(
    allowance: &mut Allowance,
    payer: &Payer,
    limit: BudgetLimit,
    (spent, held, period): (Nanos, Nanos, &str),
    today: u32,
) -> Result<()> {
    if let Some(hard) = limit.hard {
        let left = hard.saturating_sub(spent + held);
        if left == Nanos::ZERO {
            let message = format!(
                "the {payer} may spend {hard} a {period} and has spent {spent} by {} (UTC); raise the budget or wait \
                 for the next {period}",
                date_of(today)
            );
            return Err(Error::new(ErrorKind::RateLimited, message).with_code("budget_exceeded"));
        }
        allowance.left = Some(allowance.left.map_or(left, |other| other.min(left)));
    }
    if let Some(soft) = limit.soft.filter(|soft| spent >= *soft) {
        allowance.warning.get_or_insert_with(|| format!("{payer}: {spent} of {soft} a {period}"));
    }
    Ok(())
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.budgets.state.lock().unwrap_or_else(PoisonError::into_inner);
        for payer in &self.payers {
            if let Some(sums) = state.payers.get_mut(payer) {
                sums.held = sums.held.saturating_sub(self.amount);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: u32 = 20_779;

    fn payers(day: BudgetLimit, month: BudgetLimit) -> Vec<(Payer, Budget)> {
        vec![(Payer::Key("ann".into()), Budget { day, month })]
    }

    fn limit(soft: Option<u64>, hard: Option<u64>) -> BudgetLimit {
        BudgetLimit { soft: soft.map(Nanos), hard: hard.map(Nanos) }
    }

    fn spent(day: u32, nano: u64) -> Spent {
        Spent { day, key: "ann".into(), route: "r".into(), cost_nano_usd: nano }
    }

    #[test]
    fn what_was_spent_before_a_restart_counts() {
        let spent = [spent(TODAY, 30), spent(TODAY - 1, 40), spent(month_start(TODAY) - 1, 1000)];
        let budgets = Budgets::new(TODAY, &spent);
        let allowed = |day, month| budgets.allowance(TODAY, &payers(day, month));
        assert_eq!(allowed(limit(None, Some(50)), limit(None, None)).expect("20 left").left, Some(Nanos(20)));
        assert_eq!(allowed(limit(None, Some(50)), limit(None, Some(75))).expect("5 left").left, Some(Nanos(5)));
        let refused = allowed(limit(None, None), limit(None, Some(70))).expect_err("all spent");
        assert_eq!((refused.kind, refused.code), (ErrorKind::RateLimited, Some("budget_exceeded")));
        assert!(refused.message.contains("'ann'") && refused.message.contains("month"), "{}", refused.message);
        assert_eq!(allowed(limit(Some(50), None), limit(None, None)).expect("soft").warning, None);
        assert!(allowed(limit(Some(30), None), limit(None, None)).expect("soft").warning.is_some());
    }

    #[test]
    fn what_runs_is_held_back_and_given_back() {
        let budgets = Arc::new(Budgets::new(TODAY, &[]));
        let payers = payers(limit(None, Some(100)), limit(None, None));
        let key = vec![payers[0].0.clone()];
        let holds = [60, 40].map(|amount| budgets.hold(TODAY, key.clone(), Nanos(amount)));
        assert!(budgets.allowance(TODAY, &payers).is_err(), "all of it is held back");
        drop(holds);
        budgets.spend(TODAY, &key, Nanos(25));
        assert_eq!(budgets.allowance(TODAY, &payers).expect("75 left").left, Some(Nanos(75)));
        assert_eq!(budgets.allowance(TODAY + 1, &payers).expect("a new day").left, Some(Nanos(100)));
    }

    #[test]
    fn a_new_month_begins_with_nothing_spent() {
        let budgets = Budgets::new(TODAY, &[spent(TODAY, 70)]);
        let payers = payers(limit(None, None), limit(None, Some(100)));
        assert_eq!(budgets.allowance(TODAY + 1, &payers).expect("30 left").left, Some(Nanos(30)));
        let next_month = month_start(TODAY + 31);
        assert_eq!(budgets.allowance(next_month, &payers).expect("new").left, Some(Nanos(100)));
    }
}
