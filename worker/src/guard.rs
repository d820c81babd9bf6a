//! The guard: a small process between the server and a worker, so that nothing of the worker outlives either.
//!
//! Its standard input is a socket to the server. It reads `term` and `kill`, and says `pid N`, then `exit N` or
//! `signal N`. When the socket closes, the server is gone, however it went: the guard kills everything that came of the
//! worker, whatever group or session it hid in, and ends.
//!
//! 1. No thread of it starts another process: the kernel ties a child's death signal to the thread that made it.
//! 2. It writes nothing to its outputs: they are the worker's.
//! 3. The worker cannot end the guard where it runs as another user.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::proc;
use crate::user::Ids;

/// The name of the hidden subcommand.
pub const SUBCOMMAND: &str = "worker-guard";
/// As shells say that a command cannot be started.
const NOT_STARTED: u8 = 127;
/// What is killed is gone soon, unless the kernel holds it.
const KILL_ROUNDS: u32 = 500;
const KILL_PAUSE: Duration = Duration::from_millis(10);

/// What the guard was told on its command line.
#[derive(Debug, Clone)]
pub struct Guard {
    pub user: Option<Ids>,
    /// The second stage: become the command, as long as this process is the parent.
    pub exec_below: Option<u32>,
    pub command: Vec<String>,
}

impl Guard {
    /// Runs until the worker has ended. The result is the exit code.
    pub fn run(self) -> u8 {
        let ended = match self.exec_below {
            Some(parent) => self.exec(parent),
            None => self.watch(),
        };
        match ended {
            Ok(code) => code,
            Err(why) => {
                eprintln!("error: {why}");
                NOT_STARTED
            }
        }
    }

    /// Becomes the worker: another user, and dead when the guard is.
    fn exec(&self, parent: u32) -> Result<u8, String> {
        let (program, arguments) = self.command.split_first().ok_or("the worker has no command")?;
        if let Some(ids) = &self.user {
            become_user(ids).map_err(|why| format!("cannot become the user {}: {why}", ids.user))?;
        }
        // After the change of the user, which would clear it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|why| format!("cannot be tied to the guard: {why}"))?;
        let is_child = rustix::process::getppid().is_some_and(|pid| pid.as_raw_nonzero().get() as u32 == parent);
        if !is_child {
            return Err("the guard has gone".to_owned());
        }
        let why = Command::new(program).args(arguments).exec();
        Err(format!("cannot start {program}: {why}; check command and PATH"))
    }

    fn watch(&self) -> Result<u8, String> {
        let text = |why: std::io::Error| format!("{SUBCOMMAND} is started by the server: {why}");
        let control = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(text)?);
        control.peer_addr().map_err(text)?;
        let mut answers = control.try_clone().map_err(text)?;
        let own = rustix::process::getpid();
        // Orphans of the worker become children of the guard, so that they are found.
        rustix::process::set_child_subreaper(Some(own)).map_err(|why| format!("cannot adopt orphans: {why}"))?;
        let mut stage = Command::new("/proc/self/exe");
        stage.arg0("sconce");
        stage.args([SUBCOMMAND, "--exec-below", &raw(own).to_string()]);
        if let Some(ids) = &self.user {
            stage.args(["--user", &ids.to_string()]);
        }
        stage.arg("--").args(&self.command).stdin(Stdio::null()).process_group(0);
        let child = stage.spawn().map_err(|why| format!("cannot start the worker: {why}"))?;
        let leader = Pid::from_raw(child.id() as i32).ok_or("the worker has no process id")?;
        // A server that is gone reads nothing.
        let _ = writeln!(answers, "pid {}", raw(leader));
        let has_ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&has_ended);
        std::thread::spawn(move || obey(control, leader, &seen));
        let ended = wait_for(leader, &has_ended);
        end_the_rest();
        let _ = writeln!(answers, "{ended}");
        Ok(0)
    }
}

fn raw(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get() as u32
}

/// All three of each, so that there is no way back. This process has one thread.
fn become_user(ids: &Ids) -> rustix::io::Result<()> {
    use rustix::process::{Gid, Uid};
    let groups: Vec<Gid> = ids.groups.iter().map(|id| Gid::from_raw(*id)).collect();
    set_thread_groups(&groups)?;
    let group = Gid::from_raw(ids.group);
    set_thread_res_gid(group, group, group)?;
    let user = Uid::from_raw(ids.user);
    set_thread_res_uid(user, user, user)
}

/// Does what the server says, until it says nothing any more.
fn obey(control: UnixStream, leader: Pid, has_ended: &AtomicBool) {
    for line in BufReader::new(control).lines() {
        match line.as_deref() {
            Ok("term") if !has_ended.load(Ordering::Acquire) => {
                // It may have ended this moment.
                let _ = rustix::process::kill_process_group(leader, Signal::TERM);
            }
            Ok("term") => {}
            Ok("kill") => kill_all(),
            Ok(_) | Err(_) => break,
        }
    }
    kill_all();
}

/// Everything below the guard, until nothing is left. Ended children are waited for by the main thread.
fn kill_all() {
    for _ in 0..KILL_ROUNDS {
        if !kill_below() {
            return;
        }
        std::thread::sleep(KILL_PAUSE);
    }
}

/// Whether there was anything to kill.
fn kill_below() -> bool {
    let alive: Vec<_> =
        proc::below(raw(rustix::process::getpid())).into_iter().filter(|entry| !entry.is_zombie).collect();
    for pid in alive.iter().filter_map(|entry| Pid::from_raw(entry.pid as i32)) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    !alive.is_empty()
}

/// Waits for the worker, and meanwhile for every orphan that it left.
fn wait_for(leader: Pid, has_ended: &AtomicBool) -> String {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == leader => {
                has_ended.store(true, Ordering::Release);
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("exit {code}"),
                    (None, Some(signal)) => format!("signal {signal}"),
                    (None, None) => "exit 255".to_owned(),
                };
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return "exit 255".to_owned(),
        }
    }
}

/// What the worker left behind does not stay.
fn end_the_rest() {
    for _ in 0..KILL_ROUNDS {
        let has_some = kill_below();
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        if !has_some {
            return;
        }
        std::thread::sleep(KILL_PAUSE);
    }
}
