//! `sconce worker-guard`: stands between a server and one worker. The server starts it; nobody else should.

use std::process::ExitCode;

use clap::Args;
use sconce_worker::guard::Guard;

#[derive(Args)]
pub struct WorkerGuardArgs {
    /// Become this user: USER:GROUP:GROUPS in numbers
    #[arg(long, value_name = "IDS")]
    user: Option<String>,
    /// Become the command, if this process is the parent
    #[arg(long, value_name = "PID")]
    exec_below: Option<u32>,
    /// The worker's program and its arguments
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

/// Before anything else of the program has begun: the guard has one thread at its start.
pub fn run(args: WorkerGuardArgs) -> ExitCode {
    let user = match args.user.as_deref().map(str::parse).transpose() {
        Ok(user) => user,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
    };
    ExitCode::from(Guard { user, exec_below: args.exec_below, command: args.command }.run())
}
