//! How much a client may say over HTTP/2 that asks for nothing, so that a flood of it ends the connection.
//!
//! A PING or a SETTINGS has to be answered, a WINDOW_UPDATE, a PRIORITY and a frame of an unknown kind to be read. hyper bounds the
//! memory that takes, for it reads no further while an answer can't be sent, and not the number. Here each takes one from what its
//! connection has left, and a SETTINGS ten, for it may change every stream there is. What is useful gives: a frame of an
//! answer [`ANSWERED`], so that each may be acknowledged twice and timed once (Go's clients send a PING for what arrives, to
//! learn how far away we are); a KiB of a body in either direction one more, for clients that open their windows bit by bit; and
//! time one every [`FRAME`], many times what keep-alives take. A request takes one as well, and its reset another: answered, it
//! has earned them back; taken back before, it has not, however slowly that goes on.
//!
//! So the bound is one on talk beside work, and no length of a life and no number of bytes comes near it by itself.
//!
//! h2 has bounds of its own, beside this one, which end a connection in the same way: requests taken back before they were
//! looked at (`http2_pending_resets_max`), streams that it had to reset or refuse itself (`LOCAL_RESETS_MAX` in `connection.rs`),
//! pieces of a head without end (five, or what a larger head takes and a quarter more), heads that unpack to four times their
//! limit, a hundred empty DATA that end nothing, and small DATA that nobody has read (by half of our window).
//!
//! Turned down:
//! - a rate alone: low enough to help, it cuts a fast download in small windows;
//! - all bytes against those of bodies, as nginx has it: it notices PINGs after half a million of them, and a stream of rare
//!   messages that is kept alive for a month is half PINGs;
//! - all bytes that we send as what earns: the answers to a flood are among them;
//! - a limit for each kind of frame: that is eight to get wrong, and a flood of all kinds is below each;
//! - to read payloads, and tell a window that is opened by a byte from one that is opened by a thousand: a stream of small messages
//!   opens it by a few bytes, too. An answer taken byte by byte stays what it is, one of their frames for one of ours;
//! - to count requests where they are answered rather than as frames: it would cost each of them, over HTTP/1.1 as well.
//!
//! The clock is read where nothing is left, and nowhere else.

use super::frames::{
    CONTINUATION, DATA, Frame, Frames, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use crate::metrics::Flood;

/// What a connection begins with, …
const FIRST: i32 = 1_000;
/// … and besides for each request that it may have under way: its head, the end of its body, its reset, and one to spare.
const EACH: i32 = 4;
/// What a connection has at most, or what it began with: what was useful once doesn't pay for ever, but an acknowledgement may
/// be late.
const MOST: i32 = 10_000;
/// What a frame of an answer earns.
const ANSWERED: i32 = 4;
/// What changes the settings costs.
const SET: i32 = 10;
/// After how many milliseconds a frame is given.
const FRAME: u64 = 20;
/// The bytes before the first frame of a client (RFC 9113 section 3.4).
const PREFACE: usize = 24;

/// What was said on a connection, and what may still be.
#[derive(Debug)]
pub(super) struct Chatter {
    heard: Frames,
    said: Frames,
    left: i32,
    most: i32,
    /// Up to when time has given what it gives, in milliseconds since the connection began.
    given_until: u64,
}

impl Chatter {
    /// Of a connection that may have so many requests under way, and has neither heard nor said anything.
    pub(super) fn new(streams_max: u32) -> Self {
        let left = i32::try_from(streams_max).unwrap_or(i32::MAX).saturating_mul(EACH).saturating_add(FIRST);
        // Far from where sums would overflow.
        let left = left.min(i32::MAX / 4);
        Self {
            heard: Frames::after(PREFACE),
            said: Frames::after(0),
            left,
            most: left.max(MOST),
            given_until: 0,
        }
    }

    /// The client has said these bytes. Fails with what it says when that has become too much. `millis` is how long the
    /// connection has been there.
    #[inline]
    pub(super) fn heard(&mut self, bytes: &[u8], millis: impl FnOnce() -> u64) -> Result<(), Flood> {
        let (mut left, mut last) = (self.left, DATA);
        self.heard.walk(bytes, |frame| {
            let worth = worth(frame);
            left += worth;
            if worth < 0 {
                last = frame.kind;
            }
        });
        self.left = left.min(self.most);
        if left >= 0 || self.wait(millis()) { Ok(()) } else { Err(flood(last)) }
    }

    /// The client was told these bytes.
    #[inline]
    pub(super) fn said(&mut self, bytes: &[u8]) {
        let mut left = self.left;
        self.said.walk(bytes, |frame| {
            if frame.kind == HEADERS || frame.kind == DATA && frame.length > 0 {
                left += ANSWERED + kib(frame);
            }
        });
        self.left = left.min(self.most);
    }

    /// Whether what it was told ends with a whole frame, so that one more could follow.
    pub(super) const fn is_between_frames(&self) -> bool {
        self.said.is_between()
    }

    /// Takes what time has given since it was last asked for, and no more than there was at first. Whether that is enough.
    #[cold]
    fn wait(&mut self, millis: u64) -> bool {
        let given = millis.saturating_sub(self.given_until) / FRAME;
        self.given_until += given * FRAME;
        self.left += i32::try_from(given).unwrap_or(FIRST).min(FIRST);
        self.left >= 0
    }
}

/// What a frame of the client's gives or takes. An empty DATA may end a request, and is one of few then.
#[inline]
fn worth(frame: Frame) -> i32 {
    match frame.kind {
        DATA if frame.length > 0 => kib(frame),
        SETTINGS => -SET,
        _ => -1,
    }
}

/// For whole KiB of a body or a head.
fn kib(frame: Frame) -> i32 {
    i32::try_from(frame.length >> 10).unwrap_or(0)
}

#[cold]
const fn flood(kind: u8) -> Flood {
    match kind {
        DATA => Flood::Data,
        HEADERS => Flood::Headers,
        PRIORITY => Flood::Priority,
        RST_STREAM => Flood::RstStream,
        SETTINGS => Flood::Settings,
        PING => Flood::Ping,
        WINDOW_UPDATE => Flood::WindowUpdate,
        CONTINUATION => Flood::Continuation,
        _ => Flood::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000;
    const UNKNOWN: u8 = 0xfb;

    /// A client, and the time.
    struct Client {
        chatter: Chatter,
        millis: u64,
    }

    /// A frame of this kind, full of nothing.
    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; 9 + length];
        bytes[..3].copy_from_slice(&u32::try_from(length).unwrap().to_be_bytes()[1..]);
        bytes[3] = kind;
        bytes
    }

    impl Client {
        fn new() -> Self {
            let mut chatter = Chatter::new(0);
            chatter.heard(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || 0).unwrap();
            Self { chatter, millis: 0 }
        }

        fn says(&mut self, kind: u8, length: usize) -> Result<(), Flood> {
            self.chatter.heard(&frame(kind, length), || self.millis)
        }

        fn is_told(&mut self, kind: u8, length: usize) {
            self.chatter.said(&frame(kind, length));
        }

        /// How many of this kind it can say at once.
        fn patience(&mut self, kind: u8, length: usize) -> usize {
            (0..1_000_000).take_while(|_| self.says(kind, length).is_ok()).count()
        }
    }

    #[test]
    fn each_kind_of_flood_ends_and_is_called_by_its_name() {
        for (kind, length, flood) in [
            (DATA, 0, Flood::Data),
            (HEADERS, 30, Flood::Headers),
            (PRIORITY, 5, Flood::Priority),
            (RST_STREAM, 4, Flood::RstStream),
            (PING, 8, Flood::Ping),
            (WINDOW_UPDATE, 4, Flood::WindowUpdate),
            (CONTINUATION, 0, Flood::Continuation),
            (UNKNOWN, 8, Flood::Unknown),
        ] {
            let mut client = Client::new();
            assert_eq!(client.patience(kind, length), 1_000, "{flood:?}");
            assert_eq!(client.says(kind, length), Err(flood));
        }
        let mut client = Client::new();
        assert_eq!(client.patience(SETTINGS, 6), 100);
        assert_eq!(client.says(SETTINGS, 6), Err(Flood::Settings));
    }

    #[test]
    fn what_a_flood_is_answered_with_does_not_pay_for_it() {
        let mut client = Client::new();
        let pings = (0..1_000_000).take_while(|_| {
            client.is_told(PING, 8);
            client.says(PING, 8).is_ok()
        });
        assert_eq!(pings.count(), 1_000);
        let mut client = Client::new();
        let settings = (0..1_000_000).take_while(|_| {
            client.is_told(SETTINGS, 0);
            client.says(SETTINGS, 6).is_ok()
        });
        assert_eq!(settings.count(), 100);
    }

    #[test]
    fn a_month_of_keep_alives_is_no_flood() {
        for (pause, days) in [(SECOND / 5, 1), (10 * SECOND, 30)] {
            let mut client = Client::new();
            while client.millis < days * 86_400 * SECOND {
                client.millis += pause;
                client.says(PING, 8).unwrap();
                client.is_told(PING, 8);
                // What it answers to ours.
                client.says(PING, 8).unwrap();
            }
        }
    }

    #[test]
    fn time_gives_so_much_and_no_more() {
        let mut client = Client::new();
        client.patience(PING, 8);
        client.millis = 10 * SECOND;
        // What was one too many is made up for first.
        assert_eq!(client.patience(PING, 8), 499);
        // After a night, no more than at first.
        client.millis += 86_400 * SECOND;
        assert_eq!(client.patience(PING, 8), 999);
        // At the pace at which it is given, for ever.
        client.millis += FRAME;
        for _ in 0..100_000 {
            client.millis += FRAME;
            client.says(PING, 8).unwrap();
        }
    }

    #[test]
    fn a_download_in_small_windows_is_no_flood_however_long() {
        let mut client = Client::new();
        let (piece, opened) = (frame(DATA, 16 << 10), frame(WINDOW_UPDATE, 4));
        for _ in 0..100_000 {
            client.chatter.said(&piece);
            // For each KiB that it reads, and now and then for all streams.
            for _ in 0..20 {
                client.chatter.heard(&opened, || 0).unwrap();
            }
        }
    }

    #[test]
    fn small_messages_may_be_acknowledged_twice_and_timed_once() {
        let mut client = Client::new();
        for _ in 0..100_000 {
            client.is_told(DATA, 7);
            client.says(WINDOW_UPDATE, 4).unwrap();
            client.says(WINDOW_UPDATE, 4).unwrap();
            client.says(PING, 8).unwrap();
            client.says(DATA, 7).unwrap();
        }
        // Late, all together.
        let mut client = Client::new();
        (0..5_000).for_each(|_| client.is_told(DATA, 7));
        assert!(client.patience(WINDOW_UPDATE, 4) >= 10_000);
    }

    #[test]
    fn an_upload_in_pieces_of_any_size_is_no_flood_and_earns_by_its_bytes() {
        let mut client = Client::new();
        for length in [1, 1_023, 16 << 10] {
            for _ in 0..10_000 {
                client.says(DATA, length).unwrap();
            }
        }
        assert_eq!(client.patience(PING, 8), 10_000);
        client.says(DATA, 1_023).unwrap_err();
    }

    #[test]
    fn requests_that_are_answered_are_no_flood_and_those_that_are_taken_back_are_one() {
        let mut client = Client::new();
        for _ in 0..100_000 {
            client.says(HEADERS, 50).unwrap();
            client.is_told(HEADERS, 20);
            client.says(RST_STREAM, 4).unwrap();
        }
        let mut client = Client::new();
        let mut taken_back = 0;
        while client.says(HEADERS, 50).and_then(|()| client.says(RST_STREAM, 4)).is_ok() {
            taken_back += 1;
            client.millis += 1;
        }
        assert_eq!(taken_back, 512);
        // Nine of ten may be given up where the tenth is answered.
        let mut client = Client::new();
        for request in 0..100_000 {
            client.says(HEADERS, 50).unwrap();
            if request % 10 == 0 {
                client.is_told(HEADERS, 20);
                (0..4).for_each(|_| client.is_told(DATA, 1_000));
            } else {
                client.says(RST_STREAM, 4).unwrap();
            }
        }
    }

    #[test]
    fn as_many_requests_as_there_may_be_can_wait_for_their_answers() {
        for streams in [128, 100_000, u32::MAX] {
            let mut client = Client { chatter: Chatter::new(streams), millis: 0 };
            client.chatter.heard(&[0; PREFACE], || 0).unwrap();
            for _ in 0..streams.min(100_000) {
                client.says(HEADERS, 50).unwrap();
                client.says(DATA, 7).unwrap();
                client.says(DATA, 0).unwrap();
            }
            for _ in 0..streams.min(100_000) {
                client.says(RST_STREAM, 4).unwrap();
            }
        }
    }

    #[test]
    fn nobody_can_save_up_for_ever() {
        let mut client = Client::new();
        (0..10_000).for_each(|_| client.is_told(DATA, 16 << 10));
        assert_eq!(client.patience(PING, 8), 10_000);
    }

    #[test]
    fn the_clock_is_read_where_nothing_is_left() {
        let mut client = Client::new();
        let unread = || -> u64 { panic!("there is plenty") };
        for _ in 0..1_000 {
            client.chatter.heard(&frame(PING, 8), unread).unwrap();
        }
        client.chatter.heard(&frame(PING, 8), || FRAME).unwrap();
    }

    #[test]
    fn it_takes_little_room() {
        assert!(size_of::<Chatter>() <= 48, "{}", size_of::<Chatter>());
    }
}
