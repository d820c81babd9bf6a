//! What a seed makes of an engine and of its clients' wishes.

use sconce_engine::{Capabilities, EngineConfig, ItlTarget, NgramConfig, SamplingLimits, SamplingParams, Speculation};

use crate::random::Random;

pub fn config(random: &mut Random) -> EngineConfig {
    EngineConfig {
        block_size: random.pick(&[1, 2, 4, 8, 16]),
        blocks: 2 + random.below(60),
        max_num_seqs: 1 + random.below(12),
        max_num_batched_tokens: 1 + random.below(96),
        max_model_len: 16 + random.below(180),
        enable_prefix_caching: random.chance(85),
        max_waiting: 32,
        itl_target: random.pick(&[ItlTarget::Auto, ItlTarget::Milliseconds(2), ItlTarget::Off]),
        speculation: random.chance(60).then(|| speculation(random)),
    }
}

/// What some device can do.
pub fn capabilities(random: &mut Random) -> Capabilities {
    Capabilities {
        static_buckets: random.pick(&[&[][..], &[], &[4], &[1, 2, 8]]).to_vec(),
        token_buckets: random.pick(&[&[][..], &[], &[5], &[8, 64], &[2, 4, 8, 16, 32]]).to_vec(),
        mixed_batch: random.chance(75),
        max_prefills_per_step: random.pick(&[1, 2, u32::MAX]),
        max_tokens_per_step: random.pick(&[u32::MAX, u32::MAX, 7]),
        max_drafts_per_row: random.pick(&[u32::MAX, u32::MAX, 2, 0]),
        state_slots: 0,
        preemption: random.chance(70),
    }
}

/// The same of a model that keeps a state a sequence, which takes no drafts back and no padding; two of five of those that
/// may are.
pub fn with_states(random: &mut Random, capabilities: Capabilities) -> Capabilities {
    let has_buckets = !capabilities.static_buckets.is_empty() || !capabilities.token_buckets.is_empty();
    if !random.chance(40) || has_buckets {
        return capabilities;
    }
    Capabilities { state_slots: 1 + random.below(16), max_drafts_per_row: 0, ..capabilities }
}

/// What it can sample; every other one samples nothing.
pub fn sampling(random: &mut Random) -> Option<SamplingLimits> {
    let limits = SamplingLimits { top_logprobs_max: random.pick(&[1, 20]), masks: random.chance(50) };
    random.chance(50).then_some(limits)
}

fn speculation(random: &mut Random) -> Speculation {
    let prompt_lookup_min = 1 + random.below(2);
    Speculation::Ngram(NgramConfig {
        num_speculative_tokens: random.pick(&[1, 3, 5, 16]),
        prompt_lookup_max: prompt_lookup_min + random.below(3),
        prompt_lookup_min,
    })
}

/// The same clients without what hangs on the token before: their steps follow each other on a device.
pub fn without_history(params: SamplingParams) -> SamplingParams {
    SamplingParams {
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        prompt_logprobs: None,
        ..params
    }
}

/// What one client asks for.
pub fn params(random: &mut Random, vocab: u32) -> SamplingParams {
    let mut params = SamplingParams::greedy(random.below(40));
    params.seed = random.next();
    if random.chance(50) {
        params.temperature = random.pick(&[0.3, 1.0, 1.7]);
        params.top_k = random.pick(&[0, 0, 1, 5, 100]);
        params.top_p = random.pick(&[1.0, 1.0, 0.9, 0.3]);
        params.min_p = random.pick(&[0.0, 0.0, 0.1]);
    }
    if random.chance(30) {
        params.repetition_penalty = random.pick(&[1.0, 1.3]);
        params.presence_penalty = random.pick(&[0.0, 0.5]);
        params.frequency_penalty = random.pick(&[0.0, -0.5]);
        params.logit_bias = vec![(random.below(vocab), 3.0)];
    }
    if random.chance(10) {
        // So likely that the output repeats itself, which is what drafts are made of.
        params.logit_bias = vec![(random.below(vocab), 12.0)];
    }
    if random.chance(60) {
        params.stop_token_ids = vec![random.below(vocab)];
        params.min_tokens = random.pick(&[0, 0, 5]);
    }
    if random.chance(20) {
        params.logprobs = Some(random.below(4));
    }
    if random.chance(15) {
        params.prompt_logprobs = Some(random.below(3));
    }
    params
}
