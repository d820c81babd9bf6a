//! Models shared out among several devices: the same logits as on one.

use sconce_cuda::{Communicator, Device};
use sconce_models::cuda::{CudaModel, CudaRunner, Share, check_share};
use sconce_models::{BatchInput, Error, Logits, Precision};

use super::{
    CONTEXT, EXACT, Part, SIZES, Steps, batch, check_decoding, check_prompts, goldens, names, options, relative_error,
    rounded_tolerance, runner, source, steps,
};

/// The ranks of a model, the first of which leaves its logits.
pub struct Group {
    ranks: Vec<CudaRunner>,
}

impl Steps for Group {
    fn forward(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), Error> {
        let (first, others) = self.ranks.split_first_mut().expect("there are ranks");
        std::thread::scope(|scope| {
            let others: Vec<_> = others.iter_mut().map(|rank| scope.spawn(|| broken_on_error(rank, batch))).collect();
            let done = first.forward(batch, logits).inspect_err(|error| break_off(first, error));
            others.into_iter().fold(done, |done, other| done.and(other.join().expect("a rank panicked")))
        })
    }

    fn warning(&mut self) -> Option<String> {
        self.ranks.iter_mut().find_map(CudaRunner::take_warning)
    }
}

fn broken_on_error(rank: &mut CudaRunner, batch: &BatchInput) -> Result<(), Error> {
    rank.follow(batch).inspect_err(|error| break_off(rank, error))
}

fn break_off(rank: &CudaRunner, error: &Error) {
    rank.breaker().expect("it has others").break_off(&error.to_string());
}

/// Sets of as many devices as ranks.
fn device_sets(ranks: usize) -> Vec<Vec<Device>> {
    let mut sets = Vec::new();
    #[cfg(feature = "cuda-host")]
    sets.extend([(0..ranks).map(|_| Device::host()).collect()]);
    #[cfg(feature = "cuda")]
    match Device::count() {
        Ok(count) if count as usize >= ranks => {
            sets.push((0..ranks as u32).map(|ordinal| Device::open(ordinal).unwrap()).collect());
        }
        Ok(count) => eprintln!("skipped on {ranks} GPUs: there are {count}"),
        Err(error) => eprintln!("skipped on GPUs: {error}"),
    }
    sets
}

/// The model on as many devices, or why not.
fn group(name: &str, devices: &[Device], precision: Precision) -> Result<Group, Error> {
    let ranks = devices.len();
    let load = |(rank, device): (usize, &Device)| {
        CudaModel::load_share(&source(name), device, options(name, precision), Share { rank, ranks })
    };
    let models: Vec<CudaModel> = devices.iter().enumerate().map(load).collect::<Result<_, _>>()?;
    let ends = Communicator::connect(devices).unwrap();
    let rank = |(model, end)| CudaRunner::of_rank(model, SIZES, end);
    Ok(Group { ranks: models.into_iter().zip(ends).map(rank).collect::<Result<_, _>>()? })
}

/// Every fourth fixture from `first` on, by the logits of Transformers. Returns how many were shared out.
fn check_share_of_fixtures(first: usize, ranks: usize) -> usize {
    let mut checked = 0;
    for devices in device_sets(ranks) {
        for name in names().iter().skip(first).step_by(4) {
            let mut exact = match group(name, &devices, Precision::High) {
                Ok(group) => group,
                Err(Error::Unsupported { feature, .. }) if feature.contains("on a GPU") => continue,
                Err(Error::Share { .. }) => continue,
                Err(error) => panic!("{name}: {error}"),
            };
            check_prompts(name, &mut exact, if name == "awq" { 5.0 * EXACT } else { EXACT });
            if name != "awq" && name != "exaone4_q4_0" {
                check_decoding(name, &mut exact);
            }
            let mut rounded = group(name, &devices, Precision::Fast).unwrap();
            check_prompts(name, &mut rounded, rounded_tolerance(name));
            checked += 1;
        }
    }
    assert!(checked > 0 || device_sets(ranks).is_empty(), "no fixture was shared out among {ranks}");
    eprintln!("{checked} fixtures among {ranks}");
    checked
}

#[test]
fn families_on_two_devices_first_share() {
    check_share_of_fixtures(0, 2);
}

#[test]
fn families_on_two_devices_second_share() {
    check_share_of_fixtures(1, 2);
}

#[test]
fn families_on_two_devices_third_share() {
    check_share_of_fixtures(2, 2);
}

#[test]
fn families_on_two_devices_fourth_share() {
    check_share_of_fixtures(3, 2);
}

#[test]
fn families_on_four_devices() {
    let checked: usize = (0..4).map(|first| check_share_of_fixtures(first, 4)).sum();
    assert!(checked > 8 || device_sets(4).is_empty(), "only {checked} fixtures were checked");
}

/// One rank of one computes what a model that is not shared out does, to the bit.
#[test]
fn one_rank_is_the_whole() {
    for devices in device_sets(1) {
        for name in ["llama3", "cohere", "gemma2_q8_0", "gpt_oss_bf16", "qwen2_moe"] {
            let mut one = group(name, &devices, Precision::Fast).unwrap();
            let mut whole = runner(name, &devices[0], Precision::Fast).unwrap();
            assert_eq!(bits(&steps(name, &mut one)), bits(&steps(name, &mut whole)), "{name}");
        }
    }
}

/// What is not shared out says why, and which sizes would do.
#[test]
fn models_that_cannot_be_shared_out_say_so() {
    let why = |name: &str, ranks| match check_share(&source(name), None, ranks) {
        Ok(()) => String::new(),
        Err(error @ Error::Share { .. }) => error.to_string(),
        Err(error) => panic!("{name}: {error}"),
    };
    for (name, ranks, parts) in [
        ("olmo2", 2, ["over all heads together", "--data-parallel-size"]),
        ("llama3", 3, ["4 attention heads", "sizes that work: 1, 2, 4"]),
        ("llama3_q8_0", 2, ["32 columns of attention's output, in blocks of 32", "takes one GPU"]),
        ("gpt_oss_mxfp4", 2, ["the width 32 of an expert has only 1 parts", "takes one GPU"]),
    ] {
        let found = why(name, ranks);
        assert!(parts.iter().all(|part| found.contains(part)), "{name}: {found}");
        assert!(found.contains(&format!("--tensor-parallel-size {ranks}")), "{name}: {found}");
        let options = options(name, Precision::Fast);
        if let Some(device) = device_sets(1).into_iter().flatten().next() {
            let loaded = CudaModel::load_share(&source(name), &device, options, Share { rank: 0, ranks });
            assert_eq!(loaded.err().expect("it is refused").to_string(), found);
        }
    }
    assert_eq!(why("llama3", 4), "", "its two KV heads are with two ranks each");
}

/// A rank's share alone is refused, and so is a rank among ranks of another number.
#[test]
fn a_share_needs_its_ranks() {
    for devices in device_sets(2) {
        let load = |rank| {
            let share = Share { rank, ranks: 2 };
            CudaModel::load_share(&source("llama3"), &devices[0], options("llama3", Precision::Fast), share).unwrap()
        };
        assert!(CudaRunner::new(load(0), SIZES).is_err());
        let end = Communicator::connect(&devices).unwrap().remove(0);
        assert!(CudaRunner::of_rank(load(1), SIZES, end).is_err(), "it is the first");
    }
}

/// Two devices have half of the weights and of the cache each, give both back while the model sleeps, and compute the same
/// before and behind it, to the bit.
#[test]
fn a_model_on_several_devices_sleeps() {
    for devices in device_sets(2) {
        let is_counted = devices[0].info().name.contains("stand-in");
        let free = || devices.iter().map(|device| device.memory_free().unwrap()).collect::<Vec<_>>();
        let before = free();
        let mut group = group("llama3", &devices, Precision::Fast).unwrap();
        let first = steps("llama3", &mut group);
        assert_eq!(bits(&steps("llama3", &mut group)), bits(&first), "a sum has one order");
        let awake = free();
        let asleep: Vec<u64> = group.ranks.iter_mut().map(|rank| rank.sleep().unwrap()).collect();
        assert!(asleep.iter().all(|bytes| *bytes > 0), "{asleep:?}");
        if is_counted {
            assert_eq!(free(), before, "all of it was given back");
        }
        group.ranks.iter_mut().for_each(|rank| rank.wake().unwrap());
        if is_counted {
            assert_eq!(free(), awake, "as much as before");
        }
        assert_eq!(bits(&steps("llama3", &mut group)), bits(&first));
        let mut whole = runner("llama3", &devices[0], Precision::Fast).unwrap();
        assert!(relative_error(&steps("llama3", &mut whole), &first) < 0.05);
        assert!(whole.sleep().unwrap() > asleep[0] && whole.breaker().is_none());
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A rank that fails ends the others' step, and every later one.
#[test]
fn a_rank_that_fails_holds_up_nobody() {
    for devices in device_sets(4) {
        let mut group = group("llama3", &devices, Precision::High).unwrap();
        steps("llama3", &mut group);
        let prompt = goldens("llama3").remove(0).prompt;
        let good = batch(std::slice::from_ref(&prompt), &[Part { sequence: 0, start: 0, count: prompt.len() }], false);
        let bad = BatchInput { context_lens: vec![CONTEXT + 1], ..good.clone() };
        let mut logits = Logits::default();
        let errors: Vec<String> = std::thread::scope(|scope| {
            let (first, others) = group.ranks.split_first_mut().expect("there are ranks");
            let follow = |(rank, runner)| {
                let batch = if rank == 1 { &bad } else { &good };
                scope.spawn(move || broken_on_error(runner, batch).unwrap_err().to_string())
            };
            let others: Vec<_> = others.iter_mut().enumerate().map(follow).collect();
            let done = first.forward(&good, &mut logits);
            // A GPU may end what was under way without an error: the others' word counts.
            let own = done.err().map(|error| error.to_string());
            let others = others.into_iter().map(|thread| thread.join().expect("no rank panics"));
            own.into_iter().chain(others).collect()
        });
        assert!(errors.len() >= 3 && errors.iter().any(|error| error.contains("batch refused")), "{errors:?}");
        assert!(group.forward(&good, &mut logits).is_err(), "it is broken for good");
        assert!(group.ranks[0].breaker().expect("it has others").failure().is_some());
    }
}
