//! A place in a device's stream that can be waited for.

use crate::device::{Device, Marked};
use crate::error::Result;

/// Reached when everything that was issued before [`Event::record`] has run.
pub struct Event {
    device: Device,
    marked: Marked,
}

impl Event {
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { device: device.clone(), marked: device.new_event()? })
    }

    /// From now on it is what was issued so far that [`Self::wait`] waits for.
    pub fn record(&self) -> Result<()> {
        self.device.record_event(&self.marked)
    }

    /// Waits for what was issued before the latest record, and for nothing behind it; at once where there was none. Errors of
    /// kernels show here.
    pub fn wait(&self) -> Result<()> {
        self.device.wait_for_event(&self.marked)
    }
}
