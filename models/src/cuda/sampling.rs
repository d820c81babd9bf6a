// performance-critical: no lock, no log; allocates what scores and lists of a row take and nothing else
//! Sampling where the logits are: what rows want goes to the device in one copy, tokens come back in one.

use sconce_cuda::ops::sample::{
    Choice, RowWishes, SCORE_WORDS, SampleInput, SampleRows, Status, TOP_MAX, workspace_words,
};
use sconce_cuda::{Buffer, Device, ElementType, Event, Pinned, Slice};

use crate::batch::Logits;
use crate::error::{Error, Result};
use crate::sampling::{Sample, SampleRequest, SampleRequests, SampleScores, Want};

/// Words for lists and masks of all rows of a step; rows whose lists find no room go back as logits.
const LIST_WORDS: usize = 1 << 20;
/// Words that a row takes besides, and some to spare.
const ROW_WORDS: usize = 32;

/// Sampling of one step, and of one that was issued behind it: what goes to the host has two places there.
pub(super) struct Sampling {
    input: SampleInput,
    on_device: Buffer,
    workspace: Buffer,
    /// `[3, rows]`
    chosen: Buffer,
    /// `[rows, SCORE_WORDS]`
    scores: Buffer,
    turns: [Turn; 2],
    /// The one that the next step takes.
    next: usize,
    /// Steps that were chosen and not collected.
    pending: usize,
    /// Rows of the step chosen last.
    rows: usize,
}

/// A step's side on the host.
struct Turn {
    sent: Pinned,
    chosen: Pinned,
    scores: Pinned,
    /// All of it has arrived.
    arrived: Event,
    /// With [`Sample::NothingLeft`] for what is to come from the device.
    samples: Vec<Sample>,
    logits: Logits,
}

impl Turn {
    fn new(device: &Device, words: usize, rows_max: usize) -> Result<Self> {
        Ok(Self {
            sent: device.pinned(4 * words)?,
            chosen: device.pinned(4 * 3 * rows_max)?,
            scores: device.pinned(4 * rows_max * SCORE_WORDS)?,
            arrived: Event::new(device)?,
            samples: Vec::new(),
            logits: Logits::default(),
        })
    }
}

impl Sampling {
    pub fn new(device: &Device, rows_max: usize, vocab: usize) -> Result<Self> {
        let words = rows_max * ROW_WORDS + LIST_WORDS;
        let alloc = |words| device.alloc(words, ElementType::U32);
        Ok(Self {
            input: SampleInput::new(words),
            on_device: alloc(words)?,
            workspace: alloc(workspace_words(rows_max, vocab, words))?,
            chosen: alloc(3 * rows_max)?,
            scores: alloc(rows_max * SCORE_WORDS)?,
            turns: [Turn::new(device, words, rows_max)?, Turn::new(device, words, rows_max)?],
            next: 0,
            pending: 0,
            rows: 0,
        })
    }

    /// Words of device memory that [`Self::new`] allocates.
    pub fn words(rows_max: usize, vocab: usize) -> usize {
        let words = rows_max * ROW_WORDS + LIST_WORDS;
        words + workspace_words(rows_max, vocab, words) + rows_max * (3 + SCORE_WORDS)
    }

    /// Steps that were chosen and not collected.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// As if nothing had been chosen; nothing of it may be under way.
    pub fn forget(&mut self) {
        self.pending = 0;
    }

    /// What the step chosen last chose, as [`sconce_cuda::ops::follow::follow`] wants it.
    pub fn chosen(&self) -> Slice<'_> {
        self.chosen.range(0, 3 * self.rows)
    }

    /// Has each row of `wanted` sampled from `on_device` F32 `[rows, vocab]`, which is used up. True when all rows want a token
    /// and get it on the device.
    pub fn choose(
        &mut self,
        device: &Device,
        (on_device, vocab): (&Buffer, usize),
        wanted: &SampleRequests,
    ) -> Result<bool> {
        let (turn, rows) = (self.begin_turn()?, wanted.rows.len());
        self.input.begin(rows, vocab)?;
        let Turn { samples, logits, .. } = &mut self.turns[turn];
        let (mut is_asked, mut all_tokens) = (false, true);
        for (row, request) in wanted.rows.iter().enumerate() {
            let is_pushed = match request.want {
                Want::Nothing | Want::Logits => {
                    self.input.skip();
                    false
                }
                Want::Token | Want::Score(_) => self.input.push(&wishes(request, wanted)),
            };
            is_asked |= is_pushed;
            all_tokens &= is_pushed && request.want == Want::Token;
            samples.push(match request.want {
                // Filled in when it is collected.
                _ if is_pushed => Sample::NothingLeft,
                Want::Nothing => Sample::Nothing,
                // Before anything is written to it.
                _ => give_back(on_device, row, vocab, logits)?,
            });
        }
        if is_asked {
            self.launch(device, turn, on_device.range(0, rows * vocab), rows)?;
        }
        self.end_turn(rows)?;
        Ok(all_tokens)
    }

    /// The same of a step whose logits are on the host already: they are the answers.
    pub fn give(&mut self, rows: usize, all: Logits) -> Result<bool> {
        let turn = self.begin_turn()?;
        let Turn { samples, logits, .. } = &mut self.turns[turn];
        samples.extend((0..rows).map(Sample::Logits));
        *logits = all;
        self.end_turn(rows)?;
        Ok(false)
    }

    /// Waits for the oldest step that was chosen; one answer for each row of `wanted`, which are those that were chosen.
    pub fn collect(&mut self, wanted: &SampleRequests, samples: &mut Vec<Sample>, logits: &mut Logits) -> Result<()> {
        if self.pending == 0 {
            return Err(Error::Batch("no step was chosen".to_owned()));
        }
        let turn = (self.next + self.pending) % 2;
        self.pending -= 1;
        let turn = &mut self.turns[turn];
        turn.arrived.wait()?;
        std::mem::swap(samples, &mut turn.samples);
        std::mem::swap(logits, &mut turn.logits);
        if samples.len() != wanted.rows.len() {
            let (chosen, found) = (samples.len(), wanted.rows.len());
            return Err(Error::Batch(format!("{found} rows are collected, {chosen} were chosen")));
        }
        answer(turn, wanted, samples);
        Ok(())
    }

    fn begin_turn(&mut self) -> Result<usize> {
        if self.pending == 2 {
            return Err(Error::Batch("two steps are chosen and not collected".to_owned()));
        }
        let turn = &mut self.turns[self.next];
        turn.samples.clear();
        turn.logits.values.clear();
        Ok(self.next)
    }

    fn end_turn(&mut self, rows: usize) -> Result<()> {
        self.turns[self.next].arrived.record()?;
        self.next = 1 - self.next;
        self.pending += 1;
        self.rows = rows;
        Ok(())
    }

    fn launch(&mut self, device: &Device, turn: usize, logits: Slice, rows: usize) -> Result<()> {
        let Turn { sent, chosen: chosen_here, scores: scores_here, .. } = &mut self.turns[turn];
        let words = self.input.words();
        let (to, _) = sent.bytes_mut()[..4 * words.len()].as_chunks_mut::<4>();
        to.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_le_bytes());
        sent.send(self.on_device.all(), 4 * words.len())?;
        let (chosen, scores) = (self.chosen.range(0, 3 * rows), self.scores.range(0, rows * SCORE_WORDS));
        let input = self.on_device.all();
        SampleRows { input, logits, workspace: self.workspace.all(), chosen, scores }.on(device, &self.input)?;
        chosen_here.receive(chosen)?;
        if self.input.has_scores() {
            scores_here.receive(scores)?;
        }
        Ok(())
    }
}

/// Fills in what came from the device.
fn answer(turn: &Turn, wanted: &SampleRequests, samples: &mut [Sample]) {
    let rows = wanted.rows.len();
    let (chosen, _) = turn.chosen.bytes().as_chunks::<4>();
    let (scores, _) = turn.scores.bytes().as_chunks::<4>();
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
