//! What `neuron-ls` prints as JSON: an array of devices (`-j`), or an object around it (`--output-format json`, which
//! replaces `-j` in SDK 2.34).
//!
//! The object's schema is not published where it could be read: the list of devices is looked for by what it holds.

use serde::Serialize;
use serde_json::{Map, Value};

/// How deep the list of devices may lie.
const DEPTH_MAX: usize = 4;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    pub instance_type: Option<String>,
    pub logical_core_size: Option<u32>,
    pub devices: Vec<Listed>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    pub index: u32,
    pub address: Option<String>,
    pub numa_node: Option<u32>,
    pub connected_to: Option<Vec<u32>>,
    pub logical_cores: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub processes: Option<Vec<Process>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    pub pid: u32,
    pub command: Option<String>,
}

pub fn parse(text: &str) -> Result<Listing, String> {
    let whole: Value = serde_json::from_str(text).map_err(|why| format!("neuron-ls printed no JSON: {why}"))?;
    let devices = devices(&whole, 0).ok_or("neuron-ls printed JSON without a list of devices".to_owned())?;
    let first = devices.first();
    Ok(Listing {
        instance_type: field(&whole, "instance_type", 0).and_then(Value::as_str).map(str::to_owned),
        logical_core_size: first
            .and_then(|device| number(device, "logical_neuroncore_config"))
            .or_else(|| field(&whole, "logical_neuroncore_config", 0).and_then(number_of))
            .and_then(small)
            .filter(|size| *size > 0),
        devices: devices.into_iter().filter_map(listed).collect(),
    })
}

fn devices(value: &Value, depth: usize) -> Option<Vec<&Map<String, Value>>> {
    let is_device = |value: &Value| value.get("neuron_device").is_some();
    match value {
        _ if depth > DEPTH_MAX => None,
        Value::Array(list) if list.iter().all(is_device) && (depth == 0 || !list.is_empty()) => {
            Some(list.iter().filter_map(Value::as_object).collect())
        }
        Value::Array(list) => list.iter().find_map(|inner| devices(inner, depth + 1)),
        Value::Object(fields) => fields.values().find_map(|inner| devices(inner, depth + 1)),
        _ => None,
    }
}

/// A field of the objects around the devices.
fn field<'a>(value: &'a Value, name: &str, depth: usize) -> Option<&'a Value> {
    let fields = value.as_object().filter(|_| depth <= DEPTH_MAX)?;
    fields.get(name).or_else(|| fields.values().find_map(|inner| field(inner, name, depth + 1)))
}

fn listed(device: &Map<String, Value>) -> Option<Listed> {
    let text = |name: &str| device.get(name).and_then(Value::as_str).map(str::to_owned);
    Some(Listed {
        index: number(device, "neuron_device").and_then(small)?,
        address: text("bdf"),
        numa_node: number(device, "numa_node").and_then(small),
        connected_to: device
            .get("connected_to")
            .and_then(Value::as_array)
            .and_then(|list| list.iter().map(|index| number_of(index).and_then(small)).collect()),
        logical_cores: number(device, "nc_count").and_then(small).filter(|count| *count > 0),
        memory_bytes: number(device, "memory_size").filter(|bytes| *bytes > 0),
        processes: device.get("neuron_processes").and_then(Value::as_array).map(|list| {
            let process = |value: &Value| {
                let command = value.get("command").and_then(Value::as_str).map(str::to_owned);
                Some(Process { pid: value.get("pid").and_then(number_of).and_then(small)?, command })
            };
            list.iter().filter_map(process).collect()
        }),
    })
}

fn number(device: &Map<String, Value>, name: &str) -> Option<u64> {
    device.get(name).and_then(number_of)
}

/// `1` and `"1"` are both in use.
fn number_of(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

fn small(number: u64) -> Option<u32> {
    u32::try_from(number).ok()
}
