//! Reads NVML, the driver's library, opened at run time. What a GPU or an older driver does not tell is unknown.

use std::ffi::OsStr;
use std::path::Path;

use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml, cuda_driver_version_major, cuda_driver_version_minor};

use super::{Gpu, Library, Mig, MigInstance, Process, Report};

/// More than any machine has; what a library says beyond it is not believed.
const GPUS_MAX: u32 = 256;

pub(super) fn read(library: Option<&Path>) -> Library {
    let mut builder = Nvml::builder();
    if let Some(path) = library {
        builder.lib_path(OsStr::new(path));
    }
    match builder.init().and_then(|nvml| report(&nvml)) {
        Ok(report) => Library::Read(report),
        Err(why) => Library::Failed(explained(&why)),
    }
}

fn explained(why: &NvmlError) -> String {
    match why {
        NvmlError::DriverNotLoaded => "the driver is not loaded".to_owned(),
        NvmlError::NoPermission => "this user may not talk to the driver".to_owned(),
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => "libnvidia-ml.so.1 cannot be opened".to_owned(),
        other => other.to_string(),
    }
}

fn report(nvml: &Nvml) -> Result<Report, NvmlError> {
    let count = nvml.device_count()?.min(GPUS_MAX);
    Ok(Report {
        driver_version: nvml.sys_driver_version().ok(),
        cuda: nvml
            .sys_cuda_driver_version()
            .ok()
            .map(|version| (cuda_driver_version_major(version), cuda_driver_version_minor(version))),
        // One that fell off the bus still counts: its figures are unknown.
        gpus: (0..count)
            .map(|index| match nvml.device_by_index(index) {
                Ok(device) => gpu(index, &device),
                Err(_) => Gpu { index, ..Gpu::default() },
            })
            .collect(),
    })
}

fn gpu(index: u32, device: &Device<'_>) -> Gpu {
    let memory = device.memory_info().ok();
    let capability = device.cuda_compute_capability().ok();
    Gpu {
        index,
        name: device.name().ok(),
        uuid: device.uuid().ok(),
        address: device.pci_info().ok().map(|pci| pci.bus_id),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total).filter(|total| *total > 0),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_free_bytes: memory.as_ref().map(|memory| memory.free),
        read_bytes_per_s: bandwidth(device),
        compute_capability: capability.map(|found| (found.major, found.minor)),
        mig: mig(device),
        processes: device.running_compute_processes().ok().map(|all| {
            let process = |found: nvml_wrapper::struct_wrappers::device::ProcessInfo| Process {
                pid: found.pid,
                memory_bytes: match found.used_gpu_memory {
                    UsedGpuMemory::Used(bytes) => Some(bytes),
                    UsedGpuMemory::Unavailable => None,
                },
            };
            all.into_iter().map(process).collect()
        }),
    }
}

/// Two transfers a clock on every line of the bus.
fn bandwidth(device: &Device<'_>) -> Option<f64> {
    let mhz = device.max_clock_info(Clock::Memory).ok()?;
    let bits = device.memory_bus_width().ok()?;
    let bytes_per_s = f64::from(mhz) * 1e6 * 2.0 * f64::from(bits) / 8.0;
    (bytes_per_s > 0.0).then_some(bytes_per_s)
}

fn mig(device: &Device<'_>) -> Option<Mig> {
    let enabled = device.mig_mode().ok()?.current == 1;
    let most = if enabled { device.mig_device_count().unwrap_or(0).min(GPUS_MAX) } else { 0 };
    let instance = |index: u32| {
        let part = device.mig_device_by_index(index).ok()?;
        let memory_total_bytes = part.memory_info().ok().map(|memory| memory.total);
        Some(MigInstance { uuid: part.uuid().ok(), memory_total_bytes })
    };
    Some(Mig { enabled, instances: (0..most).filter_map(instance).collect() })
}
