// performance-critical: no allocation per token, no lock, no log, no format
//! Steps of decoding as graphs, one for each size of batch that was met: the first step of a size runs kernel by kernel,
//! the second is recorded, and from then on a step is one launch.

use std::collections::HashMap;

use sconce_cuda::{Device, Graph};

use crate::error::Result;

/// Up to here each further size is one more row, above it they are coarser: padding costs less than a graph.
const EXACT_MAX: usize = 4;

#[derive(Default)]
pub(super) struct Graphs {
    rows_max: usize,
    of_rows: HashMap<usize, Option<Graph>>,
    /// Recording failed once: kernel by kernel from now on.
    is_off: bool,
    warning: Option<String>,
}

impl Graphs {
    pub fn new(rows_max: usize) -> Self {
        Self { rows_max, ..Self::default() }
    }

    /// The batch that `rows` rows are padded to.
    pub fn bucket(&self, rows: usize) -> usize {
        let padded = match rows {
            0..=EXACT_MAX => rows,
            5..=256 => rows.next_multiple_of(8),
            _ => rows.next_multiple_of(32),
        };
        padded.min(self.rows_max).max(rows)
    }

    /// Issues a step of `rows` rows, which `issue` does kernel by kernel. `all_could` says whether all ranks of the model
    /// could record it: steps are recorded by all of them or by none.
    pub fn run(
        &mut self,
        rows: usize,
        device: &Device,
        issue: impl Fn() -> Result<()>,
        all_could: impl Fn(bool) -> Result<bool>,
    ) -> Result<()> {
        if self.is_off {
            return issue();
        }
        match self.of_rows.get(&rows) {
            // Kernels are loaded and products are chosen now, which a recording must not do.
            None => {
                issue()?;
                self.of_rows.insert(rows, None);
                Ok(())
            }
            Some(None) => {
                let mut failed = None;
                let graph = Graph::record(device, || issue().map_err(|error| remember(error, &mut failed)));
                let all_could = all_could(graph.is_ok())?;
                match graph {
                    Ok(graph) if all_could => {
                        graph.launch()?;
                        self.of_rows.insert(rows, Some(graph));
                        Ok(())
                    }
                    graph => {
                        let why = graph.err().map(|error| failed.unwrap_or_else(|| error.to_string()));
                        let why = why.unwrap_or_else(|| "on another GPU".to_owned());
                        self.warning = Some(format!("steps are launched kernel by kernel, recording failed: {why}"));
                        self.is_off = true;
                        self.of_rows.clear();
                        issue()
                    }
                }
            }
            Some(Some(graph)) => Ok(graph.launch()?),
        }
    }

    pub fn has_warning(&self) -> bool {
        self.warning.is_some()
    }

    pub fn take_warning(&mut self) -> Option<String> {
        self.warning.take()
    }
}

/// The device's error for a step's, whose text is kept.
#[cold]
fn remember(error: crate::error::Error, text: &mut Option<String>) -> sconce_cuda::Error {
    *text = Some(error.to_string());
    match error {
        crate::error::Error::Cuda(error) => error,
        other => sconce_cuda::Error::Driver { what: "step".to_owned(), detail: other.to_string() },
    }
}
