//! Worked examples of breakers, rate caps, latencies and waits, on a clock that the test moves.

use super::*;

fn health() -> Health {
    Health::new(HealthOptions::default())
}

fn circuit(health: &Health, now_ms: u64) -> Circuit {
    health.view(now_ms, LoadFigures::default()).circuit
}

/// One attempt that ends at once.
fn run(health: &mut Health, now_ms: u64, outcome: Outcome) {
    let attempt = health.try_start(now_ms).unwrap();
    health.finish(now_ms, attempt, outcome);
}

fn open(health: &mut Health, now_ms: u64) {
    for _ in 0..5 {
        run(health, now_ms, Outcome::Failure);
    }
}

#[test]
fn failures_in_a_row_open_the_circuit() {
    let mut member = health();
    for _ in 0..4 {
        run(&mut member, 0, Outcome::Failure);
    }
    run(&mut member, 0, Outcome::Success);
    for _ in 0..4 {
        run(&mut member, 1, Outcome::Failure);
    }
    // Nine requests, eight failed, but no five in a row.
    assert_eq!(circuit(&member, 1), Circuit::Closed);
    run(&mut member, 1, Outcome::Failure);
    assert_eq!(circuit(&member, 1), Circuit::Open { retry_after_ms: 5000 });
    assert_eq!(member.try_start(2), Err(Barred::CircuitOpen { retry_after_ms: 4999 }));
    assert_eq!(member.in_flight(), 0);
}

#[test]
fn the_share_of_failures_opens_the_circuit_within_its_window() {
    let fail_every_second = |step_ms: u64| {
        let mut member = health();
        for at in 0..30 {
            let outcome = if at % 2 == 0 { Outcome::Success } else { Outcome::Failure };
            if let Ok(attempt) = member.try_start(at * step_ms) {
                member.finish(at * step_ms, attempt, outcome);
            }
        }
        circuit(&member, 30 * step_ms)
    };
    assert!(matches!(fail_every_second(100), Circuit::Open { .. }));
    // One request in five seconds never makes ten in a window.
    assert_eq!(fail_every_second(5000), Circuit::Closed);
}

#[test]
fn what_says_nothing_of_the_member_counts_for_nothing() {
    let mut member = health();
    for at in 0..50 {
        run(&mut member, at, Outcome::Cancelled);
    }
    assert_eq!(circuit(&member, 50), Circuit::Closed);
    run(&mut member, 60, Outcome::Misconfigured);
    assert!(matches!(circuit(&member, 60), Circuit::Open { .. }), "a wrong key fails for everybody");
}

#[test]
fn probes_close_the_circuit_or_open_it_for_longer() {
    let mut member = health();
    open(&mut member, 0);
    assert_eq!(circuit(&member, 5000), Circuit::HalfOpen { probes_free: 1 });
    let probe = member.try_start(5000).unwrap();
    assert!(probe.is_probe());
    assert_eq!(member.try_start(5000), Err(Barred::Probing));
    member.finish(5100, probe, Outcome::Failure);
    assert_eq!(circuit(&member, 5100), Circuit::Open { retry_after_ms: 10_000 });
    run(&mut member, 15_100, Outcome::Success);
    assert_eq!(circuit(&member, 15_100), Circuit::HalfOpen { probes_free: 1 });
    run(&mut member, 15_200, Outcome::Success);
    assert_eq!(circuit(&member, 15_200), Circuit::Closed);
    // Well again: the pause begins anew.
    open(&mut member, 20_000);
    assert_eq!(circuit(&member, 20_000), Circuit::Open { retry_after_ms: 5000 });
}

#[test]
fn pauses_double_up_to_a_minute() {
    let mut member = health();
    open(&mut member, 0);
    let mut now_ms = 5000;
    for pause_ms in [10_000, 20_000, 40_000, 60_000, 60_000] {
        run(&mut member, now_ms, Outcome::Failure);
        assert_eq!(circuit(&member, now_ms), Circuit::Open { retry_after_ms: pause_ms });
        now_ms += pause_ms;
    }
}

#[test]
fn a_lost_probe_does_not_shut_the_member_out() {
    let mut member = health();
    open(&mut member, 0);
    let lost = member.try_start(5000).unwrap();
    assert_eq!(circuit(&member, 124_999), Circuit::HalfOpen { probes_free: 0 });
    assert_eq!(circuit(&member, 125_000), Circuit::HalfOpen { probes_free: 1 });
    run(&mut member, 125_000, Outcome::Success);
    run(&mut member, 125_001, Outcome::Success);
    assert_eq!(circuit(&member, 125_001), Circuit::Closed);
    // Its late news belongs to a state that is over.
    member.finish(130_000, lost, Outcome::Failure);
    assert_eq!(circuit(&member, 130_000), Circuit::Closed);
}

#[test]
fn a_probe_that_answers_lets_the_next_one_go() {
    let mut member = health();
    open(&mut member, 0);
    let mut long = member.try_start(5000).unwrap();
    assert_eq!(member.try_start(5000), Err(Barred::Probing));
    member.first_token(5100, &mut long);
    // It began at the same moment as the first, so that their leases are alike.
    let second = member.try_start(5000).unwrap();
    assert_eq!(circuit(&member, 5100), Circuit::HalfOpen { probes_free: 0 });
    member.finish(5200, long, Outcome::Success);
    assert_eq!(circuit(&member, 5200), Circuit::HalfOpen { probes_free: 0 }, "nobody gives another's place up");
    member.finish(5300, second, Outcome::Success);
    assert_eq!(circuit(&member, 5300), Circuit::Closed);
    // To begin is not to answer: one that breaks off later has failed.
    open(&mut member, 20_000);
    let mut breaks = member.try_start(25_000).unwrap();
    member.first_token(25_100, &mut breaks);
    member.finish(25_200, breaks, Outcome::Failure);
    assert_eq!(circuit(&member, 25_200), Circuit::Open { retry_after_ms: 10_000 });
}

#[test]
fn a_cancelled_probe_gives_its_place_back() {
    let mut member = health();
    open(&mut member, 0);
    run(&mut member, 5000, Outcome::Cancelled);
    assert_eq!(circuit(&member, 5000), Circuit::HalfOpen { probes_free: 1 });
}

#[test]
fn failures_of_before_the_opening_do_not_open_again() {
    let mut member = health();
    let late: Vec<Attempt> = (0..5).map(|_| member.try_start(0).unwrap()).collect();
    open(&mut member, 10);
    run(&mut member, 5010, Outcome::Success);
    run(&mut member, 5020, Outcome::Success);
    for attempt in late {
        member.finish(5030, attempt, Outcome::Failure);
    }
    assert_eq!(circuit(&member, 5030), Circuit::Closed);
    assert_eq!(member.in_flight(), 0);
}

#[test]
fn a_429_holds_as_long_as_it_says() {
    let mut member = health();
    run(&mut member, 0, Outcome::RateLimited { retry_after_ms: Some(30_000) });
    assert_eq!(member.view(10_000, LoadFigures::default()).hold_ms, 20_000);
    assert_eq!(member.try_start(29_999), Err(Barred::RateLimited { retry_after_ms: 1 }));
    assert_eq!(circuit(&member, 0), Circuit::Closed, "too much is not ill");
    run(&mut member, 30_000, Outcome::RateLimited { retry_after_ms: None });
    // The second in a row that does not say: twice the first pause.
    assert_eq!(member.view(30_000, LoadFigures::default()).hold_ms, 1000);
    run(&mut member, 31_000, Outcome::RateLimited { retry_after_ms: Some(u64::MAX) });
    assert_eq!(member.view(31_000, LoadFigures::default()).hold_ms, 600_000, "no answer shuts a member out for days");
}

#[test]
fn a_429_teaches_a_rate_that_grows_again() {
    let mut member = health();
    // Ten requests a second for ten seconds, then a 429.
    for at in 0..100 {
        run(&mut member, at * 100, Outcome::Success);
    }
    run(&mut member, 10_000, Outcome::RateLimited { retry_after_ms: Some(0) });
    let cap = |member: &Health, now_ms| member.view(now_ms, LoadFigures::default()).rate_cap_milli;
    let first = cap(&member, 10_000).unwrap();
    assert!((6000..8000).contains(&first), "about 0.7 of ten a second: {first}");
    // Others that were under way with it are no news.
    run(&mut member, 10_500, Outcome::RateLimited { retry_after_ms: Some(0) });
    assert_eq!(cap(&member, 10_500), Some(first));
    // A second's worth at most after a pause, then the wait grows.
    let wait = |member: &Health, now_ms| member.view(now_ms, LoadFigures::default()).wait_ms.unwrap();
    assert_eq!(wait(&member, 20_000), 0);
    for _ in 0..10 {
        run(&mut member, 20_000, Outcome::Success);
    }
    assert!(wait(&member, 20_000) > 100);
    assert!(cap(&member, 20_000).unwrap() > first, "successes raise it");
    // Without another 429 it is forgotten.
    run(&mut member, 400_000, Outcome::Success);
    assert_eq!(cap(&member, 400_000), None);
}

#[test]
fn waits_follow_from_queue_and_service() {
    let load = |running, waiting, capacity| LoadFigures { running, waiting, capacity };
    let cases = [
        (load(0, 0, Some(4)), None, Some(0)),
        (load(3, 0, Some(4)), None, Some(0)),
        // Full and nothing measured.
        (load(4, 0, Some(4)), None, None),
        // One of four places comes free each half second.
        (load(4, 0, Some(4)), Some(2000), Some(500)),
        (load(4, 7, Some(4)), Some(2000), Some(4000)),
        // A member that nobody knows the places of.
        (load(9, 0, None), Some(2000), Some(0)),
        (load(1, 0, Some(0)), Some(10), Some(10)),
    ];
    for (load, service_ms, expected) in cases {
        assert_eq!(load::wait_ms(load, service_ms), expected, "{load:?} {service_ms:?}");
    }
}

#[test]
fn times_are_smoothed_and_forgotten() {
    let mut member = health();
    for at in 0..200_u64 {
        let mut attempt = member.try_start(at * 1000).unwrap();
        member.first_token(at * 1000 + 250, &mut attempt);
        member.tokens(at * 1000 + 750, 51, 500);
        member.finish(at * 1000 + 750, attempt, Outcome::Success);
    }
    let view = member.view(200_000, LoadFigures { running: 2, waiting: 0, capacity: Some(2) });
    assert_eq!((view.ttft_ms, view.ttft_deviation_ms, view.token_us), (Some(250), Some(0), Some(10_000)));
    assert_eq!(view.wait_ms, Some(375));
    let later = member.view(600_000, LoadFigures::default());
    assert_eq!((later.ttft_ms, later.token_us), (None, None), "what is old says nothing of now");
    // One slow answer moves the mean by an eighth.
    let mut slow = member.try_start(201_000).unwrap();
    member.first_token(202_050, &mut slow);
    assert_eq!(member.view(202_050, LoadFigures::default()).ttft_ms, Some(350));
    assert_eq!(member.view(202_050, LoadFigures::default()).running, 1, "what is in flight runs");
    member.finish(202_050, slow, Outcome::Success);
}

#[test]
fn a_queue_is_not_predicted_from_itself() {
    let mut member = health();
    // Each request holds a place for 100 + 400 ms; later ones stand in a queue for up to ten seconds before.
    for at in 0..100_u64 {
        let (start_ms, queued_ms) = (at * 1000, at * 100);
        let mut attempt = member.try_start(start_ms).unwrap();
        member.first_token(start_ms + queued_ms + 100, &mut attempt);
        member.tokens(start_ms + queued_ms + 500, 5, 400);
        member.finish(start_ms + queued_ms + 500, attempt, Outcome::Success);
    }
    let view = member.view(110_000, LoadFigures { running: 1, waiting: 9, capacity: Some(1) });
    // Ten requests are ahead of one place.
    assert_eq!((view.wait_ms, view.ttft_ms), (Some(5000), Some(100)));
    assert_eq!(member.view(1_000_000, LoadFigures { capacity: Some(1), ..LoadFigures::default() }).ttft_ms, None);
}
