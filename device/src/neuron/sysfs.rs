//! The driver's tree in sysfs: the layout up to driver 2.30, and a search where it is another.
//!
//! Never written to: counters clear themselves on a write, and one file resets the device.

use serde::Serialize;

use super::{Chip, Device};
use crate::root::Root;

/// Where drivers up to 2.30 have it, and where a newer one may.
const FOLDERS: &[&str] =
    &["sys/devices/virtual/neuron_device", "sys/class/neuron_device", "sys/devices/virtual/neuron", "sys/class/neuron"];

/// Kinds of memory of a core, each a folder with `present`.
const MEMORY_KINDS: &[&str] = &[
    "tensors",
    "constants",
    "model_code",
    "model_shared_scratchpad",
    "nonshared_scratchpad",
    "runtime_memory",
    "driver_memory",
    "dma_rings",
    "collectives",
    "notifications",
    "uncategorized",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// There are no devices.
    None,
    /// Of drivers up to 2.30.
    Known,
    /// Devices are there, and none of the files that are known.
    Unknown,
}

pub(super) struct Found {
    pub layout: Layout,
    pub devices: Vec<Device>,
    pub denied: Vec<String>,
}

pub(super) fn read(root: &Root) -> Found {
    let tree = FOLDERS.iter().find(|folder| !root.numbered(folder, "neuron").is_empty());
    let Some(tree) = tree else {
        let is_there = root.exists("sys/module/neuron") && !root.numbered("dev", "neuron").is_empty();
        let layout = if is_there { Layout::Unknown } else { Layout::None };
        return Found { layout, devices: Vec::new(), denied: Vec::new() };
    };
    let indexes = root.numbered(tree, "neuron");
    let devices: Vec<Device> = indexes.iter().map(|index| device(root, tree, *index)).collect();
    let is_known = devices.iter().any(|device| device.chip.is_some() || device.cores.is_some());
    let denied = indexes
        .iter()
        .flat_map(|index| ["core_count", "connected_devices"].map(|file| format!("{tree}/neuron{index}/{file}")))
        .filter(|file| root.is_denied(file))
        .collect();
    Found { layout: if is_known { Layout::Known } else { Layout::Unknown }, devices, denied }
}

fn device(root: &Root, tree: &str, index: u32) -> Device {
    let folder = format!("{tree}/neuron{index}");
    let name = ["info/architecture/device_name", "architecture/device_name", "device_name"]
        .iter()
        .find_map(|file| root.text(&format!("{folder}/{file}")));
    let cores = root.numbered(&folder, "neuron_core");
    // Only root may read the count; the folders of the cores are there for everyone.
    let count = root.number(&format!("{folder}/core_count")).and_then(|count| u32::try_from(count).ok());
    let count = count.or_else(|| u32::try_from(cores.len()).ok()).filter(|count| *count > 0);
    Device {
        index,
        chip: name.as_deref().and_then(Chip::named),
        cores: count,
        memory_used_bytes: memory_used_bytes(root, &folder, &cores),
        numa_node: ["numa_node", "device/numa_node"]
            .iter()
            .find_map(|file| root.number(&format!("{folder}/{file}")))
            .and_then(|node| u32::try_from(node).ok()),
        connected_to: connected_to(root, &folder),
        uncorrected_memory_errors: counter(root, &format!("{folder}/stats/hardware/mem_ecc_uncorrected")),
        ..Device::default()
    }
}

/// `12, 3, 4, 1`.
fn connected_to(root: &Root, folder: &str) -> Option<Vec<u32>> {
    let text = root.text(&format!("{folder}/connected_devices"))?;
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
}

/// A counter is a file, or a folder with its total.
fn counter(root: &Root, path: &str) -> Option<u64> {
    root.number(path).or_else(|| root.number(&format!("{path}/total")))
}

/// What all cores hold now; unknown if a core tells nothing.
fn memory_used_bytes(root: &Root, folder: &str, cores: &[u32]) -> Option<u64> {
    let of_core = |core: &u32| {
        let base = format!("{folder}/neuron_core{core}/stats/memory_usage/device_mem");
        let kinds = MEMORY_KINDS.iter().filter_map(|kind| root.number(&format!("{base}/{kind}/present")));
        kinds.reduce(u64::saturating_add)
    };
    let all: Option<Vec<u64>> = cores.iter().map(of_core).collect();
    all.filter(|all| !all.is_empty()).map(|all| all.into_iter().fold(0, u64::saturating_add))
}
