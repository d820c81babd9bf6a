//! The command line: one file a command. Data goes to stdout, logs and progress to stderr.
//!
//! Exit codes: 0 fine, 1 failed (one line on stderr says why and what to do), 2 wrong usage.

mod ask;
mod bench;
mod catalogue;
mod check;
mod doctor;
mod flags;
mod keys;
mod lifecycle;
mod models;
mod outcomes;
mod output;
mod pull;
mod reload;
mod resolve;
mod route;
mod run;
mod serve;
mod usage;
mod vectors;
mod worker_guard;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::telemetry::{self, LogOptions};

/// Serve open-weight models on your own hardware, behind the OpenAI API.
#[derive(Parser)]
#[command(name = "sconce", version, about, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Write logs as JSON lines (stderr)
    #[arg(long, global = true)]
    log_json: bool,
    /// What to log, e.g. `debug` or `sconce=debug,info` [default: info for serve, warn otherwise]
    #[arg(long, global = true, value_name = "FILTER", env = crate::config::env::SCONCE_LOG.name)]
    log: Option<String>,
}

// Boxes where a model's flags make the arguments large.
#[derive(Subcommand)]
enum Command {
    /// Serve models behind the OpenAI API
    Serve(Box<serve::ServeArgs>),
    /// Chat with a model in the terminal
    Run(Box<run::RunArgs>),
    /// Download a model without serving it
    Pull(pull::PullArgs),
    /// List downloaded models, or the built-in catalogue
    #[command(visible_alias = "ls")]
    List(models::ListArgs),
    /// Remove a downloaded model
    Rm(models::RemoveArgs),
    /// List the models of a running server: what is in memory, what is used
    Ps(lifecycle::PsArgs),
    /// Have a running server load models
    Load(lifecycle::ModelArgs),
    /// Have a running server unload models when they have finished what they have begun
    #[command(visible_alias = "unload")]
    Stop(lifecycle::ModelArgs),
    /// Have a running server read its configuration file again, and say what changed
    Reload(lifecycle::ReloadArgs),
    /// Measure servers, the engine and this machine
    Bench(bench::BenchArgs),
    /// Say what hardware is here, what is missing and which models fit
    ///
    /// Exits with 1 if a model that was named, or is in the configuration, would not fit. Nothing is loaded, downloaded or
    /// sent: it works without network.
    Doctor(Box<doctor::DoctorArgs>),
    /// Make API keys with limits, for the configuration file
    Keys(keys::KeysArgs),
    /// Check a configuration file without serving
    Check(check::CheckArgs),
    /// Explain routing decisions, or replay them under another policy
    Route(route::RouteArgs),
    /// Show what was used and what it cost
    Usage(usage::UsageArgs),
    #[command(hide = true)]
    WorkerGuard(worker_guard::WorkerGuardArgs),
}

/// On machines with several memory nodes, lets weights and caches lie on all of them; before any other thread starts.
fn spread_memory() {
    use sconce_kernels::cpu::nodes::{Interleaved, interleave};
    match interleave(&crate::device::topology::memory_nodes()) {
        Ok(Interleaved::Over(nodes)) => tracing::info!("memory lies on {nodes} NUMA nodes in turn"),
        Ok(Interleaved::OneNode | Interleaved::Chosen) => {}
        Err(why) => tracing::warn!(
            "memory may lie on one NUMA node alone, far from half of the processors: the system refused to interleave it \
             ({why}); in a container this takes the capability SYS_NICE, or start with numactl --interleave=all"
        ),
    }
}

/// Parses the command line, runs one command and turns its outcome into an exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::WorkerGuard(args) = cli.command {
        return worker_guard::run(args);
    }
    let fallback = if matches!(cli.command, Command::Serve(_)) { "info,hf_hub=off" } else { "warn,hf_hub=off" };
    let filter = cli.log.unwrap_or_else(|| fallback.to_owned());
    if let Err(error) = telemetry::start_logging(LogOptions { json: cli.log_json, filter: Some(filter) }) {
        return failed(&error.message);
    }
    if matches!(cli.command, Command::Serve(_) | Command::Run(_) | Command::Bench(_)) {
        spread_memory();
    }
    let command = match cli.command {
        Command::Bench(args) => return finish(bench::run(args)),
        command => command,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => return failed(&format!("cannot start the async runtime: {why}")),
    };
    let outcome = runtime.block_on(async {
        match command {
            Command::Bench(_) | Command::WorkerGuard(_) => unreachable!("it has run already"),
            Command::Serve(args) => serve::serve(*args).await,
            Command::Run(args) => run::run(*args).await,
            Command::Pull(args) => pull::pull(args).await,
            Command::List(args) => models::list(&args),
            Command::Rm(args) => models::remove(&args),
            Command::Doctor(args) => doctor::doctor(*args).await,
            Command::Ps(args) => lifecycle::ps(&args).await,
            Command::Load(args) => lifecycle::load(&args).await,
            Command::Stop(args) => lifecycle::stop(&args).await,
            Command::Reload(args) => lifecycle::reload(&args).await,
            Command::Keys(args) => keys::run(&args),
            Command::Check(args) => check::check(&args),
            Command::Route(args) => route::route(args).await,
            Command::Usage(args) => usage::usage(args).await,
        }
    });
    // A download or a load that was interrupted may still sit in a blocking thread: the process does not wait for it.
    runtime.shutdown_background();
    finish(outcome)
}

fn finish(outcome: crate::error::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.message),
    }
}

fn failed(message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::FAILURE
}
