//! One pool over HTTP: every client API at every kind of provider, failures, residency, money, reload, workers.

mod chaos;
#[allow(dead_code, reason = "the providers' own tests use the rest")]
#[path = "../../providers/tests/fake/mod.rs"]
mod fake;
mod lifecycle;
mod matrix;
mod residency;
mod rules;
mod traced;
mod wires;
mod workers;
mod world;
