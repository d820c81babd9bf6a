//! What is missing or in the way, from what was found. Pure.

use serde::Serialize;

use crate::cpu::{Cpu, HugePages};
use crate::fit::human_bytes;
use crate::machine::Machine;
use crate::neuron::{Layout, Neuron};
use crate::nvidia::{CUDA_MIN, DRIVER_MAJOR_MIN, Library, Nvidia, Report};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good to know.
    Note,
    /// Slower or less than it could be.
    Warning,
    /// Something that is here cannot be used.
    Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// Which part: `cpu`, `memory`, `nvidia`, `neuron`.
    pub part: &'static str,
    /// What is so, and what to do about it.
    pub what: String,
}

/// The worst first.
pub fn findings(machine: &Machine) -> Vec<Finding> {
    let mut found = Vec::new();
    cpu(&machine.cpu, &mut found);
    memory(&machine.cpu, &mut found);
    nvidia(&machine.nvidia, &mut found);
    neuron(&machine.neuron, &mut found);
    found.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    found
}

type Found = Vec<Finding>;

fn add(found: &mut Found, level: Level, part: &'static str, what: impl Into<String>) {
    found.push(Finding { level, part, what: what.into() });
}

fn cpu(cpu: &Cpu, found: &mut Found) {
    let Some(instructions) = &cpu.instructions else {
        add(found, Level::Note, "cpu", "the list of instructions cannot be read; kernels choose at run time anyhow");
        return;
    };
    let has = |name: &str| instructions.iter().any(|known| known == name);
    if !has("avx2") {
        add(found, Level::Warning, "cpu", "no AVX2: kernels run their portable code, several times slower");
    } else if !has("avx512_vnni") && !has("avx_vnni") {
        add(found, Level::Note, "cpu", "no VNNI: products of quantised weights take more instructions");
    }
    if has("avx2") && !has("avx512_bf16") {
        let what = "no bf16 instructions: bf16 weights are computed in f32; quantised weights are faster here";
        add(found, Level::Note, "cpu", what);
    }
    if let Some(quota) = cpu.quota
        && cpu.allowed.is_some_and(|allowed| quota < allowed as f64)
    {
        let allowed = cpu.allowed.unwrap_or_default();
        let what = format!("the cgroup leaves the time of {quota:.1} processors of {allowed}; give it whole ones");
        add(found, if quota < 1.0 { Level::Warning } else { Level::Note }, "cpu", what);
    }
}

fn memory(cpu: &Cpu, found: &mut Found) {
    match (cpu.memory.limit_bytes, cpu.memory.total_bytes) {
        (Some(limit), Some(total)) if limit < total => {
            let (limit, total) = (human_bytes(limit), human_bytes(total));
            add(found, Level::Note, "memory", format!("the cgroup may use {limit} of the machine's {total}"));
        }
        _ => {}
    }
    if cpu.memory_available_bytes.is_none() {
        let what = "how much memory is available cannot be read; plans then only keep to their default sizes";
        add(found, Level::Warning, "memory", what);
    }
    if cpu.memory.huge_pages == Some(HugePages::Never) {
        let what = "transparent huge pages are off: weights are read up to a fifth slower; as root: \
                    echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
        add(found, Level::Warning, "memory", what);
    }
}

fn nvidia(nvidia: &Nvidia, found: &mut Found) {
    let (count, version) = (nvidia.plugged_in.len(), nvidia.driver_version.as_deref());
    match (count, version) {
        (0, None) => return,
        (0, Some(version)) => {
            let what =
                format!("driver {version} is loaded and no GPU is on the bus; a virtual machine needs one passed in");
            add(found, Level::Warning, "nvidia", what);
        }
        (_, None) => {
            let what = format!("{count} GPU on the bus and no driver loaded; install NVIDIA's driver");
            add(found, Level::Problem, "nvidia", what);
            return;
        }
        (_, Some(_)) if nvidia.nodes.is_empty() => {
            let what = "a GPU and a driver, and no /dev/nvidia0 here; start the container with --gpus all";
            add(found, Level::Problem, "nvidia", what);
        }
        _ => {}
    }
    match &nvidia.library {
        Library::NotOpened => {}
        Library::Failed(why) => {
            let what =
                format!("the driver's library NVML does not answer: {why}; install the driver's user-space part");
            add(found, Level::Problem, "nvidia", what);
        }
        Library::Read(report) => gpus(report, nvidia, found),
    }
}

fn gpus(report: &Report, nvidia: &Nvidia, found: &mut Found) {
    let major = report.driver_version.as_deref().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    let wanted = format!("CUDA {}.{} is needed; update the driver", CUDA_MIN.0, CUDA_MIN.1);
    match (report.cuda, major) {
        (Some(cuda), _) if cuda < CUDA_MIN => {
            let what = format!("the driver runs CUDA up to {}.{}, too old: {wanted}", cuda.0, cuda.1);
            add(found, Level::Problem, "nvidia", what);
        }
        (None, Some(major)) if major < DRIVER_MAJOR_MIN => {
            add(found, Level::Problem, "nvidia", format!("the driver is of the {major} series, too old: {wanted}"));
        }
        _ => {}
    }
    if report.gpus.len() < nvidia.plugged_in.len() {
        let (seen, all) = (report.gpus.len(), nvidia.plugged_in.len());
        add(found, Level::Warning, "nvidia", format!("{all} GPUs on the bus, {seen} known to the driver; see dmesg"));
    }
    for gpu in &report.gpus {
        let index = gpu.index;
        if gpu.name.is_none() && gpu.memory_total_bytes.is_none() {
            add(
                found,
                Level::Problem,
                "nvidia",
                format!("GPU {index} does not answer; it may have fallen off the bus"),
            );
        }
        if gpu.mig.as_ref().is_some_and(|mig| mig.enabled && mig.instances.is_empty()) {
            let what = format!("GPU {index} is in MIG mode without an instance; make one with nvidia-smi mig -cgi");
            add(found, Level::Problem, "nvidia", what);
        }
        let processes = gpu.processes.as_deref().unwrap_or_default();
        if let Some(used) = gpu.memory_used_bytes.filter(|_| !processes.is_empty()) {
            let pids: Vec<_> = processes.iter().map(|process| process.pid.to_string()).collect();
            let what = format!("GPU {index}: {} in use, by process {}", human_bytes(used), pids.join(", "));
            add(found, Level::Note, "nvidia", what);
        }
    }
}

fn neuron(neuron: &Neuron, found: &mut Found) {
    match (neuron.plugged_in.len(), neuron.has_driver) {
        (0, false) => return,
        (count, false) => {
            let what = format!("{count} Neuron device on the bus and no driver loaded; install aws-neuronx-dkms");
            add(found, Level::Problem, "neuron", what);
            return;
        }
        (0, true) if neuron.devices.is_empty() => {
            add(
                found,
                Level::Warning,
                "neuron",
                "the driver is loaded and there is no device; is this an inf or trn instance?",
            );
            return;
        }
        _ => {}
    }
    if neuron.layout == Layout::Unknown {
        let version = neuron.driver_version.as_deref().unwrap_or("of unknown version");
        let what =
            format!("driver {version} shows its devices in a way that is not known here; figures come from the chip");
        add(found, Level::Warning, "neuron", what);
    }
    let (mapped, all) = (neuron.mapped().count(), neuron.devices.len().max(neuron.plugged_in.len()));
    if mapped == 0 {
        let what = format!("{all} devices and no /dev/neuron0 here; start the container with --device /dev/neuron0");
        add(found, Level::Problem, "neuron", what);
    } else if mapped < all {
        add(found, Level::Note, "neuron", format!("{mapped} of {all} devices are mapped into this container"));
    }
    for device in neuron.devices.iter().filter(|device| device.uncorrected_memory_errors.is_some_and(|count| count > 0))
    {
        let count = device.uncorrected_memory_errors.unwrap_or_default();
        let what = format!(
            "device {} had {count} memory errors that could not be corrected; replace the instance",
            device.index
        );
        add(found, Level::Warning, "neuron", what);
    }
    if !neuron.denied.is_empty() {
        add(found, Level::Note, "neuron", "some of the driver's files are for root only; as root more would be known");
    }
    if neuron.world_writable {
        let what =
            "any user may open the devices and read all of their memory; give /dev/neuron* to a group of their own";
        add(found, Level::Note, "neuron", what);
    }
}
