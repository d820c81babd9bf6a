//! An executor that fails now and then: as a whole step, or in one of a device's halves.

use sconce_engine::{Capabilities, DeviceExecutor, Executor, SamplingLimits, SimExecutor};
use sconce_models::{BatchInput, Logits, Sample, SampleRequests};

/// Where a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    Execute,
    Issue,
    Collect,
}

/// Fails the steps whose number (from 1) `fails` picks: odd ones by panic, even ones by error.
pub struct Faulty {
    sim: SimExecutor,
    /// Issued so far.
    step: u32,
    collected: u32,
    fails: fn(u32) -> bool,
    place: Where,
}

impl Faulty {
    pub fn new(sim: SimExecutor, fails: fn(u32) -> bool) -> Self {
        Self { sim, step: 0, collected: 0, fails, place: Where::Execute }
    }

    pub fn failing_in(self, place: Where) -> Self {
        Self { place, ..self }
    }

    fn fail(&mut self, step: u32) -> Result<(), String> {
        if !(self.fails)(step) {
            return Ok(());
        }
        self.sim.scramble();
        assert!(step.is_multiple_of(2), "a kernel panicked");
        Err("a kernel failed".into())
    }
}

impl Executor for Faulty {
    fn capabilities(&self) -> Capabilities {
        self.sim.capabilities()
    }

    fn vocab(&self) -> usize {
        self.sim.vocab()
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        self.step += 1;
        self.fail(self.step)?;
        self.sim.execute(batch, logits)
    }

    fn device(&mut self) -> Option<&mut dyn DeviceExecutor> {
        if self.place == Where::Execute { None } else { Some(self) }
    }
}

impl DeviceExecutor for Faulty {
    fn limits(&self) -> SamplingLimits {
        self.sim.limits()
    }

    fn issue(&mut self, batch: &BatchInput) -> Result<(), String> {
        self.step += 1;
        if self.place == Where::Issue {
            self.fail(self.step)?;
        }
        self.sim.issue(batch)
    }

    fn choose(&mut self, wanted: &SampleRequests) -> Result<bool, String> {
        self.sim.choose(wanted)
    }

    fn collect(
        &mut self,
        wanted: &SampleRequests,
        samples: &mut Vec<Sample>,
        logits: &mut Logits,
    ) -> Result<(), String> {
        self.collected += 1;
        if self.place == Where::Collect {
            self.fail(self.collected)?;
        }
        self.sim.collect(wanted, samples, logits)
    }

    fn runs_ahead(&self) -> bool {
        self.sim.runs_ahead()
    }

    fn issue_behind(&mut self, batch: &BatchInput, sources: &[u32]) -> Result<(), String> {
        self.step += 1;
        if self.place == Where::Issue {
            self.fail(self.step)?;
        }
        self.sim.issue_behind(batch, sources)
    }
}
