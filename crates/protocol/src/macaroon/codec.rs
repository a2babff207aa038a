//! The macaroon's binary forms: V2 read and written, V1 read.
//!
//! Everything is refused that this module wouldn't write itself, but for V1: varints longer than needed, parts out of
//! order, anything behind the signature. Deployed readers ignore a tail; a token then has many spellings, and what is
//! logged, limited or revoked under one is served under another. Nothing is allocated before lengths have been checked.

use std::ops::Range;

use zeroize::Zeroizing;

use super::{CAVEATS_MAX, MACAROON_BYTES_MAX, Macaroon, MacaroonError};

pub(super) const SIGNATURE_LEN: usize = 32;

const VERSION_2: u8 = 2;
const END: u8 = 0;
const LOCATION: u8 = 1;
const IDENTIFIER: u8 = 2;
const VERIFICATION_ID: u8 = 4;
const SIGNATURE: u8 = 6;

pub(super) fn check_len(len: usize) -> Result<(), MacaroonError> {
    if len > MACAROON_BYTES_MAX { Err(MacaroonError::TooLong(len)) } else { Ok(()) }
}

/// Reads either form.
pub(super) fn read(bytes: Zeroizing<Vec<u8>>) -> Result<Macaroon, MacaroonError> {
    check_len(bytes.len())?;
    match bytes.first() {
        Some(&VERSION_2) => {
            let (identifier, caveats) = read_v2(&bytes)?;
            Ok(Macaroon { bytes, identifier, caveats })
        }
        Some(first) if first.is_ascii_hexdigit() => read_v1(&bytes),
        _ => Err(MacaroonError::Malformed(0)),
    }
}

/// Writes V2. Fails when nobody would read the result.
pub(super) fn assemble<'a>(
    location: Option<&[u8]>,
    identifier: &[u8],
    caveats: impl Iterator<Item = &'a [u8]>,
    signature: &[u8],
) -> Result<Macaroon, MacaroonError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(512));
    bytes.push(VERSION_2);
    if let Some(location) = location {
        put(&mut bytes, LOCATION, location);
    }
    let identifier = put(&mut bytes, IDENTIFIER, identifier);
    bytes.push(END);
    let mut places = Vec::new();
    for caveat in caveats {
        if places.len() == CAVEATS_MAX {
            return Err(MacaroonError::TooManyCaveats);
        }
        check_len(bytes.len() + caveat.len())?;
        places.push(put(&mut bytes, IDENTIFIER, caveat));
        bytes.push(END);
    }
    bytes.push(END);
    put(&mut bytes, SIGNATURE, signature);
    check_len(bytes.len())?;
    Ok(Macaroon { bytes, identifier, caveats: places })
}

/// The location in bytes that [`read`] or [`assemble`] has produced.
pub(super) fn location(v2: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader { bytes: v2, at: 1 };
    if !reader.skip(LOCATION) {
        return None;
    }
    reader.field().ok().map(|range| &v2[range])
}

fn put(bytes: &mut Vec<u8>, tag: u8, data: &[u8]) -> Range<usize> {
    bytes.push(tag);
    let mut length = data.len();
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).expect("less than 0x80"));
    bytes.extend_from_slice(data);
    bytes.len() - data.len()..bytes.len()
}

/// The places of the identifier and the caveats.
fn read_v2(bytes: &[u8]) -> Result<(Range<usize>, Vec<Range<usize>>), MacaroonError> {
    let mut reader = Reader { bytes, at: 1 };
    if reader.skip(LOCATION) {
        reader.field()?;
    }
    reader.expect(IDENTIFIER)?;
    let identifier = reader.field()?;
    reader.expect(END)?;
    let mut caveats = Vec::new();
    while !reader.skip(END) {
        if caveats.len() == CAVEATS_MAX {
            return Err(MacaroonError::TooManyCaveats);
        }
        if reader.peek() == Some(LOCATION) {
            // Only a third-party caveat has a place where it is discharged.
            return Err(MacaroonError::ThirdParty);
        }
        reader.expect(IDENTIFIER)?;
        let caveat = reader.field()?;
        if reader.peek() == Some(VERIFICATION_ID) {
            return Err(MacaroonError::ThirdParty);
        }
        reader.expect(END)?;
        text(&bytes[caveat.clone()], caveats.len())?;
        caveats.push(caveat);
    }
    reader.expect(SIGNATURE)?;
    let at = reader.at;
    if reader.field()?.len() != SIGNATURE_LEN {
        return Err(MacaroonError::Malformed(at));
    }
    match bytes.len() - reader.at {
        0 => Ok((identifier, caveats)),
        tail => Err(MacaroonError::TrailingBytes(tail)),
    }
}

/// V1: packets of four hexadecimal digits (the length of the whole packet), a key, a space, the value, a newline.
fn read_v1(bytes: &[u8]) -> Result<Macaroon, MacaroonError> {
    let mut reader = Reader { bytes, at: 0 };
    let location = reader.packet(b"location ")?;
    let identifier = reader.packet(b"identifier ")?;
    let mut caveats = Vec::new();
    while reader.packet_starts(b"cid ") {
        if caveats.len() == CAVEATS_MAX {
            return Err(MacaroonError::TooManyCaveats);
        }
        let caveat = reader.packet(b"cid ")?;
        if reader.packet_starts(b"vid ") || reader.packet_starts(b"cl ") {
            return Err(MacaroonError::ThirdParty);
        }
        text(caveat, caveats.len())?;
        caveats.push(caveat);
    }
    let at = reader.at;
    let signature = reader.packet(b"signature ")?;
    if signature.len() != SIGNATURE_LEN {
        return Err(MacaroonError::Malformed(at));
    }
    match bytes.len() - reader.at {
        0 => assemble(Some(location), identifier, caveats.into_iter(), signature),
        tail => Err(MacaroonError::TrailingBytes(tail)),
    }
}

fn text(caveat: &[u8], index: usize) -> Result<(), MacaroonError> {
    std::str::from_utf8(caveat).map(drop).map_err(|_| MacaroonError::NotText(index))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip(&mut self, tag: u8) -> bool {
        let found = self.peek() == Some(tag);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, tag: u8) -> Result<(), MacaroonError> {
        if self.skip(tag) { Ok(()) } else { Err(MacaroonError::Malformed(self.at)) }
    }

    /// The place of a V2 field's data: a LEB128 length of the shortest form, then that many bytes.
    fn field(&mut self) -> Result<Range<usize>, MacaroonError> {
        let start = self.at;
        let malformed = MacaroonError::Malformed(start);
        let mut length = 0;
        // Two bytes say up to 16383, four times what may follow.
        for shift in [0, 7] {
            let byte = self.peek().ok_or(malformed)?;
            self.at += 1;
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(malformed);
                }
                let end = self.at + length;
                if end > self.bytes.len() {
                    return Err(malformed);
                }
                self.at = end;
                return Ok(end - length..end);
            }
        }
        Err(malformed)
    }

    /// The V1 packet that begins here, without its length.
    fn whole_packet(&self) -> Option<&'a [u8]> {
        let digits = std::str::from_utf8(self.bytes.get(self.at..self.at + 4)?).ok()?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let length = usize::from_str_radix(digits, 16).ok()?;
        self.bytes.get(self.at + 4..self.at.checked_add(length)?)
    }

    fn packet_starts(&self, key: &[u8]) -> bool {
        self.whole_packet().is_some_and(|packet| packet.starts_with(key))
    }

    fn packet(&mut self, key: &[u8]) -> Result<&'a [u8], MacaroonError> {
        let malformed = MacaroonError::Malformed(self.at);
        let packet = self.whole_packet().ok_or(malformed)?;
        let value = packet.strip_prefix(key).and_then(|rest| rest.strip_suffix(b"\n")).ok_or(malformed)?;
        self.at += 4 + packet.len();
        Ok(value)
    }
}
