//! The sizes that programs are compiled for, and which of them a step takes. Pure.
//!
//! Sizes grow by a factor of four, so that at most three of four computed tokens are padding and a model needs a handful of
//! programs, each of which a compiler may take minutes for.

/// What an engine may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: u32,
    pub max_model_len: u32,
    /// KV blocks that the scheduler hands out.
    pub blocks: u32,
    /// Tokens a block.
    pub block_size: u32,
}

/// Sizes in ascending order; the last of each is the largest that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    /// Sequences of a step of decoding.
    pub rows: Vec<u32>,
    /// Tokens of a part of one prompt.
    pub chunks: Vec<u32>,
    /// Blocks of a context.
    pub contexts: Vec<u32>,
}

const FACTOR: u32 = 4;
const CHUNK_LEAST: u32 = 32;
const CONTEXT_TOKENS_LEAST: u32 = 256;

impl Buckets {
    pub fn new(limits: Limits) -> Self {
        let blocks_of = |tokens: u32| tokens.div_ceil(limits.block_size);
        let chunk = limits.max_num_batched_tokens.min(limits.max_model_len);
        Self {
            rows: growing(1, limits.max_num_seqs),
            chunks: growing(CHUNK_LEAST, chunk),
            contexts: growing(blocks_of(CONTEXT_TOKENS_LEAST), blocks_of(limits.max_model_len)),
        }
    }

    /// Programs in all, without heads.
    pub fn programs(&self) -> usize {
        (self.rows.len() + self.chunks.len()) * self.contexts.len()
    }
}

/// The smallest of `sizes` that holds `count`.
pub fn fitting(sizes: &[u32], count: usize) -> Option<u32> {
    sizes.iter().copied().find(|size| *size as usize >= count)
}

fn growing(least: u32, most: u32) -> Vec<u32> {
    let smaller = std::iter::successors(Some(least), |size| size.checked_mul(FACTOR)).take_while(|size| *size < most);
    smaller.chain([most]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_to_what_is_asked_for() {
        let limits =
            Limits { max_num_seqs: 8, max_num_batched_tokens: 512, max_model_len: 2048, blocks: 100, block_size: 16 };
        let buckets = Buckets::new(limits);
        assert_eq!((buckets.rows.as_slice(), buckets.chunks.as_slice()), (&[1, 4, 8][..], &[32, 128, 512][..]));
        assert_eq!((buckets.contexts.as_slice(), buckets.programs()), (&[16, 64, 128][..], 18));
        let small = Limits { max_num_seqs: 1, max_num_batched_tokens: 9, max_model_len: 7, ..limits };
        assert_eq!(Buckets::new(small), Buckets { rows: vec![1], chunks: vec![7], contexts: vec![1] });
        for (count, expected) in [(0, Some(1)), (1, Some(1)), (2, Some(4)), (8, Some(8)), (9, None)] {
            assert_eq!(fitting(&buckets.rows, count), expected, "{count}");
        }
    }
}
