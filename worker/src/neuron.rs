//! What `neuron-monitor` reports: use of cores, memory, errors. It is read, never asked to change anything.
//!
//! Every field is optional: what is not there is not known, and is no zero.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::process::{WorkerSpec, lines_of};

/// One report, as far as it was understood.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The share of the time that each core was busy, 1 is all.
    pub core_utilisation: BTreeMap<u32, f64>,
    pub runtimes: Vec<Runtime>,
    /// Events since the driver was loaded, by device and kind.
    pub ecc: BTreeMap<(u32, &'static str), u64>,
    /// What went wrong while the figures were collected.
    pub faults: Vec<String>,
}

/// One process that uses Neuron cores.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Runtime {
    /// The worker's name, or the process id of something else.
    pub tag: String,
    pub device_bytes: Option<u64>,
    pub host_bytes: Option<u64>,
    /// Since the report before, by kind.
    pub errors: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Document {
    neuron_runtime_data: Option<Vec<RuntimeData>>,
    system_data: Option<SystemData>,
    neuron_hardware_info: Option<Faulty>,
}

#[derive(Deserialize)]
struct Faulty {
    error: Option<String>,
}

#[derive(Deserialize)]
struct RuntimeData {
    pid: Option<u64>,
    neuron_runtime_tag: Option<String>,
    error: Option<String>,
    report: Option<RuntimeReport>,
}

/// Each group is read for itself: one that is not understood takes nothing else with it.
#[derive(Deserialize)]
struct RuntimeReport {
    neuroncore_counters: Option<Value>,
    execution_stats: Option<Value>,
    memory_used: Option<Value>,
}

#[derive(Deserialize)]
struct SystemData {
    neuron_hw_counters: Option<Value>,
}

#[derive(Deserialize)]
struct Counters {
    neuroncores_in_use: Option<BTreeMap<String, Core>>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Core {
    neuroncore_utilization: Option<f64>,
}

#[derive(Deserialize)]
struct Executions {
    error_summary: Option<BTreeMap<String, u64>>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Memory {
    neuron_runtime_used_bytes: Option<UsedBytes>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct UsedBytes {
    host: Option<u64>,
    neuron_device: Option<u64>,
}

#[derive(Deserialize)]
struct Hardware {
    neuron_devices: Option<Vec<Device>>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Device {
    neuron_device_index: Option<u32>,
    mem_ecc_corrected: Option<u64>,
    mem_ecc_uncorrected: Option<u64>,
    sram_ecc_corrected: Option<u64>,
    sram_ecc_uncorrected: Option<u64>,
}

impl Report {
    /// From one line of its output.
    pub fn parse(line: &str) -> Result<Self, String> {
        let document: Document = serde_json::from_str(line).map_err(|why| format!("is no report: {why}"))?;
        let mut report = Self::default();
        report.fault(document.neuron_hardware_info.and_then(|info| info.error));
        for data in document.neuron_runtime_data.unwrap_or_default() {
            report.add(data);
        }
        let hardware: Option<Hardware> = report.group(document.system_data.and_then(|data| data.neuron_hw_counters));
        if let Some(hardware) = hardware {
            report.fault(hardware.error);
            for device in hardware.neuron_devices.unwrap_or_default() {
                let Some(index) = device.neuron_device_index else { continue };
                let counts = [
                    ("mem_ecc_corrected", device.mem_ecc_corrected),
                    ("mem_ecc_uncorrected", device.mem_ecc_uncorrected),
                    ("sram_ecc_corrected", device.sram_ecc_corrected),
                    ("sram_ecc_uncorrected", device.sram_ecc_uncorrected),
                ];
                let known = counts.into_iter().filter_map(|(kind, count)| Some(((index, kind), count?)));
                report.ecc.extend(known);
            }
        }
        Ok(report)
    }

    fn fault(&mut self, error: Option<String>) {
        self.faults.extend(error.filter(|error| !error.is_empty()));
    }

    fn group<T: DeserializeOwned>(&mut self, value: Option<Value>) -> Option<T> {
        match serde_json::from_value(value?) {
            Ok(group) => Some(group),
            Err(why) => {
                self.fault(Some(format!("a group is not understood: {why}")));
                None
            }
        }
    }

    fn add(&mut self, data: RuntimeData) {
        self.fault(data.error);
        let tag = data.neuron_runtime_tag.filter(|tag| !tag.is_empty());
        let tag = tag.unwrap_or_else(|| data.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string()));
        let mut runtime = Runtime { tag, ..Runtime::default() };
        let Some(groups) = data.report else { return self.runtimes.push(runtime) };
        if let Some(counters) = self.group::<Counters>(groups.neuroncore_counters) {
            self.fault(counters.error);
            for (index, core) in counters.neuroncores_in_use.unwrap_or_default() {
                if let (Ok(index), Some(percent)) = (index.parse(), core.neuroncore_utilization) {
                    *self.core_utilisation.entry(index).or_default() += percent / 100.0;
                }
            }
        }
        if let Some(executions) = self.group::<Executions>(groups.execution_stats) {
            self.fault(executions.error);
            runtime.errors = executions.error_summary.unwrap_or_default();
        }
        if let Some(memory) = self.group::<Memory>(groups.memory_used) {
            self.fault(memory.error);
            let used = memory.neuron_runtime_used_bytes;
            runtime.device_bytes = used.as_ref().and_then(|used| used.neuron_device);
            runtime.host_bytes = used.and_then(|used| used.host);
        }
        self.runtimes.push(runtime);
    }
}

/// Where the program is, if it is installed.
pub fn monitor(path: Option<&str>) -> Option<PathBuf> {
    const NAME: &str = "neuron-monitor";
    let folders = path.unwrap_or_default().split(':').filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let mut places = folders.chain([PathBuf::from("/opt/aws/neuron/bin")]).map(|folder| folder.join(NAME));
    places.find(|place| place.is_file())
}

/// A program that ended is started again after this.
const RESTART: Duration = Duration::from_secs(60);

/// Hands over reports for as long as it is not dropped. `spec` gives the guard, the folder and the environment.
pub async fn follow(program: PathBuf, spec: WorkerSpec, mut each: impl FnMut(Report)) {
    let command = [program.display().to_string()];
    loop {
        let mut said: Option<String> = None;
        let ended = lines_of(&spec, &command, |line| match Report::parse(line) {
            Ok(report) => {
                let fault = report.faults.first().cloned();
                // It repeats itself every few seconds.
                if let Some(fault) = fault.filter(|fault| said.as_ref() != Some(fault)) {
                    tracing::warn!(%fault, "neuron-monitor");
                    said = Some(fault);
                }
                each(report);
            }
            Err(why) if said.is_none() => {
                tracing::warn!("a line of neuron-monitor {why}");
                said = Some(why);
            }
            Err(_) => {}
        });
        if let Err(why) = ended.await {
            tracing::warn!(%why, "neuron-monitor ended; it is started again in a minute");
        }
        each(Report::default());
        tokio::time::sleep(RESTART).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let report = Report::parse(include_str!("../tests/neuron_monitor.json").replace('\n', " ").as_str());
        let report = report.expect("it is one");
        assert_eq!(report.core_utilisation, BTreeMap::from([(0, 0.42), (1, 0.0)]));
        let [one, other] = report.runtimes.as_slice() else { panic!("two: {:?}", report.runtimes) };
        assert_eq!((one.tag.as_str(), one.device_bytes, one.host_bytes), ("trn-1", Some(12_519_788_544), Some(1024)));
        assert_eq!((one.errors["hardware"], one.errors["generic"]), (2, 0));
        assert_eq!((other.tag.as_str(), other.device_bytes), ("77", None));
        assert_eq!(report.ecc[&(0, "mem_ecc_uncorrected")], 1);
        assert!(!report.ecc.contains_key(&(0, "sram_ecc_corrected")), "what is not there is no zero");
        assert_eq!(report.faults, ["no latencies"]);
    }

    #[test]
    fn an_unknown_layout_takes_nothing_with_it() {
        for (line, runtimes, faults) in [
            ("{}", 0, 0),
            (r#"{"neuron_runtime_data": null, "system_data": null}"#, 0, 0),
            (r#"{"neuron_runtime_data": [{"report": {"memory_used": 3, "new_group": {}}}]}"#, 1, 1),
            (r#"{"neuron_hardware_info": {"error": "no driver"}}"#, 0, 1),
            (r#"{"system_data": {"neuron_hw_counters": {"neuron_devices": [{}]}}}"#, 0, 0),
        ] {
            let report = Report::parse(line).expect(line);
            assert_eq!((report.runtimes.len(), report.faults.len()), (runtimes, faults), "{line}: {report:?}");
        }
        assert!(Report::parse("Traceback").is_err());
    }
}
