//! A folder that stands for `/`, so that tests, and copies of other machines, can be read as this one is.
//!
//! Only regular files are read, at most [`BYTES_MAX`] of each: no device node, pipe or socket is ever opened. What is
//! missing, unreadable or no text is `None`.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// More than any file that is read here has.
const BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The machine that this process runs on.
    pub fn system() -> Self {
        Self(PathBuf::from("/"))
    }

    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Whether this is the running machine, and not a copy of some machine's files.
    pub fn is_system(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// `relative` has no slash at its start.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.0.join(relative.trim_start_matches('/'))
    }

    /// The text of a file, without the space around it.
    pub fn text(&self, relative: &str) -> Option<String> {
        let path = self.path(relative);
        if !fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let mut text = String::new();
        File::open(&path).ok()?.take(BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned())
    }

    pub fn number(&self, relative: &str) -> Option<u64> {
        self.text(relative)?.parse().ok()
    }

    /// `0x1d0f`, as sysfs writes identifiers.
    pub fn hexadecimal(&self, relative: &str) -> Option<u32> {
        u32::from_str_radix(self.text(relative)?.trim_start_matches("0x"), 16).ok()
    }

    pub fn exists(&self, relative: &str) -> bool {
        fs::symlink_metadata(self.path(relative)).is_ok()
    }

    /// Whether a file is there that this user may not read.
    pub fn is_denied(&self, relative: &str) -> bool {
        let path = self.path(relative);
        let is_file = fs::metadata(&path).is_ok_and(|found| found.is_file());
        is_file && File::open(path).is_err_and(|why| why.kind() == ErrorKind::PermissionDenied)
    }

    /// Names in a folder, sorted; none where it cannot be listed.
    pub fn names(&self, relative: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(relative)) else { return Vec::new() };
        let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The numbers of entries named `prefix` and a number, in order: `neuron0`, `neuron12`.
    pub fn numbered(&self, relative: &str, prefix: &str) -> Vec<u32> {
        let number = |name: &String| {
            let digits = name.strip_prefix(prefix)?;
            // "+1" and "01" would parse as well.
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
        };
        let mut numbers: Vec<u32> = self.names(relative).iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// The last part of where a link leads, as sysfs names the driver of a device.
    pub fn link_name(&self, relative: &str) -> Option<String> {
        Some(fs::read_link(self.path(relative)).ok()?.file_name()?.to_str()?.to_owned())
    }
}
