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
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let page_bytes = rustix::param::page_size() as f64;
    let stat = std::fs::read_to_string("/proc/self/stat").ok();
    if let Some(usage) = stat.and_then(|stat| parse_stat(&stat, ticks_per_second, page_bytes)) {
        page.counter("process_cpu_seconds_total", "user and system CPU time", usage.cpu_s);
        page.gauge("process_resident_memory_bytes", "resident memory", usage.resident_bytes);
        if let Some(boot_s) = boot_time_s() {
            let started_s = boot_s + usage.start_ticks / ticks_per_second;
            page.gauge("process_start_time_seconds", "Unix time of the start", started_s);
        }
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        // The listing itself holds one descriptor open.
        let open = descriptors.count().saturating_sub(1);
        page.gauge("process_open_fds", "open file descriptors", open as f64);
    }
}

/// Fields of /proc/self/stat (proc_pid_stat(5)); the program's name may hold spaces and brackets, so they are counted
/// from the last ')': utime is the 14th field of the line, stime the 15th, starttime the 22nd, rss the 24th.
fn parse_stat(stat: &str, ticks_per_second: f64, page_bytes: f64) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Usage {
        cpu_s: (field(14)? + field(15)?) / ticks_per_second,
        resident_bytes: field(24)? * page_bytes,
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
        let stat = "1 (a) b) R 0 0 0 0 -1 0 0 0 0 0 250 150 0 0 20 0 1 0 700 1000 3 0";
        assert_eq!(
            parse_stat(stat, 100.0, 4096.0),
            Some(Usage { cpu_s: 4.0, resident_bytes: 12288.0, start_ticks: 700.0 })
        );
        assert_eq!(parse_stat("1 (a) R 0", 100.0, 4096.0), None);
    }
}
