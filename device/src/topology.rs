//! Which of the processors this process may use are worth a thread of arithmetic.
//!
//! Two hardware threads of a core share its vector units, so one thread a core is enough. Where cores differ, every step
//! waits for the slowest one: only the fast ones are taken.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Cores with less than this share of the fastest one's capacity are left out, in percent.
const CAPACITY_PERCENT_MIN: u64 = 60;

/// Threads that arithmetic should have: one for each fast core, no more than the cgroup's quota.
pub fn threads() -> usize {
    let most = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    fast_cores().map_or(most, |cores| cores.min(most))
}

/// Fast cores among the processors that this process may run on. Unknown is `None`.
fn fast_cores() -> Option<usize> {
    fast_cores_under(Path::new("/"))
}

/// The memory nodes (NUMA) that have processors which this process may run on, and memory of which it may take. None where
/// the system does not tell.
pub fn memory_nodes() -> Vec<usize> {
    memory_nodes_under(Path::new("/")).unwrap_or_default()
}

fn memory_nodes_under(root: &Path) -> Option<Vec<usize>> {
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let list = |name: &str| cpu_list(status.lines().find_map(|line| line.strip_prefix(name))?);
    let (allowed, nodes) = (list("Cpus_allowed_list:")?, list("Mems_allowed_list:")?);
    let has_processors = |node: &usize| {
        let file = root.join(format!("sys/devices/system/node/node{node}/cpulist"));
        let near = fs::read_to_string(file).ok().and_then(|text| cpu_list(&text));
        near.is_some_and(|near| !near.is_disjoint(&allowed))
    };
    Some(nodes.into_iter().filter(has_processors).collect())
}

/// The same from a folder that stands for `/`.
fn fast_cores_under(root: &Path) -> Option<usize> {
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let allowed = cpu_list(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)?;
    let fast = fast_of(root, allowed);
    let cores: Option<BTreeSet<usize>> = fast.iter().map(|cpu| core_of(root, *cpu)).collect();
    Some(cores?.len()).filter(|cores| *cores > 0)
}

/// The processors of one kind: Intel names its two kinds, Arm gives each processor a capacity.
fn fast_of(root: &Path, allowed: BTreeSet<usize>) -> BTreeSet<usize> {
    let named = fs::read_to_string(root.join("sys/devices/cpu_core/cpus")).ok().and_then(|text| cpu_list(&text));
    if let Some(named) = named {
        let fast: BTreeSet<usize> = allowed.intersection(&named).copied().collect();
        return if fast.is_empty() { allowed } else { fast };
    }
    let capacity = |cpu: &usize| {
        let file = root.join(format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity"));
        fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()
    };
    let Some(most) = allowed.iter().filter_map(capacity).max() else { return allowed };
    let is_fast = |cpu: &usize| capacity(cpu).is_none_or(|found| found * 100 >= most * CAPACITY_PERCENT_MIN);
    allowed.into_iter().filter(is_fast).collect()
}

/// A core by the first processor that is a thread of it.
fn core_of(root: &Path, cpu: usize) -> Option<usize> {
    let file = root.join(format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
    cpu_list(&fs::read_to_string(file).ok()?)?.first().copied()
}

/// `0-3,8,10-11`, as the kernel writes it. No list has more processors than the kernel can count.
pub(crate) fn cpu_list(text: &str) -> Option<BTreeSet<usize>> {
    const CPUS_MAX: usize = 8192;
    let mut cpus = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= CPUS_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of `allowed` processors, whose siblings are given in order, and more files.
    fn machine(allowed: &str, siblings: &[&str], more: &[(&str, &str)]) -> Option<usize> {
        let root = tempfile::tempdir().expect("a temporary folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        };
        write("proc/self/status", &format!("Name:\tsconce\nCpus_allowed_list:\t{allowed}\n"));
        for (cpu, list) in siblings.iter().enumerate() {
            write(&format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"), &format!("{list}\n"));
        }
        more.iter().for_each(|(path, text)| write(path, text));
        fast_cores_under(root.path())
    }

    #[test]
    fn threads_of_one_core_count_once_and_slow_cores_not_at_all() {
        let hyper = ["0,2", "1,3", "0,2", "1,3"];
        assert_eq!(machine("0-3", &hyper, &[]), Some(2), "two cores of two threads");
        assert_eq!(machine("0,2", &hyper, &[]), Some(1), "both threads of one core");
        assert_eq!(machine("0-1", &["0", "1"], &[]), Some(2));
        let hybrid = ["0-1", "0-1", "2", "3"];
        let kinds = [("sys/devices/cpu_core/cpus", "0-1\n"), ("sys/devices/cpu_atom/cpus", "2-3\n")];
        assert_eq!(machine("0-3", &hybrid, &kinds), Some(1), "one fast core, two slow ones");
        assert_eq!(machine("2-3", &hybrid, &kinds), Some(2), "nothing but slow ones");
        let capacities = [
            ("sys/devices/system/cpu/cpu0/cpu_capacity", "1024\n"),
            ("sys/devices/system/cpu/cpu1/cpu_capacity", "446\n"),
            ("sys/devices/system/cpu/cpu2/cpu_capacity", "900\n"),
        ];
        assert_eq!(machine("0-2", &["0", "1", "2"], &capacities), Some(2), "big, little and middle");
    }

    #[test]
    fn memory_is_taken_of_nodes_whose_processors_are_used() {
        let nodes = |cpus: &str, mems: &str| {
            let root = tempfile::tempdir().expect("a temporary folder");
            let write = |path: &str, text: String| {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
                fs::write(path, text).expect("a file");
            };
            write("proc/self/status", format!("Cpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{mems}\n"));
            for (node, list) in ["0-1", "2-3", ""].iter().enumerate() {
                write(&format!("sys/devices/system/node/node{node}/cpulist"), format!("{list}\n"));
            }
            memory_nodes_under(root.path())
        };
        assert_eq!(nodes("0-3", "0-2"), Some(vec![0, 1]), "the third has no processors");
        assert_eq!(nodes("2-3", "0-2"), Some(vec![1]), "bound to the processors of one");
        assert_eq!(nodes("0-3", "0"), Some(vec![0]), "bound to the memory of one");
        assert_eq!(nodes("0-3", "5"), Some(vec![]), "not described");
        assert_eq!(memory_nodes_under(Path::new("/nowhere")), None);
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        assert_eq!(machine("0-1", &["0"], &[]), None, "a processor without a topology");
        assert_eq!(machine("3-1", &["0"], &[]), None);
        assert_eq!(machine("0-99999999999", &["0"], &[]), None);
        assert_eq!(fast_cores_under(Path::new("/nowhere")), None);
    }
}
