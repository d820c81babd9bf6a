//! One pool over HTTP: every client API at every kind of provider, failures, residency, money, reload.

mod chaos;
#[allow(dead_code, reason = "the providers' own tests use the rest")]
#[path = "../../providers/tests/fake/mod.rs"]
mod fake;
mod matrix;
mod residency;
mod rules;
mod wires;
mod world;
