//! What this process uses, from /proc, under the names Prometheus' own client libraries give.
//!
//! On a system without /proc the lines are left out: a missing figure is better than a wrong one.

use std::sync::OnceLock;

use super::exposition::Exposition;

/// One process's use of the machine.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Usage {
    cpu_s: f64,
    resident_bytes: f64,
    start_ticks: f64,
}

pub(super) fn write(page: &mut Exposition) {
    let stat = std::fs::read_to_string("/proc/self/stat").ok();
    if let (Some(units), Some(stat)) = (units(), stat)
        && let Some(usage) = parse_stat(&stat, units)
    {
        page.counter("process_cpu_seconds_total", "user and system CPU time", usage.cpu_s);
        page.gauge("process_resident_memory_bytes", "resident memory", usage.resident_bytes);
        if let Some(boot_s) = boot_time_s() {
            let started_s = boot_s + usage.start_ticks / units.ticks_per_second;
            page.gauge("process_start_time_seconds", "Unix time of the start", started_s);
        }
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        // The listing itself holds one descriptor open.
        let open = descriptors.count().saturating_sub(1);
        page.gauge("process_open_fds", "open file descriptors", open as f64);
    }
}

/// What the kernel counts in.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Units {
    ticks_per_second: f64,
    page_bytes: f64,
}

/// Read once, from the auxiliary vector that the kernel gave this process (getauxval(3)).
fn units() -> Option<Units> {
    static UNITS: OnceLock<Option<Units>> = OnceLock::new();
    *UNITS.get_or_init(|| parse_auxiliary(&std::fs::read("/proc/self/auxv").ok()?))
}

/// Pairs of machine words: a type and its value.
fn parse_auxiliary(bytes: &[u8]) -> Option<Units> {
    const PAGE_BYTES: usize = 6; // AT_PAGESZ
    const TICKS_PER_SECOND: usize = 17; // AT_CLKTCK
    let (words, _) = bytes.as_chunks::<{ size_of::<usize>() }>();
    let words: Vec<usize> = words.iter().map(|word| usize::from_ne_bytes(*word)).collect();
    let value = |kind| words.chunks_exact(2).find(|pair| pair[0] == kind).map(|pair| pair[1] as f64);
    Some(Units { ticks_per_second: value(TICKS_PER_SECOND)?, page_bytes: value(PAGE_BYTES)? })
}

/// Fields of /proc/self/stat (proc_pid_stat(5)); the program's name may hold spaces and brackets, so they are counted
/// from the last ')': utime is the 14th field of the line, stime the 15th, starttime the 22nd, rss the 24th.
fn parse_stat(stat: &str, units: Units) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Usage {
        cpu_s: (field(14)? + field(15)?) / units.ticks_per_second,
        resident_bytes: field(24)? * units.page_bytes,
        start_ticks: field(22)?,
    })
}

/// Read once: the file lists every CPU and interrupt and is slow on large machines.
fn boot_time_s() -> Option<f64> {
    static BOOT_S: OnceLock<Option<f64>> = OnceLock::new();
    *BOOT_S.get_or_init(|| {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_a_hostile_program_name() {
        let units = Units { ticks_per_second: 100.0, page_bytes: 4096.0 };
        let stat = "1 (a) b) R 0 0 0 0 -1 0 0 0 0 0 250 150 0 0 20 0 1 0 700 1000 3 0";
        assert_eq!(parse_stat(stat, units), Some(Usage { cpu_s: 4.0, resident_bytes: 12288.0, start_ticks: 700.0 }));
        assert_eq!(parse_stat("1 (a) R 0", units), None);
    }

    #[test]
    fn units_are_found_by_their_type() {
        let words: [usize; 6] = [6, 4096, 17, 100, 0, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(parse_auxiliary(&bytes), Some(Units { ticks_per_second: 100.0, page_bytes: 4096.0 }));
        assert_eq!(parse_auxiliary(&bytes[..16]), None);
    }
}
