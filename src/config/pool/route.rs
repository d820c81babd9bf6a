//! One `[[route]]`, checked: its members exist, and every option means something to its policy.

use std::path::PathBuf;
use std::time::Duration;

use sconce_route::{Nanos, Policy, Rule, Stay};

use super::place::hint;
use super::section::{RouteMemberSection, RouteMemberTable, RouteSection};
use super::{Budget, check_name, dollars, permille, seconds, stay, unit};

/// A name that clients use, over several members.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteConfig {
    pub name: String,
    pub aliases: Vec<String>,
    pub policy: Policy,
    /// `score`: what was fitted to the operator's own outcomes.
    pub fitted: Option<PathBuf>,
    pub members: Vec<RouteMember>,
    pub stay: Stay,
    /// Of a request with all its attempts.
    pub deadline: Option<Duration>,
    pub attempts_max: u32,
    pub cost_max: Option<Nanos>,
    pub hedge_after: Option<Duration>,
    pub shadow: Option<Shadow>,
    pub budget: Budget,
}

impl RouteConfig {
    pub fn answers_to(&self, model: &str) -> bool {
        self.name == model || self.aliases.iter().any(|alias| alias == model)
    }
}

/// A member's part in a route.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteMember {
    pub name: String,
    pub weight: u32,
    pub priority: u32,
    pub tier: u32,
    /// On trial: this share of requests goes to it, and no other.
    pub canary: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    pub member: String,
    pub share_permille: u32,
    /// Where both answers are written down.
    pub answers: Option<PathBuf>,
}

pub const ATTEMPTS_MAX_DEFAULT: u32 = 3;
const ATTEMPTS_MAX_MOST: u32 = 10;
/// Between the two tiers that most routes have: the harder half of prompts goes to the stronger.
const THRESHOLDS_DEFAULT: [f64; 1] = [0.5];
/// A cascade that shows an answer before it is whole has seen this much of it.
const SPECULATIVE_TOKENS: u32 = 16;
const POLICIES: [&str; 6] = ["priority", "weighted", "least_wait", "cheapest", "cascade", "score"];

pub fn checked(section: &RouteSection, known: &[&str]) -> Result<RouteConfig, String> {
    check_name(&section.name)?;
    section.aliases.iter().try_for_each(|alias| check_name(alias).map_err(|why| format!("alias '{alias}': {why}")))?;
    let policy = policy(section)?;
    let is_alone = section.members.len() == 1;
    let members = section.members.iter().map(|member| route_member(member, is_alone, &policy));
    let members: Vec<RouteMember> = members.collect::<Result<_, _>>()?;
    if members.is_empty() {
        return Err("members is empty; name at least one".to_owned());
    }
    for (at, member) in members.iter().enumerate() {
        check_known(&member.name, known)?;
        if members[..at].iter().any(|other| other.name == member.name) {
            return Err(format!("the member '{}' is named twice", member.name));
        }
    }
    if is_tiered(&policy) && members.iter().all(|member| member.tier == members[0].tier) {
        return Err(format!("policy {} needs members of at least two tiers", policy.rule.word()));
    }
    let attempts_max = section.attempts_max.unwrap_or(ATTEMPTS_MAX_DEFAULT);
    if !(1..=ATTEMPTS_MAX_MOST).contains(&attempts_max) {
        return Err(format!("attempts_max is {attempts_max}; it goes from 1 to {ATTEMPTS_MAX_MOST}"));
    }
    Ok(RouteConfig {
        name: section.name.clone(),
        aliases: section.aliases.clone(),
        shadow: shadow(section, known)?,
        policy,
        fitted: section.fitted.clone(),
        members,
        stay: stay(section.stay.as_ref())?,
        deadline: section.deadline_s.map(|value| seconds("deadline_s", value)).transpose()?,
        attempts_max,
        cost_max: section.cost_max_usd.map(|usd| dollars("cost_max_usd", usd)).transpose()?,
        hedge_after: section.hedge_after_ms.map(|ms| Duration::from_millis(ms.into())),
        budget: Budget::from_section(section.budget.as_ref())?,
    })
}

fn policy(section: &RouteSection) -> Result<Policy, String> {
    let word = section.policy.as_deref().unwrap_or("priority");
    let options = [
        ("confidence", section.confidence.is_some(), "cascade"),
        ("speculative", section.speculative.is_some(), "cascade"),
        ("thresholds", section.thresholds.is_some(), "score"),
        ("fitted", section.fitted.is_some(), "score"),
    ];
    if !POLICIES.contains(&word) {
        return Err(format!("policy '{word}' is not known{}", hint(word, POLICIES)));
    }
    if let Some((key, _, of)) = options.iter().find(|(_, is_set, of)| *is_set && *of != word) {
        return Err(format!("{key} means nothing to policy {word}, only to {of}; leave it out"));
    }
    if word == "cascade" && section.hedge_after_ms.is_some() {
        return Err("hedge_after_ms means nothing to policy cascade; leave it out".to_owned());
    }
    let rule = match word {
        "weighted" => Rule::Weighted,
        "least_wait" => Rule::LeastWait,
        "cheapest" => Rule::Cheapest,
        "cascade" => {
            let mut confidence = section.confidence.clone().unwrap_or_default();
            if section.speculative == Some(true) {
                confidence.prefix_tokens.get_or_insert(SPECULATIVE_TOKENS);
            }
            Rule::Cascade { confidence }
        }
        "score" => {
            Rule::Score { thresholds: section.thresholds.clone().unwrap_or_else(|| THRESHOLDS_DEFAULT.to_vec()) }
        }
        _ => Rule::Priority,
    };
    let policy = Policy { rule, spill_wait_ms: section.spill_wait_ms };
    policy.check()?;
    Ok(policy)
}

fn is_tiered(policy: &Policy) -> bool {
    matches!(policy.rule, Rule::Cascade { .. } | Rule::Score { .. })
}

/// The order of members in the file means nothing, so where a policy needs one it must be given as numbers.
fn route_member(section: &RouteMemberSection, is_alone: bool, policy: &Policy) -> Result<RouteMember, String> {
    let table = match section {
        RouteMemberSection::Name(name) => &RouteMemberTable { name: name.clone(), ..RouteMemberTable::default() },
        RouteMemberSection::Table(table) => table,
    };
    let shares = matches!(policy.rule, Rule::Priority | Rule::Weighted);
    let means = [
        ("weight", table.weight.is_some(), shares, "weighted and priority"),
        ("priority", table.priority.is_some(), policy.rule == Rule::Priority, "priority"),
        ("tier", table.tier.is_some(), is_tiered(policy), "cascade and score"),
    ];
    if let Some((key, _, _, of)) = means.iter().find(|(_, is_set, means, _)| *is_set && !means) {
        return Err(format!("member '{}': {key} means nothing to this policy, only to {of}; leave it out", table.name));
    }
    let missing = match policy {
        Policy { rule: Rule::Priority, .. } if table.priority.is_none() => Some("priority"),
        policy if is_tiered(policy) && table.tier.is_none() => Some("tier"),
        _ => None,
    };
    if let Some(key) = missing.filter(|_| !is_alone) {
        let name = &table.name;
        return Err(format!(
            "member '{name}' has no {key}; the order of members means nothing, write {{ name = \"{name}\", {key} = 1 }}"
        ));
    }
    Ok(RouteMember {
        name: table.name.clone(),
        weight: table.weight.unwrap_or(1),
        priority: table.priority.unwrap_or(0),
        tier: table.tier.unwrap_or(0),
        canary: table.canary.map(|share| unit("canary", share)).transpose()?,
    })
}

fn shadow(section: &RouteSection, known: &[&str]) -> Result<Option<Shadow>, String> {
    let Some(shadow) = &section.shadow else { return Ok(None) };
    check_known(&shadow.member, known)?;
    let share_permille = permille("shadow.share", shadow.share)?;
    Ok(Some(Shadow { member: shadow.member.clone(), share_permille, answers: shadow.answers.clone() }))
}

fn check_known(name: &str, known: &[&str]) -> Result<(), String> {
    if known.contains(&name) {
        return Ok(());
    }
    Err(format!("the member '{name}' does not exist{}", hint(name, known.iter().copied())))
}
