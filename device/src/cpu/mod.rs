//! The CPU as a device: its cores, caches, instructions and the memory this process may still take.
//!
//! Unknown is `None` or an empty list, never 0.

mod memory;

pub use memory::{HugePages, Memory};

use std::collections::BTreeSet;

use serde::Serialize;

use crate::root::Root;
use crate::topology::cpu_list;

/// What a plan and a report need to know.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cpu {
    pub name: Option<String>,
    /// Hardware threads of the machine.
    pub processors: Option<usize>,
    /// Cores of the machine; a core may have several hardware threads.
    pub physical_cores: Option<usize>,
    /// Hardware threads that this process may run on.
    pub allowed: Option<usize>,
    /// Processors' worth of time that the cgroup leaves; `None` is no limit, or none that can be read.
    pub quota: Option<f64>,
    pub caches: Vec<Cache>,
    pub numa_nodes: Vec<NumaNode>,
    /// Instructions that the kernels can use, as the kernel spells them. `None`: the list cannot be read.
    pub instructions: Option<Vec<String>>,
    pub memory: Memory,
    /// The smaller of what the machine has available and what the cgroup leaves.
    pub memory_available_bytes: Option<u64>,
}

/// Caches of one level and kind, all over the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cache {
    pub level: u32,
    /// `data`, `instruction` or `unified`.
    pub kind: String,
    /// Of one of them.
    pub bytes: u64,
    pub count: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NumaNode {
    pub index: u32,
    pub processors: Option<usize>,
    pub memory_bytes: Option<u64>,
}

/// What kernels have code for (x86, then Arm), and what a compiler may use of Arm.
const INSTRUCTIONS: &[&str] = &[
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
];

/// Reads the machine this process runs on.
pub fn detect() -> Cpu {
    detect_under(&Root::system())
}

/// The same from a folder that stands for `/`.
pub fn detect_under(root: &Root) -> Cpu {
    let information = root.text("proc/cpuinfo");
    let memory = memory::detect(root);
    let online = root.text("sys/devices/system/cpu/online").and_then(|text| cpu_list(&text));
    let in_information =
        information.as_deref().map(|text| fields(text, "processor").count()).filter(|count| *count > 0);
    Cpu {
        name: information.as_deref().and_then(name),
        processors: online.as_ref().map(BTreeSet::len).or(in_information),
        physical_cores: online.as_ref().and_then(|online| physical_cores(root, online)),
        allowed: allowed(root),
        quota: memory::cpu_quota(root),
        caches: online.as_ref().map_or_else(Vec::new, |online| caches(root, online)),
        numa_nodes: numa_nodes(root),
        instructions: information.as_deref().and_then(instructions),
        memory_available_bytes: memory.available_bytes(),
        memory,
    }
}

/// Values of a field of `/proc/cpuinfo`, one a processor.
fn fields<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let is_wanted = move |line: &'a str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    };
    text.lines().filter_map(is_wanted)
}

fn name(information: &str) -> Option<String> {
    // Arm kernels give numbers only.
    let found = fields(information, "model name").next().or_else(|| fields(information, "Model").next())?;
    (!found.is_empty()).then(|| found.to_owned())
}

fn instructions(information: &str) -> Option<Vec<String>> {
    let listed = fields(information, "flags").next().or_else(|| fields(information, "Features").next())?;
    let has: BTreeSet<&str> = listed.split_whitespace().collect();
    Some(INSTRUCTIONS.iter().filter(|name| has.contains(**name)).map(|name| (*name).to_owned()).collect())
}

fn allowed(root: &Root) -> Option<usize> {
    let status = root.text("proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    cpu_list(list).map(|cpus| cpus.len()).filter(|count| *count > 0)
}

fn physical_cores(root: &Root, online: &BTreeSet<usize>) -> Option<usize> {
    let siblings = |cpu: &usize| {
        let list = root.text(&format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))?;
        cpu_list(&list)?.first().copied()
    };
    let cores: Option<BTreeSet<usize>> = online.iter().map(siblings).collect();
    Some(cores?.len()).filter(|cores| *cores > 0)
}

/// A cache that several processors share is listed by each of them, with the same sharers.
fn caches(root: &Root, online: &BTreeSet<usize>) -> Vec<Cache> {
    let mut seen = BTreeSet::new();
    let mut caches: Vec<Cache> = Vec::new();
    for cpu in online {
        let folder = format!("sys/devices/system/cpu/cpu{cpu}/cache");
        for index in root.numbered(&folder, "index") {
            let text = |file: &str| root.text(&format!("{folder}/index{index}/{file}"));
            let read = || {
                let (level, kind) = (text("level")?.parse::<u32>().ok()?, text("type")?.to_lowercase());
                Some((level, kind, cache_bytes(&text("size")?)?, text("shared_cpu_list")?))
            };
            let Some((level, kind, bytes, sharers)) = read() else { continue };
            if !seen.insert((level, kind.clone(), sharers)) {
                continue;
            }
            match caches.iter_mut().find(|known| (known.level, &known.kind, known.bytes) == (level, &kind, bytes)) {
                Some(known) => known.count += 1,
                None => caches.push(Cache { level, kind, bytes, count: 1 }),
            }
        }
    }
    caches.sort_by(|a, b| (a.level, &a.kind).cmp(&(b.level, &b.kind)));
    caches
}

/// `32K`, `2048K`, `260M`.
fn cache_bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix('K') {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix('M').map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| *bytes > 0)
}

fn numa_nodes(root: &Root) -> Vec<NumaNode> {
    const FOLDER: &str = "sys/devices/system/node";
    let node = |index: u32| NumaNode {
        index,
        processors: root.text(&format!("{FOLDER}/node{index}/cpulist")).and_then(|list| Some(cpu_list(&list)?.len())),
        memory_bytes: root.text(&format!("{FOLDER}/node{index}/meminfo")).and_then(|text| {
            // "Node 0 MemTotal:       24684092 kB"
            let line = text.lines().find(|line| line.contains("MemTotal:"))?;
            let kib: u64 = line.split_whitespace().rev().nth(1)?.parse().ok()?;
            kib.checked_mul(1024)
        }),
    };
    root.numbered(FOLDER, "node").into_iter().map(node).collect()
}
