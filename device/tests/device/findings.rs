//! What is missing or in the way, and that each of it is told.

use sconce_device::findings::{Finding, Level, findings};
use sconce_device::machine::{Asked, Machine, detect};
use sconce_device::nvidia::{Ask, Gpu, Library, Mig, Process, Report};

use super::trees::*;
use super::{nvidia::plugged_in, trees};

const NOTHING: Asked<'_> = Asked { nvml: Ask::Nothing, logical_core_size: None };

fn machine(tree: &Tree) -> Machine {
    detect(&tree.root(), NOTHING)
}

fn told(machine: &Machine) -> Vec<Finding> {
    findings(machine)
}

fn says(machine: &Machine, level: Level, part: &str, what: &str) {
    let all = told(machine);
    let is_it = |found: &Finding| found.level == level && found.part == part && found.what.contains(what);
    assert!(all.iter().any(is_it), "{level:?} {part} '{what}' is not in {all:#?}");
}

fn is_silent(machine: &Machine, part: &str) {
    let all = told(machine);
    assert!(all.iter().all(|found| found.part != part), "{all:#?}");
}

/// A good CPU, so that only the rest is told of.
fn base() -> Tree {
    Tree::of(&[
        ("proc/cpuinfo", "model name : X\nflags : avx2 fma f16c avx512f avx512_vnni avx512_bf16\n"),
        ("proc/meminfo", "MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n"),
    ])
}

#[test]
fn a_good_machine_has_nothing_to_tell() {
    assert_eq!(told(&machine(&base())), []);
}

#[test]
fn cpus_and_memory() {
    let tree = base();
    tree.file("proc/cpuinfo", "flags : sse2\n");
    says(&machine(&tree), Level::Warning, "cpu", "no AVX2");
    tree.file("proc/cpuinfo", "flags : avx2 fma\n");
    says(&machine(&tree), Level::Note, "cpu", "no VNNI");
    says(&machine(&tree), Level::Note, "cpu", "no bf16");
    tree.file("proc/cpuinfo", "Features : asimd asimddp\n");
    says(&machine(&tree), Level::Warning, "cpu", "portable");
    tree.file("proc/self/status", "Cpus_allowed_list: 0-7\n");
    tree.file("sys/fs/cgroup/cpu.max", "250000 100000\n");
    says(&machine(&tree), Level::Note, "cpu", "2.5 processors of 8");
    tree.file("sys/fs/cgroup/memory.max", "1073741824\n");
    says(&machine(&tree), Level::Note, "memory", "1.0 GiB of the machine's");
    tree.file("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
    says(&machine(&tree), Level::Warning, "memory", "huge pages are off");
    says(&machine(&Tree::new()), Level::Warning, "memory", "cannot be read");
    let worst_first: Vec<_> = told(&machine(&tree)).iter().map(|found| found.level).collect();
    assert!(worst_first.is_sorted_by(|a, b| a >= b), "{worst_first:?}");
}

#[test]
fn gpus_without_a_driver_and_a_driver_without_gpus() {
    let tree = base();
    plugged_in(&tree);
    says(&machine(&tree), Level::Problem, "nvidia", "no driver loaded");
    tree.file("sys/module/nvidia/version", "550.1\n");
    says(&machine(&tree), Level::Problem, "nvidia", "--gpus all");
    tree.file("dev/nvidia0", "");
    is_silent(&machine(&tree), "nvidia");
    tree.remove("sys/bus");
    says(&machine(&tree), Level::Warning, "nvidia", "no GPU is on the bus");
}

#[test]
fn what_the_library_tells_of_gpus() {
    let tree = base();
    plugged_in(&tree);
    tree.file("sys/module/nvidia/version", "550.1\n");
    tree.file("dev/nvidia0", "");
    let mut machine = machine(&tree);
    let mut with = |cuda, gpus: Vec<Gpu>| {
        machine.nvidia.library = Library::Read(Report { driver_version: None, cuda: Some(cuda), gpus });
        machine.clone()
    };
    let good = || Gpu { name: Some("H100".to_owned()), memory_total_bytes: Some(80 << 30), ..Gpu::default() };
    is_silent(&with((12, 4), vec![good()]), "nvidia");
    says(&with((11, 8), vec![good()]), Level::Problem, "nvidia", "up to 11.8, too old");
    says(&with((12, 4), vec![]), Level::Warning, "nvidia", "1 GPUs on the bus, 0 known");
    says(&with((12, 4), vec![Gpu::default()]), Level::Problem, "nvidia", "does not answer");
    let mig = Some(Mig { enabled: true, instances: vec![] });
    says(&with((12, 4), vec![Gpu { mig, ..good() }]), Level::Problem, "nvidia", "without an instance");
    let processes = Some(vec![Process { pid: 7, memory_bytes: None }]);
    let used = Gpu { processes, memory_used_bytes: Some(1 << 30), ..good() };
    says(&with((12, 4), vec![used]), Level::Note, "nvidia", "1.0 GiB in use, by process 7");
    let old = Report { driver_version: Some("375.26".to_owned()), cuda: None, gpus: vec![good()] };
    machine.nvidia.library = Library::Read(old);
    says(&machine, Level::Problem, "nvidia", "of the 375 series, too old");
    machine.nvidia.library = Library::Failed("libnvidia-ml.so.1 cannot be opened".to_owned());
    says(&machine, Level::Problem, "nvidia", "user-space part");
}

#[test]
fn neuron_devices() {
    for instance in [INF2_XLARGE, TRN1_32XLARGE, TRN2_48XLARGE, TRN3_48XLARGE] {
        is_silent(&machine(&instance.tree()), "neuron");
    }
    let tree = INF2_48XLARGE.tree();
    tree.remove("dev/neuron3");
    says(&machine(&tree), Level::Note, "neuron", "11 of 12 devices");
    tree.remove("dev");
    says(&machine(&tree), Level::Problem, "neuron", "12 devices and no /dev/neuron0");
    tree.remove("sys/module");
    tree.remove("sys/devices");
    says(&machine(&tree), Level::Problem, "neuron", "12 Neuron device on the bus and no driver");
    let bare = Tree::of(&[("sys/module/neuron/version", "2.24\n")]);
    says(&machine(&bare), Level::Warning, "neuron", "there is no device");
    let newer = trees::newer_layout();
    says(&machine(&newer), Level::Warning, "neuron", "2.31.2.0 shows its devices in a way that is not known");
    says(&machine(&newer), Level::Note, "neuron", "any user may open");
    let faulty = INF2_XLARGE.tree();
    faulty.file("sys/devices/virtual/neuron_device/neuron0/stats/hardware/mem_ecc_uncorrected", "3\n");
    says(&machine(&faulty), Level::Warning, "neuron", "device 0 had 3 memory errors");
}

#[test]
fn places_are_named_as_the_device_flag_takes_them() {
    let names =
        |tree: Tree| -> Vec<String> { machine(&tree).accelerators().into_iter().map(|place| place.name).collect() };
    assert_eq!(names(INF2_XLARGE.tree()), ["neuron:0-1"]);
    assert_eq!(names(TRN2_48XLARGE.tree())[..2], ["neuron:0-3", "neuron:4-7"], "logical cores");
    let mut found = machine(&base());
    let gpu = |index, mig| Gpu {
        index,
        memory_free_bytes: Some(9 << 30),
        read_bytes_per_s: Some(1e12),
        mig,
        ..Gpu::default()
    };
    let mig = Mig { enabled: true, instances: vec![] };
    let gpus = vec![gpu(0, None), gpu(1, Some(mig))];
    found.nvidia.library = Library::Read(Report { driver_version: None, cuda: None, gpus });
    let [whole, parted] = found.accelerators().try_into().expect("two places");
    assert_eq!((whole.name.as_str(), whole.available_bytes), ("cuda:0", Some(9 << 30)));
    assert_eq!((parted.available_bytes, parted.ceiling.read_bytes_per_s), (None, None), "parts are not the whole");
}
