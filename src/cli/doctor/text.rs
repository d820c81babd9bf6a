//! The report for people.

use super::Report;
use super::models::{Checked, Listed, Verdict};
use super::rented::Rented;
use crate::device::Machine;
use crate::device::cpu::Cpu;
use crate::device::findings::Level;
use crate::device::fit::human_bytes;
use crate::device::fit::roofline::{CONTEXT_TOKENS, MANY, rounded};
use crate::device::neuron::Neuron;
use crate::device::nvidia::Gpu;
use crate::device::rates::Hardware;

pub fn render(report: &Report) -> String {
    let mut text = "This machine\n".to_owned();
    text += &machine(&report.machine);
    if let Some(measured) = &report.measured {
        text += &field("measured", &rates_line(measured));
    }
    if !report.findings.is_empty() {
        text += "\nWhat to know\n";
    }
    for finding in &report.findings {
        let level = match finding.level {
            Level::Problem => "problem",
            Level::Warning => "warning",
            Level::Note => "note",
        };
        text += &field(level, &format!("{}: {}", finding.part, finding.what));
    }
    if !report.models.is_empty() {
        text += "\nModels\n";
        text += &report.models.iter().map(model).collect::<String>();
    }
    if let Some(together) = &report.together {
        text += &format!("  together\n{}", deeper(if together.fits { "fit" } else { "NO" }, &together.sentence()));
    }
    text += &rented(&report.instances);
    text + &catalogue(&report.catalogue)
}

fn field(name: &str, value: &str) -> String {
    format!("  {name:9} {value}\n")
}

fn deeper(name: &str, value: &str) -> String {
    format!("    {name:9} {value}\n")
}

fn unknown(value: Option<String>) -> String {
    value.unwrap_or_else(|| "unknown".to_owned())
}

fn machine(machine: &Machine) -> String {
    let mut text = cpu(&machine.cpu);
    let nvidia = &machine.nvidia;
    let driver = nvidia.driver_version.as_deref().map_or("no driver".to_owned(), |version| format!("driver {version}"));
    if nvidia.gpus().is_empty() {
        let count = nvidia.plugged_in.len();
        text +=
            &field("NVIDIA", &if count == 0 { "no GPU".to_owned() } else { format!("{count} on the bus, {driver}") });
    }
    for one in nvidia.gpus() {
        text += &field(&format!("GPU {}", one.index), &format!("{}, {driver}", gpu(one)));
    }
    text + &field("Neuron", &neuron(&machine.neuron))
}

fn cpu(cpu: &Cpu) -> String {
    let count = |count: Option<usize>| unknown(count.map(|count| count.to_string()));
    let mut about = format!("{}, {} cores", unknown(cpu.name.clone()), count(cpu.physical_cores));
    if cpu.processors != cpu.physical_cores {
        about += &format!(" with {} threads", count(cpu.processors));
    }
    if cpu.allowed != cpu.processors {
        about += &format!(", {} for this process", count(cpu.allowed));
    }
    if cpu.numa_nodes.len() > 1 {
        about += &format!(", {} NUMA nodes", cpu.numa_nodes.len());
    }
    let mut text = field("CPU", &about);
    let caches: Vec<String> = cpu
        .caches
        .iter()
        .filter(|cache| cache.kind != "instruction")
        .map(|cache| {
            let many = if cache.count > 1 { format!("{} x ", cache.count) } else { String::new() };
            format!("L{} {many}{}", cache.level, human_bytes(cache.bytes))
        })
        .collect();
    text += &field("caches", &if caches.is_empty() { "unknown".to_owned() } else { caches.join(", ") });
    text += &field("ISA", &unknown(cpu.instructions.as_ref().map(|names| names.join(" "))));
    let bytes = |bytes: Option<u64>| unknown(bytes.map(human_bytes));
    let mut memory = format!("{} available of {}", bytes(cpu.memory_available_bytes), bytes(cpu.memory.total_bytes));
    if let Some(limit) = cpu.memory.limit_bytes {
        memory += &format!(", cgroup limit {}", human_bytes(limit));
    }
    text + &field("memory", &memory)
}

fn rates_line(hardware: &Hardware) -> String {
    let giga = |rate: f64| format!("{:.0}", rate / 1e9);
    let maybe = |rate: Option<f64>| rate.map_or("none".to_owned(), giga);
    format!(
        "memory read {} GB/s, products f32 {}, bf16 {}, int8 {} G/s ({} threads)",
        giga(hardware.read_bytes_per_s),
        giga(hardware.f32_per_s),
        maybe(hardware.bf16_per_s),
        maybe(hardware.int8_per_s),
        hardware.threads
    )
}

fn gpu(gpu: &Gpu) -> String {
    let bytes = |bytes: Option<u64>| unknown(bytes.map(human_bytes));
    let mut text = unknown(gpu.name.clone());
    text += &format!(", {} free of {}", bytes(gpu.memory_free_bytes), bytes(gpu.memory_total_bytes));
    if let Some(rate) = gpu.read_bytes_per_s {
        text += &format!(", {:.0} GB/s", rate / 1e9);
    }
    if let Some((major, minor)) = gpu.compute_capability {
        text += &format!(", compute capability {major}.{minor}");
    }
    match &gpu.mig {
        Some(mig) if mig.enabled => text + &format!(", in {} MIG instances", mig.instances.len()),
        _ => text,
    }
}

fn neuron(neuron: &Neuron) -> String {
    if neuron.devices.is_empty() {
        return match neuron.plugged_in.len() {
            0 => "no device".to_owned(),
            count => format!("{count} on the bus, no driver"),
        };
    }
    let number = |number: Option<u32>| unknown(number.map(|number| number.to_string()));
    let mapped: Vec<_> = neuron.mapped().collect();
    let first = mapped.first().copied().unwrap_or(&neuron.devices[0]);
    let each = format!(
        "{}, {} cores ({} logical) and {} each",
        first.chip.map_or("unknown chip", |chip| chip.name()),
        number(first.cores),
        number(first.logical_cores),
        unknown(first.memory_bytes.map(human_bytes)),
    );
    let place = neuron.instance_type.as_ref().map_or(String::new(), |name| format!(" of an {name}"));
    let driver = unknown(neuron.driver_version.clone());
    format!("{} of {} devices{place}: {each}, driver {driver}", mapped.len(), neuron.devices.len())
}

fn model(checked: &Checked) -> String {
    let mut text = format!("  {}\n", checked.model);
    match &checked.verdict {
        Verdict::Fits { what, memory_bytes, least_bytes, max_model_len, choices, expect, estimated, .. } => {
            text += &deeper(
                "is",
                &format!("{what}{}", if *estimated { ", not downloaded: sizes are estimates" } else { "" }),
            );
            let (least, full) = (human_bytes(*least_bytes), human_bytes(*memory_bytes));
            text +=
                &deeper("fits", &format!("{full} with its KV cache full, {least} with one context of {max_model_len}"));
            text += &choices.iter().map(|choice| deeper("chosen", choice)).collect::<String>();
            text += &expect.as_ref().map_or(String::new(), |expect| deeper("expect", expect));
        }
        Verdict::DoesNotFit { what, why, what_would } => {
            text += &deeper("is", what);
            text += &deeper("NO", why);
            text += &what_would.iter().map(|would| deeper("would fit", would)).collect::<String>();
        }
        Verdict::Unusable { why } => text += &deeper("NO", why),
        Verdict::Unknown { why } => text += &deeper("unknown", why),
    }
    text
}

fn rented(all: &[Rented]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut text =
        "\nRented machines that hold them (rates and prices at the limit of the hardware: at most, at least)\n"
            .to_owned();
    text += &format!(
        "  {:24} {:16} {:12} {:>6} {:>9} {:>12} {:>12}\n",
        "MODEL", "INSTANCE", "CHIP", "COPIES", "$/HOUR", "TOKENS/S", "$/M TOKENS"
    );
    let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
    for one in all {
        text += &format!(
            "  {:24} {:16} {:12} {:>6} {:>9} {:>12} {:>12}\n",
            one.model,
            one.instance,
            one.chip.as_deref().unwrap_or("CPU"),
            or_unknown(one.replicas.map(|count| count.to_string())),
            or_unknown(one.usd_per_hour.map(|price| format!("{price:.2}"))),
            or_unknown(one.tokens_per_s_at_most.map(rounded)),
            or_unknown(one.usd_per_million_at_least.map(|price| format!("{price:.3}"))),
        );
    }
    text
}

fn catalogue(all: &[Listed]) -> String {
    let width = all.iter().map(|listed| listed.model.len()).max().unwrap_or(5);
    let mut text = format!("\nThe catalogue on this CPU (tokens/s at a context of {CONTEXT_TOKENS}; ? is not known)\n");
    text += &format!(
        "  {:width$}  {:>10}  {:>10}  {:>8}  {:>7}  {:>10}  {:>7}\n",
        "MODEL",
        "WEIGHTS",
        "MEMORY",
        "CONTEXT",
        "ALONE",
        format!("{MANY} AT ONCE"),
        "PROMPTS"
    );
    let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
    for one in all {
        let weights = human_bytes(one.weight_bytes);
        if !one.fits {
            text += &format!("  {:width$}  {weights:>10}  does not fit\n", one.model);
            continue;
        }
        let rates = one.rates.unwrap_or_default();
        text += &format!(
            "  {:width$}  {weights:>10}  {:>10}  {:>8}  {:>7}  {:>10}  {:>7}\n",
            one.model,
            or_unknown(one.memory_bytes.map(human_bytes)),
            or_unknown(one.max_model_len.map(|tokens| tokens.to_string())),
            or_unknown(rates.decode.map(rounded)),
            or_unknown(rates.decode_many.map(rounded)),
            or_unknown(rates.prefill.map(rounded)),
        );
    }
    text
}
