//! A cursor over bytes that nobody vouches for: every read says what it wants and fails in words when it is not there.

use crate::error::shown;

pub(super) struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }

    pub fn position(&self) -> u64 {
        self.at as u64
    }

    fn left(&self) -> u64 {
        (self.file.len() - self.at) as u64
    }

    pub fn take(&mut self, bytes: u64, what: &str) -> Result<&'a [u8], String> {
        if bytes > self.left() {
            return Err(format!(
                "{what} needs {bytes} bytes at byte {}, but the file has {} bytes",
                self.at,
                self.file.len()
            ));
        }
        let taken = &self.file[self.at..self.at + bytes as usize];
        self.at += bytes as usize;
        Ok(taken)
    }

    pub fn array<const BYTES: usize>(&mut self, what: &str) -> Result<[u8; BYTES], String> {
        Ok(self.take(BYTES as u64, what)?.try_into().expect("take returns as many bytes as asked for"))
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count is credible only if so many things of their smallest size still fit into the file.
    pub fn expect_room(&self, count: u64, bytes_each: u64, what: &str) -> Result<(), String> {
        match count.checked_mul(bytes_each) {
            Some(bytes) if bytes <= self.left() => Ok(()),
            _ => Err(format!(
                "it announces {count} {what} at byte {}, but the file has {} bytes",
                self.at,
                self.file.len()
            )),
        }
    }

    pub fn string(&mut self, what: &str, bytes_max: u64) -> Result<String, String> {
        let bytes = self.u64(what)?;
        if bytes > bytes_max {
            return Err(format!("{what} at byte {} is {bytes} bytes long, at most {bytes_max} are read", self.at));
        }
        let at = self.at;
        let text = self.take(bytes, what)?;
        match std::str::from_utf8(text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(format!("{what} at byte {at} is not UTF-8: {}", shown(&String::from_utf8_lossy(text)))),
        }
    }
}
