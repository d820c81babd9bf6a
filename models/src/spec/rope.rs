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
    /// A divisor for each frequency, as GGUF carries llama3 scaling (`rope_freqs.weight`). `[rotated / 2]`
    Divisors(Vec<f32>),
    /// A share of the pairs turns, the first ones, as if all did; the others stand still (Gemma 4).
    Proportional {
        share: f64,
        factor: f64,
    },
    /// LongRoPE: divisors for contexts up to the original length, and for longer ones. `[rotated / 2]` each
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        original_context: f64,
        /// Scale of cos and sin, whichever of the two is taken.
        attention_factor: f64,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    pub theta: f64,
    pub style: RopeStyle,
    /// Elements of a head that are rotated, the first ones.
    pub rotated: usize,
    pub scaling: RopeScaling,
}

impl RopeSpec {
    /// The same without scaling and with another base.
    pub(crate) fn plain(&self, theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::None, ..self.clone() }
    }

    /// Inverse frequency of each rotated pair, scaling included, for a model that serves contexts of up to `context`
    /// tokens. `[rotated / 2]`
    pub fn inverse_frequencies(&self, context: u32) -> Vec<f32> {
        let rotated = self.rotated;
        let plain = (0..rotated / 2).map(|pair| self.theta.powf(-((2 * pair) as f64) / rotated as f64));
        match &self.scaling {
            RopeScaling::None => plain.map(|frequency| frequency as f32).collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| (frequency / factor) as f32).collect(),
            &RopeScaling::Proportional { share, factor } => {
                let turning = (share * rotated as f64 / 2.0) as usize;
                let one = |(pair, frequency): (usize, f64)| if pair < turning { frequency / factor } else { 0.0 };
                plain.enumerate().map(|pair| one(pair) as f32).collect()
            }
            RopeScaling::Divisors(divisors) => {
                plain.zip(divisors).map(|(frequency, divisor)| (frequency / f64::from(*divisor)) as f32).collect()
            }
            RopeScaling::LongRope { short, long, original_context, .. } => {
                let divisors = if f64::from(context) > *original_context { long } else { short };
                plain.zip(divisors).map(|(frequency, divisor)| (frequency / divisor) as f32).collect()
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
                let (low, high) = self.yarn_range(original_context, (beta_fast, beta_slow), truncate);
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
    fn yarn_range(&self, original_context: f64, betas: (f64, f64), truncate: bool) -> (f64, f64) {
        let dim = self.rotated as f64;
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
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }

    pub(super) fn check(&self, head_dim: usize) -> Result<(), String> {
        let positive = |name: &str, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(format!("rope {name} is {value}, expected > 0")) }
        };
        positive("theta", self.theta)?;
        if self.rotated == 0 || self.rotated > head_dim || !self.rotated.is_multiple_of(2) {
            return Err(format!(
                "rope turns {} of {head_dim} elements of a head, expected an even share",
                self.rotated
            ));
        }
        let pairs = self.rotated / 2;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("scaling factor", *factor),
            RopeScaling::Proportional { share, factor } => {
                positive("scaling factor", *factor)?;
                if (0.0..=1.0).contains(share) { Ok(()) } else { Err(format!("rope turns a share of {share}")) }
            }
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
                if divisors.len() != pairs {
                    return Err(format!("{} rope factors for a head size of {head_dim}", divisors.len()));
                }
                divisors.iter().try_for_each(|&divisor| positive("factor", f64::from(divisor)))
            }
            RopeScaling::LongRope { short, long, original_context, attention_factor } => {
                if short.len() != pairs || long.len() != pairs {
                    let found = format!("{} short and {} long", short.len(), long.len());
                    return Err(format!("{found} rope factors for {pairs} rotated pairs"));
                }
                positive("original context length", *original_context)?;
                positive("attention factor", *attention_factor)?;
                short.iter().chain(long).try_for_each(|&divisor| positive("factor", divisor))
            }
        }
    }
}

/// YaRN's scale of cos and sin for a stretch of the context by `factor` (arXiv 2309.00071, equation 22).
pub(crate) fn yarn_attention_factor(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}
