//! All of a machine: CPU, NVIDIA GPUs and Neuron devices, and the places where a model could run.

use serde::Serialize;

use crate::cpu::{self, Cpu};
use crate::fit::roofline::Ceiling;
use crate::neuron::{self, Chip, Neuron};
use crate::nvidia::{self, Gpu, Nvidia};
use crate::root::Root;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    pub cpu: Cpu,
    pub nvidia: Nvidia,
    pub neuron: Neuron,
}

/// What may be opened beyond files, and what the operator's environment says.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub nvml: nvidia::Ask<'a>,
    pub logical_core_size: Option<u32>,
}

pub fn detect(root: &Root, asked: Asked<'_>) -> Machine {
    Machine {
        cpu: cpu::detect_under(root),
        nvidia: nvidia::detect(root, asked.nvml),
        neuron: neuron::detect(root, asked.logical_core_size),
    }
}

/// Something with memory of its own that a model could run on.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// `cuda:0`, `neuron:0-1`.
    pub name: String,
    pub what: String,
    /// What a model could take of it now.
    pub available_bytes: Option<u64>,
    pub ceiling: Ceiling,
}

impl Machine {
    /// GPUs and Neuron devices; the CPU is not in the list.
    pub fn accelerators(&self) -> Vec<Place> {
        let gpus = self.nvidia.gpus().iter().map(gpu_place);
        let mut core = 0;
        let mut places: Vec<Place> = gpus.collect();
        for device in self.neuron.mapped() {
            let cores = device.logical_cores.unwrap_or(1);
            let last = core + cores - 1;
            let name = if last == core { format!("neuron:{core}") } else { format!("neuron:{core}-{last}") };
            core += cores;
            let figures = device.chip.and_then(Chip::figures);
            let used = device.memory_used_bytes.unwrap_or(0);
            places.push(Place {
                name,
                what: device.chip.map_or("unknown Neuron device", Chip::name).to_owned(),
                available_bytes: device.memory_bytes.map(|bytes| bytes.saturating_sub(used)),
                ceiling: Ceiling {
                    read_bytes_per_s: figures.map(|figures| figures.read_bytes_per_s),
                    operations_per_s: figures.map(|figures| figures.bf16_per_s),
                },
            });
        }
        places
    }
}

fn gpu_place(gpu: &Gpu) -> Place {
    let in_parts = gpu.mig.as_ref().is_some_and(|mig| mig.enabled);
    let largest_part = || gpu.mig.as_ref()?.instances.iter().filter_map(|part| part.memory_total_bytes).max();
    Place {
        name: format!("cuda:{}", gpu.index),
        what: gpu.name.clone().unwrap_or_else(|| "unknown GPU".to_owned()),
        available_bytes: if in_parts { largest_part() } else { gpu.memory_free_bytes },
        // Part of a GPU has part of its bandwidth, and how much is not told.
        ceiling: Ceiling { read_bytes_per_s: gpu.read_bytes_per_s.filter(|_| !in_parts), operations_per_s: None },
    }
}
