//! The least time that a step can take on a machine: its bytes over the bandwidth, its products over their rate, whichever
//! is longer. Pure.

use sconce_models::{KvDtype, Spec};

use crate::device::fit::roofline;
use crate::device::rates::Hardware;

/// What a step needs: weights read once, K and V of every context, and the products of both.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Needs {
    pub bytes: f64,
    pub operations: f64,
}

/// Sequences of a step, the context that each has on average while it runs, and the tokens that each brings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    pub sequences: f64,
    pub context: f64,
    pub tokens_each: f64,
    /// Rows of logits.
    pub samples: f64,
}

pub fn needs(spec: &Spec, kv_dtype: KvDtype, shape: Shape) -> Needs {
    let tokens = shape.sequences * shape.tokens_each;
    let embedding = (spec.vocab * spec.hidden) as f64;
    let total = spec.parameters as f64;
    // Of the embedding only single rows are read, except as the head.
    let head = embedding;
    let body = total - if spec.tied_embeddings { embedding } else { 2.0 * embedding };
    let (body_read, body_used) = with_experts(spec, body, tokens);
    let bytes_a_parameter = spec.weight_bytes as f64 / total.max(1.0);
    let kv = spec.kv_bytes_per_token(kv_dtype) as f64 * shape.context * shape.sequences;
    let attending = (0..spec.layers).filter(|layer| spec.delta_of(*layer).is_none()).count();
    let attention = 4.0 * (attending * spec.heads * spec.head_dim) as f64 * shape.context * tokens;
    // Read and written once a step; four products and sums an element and token.
    let states = spec.state_bytes() as f64;
    let recurrence = 8.0 * states / 4.0 * tokens;
    let read_head = if shape.samples > 0.0 { head } else { 0.0 };
    Needs {
        bytes: (body_read + read_head) * bytes_a_parameter + kv + 2.0 * states * shape.sequences,
        operations: 2.0 * body_used * tokens + 2.0 * head * shape.samples + attention + recurrence,
    }
}

/// Parameters that a step reads, and that a token uses: of experts only the chosen ones.
fn with_experts(spec: &Spec, body: f64, tokens: f64) -> (f64, f64) {
    let Some(experts) = &spec.experts else { return (body, body) };
    let layers = experts.layers.iter().filter(|has| **has).count() as f64;
    let one = 3.0 * (spec.hidden * experts.ffn) as f64 * layers;
    let (count, chosen) = (experts.count as f64, experts.per_token as f64);
    // Each token chooses as if at random: the experts that nobody chose are not read.
    let read = count * (1.0 - (1.0 - chosen / count).powf(tokens));
    let rest = body - count * one;
    (rest + read * one, rest + chosen * one)
}

pub fn least_s(hardware: &Hardware, format: &str, needs: Needs) -> f64 {
    // A machine that was measured has both rates.
    roofline::least_s(hardware.ceiling(format), needs.bytes, needs.operations).unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_models::Source;

    fn spec() -> Spec {
        sconce_models::read_spec(&Source::Dummy("smollm2-135m".to_owned())).expect("a shape")
    }

    const HARDWARE: fn() -> Hardware = || Hardware {
        processor: String::new(),
        threads: 2,
        read_bytes_per_s: 30e9,
        f32_per_s: 230e9,
        bf16_per_s: Some(454e9),
        int8_per_s: Some(910e9),
    };

    #[test]
    fn a_token_of_one_stream_reads_every_weight_once() {
        let spec = spec();
        let shape = Shape { sequences: 1.0, context: 0.0, tokens_each: 1.0, samples: 1.0 };
        let needs = needs(&spec, KvDtype::F16, shape);
        assert!((needs.bytes / spec.weight_bytes as f64 - 1.0).abs() < 0.01, "{needs:?}");
        assert!((needs.operations / (2.0 * spec.parameters as f64) - 1.0).abs() < 0.01, "{needs:?}");
        // Bandwidth bounds one stream, arithmetic many.
        let one = least_s(&HARDWARE(), "BF16", needs);
        assert!((one - needs.bytes / 30e9).abs() < 1e-9);
        let many = super::needs(&spec, KvDtype::F16, Shape { sequences: 256.0, samples: 256.0, ..shape });
        assert!(least_s(&HARDWARE(), "BF16", many) > many.bytes / 30e9 * 1.5);
        assert!(least_s(&HARDWARE(), "Q4_0", many) < least_s(&HARDWARE(), "F16", many));
    }

    #[test]
    fn prompts_need_the_head_for_one_token_only() {
        let shape = Shape { sequences: 1.0, context: 256.0, tokens_each: 512.0, samples: 1.0 };
        let needs = needs(&spec(), KvDtype::F16, shape);
        let each = needs.operations / 512.0;
        // 106 M parameters without the embedding, and attention over 256 tokens on average.
        assert!((0.20e9..0.24e9).contains(&each), "{each}");
    }
}
