// performance-critical: no contended lock, no log, no format; allocates nothing but what leaves
//! Samples the rows of a step on the threads that computed them: the engine thread alone would be longer at it than at
//! anything else it does, with many rows or a large vocabulary.
//!
//! Each lane takes rows that lie side by side, so the results come together in the order of the rows, the same as on
//! one thread.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use sconce_models::{Logits, Sample};

use super::Sampler;
use super::device::Answers;
use crate::scheduler::{Row, Scheduler, Step, StepResults};

/// Below so many logits a lane is not worth waking a thread for.
pub const LANE_LOGITS_MIN: usize = 32 * 1024;

/// Threads that take part in sampling.
#[derive(Clone, Copy)]
pub struct Workers {
    pub count: usize,
    /// Calls a function with 0, 1, ... up to a count, each once, on the threads there are; returns after the last.
    pub run: fn(usize, &(dyn Fn(usize) + Sync)),
}

impl Workers {
    /// The calling thread.
    pub const NONE: Self = Self { count: 1, run: |count, run| (0..count).for_each(run) };
}

/// Memory of every lane, kept from step to step.
pub struct StepSampler {
    lane_logits_min: usize,
    lanes: Vec<Mutex<Lane>>,
}

#[derive(Default)]
struct Lane {
    sampler: Sampler,
    rows: Range<usize>,
    /// Of the lane's first row in the logits.
    first_sample: usize,
    results: StepResults,
}

impl StepSampler {
    /// Gives a lane at least so many logits, usually [`LANE_LOGITS_MIN`].
    pub fn new(lane_logits_min: usize) -> Self {
        Self { lane_logits_min: lane_logits_min.max(1), lanes: Vec::new() }
    }

    /// Scores and samples every row of a step that asks for it.
    pub fn sample(
        &mut self,
        scheduler: &Scheduler,
        step: &Step,
        logits: &Logits,
        results: &mut StepResults,
        workers: Workers,
    ) {
        self.run(scheduler, step, Answers { logits, samples: None }, results, workers);
    }

    /// Takes in what a device made of the step that [`super::request`] described, and samples the rows whose logits came
    /// back. The answers were checked.
    pub fn take(
        &mut self,
        scheduler: &Scheduler,
        step: &Step,
        (samples, logits): (&[Sample], &Logits),
        results: &mut StepResults,
        workers: Workers,
    ) {
        self.run(scheduler, step, Answers { logits, samples: Some(samples) }, results, workers);
    }

    fn run(
        &mut self,
        scheduler: &Scheduler,
        step: &Step,
        answers: Answers,
        results: &mut StepResults,
        workers: Workers,
    ) {
        results.clear();
        let lanes = self.divide(&step.rows, answers, workers.count);
        let shared = &self.lanes[..lanes];
        (workers.run)(lanes, &|lane| {
            // Each lane is one thread's: the lock only says so to the compiler.
            let mut lane = shared[lane].lock().unwrap_or_else(PoisonError::into_inner);
            let Lane { sampler, rows, first_sample, results } = &mut *lane;
            results.clear();
            sampler.sample_rows(scheduler, &step.rows[rows.clone()], answers, *first_sample, results);
        });
        for lane in &mut self.lanes[..lanes] {
            results.append(&mut lane.get_mut().unwrap_or_else(PoisonError::into_inner).results);
        }
    }

    /// Gives every lane its rows, about equally many samples each. Returns the number of lanes.
    fn divide(&mut self, rows: &[Row], answers: Answers, workers: usize) -> usize {
        let samples = answers.len();
        let wanted = workers.min(samples).min(answers.logits.values.len() / self.lane_logits_min).max(1);
        self.lanes.resize_with(self.lanes.len().max(wanted), Mutex::default);
        let (mut row, mut sample) = (0, 0);
        for (index, lane) in self.lanes[..wanted].iter_mut().enumerate() {
            let lane = lane.get_mut().unwrap_or_else(PoisonError::into_inner);
            let (first_row, until) = (row, samples * (index + 1) / wanted);
            lane.first_sample = sample;
            while row < rows.len() && (sample < until || index + 1 == wanted) {
                sample += rows[row].samples();
                row += 1;
            }
            lane.rows = first_row..row;
        }
        wanted
    }
}
