//! A real worker: a process behind a guard, its log, its CPU time, its port.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};

use crate::command::{Values, filled};
use crate::cores::Cores;
use crate::guard::SUBCOMMAND;
use crate::health::{self, Check};
use crate::log::Log;
use crate::proc;
use crate::supervisor::{Process, World};
use crate::user::User;

/// Variables for a program. Their values may be secret and are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(pub Vec<(String, String)>);

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// What is started, and how. Checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSpec {
    pub name: String,
    pub model: String,
    /// With placeholders.
    pub command: Vec<String>,
    /// A free one is chosen at each start where none is given.
    pub port: Option<u16>,
    pub cores: Option<Cores>,
    /// Where compiled models are kept.
    pub cache: PathBuf,
    /// The working folder.
    pub folder: PathBuf,
    /// All of it: nothing else of the server's environment is passed on.
    pub environment: Environment,
    pub user: Option<User>,
    /// The program that has the guard's subcommand: this one, except in tests.
    pub guard: PathBuf,
}

impl WorkerSpec {
    /// What engines on Neuron are told by variables.
    fn neuron_environment(&self) -> Vec<(String, String)> {
        let Some(cores) = &self.cores else { return Vec::new() };
        let pair = |name: &str, value: String| (name.to_owned(), value);
        vec![
            pair("NEURON_RT_VISIBLE_CORES", cores.to_string()),
            pair("NEURON_COMPILE_CACHE_URL", self.cache.join("neuron").display().to_string()),
            // Under this name neuron-monitor tells of it.
            pair("NEURON_PROCESS_TAG", self.name.clone()),
        ]
    }

    fn full_environment(&self) -> Vec<(String, String)> {
        let own = self.neuron_environment();
        let is_own = |name: &str| own.iter().any(|(known, _)| known == name);
        let given = self.environment.0.iter().filter(|(name, _)| !is_own(name)).cloned();
        given.chain(own.clone()).collect()
    }

    fn folders(&self) -> Result<(), String> {
        for folder in [&self.cache, &self.folder] {
            let wrong = |why: std::io::Error| format!("cannot make the folder {}: {why}", folder.display());
            std::fs::create_dir_all(folder).map_err(wrong)?;
            if let Some(user) = &self.user {
                std::os::unix::fs::chown(folder, Some(user.ids.user), Some(user.ids.group)).map_err(wrong)?;
            }
        }
        Ok(())
    }

    /// The port of the next process. Somebody else may take a free one before the worker does; then it fails and is
    /// started again on another.
    fn port_now(&self) -> Result<u16, String> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", self.port.unwrap_or(0)));
        let port = listener.and_then(|listener| listener.local_addr()).map(|address| address.port());
        port.map_err(|why| match self.port {
            Some(port) => format!("its port {port} is not free: {why}"),
            None => format!("there is no free port: {why}"),
        })
    }
}

/// Starts real processes.
pub struct Launcher {
    pub spec: WorkerSpec,
}

impl World for Launcher {
    type Process = Guarded;

    fn spawn(&self) -> Result<(Guarded, u16), String> {
        let spec = &self.spec;
        spec.folders()?;
        let port = spec.port_now()?;
        let cores = spec.cores.as_ref().map(Cores::to_string).unwrap_or_default();
        let cache = spec.cache.display().to_string();
        let values = Values {
            port,
            model: &spec.model,
            cores: &cores,
            core_count: spec.cores.as_ref().map_or(0, Cores::count),
            cache: &cache,
        };
        let command = filled(&spec.command, values);
        tracing::info!(worker = %spec.name, port, command = ?command, "starting a worker");
        let log = Arc::new(Log::new(&spec.name));
        Ok((Guarded::start(spec, &command, log)?, port))
    }

    fn check(&self, port: u16) -> impl Future<Output = Check> + Send + 'static {
        let model = self.spec.model.clone();
        async move { health::check(port, &model).await }
    }
}

/// The worker's process, through its guard. Dropping it closes the guard's socket, which ends all of it.
pub struct Guarded {
    guard: u32,
    orders: OwnedWriteHalf,
    /// The process group of the worker, once the guard has told it.
    leader: watch::Receiver<Option<u32>>,
    ended: oneshot::Receiver<String>,
    log: Arc<Log>,
}

/// A guard that was started, and what its worker writes.
struct Launched {
    child: Child,
    control: UnixStream,
}

fn launch(spec: &WorkerSpec, command: &[String]) -> Result<Launched, String> {
    let wrong = |why: std::io::Error| format!("cannot start the guard {}: {why}", spec.guard.display());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(wrong)?;
    ours.set_nonblocking(true).map_err(wrong)?;
    let mut guard = Command::new(&spec.guard);
    guard.arg0("sconce").arg(SUBCOMMAND);
    if let Some(user) = &spec.user {
        guard.args(["--user", &user.ids.to_string()]);
    }
    guard.arg("--").args(command);
    guard.env_clear().envs(spec.full_environment()).current_dir(&spec.folder);
    // A group of its own: Ctrl-C at the server's terminal is the server's business.
    guard.process_group(0).stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    guard.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = guard.spawn().map_err(wrong)?;
    Ok(Launched { child, control: UnixStream::from_std(ours).map_err(wrong)? })
}

impl Guarded {
    fn start(spec: &WorkerSpec, command: &[String], log: Arc<Log>) -> Result<Self, String> {
        let Launched { mut child, control } = launch(spec, command)?;
        let guard = child.id().ok_or("the guard ended at once")?;
        let readers = [child.stdout.take().map(Output::Out), child.stderr.take().map(Output::Err)];
        let readers: Vec<_> = readers
            .into_iter()
            .flatten()
            .map(|output| {
                let log = Arc::clone(&log);
                tokio::spawn(async move {
                    match output {
                        Output::Out(out) => log.read(out).await,
                        Output::Err(err) => log.read(err).await,
                    }
                })
            })
            .collect();
        let (answers, orders) = control.into_split();
        let (tell_leader, leader) = watch::channel(None);
        let (tell_end, ended) = oneshot::channel();
        let end = End { child, answers, tell_leader, readers };
        tokio::spawn(async move {
            let how = end.wait().await;
            // Nobody waits for it any more when the server is ending.
            let _ = tell_end.send(how);
        });
        Ok(Self { guard, orders, leader, ended, log })
    }
}

enum Output {
    Out(tokio::process::ChildStdout),
    Err(tokio::process::ChildStderr),
}

/// Follows a guard to its end.
struct End {
    child: Child,
    answers: OwnedReadHalf,
    tell_leader: watch::Sender<Option<u32>>,
    readers: Vec<tokio::task::JoinHandle<()>>,
}

impl End {
    async fn wait(mut self) -> String {
        let mut told = None;
        let mut lines = BufReader::new(self.answers).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            match line.split_once(' ') {
                Some(("pid", pid)) => drop(self.tell_leader.send_replace(pid.parse().ok())),
                _ => told = worded(&line),
            }
        }
        let status = self.child.wait().await;
        let leader = *self.tell_leader.borrow();
        let how = told.unwrap_or_else(|| {
            // The guard was killed. What it guarded is tied to it, and its group is ended here.
            if let Some(leader) = leader {
                signal_group(leader, Signal::KILL);
            }
            guard_ended(status)
        });
        Log::finish(self.readers).await;
        how
    }
}

fn guard_ended(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("its guard ended before it ({status})"),
        Err(why) => format!("its guard is gone ({why})"),
    }
}

/// The guard's last words, for people.
fn worded(line: &str) -> Option<String> {
    let (what, number) = line.split_once(' ')?;
    let number: i32 = number.parse().ok()?;
    match what {
        "exit" => Some(format!("exited with code {number}")),
        "signal" => Some(match number {
            9 => "was killed (SIGKILL; by the system, when memory ran out?)".to_owned(),
            11 => "crashed (SIGSEGV)".to_owned(),
            6 => "aborted (SIGABRT)".to_owned(),
            15 => "was ended (SIGTERM)".to_owned(),
            other => format!("was ended by signal {other}"),
        }),
        _ => None,
    }
}

fn signal_group(leader: u32, signal: Signal) {
    if let Some(group) = i32::try_from(leader).ok().and_then(Pid::from_raw) {
        // It may be gone already.
        let _ = rustix::process::kill_process_group(group, signal);
    }
}

impl Process for Guarded {
    async fn ended(&mut self) -> String {
        let how = (&mut self.ended).await.unwrap_or_else(|_| "was given up with the server".to_owned());
        match self.log.telling() {
            Some(line) => format!("{how}: {line}"),
            None => how,
        }
    }

    fn terminate(&mut self) {
        // A few bytes into an empty socket; a guard that is gone has ended its worker.
        let _ = self.orders.try_write(b"term\n");
    }

    fn kill(&mut self) {
        let _ = self.orders.try_write(b"kill\n");
        if let Some(leader) = *self.leader.borrow() {
            signal_group(leader, Signal::KILL);
        }
    }

    fn lines(&self) -> u64 {
        self.log.lines()
    }

    fn cpu_ms(&self) -> u64 {
        proc::cpu_ms_below(self.guard)
    }

    fn doing(&self) -> Option<&'static str> {
        self.log.doing()
    }

    fn tail(&self) -> Vec<String> {
        self.log.tail()
    }
}

/// Runs a program behind a guard and hands over its lines until it ends.
pub(crate) async fn lines_of(spec: &WorkerSpec, command: &[String], mut each: impl FnMut(&str)) -> Result<(), String> {
    const LINE_BYTES_MAX: usize = 4 << 20;
    let Launched { mut child, control } = launch(spec, command)?;
    let out = child.stdout.take().ok_or("the program has no output")?;
    // Nobody reads it, and a full pipe would hold the program up.
    drop(child.stderr.take());
    let mut out = BufReader::with_capacity(64 << 10, out);
    let mut line = Vec::new();
    loop {
        let available = match tokio::io::AsyncBufReadExt::fill_buf(&mut out).await {
            Ok(bytes) if !bytes.is_empty() => bytes,
            _ => break,
        };
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |at| at + 1);
        if line.len() + taken <= LINE_BYTES_MAX {
            line.extend_from_slice(&available[..taken]);
        }
        out.consume(taken);
        if end.is_some() {
            each(String::from_utf8_lossy(&line).trim());
            line.clear();
        }
    }
    drop(control);
    // The guard ends with its socket.
    let ended = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
    Err(match ended {
        Ok(status) => guard_ended(status),
        Err(_) => "its guard does not end".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guards_words_are_read() {
        assert_eq!(worded("exit 3").as_deref(), Some("exited with code 3"));
        assert!(worded("signal 9").is_some_and(|text| text.contains("SIGKILL")));
        assert_eq!(worded("signal 10").as_deref(), Some("was ended by signal 10"));
        for broken in ["", "exit", "exit x", "pid 3 4"] {
            assert_eq!(worded(broken), None, "{broken}");
        }
    }

    #[test]
    fn neuron_variables_win_over_given_ones() {
        let spec = WorkerSpec {
            name: "w".into(),
            model: "m".into(),
            command: Vec::new(),
            port: None,
            cores: Some(Cores::parse("2-3").expect("good")),
            cache: "/c".into(),
            folder: "/f".into(),
            environment: Environment(vec![("NEURON_RT_VISIBLE_CORES".into(), "0-31".into()), ("A".into(), "b".into())]),
            user: None,
            guard: "/proc/self/exe".into(),
        };
        let got = spec.full_environment();
        let value = |name: &str| got.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        assert_eq!((value("NEURON_RT_VISIBLE_CORES"), value("A")), (Some("2-3"), Some("b")));
        assert_eq!(value("NEURON_COMPILE_CACHE_URL"), Some("/c/neuron"));
        assert_eq!(got.len(), 4);
        assert_eq!(format!("{:?}", spec.environment), r#"["NEURON_RT_VISIBLE_CORES", "A"]"#, "no values");
    }
}
