//! Cuts a value of `Authorization` into the credentials that are in it.
//!
//! The header holds one credential by its definition, but intermediaries fold several lines into one with commas. A piece
//! between commas begins a new credential when it reads `<scheme> <something>` or is the bare name of our scheme; every
//! other piece (a parameter, the next token of a list) continues the one before.

/// A part of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment<'a> {
    /// What follows our scheme, without the space around it.
    Ours(&'a [u8]),
    /// Somebody else's, whole.
    Foreign(&'a [u8]),
}

/// The parts of a value, in order. Linear in its length.
pub(super) fn segments(value: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let value = rest?;
        let mut end = piece_end(value, 0);
        while end < value.len() && !begins(piece(value, end + 1)) {
            end = piece_end(value, end + 1);
        }
        rest = value.get(end + 1..);
        Some(segment(value[..end].trim_ascii()))
    })
}

fn segment(text: &[u8]) -> Segment<'_> {
    let (scheme, body) = split_scheme(text);
    if is_ours(scheme) { Segment::Ours(body.trim_ascii()) } else { Segment::Foreign(text) }
}

/// Where the piece that starts at `from` ends: at a comma outside of quotes, or with the value.
fn piece_end(value: &[u8], from: usize) -> usize {
    // Most values are one credential: a search for the byte costs a fraction of looking at each.
    if !value[from..].contains(&b',') {
        return value.len();
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in value.iter().enumerate().skip(from) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return at,
            _ => {}
        }
    }
    value.len()
}

fn piece(value: &[u8], from: usize) -> &[u8] {
    value[from..piece_end(value, from)].trim_ascii()
}

fn begins(piece: &[u8]) -> bool {
    let (scheme, body) = split_scheme(piece);
    let is_word = !scheme.is_empty()
        && scheme.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b));
    is_ours(scheme) || (is_word && !body.is_empty() && body[0] != b'=')
}

fn split_scheme(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    (&text[..end], text[end..].trim_ascii())
}

fn is_ours(scheme: &[u8]) -> bool {
    [&b"L402"[..], b"LSAT"].iter().any(|name| name.eq_ignore_ascii_case(scheme))
}
