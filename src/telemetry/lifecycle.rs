//! Figures of models that come and go.

use super::exposition::Exposition;
use crate::pool::Pool;
use crate::pool::lifecycle::State;

/// Name, help, and what it reads.
type Figure = (&'static str, &'static str, fn(&crate::pool::lifecycle::ModelStatus) -> u64);

const GAUGES: [Figure; 3] = [
    ("sconce_model_memory_bytes", "what the model takes, as planned", |status| status.memory.total_bytes()),
    ("sconce_model_load_waiting", "requests that wait for the model to be loaded", |status| {
        status.waiting_for_load.into()
    }),
    ("sconce_engine_stuck", "1 while the engine has been in one step for too long", |status| {
        status.stuck_for.is_some().into()
    }),
];

const COUNTERS: [Figure; 5] = [
    ("sconce_model_loads_total", "loads that went well", |status| status.loads),
    ("sconce_model_load_failures_total", "loads that failed", |status| status.load_failures),
    ("sconce_model_evictions_total", "times that the model made room for another", |status| status.evictions),
    ("sconce_model_sleeps_total", "times that the model left its GPU with its weights in host memory", |status| {
        status.sleeps
    }),
    ("sconce_engine_restarts_total", "times that the engine failed and was started again", |status| status.restarts),
];

pub(super) fn write(page: &mut Exposition, pool: &Pool) {
    let statuses = pool.lifecycle().statuses();
    page.model_states("sconce_model_state", "1 for the state that the model is in", &statuses, &State::ALL);
    for (figures, is_counter) in [(&GAUGES[..], false), (&COUNTERS[..], true)] {
        for (name, help, read) in figures {
            let values: Vec<_> = statuses.iter().map(|status| (status.id.as_str(), read(status) as f64)).collect();
            page.model_figure((name, help), is_counter, &values);
        }
    }
}
