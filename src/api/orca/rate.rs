//! How many requests a second are answered, and how busy the server was meanwhile, over the last seconds.

/// Long enough to be steady at a few requests a second, short enough to follow a load.
const SECONDS: usize = 10;

/// Answers of one second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Second {
    number: u64,
    answers: u32,
    failures: u32,
    /// Summed over the answers.
    utilization: f64,
}

/// Counts answers by the second; old seconds are written over.
#[derive(Debug, Default)]
pub(super) struct AnswerRate {
    seconds: [Second; SECONDS],
}

/// What was answered in a second, on average.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub answers_per_s: f64,
    /// Of those, answers that say that the server failed.
    pub failures_per_s: f64,
    /// Mean over the answers. Of the same seconds as their rate, or the two would not make a steady weight.
    pub utilization: f64,
}

impl AnswerRate {
    /// One more answer, `now_s` after the start of the server.
    pub fn count(&mut self, now_s: f64, is_failure: bool, utilization: f64) -> Rates {
        let number = now_s as u64;
        let second = &mut self.seconds[(number % SECONDS as u64) as usize];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second.answers = second.answers.saturating_add(1);
        second.failures = second.failures.saturating_add(u32::from(is_failure));
        second.utilization += utilization;
        let recent = self.seconds.iter().filter(|second| number - second.number.min(number) < SECONDS as u64);
        let sum = |value: fn(&Second) -> f64| recent.clone().map(value).sum::<f64>();
        // The whole seconds before this one and what has passed of it; at least one, or the first answer would be a flood.
        let span_s = (now_s - number as f64 + (SECONDS - 1) as f64).min(now_s).max(1.0);
        let answers = sum(|second| second.answers.into());
        Rates {
            answers_per_s: answers / span_s,
            failures_per_s: sum(|second| second.failures.into()) / span_s,
            utilization: sum(|second| second.utilization) / answers.max(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_last_seconds() {
        let mut rate = AnswerRate::default();
        let first = Rates { answers_per_s: 1.0, failures_per_s: 0.0, utilization: 0.5 };
        assert_eq!(rate.count(0.25, false, 0.5), first);
        for step in 1..=40 {
            let rates = rate.count(f64::from(step) * 0.5, step % 4 == 0, if step < 20 { 0.5 } else { 1.5 });
            let [answers, failures] = [rates.answers_per_s, rates.failures_per_s];
            assert!(step < 12 || (1.8..2.4).contains(&answers), "step {step}: {answers}");
            assert!(step < 12 || (0.4..0.7).contains(&failures), "step {step}: {failures}");
            assert!(step != 30 || (0.9..1.2).contains(&rates.utilization), "{}", rates.utilization);
        }
        let later = rate.count(1000.5, false, 0.25);
        assert!((later.answers_per_s - 1.0 / 9.5).abs() < 1e-9, "{later:?}");
        assert_eq!((later.failures_per_s, later.utilization), (0.0, 0.25));
    }
}
