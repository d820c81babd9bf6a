//! `sconce bench`: servers, the engine and the machine, measured.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use sconce_bench::commands::{self, LoadCommand};
use sconce_models::{Precision, Source};
use serde_json::json;

use super::output;
use crate::bench::engine::{self, Bench, Case};
use crate::bench::hardware;
use crate::config::DeviceChoice;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{self, HubOptions, LocalFiles, ModelRef, progress};
use crate::launch::check_device;

#[derive(Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    #[command(flatten)]
    Load(LoadCommand),
    /// Measure prefill and decode without a server, beside the machine's limit
    Engine(EngineArgs),
    /// Measure what this machine can do at best
    Hardware(HardwareArgs),
}

/// Prefill and decode rates of the engine alone, without HTTP, tokenizer or scheduler.
///
/// A case is ppN (prefill N tokens), tgN (decode N from an empty context, as llama-bench does), tgN@DEPTH (with so much
/// context) or SEQUENCESxPROMPT+ANSWER (as llama-batched-bench). The limit is the longer of the bytes that a step reads
/// over the memory bandwidth and its products over their rate, both measured first (sconce bench hardware).
#[derive(Args)]
struct EngineArgs {
    /// A catalogue name, org/name, org/name:file.gguf, a folder, a .gguf file or dummy:NAME
    model: String,
    /// What to run
    #[arg(value_name = "CASE", default_values = engine::CASES_DEFAULT)]
    cases: Vec<Case>,
    /// Where to run: cpu, cuda, cuda:N or pjrt:/path/to/plugin.so (experimental, no limit beside it)
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// GPUs that compute the model together, from that of --device on. The limit beside the figures is that of one GPU
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    tensor_parallel_size: u32,
    /// On a GPU: wait for the tokens of a step before the next one is issued
    #[arg(long)]
    no_async_scheduling: bool,
    /// CPU threads [default: every core this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Runs of each case, after one to warm up; medians are reported
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Activations in 16 bits and f32, as --matmul-precision high of serve
    #[arg(long)]
    high_precision: bool,
    /// Leave the limits out, and the seconds that they take to measure
    #[arg(long)]
    no_limit: bool,
    /// Print one JSON line a case instead of a table
    #[arg(long)]
    json: bool,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    output_json: Option<PathBuf>,
    /// Write a page with a plot against the limit
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Args)]
struct HardwareArgs {
    /// What to measure: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// CPU threads [default: every core this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Not within the async runtime of the other commands: loads have their own.
pub fn run(args: BenchArgs) -> Result<()> {
    match args.command {
        BenchCommand::Load(command) => {
            let said = commands::run(&command)?;
            let _ = output::print(&said.text);
            match said.failed {
                true => {
                    Err(Error::new(ErrorKind::InvalidRequest, "the second result is worse than the first: see above"))
                }
                false => Ok(()),
            }
        }
        BenchCommand::Engine(args) => measure_engine(&args),
        BenchCommand::Hardware(args) => {
            set_threads(args.threads);
            let found = match &args.device {
                DeviceChoice::Auto | DeviceChoice::Cpu => hardware::measure_and_keep()?,
                DeviceChoice::Cuda(_) => on_gpu::measure(&args.device)?,
                DeviceChoice::Pjrt(_) => {
                    let why =
                        "--device pjrt:PATH: what a plugin's device can do at best is not measured; use cpu or cuda";
                    return Err(Error::invalid("--device", why));
                }
            };
            let text = if args.json { json!(found).to_string() + "\n" } else { hardware::render(&found) };
            let _ = output::print(&text);
            Ok(())
        }
    }
}

fn set_threads(threads: Option<u16>) {
    sconce_kernels::cpu::set_threads(threads.map_or_else(crate::device::topology::threads, usize::from));
}

fn measure_engine(args: &EngineArgs) -> Result<()> {
    set_threads(args.threads);
    let source = local(&args.model)?;
    let precision = if args.high_precision { Precision::High } else { Precision::Fast };
    if args.tensor_parallel_size > 1 && !matches!(args.device, DeviceChoice::Cuda(_)) {
        let why = "--tensor-parallel-size shares a model out among GPUs: give --device cuda or cuda:N, too";
        return Err(Error::invalid("--tensor-parallel-size", why));
    }
    let (limits, mut bench) = match &args.device {
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            let limits = if args.no_limit { None } else { Some(hardware::measure()?) };
            (limits, Bench::load(&args.model, &source, precision, &args.cases)?)
        }
        DeviceChoice::Cuda(_) => {
            let limits = if args.no_limit { None } else { Some(on_gpu::measure(&args.device)?) };
            (limits, on_gpu::load(args, (&source, precision))?)
        }
        DeviceChoice::Pjrt(path) => {
            check_device(&args.device)?;
            (None, on_plugin::load(path, &args.model, (&source, precision), &args.cases)?)
        }
    };
    let mut all = Vec::new();
    for case in &args.cases {
        let measured = bench.measure(*case, usize::from(args.runs), limits.as_ref())?;
        if args.json {
            output::line(&json!(measured).to_string());
        }
        all.push(measured);
    }
    if !args.json {
        let machine = limits.as_ref().map_or(String::new(), |limits| hardware::render(limits) + "\n");
        let _ = output::print(&(machine + &engine::render(&all)));
    }
    let whole = json!({"kind": "engine", "hardware": limits, "engine": all});
    if let Some(path) = &args.output_json {
        write(path, &(serde_json::to_string_pretty(&whole).expect("JSON values can be written") + "\n"))?;
    }
    match &args.html {
        Some(path) => write(path, &sconce_bench::report::html::page(&[], &whole)),
        None => Ok(()),
    }
}

#[cfg(feature = "gpu")]
mod on_gpu {
    use super::{Bench, DeviceChoice, EngineArgs, Precision, Result, Source};
    use crate::bench::gpu;
    use crate::device::rates::Hardware;

    pub fn measure(device: &DeviceChoice) -> Result<Hardware> {
        gpu::measure(&crate::launch::gpu::named(device)?)
    }

    pub fn load(args: &EngineArgs, (source, precision): (&Source, Precision)) -> Result<Bench> {
        let devices = crate::launch::gpu::several(&args.device, args.tensor_parallel_size)?;
        let bench = Bench::load_on(&devices, &args.model, source, precision, &args.cases)?;
        Ok(bench.with_async_scheduling(!args.no_async_scheduling))
    }
}

/// A build without GPUs says so.
#[cfg(not(feature = "gpu"))]
mod on_gpu {
    use super::check_device;
    use super::{Bench, DeviceChoice, EngineArgs, Precision, Result, Source};
    use crate::device::rates::Hardware;

    pub fn measure(device: &DeviceChoice) -> Result<Hardware> {
        check_device(device)?;
        super::hardware::measure()
    }

    pub fn load(args: &EngineArgs, (source, precision): (&Source, Precision)) -> Result<Bench> {
        check_device(&args.device)?;
        Bench::load(&args.model, source, precision, &args.cases)
    }
}

#[cfg(feature = "pjrt")]
mod on_plugin {
    use super::{Bench, Case, Path, Precision, Result, Source};

    pub fn load(path: &Path, name: &str, what: (&Source, Precision), cases: &[Case]) -> Result<Bench> {
        Bench::load_on_plugin(path, name, what, cases)
    }
}

/// A build without plugins has said so before.
#[cfg(not(feature = "pjrt"))]
mod on_plugin {
    use super::{Bench, Case, Path, Precision, Result, Source};

    pub fn load(_: &Path, name: &str, what: (&Source, Precision), cases: &[Case]) -> Result<Bench> {
        Bench::load(name, what.0, what.1, cases)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|why| Error::invalid("file", format!("cannot write {}: {why}", path.display())))
}

/// The files of a model, downloaded if need be.
fn local(model: &str) -> Result<Source> {
    let reference = ModelRef::parse(model)?;
    let options = HubOptions::from_env()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|why| Error::internal(format!("cannot start the async runtime: {why}")))?;
    let progress = progress::for_stderr();
    match runtime.block_on(hub::fetch(&reference, &options, progress.as_ref()))?.files {
        LocalFiles::Gguf(path) => Ok(Source::Gguf(path)),
        LocalFiles::Folder(path) => Ok(Source::Folder(path)),
        LocalFiles::Dummy(name) => Ok(Source::Dummy(name)),
        LocalFiles::Sim => Err(Error::invalid("MODEL", "sim has no arithmetic to measure; name a model or dummy:NAME")),
    }
}
