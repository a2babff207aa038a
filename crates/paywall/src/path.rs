//! One form of a path, for deciding and for forwarding.
//!
//! Routing, free paths, limits and caveats must see what the upstream sees; deciding on one spelling and forwarding
//! another is how `/free/../paid` gets in. A path has one normal form here: unreserved characters bare, all else
//! percent-encoded in upper case, no dot segments, no empty segments. Where two servers might read a spelling
//! differently (encoded separators, backslashes, control bytes, dot segments with parameters) there is no normal form,
//! and the request is refused.

use std::borrow::Cow;

/// Why a path has no normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// It doesn't start with a slash.
    #[error("the path does not start with `/`")]
    NotAbsolute,
    /// A percent sign without two hexadecimal digits behind it.
    #[error("the path has a `%` without two hexadecimal digits at byte {0}")]
    BadPercent(usize),
    /// `%2F` or `%5C`: some servers split there, some don't.
    #[error("the path has an encoded separator at byte {0}")]
    EncodedSeparator(usize),
    /// A backslash: some servers take it for a slash.
    #[error("the path has a backslash at byte {0}")]
    Backslash(usize),
    /// A control byte, bare or encoded.
    #[error("the path has a control byte at byte {0}")]
    Control(usize),
    /// `..;x` or `.;x`: some servers drop the parameter and climb.
    #[error("the path has a dot segment with parameters")]
    DottedParameters,
    /// A question mark or hash: that is a whole target, not its path.
    #[error("the path has a `?` or `#` at byte {0}")]
    NotOnlyAPath(usize),
    /// Spelled out in normal form, with its query, it is longer than a request target can be.
    #[error("the path is too long once each character is in its normal spelling")]
    TooLong,
    /// Found by a front door: as other servers read the path, it belongs to another service.
    #[error("the path belongs to another service for servers that drop parameters or decode more of it")]
    TwoServices,
}

/// The normal form of a path (without query), or why it has none. Normal forms are left as they are, unallocated.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    if is_plain(path) {
        return Ok(Cow::Borrowed(path));
    }
    let spelled = respell(path.as_bytes())?;
    let walked = walk(&spelled)?;
    Ok(if walked == path { Cow::Borrowed(path) } else { Cow::Owned(walked) })
}

/// Whether two spellings differ only in the case of their percent-encodings, which no server tells apart.
pub(crate) fn same_but_for_hex_case(normal: &str, raw: &str) -> bool {
    normal.len() == raw.len() && {
        let mut hex_left = 0_u8;
        normal.bytes().zip(raw.bytes()).all(|(n, r)| {
            let in_hex = hex_left > 0;
            hex_left = if n == b'%' { 2 } else { hex_left.saturating_sub(1) };
            n == r || (in_hex && n.eq_ignore_ascii_case(&r))
        })
    }
}

/// The common case, decided in one pass: nothing encoded, no dots after slashes, no empty segments.
fn is_plain(path: &str) -> bool {
    let mut after_slash = false;
    path.bytes().all(|byte| {
        let plain = is_bare(byte) && !(after_slash && (byte == b'/' || byte == b'.'));
        after_slash = byte == b'/';
        plain
    })
}

/// Spells every character in the one way: bare or percent-encoded in upper case.
fn respell(path: &[u8]) -> Result<String, PathError> {
    let mut spelled = String::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        let (byte, encoded) = match path[at] {
            b'%' => (decode(path, at).ok_or(PathError::BadPercent(at))?, true),
            byte => (byte, false),
        };
        match byte {
            0..=0x1f | 0x7f => return Err(PathError::Control(at)),
            b'/' | b'\\' if encoded => return Err(PathError::EncodedSeparator(at)),
            b'\\' => return Err(PathError::Backslash(at)),
            b'?' | b'#' if !encoded => return Err(PathError::NotOnlyAPath(at)),
            // An encoded reserved character means something else than the bare one, so it stays encoded.
            _ if is_unreserved(byte) || (!encoded && is_bare(byte)) => spelled.push(char::from(byte)),
            _ => encode(&mut spelled, byte),
        }
        at += if encoded { 3 } else { 1 };
    }
    Ok(spelled)
}

/// Removes dot segments and empty segments; climbing above the root stays at the root, as RFC 3986 has it.
fn walk(spelled: &str) -> Result<String, PathError> {
    let mut segments: Vec<&str> = Vec::new();
    // Whether the last segment was a name, so that the path doesn't end with a slash.
    let mut named = false;
    for segment in spelled.split('/').skip(1) {
        named = false;
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            _ if has_dotted_parameters(segment) => return Err(PathError::DottedParameters),
            name => {
                segments.push(name);
                named = true;
            }
        }
    }
    let mut walked = String::with_capacity(spelled.len());
    for segment in &segments {
        walked.push('/');
        walked.push_str(segment);
    }
    if !named {
        walked.push('/');
    }
    Ok(walked)
}

fn has_dotted_parameters(segment: &str) -> bool {
    let rest = segment.trim_start_matches('.');
    (1..=2).contains(&(segment.len() - rest.len())) && (rest.starts_with(';') || rest.starts_with("%3B"))
}

fn decode(path: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| char::from(*path.get(at)?).to_digit(16);
    u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok()
}

fn encode(spelled: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    spelled.push('%');
    spelled.push(char::from(DIGITS[usize::from(byte >> 4)]));
    spelled.push(char::from(DIGITS[usize::from(byte & 15)]));
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What RFC 3986 lets stand bare in a path.
fn is_bare(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'/' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(path: &str, want: &str) {
        let got = match normalise(path) {
            Ok(normal) => normal.into_owned(),
            Err(error) => format!("refused: {error}"),
        };
        assert_eq!(got, want, "{path:?}");
    }

    #[test]
    fn a_normal_path_is_left_alone_without_a_copy() {
        for path in
            ["/", "/a", "/a/", "/a.b/..c/d..", "/a;v=1/b", "/a%2Cb", "/caf%C3%A9", "/...", "/a/.hidden"]
        {
            check(path, path);
            assert!(matches!(normalise(path), Ok(Cow::Borrowed(_))), "{path}");
        }
    }

    #[test]
    fn dot_segments_are_walked_in_every_spelling() {
        for path in [
            "/free/../paid",
            "/free/%2e%2e/paid",
            "/free/%2E./paid",
            "/free/.%2e/paid",
            "/./paid",
            "/%2e/paid",
            "/../paid",
            "/../../paid",
            "/free/x/../../paid",
            "//paid",
            "///./paid",
            "/free/..//paid",
        ] {
            check(path, "/paid");
        }
    }

    #[test]
    fn a_path_that_ends_in_a_dot_segment_ends_in_a_slash() {
        check("/a/.", "/a/");
        check("/a/..", "/");
        check("/a//", "/a/");
        check("/a/b/..", "/a/");
        check("/..", "/");
    }

    #[test]
    fn every_character_has_one_spelling() {
        check("/%61%7E%2d", "/a~-");
        check("/%c3%a9", "/%C3%A9");
        check("/é", "/%C3%A9");
        check("/a%2cb", "/a%2Cb");
        check("/a b", "/a%20b");
        check("/\"{|}<>^`", "/%22%7B%7C%7D%3C%3E%5E%60");
        check("/%3f%23%25", "/%3F%23%25");
        check("/%252e%252e/x", "/%252e%252e/x");
    }

    #[test]
    fn a_spelling_that_servers_read_differently_is_refused() {
        check("/a%2fb", "refused: the path has an encoded separator at byte 2");
        check("/a%2Fb", "refused: the path has an encoded separator at byte 2");
        check("/a%5cb", "refused: the path has an encoded separator at byte 2");
        check("/a\\b", "refused: the path has a backslash at byte 2");
        check("/a%00", "refused: the path has a control byte at byte 2");
        check("/a%0d%0aX: y", "refused: the path has a control byte at byte 2");
        check("/a\u{7f}", "refused: the path has a control byte at byte 2");
        check("/a\tb", "refused: the path has a control byte at byte 2");
        check("/%", "refused: the path has a `%` without two hexadecimal digits at byte 1");
        check("/%4", "refused: the path has a `%` without two hexadecimal digits at byte 1");
        check("/%zz", "refused: the path has a `%` without two hexadecimal digits at byte 1");
        check("/%é", "refused: the path has a `%` without two hexadecimal digits at byte 1");
        check("/free/..;/paid", "refused: the path has a dot segment with parameters");
        check("/free/.;x=1/paid", "refused: the path has a dot segment with parameters");
        check("/free/%2e%2e%3b/paid", "refused: the path has a dot segment with parameters");
        check("/a?b", "refused: the path has a `?` or `#` at byte 2");
        check("/a#b", "refused: the path has a `?` or `#` at byte 2");
        for path in ["", "*", "a/b", "http://h/a", "%2Fa"] {
            check(path, "refused: the path does not start with `/`");
        }
    }

    #[test]
    fn only_the_case_of_percent_encodings_may_differ() {
        assert!(same_but_for_hex_case("/%C3%A9a", "/%c3%a9a"));
        assert!(same_but_for_hex_case("/a", "/a"));
        assert!(!same_but_for_hex_case("/a", "/A"));
        assert!(!same_but_for_hex_case("/%C3%A9a", "/%c3%a9A"));
        assert!(!same_but_for_hex_case("/free", "/%66ree"));
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing_more(
            path in proptest::collection::vec(
                proptest::sample::select(vec!["/", ".", "..", "%2e", "%2E", "%25", "a", "é", ";", "%3b", "%41", "\\", "*", " "]),
                0..12,
            )
        ) {
            let path = format!("/{}", path.concat());
            if let Ok(normal) = normalise(&path) {
                prop_assert_eq!(normalise(&normal), Ok(normal.clone()));
                prop_assert!(!normal.contains("//") && !normal.contains("/../") && !normal.contains("/./"));
                prop_assert!(!normal.ends_with("/..") && !normal.ends_with("/."));
                prop_assert!(normal.parse::<http::uri::PathAndQuery>().is_ok());
            }
        }

        #[test]
        fn no_path_makes_it_panic(path in "\\PC*") {
            let _ = normalise(&format!("/{path}"));
        }
    }
}
