//! CPUs and their memory, with and without limits.

use sconce_device::cpu::{Cache, Cpu, HugePages, NumaNode, detect, detect_under};

use super::trees::Tree;

const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 2000 kB\nMemAvailable:    1000 kB\n");

fn found(files: &[(&str, &str)]) -> Cpu {
    detect_under(&Tree::of(files).root())
}

#[test]
fn a_cgroup_limit_is_tighter_than_the_machine() {
    let cpu = found(&[
        MEMINFO,
        ("proc/self/cgroup", "0::/pod/box\n"),
        ("sys/fs/cgroup/pod/box/memory.max", "max\n"),
        ("sys/fs/cgroup/pod/memory.max", "500000\n"),
        ("sys/fs/cgroup/pod/memory.current", "100000\n"),
        ("sys/fs/cgroup/pod/box/cpu.max", "150000 100000\n"),
        ("sys/fs/cgroup/pod/cpu.max", "max 100000\n"),
    ]);
    assert_eq!((cpu.memory_available_bytes, cpu.memory.limit_bytes), (Some(400_000), Some(500_000)));
    assert_eq!(cpu.quota, Some(1.5));
}

#[test]
fn the_tightest_limit_is_the_one_that_leaves_least() {
    let cpu = found(&[
        MEMINFO,
        ("proc/self/cgroup", "0::/a\n"),
        ("sys/fs/cgroup/a/memory.max", "300000\n"),
        ("sys/fs/cgroup/a/memory.current", "0\n"),
        ("sys/fs/cgroup/memory.max", "900000\n"),
        ("sys/fs/cgroup/memory.current", "800000\n"),
    ]);
    assert_eq!((cpu.memory_available_bytes, cpu.memory.limit_bytes), (Some(100_000), Some(300_000)));
}

#[test]
fn version_1_limits_are_read_too() {
    let cpu = found(&[
        MEMINFO,
        ("proc/self/cgroup", "5:cpuset:/c\n4:cpu,cpuacct:/a\n3:memory:/a\n"),
        ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "300000"),
        ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "100000"),
        ("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1"),
        ("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000"),
        ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000"),
        ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
    ]);
    assert_eq!((cpu.memory_available_bytes, cpu.quota), (Some(200_000), Some(0.5)));
    let unlimited = found(&[MEMINFO, ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")]);
    assert_eq!((unlimited.memory.limit_bytes, unlimited.memory_available_bytes), (None, Some(1_024_000)));
}

#[test]
fn no_limit_means_the_machine_and_no_file_means_unknown() {
    assert_eq!(found(&[MEMINFO]).memory_available_bytes, Some(1_024_000));
    let unknown = found(&[("proc/meminfo", "nonsense"), ("proc/cpuinfo", ""), ("proc/self/cgroup", "0::/../..\n")]);
    assert_eq!((unknown.memory_available_bytes, unknown.name, unknown.processors), (None, None, None));
    let nothing = found(&[]);
    assert_eq!((nothing.instructions, nothing.quota, nothing.allowed), (None, None, None));
    assert!(nothing.caches.is_empty() && nothing.numa_nodes.is_empty());
}

#[test]
fn cores_caches_nodes_and_instructions_of_a_server() {
    let tree = Tree::of(&[
        (
            "proc/cpuinfo",
            "processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: fpu avx2 avx512f amx_tile\nprocessor\t: 1\n",
        ),
        ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-2\n"),
        ("sys/devices/system/cpu/online", "0-3\n"),
        ("sys/devices/system/node/node0/cpulist", "0-1\n"),
        ("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:       1024 kB\nNode 0 MemFree: 1 kB\n"),
        ("sys/devices/system/node/node1/cpulist", "2-3\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    ]);
    for (cpu, siblings) in ["0,2", "1,3", "0,2", "1,3"].iter().enumerate() {
        let folder = format!("sys/devices/system/cpu/cpu{cpu}");
        tree.file(&format!("{folder}/topology/thread_siblings_list"), siblings);
        for (index, level, kind, size, shared) in [
            (0, "1", "Data", "48K", *siblings),
            (1, "2", "Unified", "2048K", *siblings),
            (2, "3", "Unified", "260M", "0-3"),
        ] {
            for (file, text) in [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)] {
                tree.file(&format!("{folder}/cache/index{index}/{file}"), text);
            }
        }
    }
    let cpu = detect_under(&tree.root());
    assert_eq!((cpu.processors, cpu.physical_cores, cpu.allowed), (Some(4), Some(2), Some(3)));
    let cache = |level, kind: &str, bytes, count| Cache { level, kind: kind.to_owned(), bytes, count };
    let expected = [cache(1, "data", 48 << 10, 2), cache(2, "unified", 2 << 20, 2), cache(3, "unified", 260 << 20, 1)];
    assert_eq!(cpu.caches, expected);
    let node = |index, memory_bytes| NumaNode { index, processors: Some(2), memory_bytes };
    assert_eq!(cpu.numa_nodes, [node(0, Some(1 << 20)), node(1, None)]);
    assert_eq!(cpu.instructions, Some(vec!["avx2".to_owned(), "avx512f".to_owned(), "amx_tile".to_owned()]));
    assert_eq!((cpu.name.as_deref(), cpu.memory.huge_pages), (Some("Some Xeon"), Some(HugePages::Madvise)));
}

#[test]
fn this_machine_is_found() {
    let cpu = detect();
    assert!(cpu.allowed.is_some_and(|count| count >= 1), "{cpu:?}");
    let (total, available) =
        (cpu.memory.total_bytes.expect("Linux says"), cpu.memory_available_bytes.expect("Linux says"));
    assert!(available <= total && available > 1 << 20, "{cpu:?}");
    assert!(cpu.allowed <= cpu.processors, "{cpu:?}");
}
