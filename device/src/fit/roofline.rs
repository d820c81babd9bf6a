//! How fast a model can run on a device: its bytes over the bandwidth, its products over their rate, whichever takes
//! longer, times the share of that which is reached in practice. Pure.

use serde::Serialize;

/// A device at best. `None` is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Ceiling {
    pub read_bytes_per_s: Option<f64>,
    /// Multiply-adds count as two.
    pub operations_per_s: Option<f64>,
}

/// What a model asks of a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Weights read to make one token.
    pub weight_bytes_per_token: f64,
    /// All of the weights, which many sequences read together.
    pub weight_bytes: f64,
    /// `None`: the shape is not known, and the contexts are left out.
    pub kv_bytes_per_token: Option<f64>,
    pub operations_per_token: f64,
    /// Of a prompt, which needs logits of its last token only.
    pub operations_per_prompt_token: f64,
}

/// Share of the limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    pub decode: f64,
    pub decode_many: f64,
    pub prefill: f64,
}

impl Share {
    /// The engine on CPUs, by whether weights are quantised: benches/results/2026-11-22-fit.md.
    pub fn of_cpu(format: &str) -> Self {
        match format {
            "BF16" | "F16" | "F32" => Self { decode: 0.85, decode_many: 0.25, prefill: 0.33 },
            _ => Self { decode: 0.8, decode_many: 0.18, prefill: 0.2 },
        }
    }

    /// Nothing was measured: the limit itself, to be told as one.
    pub const WHOLE: Self = Self { decode: 1.0, decode_many: 1.0, prefill: 1.0 };
}

/// Sequences that "many" means, and the context of each.
pub const MANY: u32 = 16;
pub const CONTEXT_TOKENS: u32 = 512;
/// Tokens of a step that reads a prompt.
const PREFILL_TOKENS: f64 = 256.0;

/// Tokens a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Rates {
    /// One answer alone.
    pub decode: Option<f64>,
    /// [`MANY`] answers at once, all together.
    pub decode_many: Option<f64>,
    /// Prompts.
    pub prefill: Option<f64>,
}

/// The least time of a step. Without a rate of products only reading counts, which a step of few tokens is about.
pub fn least_s(ceiling: Ceiling, bytes: f64, operations: f64) -> Option<f64> {
    let reading = bytes / ceiling.read_bytes_per_s.filter(|rate| *rate > 0.0)?;
    let multiplying = ceiling.operations_per_s.filter(|rate| *rate > 0.0).map_or(0.0, |rate| operations / rate);
    Some(reading.max(multiplying))
}

pub fn rates(demand: &Demand, ceiling: Ceiling, share: Share) -> Rates {
    let kv = demand.kv_bytes_per_token.unwrap_or(0.0) * f64::from(CONTEXT_TOKENS);
    let many = f64::from(MANY);
    let one_s = least_s(ceiling, demand.weight_bytes_per_token + kv, demand.operations_per_token);
    let many_s = least_s(ceiling, demand.weight_bytes + many * kv, many * demand.operations_per_token);
    let prefill_s = least_s(ceiling, demand.weight_bytes, PREFILL_TOKENS * demand.operations_per_prompt_token);
    // Reading a prompt is arithmetic: without its rate there is nothing to say.
    let prefill_s = prefill_s.filter(|_| ceiling.operations_per_s.is_some());
    Rates {
        decode: one_s.map(|seconds| share.decode / seconds),
        decode_many: many_s.map(|seconds| share.decode_many * many / seconds),
        prefill: prefill_s.map(|seconds| share.prefill * PREFILL_TOKENS / seconds),
    }
}

impl Rates {
    /// `about 120 tokens/s alone, 540 for 16 at once, prompts at 900`; `None` where nothing is known.
    pub fn sentence(&self, share: Share) -> Option<String> {
        let about = if share == Share::WHOLE { "at most" } else { "about" };
        let mut text = format!("{about} {} tokens/s alone", rounded(self.decode?));
        if let Some(many) = self.decode_many {
            text += &format!(", {} for {MANY} at once", rounded(many));
        }
        if let Some(prefill) = self.prefill {
            text += &format!(", prompts at {}", rounded(prefill));
        }
        Some(text)
    }
}

/// Two digits: a prediction has no more.
pub fn rounded(rate: f64) -> String {
    if rate < 10.0 {
        return format!("{rate:.1}");
    }
    let unit = 10_f64.powf(rate.log10().floor() - 1.0);
    format!("{:.0}", (rate / unit).round() * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand {
        weight_bytes_per_token: 1e9,
        weight_bytes: 1e9,
        kv_bytes_per_token: Some(1e5),
        operations_per_token: 2e9,
        operations_per_prompt_token: 1.6e9,
    };

    #[test]
    fn reading_bounds_one_stream_and_arithmetic_prompts() {
        let ceiling = Ceiling { read_bytes_per_s: Some(100e9), operations_per_s: Some(1e12) };
        let found = rates(&DEMAND, ceiling, Share::WHOLE);
        let kv = 1e5 * f64::from(CONTEXT_TOKENS);
        assert!((found.decode.expect("known") - 100e9 / (1e9 + kv)).abs() < 0.01);
        assert!((found.decode_many.expect("known") - 1e12 / 2e9).abs() < 0.01, "bound by products: {found:?}");
        assert!((found.prefill.expect("known") - 625.0).abs() < 0.01);
        let half = rates(&DEMAND, ceiling, Share { decode: 0.5, ..Share::WHOLE });
        assert!((half.decode.expect("known") * 2.0 - found.decode.expect("known")).abs() < 0.01);
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let unknown = rates(&DEMAND, Ceiling::default(), Share::WHOLE);
        assert_eq!((unknown, unknown.sentence(Share::WHOLE)), (Rates::default(), None));
        let memory_only = Ceiling { read_bytes_per_s: Some(100e9), operations_per_s: None };
        let found = rates(&DEMAND, memory_only, Share::WHOLE);
        assert_eq!(found.prefill, None);
        let said = found.sentence(Share::WHOLE).expect("a rate");
        assert!(said.starts_with("at most 95 tokens/s alone, ") && !said.contains("prompts"), "{said}");
    }

    #[test]
    fn predictions_have_two_digits() {
        let shown = [0.84, 9.94, 12.3, 99.4, 123.0, 987.0, 12_345.0].map(rounded);
        assert_eq!(shown, ["0.8", "9.9", "12", "99", "120", "990", "12000"]);
    }
}
