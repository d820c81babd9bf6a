//! Work that was recorded once and is issued again as one.

use crate::device::{Device, Recorded};
use crate::error::Result;

/// A recorded sequence of launches and copies. It reads and writes the memory that it was recorded with, which its maker
/// must keep.
pub struct Graph {
    device: Device,
    recorded: Recorded,
}

impl Graph {
    /// Records what `issue` issues on the device; nothing of it runs yet. An error leaves the device usable.
    pub fn record(device: &Device, issue: impl FnOnce() -> Result<()>) -> Result<Self> {
        device.begin_recording()?;
        let issued = issue();
        let recorded = device.end_recording();
        issued?;
        Ok(Self { device: device.clone(), recorded: recorded? })
    }

    /// Issues all of it.
    pub fn launch(&self) -> Result<()> {
        self.device.replay(&self.recorded)
    }
}
