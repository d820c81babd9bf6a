//! A `[[member]]` of the kind `worker`: another engine, which this server starts and watches.
//!
//! Replicas are members of their own from here on: each has its cores, its health and its name in the log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sconce_providers::Timeouts;
use sconce_route::Nanos;
use sconce_worker::command::{self, Engine};
use sconce_worker::{Cores, Environment, Limits, User, WorkerSpec};

use super::member::{self, MAX_CONCURRENT_DEFAULT, MemberConfig, MemberKind};
use super::place::hint;
use super::route::{RouteConfig, RouteMember};
use super::section::{MemberSection, RestartSection};
use crate::config::env;

/// A checked worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerConfig {
    pub spec: WorkerSpec,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub max_concurrent: u32,
    pub hourly: Option<Nanos>,
}

/// More would be a mistake in the file.
const REPLICAS_MAX: u32 = 64;

/// Variables of the server that every worker gets: where programs, models and certificates are, and nothing secret but
/// the hub's token, without which it could not fetch its model.
const PASSED: [&str; 19] = [
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];
const PASSED_PREFIXES: [&str; 3] = ["NEURON_", "VLLM_", "CUDA_"];
/// Of the account that the server runs under.
const PASSED_OWN: [&str; 3] = ["HOME", "USER", "XDG_CACHE_HOME"];

/// Keys that only workers have.
pub fn keys(section: &MemberSection) -> [(&'static str, bool); 14] {
    [
        ("command", section.command.is_some()),
        ("engine", section.engine.is_some()),
        ("args", section.args.is_some()),
        ("device", section.device.is_some()),
        ("replicas", section.replicas.is_some()),
        ("port", section.port.is_some()),
        ("ready_timeout_s", section.ready_timeout_s.is_some()),
        ("hang_timeout_s", section.hang_timeout_s.is_some()),
        ("grace_s", section.grace_s.is_some()),
        ("restart", section.restart.is_some()),
        ("env", section.env.is_some()),
        ("pass_env", section.pass_env.is_some()),
        ("user", section.user.is_some()),
        ("cache", section.cache.is_some()),
    ]
}

/// Each replica with its name.
pub fn checked(section: &MemberSection) -> Result<Vec<(String, MemberKind)>, String> {
    member::refuse(&member::hosted_keys(section), "kind worker takes no")?;
    if section.max_concurrent == Some(0) {
        return Err("max_concurrent is 0; leave the member out instead".to_owned());
    }
    let replicas = section.replicas.unwrap_or(1);
    if !(1..=REPLICAS_MAX).contains(&replicas) {
        return Err(format!("replicas is {replicas}; it goes from 1 to {REPLICAS_MAX}"));
    }
    if replicas > 1 && section.port.is_some() {
        return Err("port is one and the replicas are several; leave port out, and each gets a free one".to_owned());
    }
    let device = section.device.as_deref().map(Cores::of_device).transpose()?;
    let command = command(section, device.is_some())?;
    command::check(&command, device.is_some(), section.port.is_some())?;
    let parts = match &device {
        Some(cores) => cores.split(replicas)?.into_iter().map(Some).collect(),
        None => vec![None; replicas as usize],
    };
    let user = section.user.as_deref().map(User::named).transpose()?;
    let cache = cache(section, user.as_ref())?;
    let base = WorkerConfig {
        spec: WorkerSpec {
            name: section.name.clone(),
            model: model(&section.model),
            command,
            port: section.port,
            cores: None,
            folder: cache.join("work"),
            cache,
            environment: environment(section, user.as_ref())?,
            user,
            guard: PathBuf::from("/proc/self/exe"),
        },
        limits: limits(section)?,
        timeouts: member::timeouts(section)?,
        max_concurrent: section.max_concurrent.unwrap_or(MAX_CONCURRENT_DEFAULT),
        // Replicas share the machine.
        hourly: member::hourly(section)?.map(|whole| Nanos(whole.0 / u64::from(replicas))),
    };
    let replica = |(at, cores): (usize, Option<Cores>)| {
        let mut one = base.clone();
        one.spec.cores = cores;
        if replicas > 1 {
            one.spec.name = format!("{}-{}", section.name, at + 1);
            one.spec.folder = base.spec.cache.join(format!("work-{}", at + 1));
        }
        (one.spec.name.clone(), MemberKind::Worker(Box::new(one)))
    };
    Ok(parts.into_iter().enumerate().map(replica).collect())
}

fn command(section: &MemberSection, has_cores: bool) -> Result<Vec<String>, String> {
    let mut command = match (&section.command, &section.engine) {
        (Some(command), None) => command.clone(),
        (None, Some(name)) => {
            let known = || format!("engine '{name}' is not known{}", hint(name, Engine::NAMES));
            let engine = Engine::from_name(name).ok_or_else(known)?;
            if engine.needs_cores() && !has_cores {
                return Err(format!(
                    "engine {name} needs device = \"neuron:CORES\"; without it, it would take all cores"
                ));
            }
            engine.command(&section.model)
        }
        (Some(_), Some(_)) => return Err("command and engine exclude each other; leave one out".to_owned()),
        (None, None) => {
            let engines = Engine::NAMES.join(", ");
            return Err(format!("a worker needs command = [\"PROGRAM\", ...] or engine, one of {engines}"));
        }
    };
    command.extend(section.args.iter().flatten().cloned());
    Ok(command)
}

/// A worker has a working folder of its own, so that a path must not begin here.
fn model(name: &str) -> String {
    let path = Path::new(name);
    let whole = if path.exists() { std::path::absolute(path).ok() } else { None };
    whole.map_or_else(|| name.to_owned(), |path| path.display().to_string())
}

fn cache(section: &MemberSection, user: Option<&User>) -> Result<PathBuf, String> {
    if let Some(cache) = &section.cache {
        return std::path::absolute(cache).map_err(|why| format!("cache is {}: {why}", cache.display()));
    }
    let base = match user {
        Some(user) => Some(user.home.join(".cache")),
        None => env::caches(),
    };
    let base = base.ok_or("there is no folder for caches; set cache, or XDG_CACHE_HOME or HOME")?;
    // Names may have signs that paths must not.
    let folder: String = section
        .name
        .chars()
        .map(|sign| if sign.is_ascii_alphanumeric() || "-_".contains(sign) { sign } else { '_' })
        .collect();
    Ok(base.join("sconce/workers").join(folder))
}

fn environment(section: &MemberSection, user: Option<&User>) -> Result<Environment, String> {
    let also = section.pass_env.as_deref().unwrap_or_default();
    if let Some(missing) = also.iter().find(|name| env::named(name).is_none()) {
        return Err(format!("pass_env names {missing}, which is not set; set it, or leave it out"));
    }
    let is_passed = |name: &str| {
        // Proxies are written in both ways.
        PASSED.contains(&name)
            || ["http_proxy", "https_proxy", "no_proxy"].contains(&name)
            || PASSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || (user.is_none() && PASSED_OWN.contains(&name))
            || also.iter().any(|wanted| wanted == name)
    };
    let mut all: BTreeMap<String, String> = env::matching(is_passed).into_iter().collect();
    if let Some(user) = user {
        all.insert("HOME".to_owned(), user.home.display().to_string());
        all.insert("USER".to_owned(), user.name.clone());
    }
    for (name, value) in section.env.iter().flatten() {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!("env has '{name}', which is no name of a variable with a value"));
        }
        all.insert(name.clone(), value.clone());
    }
    Ok(Environment(all.into_iter().collect()))
}

fn limits(section: &MemberSection) -> Result<Limits, String> {
    let defaults = Limits::default();
    let none = RestartSection::default();
    let restart = section.restart.as_ref().unwrap_or(&none);
    let ms = |key: &str, value: Option<f64>, default_ms: u64| match value {
        None => Ok(default_ms),
        Some(value) => {
            super::seconds(key, value).map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1))
        }
    };
    let crashes_max = restart.crashes_max.unwrap_or(defaults.crashes_max);
    if crashes_max == 0 {
        return Err("restart.crashes_max is 0; 1 calls the first end a crash loop".to_owned());
    }
    let limits = Limits {
        ready_ms: ms("ready_timeout_s", section.ready_timeout_s, defaults.ready_ms)?,
        hang_ms: ms("hang_timeout_s", section.hang_timeout_s, defaults.hang_ms)?,
        grace_ms: ms("grace_s", section.grace_s, defaults.grace_ms)?,
        crashes_max,
        crash_window_ms: ms("restart.window_s", restart.window_s, defaults.crash_window_ms)?,
        retry_ms: ms("restart.retry_s", restart.retry_s, defaults.retry_ms)?,
        backoff_first_ms: ms("restart.backoff_first_s", restart.backoff_first_s, defaults.backoff_first_ms)?,
        backoff_max_ms: ms("restart.backoff_max_s", restart.backoff_max_s, defaults.backoff_max_ms)?,
        stable_ms: defaults.stable_ms,
    };
    if limits.backoff_first_ms > limits.backoff_max_ms {
        return Err("restart.backoff_first_s is over backoff_max_s; the first pause is the shortest".to_owned());
    }
    Ok(limits)
}

/// A core or a port that another worker has already.
pub fn overlap(members: &[MemberConfig], member: &MemberConfig) -> Option<String> {
    let MemberKind::Worker(own) = &member.kind else { return None };
    members.iter().find_map(|other| {
        let MemberKind::Worker(worker) = &other.kind else { return None };
        let cores = worker.spec.cores.as_ref().zip(own.spec.cores.as_ref());
        if let Some(core) = cores.and_then(|(one, two)| one.shared_with(two)) {
            let (one, two) = (&other.name, &member.name);
            return Some(format!("core {core} belongs to '{one}' and to '{two}'; a core serves one worker"));
        }
        let port = own.spec.port.filter(|port| worker.spec.port == Some(*port))?;
        Some(format!(
            "port {port} belongs to '{}' and to '{}'; leave it out, and each gets a free one",
            other.name, member.name
        ))
    })
}

/// A route over replicas: together they have the part that the file gives to their name.
pub fn spread(mut route: RouteConfig, replicas: &[(String, Vec<String>)]) -> Result<RouteConfig, String> {
    let of = |name: &str| replicas.iter().find(|(known, _)| known == name).map(|(_, names)| names.as_slice());
    if let Some(shadow) = &route.shadow
        && let Some(names) = of(&shadow.member)
    {
        return Err(format!("shadow.member '{}' has replicas; name one of {}", shadow.member, names.join(", ")));
    }
    // A multiple of every number of replicas keeps the weights whole.
    let counts = route.members.iter().filter_map(|member| of(&member.name)).map(|names| names.len() as u32);
    let multiple = counts.fold(1, least_common_multiple);
    let mut members: Vec<RouteMember> = Vec::new();
    for member in route.members {
        let names = of(&member.name).map_or_else(|| vec![member.name.clone()], <[String]>::to_vec);
        let count = names.len() as u32;
        let weight =
            member.weight.checked_mul(multiple).ok_or_else(|| format!("the weight {} is too large", member.weight))?;
        for name in names {
            if members.iter().any(|other| other.name == name) {
                return Err(format!("the member '{name}' is named twice, once as a replica"));
            }
            let canary = member.canary.map(|share| share / f64::from(count));
            members.push(RouteMember { name, weight: weight / count, canary, ..member.clone() });
        }
    }
    route.members = members;
    Ok(route)
}

fn least_common_multiple(one: u32, other: u32) -> u32 {
    let (mut a, mut b) = (one, other);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    (one / a.max(1)).saturating_mul(other)
}
