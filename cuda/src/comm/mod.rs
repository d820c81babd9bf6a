//! Ranks that compute one model together, each with a device and a thread of its own: sums over all of them, and what each
//! has of one array put together. NCCL on GPUs, a meeting of threads on the stand-in.
//!
//! A collective is issued on the rank's device in the order of everything else there, and can be recorded. All ranks issue
//! the same ones in the same order, and record a step or issue it alike: NCCL counts on it, and the stand-in checks the
//! first half. All ranks get the same bits of a sum.
//!
//! A rank that fails says so ([`Breaker`]) or goes away: then the communicator is broken for good, and whoever waits for that
//! rank gets an error, now and ever after. What the ranks go on with is another communicator.

#[cfg(feature = "host")]
mod host;
#[cfg(feature = "driver")]
mod nccl;

use std::sync::{Arc, OnceLock};

use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Error, Result, driver, shape};
use crate::memory::Slice;

#[cfg(feature = "host")]
pub(crate) use host::{Meet, meet};

/// What ranks do together, on F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Collective {
    /// The sum of all ranks' elements, to all.
    AllReduce,
    /// All ranks' elements one behind the other, to all: a rank's own stand in their place already.
    AllGather,
}

/// One rank's end. Dropping it breaks the others'.
pub struct Communicator {
    device: Device,
    rank: usize,
    group: Arc<Group>,
}

/// Breaks a communicator, from any thread.
#[derive(Clone)]
pub struct Breaker(Arc<Group>);

/// While it lives, the communicator is not aborted (or only after some seconds, lest a call that hangs holds up all).
pub struct Entered {
    group: Arc<Group>,
    rank: usize,
}

struct Group {
    ranks: usize,
    back_end: BackEnd,
    failure: OnceLock<String>,
}

enum BackEnd {
    #[cfg(feature = "driver")]
    Nccl(nccl::Comms),
    #[cfg(feature = "host")]
    Host(Arc<host::Meeting>),
}

impl Communicator {
    /// The ends of as many ranks as there are devices, in their order. Devices are all GPUs, each another one, or all
    /// stand-ins. Fails with what is missing: NCCL, or a way between the GPUs.
    pub fn connect(devices: &[Device]) -> Result<Vec<Self>> {
        if devices.is_empty() {
            return Err(shape("communicator", "no device"));
        }
        let back_end = connect(devices)?;
        let group = Arc::new(Group { ranks: devices.len(), back_end, failure: OnceLock::new() });
        let end = |(rank, device): (usize, &Device)| Self { device: device.clone(), rank, group: Arc::clone(&group) };
        Ok(devices.iter().enumerate().map(end).collect())
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn ranks(&self) -> usize {
        self.group.ranks
    }

    pub fn breaker(&self) -> Breaker {
        Breaker(Arc::clone(&self.group))
    }

    /// Fails when the communicator is broken. To be held while recorded collectives are launched.
    pub fn enter(&self) -> Result<Entered> {
        self.group.enter(self.rank)?;
        Ok(Entered { group: Arc::clone(&self.group), rank: self.rank })
    }

    /// x F32 becomes the sum of all ranks' x, which are of one length.
    pub fn all_reduce(&self, x: Slice) -> Result<()> {
        let x = x.require("all_reduce", "x", ElementType::F32, x.len())?;
        self.issue(Collective::AllReduce, x, x.len())
    }

    /// x F32 `[ranks, len]`, of which this rank has written its own `[len]`: the other ranks' are put beside it.
    pub fn all_gather(&self, x: Slice) -> Result<()> {
        let x = x.require("all_gather", "x", ElementType::F32, x.len())?;
        if !x.len().is_multiple_of(self.ranks()) {
            return Err(shape("all_gather", format!("{} elements of {} ranks", x.len(), self.ranks())));
        }
        self.issue(Collective::AllGather, x, x.len() / self.ranks())
    }

    /// `len` elements of each rank.
    fn issue(&self, what: Collective, x: Slice, len: usize) -> Result<()> {
        let _entered = self.enter()?;
        if len == 0 {
            return Ok(());
        }
        match &self.group.back_end {
            #[cfg(feature = "driver")]
            BackEnd::Nccl(comms) => self.device.on_stream(|stream| comms.issue(self.rank, what, (x, len), stream)),
            #[cfg(feature = "host")]
            BackEnd::Host(meeting) => self.device.meet(Meet::new(meeting, self.rank, what, (x, len))),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.group.break_off(&format!("rank {} has gone", self.rank));
    }
}

impl Breaker {
    /// Every rank's collectives fail from now on, those that are under way included. The first reason lasts.
    pub fn break_off(&self, why: &str) {
        self.0.break_off(why);
    }

    /// Why it is broken.
    pub fn failure(&self) -> Option<&str> {
        self.0.failure.get().map(String::as_str)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.group.leave(self.rank);
    }
}

impl Group {
    fn enter(&self, rank: usize) -> Result<()> {
        match &self.back_end {
            #[cfg(feature = "driver")]
            BackEnd::Nccl(comms) => comms.enter(rank)?.then_some(()).ok_or_else(|| self.broken()),
            #[cfg(feature = "host")]
            BackEnd::Host(_) if self.failure.get().is_some() => Err(self.broken()),
            #[cfg(feature = "host")]
            BackEnd::Host(_) => {
                debug_assert!(rank < self.ranks);
                Ok(())
            }
        }
    }

    fn leave(&self, rank: usize) {
        match &self.back_end {
            #[cfg(feature = "driver")]
            BackEnd::Nccl(comms) => comms.leave(rank),
            #[cfg(feature = "host")]
            BackEnd::Host(_) => debug_assert!(rank < self.ranks),
        }
    }

    fn break_off(&self, why: &str) {
        if self.failure.set(why.to_owned()).is_err() {
            return;
        }
        match &self.back_end {
            #[cfg(feature = "driver")]
            BackEnd::Nccl(comms) => comms.abort(),
            #[cfg(feature = "host")]
            BackEnd::Host(meeting) => meeting.break_off(why),
        }
    }

    #[cold]
    fn broken(&self) -> Error {
        let why = self.failure.get().map_or("it was taken apart", String::as_str);
        driver("the ranks of the model", format!("do not work together any more: {why}"))
    }
}

#[cfg(feature = "driver")]
fn connect(devices: &[Device]) -> Result<BackEnd> {
    let ordinals: Vec<i32> = devices.iter().filter_map(Device::ordinal).collect();
    if ordinals.len() == devices.len() {
        return Ok(BackEnd::Nccl(devices[0].on_stream(|_| nccl::Comms::connect(devices, &ordinals))?));
    }
    #[cfg(feature = "host")]
    if ordinals.is_empty() {
        return Ok(BackEnd::Host(Arc::new(host::Meeting::new(devices.len()))));
    }
    Err(shape("communicator", "devices of different kinds"))
}

#[cfg(not(feature = "driver"))]
#[expect(clippy::unnecessary_wraps, reason = "with a driver it can fail")]
fn connect(devices: &[Device]) -> Result<BackEnd> {
    Ok(BackEnd::Host(Arc::new(host::Meeting::new(devices.len()))))
}
