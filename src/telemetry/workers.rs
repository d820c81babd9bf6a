//! Metrics of supervised workers, and of the Neuron cores that some of them use.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};
use sconce_worker::neuron::Report;
use sconce_worker::{PHASES, Status};

use super::exposition::Exposition;
use super::metrics::counters;
use crate::pool::Pool;

pub const STATE: &str = "sconce_worker_state";
pub const RESTARTS: &str = "sconce_worker_restarts_total";
pub const START: &str = "sconce_worker_start_seconds";

/// What is true of each worker at the moment.
pub(super) fn write(page: &mut Exposition, pool: &Pool) {
    let table = pool.table();
    let workers: Vec<(&str, Status)> =
        table.nodes.iter().filter_map(|node| Some((node.name.as_str(), node.member.worker()?))).collect();
    if workers.is_empty() {
        return;
    }
    let states = workers.iter().flat_map(|(name, status)| {
        PHASES.map(|phase| {
            let labels = vec![("member", *name), ("state", phase.word())];
            (labels, if phase == status.phase { 1.0 } else { 0.0 })
        })
    });
    page.labelled(STATE, "1 for the state that the worker is in", "gauge", states);
    let member = |name| vec![("member", name)];
    let restarts = workers.iter().map(|(name, status)| (member(*name), status.restarts as f64));
    page.labelled(RESTARTS, "starts of the worker's process after the first", "counter", restarts);
    let starts = workers.iter().filter_map(|(name, status)| Some((member(*name), status.start_took_s?)));
    page.labelled(START, "how long the worker's last start took until it was ready", "gauge", starts);
}

/// Families of what neuron-monitor reports; they have no series before the first report.
pub struct NeuronFamilies {
    utilisation: GaugeVec,
    memory: GaugeVec,
    errors: IntCounterVec,
    ecc: GaugeVec,
    // Taken once a report: a page that is read meanwhile has the old figures or the new.
    writing: Mutex<()>,
}

impl NeuronFamilies {
    pub fn register(registry: &Registry) -> Self {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let family = GaugeVec::new(Opts::new(name, help), labels).expect("a constant name and labels");
            registry.register(Box::new(family.clone())).expect("each name is registered once");
            family
        };
        Self {
            utilisation: gauges(
                "sconce_neuron_core_utilisation",
                "share of time that a core was busy, 1 is all",
                &["core"],
            ),
            memory: gauges(
                "sconce_neuron_memory_used_bytes",
                "memory of a process on Neuron cores",
                &["worker", "where"],
            ),
            errors: counters(
                registry,
                "sconce_neuron_errors_total",
                "executions that failed, by kind",
                &["worker", "kind"],
            ),
            ecc: gauges("sconce_neuron_ecc_events", "memory errors of a device, by kind", &["device", "kind"]),
            writing: Mutex::default(),
        }
    }

    /// What is not in the report any more is not known any more.
    pub fn report(&self, report: &Report) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.utilisation.reset();
        self.memory.reset();
        self.ecc.reset();
        for (core, share) in &report.core_utilisation {
            self.utilisation.with_label_values(&[&core.to_string()]).set(*share);
        }
        let mut memory: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for runtime in &report.runtimes {
            let parts = [("device", runtime.device_bytes), ("host", runtime.host_bytes)];
            for (place, bytes) in parts.into_iter().filter_map(|(place, bytes)| Some((place, bytes?))) {
                // A worker may have several processes.
                *memory.entry((&runtime.tag, place)).or_default() += bytes;
            }
            for (kind, count) in &runtime.errors {
                self.errors.with_label_values(&[&runtime.tag, kind]).inc_by(*count);
            }
        }
        for ((worker, place), bytes) in memory {
            self.memory.with_label_values(&[worker, place]).set(bytes as f64);
        }
        for ((device, kind), count) in &report.ecc {
            self.ecc.with_label_values(&[device.to_string().as_str(), kind]).set(*count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder, TextEncoder};
    use sconce_worker::neuron::Runtime;

    use super::*;

    #[test]
    fn figures_come_and_go_with_the_reports_and_errors_add_up() {
        let registry = Registry::new();
        let families = NeuronFamilies::register(&registry);
        let page = || {
            let mut text = Vec::new();
            TextEncoder::new().encode(&registry.gather(), &mut text).expect("it is written");
            String::from_utf8(text).expect("UTF-8")
        };
        assert_eq!(page(), "", "nothing before the first report");
        let runtime = |bytes| Runtime {
            tag: "trn-1".into(),
            device_bytes: Some(bytes),
            host_bytes: None,
            errors: BTreeMap::from([("hardware".to_owned(), 2)]),
        };
        let report = Report {
            core_utilisation: BTreeMap::from([(3, 0.5)]),
            runtimes: vec![runtime(1), runtime(2)],
            ecc: BTreeMap::from([((0, "mem_ecc_corrected"), 7)]),
            faults: Vec::new(),
        };
        families.report(&report);
        let text = page();
        for line in [
            "sconce_neuron_core_utilisation{core=\"3\"} 0.5",
            "sconce_neuron_memory_used_bytes{where=\"device\",worker=\"trn-1\"} 3",
            "sconce_neuron_errors_total{kind=\"hardware\",worker=\"trn-1\"} 4",
            "sconce_neuron_ecc_events{device=\"0\",kind=\"mem_ecc_corrected\"} 7",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in {text}");
        }
        families.report(&Report::default());
        let text = page();
        assert!(!text.contains("core=\"3\"") && text.contains("} 4"), "{text}");
    }
}
