//! NVIDIA GPUs: what is plugged in and which driver is loaded by sysfs and procfs; the rest from the driver's own library,
//! NVML, which is opened only when somebody asks and a driver is there.

mod nvml;

use std::path::Path;

use serde::Serialize;

use crate::pci::{self, Function};
use crate::root::Root;

const VENDOR: u32 = 0x10de;
/// Display controllers: VGA and 3D. Their sound and USB functions are no GPUs.
const CLASS_DISPLAY: u32 = 0x03;

/// The oldest CUDA level whose drivers can run what a CUDA build of Sconce is made with.
pub const CUDA_MIN: (i32, i32) = (12, 0);
/// The first drivers that run it, for those that do not say what they run.
pub const DRIVER_MAJOR_MIN: u32 = 525;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Nvidia {
    /// GPUs on the bus, with or without a driver.
    pub plugged_in: Vec<Function>,
    /// Of the loaded kernel module.
    pub driver_version: Option<String>,
    /// Numbers of `/dev/nvidiaN` that this process can see.
    pub nodes: Vec<u32>,
    pub library: Library,
}

/// What the driver's library says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Library {
    /// Nobody asked, or there is no driver to ask.
    NotOpened,
    /// It is not there or does not work: why.
    Failed(String),
    Read(Report),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub driver_version: Option<String>,
    /// The newest CUDA that the driver can run, major and minor.
    pub cuda: Option<(i32, i32)>,
    pub gpus: Vec<Gpu>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Gpu {
    pub index: u32,
    pub name: Option<String>,
    pub uuid: Option<String>,
    /// `00000000:17:00.0`.
    pub address: Option<String>,
    pub memory_total_bytes: Option<u64>,
    pub memory_used_bytes: Option<u64>,
    pub memory_free_bytes: Option<u64>,
    /// Memory clock times bus width, both edges of the clock.
    pub read_bytes_per_s: Option<f64>,
    pub compute_capability: Option<(i32, i32)>,
    /// `None`: the GPU cannot be parted, or does not say.
    pub mig: Option<Mig>,
    /// Programs that compute on it; `None` where that may not be seen.
    pub processes: Option<Vec<Process>>,
}

/// Whether the GPU is parted, and into how many instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mig {
    pub enabled: bool,
    pub instances: Vec<MigInstance>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MigInstance {
    pub uuid: Option<String>,
    pub memory_total_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    pub pid: u32,
    pub memory_bytes: Option<u64>,
}

/// Which library may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask<'a> {
    Nothing,
    /// The driver's own, if there is a driver.
    Driver,
    /// This file, driver or not.
    File(&'a Path),
}

pub fn detect(root: &Root, ask: Ask<'_>) -> Nvidia {
    let is_gpu = |function: &Function| {
        function.vendor == VENDOR && function.class.is_none_or(|class| class >> 16 == CLASS_DISPLAY)
    };
    let driver_version = driver_version(root);
    let library = match ask {
        Ask::File(path) => nvml::read(Some(path)),
        // A copy of a machine's files has no library that could be asked.
        Ask::Driver if driver_version.is_some() && root.is_system() => nvml::read(None),
        Ask::Driver | Ask::Nothing => Library::NotOpened,
    };
    Nvidia {
        plugged_in: pci::functions(root).into_iter().filter(is_gpu).collect(),
        driver_version,
        nodes: root.numbered("dev", "nvidia"),
        library,
    }
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar ...`, or the module's own version.
fn driver_version(root: &Root) -> Option<String> {
    let is_version = |word: &&str| {
        let mut parts = word.split('.');
        word.contains('.') && parts.all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let told = root.text("proc/driver/nvidia/version");
    let told = told.and_then(|text| text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned));
    told.or_else(|| root.text("sys/module/nvidia/version")).filter(|version| !version.is_empty())
}

impl Nvidia {
    /// GPUs that the library told of.
    pub fn gpus(&self) -> &[Gpu] {
        match &self.library {
            Library::Read(report) => &report.gpus,
            Library::NotOpened | Library::Failed(_) => &[],
        }
    }
}
