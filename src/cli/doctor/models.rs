//! Each model that was asked about, all of them together, and the catalogue.

use serde::Serialize;

use crate::config::ModelConfig;
use crate::config::speculation::Speculation;
use crate::device::fit::human_bytes;
use crate::device::fit::roofline::Rates;
use crate::error::Result;
use crate::hub::catalogue::{self, Entry};
use crate::hub::{self, HubOptions, LocalModel, ModelRef};
use crate::launch::fit::{self, Asks, Forecast, Room};

/// A model that was asked about.
#[derive(Serialize)]
pub struct Checked {
    pub model: String,
    #[serde(flatten)]
    pub verdict: Verdict,
    #[serde(skip)]
    pub asks: Option<Asks>,
}

#[derive(Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    Fits {
        what: String,
        /// With its KV cache full, and with one full context.
        memory_bytes: u64,
        least_bytes: u64,
        max_model_len: u32,
        choices: Vec<String>,
        rates: Option<Rates>,
        /// What to expect, as a sentence.
        expect: Option<String>,
        /// The files are not here: sizes are the catalogue's.
        estimated: bool,
    },
    DoesNotFit {
        what: String,
        why: String,
        what_would: Vec<String>,
    },
    /// It would not start for another reason.
    Unusable {
        why: String,
    },
    /// The files are not here, and nothing else tells of it.
    Unknown {
        why: String,
    },
}

impl Checked {
    /// What is not known is no failure, what would not start is one.
    pub fn is_good(&self) -> bool {
        matches!(self.verdict, Verdict::Fits { .. } | Verdict::Unknown { .. })
    }
}

pub async fn check(config: &ModelConfig, room: Room<'_>) -> Checked {
    let (verdict, asks) = match look(config, room).await {
        Ok(found) => found,
        Err(error) => (Verdict::Unusable { why: error.message }, None),
    };
    Checked { model: config.reference.clone(), verdict, asks }
}

async fn look(config: &ModelConfig, room: Room<'_>) -> Result<(Verdict, Option<Asks>)> {
    let reference = ModelRef::parse(&config.reference)?;
    let model = match local(&reference).await {
        Ok(model) => model,
        Err(why) => {
            // Only what could be downloaded may be missing.
            return match &reference {
                ModelRef::Catalogue(entry) if entry.kind.makes_text() => {
                    let (mut forecast, has_shape) = fit::of_catalogue(entry, room);
                    if !has_shape {
                        forecast.what += ", of unknown shape: its KV cache is left out";
                    }
                    Ok(told(forecast, true))
                }
                ModelRef::Catalogue(_) | ModelRef::Hub { .. } => {
                    let why = format!("not downloaded: 'sconce pull {reference}', then ask again");
                    Ok((Verdict::Unknown { why }, None))
                }
                _ => Err(why),
            };
        }
    };
    let draft = match &config.limits.speculation {
        Speculation::DraftModel(draft) => Some(local(&ModelRef::parse(&draft.reference)?).await?),
        Speculation::Off | Speculation::Ngram(_) => None,
    };
    Ok(told(fit::forecast(config, &model, draft.as_ref(), room)?, false))
}

/// The files, if they are on this machine.
async fn local(reference: &ModelRef) -> Result<LocalModel> {
    let options = HubOptions { offline: true, ..HubOptions::from_env()? };
    hub::fetch(reference, &options, hub::progress::for_stderr().as_ref()).await
}

fn told(forecast: Forecast, estimated: bool) -> (Verdict, Option<Asks>) {
    let Forecast { what, outcome, rates, share, asks } = forecast;
    let verdict = match outcome {
        Ok(needs) => Verdict::Fits {
            what,
            memory_bytes: needs.memory_bytes,
            least_bytes: needs.least_bytes,
            max_model_len: needs.max_model_len,
            choices: needs.choices,
            rates,
            expect: rates.and_then(|rates| rates.sentence(share)),
            estimated,
        },
        Err(refusal) => Verdict::DoesNotFit { what, why: refusal.why, what_would: refusal.advice },
    };
    (verdict, asks)
}

/// Several models in one memory.
#[derive(Serialize)]
pub struct Together {
    /// Each with one full context.
    pub least_bytes: u64,
    /// Each with its KV cache full.
    pub memory_bytes: u64,
    pub available_bytes: u64,
    /// What may be taken of it.
    pub room_bytes: u64,
    pub fits: bool,
}

/// `None` for one model alone, or where the memory is not known.
pub fn together(configs: &[ModelConfig], checked: &[Checked], available_bytes: Option<u64>) -> Option<Together> {
    let available_bytes = available_bytes.filter(|_| checked.len() > 1)?;
    let (mut least, mut full) = (0_u64, 0_u64);
    for model in checked {
        if let Verdict::Fits { memory_bytes, least_bytes, .. } = &model.verdict {
            least = least.saturating_add(*least_bytes);
            full = full.saturating_add(*memory_bytes);
        }
    }
    let share = configs.iter().map(|config| config.limits.memory_share_permille).max().unwrap_or(1000);
    let room_bytes = (available_bytes / 1000).saturating_mul(u64::from(share));
    Some(Together { least_bytes: least, memory_bytes: full, available_bytes, room_bytes, fits: least <= room_bytes })
}

impl Together {
    pub fn sentence(&self) -> String {
        let (least, full) = (human_bytes(self.least_bytes), human_bytes(self.memory_bytes));
        let (room, available) = (human_bytes(self.room_bytes), human_bytes(self.available_bytes));
        if !self.fits {
            return format!("with one full context each they need {least}, and {room} of {available} may be taken");
        }
        if self.memory_bytes > self.available_bytes {
            return format!(
                "with one full context each they need {least} of {room}, but {full} with every KV cache full, more than \
                 the {available} there are; give each its --kv-cache-memory-bytes"
            );
        }
        format!("{full} with every KV cache full, {available} available")
    }
}

/// A model of the catalogue, alone on the machine.
#[derive(Serialize)]
pub struct Listed {
    pub model: String,
    pub weight_bytes: u64,
    /// With one full context; `None`: the shape is not known, or it does not fit.
    pub memory_bytes: Option<u64>,
    /// The context that it would be served with.
    pub max_model_len: Option<u32>,
    pub fits: bool,
    pub rates: Option<Rates>,
}

/// Every model that makes text and can be served.
pub fn catalogue(room: Room<'_>) -> Vec<Listed> {
    let is_wanted = |entry: &&Entry| entry.is_served() && entry.kind.makes_text();
    let listed = |entry: &Entry| {
        let (forecast, has_shape) = fit::of_catalogue(entry, room);
        let needs = forecast.outcome.ok();
        Listed {
            model: entry.name.clone(),
            weight_bytes: entry.bytes,
            memory_bytes: needs.as_ref().filter(|_| has_shape).map(|needs| needs.least_bytes),
            max_model_len: needs.as_ref().filter(|_| has_shape).map(|needs| needs.max_model_len),
            fits: needs.is_some(),
            rates: forecast.rates,
        }
    };
    catalogue::entries().iter().filter(is_wanted).map(listed).collect()
}
