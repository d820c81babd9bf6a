//! Neuron devices: every kind of instance, parts of them, and what cannot be read.

use sconce_device::neuron::chip::Figures;
use sconce_device::neuron::{Chip, Device, Layout, Neuron, detect, ls};

use super::trees::*;

const GIB: u64 = 1 << 30;

/// (devices, physical cores, logical cores, GiB) of a whole instance.
fn shape(neuron: &Neuron) -> (usize, u32, u32, u64) {
    let sum = |of: fn(&Device) -> Option<u32>| neuron.devices.iter().map(|device| of(device).expect("known")).sum();
    let bytes: u64 = neuron.devices.iter().map(|device| device.memory_bytes.expect("known")).sum();
    (neuron.devices.len(), sum(|device| device.cores), sum(|device| device.logical_cores), bytes / GIB)
}

#[test]
fn every_kind_of_instance_is_recognised() {
    for (instance, chip, expected) in [
        (INF2_XLARGE, Chip::Inferentia2, (1, 2, 2, 32)),
        (INF2_48XLARGE, Chip::Inferentia2, (12, 24, 24, 384)),
        (TRN1_2XLARGE, Chip::Trainium1, (1, 2, 2, 32)),
        (TRN1_32XLARGE, Chip::Trainium1, (16, 32, 32, 512)),
        (TRN2_48XLARGE, Chip::Trainium2, (16, 128, 64, 1536)),
        (TRN2_48XLARGE_LNC1, Chip::Trainium2, (16, 128, 128, 1536)),
        (TRN2_48XLARGE_LOGICAL, Chip::Trainium2, (16, 128, 64, 1536)),
        (TRN3_48XLARGE, Chip::Trainium3, (16, 128, 64, 2304)),
    ] {
        let tree = instance.tree();
        let neuron = detect(&tree.root(), None);
        let name = instance.name;
        assert_eq!(shape(&neuron), expected, "{name}");
        assert!(neuron.devices.iter().all(|device| device.chip == Some(chip) && device.is_mapped), "{name}");
        assert_eq!(neuron.instance_type.as_deref(), Some(name));
        assert_eq!((neuron.driver_version.as_deref(), neuron.layout), (Some("2.24.7.0"), Layout::Known), "{name}");
        assert_eq!(neuron.plugged_in.len(), expected.0, "{name}");
        let used = u64::from(instance.shown_cores) * 1536;
        assert_eq!(neuron.devices[0].memory_used_bytes, Some(used), "{name}: present, not total");
        assert_eq!(neuron.devices[0].uncorrected_memory_errors, Some(0), "{name}: a counter may be 0");
        assert!(!neuron.world_writable, "{name}");
    }
}

#[test]
fn the_environment_wins_over_the_machine_and_the_machine_over_the_chip() {
    let tree = TRN2_48XLARGE_LNC1.tree();
    assert_eq!(detect(&tree.root(), Some(2)).logical_core_size, Some(2));
    assert_eq!(detect(&tree.root(), None).logical_core_size, Some(1));
    tree.file("opt/aws/neuron/logical_nc_config", "nonsense");
    assert_eq!(detect(&tree.root(), None).logical_core_size, Some(2));
    tree.file("opt/aws/neuron/logical_nc_config", "0");
    assert_eq!(detect(&tree.root(), None).logical_core_size, Some(2), "no core is made of none");
}

#[test]
fn links_and_indexes_are_in_the_order_of_numbers() {
    let neuron = detect(&INF2_48XLARGE.tree().root(), None);
    let indexes: Vec<u32> = neuron.devices.iter().map(|device| device.index).collect();
    assert_eq!(indexes, (0..12).collect::<Vec<_>>(), "10 comes after 9");
    assert_eq!(neuron.devices[0].connected_to, Some(vec![1, 11]));
    assert_eq!(detect(&INF2_XLARGE.tree().root(), None).devices[0].connected_to, Some(vec![]));
}

#[test]
fn a_container_with_some_devices_has_those() {
    let tree = TRN1_32XLARGE.tree();
    for index in (0..16).filter(|index| ![4, 5].contains(index)) {
        tree.remove(&format!("dev/neuron{index}"));
    }
    let neuron = detect(&tree.root(), None);
    assert_eq!(neuron.mapped().map(|device| device.index).collect::<Vec<_>>(), [4, 5]);
    assert_eq!(neuron.devices.len(), 16, "the others are there, for others");
}

#[test]
fn files_that_cannot_be_read_make_figures_unknown_and_nothing_zero() {
    let tree = INF2_XLARGE.tree();
    let folder = "sys/devices/virtual/neuron_device/neuron0";
    for file in ["core_count", "connected_devices", "info/architecture/device_name"] {
        tree.make_unreadable(&format!("{folder}/{file}"));
    }
    tree.make_unreadable("sys/devices/virtual/dmi/id/product_name");
    tree.remove(&format!("{folder}/neuron_core1/stats"));
    let neuron = detect(&tree.root(), None);
    let device = &neuron.devices[0];
    assert_eq!(device.chip, Some(Chip::Inferentia2), "by PCI");
    assert_eq!(device.cores, Some(2), "by the folders of the cores");
    assert_eq!((device.connected_to.as_ref(), device.memory_used_bytes), (None, None));
    assert_eq!(neuron.instance_type, None);
    // Without PCI, too, there is nothing that tells the chip.
    tree.remove("sys/bus/pci");
    let neuron = detect(&tree.root(), None);
    let device = &neuron.devices[0];
    assert_eq!((device.chip, device.memory_bytes, device.logical_cores), (None, None, None));
    assert_eq!((device.cores, neuron.logical_core_size), (Some(2), None));
}

#[test]
fn what_only_root_may_read_is_named() {
    let tree = INF2_XLARGE.tree();
    let file = "sys/devices/virtual/neuron_device/neuron0/core_count";
    tree.mode(file, 0o000);
    if std::fs::File::open(tree.folder().join(file)).is_ok() {
        println!("skipped: this user may read everything");
        return;
    }
    let neuron = detect(&tree.root(), None);
    assert_eq!(neuron.denied, [file]);
    assert_eq!(neuron.devices[0].cores, Some(2));
}

#[test]
fn an_unknown_layout_is_told_and_the_chip_still_has_its_figures() {
    let neuron = detect(&newer_layout().root(), None);
    assert_eq!(neuron.layout, Layout::Unknown);
    assert_eq!(shape(&neuron), (2, 16, 8, 192));
    assert_eq!(neuron.devices[0].memory_used_bytes, None);
    assert_eq!(neuron.plugged_in[0].numa_node, None, "-1 is no node");
    assert!(neuron.world_writable);
    // A driver that shows nothing at all but its module and nodes.
    let tree = newer_layout();
    tree.remove("sys/class");
    assert_eq!(detect(&tree.root(), None).layout, Layout::Unknown);
}

#[test]
fn an_unknown_chip_is_unknown() {
    let tree = INF2_XLARGE.tree();
    tree.pci("0000:10:1e.0", ("0x1d0f", "0x9999"), "0x088000", "0");
    tree.file("sys/devices/virtual/neuron_device/neuron0/info/architecture/device_name", "Trainium9\n");
    let neuron = detect(&tree.root(), None);
    let device = &neuron.devices[0];
    assert_eq!((device.chip, device.memory_bytes, device.cores), (None, None, Some(2)));
    assert!(neuron.plugged_in.is_empty(), "other devices of the same vendor are network cards and disks");
}

#[test]
fn no_neuron_is_nothing() {
    let neuron = detect(&Tree::new().root(), None);
    assert!(!neuron.has_driver && neuron.devices.is_empty() && neuron.plugged_in.is_empty());
    assert_eq!((neuron.layout, neuron.logical_core_size), (Layout::None, None));
}

const DEVICE: &str = r#"{"neuron_device":0,"bdf":"cc:00.0","cpu_affinity":"48-95","numa_node":"1","connected_to":[12,3],
    "nc_count":4,"logical_neuroncore_config":2,"memory_size":103079215104,"neuroncore_ids":[0,1,2,3],
    "neuron_processes":[{"pid":17,"command":"vllm serve","neuron_runtime_version":"2.0.0"}]}"#;

#[test]
fn both_forms_of_neuron_ls_are_read() {
    let array = ls::parse(&format!("[{DEVICE}]")).expect("the old form");
    let object =
        format!(r#"{{"instance":{{"instance_type":"trn2.48xlarge"}},"ultraserver":{{}},"devices":[{DEVICE}]}}"#);
    let object = ls::parse(&object).expect("the new form");
    assert_eq!(array.devices, object.devices);
    assert_eq!((array.instance_type, object.instance_type.as_deref()), (None, Some("trn2.48xlarge")));
    assert_eq!((array.logical_core_size, object.logical_core_size), (Some(2), Some(2)));
    let listed = &array.devices[0];
    assert_eq!((listed.numa_node, listed.logical_cores, listed.memory_bytes), (Some(1), Some(4), Some(96 * GIB)));
    assert_eq!(listed.processes.as_deref().map(<[_]>::len), Some(1));
    assert_eq!(ls::parse("[]").expect("no devices").devices, []);
    for wrong in ["", "null", "{}", "[1]", r#"{"devices":[]}"#, "neuron-ls: command not found"] {
        assert!(ls::parse(wrong).is_err(), "{wrong}");
    }
    let odd =
        ls::parse(r#"[{"neuron_device":-1},{"neuron_device":3,"memory_size":0,"nc_count":"many"}]"#).expect("a list");
    assert_eq!(odd.devices, [ls::Listed { index: 3, ..ls::Listed::default() }]);
}

#[test]
fn a_listing_fills_in_what_files_do_not_tell() {
    let tree = newer_layout();
    let listing = ls::parse(&format!("[{DEVICE}]")).expect("a listing");
    let neuron = detect(&tree.root(), Some(1)).with_listing(&listing);
    let device = &neuron.devices[0];
    assert_eq!((device.address.as_deref(), device.numa_node), (Some("cc:00.0"), Some(1)));
    assert_eq!((neuron.logical_core_size, device.logical_cores), (Some(2), Some(4)), "what runs now counts");
    assert_eq!(device.connected_to, Some(vec![12, 3]));
    assert_eq!(device.processes.as_ref().expect("told")[0].pid, 17);
    assert_eq!(neuron.devices[1].address, None, "not in the list");
}

#[test]
fn figures_of_chips_are_as_published() {
    let figures = |chip: Chip| chip.figures().expect("a current chip");
    let Figures { cores, memory_bytes, .. } = figures(Chip::Trainium2);
    assert_eq!((cores, memory_bytes), (8, 96 * GIB));
    assert_eq!(Chip::of_pci(0x7565), Some(Chip::Trainium3));
    assert_eq!((Chip::of_pci(0x7264), Chip::of_pci(0xec20)), (Some(Chip::Inferentia2), None));
    assert!(figures(Chip::Trainium3).read_bytes_per_s > figures(Chip::Inferentia2).read_bytes_per_s);
}
