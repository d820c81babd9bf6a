//! The stand-in's collectives: the ranks' threads meet, the last one to come works out the result, and each takes it home.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Collective;
use crate::device::{read_elements, write_elements};
use crate::element::ElementType;
use crate::error::{Result, driver};
use crate::memory::Slice;

const WHO: &str = "the ranks of the model";

/// Where ranks meet, one collective after the other.
pub(crate) struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Collectives that are over.
    done: u64,
    /// What each rank has brought to this one.
    brought: Vec<Option<Brought>>,
    /// Of the last one. A rank that waits for the next has taken it.
    result: Arc<Vec<f32>>,
    failure: Option<String>,
}

struct Brought {
    what: Collective,
    values: Vec<f32>,
}

/// A rank's part in a collective, as a step of its device's work.
pub(crate) struct Meet {
    meeting: Arc<Meeting>,
    rank: usize,
    what: Collective,
    address: u64,
    /// Elements of each rank.
    len: usize,
}

impl Meet {
    pub fn new(meeting: &Arc<Meeting>, rank: usize, what: Collective, (x, len): (Slice, usize)) -> Self {
        Self { meeting: Arc::clone(meeting), rank, what, address: x.address(), len }
    }

    /// Where this rank's own elements begin.
    fn own(&self) -> u64 {
        match self.what {
            Collective::AllReduce => self.address,
            Collective::AllGather => self.address + (4 * self.rank * self.len) as u64,
        }
    }
}

/// Waits until all ranks are there, or until one fails.
pub(crate) fn meet(part: &Meet) -> Result<()> {
    let values = read_elements(part.own(), part.len, ElementType::F32);
    let result = part.meeting.bring(part.rank, Brought { what: part.what, values })?;
    write_elements(part.address, &result, ElementType::F32);
    Ok(())
}

impl Meeting {
    pub fn new(ranks: usize) -> Self {
        let brought = (0..ranks).map(|_| None).collect();
        let state = State { done: 0, brought, result: Arc::default(), failure: None };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first reason lasts.
    pub fn break_off(&self, why: &str) {
        self.state().failure.get_or_insert_with(|| why.to_owned());
        self.changed.notify_all();
    }

    fn bring(&self, rank: usize, mine: Brought) -> Result<Arc<Vec<f32>>> {
        let mut state = self.state();
        let round = state.done;
        state.brought[rank] = Some(mine);
        if state.failure.is_none() && state.brought.iter().all(Option::is_some) {
            match combine(&mut state.brought) {
                Ok(result) => {
                    state.result = Arc::new(result);
                    state.done += 1;
                }
                Err(why) => state.failure = Some(why),
            }
            self.changed.notify_all();
        }
        loop {
            if state.done > round {
                return Ok(Arc::clone(&state.result));
            }
            if let Some(why) = &state.failure {
                return Err(driver(WHO, format!("do not work together any more: {why}")));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Sums in the order of the ranks.
fn combine(brought: &mut [Option<Brought>]) -> std::result::Result<Vec<f32>, String> {
    let mut all = brought.iter_mut().map(|brought| brought.take().expect("all ranks are there"));
    let Brought { what, values: mut result } = all.next().expect("there is a rank");
    let len = result.len();
    for (rank, other) in (1..).zip(all) {
        if other.what != what || other.values.len() != len {
            let (found, found_len) = (other.what, other.values.len());
            return Err(format!("rank {rank} came for {found:?} of {found_len}, rank 0 for {what:?} of {len}"));
        }
        match what {
            Collective::AllReduce => result.iter_mut().zip(&other.values).for_each(|(sum, value)| *sum += value),
            Collective::AllGather => result.extend(other.values),
        }
    }
    Ok(result)
}
