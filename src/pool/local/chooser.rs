//! Which of a model's replicas a prompt goes to: to the one that has most of its beginning in its prefix cache, as long as
//! that one is not markedly busier than another; among equals to the one with the least work. No clock, no chance: the
//! same prompts in the same order go the same way.
//!
//! What a replica has computed is remembered by hashes of the prompts that it was given, one for each full KV block and all
//! before it, as the prefix cache shares them. It is a guess: blocks that the cache has lost meanwhile are still counted,
//! and answers are not. A wrong one costs a prompt that is computed again.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// A replica with more than twice the sequences of the idlest one and this many more is markedly busier: what it has of a
/// prompt does not make up for the wait. The constant lets a few conversations stay where they are on idle replicas.
const SLACK: u64 = 4;

/// Decides for one model.
pub struct Chooser {
    replicas: Vec<Known>,
    block_size: usize,
    /// Hashes that one generation of [`Known`] holds.
    blocks_max: usize,
    /// Of the prompt that is decided on; kept for its memory.
    hashes: Vec<u64>,
}

/// What a replica is thought to have cached: what is asked for lives in the young generation, and when that is full the
/// old one is forgotten, so that memory is bounded and what nobody asks for goes.
#[derive(Default)]
struct Known {
    young: HashSet<u64>,
    old: HashSet<u64>,
    /// Prompts that it was given.
    given: u64,
}

impl Chooser {
    /// For replicas with `blocks` KV blocks of `block_size` tokens each; 0 blocks where there is no prefix cache.
    pub fn new(replicas: usize, block_size: u32, blocks: u32) -> Self {
        assert!(replicas > 0 && block_size > 0, "a model has a replica, and its blocks have tokens");
        Self {
            replicas: (0..replicas).map(|_| Known::default()).collect(),
            block_size: block_size as usize,
            blocks_max: blocks as usize,
            hashes: Vec::new(),
        }
    }

    /// The replica for `prompt`, remembered as its. Blocks are shared between equal salts; `live` has the sequences of each
    /// replica.
    pub fn choose(&mut self, prompt: &[u32], salt: &[u8; 32], live: &[u64]) -> usize {
        assert_eq!(live.len(), self.replicas.len(), "one count of sequences a replica");
        self.hash(prompt, salt);
        let least = live.iter().copied().min().unwrap_or(0);
        let mut best = None;
        for (index, known) in self.replicas.iter().enumerate() {
            if live[index] > 2 * least + SLACK {
                continue;
            }
            let hits = self.hashes.iter().take_while(|hash| known.has(**hash)).count();
            let merit = (hits, std::cmp::Reverse(live[index]), std::cmp::Reverse(known.given));
            if best.is_none_or(|(most, _)| merit > most) {
                best = Some((merit, index));
            }
        }
        let (_, chosen) = best.expect("the idlest replica is not busier than itself");
        self.replicas[chosen].given += 1;
        for &hash in &self.hashes {
            self.replicas[chosen].learn(hash, self.blocks_max);
        }
        chosen
    }

    /// One hash a full block, of the block and everything before it.
    fn hash(&mut self, prompt: &[u32], salt: &[u8; 32]) {
        self.hashes.clear();
        let mut chain = hash_of(salt);
        for block in prompt.chunks_exact(self.block_size).take(self.blocks_max) {
            chain = hash_of(&(chain, block));
            self.hashes.push(chain);
        }
    }
}

impl Known {
    fn has(&self, hash: u64) -> bool {
        self.young.contains(&hash) || self.old.contains(&hash)
    }

    fn learn(&mut self, hash: u64, blocks_max: usize) {
        if self.young.len() >= blocks_max && !self.young.contains(&hash) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash);
    }
}

/// The same in every process. Who makes two prompts collide sends them to one replica, and nothing else happens.
fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &[u8; 32] = &[0; 32];

    /// A prompt of `blocks` blocks of 4 tokens that share their first `shared` ones, and are `own` from there on.
    fn prompt(shared: u32, own: u32, blocks: u32) -> Vec<u32> {
        (0..4 * blocks).map(|at| if at < 4 * shared { at } else { 1000 * own + at }).collect()
    }

    #[test]
    fn a_conversation_stays_where_it_began() {
        let mut chooser = Chooser::new(3, 4, 100);
        let homes: Vec<usize> = (1..=3).map(|own| chooser.choose(&prompt(0, own, 2), OURS, &[0; 3])).collect();
        assert_eq!(homes, [0, 1, 2], "who was given fewer comes first");
        for turn in 3..6 {
            for (own, home) in (1..=3).zip(&homes) {
                assert_eq!(chooser.choose(&prompt(0, own, turn), OURS, &[1; 3]), *home, "turn {turn} of {own}");
            }
        }
    }

    #[test]
    fn the_longest_beginning_wins() {
        let mut chooser = Chooser::new(2, 4, 100);
        assert_eq!(chooser.choose(&prompt(1, 1, 3), OURS, &[0, 0]), 0);
        assert_eq!(chooser.choose(&prompt(3, 2, 4), OURS, &[4, 0]), 0, "one block in common");
        assert_eq!(chooser.choose(&prompt(3, 3, 4), OURS, &[5, 0]), 1, "markedly busier");
        assert_eq!(chooser.choose(&prompt(2, 4, 4), OURS, &[0, 3]), 0, "both have two blocks, the idler one is asked");
        assert_eq!(chooser.choose(&prompt(3, 2, 9), OURS, &[3, 0]), 0, "this one has four blocks, the other three");
    }

    #[test]
    fn without_anything_in_common_the_idlest_is_asked() {
        let mut chooser = Chooser::new(3, 4, 100);
        assert_eq!(chooser.choose(&prompt(0, 1, 2), OURS, &[2, 1, 3]), 1);
        assert_eq!(chooser.choose(&[7, 7, 7], OURS, &[2, 9, 1]), 2, "shorter than a block");
        assert_eq!(chooser.choose(&[7, 7, 7], OURS, &[2, 9, 2]), 0, "given fewer");
    }

    #[test]
    fn what_is_not_shared_is_no_hit() {
        let mut chooser = Chooser::new(2, 4, 100);
        assert_eq!(chooser.choose(&prompt(2, 1, 2), OURS, &[0, 0]), 0);
        assert_eq!(chooser.choose(&prompt(2, 1, 2), &[1; 32], &[1, 0]), 1, "another tenant's");
        assert_eq!(chooser.choose(&prompt(2, 1, 2), OURS, &[1, 0]), 0);
        let mut uncached = Chooser::new(2, 4, 0);
        assert_eq!(uncached.choose(&prompt(2, 1, 2), OURS, &[0, 0]), 0);
        assert_eq!(uncached.choose(&prompt(2, 1, 2), OURS, &[1, 0]), 1, "without a prefix cache only work counts");
    }

    #[test]
    fn memory_is_bounded_and_what_is_asked_for_stays() {
        let mut chooser = Chooser::new(1, 4, 8);
        for own in 1..100 {
            chooser.choose(&prompt(2, own, 3), OURS, &[0]);
            let known = &chooser.replicas[0];
            assert!(known.young.len() <= 8 && known.old.len() <= 8);
        }
        chooser.hash(&prompt(2, 1, 3), OURS);
        let known = &chooser.replicas[0];
        let kept: Vec<bool> = chooser.hashes.iter().map(|hash| known.has(*hash)).collect();
        assert_eq!(kept, [true, true, false], "the beginning that all share, and not the end of the first");
    }
}
