//! Memory of the machine, and what a cgroup leaves of it and of the processors. Version 2 files first, then version 1.

use serde::Serialize;

use crate::root::Root;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    pub total_bytes: Option<u64>,
    /// What the machine could give without swapping.
    pub machine_available_bytes: Option<u64>,
    /// The tightest limit of this process's cgroups; `None` is no limit, or none that can be read.
    pub limit_bytes: Option<u64>,
    /// What is left under the limit that leaves least.
    pub limit_left_bytes: Option<u64>,
    pub huge_pages: Option<HugePages>,
}

/// Transparent huge pages: weights on them are read faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    Always,
    /// Where a program asks for them, as this one does.
    Madvise,
    Never,
}

impl Memory {
    pub fn available_bytes(&self) -> Option<u64> {
        match (self.machine_available_bytes, self.limit_left_bytes) {
            (Some(machine), Some(group)) => Some(machine.min(group)),
            (machine, group) => machine.or(group),
        }
    }
}

pub(super) fn detect(root: &Root) -> Memory {
    let information = root.text("proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = information.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let limits = limits(root);
    let total_bytes = kib("MemTotal:");
    Memory {
        total_bytes,
        machine_available_bytes: kib("MemAvailable:"),
        // Version 1 writes a huge number where there is no limit.
        limit_bytes: limits
            .iter()
            .map(|(limit, _)| *limit)
            .min()
            .filter(|limit| *limit < total_bytes.unwrap_or(1 << 60)),
        limit_left_bytes: limits.iter().map(|(limit, used)| limit.saturating_sub(*used)).min(),
        huge_pages: huge_pages(root),
    }
}

/// Limit and use of each cgroup from this process's own to the root.
fn limits(root: &Root) -> Vec<(u64, u64)> {
    let read = |folder: &str, limit: &str, usage: &str| {
        // "max" does not parse and means no limit. A group whose use is not known is taken as empty.
        let limit = root.number(&format!("{folder}/{limit}"))?;
        Some((limit, root.number(&format!("{folder}/{usage}")).unwrap_or(0)))
    };
    let v2 = folders(root, None).into_iter().filter_map(|folder| read(&folder, "memory.max", "memory.current"));
    let v2: Vec<_> = v2.collect();
    if !v2.is_empty() {
        return v2;
    }
    let v1 = folders(root, Some("memory")).into_iter();
    v1.filter_map(|folder| read(&folder, "memory.limit_in_bytes", "memory.usage_in_bytes")).collect()
}

/// Processors' worth of time that the tightest cgroup leaves.
pub(super) fn cpu_quota(root: &Root) -> Option<f64> {
    let share = |quota: f64, period: f64| (quota > 0.0 && period > 0.0).then(|| quota / period);
    let v2 = folders(root, None).into_iter().filter_map(|folder| {
        // "max 100000" or "150000 100000"
        let text = root.text(&format!("{folder}/cpu.max"))?;
        let (quota, period) = text.split_once(' ')?;
        share(quota.parse().ok()?, period.parse().ok()?)
    });
    let v1 = folders(root, Some("cpu")).into_iter().filter_map(|folder| {
        let number = |file: &str| root.text(&format!("{folder}/{file}"))?.parse::<f64>().ok();
        share(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
    });
    v2.reduce(f64::min).or_else(|| v1.reduce(f64::min))
}

/// The folders of this process's cgroup and of those around it: of version 2, or of a controller of version 1.
fn folders(root: &Root, controller: Option<&str>) -> Vec<String> {
    let groups = root.text("proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| match controller {
        None => line.strip_prefix("0::"),
        Some(wanted) => {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|controller| controller == wanted).then_some(path)
        }
    });
    let base = controller.map_or("sys/fs/cgroup".to_owned(), |name| format!("sys/fs/cgroup/{name}"));
    // A path that climbs out of the folder is no path of a cgroup seen from in here.
    let parts: Vec<&str> = own.unwrap_or("/").split('/').filter(|part| !part.is_empty() && *part != "..").collect();
    (0..=parts.len()).rev().map(|length| format!("{base}/{}", parts[..length].join("/"))).collect()
}

fn huge_pages(root: &Root) -> Option<HugePages> {
    let text = root.text("sys/kernel/mm/transparent_hugepage/enabled")?;
    let chosen = text.split_once('[')?.1.split_once(']')?.0;
    match chosen {
        "always" => Some(HugePages::Always),
        "madvise" => Some(HugePages::Madvise),
        "never" => Some(HugePages::Never),
        _ => None,
    }
}
