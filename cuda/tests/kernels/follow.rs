//! Tokens that go from step to step on the device, and the places in the stream that are waited for.

use sconce_cuda::ops::follow::follow;
use sconce_cuda::{ElementType, Event};

use crate::on_each_device;

#[test]
fn tokens_follow_from_the_rows_that_chose_them() {
    on_each_device(|device| {
        for (rows, count) in [(1, 1), (3, 2), (130, 257)] {
            // Every fifth row chose nothing.
            let status = |row: u32| u32::from(row % 5 == 4);
            let mut chosen: Vec<u32> = (0..rows).map(|row| 1000 + 7 * row).collect();
            chosen.extend((0..rows).map(status));
            chosen.extend((0..rows).map(|_| u32::MAX));
            // Backwards, some twice; every seventh is padding.
            let sources: Vec<u32> =
                (0..count).map(|at| if at % 7 == 6 { u32::MAX } else { rows - 1 - at % rows }).collect();
            let before: Vec<u32> = (0..count + 1).map(|at| 50_000 + at).collect();
            let tokens = device.upload(&before).unwrap();
            let (chosen, there) = (device.upload(&chosen).unwrap(), device.upload(&sources).unwrap());
            follow(device, chosen.all(), there.all(), tokens.range(0, count as usize)).unwrap();
            let token = |(at, source): (usize, &u32)| match *source {
                u32::MAX => before[at],
                row if status(row) == 1 => 0,
                row => 1000 + 7 * row,
            };
            let mut wanted: Vec<u32> = sources.iter().enumerate().map(token).collect();
            wanted.push(before[count as usize]);
            assert_eq!(tokens.to_vec::<u32>().unwrap(), wanted);
        }
    });
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    on_each_device(|device| {
        let words = |len| device.alloc(len, ElementType::U32).unwrap();
        let (chosen, sources, tokens) = (words(6), words(4), words(4));
        assert!(follow(device, chosen.range(0, 5), sources.all(), tokens.all()).is_err(), "not three a row");
        assert!(follow(device, chosen.all(), sources.all(), tokens.range(0, 3)).is_err(), "too few tokens");
        let floats = device.alloc(4, ElementType::F32).unwrap();
        assert!(follow(device, chosen.all(), floats.all(), tokens.all()).is_err(), "of another type");
    });
}

#[test]
fn an_event_is_reached_behind_what_was_issued() {
    on_each_device(|device| {
        let event = Event::new(device).unwrap();
        event.wait().expect("nothing was recorded");
        let mut here = device.pinned(16).unwrap();
        for round in 0..3_u32 {
            let there = device.upload(&[round, 2, 3, 4]).unwrap();
            here.receive(there.all()).unwrap();
            event.record().unwrap();
            event.wait().unwrap();
            assert_eq!(here.bytes()[..4], round.to_le_bytes());
        }
    });
}
