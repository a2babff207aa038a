//! The header with which a proxy in front of us says whose connection it hands over: PROXY protocol, versions 1 and 2.
//!
//! Strict, since whatever is believed here is believed everywhere: what is not exactly as the specification has it closes
//! the connection. Nothing after the header is read, so that TLS or HTTP begin where they should. Whether the other side may
//! say such a thing at all has been decided before (`guests.rs`). Extras (TLVs) are skipped: none of them decides anything.
//!
//! Ours and not one of the crates there are: they parse a buffer, and somebody has to fill it without reading too far; that
//! is most of the work, and what is left is shorter than the code to call them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use tokio::net::TcpStream;

/// The longest header that is read: a version 2 header of the length that every receiver has to take, which is longer than
/// any of version 1.
const HEADER_MAX: usize = 536;
const V1_MAX: usize = 107;
const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Up to the length of the rest.
const V2_FIXED: usize = 16;

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The proxy hands over the connection of this client.
    Client(IpAddr),
    /// The proxy speaks for itself, as in a health check, or doesn't know.
    Proxy,
}

/// Why a header isn't taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY header, or a malformed one: {0}")]
pub(super) struct Malformed(&'static str);

/// Reads the header and nothing beyond it.
pub(super) async fn read(socket: &TcpStream) -> io::Result<Source> {
    let mut header = [0; HEADER_MAX];
    let mut taken = 0;
    loop {
        // Only looked at, since something else may stand behind it.
        let seen = taken + socket.peek(&mut header[taken..]).await?;
        if seen == taken {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = end(&header[..seen]).map_err(io::Error::other)?;
        let ours = end.map_or(seen, |end| end.min(seen));
        while taken < ours {
            match socket.try_read(&mut header[taken..ours]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => taken += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
                Err(error) => return Err(error),
            }
        }
        if end == Some(taken) {
            return parse(&header[..taken]).map_err(io::Error::other);
        }
    }
}

/// Where the header ends that begins like this, as soon as that can be said.
fn end(start: &[u8]) -> Result<Option<usize>, Malformed> {
    let begins = |whole: &[u8]| {
        let length = whole.len().min(start.len());
        whole[..length] == start[..length]
    };
    if begins(V2_START) {
        let Some(length) = start.get(V2_FIXED - 2..V2_FIXED) else { return Ok(None) };
        let length = V2_FIXED + usize::from(u16::from_be_bytes([length[0], length[1]]));
        return if length <= HEADER_MAX { Ok(Some(length)) } else { Err(Malformed("it is too long")) };
    }
    if !begins(V1_START) {
        return Err(Malformed("it begins like neither version"));
    }
    let line = &start[..start.len().min(V1_MAX)];
    match line.windows(2).position(|pair| pair == b"\r\n") {
        Some(at) => Ok(Some(at + 2)),
        None if start.len() >= V1_MAX => Err(Malformed("the line is too long")),
        None => Ok(None),
    }
}

/// Reads a whole header.
fn parse(header: &[u8]) -> Result<Source, Malformed> {
    match header.strip_prefix(V2_START) {
        Some(rest) => parse_v2(rest),
        None => parse_v1(header),
    }
}

fn parse_v1(line: &[u8]) -> Result<Source, Malformed> {
    let malformed = Malformed("the line isn't one of version 1");
    let text = line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok()).ok_or(malformed)?;
    let mut words = text.split(' ');
    if words.next() != Some("PROXY") {
        return Err(malformed);
    }
    let is_v4 = match words.next() {
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => return Ok(Source::Proxy),
        Some("TCP4") => true,
        Some("TCP6") => false,
        _ => return Err(malformed),
    };
    let mut address = || {
        let ip: IpAddr = words.next()?.parse().ok()?;
        (ip.is_ipv4() == is_v4).then_some(ip)
    };
    let (source, _destination) = address().zip(address()).ok_or(malformed)?;
    let mut port = || {
        let port = words.next()?;
        let is_plain =
            port.bytes().all(|byte| byte.is_ascii_digit()) && (port == "0" || !port.starts_with('0'));
        port.parse::<u16>().ok().filter(|_| is_plain)
    };
    port().zip(port()).ok_or(malformed)?;
    match words.next() {
        None => Ok(Source::Client(source.to_canonical())),
        Some(_) => Err(malformed),
    }
}

/// What follows the signature. The lengths agree: `end` has seen to it.
fn parse_v2(rest: &[u8]) -> Result<Source, Malformed> {
    let [version_and_command, family, _, _, addresses @ ..] = rest else {
        return Err(Malformed("it is cut off"));
    };
    let is_local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed("it has another version, or an unknown command")),
    };
    let source = match family {
        // TCP over IPv4: source, destination, two ports.
        0x11 => addresses
            .first_chunk::<12>()
            .and_then(|all| all.first_chunk::<4>())
            .map(|ip| Ipv4Addr::from(*ip).into()),
        // TCP over IPv6, the same.
        0x21 => addresses
            .first_chunk::<36>()
            .and_then(|all| all.first_chunk::<16>())
            .map(|ip| Ipv6Addr::from(*ip).into()),
        // Nothing is said, or a socket on the proxy's own machine.
        0x00 | 0x31 => return Ok(Source::Proxy),
        _ if is_local => None,
        _ => return Err(Malformed("it is not about TCP")),
    };
    match source {
        _ if is_local => Ok(Source::Proxy),
        Some(ip) => Ok(Source::Client(IpAddr::to_canonical(&ip))),
        None => Err(Malformed("its addresses are cut off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [&V2_START[..], &[command, family], &length, addresses].concat()
    }

    /// As it is read from a socket, of which all or only the beginning is there.
    fn judge(bytes: &[u8]) -> Result<Option<(Source, usize)>, Malformed> {
        match end(bytes)? {
            Some(end) if end <= bytes.len() => Ok(Some((parse(&bytes[..end])?, end))),
            _ => Ok(None),
        }
    }

    #[track_caller]
    fn check(header: &[u8], want: Source) {
        let followed = [header, b"\x16\x03\x01GET / HTTP/1.1\r\n\r\n"].concat();
        assert_eq!(judge(&followed), Ok(Some((want, header.len()))), "{header:?}");
        // Whatever part of it has arrived, it is neither taken nor refused early.
        for length in 1..header.len() {
            assert_eq!(judge(&header[..length]), Ok(None), "{:?}", &header[..length]);
        }
    }

    fn client(ip: &str) -> Source {
        Source::Client(ip.parse().unwrap())
    }

    #[test]
    fn a_line_of_version_1_names_the_client() {
        check(b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", client("192.0.2.1"));
        check(b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", client("2001:db8::1"));
        check(b"PROXY TCP6 ::ffff:192.0.2.1 ::1 0 65535\r\n", client("192.0.2.1"));
        check(b"PROXY UNKNOWN\r\n", Source::Proxy);
        check(b"PROXY UNKNOWN ffff::1 what ever this says\r\n", Source::Proxy);
        let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest.len(), V1_MAX);
        check(longest.as_bytes(), Source::Proxy);
    }

    #[test]
    fn a_header_of_version_2_names_the_client() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb];
        check(&v2(0x21, 0x11, &v4), client("192.0.2.1"));
        check(&v2(0x21, 0x11, &[&v4[..], b"\x04\0\x03abc"].concat()), client("192.0.2.1"));
        let mut v6 = [0; 36];
        v6[..2].copy_from_slice(&[0x20, 1]);
        v6[15] = 9;
        check(&v2(0x21, 0x21, &v6), client("2001::9"));
        check(&v2(0x20, 0x11, &v4), Source::Proxy);
        check(&v2(0x20, 0x00, b""), Source::Proxy);
        check(&v2(0x21, 0x00, b"anything"), Source::Proxy);
        check(&v2(0x21, 0x31, &[0; 216]), Source::Proxy);
        check(&v2(0x21, 0x11, &[&v4[..], &[0; HEADER_MAX - V2_FIXED - 12]].concat()), client("192.0.2.1"));
    }

    #[test]
    fn anything_else_is_refused() {
        let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_MAX));
        for header in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"\x16\x03\x01\x02\x00",
            b"proxy TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            b"PROXY\r\n",
            b"PROXY \r\n",
            b"PROXY TCP5 192.0.2.1 198.51.100.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2 3\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2 \r\n",
            b"PROXY TCP4  192.0.2.1 198.51.100.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 +1 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 01 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 65536\r\n",
            b"PROXY TCP4 192.0.2.01 198.51.100.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 198.51.100.1 1 2\r\n",
            b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            b"PROXY TCP4 \xff 198.51.100.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n\r\n",
            too_long.as_bytes(),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x12, &[0; 12]),
            &v2(0x21, 0x22, &[0; 36]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x21, 0x41, &[0; 36]),
            &v2(0x21, 0x11, &[0; HEADER_MAX - V2_FIXED + 1]),
        ] {
            assert!(judge(header).is_err(), "{:?}", String::from_utf8_lossy(header));
        }
    }

    #[test]
    fn no_header_that_was_tampered_with_does_harm() {
        let headers = [
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec(),
            v2(0x21, 0x11, &[7; 12]),
            v2(0x21, 0x21, &[7; 40]),
        ];
        for header in &headers {
            for at in 0..header.len() {
                for byte in 0..=255 {
                    let mut changed = header.clone();
                    changed[at] = byte;
                    if let Ok(Some((_, end))) = judge(&changed) {
                        assert!(end <= changed.len());
                    }
                    changed.truncate(at);
                    assert_ne!(judge(&changed).map(|judged| judged.is_some()), Ok(true));
                }
            }
        }
    }
}
