//! Launches of `kernels/sample.cu`: tokens out of rows of logits, and log probabilities.
//!
//! [`SampleInput`] gathers on the host what the rows want, as one array of words that goes to the device in one copy; all
//! checks are made there. [`SampleRows`] launches. A row that wants nothing (padding, or one whose logits go back) is not
//! touched.

use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

/// The most likeliest tokens that a row can have.
pub const TOP_MAX: usize = 20;
/// Sums of weights in fixed point hold so many.
pub const VOCAB_MAX: usize = 1 << 20;
/// Words a row of scores: log probability, rank, number of likeliest ones, nothing; their ids; their log probabilities.
pub const SCORE_WORDS: usize = 4 + 2 * TOP_MAX;

const OP: &str = "sample";
/// Of the kernel's `Row`.
const ROW_WORDS: usize = 20;
/// Logits that one block of a split row takes.
const CHUNK: usize = 4096;
const CHUNK_THREADS: usize = 256;
const ROW_THREADS: usize = 1024;
/// Workspace of a chunk: peak, mass, sum (two words each), place of an unsound logit, maximum, two counts.
const CHUNK_WORDS: usize = 10;

/// What one row of logits is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The next token, by the rest of [`RowWishes`].
    Next,
    /// Log probabilities of this token, whatever else is said.
    Score(u32),
}

/// What is wanted of one row. Ids beyond the vocabulary are passed over; an id appears in `seen` once.
#[derive(Debug, Clone, Copy)]
pub struct RowWishes<'a> {
    pub choice: Choice,
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// In [0, 1): where in the distribution the draw falls.
    pub uniform: f64,
    /// One bit an id, the lowest first; what is not there is not allowed. Goes before everything else.
    pub mask: Option<&'a [u32]>,
    /// Ids that cannot come now.
    pub forbidden: &'a [u32],
    /// Added to the logits of these ids.
    pub bias: &'a [(u32, f32)],
    /// For penalties: ids, and how often the output has each (0: only the prompt does).
    pub seen: &'a [(u32, u32)],
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// Log probabilities, and so many of the likeliest tokens, [`TOP_MAX`] at most.
    pub logprobs: Option<u32>,
}

impl RowWishes<'_> {
    /// The likeliest token, nothing else.
    pub const GREEDY: Self = Self {
        choice: Choice::Next,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        uniform: 0.0,
        mask: None,
        forbidden: &[],
        bias: &[],
        seen: &[],
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logprobs: None,
    };

    /// The kernel's `Mode`.
    fn mode(&self, vocab: usize) -> u32 {
        match self.choice {
            Choice::Score(_) => 4,
            Choice::Next if self.temperature <= 0.0 => 1,
            Choice::Next if self.top_p >= 1.0 && (self.top_k == 0 || self.top_k as usize >= vocab) => 2,
            Choice::Next => 3,
        }
    }
}

/// What the rows of a step want, packed for the device. Keeps its memory from step to step.
#[derive(Debug, Default)]
pub struct SampleInput {
    /// `ROW_WORDS` for each row, then lists and masks.
    words: Vec<u32>,
    words_max: usize,
    rows: usize,
    pushed: usize,
    vocab: usize,
    stages: Stages,
}

/// Which kernels have something to do.
#[derive(Debug, Clone, Copy, Default)]
struct Stages {
    masks: bool,
    lists: bool,
    draws: bool,
    scores: bool,
}

impl SampleInput {
    /// Of `words_max` words at most, which is what the device has room for.
    pub fn new(words_max: usize) -> Self {
        Self { words_max, ..Self::default() }
    }

    /// Empties it for so many rows, those of padding included.
    pub fn begin(&mut self, rows: usize, vocab: usize) -> Result<()> {
        if vocab == 0 || vocab > VOCAB_MAX || rows * ROW_WORDS > self.words_max {
            return Err(shape(OP, format!("{rows} rows of {vocab} in {} words", self.words_max)));
        }
        self.words.clear();
        self.words.resize(rows * ROW_WORDS, 0);
        (self.rows, self.pushed, self.vocab, self.stages) = (rows, 0, vocab, Stages::default());
        Ok(())
    }

    /// The next row wants nothing here. Rows behind the last pushed one do so without being named.
    pub fn skip(&mut self) {
        assert!(self.pushed < self.rows, "no more rows than were announced");
        self.pushed += 1;
    }

    /// What the next row wants. False when that cannot be done here, or there is no room for it: the row is then skipped.
    pub fn push(&mut self, wishes: &RowWishes) -> bool {
        let vocab = self.vocab;
        let within = |id: u32| (id as usize) < vocab;
        let listed = wishes.forbidden.len() + 2 * (wishes.bias.len() + wishes.seen.len());
        let mask_words = wishes.mask.map_or(0, |_| vocab.div_ceil(32));
        let known = match wishes.choice {
            Choice::Score(token) => within(token) && wishes.logprobs.is_some(),
            Choice::Next => wishes.temperature < f32::INFINITY && (0.0..1.0).contains(&wishes.uniform),
        };
        let fits = self.words.len() + listed + mask_words <= self.words_max;
        if !known || !fits || wishes.logprobs.is_some_and(|top| top as usize > TOP_MAX) {
            self.skip();
            return false;
        }
        let mask =
            wishes.mask.map_or(u32::MAX, |mask| self.append(mask_words, |at| mask.get(at).copied().unwrap_or(0)));
        let (forbidden, forbidden_len) = self.append_ids(wishes.forbidden.iter().copied().filter(|id| within(*id)));
        let bias = wishes.bias.iter().filter(|(id, _)| within(*id));
        let (bias_at, bias_len) = self.append_ids(bias.clone().map(|(id, _)| *id));
        self.words.extend(bias.map(|(_, value)| value.to_bits()));
        let seen = wishes.seen.iter().filter(|(id, _)| within(*id));
        let (seen_at, seen_len) = self.append_ids(seen.clone().map(|(id, _)| *id));
        self.words.extend(seen.map(|(_, count)| *count));
        let mode = wishes.mode(vocab);
        let floor = if wishes.min_p > 0.0 { wishes.min_p.ln() } else { f32::NEG_INFINITY };
        let uniform = (wishes.uniform * (1_u64 << 53) as f64) as u64;
        let row: [u32; ROW_WORDS] = [
            mode,
            wishes.temperature.to_bits(),
            if wishes.top_k == 0 { u32::MAX } else { wishes.top_k },
            wishes.top_p.to_bits(),
            floor.to_bits(),
            uniform as u32,
            (uniform >> 32) as u32,
            wishes.repetition_penalty.to_bits(),
            wishes.presence_penalty.to_bits(),
            wishes.frequency_penalty.to_bits(),
            wishes.logprobs.map_or(0, |top| top + 1),
            if let Choice::Score(token) = wishes.choice { token } else { 0 },
            mask,
            forbidden,
            forbidden_len,
            bias_at,
            bias_len,
            seen_at,
            seen_len,
            0,
        ];
        self.words[self.pushed * ROW_WORDS..][..ROW_WORDS].copy_from_slice(&row);
        self.stages.masks |= wishes.mask.is_some();
        self.stages.lists |= mode != 4 && listed > 0;
        self.stages.draws |= mode == 2;
        self.stages.scores |= wishes.logprobs.is_some();
        self.pushed += 1;
        true
    }

    /// Words for the front of the device's input, to be copied there before [`SampleRows::on`].
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether some row has log probabilities: only then scores are written.
    pub fn has_scores(&self) -> bool {
        self.stages.scores
    }

    fn append(&mut self, len: usize, word: impl Fn(usize) -> u32) -> u32 {
        let start = self.words.len() as u32;
        self.words.extend((0..len).map(word));
        start
    }

    /// Where they begin, and how many there are.
    fn append_ids(&mut self, ids: impl Iterator<Item = u32>) -> (u32, u32) {
        let start = self.words.len();
        self.words.extend(ids);
        (start as u32, (self.words.len() - start) as u32)
    }
}

/// Samples rows of logits, which may be written to.
#[derive(Debug, Clone, Copy)]
pub struct SampleRows<'a> {
    /// U32: holds the words of `wanted` by the time that this runs.
    pub input: Slice<'a>,
    /// F32 `[rows, vocab]`.
    pub logits: Slice<'a>,
    /// U32 `[workspace_words]`.
    pub workspace: Slice<'a>,
    /// U32 `[3, rows]`: tokens; statuses (see [`Status`]); of a row that is not finite, the id.
    pub chosen: Slice<'a>,
    /// U32 `[rows, SCORE_WORDS]`, written for rows with log probabilities.
    pub scores: Slice<'a>,
}

/// How a row went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Done,
    /// A logit is NaN or infinite.
    NotFinite,
    /// No token is left to choose from.
    NothingLeft,
}

impl Status {
    /// Of a word of `chosen`.
    pub fn of(word: u32) -> Self {
        match word {
            0 => Self::Done,
            1 => Self::NotFinite,
            _ => Self::NothingLeft,
        }
    }
}

/// Words of workspace for so many rows and an input of `input_words`.
pub fn workspace_words(rows: usize, vocab: usize, input_words: usize) -> usize {
    rows * vocab.div_ceil(CHUNK) * CHUNK_WORDS + input_words
}

impl SampleRows<'_> {
    /// Issues it: two to six launches, as few as what is wanted takes.
    pub fn on(&self, device: &Device, wanted: &SampleInput) -> Result<()> {
        use ElementType::{F32, U32};
        let Self { input, logits, workspace, chosen, scores } = *self;
        let (rows, vocab, stages) = (wanted.rows, wanted.vocab, wanted.stages);
        let chunks = vocab.div_ceil(CHUNK);
        input.require(OP, "input", U32, wanted.words.len())?;
        logits.require(OP, "logits", F32, rows * vocab)?;
        workspace.require(OP, "workspace", U32, workspace_words(rows, vocab, input.len()))?;
        chosen.require(OP, "chosen", U32, 3 * rows)?;
        if stages.scores {
            scores.require(OP, "scores", U32, rows * SCORE_WORDS)?;
        }
        if !workspace.address().is_multiple_of(8) || !input.address().is_multiple_of(4) {
            return Err(shape(OP, "the workspace must begin at a multiple of 8 bytes"));
        }
        let part = |first: usize, words: usize| workspace.range(first * rows * chunks, words * rows * chunks);
        let (peaks, masses, sums) = (part(0, 2), part(2, 2), part(4, 2));
        let (unsound, maxima, ranks, possible) = (part(6, 1), part(7, 1), part(8, 1), part(9, 1));
        let saved = workspace.range(CHUNK_WORDS * rows * chunks, input.len());
        let [tokens, statuses, details] = [0, 1, 2].map(|part| chosen.range(part * rows, rows));
        let split = |kernel| Launch::new(kernel).grid(chunks, rows, 1).block(CHUNK_THREADS, 1).slice(input);
        let whole = |kernel, threads| Launch::new(kernel).grid(rows, 1, 1).block(threads, 1).slice(input);
        if stages.masks {
            split("sample_mask").slice(logits).int(vocab).on(device)?;
        }
        if stages.lists {
            whole("sample_adjust", CHUNK_THREADS).slice(logits).slice(saved).int(vocab).on(device)?;
        }
        split("sample_peak").slice(logits).slice(peaks).slice(unsound).int(vocab).on(device)?;
        if stages.draws {
            split("sample_sums").slice(logits).slice(peaks).slice(masses).int(vocab).on(device)?;
        }
        let choose = whole("sample_choose", ROW_THREADS).slice(logits).slice(saved).slice(peaks).slice(unsound);
        let choose = choose.slice(masses).slice(tokens).slice(statuses).slice(details);
        choose.int(vocab).int(chunks).on(device)?;
        if stages.scores {
            let parts = |launch: Launch<'static>| {
                let launch = launch.slice(logits).slice(tokens).slice(statuses);
                launch.slice(maxima).slice(sums).slice(ranks).slice(possible)
            };
            parts(split("sample_score_parts")).int(vocab).on(device)?;
            let whole = parts(whole("sample_scores", ROW_THREADS));
            whole.slice(scores).int(vocab).int(chunks).on(device)?;
        }
        Ok(())
    }
}
