//! The engine under a seeded simulation: scheduler, blocks, batch, sampler and the simulated executor, step by step
//! with
//! every invariant checked after each, and then the real engine thread with real channels.
//!
//! A failure prints its seed. `SCONCE_SIM_SEED=<seed> cargo test --test simulator` replays that one scenario.

mod adapters;
mod ahead;
mod asleep;
mod compiled;
#[cfg(feature = "cuda-host")]
mod device;
#[cfg(feature = "cuda-host")]
mod device_hybrid;
mod faulty;
mod filtered;
mod hybrid;
mod model;
mod oracle;
mod puzzle;
mod random;
mod ranks;
mod scenario;
mod tally;
mod threads;
mod world;

use world::World;

/// Steps in all, over many scenarios.
const STEPS: u64 = 100_000;
/// Steps with arrivals in one scenario; then it drains.
const STEPS_PER_SCENARIO: u64 = 400;

#[test]
fn every_invariant_holds_over_100_000_random_steps() {
    if let Some(seed) = option_env!("SCONCE_SIM_SEED") {
        World::new(seed.parse().expect("SCONCE_SIM_SEED is a number")).run(STEPS_PER_SCENARIO);
        return;
    }
    // The long form: `SCONCE_SIM_STEPS=10000000 cargo test --release --test simulator`.
    let steps = option_env!("SCONCE_SIM_STEPS").map_or(STEPS, |steps| steps.parse().expect("a number of steps"));
    let mut total = tally::Tally::default();
    let mut seed = 0;
    while total.steps < steps {
        total.add(&World::new(seed).run(STEPS_PER_SCENARIO));
        seed += 1;
    }
    println!("{seed} scenarios: {total:?}");
    // A simulation that never meets a thing does not test it.
    let met = [
        ("preemptions", total.preemptions),
        ("recomputed tokens", total.recomputed),
        ("prefix hits", total.prefix_hits),
        ("parked", total.parked),
        ("cancelled", total.cancelled),
        ("failed steps", total.failed_steps),
        ("broken logits", total.broken_logits),
        ("refused", total.refused),
        ("stopped", total.stopped),
        ("length", total.length),
        ("prompt scores", total.prompt_scores),
        ("steps with several prefills", total.several_prefills),
        ("drafted tokens", total.drafted),
        ("accepted drafts", total.accepted),
        ("rejected drafts", total.drafted - total.accepted),
        ("prefills that the target time bounds", total.bounded_prefills),
        ("tokens of filtered sequences", total.filtered),
        ("forced tokens", total.forced),
        ("rows that the device answered", total.answered),
        ("rows that the device gave back", total.given_back),
        ("padding tokens", total.padding),
        ("steps without preemption", total.kept_steps),
        ("steps held up by a parked sequence", total.held_up),
        ("steps behind others", total.behind),
        ("rows behind the end of their sequences", total.ended_behind),
    ];
    for (what, times) in met {
        assert!(times > 100, "the simulation met only {times} {what}");
    }
}

#[test]
fn a_scenario_replays_exactly() {
    let tally = World::new(7).run(STEPS_PER_SCENARIO);
    assert_eq!(tally, World::new(7).run(STEPS_PER_SCENARIO));
    assert_ne!(tally, World::new(8).run(STEPS_PER_SCENARIO));
}
