//! `sconce doctor`: what is here, what is missing, what fits. Nothing is loaded, downloaded or sent.

mod models;
mod rented;
mod text;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::flags::ModelFlags;
use super::output;
use super::resolve::resolve;
use super::serve::ServeArgs;
use crate::bench::hardware;
use crate::config::{ModelConfig, env};
use crate::device::findings::{Finding, findings};
use crate::device::machine::{Asked, detect};
use crate::device::nvidia::Ask;
use crate::device::rates::Hardware;
use crate::device::{Machine, Root, neuron};
use crate::error::{Error, ErrorKind, Result};
use crate::launch::fit::Room;
use models::{Checked, Listed, Together};

/// What hardware is here, what is missing, and which models fit on it.
///
/// Exits with 1 if a model that was named, or is in the configuration, would not fit. Works without network.
#[derive(Args)]
pub struct DoctorArgs {
    /// Models to check, as serve takes them [default: those of --config, if it is given]
    #[arg(value_name = "MODEL")]
    models: Vec<String>,
    /// Configuration file (sconce.toml) whose models are checked
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Rented machines that would hold the models, too, with what they cost where that is known
    #[arg(long)]
    instances: bool,
    /// A list of rented machines of your own, in the form of the built-in one (route/src/price/instances.toml)
    #[arg(long, value_name = "FILE")]
    instances_file: Option<PathBuf>,
    /// Do not measure this machine if it never was; rates are then not predicted
    #[arg(long)]
    no_measure: bool,
    /// Read this folder as if it were /: a copy of another machine's /proc, /sys and /dev
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Add what `neuron-ls -j` printed, from a file or from standard input (-)
    #[arg(long, value_name = "FILE|-")]
    neuron_ls: Option<PathBuf>,
    #[command(flatten)]
    model: ModelFlags,
}

/// Everything that is told, as JSON has it.
#[derive(Serialize)]
struct Report {
    machine: Machine,
    /// What the CPU was measured to do.
    measured: Option<Hardware>,
    findings: Vec<Finding>,
    models: Vec<Checked>,
    together: Option<Together>,
    /// Whether every model that was asked about fits.
    fits: bool,
    /// The catalogue's models, each alone.
    catalogue: Vec<Listed>,
    instances: Vec<rented::Rented>,
}

pub async fn doctor(args: DoctorArgs) -> Result<()> {
    args.model.apply_threads();
    let configured = configured(&args)?;
    let table = rented::table(args.instances, args.instances_file.as_deref())?;
    let machine = machine(&args)?;
    let measured = measured(&args)?;
    let devices: Vec<(String, u64)> =
        machine.accelerators().into_iter().filter_map(|place| Some((place.name, place.available_bytes?))).collect();
    let room =
        Room { available_bytes: machine.cpu.memory_available_bytes, hardware: measured.as_ref(), devices: &devices };
    let mut checked = Vec::with_capacity(configured.len());
    for config in &configured {
        checked.push(models::check(config, room).await);
    }
    let together = models::together(&configured, &checked, room.available_bytes);
    let fits = checked.iter().all(Checked::is_good) && together.as_ref().is_none_or(|together| together.fits);
    let instances = table.map_or_else(Vec::new, |table| rented::holding(&table, &checked));
    let report = Report {
        findings: findings(&machine),
        catalogue: models::catalogue(room),
        machine,
        models: checked,
        together,
        fits,
        instances,
        measured,
    };
    let text = match args.json {
        true => serde_json::to_string_pretty(&report).expect("a report can be written as JSON") + "\n",
        false => text::render(&report),
    };
    // Nobody reads any more: there is no one to tell either. The exit code still counts.
    let _ = output::print(&text);
    match fits {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Unavailable, "not every model fits: see above for why and what would")),
    }
}

/// The models that were asked about: none if neither names nor a file were given.
fn configured(args: &DoctorArgs) -> Result<Vec<ModelConfig>> {
    if args.models.is_empty() && args.config.is_none() {
        return Ok(Vec::new());
    }
    let serve = ServeArgs::with_models(args.models.clone(), args.config.clone(), args.model.clone());
    Ok(resolve(&serve)?.models)
}

fn machine(args: &DoctorArgs) -> Result<Machine> {
    let root = match &args.root {
        Some(folder) if !folder.is_dir() => {
            let message = format!("--root {}: there is no such folder; give a copy of /", folder.display());
            return Err(Error::invalid("--root", message));
        }
        Some(folder) => Root::at(folder),
        None => Root::system(),
    };
    // What this machine's environment says is nothing about another one.
    let setting = env::NEURON_LOGICAL_NC_CONFIG.get().filter(|_| root.is_system());
    let logical_core_size = match setting {
        None => None,
        Some(text) => Some(text.trim().parse().map_err(|_| {
            let name = env::NEURON_LOGICAL_NC_CONFIG.name;
            Error::invalid(name, format!("{name} is '{text}', expected 1 or 2; unset it to use the machine's setting"))
        })?),
    };
    let mut machine = detect(&root, Asked { nvml: Ask::Driver, logical_core_size });
    if let Some(file) = &args.neuron_ls {
        let wrong = |why: String| Error::invalid("--neuron-ls", format!("--neuron-ls {}: {why}", file.display()));
        let text = read(file).map_err(|why| wrong(why.to_string()))?;
        machine.neuron = machine.neuron.with_listing(&neuron::ls::parse(&text).map_err(wrong)?);
    }
    Ok(machine)
}

fn read(file: &Path) -> std::io::Result<String> {
    if file == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) }
}

/// Rates of this machine; nothing is known of one whose files were copied.
fn measured(args: &DoctorArgs) -> Result<Option<Hardware>> {
    if args.root.is_some() {
        return Ok(None);
    }
    match hardware::kept() {
        Some(kept) => Ok(Some(kept)),
        None if args.no_measure => Ok(None),
        None => {
            eprintln!("measuring this machine once, a few seconds ...");
            hardware::measure_and_keep().map(Some)
        }
    }
}
