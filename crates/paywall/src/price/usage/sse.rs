//! The lines of an event stream (`text/event-stream`), cut as they pass: which bytes are data, and where events end.
//!
//! Nothing is kept: a line's name is recognised letter by letter, and its data is handed on at once.

/// Cuts a stream into the data of its events.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines {
    at: At,
    /// The last byte was a CR, so that an LF belongs to it.
    after_cr: bool,
    /// The event has data already; the next line of it is another line.
    has_data: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// At the beginning of a line.
    #[default]
    Begin,
    /// In a name that is `data` so far, by this much.
    Name(usize),
    /// After the colon, where one space doesn't count.
    Colon,
    Data,
    /// In a line of something else.
    Other,
}

/// What a byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A byte of data.
    Data(u8),
    /// The end of an event that had data.
    End,
}

const DATA: &[u8] = b"data";

impl Lines {
    /// Reads on.
    pub(crate) fn push(&mut self, byte: u8, sink: &mut impl FnMut(Piece)) {
        let is_second_half = self.after_cr && byte == b'\n';
        self.after_cr = byte == b'\r';
        if is_second_half {
            return;
        }
        if byte == b'\n' || byte == b'\r' {
            let is_blank = self.at == At::Begin;
            self.at = At::Begin;
            if is_blank && std::mem::take(&mut self.has_data) {
                sink(Piece::End);
            }
            return;
        }
        match self.at {
            At::Begin if byte == DATA[0] => self.at = At::Name(1),
            At::Name(len) if DATA.get(len) == Some(&byte) => self.at = At::Name(len + 1),
            At::Name(len) if len == DATA.len() && byte == b':' => {
                // The lines of one event's data are lines of one text.
                if std::mem::replace(&mut self.has_data, true) {
                    sink(Piece::Data(b'\n'));
                }
                self.at = At::Colon;
            }
            At::Begin | At::Name(_) => self.at = At::Other,
            At::Colon if byte == b' ' => self.at = At::Data,
            At::Colon | At::Data => {
                self.at = At::Data;
                sink(Piece::Data(byte));
            }
            At::Other => {}
        }
    }

    /// The stream is over: an event that lacks its blank line ends here.
    pub(crate) fn end(&mut self, sink: &mut impl FnMut(Piece)) {
        if std::mem::take(self).has_data {
            sink(Piece::End);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events as `[data]`.
    #[track_caller]
    fn check(stream: &str, want: &str) {
        let (mut said, mut open) = (String::new(), String::new());
        let mut lines = Lines::default();
        let mut sink = |piece| match piece {
            Piece::Data(byte) => open.push(char::from(byte)),
            Piece::End => said.push_str(&format!("[{}]", std::mem::take(&mut open).escape_debug())),
        };
        stream.bytes().for_each(|byte| lines.push(byte, &mut sink));
        lines.end(&mut sink);
        assert_eq!(said, want, "{stream:?}");
    }

    #[test]
    fn an_events_data_is_what_its_data_lines_say() {
        check("data: a\n\ndata: b\n\n", "[a][b]");
        check("data:a\n\n", "[a]");
        check("data:  a\n\n", "[ a]");
        check("event: x\ndata: a\nid: 7\n\n", "[a]");
        check("data: a\ndata: b\n\n", "[a\\nb]");
        check("data:\ndata: b\n\n", "[\\nb]");
        check("data: a: b\n\n", "[a: b]");
    }

    #[test]
    fn lines_end_in_three_ways() {
        check("data: a\r\n\r\ndata: b\r\n\r\n", "[a][b]");
        check("data: a\r\rdata: b\r\r", "[a][b]");
        check("data: a\r\n\ndata: b\n\r\n", "[a][b]");
    }

    #[test]
    fn what_is_no_data_is_no_event() {
        for stream in [
            "",
            "\n\n\n",
            ": comment\n\n",
            "event: x\n\n",
            "dat: a\n\n",
            "datax: a\n\n",
            "data\n\n",
            " data: a\n\n",
        ] {
            check(stream, "");
        }
    }

    #[test]
    fn the_last_event_may_lack_its_blank_line() {
        check("data: a\n\ndata: b", "[a][b]");
        check("data: a\n\ndata: b\n", "[a][b]");
    }
}
