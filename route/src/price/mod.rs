//! What answers cost: prices by token, the cost of an own machine by what was measured on it, and sums that are exact.
//!
//! Prices are whole pico-dollars a token and costs whole nano-dollars, so that a sum does not depend on its order. What
//! is not known is `None`, never 0.

pub mod instances;
pub mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

use sconce_vocabulary::request::Usage;
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use instances::InstanceTable;
pub use table::PriceTable;

/// One line for a fault that toml tells on several, with a drawing.
fn toml_fault(text: &str, fault: &toml::de::Error) -> String {
    let said = fault.message().replace('\n', "; ");
    match fault.span() {
        None => said,
        Some(span) => {
            let line = text.as_bytes()[..span.start.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
            format!("line {line}: {said}")
        }
    }
}

const PICO_PER_NANO: u128 = 1000;
const MS_PER_HOUR: u128 = 3_600_000;

/// Money in billionths of a dollar: a token of a small model costs about a hundred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nanos(pub u64);

impl Nanos {
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self(u64::MAX);

    /// From a file or a flag, where dollars are written as decimals. `None` for what is negative or not finite.
    pub fn from_dollars(dollars: f64) -> Option<Self> {
        let nanos = dollars * 1e9;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // in range, as checked
        (nanos.is_finite() && (0.0..1.8e19).contains(&nanos)).then(|| Self(nanos.round() as u64))
    }

    /// For people and for comparisons, never for sums.
    #[allow(clippy::cast_precision_loss)]
    pub fn dollars(self) -> f64 {
        self.0 as f64 / 1e9
    }

    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for Nanos {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Nanos {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Nanos {
    fn sum<I: Iterator<Item = Self>>(nanos: I) -> Self {
        nanos.fold(Self::ZERO, Add::add)
    }
}

/// Dollars with all nine decimals that are not zero: `$0.000123`.
impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        let decimals = format!("{rest:09}");
        let decimals = decimals.trim_end_matches('0');
        write!(f, "${whole}")?;
        if decimals.is_empty() { Ok(()) } else { write!(f, ".{decimals}") }
    }
}

/// A price of one token in trillionths of a dollar, which is the price of a million tokens in millionths of a dollar:
/// written and read as dollars a million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PerToken(pub u64);

impl PerToken {
    /// `None` for what is negative, not finite, over $1,000,000 or finer than a millionth of a dollar.
    pub fn from_dollars_a_million(dollars: f64) -> Option<Self> {
        let pico = dollars * 1e6;
        let is_whole = (pico - pico.round()).abs() < 1e-4;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // in range, as checked
        (is_whole && (0.0..=1e12).contains(&pico)).then(|| Self(pico.round() as u64))
    }

    #[allow(clippy::cast_precision_loss)] // at most 1e12
    pub fn dollars_a_million(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// In pico-dollars.
    fn times(self, tokens: u32) -> u128 {
        u128::from(self.0) * u128::from(tokens)
    }
}

impl Serialize for PerToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.dollars_a_million())
    }
}

impl<'de> Deserialize<'de> for PerToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let dollars = f64::deserialize(deserializer)?;
        let expected = "dollars a million tokens, from 0 to 1000000, with at most six decimals";
        Self::from_dollars_a_million(dollars)
            .ok_or_else(|| D::Error::invalid_value(Unexpected::Float(dollars), &expected))
    }
}

/// How a member's answers are charged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pricing {
    /// Nobody said, or nothing was measured yet.
    #[default]
    Unknown,
    /// By the token, as providers do.
    Tokens(TokenPrice),
    /// By the hour, as an own or rented machine.
    Machine(MachinePrice),
}

/// Dollars a million tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenPrice {
    pub input: PerToken,
    pub output: PerToken,
    /// Prompt tokens that the provider had in its cache; without it they cost what others cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<PerToken>,
    /// Prompt tokens that are put into the cache, where that is charged on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<PerToken>,
    /// What a batch costs of all this, in percent; without it, the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_percent: Option<u32>,
    /// Other prices for long prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long: Option<LongPrice>,
}

/// Prices of requests whose prompt is longer than `over_tokens`; they then hold for the whole request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongPrice {
    pub over_tokens: u32,
    pub input: PerToken,
    pub output: PerToken,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<PerToken>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<PerToken>,
}

/// An own machine: its hour, and the tokens that it was seen to make of an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachinePrice {
    pub hourly: Nanos,
    /// Tokens a second in thousandths, prompt and answer together and idle time included, as the caller measured them;
    /// 0 is a machine that was not measured, whose tokens have no known price.
    #[serde(default)]
    pub tokens_per_s_milli: u64,
}

/// What is to be paid for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Billed {
    pub usage: Usage,
    /// The part of the prompt that was put into the provider's cache; never also in `usage.cached_tokens`.
    pub cache_write_tokens: u32,
    pub batch: bool,
}

impl Pricing {
    /// `None` where no price is known.
    pub fn cost(&self, billed: &Billed) -> Option<Nanos> {
        match self {
            Self::Unknown => None,
            Self::Tokens(price) => Some(price.cost(billed)),
            Self::Machine(machine) => machine.cost(billed),
        }
    }

    /// What a request of these lengths is expected to cost, nothing of it cached.
    pub fn estimate(&self, prompt_tokens: u32, completion_tokens: u32, batch: bool) -> Option<Nanos> {
        let usage = Usage { prompt_tokens, completion_tokens, ..Usage::default() };
        self.cost(&Billed { usage, cache_write_tokens: 0, batch })
    }

    /// Whether there is a cost at all.
    pub fn is_known(&self) -> bool {
        match self {
            Self::Unknown => false,
            Self::Tokens(_) => true,
            Self::Machine(machine) => machine.tokens_per_s_milli > 0,
        }
    }
}

impl TokenPrice {
    fn cost(&self, billed: &Billed) -> Nanos {
        let usage = &billed.usage;
        let long = self.long.filter(|long| usage.prompt_tokens > long.over_tokens);
        let (input, output, cached_input, cache_write) = match long {
            Some(long) => (long.input, long.output, long.cached_input, long.cache_write),
            None => (self.input, self.output, self.cached_input, self.cache_write),
        };
        let cached = usage.cached_tokens.min(usage.prompt_tokens);
        let written = billed.cache_write_tokens.min(usage.prompt_tokens - cached);
        let plain = usage.prompt_tokens - cached - written;
        let pico = input.times(plain)
            + cached_input.unwrap_or(input).times(cached)
            + cache_write.unwrap_or(input).times(written)
            + output.times(usage.completion_tokens);
        let percent = if billed.batch { self.batch_percent.unwrap_or(100) } else { 100 };
        round(pico * u128::from(percent), 100 * PICO_PER_NANO)
    }
}

impl MachinePrice {
    /// The hour's price over the tokens of an hour, for each token that the machine worked on: not for cached ones.
    fn cost(&self, billed: &Billed) -> Option<Nanos> {
        let usage = &billed.usage;
        let worked = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        let tokens = u128::from(worked) + u128::from(usage.completion_tokens);
        let tokens_an_hour_milli = u128::from(self.tokens_per_s_milli) * (MS_PER_HOUR / 1000);
        (tokens_an_hour_milli > 0).then(|| round(u128::from(self.hourly.0) * tokens * 1000, tokens_an_hour_milli))
    }
}

/// To the nearest, halves up.
fn round(dividend: u128, divisor: u128) -> Nanos {
    Nanos(u64::try_from((dividend + divisor / 2) / divisor).unwrap_or(u64::MAX))
}
