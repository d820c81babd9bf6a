//! Steps that are planned behind the one in flight: what a device computes that never waits for the engine.

use sconce_engine::executor::Executor;
use sconce_engine::sampler;
use sconce_engine::scheduler::{Sampled, Step};
use sconce_engine::{SamplingLimits, batch};
use sconce_models::{BatchInput, Logits, SampleRequests};

use super::World;

const LIMITS: SamplingLimits = SamplingLimits { top_logprobs_max: 20, masks: true };
/// A token for rows whose sequences fail in the step before.
const ANY: u32 = 0;

/// A planned step, as it was issued.
#[derive(Default)]
pub struct Behind {
    step: Step,
    batch: BatchInput,
    wanted: SampleRequests,
}

impl World {
    /// Plans a step behind the one in flight, if there can be one and chance will have it.
    pub(super) fn plan_behind(&mut self) -> bool {
        if !self.random.chance(80) {
            return false;
        }
        let Behind { step: next, batch: next_batch, wanted } = &mut self.behind;
        let stats = self.scheduler.stats().clone();
        if !self.scheduler.schedule_behind(&self.step, next) {
            assert_eq!(&stats, self.scheduler.stats(), "what is not planned changes nothing");
            assert!(next.rows.is_empty() && next.sources.is_empty());
            return false;
        }
        batch::fill(&self.scheduler, next, next_batch);
        assert_eq!(next_batch.sample_rows.len(), next.rows.len(), "each row samples one token");
        sampler::request(&self.scheduler, next, LIMITS, wanted);
        true
    }

    /// Puts the tokens of the step in flight where the device has them from.
    pub(super) fn note_tokens(&mut self) {
        let mut tokens = self.results.tokens.iter().map(|token| token.id);
        let mut token_of = |sampled: &Sampled| match sampled {
            Sampled::Tokens(1) => tokens.next().expect("a sampled row has a token"),
            Sampled::Failed(_) => ANY,
            other => panic!("a step behind one with {other:?}"),
        };
        let of_rows: Vec<u32> = self.results.sampled.iter().map(&mut token_of).collect();
        let Behind { step: next, batch: next_batch, .. } = &mut self.behind;
        for (token, source) in next_batch.tokens.iter_mut().zip(&next.sources) {
            let row = self.step.rows.iter().position(|row| row.place == *source as usize);
            *token = of_rows[row.expect("only rows that are left go on")];
        }
    }

    /// The planned step is the one in flight: runs it as it was issued, and drops the rows that ended meanwhile.
    pub(super) fn execute_behind(&mut self) {
        std::mem::swap(&mut self.step, &mut self.behind.step);
        std::mem::swap(&mut self.batch, &mut self.behind.batch);
        let issued = self.step.rows.len();
        self.scheduler.drop_ended(&mut self.step);
        self.tally.behind += 1;
        self.tally.ended_behind += (issued - self.step.rows.len()) as u64;
        self.check_step();
        self.check_salts();
        let mut all = Logits::default();
        self.executor.execute(&self.batch, &mut all).expect("the batch is sound");
        self.logits.vocab = all.vocab;
        self.logits.values.clear();
        self.step.rows.iter().for_each(|row| self.logits.values.extend_from_slice(all.row(row.place)));
        self.batch.sample_rows.truncate(self.step.rows.len());
        let mut wanted = SampleRequests::default();
        sampler::request(&self.scheduler, &self.step, LIMITS, &mut wanted);
        for (request, row) in wanted.rows.iter().zip(&self.step.rows) {
            let early = &self.behind.wanted.rows[row.place];
            assert_eq!(early.uniform.to_bits(), request.uniform.to_bits(), "the draw was known");
            let lists =
                (&self.behind.wanted.forbidden[early.forbidden.clone()], &wanted.forbidden[request.forbidden.clone()]);
            assert_eq!(lists.0, lists.1, "so was what cannot come");
        }
    }
}
