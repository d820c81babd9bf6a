//! What this machine can do at best, measured: the limits that engine figures are held against.
//!
//! Measured once: the figures are kept in the user's cache, by processor and threads.

use std::path::PathBuf;

use crate::config::env;
use crate::device::cpu;
use crate::device::rates::{self, Hardware};
use crate::error::{Error, Result};
use sconce_kernels::cpu::peak::{self, Factors};
use sconce_kernels::cpu::threads;

/// Far larger than the cache of a socket; the largest are around 1 GiB, and then shared by many cores.
const READ_BYTES: u64 = 1 << 30;
/// Where memory is short, less is read: the figure is then one of caches, too, but nothing is killed for it.
const READ_BYTES_MIN: u64 = 64 << 20;
const ROUNDS: usize = 5;
const ROUND_S: f64 = 0.15;

/// With as many threads as the engine uses.
pub fn measure() -> Result<Hardware> {
    let (threads, machine) = (threads(), cpu::detect());
    let best = |factors| (0..ROUNDS).filter_map(|_| peak::operations_per_s(factors, threads, ROUND_S)).reduce(f64::max);
    let available = machine.memory_available_bytes.unwrap_or(READ_BYTES * 4);
    let bytes = (available / 4).clamp(READ_BYTES_MIN, READ_BYTES) as usize;
    let mut read = 0.0_f64;
    for _ in 0..ROUNDS {
        let round = peak::read_bytes_per_s(bytes, threads, ROUND_S);
        read = read.max(round.map_err(|why| Error::internal(format!("cannot measure memory: {why}")))?);
    }
    Ok(Hardware {
        processor: processor(&machine),
        threads,
        read_bytes_per_s: read,
        f32_per_s: best(Factors::F32).unwrap_or(0.0),
        bf16_per_s: best(Factors::Bf16),
        int8_per_s: best(Factors::Int8),
    })
}

fn processor(machine: &cpu::Cpu) -> String {
    machine.name.clone().unwrap_or_else(|| "unknown processor".to_owned())
}

/// Where measured figures are kept; without a home folder nowhere.
pub fn file() -> Option<PathBuf> {
    Some(env::caches()?.join("sconce/hardware.json"))
}

/// What was measured before on this processor with as many threads.
pub fn kept() -> Option<Hardware> {
    rates::load(&file()?, &processor(&cpu::detect()), threads())
}

/// Measures, and keeps the figures for the next time. A cache that cannot be written is no failure.
pub fn measure_and_keep() -> Result<Hardware> {
    let measured = measure()?;
    if let Some(file) = file()
        && let Err(why) = rates::store(&file, &measured)
    {
        tracing::warn!(file = %file.display(), %why, "the measured rates of this machine are not kept");
    }
    Ok(measured)
}

pub fn render(hardware: &Hardware) -> String {
    let giga = |rate: f64| format!("{:.1}", rate / 1e9);
    let maybe = |rate: Option<f64>| rate.map_or("none: made in f32".to_owned(), |rate| giga(rate) + " GOP/s");
    let workers = if hardware.threads > 1 { format!(", {} threads", hardware.threads) } else { String::new() };
    format!(
        "{}{workers}\n\nmemory read     {} GB/s\nf32 products    {} GFLOP/s\nbf16 products   {}\nint8 products   {}\n",
        hardware.processor,
        giga(hardware.read_bytes_per_s),
        giga(hardware.f32_per_s),
        maybe(hardware.bf16_per_s),
        maybe(hardware.int8_per_s),
    )
}
