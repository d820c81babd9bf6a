//! `sconce bench engine` on stand-ins: every kind of case, with steps that follow each other and with steps that wait.

use sconce::bench::engine::{Bench, Case};
use sconce_cuda::Device;
use sconce_models::{Precision, Source};

#[test]
fn every_kind_of_case_is_measured() {
    let cases: Vec<Case> =
        ["pp20", "tg6", "tg3@10", "3x9+5"].iter().map(|case| case.parse().expect("a case")).collect();
    let source = Source::Dummy("tiny".to_owned());
    for ranks in [1, 2] {
        let devices: Vec<Device> = (0..ranks).map(|_| Device::host()).collect();
        for is_async in [true, false] {
            let bench = Bench::load_on(&devices, "dummy:tiny", &source, Precision::Fast, &cases).expect("it is loaded");
            let mut bench = bench.with_async_scheduling(is_async);
            for case in &cases {
                let measured = bench.measure(*case, 1, None).expect("it is measured");
                let (prefill, decode) = (measured.prefill_tokens_per_s, measured.decode_tokens_per_s);
                assert_eq!(
                    (prefill.is_some(), decode.is_some()),
                    (case.prompt > 0, case.answer > 0),
                    "{}",
                    case.name()
                );
                assert!(prefill.into_iter().chain(decode).all(|rate| rate > 0.0), "{}: {measured:?}", case.name());
            }
        }
    }
}
