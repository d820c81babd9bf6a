//! How a scenario samples: filters, now and then a broken row of logits, and a device that answers in the sampler's place.

use sconce_engine::SeqId;
use sconce_engine::filter::Restriction;
use sconce_engine::sampler::{self, Sampler};
use sconce_engine::scheduler::Sampled;
use sconce_models::sampling::check_samples;
use sconce_models::{Logits, Sample, SampleRequests};

use super::World;

impl World {
    /// By the sampler alone, or by a device whose answers it takes in.
    pub(super) fn sample(&mut self) {
        let (scheduler, step, results) = (&self.scheduler, &self.step, &mut self.results);
        let Some(limits) = self.device else {
            return self.sampler.sample(scheduler, step, &self.logits, results, self.workers);
        };
        let (mut wanted, mut samples, mut logits) = (SampleRequests::default(), Vec::new(), Logits::default());
        sampler::request(scheduler, step, limits, &mut wanted);
        assert_eq!(wanted.rows.len(), self.batch.sample_rows.len(), "something is said of every row of logits");
        Sampler::default().answer_all(&wanted, &self.logits, &mut samples, &mut logits);
        check_samples(&wanted, &samples, &logits).expect("the answers fit");
        let given_back = samples.iter().filter(|sample| matches!(sample, Sample::Logits(_))).count();
        self.tally.given_back += given_back as u64;
        self.tally.answered += (samples.len() - given_back) as u64;
        self.sampler.take(scheduler, step, (&samples, &logits), results, self.workers);
    }

    /// What the filters say of the rows that sample now.
    pub(super) fn restrict(&mut self) {
        for row in self.step.rows.iter().filter(|row| row.sample) {
            let client = &self.clients[&row.id];
            if let Some(puzzle) = client.puzzle {
                self.scheduler.restrict(row.id, Restriction::Only(puzzle.next(client.tokens.len())));
            }
        }
    }

    /// Now and then one row of logits is not a number. Returns whose, and whether it is one behind a draft.
    pub(super) fn break_logits(&mut self) -> Option<(SeqId, bool)> {
        let samples = self.batch.sample_rows.len() as u32;
        if samples == 0 || self.random.below(300) > 0 {
            return None;
        }
        let sample = self.random.below(samples) as usize;
        let token = self.random.below(self.vocab) as usize;
        let broken = self.random.pick(&[f32::NAN, f32::INFINITY]);
        let ends = self.step.rows.iter().scan(0, |end, row| {
            *end += row.samples();
            Some(*end)
        });
        let (row, end) = self.step.rows.iter().zip(ends).find(|(_, end)| sample < *end).expect("a sample has a row");
        if self.clients[&row.id].puzzle.is_some() {
            // A forced token needs no logits, and those that are not allowed are never looked at.
            return None;
        }
        self.logits.row_mut(sample)[token] = broken;
        Some((row.id, sample >= end - row.drafts))
    }

    /// Exactly the broken row fails; one that is broken behind a draft does so only if the draft was right.
    pub(super) fn check_failed(&mut self, broken: Option<(SeqId, bool)>) -> Option<SeqId> {
        let failed = self.step.rows.iter().zip(&self.results.sampled);
        let failed: Vec<SeqId> =
            failed.filter(|(_, sampled)| matches!(sampled, Sampled::Failed(_))).map(|(row, _)| row.id).collect();
        let Some((id, behind_draft)) = broken else {
            assert!(failed.is_empty(), "{failed:?} failed for no reason");
            return None;
        };
        assert!(failed == [id] || (behind_draft && failed.is_empty()), "{failed:?} failed, not {id:?}");
        self.tally.broken_logits += failed.len() as u64;
        failed.first().copied()
    }
}
