//! AWS Neuron devices (Inferentia, Trainium), by PCI, `/dev`, sysfs and what `neuron-ls` printed.
//!
//! Device nodes are looked at, never opened: opening one claims it. Every file is optional, because the driver moved
//! its tree once already (2.31); what cannot be found is unknown, never 0.

pub mod chip;
pub mod ls;
mod sysfs;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde::Serialize;

pub use chip::Chip;
pub use sysfs::Layout;

use crate::pci::{self, Function};
use crate::root::Root;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Neuron {
    /// Neuron devices on the bus, with or without a driver.
    pub plugged_in: Vec<Function>,
    /// Whether the kernel module is loaded.
    pub has_driver: bool,
    pub driver_version: Option<String>,
    /// `inf2.xlarge`.
    pub instance_type: Option<String>,
    /// Where and how the driver shows its devices.
    pub layout: Layout,
    /// Physical cores that make a logical one. `None`: not said anywhere, and no chip is known.
    pub logical_core_size: Option<u32>,
    pub devices: Vec<Device>,
    /// Files that are there and that this user may not read; more would be known as root.
    pub denied: Vec<String>,
    /// Any user of the machine may open a device, and so read all of its memory.
    pub world_writable: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Device {
    /// N of `/dev/neuronN`.
    pub index: u32,
    /// Whether `/dev/neuronN` is there: in a container only some are.
    pub is_mapped: bool,
    pub chip: Option<Chip>,
    /// Physical NeuronCores.
    pub cores: Option<u32>,
    /// Cores as programs see and number them.
    pub logical_cores: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub memory_used_bytes: Option<u64>,
    pub address: Option<String>,
    pub numa_node: Option<u32>,
    /// Indexes of the devices that it has links to.
    pub connected_to: Option<Vec<u32>>,
    pub uncorrected_memory_errors: Option<u64>,
    /// Programs that have it, where `neuron-ls` told.
    pub processes: Option<Vec<ls::Process>>,
}

/// `logical_core_size` is what the operator's environment says (`NEURON_LOGICAL_NC_CONFIG`).
pub fn detect(root: &Root, logical_core_size: Option<u32>) -> Neuron {
    let is_neuron = |function: &Function| function.vendor == chip::VENDOR && Chip::of_pci(function.device).is_some();
    let plugged_in: Vec<Function> = pci::functions(root).into_iter().filter(is_neuron).collect();
    let mapped: BTreeSet<u32> = root.numbered("dev", "neuron").into_iter().collect();
    let found = sysfs::read(root);
    let driver_version = root.text("sys/module/neuron/version").filter(|version| !version.is_empty());
    let only_chip = only(plugged_in.iter().filter_map(|function| Chip::of_pci(function.device)));
    let indexes: BTreeSet<u32> =
        found.devices.iter().map(|device| device.index).chain(mapped.iter().copied()).collect();
    let host_setting = root.number("opt/aws/neuron/logical_nc_config").and_then(|size| u32::try_from(size).ok());
    let mut neuron = Neuron {
        has_driver: root.exists("sys/module/neuron") || !indexes.is_empty(),
        driver_version,
        instance_type: root.text("sys/devices/virtual/dmi/id/product_name").filter(|name| is_instance_type(name)),
        layout: found.layout,
        logical_core_size: logical_core_size.or(host_setting).filter(|size| *size > 0),
        devices: Vec::new(),
        denied: found.denied,
        world_writable: mapped.iter().any(|index| is_world_writable(root, *index)),
        plugged_in,
    };
    for index in indexes {
        let known = found.devices.iter().find(|device| device.index == index).cloned();
        let mut device = known.unwrap_or(Device { index, ..Device::default() });
        device.is_mapped = mapped.contains(&index);
        device.chip = device.chip.or(only_chip);
        neuron.devices.push(device);
    }
    neuron.complete();
    neuron
}

/// The one value of all; `None` if there are none or several.
fn only<T: PartialEq>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// Other machines have product names, too: "Standard PC (Q35 + ICH9, 2009)".
fn is_instance_type(name: &str) -> bool {
    let is_word =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    name.split_once('.').is_some_and(|(family, size)| is_word(family) && is_word(size))
}

/// A look at the node's mode; it is not opened.
fn is_world_writable(root: &Root, index: u32) -> bool {
    fs::metadata(root.path(&format!("dev/neuron{index}"))).is_ok_and(|found| found.permissions().mode() & 0o002 != 0)
}

impl Neuron {
    /// Fills in what follows from the chip. The driver shows physical or logical cores, depending on its version: the
    /// chip tells which.
    fn complete(&mut self) {
        let chip = only(self.devices.iter().filter_map(|device| device.chip));
        let usual = chip.and_then(|chip| chip.figures()).map(|figures| figures.logical_core_size);
        self.logical_core_size = self.logical_core_size.or(usual);
        for device in &mut self.devices {
            if let Some(figures) = device.chip.and_then(Chip::figures) {
                device.cores = Some(figures.cores);
                device.memory_bytes = device.memory_bytes.or(Some(figures.memory_bytes));
            }
            let size = self.logical_core_size;
            let logical = device.cores.zip(size).map(|(cores, size)| cores / size).filter(|cores| *cores > 0);
            device.logical_cores = logical.or(device.logical_cores);
        }
    }

    /// Adds what `neuron-ls` told; where both know something, the driver's files have it.
    #[must_use]
    pub fn with_listing(mut self, listing: &ls::Listing) -> Self {
        self.instance_type = self.instance_type.take().or_else(|| listing.instance_type.clone());
        // The chip's usual setting was a guess; this one is told.
        self.logical_core_size = listing.logical_core_size.or(self.logical_core_size);
        for told in &listing.devices {
            let Some(device) = self.devices.iter_mut().find(|device| device.index == told.index) else {
                continue;
            };
            device.address = device.address.take().or_else(|| told.address.clone());
            device.numa_node = device.numa_node.or(told.numa_node);
            device.memory_bytes = told.memory_bytes.or(device.memory_bytes);
            device.connected_to = device.connected_to.take().or_else(|| told.connected_to.clone());
            device.logical_cores = told.logical_cores.or(device.logical_cores);
            device.processes = told.processes.clone().or(device.processes.take());
        }
        self.complete();
        self
    }

    /// Those that this process could use.
    pub fn mapped(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|device| device.is_mapped)
    }
}
