//! How commands speak: people on a terminal get sentences, programs behind a pipe get JSON, `--json` and `--human` force
//! the one or the other. Results go to standard output, everything else to standard error.

use std::{
    fmt::Display,
    io::{self, ErrorKind, IsTerminal, Write},
    time::Duration,
};

use farebox_protocol::Timestamp;
use serde::Serialize;

/// The flags that every command has.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct OutputFlags {
    /// Print JSON, even on a terminal
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
    /// Print text for people, even into a pipe
    #[arg(long, global = true, conflicts_with = "json", help_heading = "Output")]
    human: bool,
}

/// Who reads what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    Person,
    Program,
}

impl OutputFlags {
    /// Whether JSON was asked for by name. For what is told to people even through a pipe.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Whether text for people was asked for by name.
    pub(crate) fn is_human(self) -> bool {
        self.human
    }

    /// Who reads standard output.
    pub(crate) fn reader(self) -> Reader {
        match (self.json, self.human) {
            (true, _) => Reader::Program,
            (_, true) => Reader::Person,
            _ if io::stdout().is_terminal() => Reader::Person,
            _ => Reader::Program,
        }
    }
}

impl Reader {
    /// Prints the result of a command: its `Display` for people, one line of JSON for programs.
    pub(crate) fn print<T: Display + Serialize>(self, result: &T) -> io::Result<()> {
        match self {
            Self::Person => line(result),
            Self::Program => line(&serde_json::to_string(result).map_err(io::Error::other)?),
        }
    }
}

/// Writes a line to standard output. A reader that has had enough (`| head`) is no error.
pub(crate) fn line(text: &dyn Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// Somebody else's words for a terminal, which must not obey them: neither its own signs nor those that turn the direction of
/// writing, by which a price could be read as another one.
pub(crate) fn harmless(text: &str) -> String {
    let is_plain = |c: char| !c.is_control() && !c.escape_debug().to_string().starts_with("\\u");
    let shown = |c: char| if is_plain(c) { c.to_string() } else { c.escape_default().to_string() };
    text.chars().map(shown).collect()
}

/// The texts of an error and its sources in one line, each once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for source in std::iter::successors(error.source(), |error| error.source()) {
        let source = source.to_string();
        if !text.contains(&source) {
            text.push_str(": ");
            text.push_str(&source);
        }
    }
    text
}

/// A moment as people write it: `2025-11-22 08:43:00 UTC`.
pub(crate) fn utc(moment: Timestamp) -> String {
    let (days, secs) = (moment.secs() / 86_400, moment.secs() % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", secs / 3_600, secs / 60 % 60, secs % 60)
}

/// Year, month and day so many days after 1970-01-01, in the Gregorian calendar.
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // 400 years have a fixed number of days; stepping over them first keeps the loop short for any input.
    let mut year = 1970 + days / 146_097 * 400;
    let mut left = days % 146_097;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

/// A length of time in its two largest units: `2 d 3 h`.
pub(crate) fn roughly(span: Duration) -> String {
    let secs = span.as_secs();
    let parts = [(secs / 86_400, "d"), (secs / 3_600 % 24, "h"), (secs / 60 % 60, "min"), (secs % 60, "s")];
    let from = parts.iter().position(|(count, _)| *count > 0).unwrap_or(parts.len() - 1);
    let shown = parts.iter().skip(from).take(2).filter(|(count, _)| *count > 0 || secs == 0);
    shown.map(|(count, unit)| format!("{count} {unit}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_words_of_somebody_else_is_obeyed_or_turns_the_line_round() {
        for (words, want) in [
            ("caf\u{e9} 日本 \"a\" b\\c 'd'", "caf\u{e9} 日本 \"a\" b\\c 'd'"),
            ("\u{1b}[31m\r\n\u{9b}1A", "\\u{1b}[31m\\r\\n\\u{9b}1A"),
            ("\u{202e}tas 1\u{2066}\u{200b}\u{feff}", "\\u{202e}tas 1\\u{2066}\\u{200b}\\u{feff}"),
        ] {
            assert_eq!(harmless(words), want);
        }
    }

    #[test]
    fn a_moment_is_shown_in_utc() {
        for (secs, want) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_763_800_980, "2025-11-22 08:43:00 UTC"),
            (4_107_542_399, "2100-02-28 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(utc(Timestamp::from_secs(secs)), want);
        }
    }

    #[test]
    fn any_moment_can_be_shown() {
        assert!(utc(Timestamp::from_secs(u64::MAX)).ends_with(" UTC"));
    }

    #[test]
    fn a_length_of_time_is_rounded_to_two_units() {
        for (secs, want) in
            [(0, "0 s"), (59, "59 s"), (3_600, "1 h"), (3_661, "1 h 1 min"), (183_845, "2 d 3 h")]
        {
            assert_eq!(roughly(Duration::from_secs(secs)), want);
        }
    }
}
