//! Everything with a plugin that is really there, from the path in `SCONCE_PJRT_PLUGIN`: run with `--ignored`, as
//! `tests/run` does with a CPU plugin. What needs no plugin is tested beside its code.

mod api;
mod driver;
mod engine;
mod logits;
mod real;

use std::path::PathBuf;

fn plugin() -> PathBuf {
    std::env::var_os("SCONCE_PJRT_PLUGIN").expect("SCONCE_PJRT_PLUGIN is the path of a PJRT plugin").into()
}
