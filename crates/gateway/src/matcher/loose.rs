//! How a path is read by the most careless of servers.
//!
//! Upstreams decode twice, drop parameters, take `\` for `/`, cut off final dots and spaces, let overlong UTF-8 pass. We
//! do none of that, and so must know when it would make a difference: see `Services::find_clearly`.

/// How a path (normalised) reads there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Loose {
    /// As it stands.
    Same,
    /// As this one, in normal form.
    Other(String),
    /// As one that climbs, and then nobody knows from where; or as one that is cut up in ways that nobody can foresee.
    Climbs,
}

/// Bytes of a path that are read as another one by somebody: overlong UTF-8, and what is folded into ASCII.
const LOOKALIKES: [(&[u8], u8); 13] = [
    (b"\xc0\xae", b'.'),
    (b"\xe0\x80\xae", b'.'),
    (b"\xf0\x80\x80\xae", b'.'),
    (b"\xef\xbc\x8e", b'.'),
    (b"\xc0\xaf", b'/'),
    (b"\xe0\x80\xaf", b'/'),
    (b"\xf0\x80\x80\xaf", b'/'),
    (b"\xef\xbc\x8f", b'/'),
    (b"\xe2\x88\x95", b'/'),
    (b"\xe2\x81\x84", b'/'),
    (b"\xc1\x9c", b'\\'),
    (b"\xe0\x81\x9c", b'\\'),
    (b"\xef\xbc\xbc", b'\\'),
];

/// Decoding more often than this is nobody's habit, and a path of nothing but `%25` must not cost more.
const ROUNDS: usize = 3;

impl Loose {
    /// Reads a path so.
    pub(crate) fn read(path: &str) -> Self {
        if !is_odd(path) {
            return Self::Same;
        }
        let mut bytes = Vec::with_capacity(path.len());
        for segment in path.split('/').skip(1) {
            let segment = plainly(segment);
            if has_a_parameter_with_an_end(&segment) {
                return Self::Climbs;
            }
            bytes.push(b'/');
            bytes.extend(segment);
        }
        // Decoded, these end a path, a target or a C string; and for others nothing.
        let end = bytes.iter().position(|byte| matches!(byte, b'?' | b'#' | 0)).unwrap_or(bytes.len());
        if names(&bytes[end..]).chain(names(&bytes[..end])).any(climbs) {
            return Self::Climbs;
        }
        let mut loose = String::with_capacity(path.len());
        let mut is_last_named = false;
        for name in names(&bytes[1..end]) {
            let name = without_tail(name);
            is_last_named = !name.is_empty();
            if is_last_named {
                loose.push('/');
                name.iter().for_each(|byte| spell(&mut loose, *byte));
            }
        }
        if !is_last_named {
            loose.push('/');
        }
        if loose == path { Self::Same } else { Self::Other(loose) }
    }
}

/// Whether there is anything in a path (normalised) to read in another way.
pub(crate) fn is_odd(path: &str) -> bool {
    let mut last = 0;
    let is_odd = path.bytes().any(|byte| {
        let is_odd = matches!(byte, b'%' | b';') || (byte == b'/' && last == b'.');
        last = byte;
        is_odd
    });
    is_odd || last == b'.'
}

/// One round of percent-decoding; `%25` in front of two digits is taken through, so that chains of it take one round.
fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let mut next = at + 1;
        if bytes[at] == b'%' {
            while bytes[next..].starts_with(b"25") {
                next += 2;
            }
            let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
            if let (Some(high), Some(low)) = (digit(next), digit(next + 1)) {
                decoded.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at = next + 2;
                continue;
            }
        }
        decoded.push(bytes[at]);
        at = next;
    }
    decoded
}

fn replace_lookalikes(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let found = LOOKALIKES.iter().find(|(looks, _)| bytes[at..].starts_with(looks));
        let (length, byte) = found.map_or((1, bytes[at]), |(looks, byte)| (looks.len(), *byte));
        plain.push(byte);
        at += length;
    }
    plain
}

/// What is read of a segment once it is decoded, and folded, as often as anybody does.
fn plainly(segment: &str) -> Vec<u8> {
    let mut bytes = segment.as_bytes().to_vec();
    for _ in 0..ROUNDS {
        let decoded = decode(&bytes);
        if decoded == bytes {
            break;
        }
        bytes = decoded;
    }
    replace_lookalikes(&bytes)
}

/// Whether a segment has a parameter that ends sooner for those who decode it before they drop it than for those who drop it
/// first: what is behind it would be a part of the parameter for the ones, and of the path for the others.
fn has_a_parameter_with_an_end(segment: &[u8]) -> bool {
    let parameter = segment.iter().position(|byte| *byte == b';').map_or(&[][..], |at| &segment[at..]);
    parameter.iter().any(|byte| matches!(byte, b'/' | b'\\' | b'?' | b'#' | 0))
}

/// The names in a path, without their parameters.
fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| matches!(byte, b'/' | b'\\'))
        .map(|segment| segment.split(|byte| *byte == b';').next().unwrap_or_default())
}

/// Whether a name stands for the place above, also for those who cut off final spaces first.
fn climbs(name: &[u8]) -> bool {
    name.trim_ascii_end() == b".."
}

/// Without the dots and spaces that some file systems drop from the end of a name.
fn without_tail(name: &[u8]) -> &[u8] {
    let kept = name.iter().rposition(|byte| !matches!(byte, b'.' | b' ')).map_or(0, |at| at + 1);
    // What consists of nothing else is a name of its own, but for the dot that stands for "here".
    if kept == 0 && name.trim_ascii_end() != b"." { name } else { &name[..kept] }
}

/// In the spelling of `farebox_paywall::normalise`.
fn spell(loose: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte) {
        loose.push(char::from(byte));
    } else {
        loose.push('%');
        loose.push(char::from(DIGITS[usize::from(byte >> 4)]));
        loose.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, want: &str) {
        let got = match Loose::read(path) {
            Loose::Same => path.to_owned(),
            Loose::Other(loose) => {
                assert_eq!(farebox_paywall::normalise(&loose).unwrap(), loose, "{path}");
                loose
            }
            Loose::Climbs => "climbs".to_owned(),
        };
        assert_eq!(got, want, "{path}");
    }

    #[test]
    fn a_path_without_oddities_is_read_as_it_stands() {
        for path in
            ["/", "/a", "/a/", "/a.b/.c", "/...", "/a%20b", "/caf%C3%A9", "/100%25", "/A/b", "/a%22", "/a+b"]
        {
            check(path, path);
        }
    }

    #[test]
    fn whatever_somebody_decodes_or_drops_is_decoded_and_dropped() {
        check("/a%2Cb%40", "/a,b@");
        check("/dear;x=1/y;z", "/dear/y");
        check("/dear%3Bx", "/dear");
        check("/;a/dear", "/dear");
        check("/dear.", "/dear");
        check("/dear./x", "/dear/x");
        check("/dear%20/x%20.", "/dear/x");
        check("/dear%3Fx", "/dear");
        check("/dear%23x", "/dear");
        check("/dear%2500.png", "/dear");
        check("/dear%252Fx", "/dear/x");
        check("/dear%255Cx", "/dear/x");
        check("/%2564ear", "/dear");
        check("/%252564ear", "/dear");
        check("/dear%C0%AFx", "/dear/x");
        check("/dear%E2%88%95x", "/dear/x");
        check("/a/%252E/b", "/a/b");
        check("/a/%25252F", "/a/");
    }

    #[test]
    fn what_climbs_there_has_no_reading() {
        for path in [
            "/a/%252e%252e/b",
            "/a/%252E./b",
            "/a/.%252e",
            "/a/%25252e%25252e/b",
            "/a/%C0%AE%C0%AE/b",
            "/a/%C0%AE%C0%AE%C0%AFb",
            "/a/%EF%BC%8E%EF%BC%8E/b",
            "/a/..%252fb",
            "/a/..%255cb",
            "/a/..%C1%9Cb",
            "/a/x%252f..%252fb",
            "/a/..%253bx/b",
            "/a/..%2500",
        ] {
            check(path, "climbs");
        }
    }

    #[test]
    fn what_climbs_for_those_who_cut_nothing_off_climbs() {
        for path in [
            "/a/x%23/%252e%252e/%252e%252e/b",
            "/a/x%3F/%252e%252e/b",
            "/a/x%2500/%252e./b",
            "/a/..%20/b",
            "/a/..%2520%2520",
        ] {
            check(path, "climbs");
        }
        check("/.%20/dear", "/dear");
        check("/%20../dear", "/%20../dear");
    }

    #[test]
    fn a_parameter_whose_end_depends_on_who_looks_has_no_reading() {
        for path in [
            "/a;%252Fx/b",
            "/a;%255Cx/b",
            "/a%3B%252Fx/b",
            "/a;%E2%88%95x/b",
            "/a;%23/b",
            "/a;x%3F/b",
            "/a;%2500/b",
        ] {
            check(path, "climbs");
        }
        check("/a%252F;x/b", "/a/b");
    }

    #[test]
    fn a_path_of_percents_costs_little() {
        check(&format!("/{}2e", "%25".to_owned() + &"25".repeat(30_000)), "/");
        check(&format!("/{}", "%25".repeat(20_000)), &format!("/{}", "%25".repeat(20_000)));
    }
}
