//! Trees of files as machines have them, written into temporary folders.
//!
//! The layouts follow the published driver source and documentation; none was copied from real Neuron hardware.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sconce_device::Root;
use tempfile::TempDir;

/// A folder that stands for `/`.
pub struct Tree(TempDir);

impl Tree {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn of(files: &[(&str, &str)]) -> Self {
        let tree = Self::new();
        files.iter().for_each(|(path, text)| tree.file(path, text));
        tree
    }

    pub fn root(&self) -> Root {
        Root::at(self.0.path())
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    pub fn remove(&self, path: &str) {
        let path = self.0.path().join(path);
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        gone.expect("it was there");
    }

    /// What no user can read, root included: a folder where a file should be.
    pub fn make_unreadable(&self, path: &str) {
        self.remove(path);
        fs::create_dir_all(self.0.path().join(path)).expect("a folder");
    }

    pub fn mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.0.path().join(path), fs::Permissions::from_mode(mode)).expect("an own file");
    }

    pub fn pci(&self, address: &str, ids: (&str, &str), class: &str, numa_node: &str) {
        let file = |name: &str| format!("sys/bus/pci/devices/{address}/{name}");
        self.file(&file("vendor"), &format!("{}\n", ids.0));
        self.file(&file("device"), &format!("{}\n", ids.1));
        self.file(&file("class"), &format!("{class}\n"));
        self.file(&file("numa_node"), &format!("{numa_node}\n"));
    }
}

/// A kind of Neuron instance.
pub struct Instance {
    pub name: &'static str,
    pub pci_device: &'static str,
    pub devices: u32,
    /// Folders of cores that the driver shows for a device.
    pub shown_cores: u32,
    /// arch_type, instance_type, device_name.
    pub architecture: [&'static str; 3],
    /// `/opt/aws/neuron/logical_nc_config`.
    pub logical_setting: Option<&'static str>,
}

const INF2: [&str; 3] = ["NDv3", "Inf2", "Inferentia2"];
const TRN1: [&str; 3] = ["NDv2", "Trn1", "Trainium1"];
const TRN2: [&str; 3] = ["NDv3", "Trn2", "Trainium2"];
const TRN3: [&str; 3] = ["NDv4", "Trn3", "Trainium3"];

const fn instance(
    name: &'static str,
    (pci_device, architecture): (&'static str, [&'static str; 3]),
    (devices, shown_cores): (u32, u32),
    logical_setting: Option<&'static str>,
) -> Instance {
    Instance { name, pci_device, devices, shown_cores, architecture, logical_setting }
}

pub const INF2_XLARGE: Instance = instance("inf2.xlarge", ("0x7264", INF2), (1, 2), None);
pub const INF2_48XLARGE: Instance = instance("inf2.48xlarge", ("0x7264", INF2), (12, 2), None);
pub const TRN1_2XLARGE: Instance = instance("trn1.2xlarge", ("0x7164", TRN1), (1, 2), None);
pub const TRN1_32XLARGE: Instance = instance("trn1.32xlarge", ("0x7164", TRN1), (16, 2), None);
pub const TRN2_48XLARGE: Instance = instance("trn2.48xlarge", ("0x7364", TRN2), (16, 8), None);
pub const TRN2_48XLARGE_LNC1: Instance = instance("trn2.48xlarge", ("0x7364", TRN2), (16, 8), Some("1\n"));
/// A driver that shows logical cores, not physical ones.
pub const TRN2_48XLARGE_LOGICAL: Instance = instance("trn2.48xlarge", ("0x7364", TRN2), (16, 4), Some("2\n"));
pub const TRN3_48XLARGE: Instance = instance("trn3.48xlarge", ("0x7564", TRN3), (16, 8), None);

impl Instance {
    /// As drivers up to 2.30 show it.
    pub fn tree(&self) -> Tree {
        let tree = Tree::new();
        tree.file("sys/devices/virtual/dmi/id/product_name", &format!("{}\n", self.name));
        tree.file("sys/module/neuron/version", "2.24.7.0\n");
        if let Some(setting) = self.logical_setting {
            tree.file("opt/aws/neuron/logical_nc_config", setting);
        }
        for index in 0..self.devices {
            self.device(&tree, index);
        }
        tree
    }

    fn device(&self, tree: &Tree, index: u32) {
        let numa = if index * 2 < self.devices { "0" } else { "1" };
        tree.pci(&format!("0000:{:02x}:1e.0", 16 + index), ("0x1d0f", self.pci_device), "0x088000", numa);
        tree.file(&format!("dev/neuron{index}"), "");
        tree.mode(&format!("dev/neuron{index}"), 0o660);
        let folder = format!("sys/devices/virtual/neuron_device/neuron{index}");
        // No line end, as the driver writes it.
        tree.file(&format!("{folder}/core_count"), &self.shown_cores.to_string());
        let last = self.devices - 1;
        let links = if last == 0 {
            "\n".to_owned()
        } else {
            format!("{}, {}\n", (index + 1) % self.devices, (index + last) % self.devices)
        };
        tree.file(&format!("{folder}/connected_devices"), &links);
        for (file, text) in ["arch_type", "instance_type", "device_name"].iter().zip(self.architecture) {
            tree.file(&format!("{folder}/info/architecture/{file}"), &format!("{text}\n"));
        }
        tree.file(&format!("{folder}/stats/hardware/mem_ecc_uncorrected"), "0\n");
        for core in 0..self.shown_cores {
            let memory = format!("{folder}/neuron_core{core}/stats/memory_usage/device_mem");
            for (kind, present) in [("tensors", 1024), ("model_code", 512)] {
                tree.file(&format!("{memory}/{kind}/present"), &format!("{present}\n"));
                tree.file(&format!("{memory}/{kind}/total"), "999999\n");
            }
        }
    }
}

/// As a driver might show it whose tree is another: the names of the devices, and nothing else that is known.
pub fn newer_layout() -> Tree {
    let tree = Tree::new();
    tree.file("sys/module/neuron/version", "2.31.2.0\n");
    for index in 0..2 {
        tree.pci(&format!("0000:{:02x}:1e.0", 16 + index), ("0x1d0f", "0x7364"), "0x088000", "-1");
        tree.file(&format!("dev/neuron{index}"), "");
        tree.file(&format!("sys/class/neuron_device/neuron{index}/chip/summary"), "Trainium2 v3 rev b\n");
        tree.mode(&format!("dev/neuron{index}"), 0o666);
    }
    tree
}
