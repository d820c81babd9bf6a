//! A model shared out among ranks, each with a GPU of its own: which part of every tensor is whose.
//!
//! Attention goes by heads (a KV head that several ranks' queries look at is with each of them), feed-forward blocks and
//! experts by their inner width, the head by the vocabulary where it is a matrix of its own. What takes such a part as its
//! input has its columns shared out, at borders of the blocks in which they are stored, and its products summed over the
//! ranks. Norms, the embedding and routers are with all.

use std::ops::Range;
use std::path::PathBuf;

use candle_core::Tensor;
use sconce_kernels::Weight;

use crate::assemble::WeightSource;
use crate::error::{Error, Result};
use crate::load::{Source, open, pretended};
use crate::names::{Expert, LayerPart, Part};
use crate::quantise::QuantFormat;
use crate::spec::{QkNorm, Spec, Uneven};

/// Sizes that an error looks through for such that work.
const RANKS_MAX: usize = 64;
/// Rows of logits begin where products may write: at every fourth element.
const VOCAB_STEP: usize = 4;
/// Inner widths are multiples of that where they are so in all: vectors are read whole.
const WIDTH_STEP: usize = 8;

/// One of how many ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub rank: usize,
    pub ranks: usize,
}

impl Share {
    /// All of a model.
    pub const WHOLE: Self = Self { rank: 0, ranks: 1 };

    /// This rank's of `len` things, of which `unit` must stay together. Ranks differ by a unit where it does not come out
    /// even.
    fn of(self, len: usize, unit: usize) -> Range<usize> {
        let border = |rank: usize| len / unit * rank / self.ranks * unit;
        border(self.rank)..if self.rank + 1 == self.ranks { len } else { border(self.rank + 1) }
    }

    /// The most that a rank has of them.
    fn most_of(self, len: usize, unit: usize) -> usize {
        (0..self.ranks).map(|rank| Self { rank, ..self }.of(len, unit).len()).max().unwrap_or(len)
    }
}

/// What a rank has of a model's tensors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub share: Share,
    queries: usize,
    kvs: usize,
    kv_heads: usize,
    splits_head: bool,
    /// What must stay together of the width of a feed-forward block, of an expert, and of the shared expert.
    units: Units,
}

#[derive(Debug, Clone, Copy)]
struct Units {
    ffn: usize,
    expert: usize,
    shared: usize,
}

enum Piece {
    All,
    /// Of a matrix or of a vector.
    Rows(Vec<Range<usize>>),
    Columns(Range<usize>),
}

impl Cut {
    /// Of a spec that [`check`] let pass.
    pub fn new(spec: &Spec, weights: &WeightSource, share: Share) -> Self {
        let units = Blocks::of(spec, weights).units(spec);
        let is_even = spec.vocab.is_multiple_of(share.ranks * VOCAB_STEP);
        let splits_head = share.ranks > 1 && is_even && !spec.tied_embeddings;
        Self { share, queries: spec.query_width(), kvs: spec.kv_width(), kv_heads: spec.kv_heads, splits_head, units }
    }

    /// Query heads that the rank has of all.
    pub fn heads(&self, all: usize) -> usize {
        all / self.share.ranks
    }

    /// The most that any rank has of the width of a feed-forward block.
    pub fn most_of_ffn(&self, width: usize) -> usize {
        self.share.most_of(width, self.units.ffn)
    }

    /// KV heads that the rank has of all.
    pub fn kv_heads(&self, all: usize) -> usize {
        (all / self.share.ranks).max(1)
    }

    /// The ranks have a part of the vocabulary each.
    pub fn splits_head(&self) -> bool {
        self.splits_head
    }

    /// This rank computes logits, or a part of them.
    pub fn has_head(&self) -> bool {
        self.splits_head || self.share.rank == 0
    }

    pub fn weight(&self, part: Part, weight: &Weight) -> Result<Weight> {
        Ok(match self.piece(part, (weight.out(), weight.input())) {
            Piece::All => weight.clone(),
            Piece::Columns(columns) => weight.columns(columns.start, columns.len())?,
            Piece::Rows(rows) => match &*rows {
                [rows] => weight.rows(rows.start, rows.len()),
                several => {
                    let rows: Vec<Weight> = several.iter().map(|rows| weight.rows(rows.start, rows.len())).collect();
                    Weight::stacked(&rows)?
                }
            },
        })
    }

    pub fn vector(&self, part: Part, vector: Tensor) -> Result<Tensor> {
        match self.piece(part, (vector.dim(0)?, 1)) {
            Piece::Rows(rows) => {
                let parts: Vec<Tensor> =
                    rows.iter().map(|rows| vector.narrow(0, rows.start, rows.len())).collect::<Result<_, _>>()?;
                Ok(Tensor::cat(&parts, 0)?)
            }
            Piece::All | Piece::Columns(_) => Ok(vector),
        }
    }

    fn piece(&self, part: Part, (rows, input): (usize, usize)) -> Piece {
        use LayerPart as L;
        if self.share.ranks == 1 {
            return Piece::All;
        }
        let behind = |first: usize, range: Range<usize>| first + range.start..first + range.end;
        let rows_of = |unit| Piece::Rows(vec![self.share.of(rows, unit)]);
        let columns_of = |unit| Piece::Columns(self.share.of(input, unit));
        let Units { ffn, expert, shared } = self.units;
        match part {
            Part::Head if self.splits_head => rows_of(1),
            Part::Layer(_, part) => match part {
                L::Query | L::QueryBias | L::Sinks => rows_of(1),
                L::Key | L::KeyBias | L::Value | L::ValueBias => Piece::Rows(vec![self.of_kv_heads(rows)]),
                L::Qkv => {
                    let kv = self.of_kv_heads(self.kvs);
                    let (keys, values) = (behind(self.queries, kv.clone()), behind(self.queries + self.kvs, kv));
                    Piece::Rows(vec![self.share.of(self.queries, 1), keys, values])
                }
                L::GateUp => {
                    let half = self.share.of(rows / 2, ffn);
                    Piece::Rows(vec![half.clone(), behind(rows / 2, half)])
                }
                L::Gate | L::GateBias | L::Up | L::UpBias => rows_of(ffn),
                L::ExpertGate(_) | L::ExpertGateBias(_) | L::ExpertUp(_) | L::ExpertUpBias(_) => rows_of(expert),
                L::SharedGate | L::SharedUp => rows_of(shared),
                L::Output => columns_of(1),
                L::Down => columns_of(ffn),
                L::ExpertDown(_) => columns_of(expert),
                L::SharedDown => columns_of(shared),
                _ => Piece::All,
            },
            _ => Piece::All,
        }
    }

    /// Of the rows of all KV heads: with fewer heads than ranks, neighbours have the same.
    fn of_kv_heads(&self, rows: usize) -> Range<usize> {
        let Share { rank, ranks } = self.share;
        if self.kv_heads >= ranks {
            return self.share.of(rows, 1);
        }
        let (head, width) = (rank * self.kv_heads / ranks, rows / self.kv_heads);
        head * width..(head + 1) * width
    }
}

/// Refuses a number of ranks that a model cannot be shared out among. Reads headers only.
pub fn check_share(source: &Source, format: Option<QuantFormat>, ranks: usize) -> Result<()> {
    let (spec, weights) = match format {
        Some(format) => pretended(source, format)?,
        None => open(source)?,
    };
    check(&spec, &weights, source, ranks)
}

/// The same for what is open already.
pub(super) fn check(spec: &Spec, weights: &WeightSource, source: &Source, ranks: usize) -> Result<()> {
    let blocks = Blocks::of(spec, weights);
    let Some(why) = obstacle(spec, &blocks, ranks) else { return Ok(()) };
    let works = |ranks: &usize| obstacle(spec, &blocks, *ranks).is_none();
    let others: Vec<String> = (2..=RANKS_MAX).filter(works).map(|ranks| ranks.to_string()).collect();
    let next = match &*others {
        [] => "it takes one GPU (--data-parallel-size puts the whole of it on each of several)".to_owned(),
        others => format!("sizes that work: 1, {}", others.join(", ")),
    };
    let file = match source {
        Source::Gguf(path) | Source::Folder(path) => path.clone(),
        Source::Dummy(name) => PathBuf::from(format!("dummy:{name}")),
    };
    Err(Error::Share { file, ranks, why, next })
}

/// Elements of the blocks in which matrices are stored whose columns are shared out: the largest of all layers.
struct Blocks {
    output: usize,
    down: usize,
    expert_down: usize,
    shared_down: usize,
}

impl Blocks {
    fn of(spec: &Spec, weights: &WeightSource) -> Self {
        let largest = |part: LayerPart| match weights {
            WeightSource::Dummy(dummy) => dummy.block_elements(),
            WeightSource::Files(tensors) => {
                let of_layer = |layer| tensors.block_elements(Part::Layer(layer, part));
                (0..spec.layers).filter_map(of_layer).max().unwrap_or(1)
            }
        };
        let expert = Expert { index: 0, of: spec.experts.as_ref().map_or(1, |experts| experts.count) };
        Self {
            output: largest(LayerPart::Output),
            down: largest(LayerPart::Down),
            expert_down: largest(LayerPart::ExpertDown(expert)),
            shared_down: largest(LayerPart::SharedDown),
        }
    }

    fn units(&self, spec: &Spec) -> Units {
        let unit = |width: usize, block: usize| {
            let wanted = block.max(WIDTH_STEP);
            if width.is_multiple_of(wanted) { wanted } else { block }
        };
        let experts = spec.experts.as_ref();
        Units {
            ffn: unit(spec.ffn, self.down),
            expert: experts.map_or(1, |experts| unit(experts.ffn, self.expert_down)),
            shared: experts.map_or(1, |experts| unit(experts.shared_ffn, self.shared_down)),
        }
    }
}

/// What a model cannot be shared out for.
fn obstacle(spec: &Spec, blocks: &Blocks, ranks: usize) -> Option<String> {
    if ranks <= 1 {
        return None;
    }
    let scales_input = spec.experts.as_ref().is_some_and(|experts| experts.routing.scales_input);
    if spec.latent.is_some() || scales_input || spec.uneven != Uneven::default() {
        return Some(format!("models of {} are not shared out yet", spec.architecture));
    }
    if spec.qk_norm == QkNorm::Width {
        return Some(format!("{} norms queries and keys over all heads together", spec.architecture));
    }
    if !spec.heads.is_multiple_of(ranks) {
        return Some(format!("{} attention heads cannot be shared out evenly", spec.heads));
    }
    if !spec.kv_heads.is_multiple_of(ranks) && !ranks.is_multiple_of(spec.kv_heads) {
        return Some(format!("{} KV heads cannot be shared out evenly, nor each to as many ranks", spec.kv_heads));
    }
    let width = spec.query_width();
    if !width.is_multiple_of(ranks * blocks.output) {
        let block = blocks.output;
        return Some(format!(
            "{width} columns of attention's output, in blocks of {block}, cannot be shared out by heads"
        ));
    }
    let units = blocks.units(spec);
    let mut widths = Vec::new();
    if (0..spec.layers).any(|layer| spec.experts_of(layer).is_none()) {
        widths.push(("a feed-forward block", spec.ffn, units.ffn));
    }
    if let Some(experts) = &spec.experts {
        widths.push(("an expert", experts.ffn, units.expert));
        if experts.shared_ffn > 0 {
            widths.push(("the shared expert", experts.shared_ffn, units.shared));
        }
    }
    let (what, width, unit) = widths.into_iter().find(|(_, width, unit)| width / unit < ranks)?;
    Some(format!("the width {width} of {what} has only {} parts of {unit} to be shared out", width / unit))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sconce_kernels::{GgmlType, Weight};

    use super::{Cut, Share};
    use crate::load::{Source, open};
    use crate::names::{LayerPart, Part};

    /// Rows that ranks have of a matrix whose row `i` is all `i`.
    fn rows(name: &str, ranks: usize, part: LayerPart, out: usize) -> Vec<Vec<f32>> {
        let (spec, weights) = open(&Source::Dummy(name.to_owned())).expect("a known shape");
        let values = (0..out).flat_map(|row| [row as f32; 4]).collect();
        let whole = Weight::from_f32(out, 4, values).expect("so many values");
        let first_column = |weight: &Weight, row: usize| {
            let mut values = vec![0.0; weight.input()];
            weight.row_f32(row, &mut values);
            values[0]
        };
        let of_rank = |rank| {
            let cut = Cut::new(&spec, &weights, Share { rank, ranks });
            let weight = cut.weight(Part::Layer(0, part), &whole).expect("it can be cut");
            (0..weight.out()).map(|row| first_column(&weight, row)).collect()
        };
        (0..ranks).map(of_rank).collect()
    }

    fn range(start: u16, end: u16) -> Vec<f32> {
        (start..end).map(f32::from).collect()
    }

    #[test]
    fn heads_are_shared_out_and_kv_heads_repeated() {
        // Four heads of 16 and two KV heads.
        assert_eq!(rows("tiny", 2, LayerPart::Query, 64), [range(0, 32), range(32, 64)]);
        assert_eq!(rows("tiny", 2, LayerPart::Key, 32), [range(0, 16), range(16, 32)]);
        let values = rows("tiny", 4, LayerPart::Value, 32);
        assert_eq!(values, [range(0, 16), range(0, 16), range(16, 32), range(16, 32)]);
        let both = [range(0, 32), range(64, 80), range(96, 112)].concat();
        assert_eq!(rows("tiny", 2, LayerPart::Qkv, 128)[0], both);
        let second = [range(32, 64), range(80, 96), range(112, 128)].concat();
        assert_eq!(rows("tiny", 2, LayerPart::Qkv, 128)[1], second);
        assert_eq!(rows("tiny", 2, LayerPart::GateUp, 256)[1], [range(64, 128), range(192, 256)].concat());
        assert_eq!(rows("tiny", 2, LayerPart::Router, 8)[1], range(0, 8));
        assert_eq!(rows("tiny", 1, LayerPart::Query, 64), [range(0, 64)]);
    }

    #[test]
    fn columns_are_cut_out_of_every_row() {
        let (spec, weights) = open(&Source::Dummy("tiny".to_owned())).expect("a known shape");
        let whole = Weight::from_f32(2, 64, range(0, 128)).expect("so many values");
        for (rank, part) in [(0, LayerPart::Output), (1, LayerPart::Output), (1, LayerPart::Down)] {
            let cut = Cut::new(&spec, &weights, Share { rank, ranks: 2 });
            let own = cut.weight(Part::Layer(0, part), &whole).expect("it can be cut");
            let mut row = vec![0.0; 32];
            own.row_f32(1, &mut row);
            let first = 64 + 32 * rank as u16;
            assert_eq!((own.out(), row), (2, range(first, first + 32)));
        }
        let blocks = Weight::new(GgmlType::Q4_0, 1, 64, Arc::new(vec![0_u8; 36]), 0).expect("two blocks");
        assert_eq!(blocks.columns(32, 32).expect("a block").bytes().len(), 18);
        let error = blocks.columns(16, 32).expect_err("half a block").to_string();
        assert!(error.contains("no whole Q4_0 blocks of 32"), "{error}");
    }

    #[test]
    fn widths_are_shared_out_at_borders_of_blocks() {
        // Four blocks of 32 among three.
        assert_eq!(rows("tiny:q4_0", 3, LayerPart::Up, 128), [range(0, 32), range(32, 64), range(64, 128)]);
        assert_eq!(rows("tiny:q4_0", 4, LayerPart::Gate, 128)[3], range(96, 128));
        assert_eq!(Share { rank: 0, ranks: 4 }.most_of(2880, 32), 23 * 32);
        let all: usize = (0..4).map(|rank| Share { rank, ranks: 4 }.of(2880, 32).len()).sum();
        assert_eq!(all, 2880);
    }
}
