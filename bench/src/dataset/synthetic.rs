//! Prompts made of random words: of one length or a range, with a prefix that many share, or as conversations.

use sconce_vocabulary::error::Result;

use super::{Counter, Dataset, user};
use crate::load::Turn;
use crate::random::Random;

/// A length, or an even spread around it: `mean * (1 - ratio) ..= mean * (1 + ratio)`, as `vllm bench serve` has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lengths {
    pub mean: u32,
    pub range_ratio: f64,
}

impl Lengths {
    fn draw(self, random: &mut Random) -> u32 {
        let spread = (f64::from(self.mean) * self.range_ratio).floor() as u32;
        random.between(self.mean.saturating_sub(spread).max(1), self.mean + spread)
    }
}

/// What to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Synthetic {
    pub count: usize,
    pub input: Lengths,
    pub output: Lengths,
    /// Tokens that prompts share at their beginning, before `input`; 0 for none.
    pub prefix_tokens: u32,
    /// How many different prefixes there are.
    pub prefixes: usize,
    /// Requests a conversation.
    pub turns: u32,
    pub think_s: f64,
    pub seed: u64,
    /// Sets of one seed have the same prefixes and different prompts.
    pub set: u64,
}

impl Synthetic {
    pub async fn make(&self, counter: &Counter<'_>) -> Result<Dataset> {
        let mut random = Random::new(self.seed);
        let mut prefixes = Vec::new();
        if self.prefix_tokens > 0 {
            for _ in 0..self.prefixes.max(1) {
                prefixes.push(counter.text(&mut random, self.prefix_tokens).await?);
            }
        }
        if self.set > 0 {
            // Any odd factor keeps sets apart; this one is far from the small seeds that people choose.
            random = Random::new(self.seed.wrapping_add(self.set.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        }
        let mut inexact = 0;
        let mut conversations = Vec::with_capacity(self.count);
        for at in 0..self.count {
            let mut turns = Vec::new();
            for number in 0..self.turns.max(1) {
                let wanted = self.input.draw(&mut random);
                let (text, counted) = counter.text(&mut random, wanted).await?;
                inexact += usize::from(counted != wanted);
                let prefix = prefixes.get(at % prefixes.len().max(1)).filter(|_| number == 0);
                let (text, counted) = match prefix {
                    // A paragraph between them keeps most tokenizers from joining across.
                    Some((prefix, tokens)) => (format!("{prefix}\n\n{text}"), counted + tokens),
                    None => (text, counted),
                };
                let turn = user(text, Some(counted), Some(self.output.draw(&mut random)));
                turns.push(Turn { think_s: if number > 0 { self.think_s } else { 0.0 }, ..turn });
            }
            conversations.push(turns);
        }
        let mut notes = vec![counter.describe()];
        if inexact > 0 {
            notes.push(format!("{inexact} inputs are not exactly as long as asked: the tokenizer does not allow it"));
        }
        Ok(Dataset { conversations, offsets_s: None, notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(options: &Synthetic) -> Dataset {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(options.make(&Counter::Words { tokens_per_word: 1.0 })).expect("a data set")
    }

    #[test]
    fn prefixes_turns_and_ranges() {
        let options = Synthetic {
            count: 6,
            input: Lengths { mean: 20, range_ratio: 0.5 },
            output: Lengths { mean: 8, range_ratio: 0.0 },
            prefix_tokens: 30,
            prefixes: 2,
            turns: 3,
            think_s: 0.5,
            seed: 9,
            set: 0,
        };
        let made = make(&options);
        assert_eq!(made, make(&options));
        assert_eq!(made.conversations.len(), 6);
        let first = |at: usize| &made.conversations[at][0].messages[0].1;
        let prefix = |at: usize| first(at).split("\n\n").next().expect("a prefix");
        assert!(prefix(0) == prefix(2) && prefix(0) != prefix(1) && first(0) != first(2));
        let second = make(&Synthetic { set: 1, ..options.clone() });
        let first_of_second = &second.conversations[0][0].messages[0].1;
        assert!(first_of_second.starts_with(prefix(0)) && first_of_second != first(0));
        for turns in &made.conversations {
            assert_eq!(turns.len(), 3);
            assert_eq!((turns[0].think_s, turns[1].think_s), (0.0, 0.5));
            assert!(turns.iter().all(|turn| turn.output_tokens == Some(8)));
            assert!(turns[1..].iter().all(|turn| (10..=30).contains(&turn.input_tokens.expect("counted"))));
            assert!(turns[0].input_tokens.is_some_and(|tokens| (40..=60).contains(&tokens)));
        }
    }
}
