//! `--packed-cache`: where weights are kept in the form that the CPU multiplies with.

use std::path::PathBuf;

use super::env;

pub const PACKED_CACHE_SIZE_DEFAULT: u64 = 20 << 30;

/// A folder, and the bytes that all files in it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedPlace {
    pub folder: PathBuf,
    pub bytes_max: u64,
}

impl PackedPlace {
    /// `off`, a folder, or nothing for the user's folder of caches; without a home folder there is no default.
    pub fn from_flags(place: Option<&str>, bytes_max: Option<u64>) -> Option<Self> {
        let folder = match place {
            Some("off") => return None,
            Some(folder) => PathBuf::from(folder),
            None => env::caches()?.join("sconce/packed"),
        };
        Some(Self { folder, bytes_max: bytes_max.unwrap_or(PACKED_CACHE_SIZE_DEFAULT) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_and_folders_are_told_apart() {
        assert_eq!(PackedPlace::from_flags(Some("off"), Some(1)), None);
        let named = PackedPlace::from_flags(Some("./off"), None).expect("a folder");
        assert_eq!(named, PackedPlace { folder: "./off".into(), bytes_max: 20 << 30 });
        assert_eq!(PackedPlace::from_flags(Some("/x"), Some(7)).expect("a folder").bytes_max, 7);
    }
}
