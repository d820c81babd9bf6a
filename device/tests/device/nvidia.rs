//! NVIDIA GPUs: what the bus and the driver show, and what its library answers.

use std::path::{Path, PathBuf};
use std::process::Command;

use sconce_device::Root;
use sconce_device::nvidia::{Ask, Library, Mig, MigInstance, Process, detect};

use super::trees::Tree;

/// The library that stands in for NVML, compiled for a kind of machine.
fn library(folder: &Path, kind: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fake_nvml.rs");
    let made = folder.join(format!("lib{kind}.so"));
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(compiler)
        .args(["--edition", "2024", "--cfg", kind, "-A", "warnings", "-o"])
        .args([&made, &source])
        .status();
    assert!(status.expect("a compiler").success(), "the library compiles");
    made
}

pub fn plugged_in(tree: &Tree) {
    tree.pci("0000:17:00.0", ("0x10de", "0x2330"), "0x030200", "0");
    tree.pci("0000:17:00.1", ("0x10de", "0x22ba"), "0x040300", "0");
    tree.pci("0000:00:02.0", ("0x8086", "0x1234"), "0x030000", "0");
}

const VERSION: &str =
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12.3\n";
const OPEN_VERSION: &str = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n";

#[test]
fn the_bus_and_the_driver_are_told_apart() {
    let tree = Tree::new();
    let bare = detect(&tree.root(), Ask::Driver);
    assert_eq!((bare.plugged_in.len(), bare.driver_version, bare.library), (0, None, Library::NotOpened));
    plugged_in(&tree);
    let found = detect(&tree.root(), Ask::Driver);
    let addresses: Vec<_> = found.plugged_in.iter().map(|function| function.address.as_str()).collect();
    assert_eq!(addresses, ["0000:17:00.0"], "neither its sound nor another vendor's GPU");
    assert_eq!((found.driver_version, found.library), (None, Library::NotOpened));
    for (text, version) in [(VERSION, "550.54.15"), (OPEN_VERSION, "580.65.06")] {
        tree.file("proc/driver/nvidia/version", text);
        assert_eq!(detect(&tree.root(), Ask::Nothing).driver_version.as_deref(), Some(version));
    }
    tree.file("proc/driver/nvidia/version", "something else");
    tree.file("sys/module/nvidia/version", "535.1.2\n");
    for node in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"] {
        tree.file(&format!("dev/{node}"), "");
    }
    let found = detect(&tree.root(), Ask::Driver);
    assert_eq!((found.driver_version.as_deref(), found.nodes), (Some("535.1.2"), vec![0, 1]));
    assert_eq!(found.library, Library::NotOpened, "a copy of files has no library of its own");
}

#[test]
fn a_library_tells_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let found = detect(&Root::at("/nowhere"), Ask::File(&library(folder.path(), "hopper")));
    let Library::Read(report) = &found.library else { panic!("{found:?}") };
    assert_eq!((report.driver_version.as_deref(), report.cuda), (Some("580.65.06"), Some((13, 0))));
    let [used, parted] = report.gpus.as_slice() else { panic!("{report:?}") };
    assert_eq!(used.name.as_deref(), Some("NVIDIA H100 80GB HBM3"));
    let gib = |count: u64| Some(count << 30);
    assert_eq!((used.memory_total_bytes, used.memory_used_bytes, used.memory_free_bytes), (gib(80), gib(30), gib(50)));
    assert!((used.read_bytes_per_s.expect("told") / 3.352e12 - 1.0).abs() < 0.001, "{used:?}");
    assert_eq!((used.compute_capability, used.address.as_deref()), (Some((9, 0)), Some("00000000:11:00.0")));
    assert_eq!(used.processes, Some(vec![Process { pid: 4242, memory_bytes: gib(29) }]));
    assert_eq!(used.mig, Some(Mig { enabled: false, instances: vec![] }));
    let part = |uuid: &str| MigInstance { uuid: Some(uuid.to_owned()), memory_total_bytes: gib(40) };
    assert_eq!(parted.mig, Some(Mig { enabled: true, instances: vec![part("MIG-101"), part("MIG-102")] }));
    assert_eq!(parted.processes, Some(vec![]), "nobody is not unknown");
}

#[test]
fn what_an_old_driver_does_not_tell_is_unknown() {
    let folder = tempfile::tempdir().expect("a folder");
    let found = detect(&Root::at("/nowhere"), Ask::File(&library(folder.path(), "old")));
    let [gpu] = found.gpus() else { panic!("{found:?}") };
    assert_eq!(gpu.name.as_deref(), Some("Tesla K80"));
    assert_eq!((gpu.memory_total_bytes, gpu.memory_free_bytes, gpu.read_bytes_per_s), (None, None, None));
    assert_eq!((gpu.compute_capability, &gpu.mig, &gpu.processes), (None, &None, &None));
    let Library::Read(report) = &found.library else { panic!("{found:?}") };
    assert_eq!((report.driver_version.as_deref(), report.cuda), (Some("375.26"), None));
}

#[test]
fn a_library_without_a_driver_and_none_at_all_say_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let without = detect(&Root::at("/nowhere"), Ask::File(&library(folder.path(), "broken"))).library;
    assert_eq!(without, Library::Failed("the driver is not loaded".to_owned()));
    let missing = detect(&Root::at("/nowhere"), Ask::File(Path::new("/nowhere/libnvidia-ml.so.1"))).library;
    assert_eq!(missing, Library::Failed("libnvidia-ml.so.1 cannot be opened".to_owned()));
}
