// performance-critical: no allocation per token, no lock, no log, no format
//! Server-sent events out of decoded bytes, in any pieces: the `data` of each event, nothing else.

/// The bytes of unfinished events.
#[derive(Default)]
pub struct Events {
    /// Decoded bytes; those before `from` are used up.
    pub bytes: Vec<u8>,
    from: usize,
    /// Where the search for the end of the current line goes on.
    searched: usize,
    /// Data of the event that is being read; several lines are joined.
    data: Vec<u8>,
    has_data: bool,
}

impl Events {
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), data: Vec::with_capacity(bytes), ..Self::default() }
    }

    /// The data of the next whole event, once it is there.
    pub fn next_data(&mut self) -> Option<&[u8]> {
        if std::mem::take(&mut self.has_data) {
            self.data.clear();
        }
        let mut filled = !self.data.is_empty();
        while let Some(length) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') {
            let end = self.searched + length;
            let line = &self.bytes[self.from..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            self.from = end + 1;
            self.searched = self.from;
            if line.is_empty() {
                if filled {
                    self.has_data = true;
                    return Some(&self.data);
                }
            } else if let Some(rest) = line.strip_prefix(b"data:") {
                if filled {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(rest.strip_prefix(b" ").unwrap_or(rest));
                filled = !self.data.is_empty();
            }
        }
        self.searched = self.bytes.len();
        self.compact();
        None
    }

    fn compact(&mut self) {
        if self.from == self.bytes.len() {
            self.bytes.clear();
        } else {
            self.bytes.drain(..self.from);
        }
        self.from = 0;
        self.searched = self.bytes.len();
    }

    /// What is left when the stream ends: a last event without its blank line.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.from..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(wire: &[u8], piece: usize) -> Vec<String> {
        let mut events = Events::default();
        let mut found = Vec::new();
        for part in wire.chunks(piece) {
            events.bytes.extend_from_slice(part);
            while let Some(data) = events.next_data() {
                found.push(String::from_utf8_lossy(data).into_owned());
            }
        }
        found
    }

    #[test]
    fn events_are_whole_in_any_pieces() {
        let wire =
            b": hello\n\ndata: {\"a\":1}\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\ndata: [DONE]\n\n\ndata: cut";
        for piece in 1..=wire.len() {
            assert_eq!(read(wire, piece), ["{\"a\":1}", "two\nlines", "[DONE]"], "pieces of {piece}");
        }
    }
}
