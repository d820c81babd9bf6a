//! What fits, as a pure function: (model, memory, wishes) -> a plan with its reasons, or why not; [`advice`] says what would,
//! [`roofline`] how fast it would be.
//!
//! A context that was asked for is kept or refused, never shortened.

pub mod advice;
pub mod roofline;

/// What the plan needs to know of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelSize {
    /// Bytes that loading the weights will still take out of the available memory.
    pub weight_bytes: u64,
    pub kv_bytes_per_token: u64,
    /// What a sequence takes however long it is; 0 of models that keep no state.
    pub state_bytes: u64,
    /// Longest context the model was made for.
    pub context_max: u32,
    /// Bytes of activations that one token of a step needs.
    pub step_bytes_per_token: u64,
    /// Bytes of one row of logits: one for each sequence that samples, each prompt token that is scored, each draft.
    pub logits_row_bytes: u64,
}

/// What the operator asked for; `None` means: choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    pub block_size: u32,
    pub max_model_len: Option<u32>,
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: Option<u32>,
    pub kv_cache_bytes: Option<u64>,
    /// Rows of logits that one step may need beyond one a sequence.
    pub further_rows_max: u64,
    /// Share of the available memory that weights and KV may take, in thousandths (`--gpu-memory-utilization`).
    pub memory_share_permille: u32,
    /// A KV cache of which nothing was said stops growing here; without a bound it takes what is left.
    pub kv_bytes_chosen_max: Option<u64>,
    /// States of sequences that ended are kept for later ones (`--enable-prefix-caching`).
    pub saves_states: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub blocks: u32,
    pub block_size: u32,
    pub max_model_len: u32,
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: u32,
    pub kv_bytes: u64,
    /// Slots for states of sequences; 0 of models that keep none.
    pub state_slots: u32,
    /// All that the model will take when its KV cache is full: weights, K and V, and what a step needs.
    pub memory_bytes: u64,
    /// The same with K and V, and the state, of one full context only.
    pub least_bytes: u64,
    /// Activations and logits of the largest step.
    pub step_bytes: u64,
    /// One line a choice, for the person who starts the server.
    pub reasons: Vec<String>,
}

/// [`Wishes::kv_bytes_chosen_max`] of a CPU: beyond it, it is too slow to use the room.
pub const KV_BYTES_CHOSEN_MAX_ON_CPU: u64 = 4 << 30;

/// A step's token budget when none is given: prefill is as efficient as with more, and a decoding stream waits less.
const BATCHED_TOKENS_DEFAULT: u32 = 256;

/// A chosen context is never shorter than this: a model that has less room is refused instead.
const CONTEXT_CHOSEN_MIN: u32 = 2048;

/// Plans for `available_bytes` of memory (`None`: unknown, then only the default cap limits).
pub fn plan(size: &ModelSize, wishes: &Wishes, available_bytes: Option<u64>) -> Result<Plan, String> {
    let max_num_batched_tokens = wishes.max_num_batched_tokens.unwrap_or(BATCHED_TOKENS_DEFAULT).max(1);
    let logits_rows = u64::from(wishes.max_num_seqs.min(max_num_batched_tokens)) + wishes.further_rows_max;
    let activations = size.step_bytes_per_token.saturating_mul(u64::from(max_num_batched_tokens));
    let reserved = [size.weight_bytes, activations, size.logits_row_bytes.saturating_mul(logits_rows)]
        .into_iter()
        .fold(0, u64::saturating_add);
    let room = available_bytes
        .map(|bytes| (bytes / 1000).saturating_mul(u64::from(wishes.memory_share_permille)).saturating_sub(reserved));
    let state_slots = state_slots(size, wishes, room)?;
    let states_bytes = size.state_bytes.saturating_mul(u64::from(state_slots));
    let max_num_seqs = if state_slots > 0 { wishes.max_num_seqs.min(state_slots) } else { wishes.max_num_seqs };
    let (room, wishes) = (room.map(|room| room.saturating_sub(states_bytes)), &Wishes { max_num_seqs, ..*wishes });
    let (max_model_len, context_reason) = context(size, wishes, room)?;
    let block_bytes = size.kv_bytes_per_token * u64::from(wishes.block_size);
    let needed_bytes = u64::from(max_model_len.div_ceil(wishes.block_size)) * block_bytes;
    let (kv_bytes, kv_reason) = match wishes.kv_cache_bytes {
        Some(bytes) => (bytes, "as given by --kv-cache-memory-bytes".to_owned()),
        None => chosen_kv_bytes(size, wishes, max_model_len, room, needed_bytes),
    };
    check_room(size, kv_bytes, needed_bytes, room, max_model_len)?;
    let blocks = u32::try_from(kv_bytes / block_bytes.max(1)).unwrap_or(u32::MAX);
    let kv_bytes = u64::from(blocks) * block_bytes;
    let mut reasons = vec![
        format!("context {max_model_len} tokens ({context_reason})"),
        format!("KV cache {} = {blocks} blocks of {} tokens ({kv_reason})", human_bytes(kv_bytes), wishes.block_size),
        format!("up to {} sequences at once, {max_num_batched_tokens} tokens a step", wishes.max_num_seqs),
    ];
    if state_slots > 0 {
        let (all, one) = (human_bytes(states_bytes), human_bytes(size.state_bytes));
        reasons.push(format!(
            "states of sequences {all} = {state_slots} slots of {one}; idle ones serve the prefix cache"
        ));
    }
    Ok(Plan {
        blocks,
        block_size: wishes.block_size,
        max_model_len,
        max_num_seqs: wishes.max_num_seqs,
        max_num_batched_tokens,
        kv_bytes,
        state_slots,
        memory_bytes: reserved.saturating_add(kv_bytes).saturating_add(states_bytes),
        least_bytes: reserved.saturating_add(needed_bytes).saturating_add(size.state_bytes),
        step_bytes: reserved.saturating_sub(size.weight_bytes),
        reasons,
    })
}

/// A slot for each sequence, and as many again for saved states, within half of the room; fewer sequences run where that is
/// too little for them.
fn state_slots(size: &ModelSize, wishes: &Wishes, room: Option<u64>) -> Result<u32, String> {
    if size.state_bytes == 0 {
        return Ok(0);
    }
    let wanted = if wishes.saves_states { wishes.max_num_seqs.saturating_mul(2) } else { wishes.max_num_seqs };
    let cap = wishes.kv_bytes_chosen_max.unwrap_or(u64::MAX);
    let fitting = room.map_or(cap, |room| (room / 2).min(cap)) / size.state_bytes;
    match wanted.min(u32::try_from(fitting).unwrap_or(u32::MAX)) {
        0 => Err(format!(
            "no memory for the state of a sequence: it takes {}, and half of what is left after the weights is {}; free \
             memory or use a smaller model",
            human_bytes(size.state_bytes),
            human_bytes(room.unwrap_or(0) / 2)
        )),
        slots => Ok(slots),
    }
}

/// A context that was asked for is kept or refused. One that was not is all that the model supports, or, said aloud,
/// as much of it as the memory holds.
fn context(size: &ModelSize, wishes: &Wishes, room: Option<u64>) -> Result<(u32, String), String> {
    let full = size.context_max;
    match wishes.max_model_len {
        Some(wanted) if wanted > full => Err(format!(
            "--max-model-len {wanted} is beyond the {full} tokens that this model was made for; give at most that"
        )),
        Some(wanted) => Ok((wanted, "as given by --max-model-len".to_owned())),
        None => {
            let block = u64::from(wishes.block_size);
            let in_room = room.map_or(u64::MAX, |room| room / size.kv_bytes_per_token.max(1) / block * block);
            let fits = u32::try_from(in_room).unwrap_or(u32::MAX);
            let choose = wishes.kv_cache_bytes.is_none() && fits < full && fits >= CONTEXT_CHOSEN_MIN;
            if choose {
                Ok((fits, format!("what the memory holds of the model's {full}; change it with --max-model-len")))
            } else {
                Ok((full, "all the model supports".to_owned()))
            }
        }
    }
}

fn chosen_kv_bytes(
    size: &ModelSize,
    wishes: &Wishes,
    max_model_len: u32,
    room: Option<u64>,
    needed_bytes: u64,
) -> (u64, String) {
    let every_sequence =
        size.kv_bytes_per_token.saturating_mul(u64::from(max_model_len)).saturating_mul(u64::from(wishes.max_num_seqs));
    let cap = wishes.kv_bytes_chosen_max.unwrap_or(u64::MAX).max(needed_bytes);
    let room_or_cap = room.unwrap_or(cap);
    let chosen = every_sequence.min(cap).min(room_or_cap);
    let reason = if chosen == every_sequence {
        "every sequence may fill its context".to_owned()
    } else if chosen == cap {
        "the default; more with --kv-cache-memory-bytes".to_owned()
    } else {
        format!("{} % of the available memory, less the weights", wishes.memory_share_permille / 10)
    };
    (chosen, reason)
}

fn check_room(
    size: &ModelSize,
    kv_bytes: u64,
    needed_bytes: u64,
    room: Option<u64>,
    max_model_len: u32,
) -> Result<(), String> {
    let tokens_that_fit = |bytes: u64| bytes / size.kv_bytes_per_token.max(1);
    if kv_bytes < needed_bytes {
        return Err(format!(
            "no memory for the KV cache: one sequence of {max_model_len} tokens needs {}, there is {}; \
             lower --max-model-len to {} or free memory",
            human_bytes(needed_bytes),
            human_bytes(kv_bytes),
            tokens_that_fit(kv_bytes)
        ));
    }
    match room {
        Some(room) if kv_bytes > room => Err(format!(
            "no memory for the KV cache: {} asked for, {} left after the weights; lower --kv-cache-memory-bytes or \
             --max-model-len, or raise --gpu-memory-utilization",
            human_bytes(kv_bytes),
            human_bytes(room)
        )),
        _ => Ok(()),
    }
}

/// `1.5 GiB`, `360.0 MiB`, `12 B`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOL: ModelSize = ModelSize {
        weight_bytes: 98 << 20,
        kv_bytes_per_token: 46_080,
        state_bytes: 0,
        context_max: 8192,
        step_bytes_per_token: 16_384,
        logits_row_bytes: 2 * 4 * 49_152,
    };
    const WISHES: Wishes = Wishes {
        block_size: 16,
        max_model_len: None,
        max_num_seqs: 64,
        max_num_batched_tokens: None,
        kv_cache_bytes: None,
        further_rows_max: 64,
        memory_share_permille: 900,
        kv_bytes_chosen_max: Some(KV_BYTES_CHOSEN_MAX_ON_CPU),
        saves_states: true,
    };

    #[test]
    fn a_large_machine_gets_the_default_cap() {
        let plan = plan(&SMOL, &WISHES, Some(24 << 30)).expect("fits");
        assert_eq!(plan.max_model_len, 8192);
        assert!(plan.kv_bytes <= KV_BYTES_CHOSEN_MAX_ON_CPU);
        assert_eq!(u64::from(plan.blocks), KV_BYTES_CHOSEN_MAX_ON_CPU / (46_080 * 16));
    }

    #[test]
    fn a_gpu_gives_its_kv_cache_all_that_is_left() {
        let wishes = Wishes { kv_bytes_chosen_max: None, max_num_seqs: 1024, ..WISHES };
        let plan = plan(&SMOL, &wishes, Some(24 << 30)).expect("fits");
        assert!(plan.memory_bytes > (24_u64 << 30) / 1000 * 899 && plan.reasons[1].contains("90 %"), "{plan:?}");
    }

    #[test]
    fn a_small_machine_gets_what_is_left() {
        let plan = plan(&SMOL, &WISHES, Some(1 << 30)).expect("fits");
        let step = SMOL.step_bytes_per_token * 256 + SMOL.logits_row_bytes * (64 + 64);
        let room = (1_u64 << 30) / 1000 * 900 - SMOL.weight_bytes - step;
        assert_eq!(u64::from(plan.blocks), room / (46_080 * 16));
    }

    #[test]
    fn few_short_sequences_get_just_what_they_can_fill() {
        let wishes = Wishes { max_model_len: Some(1024), max_num_seqs: 2, ..WISHES };
        assert_eq!(plan(&SMOL, &wishes, Some(24 << 30)).expect("fits").blocks, 128);
    }

    #[test]
    fn a_context_that_nobody_asked_for_shrinks_aloud() {
        let plan = plan(&SMOL, &WISHES, Some(350 << 20)).expect("fits");
        assert!((CONTEXT_CHOSEN_MIN..8192).contains(&plan.max_model_len), "{plan:?}");
        assert!(plan.reasons[0].contains("of the model's 8192"), "{plan:?}");
    }

    #[test]
    fn states_of_sequences_are_counted_and_bound_how_many_run() {
        let hybrid = ModelSize { state_bytes: 20 << 20, ..SMOL };
        let roomy = plan(&hybrid, &WISHES, Some(24 << 30)).expect("fits");
        assert_eq!((roomy.state_slots, roomy.max_num_seqs), (128, 64));
        let plain = plan(&SMOL, &WISHES, Some(24 << 30)).expect("fits");
        assert_eq!(roomy.memory_bytes - plain.memory_bytes, 128 * (20 << 20));
        assert_eq!(plain.state_slots, 0);
        let without = plan(&hybrid, &Wishes { saves_states: false, ..WISHES }, Some(24 << 30)).expect("fits");
        assert_eq!((without.state_slots, without.max_num_seqs), (64, 64));
        let tight = plan(&hybrid, &WISHES, Some(1 << 30)).expect("fits");
        assert!(tight.state_slots < 64 && tight.max_num_seqs == tight.state_slots, "{tight:?}");
        assert!(tight.memory_bytes <= (1_u64 << 30) / 1000 * 900 && tight.reasons[3].contains("slots of 20.0 MiB"));
        let error = plan(&ModelSize { state_bytes: 1 << 30, ..SMOL }, &WISHES, Some(1 << 30)).expect_err("too large");
        assert!(error.contains("the state of a sequence: it takes 1.0 GiB"), "{error}");
    }

    #[test]
    fn what_does_not_fit_says_what_would() {
        let error = plan(&SMOL, &WISHES, Some(150 << 20)).expect_err("too small");
        assert!(error.contains("--max-model-len to") && error.contains("8192 tokens needs 360.0 MiB"), "{error}");
        let wishes = Wishes { max_model_len: Some(8192), ..WISHES };
        assert!(plan(&SMOL, &wishes, Some(300 << 20)).expect_err("asked for").contains("--max-model-len to"));
        let wishes = Wishes { kv_cache_bytes: Some(64 << 30), ..WISHES };
        assert!(plan(&SMOL, &wishes, Some(24 << 30)).expect_err("too much").contains("--kv-cache-memory-bytes"));
        let wishes = Wishes { max_model_len: Some(9000), ..WISHES };
        assert!(plan(&SMOL, &wishes, None).expect_err("too long").contains("at most"));
    }
}
