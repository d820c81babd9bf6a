//! Rotary position embeddings: what a file may ask for, turned into inverse frequencies once at load.
//!
//! Formulas: RoPE (arXiv 2104.09864), YaRN (arXiv 2309.00071); llama3 as published with Llama 3.1. Computed in f64 and
//! rounded once.

use std::f64::consts::PI;

use sconce_kernels::RopeStyle;

#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    Yarn {
        factor: f64,
        original_context: f64,
        beta_fast: f64,
        beta_slow: f64,
        /// Scale of cos and sin.
        attention_factor: f64,
        /// Round the corrected range outwards to whole dimensions.
        truncate: bool,
    },
    /// A divisor for each frequency, as GGUF carries llama3 scaling (`rope_freqs.weight`). `[head_dim / 2]`
    Divisors(Vec<f32>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    pub theta: f64,
    pub style: RopeStyle,
    pub scaling: RopeScaling,
}

impl RopeSpec {
    /// Inverse frequency of each rotated pair, scaling included. `[head_dim / 2]`
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let plain = (0..head_dim / 2).map(|pair| self.theta.powf(-((2 * pair) as f64) / head_dim as f64));
        match &self.scaling {
            RopeScaling::None => plain.map(|frequency| frequency as f32).collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| (frequency / factor) as f32).collect(),
            RopeScaling::Divisors(divisors) => {
                plain.zip(divisors).map(|(frequency, divisor)| (frequency / f64::from(*divisor)) as f32).collect()
            }
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => plain
                .map(|frequency| {
                    // Turns over the original context: many turns stay, few are stretched, between them a blend.
                    let turns = original_context * frequency / (2.0 * PI);
                    let blend = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let kept = blend.clamp(0.0, 1.0);
                    ((1.0 - kept) * frequency / factor + kept * frequency) as f32
                })
                .collect(),
            &RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } => {
                let (low, high) = self.yarn_range(head_dim, original_context, (beta_fast, beta_slow), truncate);
                plain
                    .enumerate()
                    .map(|(pair, frequency)| {
                        let stretched = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        (frequency / factor * stretched + frequency * (1.0 - stretched)) as f32
                    })
                    .collect()
            }
        }
    }

    /// The pairs between which YaRN blends: those that turn `beta_fast` and `beta_slow` times in the original context.
    fn yarn_range(&self, head_dim: usize, original_context: f64, betas: (f64, f64), truncate: bool) -> (f64, f64) {
        let dim = head_dim as f64;
        let pair_of = |turns: f64| dim * (original_context / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (pair_of(betas.0), pair_of(betas.1));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        (low, high)
    }

    /// Scale of cos and sin.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    pub(super) fn check(&self, head_dim: usize) -> Result<(), String> {
        let positive = |name: &str, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(format!("rope {name} is {value}, expected > 0")) }
        };
        positive("theta", self.theta)?;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("scaling factor", *factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("scaling factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("original context length", *original_context)?;
                positive("high_freq_factor minus low_freq_factor", high_freq_factor - low_freq_factor)
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, .. } => {
                positive("scaling factor", *factor)?;
                positive("original context length", *original_context)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("attention factor", *attention_factor)?;
                positive("theta minus 1", self.theta - 1.0)
            }
            RopeScaling::Divisors(divisors) => {
                if divisors.len() != head_dim / 2 {
                    return Err(format!("{} rope factors for a head size of {head_dim}", divisors.len()));
                }
                divisors.iter().try_for_each(|&divisor| positive("factor", f64::from(divisor)))
            }
        }
    }
}

/// YaRN's scale of cos and sin for a stretch of the context by `factor` (arXiv 2309.00071, equation 22).
pub(crate) fn yarn_attention_factor(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}
