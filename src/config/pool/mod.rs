//! The pool, checked: members, routes, what may be spent, where it is written down.
//!
//! Every fault names its line and the table it is in. An option that its policy or kind would ignore is refused.

mod member;
mod place;
mod route;
mod section;
#[cfg(test)]
mod tests;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use sconce_route::{Nanos, Stay};

use super::StorePlace;
use super::secret::SecretSource;
use crate::error::{Error, Result};

pub use member::{AwsRole, Capabilities, MemberConfig, MemberKind, MemberTask, RemoteConfig, Secrets};
pub use route::{RouteConfig, RouteMember, Shadow};
pub use section::{
    BudgetSection, LedgerSection, MemberSection, PoolSections, PricesSection, RouteSection, StaySection,
};
pub use worker::WorkerConfig;

pub(super) use place::hint;

use place::Lines;

/// Everything of `sconce.toml` that the pool needs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolConfig {
    pub members: Vec<MemberConfig>,
    /// Names in the file that stand for several members.
    pub replicas: Vec<(String, Vec<String>)>,
    pub routes: Vec<RouteConfig>,
    pub prices: Option<PathBuf>,
    pub ledger: LedgerConfig,
    /// What the models of this server may take together.
    pub models_memory_bytes: Option<u64>,
    /// Host memory that models may take for sleeping, all together. `None`: half of what there is at the start.
    pub sleep_memory_bytes: Option<u64>,
    /// A step that runs longer is stuck.
    pub step_timeout: Option<Duration>,
}

/// Where requests are written down.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerConfig {
    pub file: StorePlace,
    pub entries_age_days: u32,
    pub decisions: Option<Decisions>,
}

/// A sampled log of routing decisions.
#[derive(Debug, Clone, PartialEq)]
pub struct Decisions {
    pub file: PathBuf,
    /// In thousandths.
    pub share_permille: u32,
}

impl PoolConfig {
    /// The members that a name in the file stands for.
    pub fn meant_by<'a>(&'a self, name: &'a str) -> Vec<&'a str> {
        match self.replicas.iter().find(|(known, _)| known == name) {
            Some((_, replicas)) => replicas.iter().map(String::as_str).collect(),
            None => vec![name],
        }
    }
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self { file: StorePlace::Off, entries_age_days: ENTRIES_AGE_DAYS_DEFAULT, decisions: None }
    }
}

pub const ENTRIES_AGE_DAYS_DEFAULT: u32 = 30;
/// The name of the ledger's file in the data folder.
pub const LEDGER_NAME: &str = "ledger.db";

/// Where a request may be worked on, as the file says it.
pub fn stay(section: Option<&StaySection>) -> Result<Stay, String> {
    match section {
        None => Ok(Stay::Anywhere),
        Some(StaySection::Word(word)) => Stay::parse(word),
        Some(StaySection::Regions(regions)) if regions.is_empty() => {
            Err("stay is an empty list; write \"local\" or name regions".to_owned())
        }
        Some(StaySection::Regions(regions)) => Stay::parse(&regions.join(",")),
    }
}

/// What may be spent in a day or a month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    pub day: BudgetLimit,
    pub month: BudgetLimit,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BudgetLimit {
    pub soft: Option<Nanos>,
    pub hard: Option<Nanos>,
}

impl Budget {
    pub fn from_section(section: Option<&BudgetSection>) -> Result<Self, String> {
        let Some(section) = section else { return Ok(Self::default()) };
        let limit = |period: &str, soft: Option<f64>, hard: Option<f64>| -> Result<BudgetLimit, String> {
            if let (Some(soft), Some(hard)) = (soft, hard)
                && soft > hard
            {
                return Err(format!("{period}_soft_usd is over {period}_hard_usd; the soft limit comes first"));
            }
            Ok(BudgetLimit {
                soft: soft.map(|usd| dollars(&format!("{period}_soft_usd"), usd)).transpose()?,
                hard: hard.map(|usd| dollars(&format!("{period}_hard_usd"), usd)).transpose()?,
            })
        };
        Ok(Self {
            day: limit("day", section.day_soft_usd, section.day_hard_usd)?,
            month: limit("month", section.month_soft_usd, section.month_hard_usd)?,
        })
    }

    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Checks all of it. `served` are the names of the models that this server loads itself.
pub fn checked(sections: &PoolSections, text: &str, served: &[String]) -> Result<PoolConfig> {
    let lines = Lines::new(text);
    let mut members: Vec<MemberConfig> = Vec::with_capacity(sections.members.len());
    let mut replicas: Vec<(String, Vec<String>)> = Vec::new();
    for section in &sections.members {
        let name = &section.get_ref().name;
        let place = lines.table(section.span().start, "member", name);
        let made = member::checked(section.get_ref()).map_err(|why| place.fault(&why))?;
        if made.len() > 1 {
            replicas.push((name.clone(), made.iter().map(|member| member.name.clone()).collect()));
        }
        for member in made {
            let is_taken = |name: &str| {
                members.iter().any(|other| other.name == name) || replicas.iter().any(|(other, _)| other == name)
            };
            if is_taken(&member.name) || members.iter().any(|other| other.name == *name && member.name != *name) {
                return Err(place.fault("another [[member]] has this name; give each its own"));
            }
            if served.contains(&member.name) && !member.kind.is_local_of(&member.name) {
                return Err(place.fault("a served model has this name; give the member another"));
            }
            if let Some(why) = worker::overlap(&members, &member) {
                return Err(place.fault(&why));
            }
            members.push(member);
        }
    }
    let names = replicas.iter().map(|(name, _)| name);
    let known: Vec<&str> = members.iter().map(|member| &member.name).chain(names).map(String::as_str).collect();
    let known: Vec<&str> = known.into_iter().chain(served.iter().map(String::as_str)).collect();
    let mut routes: Vec<RouteConfig> = Vec::with_capacity(sections.routes.len());
    for section in &sections.routes {
        let place = lines.table(section.span().start, "route", &section.get_ref().name);
        let route = route::checked(section.get_ref(), &known).map_err(|why| place.fault(&why))?;
        let route = worker::spread(route, &replicas).map_err(|why| place.fault(&why))?;
        let names = || std::iter::once(&route.name).chain(&route.aliases);
        if let Some(name) = names().find(|name| routes.iter().any(|other| other.answers_to(name))) {
            return Err(place.fault(&format!("another [[route]] answers to '{name}'; give each its own names")));
        }
        // A route may take over the name of the model it begins with, but of nothing else.
        let only_lends = |name: &str| route.members.iter().any(|member| member.name == name);
        if let Some(name) = names().find(|name| served.contains(name) && !only_lends(name)) {
            return Err(place.fault(&format!("a served model is called '{name}', and it is no member of this route")));
        }
        routes.push(route);
    }
    Ok(PoolConfig {
        members,
        replicas,
        routes,
        prices: sections.prices.file.clone(),
        ledger: ledger(&sections.ledger, !sections.members.is_empty())?,
        models_memory_bytes: None,
        sleep_memory_bytes: None,
        step_timeout: None,
    })
}

/// With members there is a ledger unless it is turned off; a server of local models only has one when asked.
fn ledger(section: &LedgerSection, has_members: bool) -> Result<LedgerConfig> {
    let file = match (&section.file, has_members) {
        (None, false) => StorePlace::Off,
        (file, _) => StorePlace::from_flag(file.as_deref(), LEDGER_NAME),
    };
    let fault = |why: String| Error::invalid("ledger", format!("[ledger]: {why}"));
    let decisions = match (&section.decisions, section.decisions_share) {
        (None, None) => None,
        (None, Some(_)) => return Err(fault("decisions_share needs decisions, the file to write".to_owned())),
        (Some(file), share) => {
            let share_permille = permille("decisions_share", share.unwrap_or(1.0)).map_err(fault)?;
            Some(Decisions { file: file.clone(), share_permille })
        }
    };
    let entries_age_days = section.entries_age_days.unwrap_or(ENTRIES_AGE_DAYS_DEFAULT);
    Ok(LedgerConfig { file, entries_age_days, decisions })
}

/// Of a share between 0 and 1.
fn permille(key: &str, share: f64) -> Result<u32, String> {
    if !(0.0..=1.0).contains(&share) {
        return Err(format!("{key} is {share}; it is a share from 0 to 1"));
    }
    Ok((share * 1000.0).round() as u32)
}

fn unit(key: &str, value: f64) -> Result<f64, String> {
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(format!("{key} is {value}; it goes from 0 to 1")) }
}

fn dollars(key: &str, usd: f64) -> Result<Nanos, String> {
    let money = Nanos::from_dollars(usd);
    money.ok_or_else(|| format!("{key} is {usd}; it is a sum in US dollars, 0 or more"))
}

fn seconds(key: &str, seconds: f64) -> Result<Duration, String> {
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err(format!("{key} is {seconds}; it goes from 0.001 to 86400 seconds"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Names are logged, sent as headers and written as labels.
fn check_name(name: &str) -> Result<(), String> {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@".contains(&byte);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(harmless) {
        return Err("a name has 1 to 128 letters, digits or the signs - _ . / : @".to_owned());
    }
    Ok(())
}
