//! Vectors of many prompts by a local model, for the commands that learn from outcomes.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::flags::ModelFlags;
use crate::config::file::ModelSection;
use crate::error::{Error, Result};
use crate::hub::progress;
use crate::launch::Launch;
use crate::pool::{Pool, Task, vectors_of};

/// Prompts that are given to the model at once: enough to fill its steps.
const PROMPTS_A_TIME: usize = 256;

/// What a model made of prompts.
pub struct Made {
    /// What the model is called where it is served.
    pub name: String,
    /// In the order of the prompts.
    pub vectors: Vec<Vec<f32>>,
}

/// Loads an embedding model, asks it for every prompt and unloads it.
pub async fn of(model: &str, prompts: &[&str]) -> Result<Made> {
    let flags = ModelFlags::default();
    flags.apply_threads();
    let section = ModelSection { model: model.to_owned(), ..ModelSection::default() };
    let launch = Launch::plan(&[flags.resolve(&section)?])?;
    let loaded = launch.load(progress::for_stderr().into()).await?;
    let made = match loaded.first() {
        Some(report) if matches!(report.task, Task::Embed { .. }) => all(&launch.pool, &report.id, prompts).await,
        _ => Err(Error::invalid("--embedder", format!("{model} makes no vectors; name an embedding model"))),
    };
    launch.stop(Duration::ZERO).await;
    made
}

async fn all(pool: &Pool, name: &str, prompts: &[&str]) -> Result<Made> {
    let bar = ProgressBar::new(prompts.len() as u64);
    let style = ProgressStyle::with_template("vectors {wide_bar} {pos}/{len} prompts, {eta} left");
    bar.set_style(style.map_err(|why| Error::internal(format!("a progress bar's form is wrong: {why}")))?);
    let mut vectors = Vec::with_capacity(prompts.len());
    for some in prompts.chunks(PROMPTS_A_TIME) {
        let made = pool.embed(vectors_of(name, some.iter().map(|&prompt| prompt.to_owned()))).await?;
        vectors.extend(made.rows().map(<[f32]>::to_vec));
        bar.inc(some.len() as u64);
    }
    bar.finish_and_clear();
    Ok(Made { name: name.to_owned(), vectors })
}
