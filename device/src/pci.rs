//! What is plugged in, by sysfs: there with or without a driver.

use crate::root::Root;

const FOLDER: &str = "sys/bus/pci/devices";

/// One function of the PCI bus.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Function {
    /// `0000:cc:00.0`.
    pub address: String,
    pub vendor: u32,
    pub device: u32,
    /// Class, subclass and interface, `0x030200`.
    pub class: Option<u32>,
    /// Unknown where the firmware does not say (-1).
    pub numa_node: Option<u32>,
    /// The driver that has it.
    pub driver: Option<String>,
}

/// Every function whose vendor and device can be read.
pub fn functions(root: &Root) -> Vec<Function> {
    let function = |address: String| {
        let file = |name: &str| format!("{FOLDER}/{address}/{name}");
        Some(Function {
            vendor: root.hexadecimal(&file("vendor"))?,
            device: root.hexadecimal(&file("device"))?,
            class: root.hexadecimal(&file("class")),
            numa_node: root.number(&file("numa_node")).and_then(|node| u32::try_from(node).ok()),
            driver: root.link_name(&file("driver")),
            address,
        })
    };
    root.names(FOLDER).into_iter().filter_map(function).collect()
}
