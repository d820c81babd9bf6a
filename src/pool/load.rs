//! How much this process has to do, for balancers in front of several: all models that it runs itself.

use super::Pool;

/// A look at the queues and caches of the local models.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Sequences that are computed, over all models.
    pub running: u32,
    /// Sequences that wait for a place, over all models.
    pub waiting: u32,
    /// Share of KV blocks in use by the model that is shortest of them, 0..=1.
    pub kv_usage: f64,
    /// Of the busiest model: its KV use, or its sequences over those that it computes at once, whichever is more. Over 1
    /// while requests wait.
    pub utilization: f64,
    /// What one sequence adds to it, on the model with the most places.
    pub share_of_one: f64,
}

impl Load {
    /// With one more model, which has `live` of `running_max` places taken.
    fn with(self, live: u32, running_max: u32, kv_usage: f64) -> Self {
        let running = live.min(running_max);
        let of_one = 1.0 / f64::from(running_max.max(1));
        let share = f64::from(live) * of_one;
        let smallest = if self.share_of_one > 0.0 { self.share_of_one.min(of_one) } else { of_one };
        Self {
            running: self.running + running,
            waiting: self.waiting + (live - running),
            kv_usage: self.kv_usage.max(kv_usage),
            utilization: self.utilization.max(share).max(kv_usage),
            share_of_one: smallest,
        }
    }
}

impl Pool {
    /// Of the models that run here; hosted members have their own balancers.
    pub fn load(&self) -> Load {
        let table = self.table();
        let local = table.nodes.iter().filter(|node| node.is_local());
        local.fold(Load::default(), |load, node| {
            let (live, running_max) = node.places();
            load.with(live, running_max, node.member.snapshot().kv_usage)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_model_speaks_for_the_process() {
        let idle = Load::default().with(0, 8, 0.0);
        assert_eq!(idle, Load { share_of_one: 0.125, ..Load::default() });
        let queued = idle.with(12, 8, 0.25);
        let expected = Load { running: 8, waiting: 4, kv_usage: 0.25, utilization: 1.5, share_of_one: 0.125 };
        assert_eq!(queued, expected);
        let both = queued.with(1, 4, 0.75);
        assert_eq!(both, Load { running: 9, kv_usage: 0.75, ..expected });
        assert_eq!(Load::default().with(1, 4, 0.75).utilization, 0.75, "a full cache counts as well");
    }
}
