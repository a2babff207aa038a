//! Metrics as text: the format that Prometheus reads, and OpenMetrics for who asks for it. They differ in how a counter's
//! family is named and in how the page ends.

use std::fmt::{Display, Write as _};

use http::{HeaderMap, header::ACCEPT};

use super::{
    instrument::{BUCKETS, Times},
    table::{Family, Kind},
};

/// In which of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// The text format that every Prometheus reads.
    #[default]
    Prometheus,
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    OpenMetrics,
}

/// A page of metrics in the making.
pub(super) struct Page {
    text: String,
    format: Format,
}

/// One family, to which samples are added.
pub(super) struct Samples<'a> {
    page: &'a mut Page,
    family: &'static Family,
}

impl Format {
    /// What the asker would like. Whoever names OpenMetrics at all can read it, and prefers it.
    pub(crate) fn wanted(headers: &HeaderMap) -> Self {
        let named = headers.get_all(ACCEPT).iter().any(|accept| {
            accept.to_str().is_ok_and(|accept| accept.contains("application/openmetrics-text"))
        });
        if named { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its media type.
    pub(crate) const fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Page {
    pub(super) fn new(format: Format) -> Self {
        Self { text: String::with_capacity(16 * 1024), format }
    }

    pub(super) fn family(&mut self, family: &'static Family) -> Samples<'_> {
        let name = match self.format {
            Format::Prometheus => family.name,
            Format::OpenMetrics => family.name.strip_suffix("_total").unwrap_or(family.name),
        };
        let Family { help, kind, .. } = family;
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Samples { page: self, family }
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("a string takes everything");
    }
}

impl Samples<'_> {
    /// A value without labels.
    pub(super) fn value(&mut self, value: impl Display) {
        self.labelled(&[], value);
    }

    /// A value with the family's labels, in the order of the table.
    pub(super) fn labelled(&mut self, labels: &[&str], value: impl Display) {
        self.sample("", labels, None, value);
    }

    pub(super) fn times(&mut self, labels: &[&str], times: &Times) {
        debug_assert_eq!(self.family.kind, Kind::Histogram);
        let bounds = BUCKETS.iter().map(|(bound, _)| *bound).chain(["+Inf"]);
        for (bound, count) in bounds.zip(times.up_to) {
            self.sample("_bucket", labels, Some(bound), count);
        }
        let (secs, micros) = (times.sum_micros / 1_000_000, times.sum_micros % 1_000_000);
        self.sample("_sum", labels, None, format_args!("{secs}.{micros:06}"));
        self.sample("_count", labels, None, times.count());
    }

    fn sample(&mut self, suffix: &str, values: &[&str], bound: Option<&str>, value: impl Display) {
        let Family { name, labels, .. } = self.family;
        debug_assert_eq!(labels.len(), values.len(), "{name}");
        self.page.write(format_args!("{name}{suffix}"));
        let named = labels.iter().copied().zip(values.iter().copied());
        let mut before = '{';
        for (label, value) in named.chain(bound.map(|bound| ("le", bound))) {
            self.page.write(format_args!("{before}{label}=\"{}\"", Escaped(value)));
            before = ',';
        }
        let close = if before == ',' { "}" } else { "" };
        self.page.write(format_args!("{close} {value}\n"));
    }
}

/// The value of a label, between its quotes.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use http::HeaderValue;

    use super::*;

    const COUNTED: Family =
        Family { name: "farebox_x_total", kind: Kind::Counter, labels: &["a", "b"], help: "Of x" };

    #[test]
    fn what_stands_in_a_label_cannot_end_it() {
        let mut page = Page::new(Format::OpenMetrics);
        page.family(&COUNTED).labelled(&["a\"} 7\n\\", "snow ☃"], 1);
        expect![[r#"
            # HELP farebox_x Of x
            # TYPE farebox_x counter
            farebox_x_total{a="a\"} 7\n\\",b="snow ☃"} 1
            # EOF
        "#]]
        .assert_eq(&page.finish());
    }

    #[test]
    fn open_metrics_are_for_those_who_name_them() {
        let accept =
            |value| Format::wanted(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]));
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(accept(prometheus), Format::OpenMetrics);
        assert_eq!(accept("text/html,*/*"), Format::Prometheus);
        assert_eq!(Format::wanted(&HeaderMap::new()), Format::Prometheus);
    }
}
