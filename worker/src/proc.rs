//! Processes below a process, and the CPU time that they took, from `/proc`.
//!
//! A system without `/proc` has no figures: that is no progress and no failure.

use std::path::Path;

/// What one line of `/proc/PID/stat` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub pid: u32,
    pub parent: u32,
    pub is_zombie: bool,
    /// Its own and its ended children's.
    ticks: u64,
}

fn parsed(stat: &str) -> Option<Entry> {
    // The name stands in brackets and may hold anything, brackets too.
    let (head, rest) = stat.rsplit_once(')')?;
    let pid = head.split_once(' ')?.0.parse().ok()?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = (11..15).map(|at| fields.get(at)?.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(Entry { pid, parent: fields.get(1)?.parse().ok()?, is_zombie: matches!(*fields.first()?, "Z" | "X"), ticks })
}

fn all(root: &Path) -> Vec<Entry> {
    let Ok(folders) = std::fs::read_dir(root) else { return Vec::new() };
    let pids = folders.flatten().filter(|folder| folder.file_name().as_encoded_bytes()[0].is_ascii_digit());
    pids.filter_map(|folder| parsed(&std::fs::read_to_string(folder.path().join("stat")).ok()?)).collect()
}

/// Everything below this process, whatever group or session it went to.
pub fn below(pid: u32) -> Vec<Entry> {
    of(all(Path::new("/proc")), pid)
}

fn of(mut others: Vec<Entry>, pid: u32) -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for child in others.extract_if(.., |entry| entry.parent == parent && entry.pid != pid) {
            parents.push(child.pid);
            found.push(child);
        }
    }
    found
}

/// CPU time of everything below this process.
pub fn cpu_ms_below(pid: u32) -> u64 {
    let per_s = rustix::param::clock_ticks_per_second().max(1);
    below(pid).iter().map(|entry| entry.ticks).sum::<u64>().saturating_mul(1000) / per_s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name_is() {
        let line = "42 (a) (b 1) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 1 0 5 6 7";
        assert_eq!(parsed(line), Some(Entry { pid: 42, parent: 7, is_zombie: false, ticks: 124 }));
        for broken in ["", "42 (a", "42 (a) S", "x (a) S 7 1 1 1 1 1 1 1 1 1 1 1 1 1"] {
            assert_eq!(parsed(broken), None, "{broken}");
        }
    }

    #[test]
    fn children_of_children_are_found_and_loops_end() {
        let entry = |pid, parent| Entry { pid, parent, is_zombie: false, ticks: 0 };
        let all = vec![entry(1, 0), entry(2, 1), entry(3, 2), entry(4, 9), entry(5, 3), entry(1, 5)];
        let mut found: Vec<u32> = of(all, 1).iter().map(|entry| entry.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [2, 3, 5]);
    }
}
