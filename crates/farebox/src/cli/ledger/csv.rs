//! CSV as RFC 4180 has it, safe to open in a spreadsheet.
//!
//! A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@` as a formula, and some of our cells are anybody's words.
//! Such a cell gets an apostrophe in front, which spreadsheets read as "this is text". Numbers are ours and never negative.

use std::fmt::Write as _;

use super::{
    moment::rfc3339,
    record::{Cell, Record},
};

/// The line of names, without its end.
pub(in crate::cli) fn header(record: &Record) -> String {
    record.names().collect::<Vec<_>>().join(",")
}

/// One line, without its end.
pub(in crate::cli) fn line(record: &Record) -> String {
    let mut line = String::with_capacity(512);
    for (at, (_, cell)) in record.0.iter().enumerate() {
        if at > 0 {
            line.push(',');
        }
        match cell {
            Cell::Nothing => {}
            Cell::Number(number) => write!(line, "{number}").expect("a string takes anything"),
            Cell::Text(text) => line.push_str(&quoted(text)),
            Cell::Date(date) => line.push_str(date),
            Cell::Moment(at) => line.push_str(&rfc3339(*at)),
            Cell::Words(words) => line.push_str(&words.join(" ")),
        }
    }
    line
}

/// One cell of text.
fn quoted(text: &str) -> String {
    // The wide forms are read as their plain ones by some.
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']);
    let apostrophe = if is_formula { "'" } else { "" };
    if is_formula || text.contains([',', '"', '\n', '\r', ';', '\t']) || text.trim() != text {
        format!("\"{apostrophe}{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use farebox_protocol::Timestamp;

    use super::*;

    #[test]
    fn a_cell_is_never_a_formula_and_never_two_cells() {
        for (text, want) in [
            ("weather", "weather"),
            ("", ""),
            ("=HYPERLINK(\"http://x\")", "\"'=HYPERLINK(\"\"http://x\"\")\""),
            ("+1", "\"'+1\""),
            ("-1", "\"'-1\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("\t=1", "\"'\t=1\""),
            ("＝1", "\"'＝1\""),
            ("a,b", "\"a,b\""),
            ("a;=1", "\"a;=1\""),
            ("two\nlines", "\"two\nlines\""),
            ("say \"no\"", "\"say \"\"no\"\"\""),
            (" =1", "\" =1\""),
        ] {
            assert_eq!(quoted(text), want, "{text}");
        }
    }

    #[test]
    fn a_line_has_a_cell_for_each_name() {
        let record = Record(vec![
            ("a", Cell::Nothing),
            ("b", Cell::Number(7)),
            ("c", Cell::Moment(Timestamp::from_secs(0))),
            ("d", Cell::Words(vec!["open", "surplus"])),
            ("e", Cell::Text("x,y".to_owned())),
        ]);
        assert_eq!(header(&record), "a,b,c,d,e");
        assert_eq!(line(&record), ",7,1970-01-01T00:00:00Z,open surplus,\"x,y\"");
    }
}
