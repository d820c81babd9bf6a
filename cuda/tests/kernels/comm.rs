//! Collectives: on stand-ins, and on as many GPUs as there are.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sconce_cuda::ops::rows::convert;
use sconce_cuda::{Buffer, Communicator, Device, ElementType, Error, Graph, Result};

use crate::noise;

const LENS: [usize; 5] = [1, 3, 64, 257, 5003];

/// As many devices of each kind that this build and machine has.
fn groups(ranks: usize) -> Vec<Vec<Device>> {
    let mut groups = Vec::new();
    #[cfg(feature = "host")]
    groups.extend([(0..ranks).map(|_| Device::host()).collect()]);
    #[cfg(feature = "driver")]
    match Device::count() {
        Ok(count) if count as usize >= ranks => {
            groups.push((0..ranks as u32).map(|ordinal| Device::open(ordinal).unwrap()).collect());
        }
        Ok(count) => eprintln!("skipped on {ranks} GPUs: there are {count}"),
        Err(error) => eprintln!("skipped on GPUs: {error}"),
    }
    groups
}

/// What each rank's thread does, and what it gives, in the order of ranks.
fn on_all<T: Send>(ends: Vec<Communicator>, work: impl Fn(Communicator) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = ends.into_iter().map(|end| scope.spawn(|| work(end))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the rank did not panic")).collect()
    })
}

fn values(rank: usize, len: usize) -> Vec<f32> {
    noise(rank as u64 + 7, len)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn sums_are_the_same_bits_on_all_ranks() {
    for ranks in [1, 2, 4] {
        for devices in groups(ranks) {
            let ends = Communicator::connect(&devices).unwrap();
            let found = on_all(ends, |end| {
                let device = &devices[end.rank()];
                assert_eq!(end.ranks(), ranks);
                let sum = |len| {
                    let x = device.upload(&values(end.rank(), len)).unwrap();
                    end.all_reduce(x.all()).unwrap();
                    x.to_vec::<f32>().unwrap()
                };
                LENS.map(sum)
            });
            for (at, len) in LENS.into_iter().enumerate() {
                assert!(found.iter().all(|of_rank| bits(&of_rank[at]) == bits(&found[0][at])), "{ranks} ranks, {len}");
                let wanted: Vec<f32> = (0..len).map(|i| (0..ranks).map(|rank| values(rank, len)[i]).sum()).collect();
                let far = found[0][at].iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(far < 1e-5, "{ranks} ranks, {len} elements: off by {far}");
            }
        }
    }
}

#[test]
fn what_ranks_have_is_put_together() {
    for ranks in [1, 2, 4] {
        for devices in groups(ranks) {
            let ends = Communicator::connect(&devices).unwrap();
            let found = on_all(ends, |end| {
                let gather = |len| {
                    let x = devices[end.rank()].alloc(ranks * len, ElementType::F32).unwrap();
                    x.write(end.rank() * len, &values(end.rank(), len)).unwrap();
                    end.all_gather(x.all()).unwrap();
                    x.to_vec::<f32>().unwrap()
                };
                LENS.map(gather)
            });
            for of_rank in found {
                for (found, len) in of_rank.into_iter().zip(LENS) {
                    assert_eq!(found, (0..ranks).flat_map(|rank| values(rank, len)).collect::<Vec<_>>());
                }
            }
        }
    }
}

#[test]
fn they_are_steps_of_graphs() {
    for devices in groups(2) {
        let ends = Communicator::connect(&devices).unwrap();
        let found = on_all(ends, |end| {
            let (device, rank, len) = (&devices[end.rank()], end.rank(), 130);
            let from = device.upload(&values(rank, len)).unwrap();
            let (sum, all) = (zeros(device, len), zeros(device, 2 * len));
            let graph = Graph::record(device, || {
                convert(device, from.all(), sum.all(), len)?;
                end.all_reduce(sum.all())?;
                convert(device, sum.all(), all.range(rank * len, len), len)?;
                end.all_gather(all.all())
            });
            let graph = graph.unwrap();
            assert!(sum.to_vec::<f32>().unwrap().iter().all(|x| *x == 0.0), "nothing runs while it is recorded");
            let mut found = Vec::new();
            for round in 0..3 {
                from.write(0, &values(rank + 10 * round, len)).unwrap();
                let _entered = end.enter().unwrap();
                graph.launch().unwrap();
                found.push(all.to_vec::<f32>().unwrap());
            }
            drop(graph);
            found
        });
        assert_eq!(found[0], found[1]);
        for (round, found) in found[0].iter().enumerate() {
            let of = |rank| values(rank + 10 * round, 130);
            let wanted: Vec<f32> = of(0).iter().zip(of(1)).map(|(a, b)| a + b).collect();
            assert_eq!(*found, [&wanted[..], &wanted[..]].concat(), "round {round}");
        }
    }
}

fn zeros(device: &Device, len: usize) -> Buffer {
    device.zeros(len, ElementType::F32).unwrap()
}

/// Whoever waits for a rank that fails, panics or leaves gets an error, also on other graphs' replays and ever after.
#[test]
fn nobody_waits_for_a_rank_that_does_not_come() {
    let ways: [fn(Communicator); 3] = [
        |end| end.breaker().break_off("its kernel failed"),
        drop,
        |end| {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _end = end;
                panic!("a fault of this rank");
            }));
            assert!(panicked.is_err());
        },
    ];
    for (way, leave) in ways.into_iter().enumerate() {
        for devices in groups(4) {
            let ends = Communicator::connect(&devices).unwrap();
            let breaker = ends[0].breaker();
            assert_eq!(breaker.failure(), None);
            let (started, failed) = (Instant::now(), AtomicUsize::new(0));
            let recorded = Barrier::new(4);
            on_all(ends, |end| {
                let device = devices[end.rank()].clone();
                let x = zeros(&device, 100);
                end.all_reduce(x.all()).unwrap();
                let graph = Graph::record(&device, || end.all_reduce(x.all())).unwrap();
                recorded.wait();
                if end.rank() == 2 {
                    return leave(end);
                }
                // A GPU's error may show only where work is waited for.
                let attempt = || -> Result<()> {
                    let _entered = end.enter()?;
                    graph.launch()?;
                    device.synchronize()?;
                    end.enter().map(drop)
                };
                let error = attempt().unwrap_err();
                assert!(matches!(&error, Error::Driver { .. }), "{error}");
                assert!(end.all_reduce(x.all()).is_err() && end.all_gather(x.all()).is_err() && end.enter().is_err());
                failed.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(failed.into_inner(), 3);
            let reason = breaker.failure().unwrap();
            let wanted = ["its kernel failed", "rank 2 has gone", "rank 2 has gone"][way];
            assert_eq!(reason, wanted, "the first reason lasts");
            assert!(started.elapsed() < Duration::from_secs(30));
        }
    }
}

#[cfg(feature = "host")]
#[test]
fn ranks_that_do_different_things_are_told() {
    for (other_len, is_gather) in [(101, false), (100, true)] {
        let devices = [Device::host(), Device::host()];
        let ends = Communicator::connect(&devices).unwrap();
        let errors = on_all(ends, |end| {
            let is_other = end.rank() == 1;
            let x = zeros(&devices[end.rank()], if is_other { other_len } else { 100 });
            let met = if is_other && is_gather { end.all_gather(x.all()) } else { end.all_reduce(x.all()) };
            met.unwrap_err().to_string()
        });
        assert!(errors.iter().all(|error| error.contains("rank 1 came for")), "{errors:?}");
    }
}

#[cfg(feature = "host")]
#[test]
fn what_cannot_be_summed_is_refused() {
    let device = Device::host();
    assert!(Communicator::connect(&[]).is_err());
    let end = Communicator::connect(std::slice::from_ref(&device)).unwrap().remove(0);
    let words = device.alloc(4, ElementType::U32).unwrap();
    assert!(end.all_reduce(words.all()).unwrap_err().to_string().contains("f32"));
    let [first, _second] =
        <[Communicator; 2]>::try_from(Communicator::connect(&[device.clone(), Device::host()]).unwrap())
            .unwrap_or_else(|_| panic!("two ends"));
    let odd = zeros(&device, 5);
    assert!(first.all_gather(odd.all()).unwrap_err().to_string().contains("2 ranks"));
    assert!(first.all_reduce(odd.range(0, 0)).is_ok(), "nothing is nothing, and waits for nobody");
}
