//! What the fitted prompts look like from outside: the range of every count over nearly all of them.
//!
//! Neighbours tell what a prompt is about, not how it is put. A fit on questions with options finds near neighbours for
//! word problems without any, and misleads there; their counts give them away.

use serde::{Deserialize, Serialize};

use super::features::{COUNT, Features};
use super::percentile;

/// The range leaves out this share of the prompts at either end.
const LEFT_OUT: f64 = 0.005;
/// This many deviations beyond the ranges, all counts together, make a prompt foreign.
const FOREIGN: f64 = 0.5;
/// The least deviation of a count; where all prompts have the same, one more of it is still the same kind.
const DEVIATION_MIN: f64 = 0.25;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    low: Vec<f64>,
    high: Vec<f64>,
    deviations: Vec<f64>,
}

impl Shape {
    pub fn fit(rows: &[Features]) -> Self {
        let mut shape = Self { low: Vec::new(), high: Vec::new(), deviations: Vec::new() };
        #[allow(clippy::cast_precision_loss)] // counts of prompts
        let count = rows.len().max(1) as f64;
        for feature in 0..COUNT {
            let mut values: Vec<f64> = rows.iter().map(|row| row.values[feature]).collect();
            values.sort_by(f64::total_cmp);
            let mean = values.iter().sum::<f64>() / count;
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
            shape.low.push(percentile(&values, LEFT_OUT));
            shape.high.push(percentile(&values, 1.0 - LEFT_OUT));
            shape.deviations.push(variance.sqrt().max(DEVIATION_MIN));
        }
        shape
    }

    /// 1 within all ranges, 0 far from them.
    pub fn likeness(&self, features: &Features) -> f64 {
        let ranges = self.low.iter().zip(&self.high).zip(&self.deviations);
        let beyond: f64 = features
            .values
            .iter()
            .zip(ranges)
            .map(|(value, ((low, high), deviation))| (low - value).max(value - high).max(0.0) / deviation)
            .sum();
        (1.0 - beyond / FOREIGN).max(0.0)
    }

    pub fn check(&self) -> Result<(), String> {
        let lengths_fit = [self.low.len(), self.high.len(), self.deviations.len()] == [COUNT; 3];
        let is_usable = self.deviations.iter().all(|deviation| *deviation > 0.0);
        if lengths_fit && is_usable { Ok(()) } else { Err("shape: it is not of this version; fit it again".to_owned()) }
    }
}
