//! The CPU as a device: its cores, its name and the memory this process may still take.

use std::fs;
use std::path::{Path, PathBuf};

/// What a plan needs to know. Unknown is `None`, never 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    pub name: Option<String>,
    /// Cores this process may run on (affinity and cgroup quota honoured).
    pub cores: usize,
    pub memory_available_bytes: Option<u64>,
}

/// Reads the machine this process runs on.
pub fn detect() -> Cpu {
    detect_under(Path::new("/"))
}

/// The same from a folder that stands for `/`, so that tests can bring their own machine.
pub fn detect_under(root: &Path) -> Cpu {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Cpu { name: name(root), cores, memory_available_bytes: memory_available_bytes(root) }
}

fn name(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join("proc/cpuinfo")).ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The smaller of what the machine has available and what the cgroup leaves.
fn memory_available_bytes(root: &Path) -> Option<u64> {
    let machine = meminfo_available_bytes(root);
    let group = cgroup_available_bytes(root);
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

fn meminfo_available_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The tightest limit on the way from this process's cgroup to the root. Version 2 files first, then version 1.
fn cgroup_available_bytes(root: &Path) -> Option<u64> {
    let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let v2 = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let v1 = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|controller| controller == "memory").then_some(path)
    });
    let v2_base = root.join("sys/fs/cgroup");
    let v1_base = root.join("sys/fs/cgroup/memory");
    let v2_left = ancestors(&v2_base, v2).filter_map(|folder| left(&folder, "memory.max", "memory.current")).min();
    let v1_left = ancestors(&v1_base, v1.unwrap_or("/"))
        .filter_map(|folder| left(&folder, "memory.limit_in_bytes", "memory.usage_in_bytes"))
        .min();
    v2_left.or(v1_left)
}

fn ancestors(base: &Path, path: &str) -> impl Iterator<Item = PathBuf> {
    let relative = PathBuf::from(path.trim_start_matches('/'));
    let folders: Vec<_> = relative.ancestors().map(|part| base.join(part)).collect();
    folders.into_iter()
}

fn left(folder: &Path, limit: &str, usage: &str) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    // "max" does not parse and means no limit; version 1 writes a huge number instead.
    Some(read(limit)?.saturating_sub(read(usage)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 2000 kB\nMemAvailable:    1000 kB\n");

    #[test]
    fn a_cgroup_limit_is_tighter_than_the_machine() {
        let root = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/pod/box\n"),
            ("sys/fs/cgroup/pod/box/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "500000\n"),
            ("sys/fs/cgroup/pod/memory.current", "100000\n"),
        ]);
        assert_eq!(detect_under(root.path()).memory_available_bytes, Some(400_000));
    }

    #[test]
    fn version_1_limits_are_read_too() {
        let root = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "4:cpu,memory:/a\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "300000"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "100000"),
        ]);
        assert_eq!(detect_under(root.path()).memory_available_bytes, Some(200_000));
    }

    #[test]
    fn no_limit_means_the_machine_and_no_file_means_unknown() {
        assert_eq!(detect_under(machine(&[MEMINFO]).path()).memory_available_bytes, Some(1_024_000));
        let unknown = detect_under(machine(&[("proc/meminfo", "nonsense")]).path());
        assert_eq!((unknown.memory_available_bytes, unknown.name), (None, None));
    }
}
