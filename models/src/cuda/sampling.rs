// performance-critical: no lock, no log; allocates what scores and lists of a row take and nothing else
//! Sampling where the logits are: what rows want goes to the device in one copy, tokens come back in one.

use sconce_cuda::ops::sample::{
    Choice, RowWishes, SCORE_WORDS, SampleInput, SampleRows, Status, TOP_MAX, workspace_words,
};
use sconce_cuda::{Buffer, Device, ElementType, Pinned};

use crate::batch::Logits;
use crate::error::Result;
use crate::sampling::{Sample, SampleRequest, SampleRequests, SampleScores, Want};

/// Words for lists and masks of all rows of a step; rows whose lists find no room go back as logits.
const LIST_WORDS: usize = 1 << 20;
/// Words that a row takes besides, and some to spare.
const ROW_WORDS: usize = 32;

pub(super) struct Sampling {
    input: SampleInput,
    sent: Pinned,
    on_device: Buffer,
    workspace: Buffer,
    /// `[3, rows]`
    chosen: Buffer,
    chosen_here: Pinned,
    /// `[rows, SCORE_WORDS]`
    scores: Buffer,
    scores_here: Pinned,
}

impl Sampling {
    pub fn new(device: &Device, rows_max: usize, vocab: usize) -> Result<Self> {
        let words = rows_max * ROW_WORDS + LIST_WORDS;
        let alloc = |words| device.alloc(words, ElementType::U32);
        Ok(Self {
            input: SampleInput::new(words),
            sent: device.pinned(4 * words)?,
            on_device: alloc(words)?,
            workspace: alloc(workspace_words(rows_max, vocab, words))?,
            chosen: alloc(3 * rows_max)?,
            chosen_here: device.pinned(4 * 3 * rows_max)?,
            scores: alloc(rows_max * SCORE_WORDS)?,
            scores_here: device.pinned(4 * rows_max * SCORE_WORDS)?,
        })
    }

    /// Words of device memory that [`Self::new`] allocates.
    pub fn words(rows_max: usize, vocab: usize) -> usize {
        let words = rows_max * ROW_WORDS + LIST_WORDS;
        words + workspace_words(rows_max, vocab, words) + rows_max * (3 + SCORE_WORDS)
    }

    /// One answer for each row of `wanted`, from `on_device` F32 `[rows, vocab]`, which is used up.
    pub fn run(
        &mut self,
        device: &Device,
        (on_device, vocab): (&Buffer, usize),
        wanted: &SampleRequests,
        samples: &mut Vec<Sample>,
        logits: &mut Logits,
    ) -> Result<()> {
        let rows = wanted.rows.len();
        self.input.begin(rows, vocab)?;
        samples.clear();
        let mut is_asked = false;
        for (row, request) in wanted.rows.iter().enumerate() {
            let is_pushed = match request.want {
                Want::Nothing | Want::Logits => {
                    self.input.skip();
                    false
                }
                Want::Token | Want::Score(_) => self.input.push(&wishes(request, wanted)),
            };
            is_asked |= is_pushed;
            samples.push(match request.want {
                // Filled in below.
                _ if is_pushed => Sample::NothingLeft,
                Want::Nothing => Sample::Nothing,
                // Before anything is written to it.
                _ => give_back(on_device, row, vocab, logits)?,
            });
        }
        if !is_asked {
            return Ok(());
        }
        let words = self.input.words();
        let (to, _) = self.sent.bytes_mut()[..4 * words.len()].as_chunks_mut::<4>();
        to.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_le_bytes());
        self.sent.send(self.on_device.all(), 4 * words.len())?;
        let (chosen, scores) = (self.chosen.range(0, 3 * rows), self.scores.range(0, rows * SCORE_WORDS));
        SampleRows {
            input: self.on_device.all(),
            logits: on_device.range(0, rows * vocab),
            workspace: self.workspace.all(),
            chosen,
            scores,
        }
        .on(device, &self.input)?;
        self.receive(device, rows)?;
        self.answer(wanted, samples);
        Ok(())
    }

    /// Waits for the step and for what was chosen of it.
    fn receive(&mut self, device: &Device, rows: usize) -> Result<()> {
        self.chosen_here.receive(self.chosen.range(0, 3 * rows))?;
        if self.input.has_scores() {
            self.scores_here.receive(self.scores.range(0, rows * SCORE_WORDS))?;
        }
        Ok(device.synchronize()?)
    }

    fn answer(&self, wanted: &SampleRequests, samples: &mut [Sample]) {
        let rows = wanted.rows.len();
        let (chosen, _) = self.chosen_here.bytes().as_chunks::<4>();
        let (scores, _) = self.scores_here.bytes().as_chunks::<4>();
        let word = |at: usize| u32::from_le_bytes(chosen[at]);
        for (row, (sample, request)) in samples.iter_mut().zip(&wanted.rows).enumerate() {
            if *sample != Sample::NothingLeft {
                continue;
            }
            let scored = || scores_of(&scores[row * SCORE_WORDS..(row + 1) * SCORE_WORDS]);
            *sample = match (Status::of(word(rows + row)), request.want) {
                (Status::NotFinite, _) => Sample::NotFinite { id: word(2 * rows + row) },
                (Status::NothingLeft, _) => Sample::NothingLeft,
                (Status::Done, Want::Score(_)) => Sample::Score(scored()),
                (Status::Done, _) => Sample::Token { id: word(row), scores: request.logprobs.map(|_| scored()) },
            };
        }
    }
}

fn wishes<'a>(request: &SampleRequest, lists: &'a SampleRequests) -> RowWishes<'a> {
    RowWishes {
        choice: match request.want {
            Want::Score(token) => Choice::Score(token),
            _ => Choice::Next,
        },
        temperature: request.temperature,
        top_k: request.top_k,
        top_p: request.top_p,
        min_p: request.min_p,
        uniform: request.uniform,
        mask: request.mask.clone().map(|mask| &lists.masks[mask]),
        forbidden: &lists.forbidden[request.forbidden.clone()],
        bias: &lists.bias[request.bias.clone()],
        seen: &lists.seen[request.seen.clone()],
        repetition_penalty: request.repetition_penalty,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        logprobs: request.logprobs,
    }
}

/// A row of logits to the host.
fn give_back(on_device: &Buffer, row: usize, vocab: usize, logits: &mut Logits) -> Result<Sample> {
    let before = logits.values.len();
    logits.values.resize(before + vocab, 0.0);
    on_device.read(row * vocab, &mut logits.values[before..])?;
    Ok(Sample::Logits(before / vocab))
}

/// As `SCORE_WORDS` of the kernels' package says.
fn scores_of(words: &[[u8; 4]]) -> SampleScores {
    let (int, float) = (|at: usize| u32::from_le_bytes(words[at]), |at: usize| f32::from_le_bytes(words[at]));
    let count = (int(2) as usize).min(TOP_MAX);
    let top = (0..count).map(|at| (int(4 + at), float(4 + TOP_MAX + at))).collect();
    SampleScores { logprob: float(0), rank: int(1), top }
}
