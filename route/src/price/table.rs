//! The price list: a dated TOML file that people edit, and the one that is built in.
//!
//! Every entry names its source and the day on which it was read there. What is not in the list has no known price.

use serde::{Deserialize, Serialize};

use crate::price::{Pricing, TokenPrice};

const BUILTIN: &str = include_str!("builtin.toml");

/// Prices by provider and model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceTable {
    /// The day on which the list as a whole was last looked through, `YYYY-MM-DD`.
    pub as_of: String,
    #[serde(default, rename = "price")]
    pub entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// As in a member's `kind`: `openai`, `anthropic`, `bedrock`, `azure`, `gemini`, `mistral`, …
    pub provider: String,
    /// The model's name there. A date at the end of the name that is asked for is ignored (`-2024-07-18`, `-20240718`).
    pub model: String,
    /// The day on which the price was read, `YYYY-MM-DD`.
    pub as_of: String,
    /// Where it was read.
    pub source: String,
    pub usd_per_million: TokenPrice,
}

impl PriceTable {
    /// The list that comes with this version.
    pub fn builtin() -> Self {
        Self::parse(BUILTIN).expect("the built-in price list is checked by a test")
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let table: Self = toml::from_str(text).map_err(|fault| super::toml_fault(text, &fault))?;
        check_day(&table.as_of).map_err(|fault| format!("as_of: {fault}"))?;
        for (at, entry) in table.entries.iter().enumerate() {
            let place = format!("price[{at}] ({} {})", entry.provider, entry.model);
            check_day(&entry.as_of).map_err(|fault| format!("{place}: as_of: {fault}"))?;
            let is_twin = |other: &Entry| other.provider == entry.provider && other.model == entry.model;
            if table.entries[..at].iter().any(is_twin) {
                return Err(format!("{place}: is there twice; remove one"));
            }
            if entry.usd_per_million.batch_percent.is_some_and(|percent| percent > 100) {
                return Err(format!("{place}: batch_percent: must be from 0 to 100"));
            }
        }
        Ok(table)
    }

    /// Entries of `other` replace those of the same provider and model.
    #[must_use]
    pub fn overlaid(mut self, other: Self) -> Self {
        self.entries.retain(|entry| other.find(&entry.provider, &entry.model).is_none());
        self.entries.extend(other.entries);
        self.as_of = other.as_of;
        self
    }

    /// What is charged for a model, [`Pricing::Unknown`] where the list does not say.
    pub fn pricing(&self, provider: &str, model: &str) -> Pricing {
        let entry = self.find(provider, model).or_else(|| self.find(provider, without_date(model)));
        entry.map_or(Pricing::Unknown, |entry| Pricing::Tokens(entry.usd_per_million.clone()))
    }

    /// The entry of exactly this name.
    pub fn find(&self, provider: &str, model: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.provider == provider && entry.model == model)
    }
}

pub(super) fn check_day(day: &str) -> Result<(), String> {
    let mut parts = day.split('-');
    let mut number =
        |digits: usize| parts.next().filter(|part| part.len() == digits).and_then(|part| part.parse::<u32>().ok());
    let (year, month, date) = (number(4), number(2), number(2));
    let is_day =
        year.is_some() && month.is_some_and(|m| (1..=12).contains(&m)) && date.is_some_and(|d| (1..=31).contains(&d));
    if is_day && parts.next().is_none() { Ok(()) } else { Err(format!("'{day}' is no day; write it as YYYY-MM-DD")) }
}

/// `gpt-4o-2024-08-06` and `claude-sonnet-4-20250514` without their dates; other names as they are.
fn without_date(model: &str) -> &str {
    let is_date = |tail: &str| match tail.len() {
        11 => tail.starts_with('-') && check_day(&tail[1..]).is_ok(),
        9 => tail.starts_with("-20") && tail[1..].bytes().all(|byte| byte.is_ascii_digit()),
        _ => false,
    };
    for length in [11, 9] {
        let parts = model.len().checked_sub(length).and_then(|at| model.split_at_checked(at));
        if let Some((name, _)) = parts.filter(|(_, tail)| is_date(tail)) {
            return name;
        }
    }
    model
}
