//! Why a member stands where it stands, or is left out: one word for a header, one sentence for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::facts::Need;
use crate::price::Nanos;

/// Why a candidate has its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
pub enum Reason {
    /// The only member that passed the filters.
    Only,
    /// First by priority.
    Priority {
        priority: u32,
    },
    /// Drawn by weight.
    Weighted {
        weight: u32,
    },
    /// Shortest predicted time to the first token.
    LeastWait {
        wait_ms: u64,
    },
    /// Nothing is measured yet, and nothing else is running there.
    Unmeasured,
    Cheapest {
        cost: Nanos,
    },
    /// The lowest tier of a cascade.
    Tier {
        tier: u32,
    },
    /// A higher tier of a cascade: asked when the tier below is not sure enough.
    Escalation {
        tier: u32,
    },
    /// The difficulty is below the first threshold.
    Easy {
        difficulty: f64,
    },
    /// The difficulty is above a threshold.
    Hard {
        difficulty: f64,
    },
    /// No difficulty is known, so the strongest tier comes first.
    DifficultyUnknown,
    /// No member of the tier that the difficulty asks for can be asked.
    TierUnavailable {
        wanted: u32,
        tier: u32,
    },
    /// First because the members that the rule prefers would let it wait too long.
    Spill {
        wait_ms: u64,
        preferred_wait_ms: u64,
    },
    /// Last because it would let the request wait longer than `spill_wait_ms`.
    Busy {
        wait_ms: u64,
    },
    /// Drawn into the share of a canary.
    Canary {
        share: f64,
    },
    /// Asked if the ones before it fail.
    Fallback,
}

impl Reason {
    /// For `x-sconce-reason` and the decision log.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::Priority { .. } => "priority",
            Self::Weighted { .. } => "weighted",
            Self::LeastWait { .. } => "least_wait",
            Self::Unmeasured => "unmeasured",
            Self::Cheapest { .. } => "cheapest",
            Self::Tier { .. } => "tier",
            Self::Escalation { .. } => "escalation",
            Self::Easy { .. } => "easy",
            Self::Hard { .. } => "hard",
            Self::DifficultyUnknown => "difficulty_unknown",
            Self::TierUnavailable { .. } => "tier_unavailable",
            Self::Spill { .. } => "spill",
            Self::Busy { .. } => "busy",
            Self::Canary { .. } => "canary",
            Self::Fallback => "fallback",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only => f.write_str("the only member that can answer this"),
            Self::Priority { priority } => write!(f, "first by priority ({priority})"),
            Self::Weighted { weight } => write!(f, "drawn by weight ({weight})"),
            Self::LeastWait { wait_ms } => write!(f, "shortest predicted wait ({wait_ms} ms)"),
            Self::Unmeasured => f.write_str("not measured yet and idle, so it is tried"),
            Self::Cheapest { cost } => write!(f, "cheapest by estimate ({cost})"),
            Self::Tier { tier } => write!(f, "lowest tier of the cascade ({tier})"),
            Self::Escalation { tier } => {
                write!(f, "tier {tier} of the cascade, if the answer before is not sure enough")
            }
            Self::Easy { difficulty } => write!(f, "difficulty {difficulty:.2} needs no stronger tier"),
            Self::Hard { difficulty } => write!(f, "difficulty {difficulty:.2} asks for this tier"),
            Self::DifficultyUnknown => f.write_str("the difficulty is unknown, so the strongest tier comes first"),
            Self::TierUnavailable { wanted, tier } => {
                write!(f, "the difficulty asks for tier {wanted}, of which no member can be asked; this is tier {tier}")
            }
            Self::Spill { wait_ms, preferred_wait_ms } => {
                write!(f, "the preferred member would wait {preferred_wait_ms} ms, this one {wait_ms} ms")
            }
            Self::Busy { wait_ms } => write!(f, "would wait {wait_ms} ms, longer than spill_wait_ms"),
            Self::Canary { share } => write!(f, "drawn into the canary's share ({share})"),
            Self::Fallback => f.write_str("asked if the members before it fail"),
        }
    }
}

/// Why a member is not asked at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
pub enum Exclusion {
    /// The key may not use it.
    NotAllowed,
    /// Its place is not among those that the request may go to.
    Residency { stay: String },
    /// Its place is not declared, and the request may not go everywhere.
    ResidencyUnknown,
    /// It lacks a capability.
    Incapable { need: Need },
    /// Prompt and answer do not fit into its context.
    ContextTooShort { needs_tokens: u64, has_tokens: u32 },
    /// It does not write answers as long as asked for.
    OutputTooShort { needs_tokens: u32, has_tokens: u32 },
    /// The caller ruled it out.
    Refused { why: String },
    /// Its weight is 0.
    Drained,
    /// It failed too often; asked again after a pause.
    CircuitOpen { retry_after_ms: u64 },
    /// It failed too often and is being probed by another request.
    Probing,
    /// It said when it can be asked again.
    RateLimited { retry_after_ms: u64 },
    /// The predicted wait is longer than what is left of the deadline.
    Deadline { wait_ms: u64, left_ms: u64 },
    /// The answer could cost more than what may still be spent.
    Budget { cost: Nanos, left: Nanos },
    /// Its price is not known, and the rule or a budget needs it.
    PriceUnknown,
    /// On trial, and the request is not in its share.
    NotInCanary { share: f64 },
}

/// About as long as a probe takes until it knows.
const PROBE_MS: u64 = 200;

impl Exclusion {
    /// For `x-sconce-reason` and the decision log.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::Residency { .. } => "residency",
            Self::ResidencyUnknown => "residency_unknown",
            Self::Incapable { .. } => "incapable",
            Self::ContextTooShort { .. } => "context_too_short",
            Self::OutputTooShort { .. } => "output_too_short",
            Self::Refused { .. } => "refused",
            Self::Drained => "drained",
            Self::CircuitOpen { .. } => "circuit_open",
            Self::Probing => "probing",
            Self::RateLimited { .. } => "rate_limited",
            Self::Deadline { .. } => "deadline",
            Self::Budget { .. } => "budget",
            Self::PriceUnknown => "price_unknown",
            Self::NotInCanary { .. } => "not_in_canary",
        }
    }

    /// After what time the same request may be admitted there, where time alone can change it.
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::CircuitOpen { retry_after_ms } | Self::RateLimited { retry_after_ms } => Some(*retry_after_ms),
            Self::Probing => Some(PROBE_MS),
            _ => None,
        }
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllowed => f.write_str("the key may not use it"),
            Self::Residency { stay } => write!(f, "the request may only go to: {stay}"),
            Self::ResidencyUnknown => f.write_str("its region is not declared and the request may not go everywhere"),
            Self::Incapable { need } => write!(f, "it has no {need}"),
            Self::ContextTooShort { needs_tokens, has_tokens } => {
                write!(f, "prompt and answer take {needs_tokens} tokens, its context has {has_tokens}")
            }
            Self::OutputTooShort { needs_tokens, has_tokens } => {
                write!(f, "an answer of {needs_tokens} tokens is asked for, it writes at most {has_tokens}")
            }
            Self::Refused { why } => f.write_str(why),
            Self::Drained => f.write_str("its weight is 0"),
            Self::CircuitOpen { retry_after_ms } => {
                write!(f, "it failed too often and is asked again in {retry_after_ms} ms")
            }
            Self::Probing => f.write_str("it failed too often and another request is probing it"),
            Self::RateLimited { retry_after_ms } => {
                write!(f, "it asked for no requests for another {retry_after_ms} ms")
            }
            Self::Deadline { wait_ms, left_ms } => {
                write!(f, "the predicted wait of {wait_ms} ms is over the deadline, {left_ms} ms away")
            }
            Self::Budget { cost, left } => write!(f, "it could cost {cost}, and {left} may still be spent"),
            Self::PriceUnknown => f.write_str("its price is not known; declare it, or measure it for an own machine"),
            Self::NotInCanary { share } => write!(f, "on trial for a share of {share}, and this request is not in it"),
        }
    }
}
