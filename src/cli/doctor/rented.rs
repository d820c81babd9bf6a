//! Rented machines that would hold the models: one copy on one chip, or in the host's memory.

use std::path::Path;

use sconce_route::price::instances::{Instance, InstanceTable};
use serde::Serialize;

use super::models::Checked;
use crate::device::fit::roofline::{Ceiling, Share, rates};
use crate::device::fit::{self, advice};
use crate::error::{Error, Result};
use crate::launch::fit::Asks;

/// A machine that holds a model.
#[derive(Serialize)]
pub struct Rented {
    pub model: String,
    pub instance: String,
    pub chip: Option<String>,
    /// How many copies it holds: chips times copies a chip. `None`: the number of chips is not known.
    pub replicas: Option<u64>,
    pub usd_per_hour: Option<f64>,
    /// Tokens a second of all copies, at the limit of the memory and of arithmetic; what is reached is less.
    pub tokens_per_s_at_most: Option<f64>,
    /// What a million tokens would cost at that limit; what they do cost is more.
    pub usd_per_million_at_least: Option<f64>,
}

pub fn table(wanted: bool, file: Option<&Path>) -> Result<Option<InstanceTable>> {
    let Some(path) = file else { return Ok(wanted.then(InstanceTable::builtin)) };
    let wrong = |why: String| Error::invalid("--instances-file", format!("--instances-file {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|why| wrong(why.to_string()))?;
    InstanceTable::parse(&text).map(Some).map_err(wrong)
}

/// For each model the machines that hold it, the cheapest first, those of unknown price behind.
pub fn holding(table: &InstanceTable, models: &[Checked]) -> Vec<Rented> {
    let mut all = Vec::new();
    for model in models {
        let Some(asks) = &model.asks else { continue };
        let mut found: Vec<Rented> =
            table.instances.iter().filter_map(|instance| on(table, instance, &model.model, asks)).collect();
        let price = |rented: &Rented| rented.usd_per_hour.unwrap_or(f64::INFINITY);
        found.sort_by(|a, b| price(a).total_cmp(&price(b)));
        all.append(&mut found);
    }
    all
}

fn on(table: &InstanceTable, instance: &Instance, model: &str, asks: &Asks) -> Option<Rented> {
    let chip = instance.chip.as_deref().and_then(|name| table.chip(name));
    let memory_bytes = chip.map_or_else(|| instance.memory_bytes(), |chip| Some(chip.memory_bytes()))?;
    let plan = fit::plan(&asks.size, &asks.wishes, Some(memory_bytes)).ok()?;
    let copies = advice::replicas(&plan, &asks.wishes, memory_bytes);
    // One host has one memory; of chips it may be unknown how many there are.
    let units = if chip.is_some() { instance.chips.map(u64::from) } else { Some(1) };
    let ceiling = chip.map_or(Ceiling::default(), |chip| Ceiling {
        read_bytes_per_s: chip.read_gb_per_s.map(|rate| rate * 1e9),
        operations_per_s: chip.bf16_tflops.map(|rate| rate * 1e12),
    });
    // Copies on one chip share its memory's bandwidth: they make no more tokens than one.
    let of_chip = rates(&asks.demand, ceiling, Share::WHOLE).decode_many;
    let tokens_per_s = of_chip.zip(units).map(|(rate, units)| rate * units as f64);
    let hourly = instance.hourly().map(sconce_route::price::Nanos::dollars);
    Some(Rented {
        model: model.to_owned(),
        instance: instance.name.clone(),
        chip: instance.chip.clone(),
        replicas: units.map(|units| units * copies),
        usd_per_hour: hourly,
        tokens_per_s_at_most: tokens_per_s,
        usd_per_million_at_least: hourly.zip(tokens_per_s).map(|(hourly, rate)| hourly / (rate * 3600.0) * 1e6),
    })
}
