//! What would fit, where something does not: a shorter context, smaller K and V, a smaller quantisation, another device.
//!
//! Nothing of it is done by itself: a plan that was asked for is kept or refused. Every piece of advice was planned and
//! fits.

use super::{ModelSize, Plan, Wishes, human_bytes, plan};

/// Formats that weights can be quantised to when they are loaded, the best first, with their bits a weight.
const FORMATS: [(&str, f64); 6] =
    [("q8_0", 8.5), ("q6_k", 6.5625), ("q5_k", 5.5), ("q4_k", 4.5), ("q3_k", 3.4375), ("q2_k", 2.625)];

/// What could be changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Of a checkpoint that can be quantised when it is loaded.
    pub quantizable_parameters: Option<u64>,
    /// What K and V of a token take in 8 bits, if they are larger now.
    pub fp8_kv_bytes_per_token: Option<u64>,
    /// Other devices of the machine, with what is available on them.
    pub devices: Vec<(String, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice {
    /// The longest context that fits, in tokens.
    Context(u32),
    KvFp8,
    Quantize {
        format: &'static str,
        weight_bytes: u64,
    },
    Device {
        name: String,
        /// How many copies it holds.
        replicas: u64,
    },
}

impl Advice {
    /// As a person would type it; a device is only named, because which engines run on it is not known here.
    pub fn sentence(&self) -> String {
        match self {
            Self::Context(tokens) => format!("--max-model-len {tokens}"),
            Self::KvFp8 => "--kv-cache-dtype fp8".to_owned(),
            Self::Quantize { format, weight_bytes } => {
                format!("--quantization {format} ({} of weights)", human_bytes(*weight_bytes))
            }
            Self::Device { name, replicas: 1 } => format!("{name}, with an engine for it"),
            Self::Device { name, replicas } => format!("{name}, which holds {replicas} of it, with an engine for it"),
        }
    }
}

/// Contexts below this are no help.
const CONTEXT_ADVISED_MIN: u32 = 256;

/// All that would fit, the least change first; empty where nothing does.
pub fn advice(size: &ModelSize, wishes: &Wishes, available_bytes: Option<u64>, options: &Options) -> Vec<Advice> {
    let mut found = Vec::new();
    if let Some(tokens) = longest_context(size, wishes, available_bytes) {
        found.push(Advice::Context(tokens));
    }
    if let Some(kv_bytes_per_token) = options.fp8_kv_bytes_per_token.filter(|bytes| *bytes < size.kv_bytes_per_token) {
        let smaller = ModelSize { kv_bytes_per_token, ..*size };
        if plan(&smaller, wishes, available_bytes).is_ok() {
            found.push(Advice::KvFp8);
        }
    }
    let quantized = options.quantizable_parameters.and_then(|parameters| {
        FORMATS.into_iter().find_map(|(format, bits)| {
            let weight_bytes = (parameters as f64 * bits / 8.0) as u64;
            let smaller = ModelSize { weight_bytes, ..*size };
            let fits = weight_bytes < size.weight_bytes && plan(&smaller, wishes, available_bytes).is_ok();
            fits.then_some(Advice::Quantize { format, weight_bytes })
        })
    });
    found.extend(quantized);
    for (name, available) in &options.devices {
        if let Ok(planned) = plan(size, wishes, Some(*available)) {
            found.push(Advice::Device { name: name.clone(), replicas: replicas(&planned, wishes, *available) });
        }
    }
    found
}

/// Copies of a model that a device holds, each with room for one full context.
pub fn replicas(plan: &Plan, wishes: &Wishes, available_bytes: u64) -> u64 {
    let room = (available_bytes / 1000).saturating_mul(u64::from(wishes.memory_share_permille));
    room / plan.least_bytes.max(1)
}

/// Of all contexts shorter than the one that was refused, the longest that fits; a whole number of blocks.
fn longest_context(size: &ModelSize, wishes: &Wishes, available_bytes: Option<u64>) -> Option<u32> {
    let block = wishes.block_size.max(1);
    let fits = |tokens: u32| {
        let shorter = Wishes { max_model_len: Some(tokens), ..*wishes };
        plan(size, &shorter, available_bytes).is_ok()
    };
    let most = wishes.max_model_len.unwrap_or(size.context_max).min(size.context_max);
    // What fits is one range from 0 up.
    let (mut low, mut high) = (0, most / block);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle * block) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    let longest = low * block;
    (longest >= CONTEXT_ADVISED_MIN && longest < most).then_some(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An 8 B model in BF16.
    const LARGE: ModelSize = ModelSize {
        weight_bytes: 16 << 30,
        kv_bytes_per_token: 131_072,
        state_bytes: 0,
        context_max: 131_072,
        step_bytes_per_token: 400_000,
        logits_row_bytes: 1 << 20,
    };
    const WISHES: Wishes = Wishes {
        block_size: 16,
        max_model_len: Some(65_536),
        max_num_seqs: 8,
        max_num_batched_tokens: None,
        kv_cache_bytes: None,
        further_rows_max: 0,
        memory_share_permille: 900,
        kv_bytes_chosen_max: Some(crate::fit::KV_BYTES_CHOSEN_MAX_ON_CPU),
        saves_states: true,
    };

    fn options() -> Options {
        Options {
            quantizable_parameters: Some(8_000_000_000),
            fp8_kv_bytes_per_token: Some(65_536),
            devices: vec![("cuda:0".to_owned(), 80 << 30), ("cuda:1".to_owned(), 4 << 30)],
        }
    }

    #[test]
    fn every_advice_fits_and_the_least_change_comes_first() {
        assert!(plan(&LARGE, &WISHES, Some(24 << 30)).is_err(), "or there is nothing to advise");
        let found = advice(&LARGE, &WISHES, Some(24 << 30), &options());
        let [
            Advice::Context(tokens),
            Advice::KvFp8,
            Advice::Quantize { format, .. },
            Advice::Device { name, replicas },
        ] = found.as_slice()
        else {
            panic!("{found:?}")
        };
        assert!(*tokens < 65_536 && tokens.is_multiple_of(16), "{tokens}");
        let wishes = |tokens| Wishes { max_model_len: Some(tokens), ..WISHES };
        assert!(plan(&LARGE, &wishes(*tokens), Some(24 << 30)).is_ok(), "the context fits");
        assert!(plan(&LARGE, &wishes(*tokens + 16), Some(24 << 30)).is_err(), "and is the longest");
        assert_eq!((*format, name.as_str(), *replicas), ("q8_0", "cuda:0", 2));
    }

    #[test]
    fn weights_that_do_not_fit_are_not_helped_by_a_shorter_context() {
        let found = advice(&LARGE, &Wishes { max_model_len: Some(4096), ..WISHES }, Some(8 << 30), &options());
        assert!(
            matches!(found.as_slice(), [Advice::Quantize { format: "q6_k", .. }, Advice::Device { .. }]),
            "{found:?}"
        );
        assert!(advice(&LARGE, &WISHES, Some(1 << 30), &Options::default()).is_empty(), "nothing fits");
    }

    #[test]
    fn sentences_are_what_is_typed_or_named() {
        let device = |replicas| Advice::Device { name: "cuda:0".to_owned(), replicas };
        let said: Vec<String> =
            [Advice::Context(4096), Advice::KvFp8, device(1), device(3)].iter().map(Advice::sentence).collect();
        let expected = [
            "--max-model-len 4096",
            "--kv-cache-dtype fp8",
            "cuda:0, with an engine for it",
            "cuda:0, which holds 3 of it, with an engine for it",
        ];
        assert_eq!(said, expected);
    }
}
