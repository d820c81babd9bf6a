//! The inference engine: one OS thread that schedules, runs and samples every sequence of one replica.
//!
//! The parts that decide (`scheduler`, `blocks`, `sequence`, `batch`, `sampler`) are pure: same inputs and seed, same
//! outputs. `run` owns them on the engine thread and is the only place where channels and the clock meet them.
