//! Where the frames of HTTP/2 begin among the bytes that go one way of a connection, and what each is (RFC 9113 section 4.1).
//!
//! It is told all bytes, in whatever pieces they come, reads four of the nine of each head, and steps over the rest: no payload
//! is looked at, and nothing is copied. What stands in a frame is hyper's to judge, and so is what is no frame at all: of that
//! this makes other frames than there are, at the same price.

/// How long a head is, …
const HEAD: usize = 9;
/// … of which the first bytes say what has to be known here: three are the length of the payload, one the type.
const KNOWN: usize = 4;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// The bytes of one direction, frame by frame.
#[derive(Debug)]
pub(super) struct Frames {
    /// How many bytes there are to be stepped over before the next head.
    rest: usize,
    /// What was read of a head that was cut, and how many bytes that is.
    part: u32,
    have: u8,
}

/// What a head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    /// In bytes, without the head.
    pub(super) length: usize,
}

impl Frames {
    /// Frames that begin after so many bytes.
    pub(super) const fn after(bytes: usize) -> Self {
        Self { rest: bytes, part: 0, have: 0 }
    }

    /// Whether all frames that have begun are whole.
    pub(super) const fn is_between(&self) -> bool {
        self.rest == 0 && self.have == 0
    }

    /// Steps over these bytes, which come next, and tells of each frame that they begin.
    pub(super) fn walk(&mut self, mut bytes: &[u8], mut begins: impl FnMut(Frame)) {
        loop {
            bytes = match bytes.get(self.rest..) {
                Some(bytes) if !bytes.is_empty() => bytes,
                _ => {
                    self.rest -= bytes.len();
                    return;
                }
            };
            self.rest = 0;
            let head = match bytes.first_chunk::<KNOWN>() {
                Some(head) if self.have == 0 => {
                    bytes = &bytes[KNOWN..];
                    *head
                }
                // Cut, by the end of these bytes or of those before: byte by byte.
                _ => {
                    self.part = self.part << 8 | u32::from(bytes[0]);
                    self.have += 1;
                    bytes = &bytes[1..];
                    if usize::from(self.have) < KNOWN {
                        continue;
                    }
                    self.have = 0;
                    self.part.to_be_bytes()
                }
            };
            let [high, middle, low, kind] = head;
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            self.rest = length + HEAD - KNOWN;
            begins(Frame { kind, length });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As they are sent: flags and stream are full of what would make a head, and so are payloads.
    fn written(frames: &[Frame]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.extend(&u32::try_from(frame.length).unwrap().to_be_bytes()[1..]);
            bytes.extend([frame.kind, 0xff, 0, 0, 9, 4]);
            bytes.extend([0, 0, 1].iter().cycle().take(frame.length));
        }
        bytes
    }

    /// What is found when the bytes come in these pieces.
    fn found<'a>(before: usize, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Frame> {
        let mut frames = Frames::after(before);
        let mut found = Vec::new();
        for piece in pieces {
            frames.walk(piece, |frame| found.push(frame));
        }
        assert!(frames.is_between(), "{frames:?}");
        found
    }

    fn frame(kind: u8, length: usize) -> Frame {
        Frame { kind, length }
    }

    #[test]
    fn frames_are_found_wherever_reads_cut_them() {
        let sent = [
            frame(SETTINGS, 18),
            frame(WINDOW_UPDATE, 4),
            frame(PING, 8),
            frame(DATA, 0),
            frame(HEADERS, 300),
        ];
        let bytes = [&b"preface"[..], &written(&sent)].concat();
        assert_eq!(found(7, [&bytes[..]]), sent);
        assert_eq!(found(7, bytes.chunks(1)), sent);
        for first in 0..bytes.len() {
            let (head, tail) = bytes.split_at(first);
            assert_eq!(found(7, [head, tail]), sent, "cut at {first}");
            // And once more, anywhere near.
            for second in 0..tail.len().min(20) {
                let (middle, tail) = tail.split_at(second);
                assert_eq!(found(7, [head, middle, tail]), sent, "cut at {first}, then after {second}");
            }
        }
    }

    #[test]
    fn the_longest_frame_there_can_be_is_stepped_over() {
        let longest = (1 << 24) - 1;
        let mut frames = Frames::after(0);
        let mut found = Vec::new();
        frames.walk(&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1], |frame| found.push(frame));
        for _ in 0..longest / 65_535 {
            assert!(!frames.is_between());
            frames.walk(&[0xfe; 65_535], |frame| found.push(frame));
        }
        frames.walk(&vec![0xfe; longest % 65_535], |frame| found.push(frame));
        assert!(frames.is_between());
        frames.walk(&written(&[frame(PING, 8)]), |frame| found.push(frame));
        assert_eq!(found, [frame(DATA, longest), frame(PING, 8)]);
    }

    proptest! {
        #[test]
        fn no_way_of_cutting_loses_the_place(
            sent in prop::collection::vec((any::<u8>(), 0..700_usize), 0..40),
            before in 0..30_usize,
            cuts in prop::collection::vec(0..40_usize, 1..60),
        ) {
            let sent: Vec<_> = sent.into_iter().map(|(kind, length)| frame(kind, length)).collect();
            let bytes = [vec![1; before], written(&sent)].concat();
            let mut rest = &bytes[..];
            let mut pieces = Vec::new();
            for length in cuts.iter().cycle().take(bytes.len()) {
                let (piece, after) = rest.split_at((*length).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(found(before, pieces), sent);
        }

        #[test]
        fn what_is_no_frame_does_no_harm(pieces in prop::collection::vec(any::<Vec<u8>>(), 0..20)) {
            let mut frames = Frames::after(24);
            let mut found = 0;
            for piece in &pieces {
                frames.walk(piece, |_| found += 1);
            }
            prop_assert!(found <= pieces.iter().map(Vec::len).sum::<usize>() / KNOWN);
        }
    }
}
