//! Who the client is, and how the upstream is told.
//!
//! Only proxies that the configuration names are believed, and of what they say only the part that they can know: the
//! list is read from its end, up to the first address that isn't one of them.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED};
use ipnet::IpNet;

use super::Peer;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Who sent a request.
pub(super) struct Client {
    pub(super) ip: IpAddr,
    /// It came through a proxy that may speak for it.
    pub(super) is_vouched_for: bool,
}

/// Who sent a request, as far as trusted proxies say.
pub(super) fn client(peer: &Peer, headers: &HeaderMap, trusted: &[IpNet]) -> Client {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    if !is_trusted(&peer.ip) {
        return Client { ip: peer.ip, is_vouched_for: false };
    }
    let mut ip = peer.ip;
    for line in headers.get_all(FOR).iter().rev() {
        for said in line.as_bytes().rsplit(|byte| *byte == b',') {
            // Whatever stands before something unreadable wasn't vouched for by anybody we know.
            let Some(address) = address(said) else { return Client { ip, is_vouched_for: true } };
            ip = address;
            if !is_trusted(&ip) {
                return Client { ip, is_vouched_for: true };
            }
        }
    }
    Client { ip, is_vouched_for: true }
}

fn address(said: &[u8]) -> Option<IpAddr> {
    let said = std::str::from_utf8(said.trim_ascii()).ok()?;
    let bare = said.strip_prefix('[').and_then(|said| said.strip_suffix(']')).unwrap_or(said);
    let ip = bare.parse().ok().or_else(|| said.parse::<SocketAddr>().ok().map(|address| address.ip()))?;
    Some(ip.to_canonical())
}

/// Tells the upstream who asks for what. What a trusted proxy has said stays; everything else has been removed before.
pub(super) fn set(headers: &mut HeaderMap, client: &Client, peer: &Peer, host: HeaderValue) {
    let proto = if peer.is_tls { "https" } else { "http" };
    let ours = match peer.text.to_str() {
        Ok(text) if client.ip == peer.ip || headers.contains_key(FORWARDED) => {
            forwarded(&peer.ip, text, &host, proto)
        }
        _ => forwarded(&client.ip, &client.ip.to_string(), &host, proto),
    };
    append(headers, FORWARDED, ours);
    append(headers, FOR, peer.text.clone());
    headers.entry(PROTO).or_insert(HeaderValue::from_static(proto));
    if !host.is_empty() {
        headers.entry(HOST).or_insert(host);
    }
}

/// RFC 7239: an IPv6 address stands in brackets and quotes, a host with its port in quotes.
fn forwarded(ip: &IpAddr, text: &str, host: &HeaderValue, proto: &str) -> HeaderValue {
    let host = host.to_str().unwrap_or_default();
    // Every request gets one, and formatting would cost several times what joining does.
    let [before, after] = if ip.is_ipv4() { ["for=", ";host=\""] } else { ["for=\"[", "]\";host=\""] };
    let text = [before, text, after, host, "\";proto=", proto].concat();
    HeaderValue::try_from(text).expect("addresses and a host that was checked are visible ASCII")
}

/// Adds to a list, in one line however many there were.
fn append(headers: &mut HeaderMap, name: HeaderName, ours: HeaderValue) {
    let merged = if headers.contains_key(&name) {
        let mut lines: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
        lines.push(ours.as_bytes());
        HeaderValue::from_bytes(&lines.join(&b", "[..])).unwrap_or(ours)
    } else {
        ours
    };
    headers.insert(name, merged);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(ip: &str) -> Peer {
        Peer { ip: ip.parse().unwrap(), text: HeaderValue::from_str(ip).unwrap(), is_tls: true }
    }

    fn headers(lines: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[track_caller]
    fn check(from: &str, said: &[&'static str], want: &str) {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let lines: Vec<_> = said.iter().map(|line| (FOR, *line)).collect();
        assert_eq!(client(&peer(from), &headers(&lines), &trusted).ip.to_string(), want);
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        check("9.9.9.9", &["1.2.3.4"], "9.9.9.9");
        check("127.0.0.1", &["1.2.3.4"], "127.0.0.1");
        check("10.0.0.1", &["1.2.3.4"], "1.2.3.4");
        check("10.0.0.1", &[], "10.0.0.1");
    }

    #[test]
    fn what_the_client_put_in_front_is_not_believed() {
        check("10.0.0.1", &["6.6.6.6, 1.2.3.4"], "1.2.3.4");
        check("10.0.0.1", &["6.6.6.6", "1.2.3.4, 10.0.0.2"], "1.2.3.4");
        check("10.0.0.1", &["1.2.3.4, garbage, 10.0.0.2"], "10.0.0.2");
        check("10.0.0.1", &["10.0.0.3"], "10.0.0.3");
    }

    #[test]
    fn addresses_are_read_in_all_their_forms() {
        check("::1", &["1.2.3.4:5678"], "1.2.3.4");
        check("::1", &["[2001:db8::1]:443"], "2001:db8::1");
        check("::1", &["[2001:db8::1]"], "2001:db8::1");
        check("::1", &["::ffff:1.2.3.4"], "1.2.3.4");
    }

    #[test]
    fn the_upstream_is_told_once_in_each_way() {
        let mut sent = HeaderMap::new();
        let who = Client { ip: "2001:db8::1".parse().unwrap(), is_vouched_for: false };
        set(&mut sent, &who, &peer("2001:db8::1"), HeaderValue::from_static("a.org:8443"));
        assert_eq!(sent[FOR], "2001:db8::1");
        assert_eq!(sent[PROTO], "https");
        assert_eq!(sent[HOST], "a.org:8443");
        assert_eq!(sent[FORWARDED], "for=\"[2001:db8::1]\";host=\"a.org:8443\";proto=https");
    }

    #[test]
    fn what_a_trusted_proxy_said_is_continued() {
        let mut sent = headers(&[(FOR, "1.2.3.4"), (PROTO, "http"), (HOST, "public.org")]);
        let who = Client { ip: "1.2.3.4".parse().unwrap(), is_vouched_for: true };
        set(&mut sent, &who, &peer("10.0.0.1"), HeaderValue::from_static("inner"));
        assert_eq!(sent[FOR], "1.2.3.4, 10.0.0.1");
        assert_eq!(sent[PROTO], "http");
        assert_eq!(sent[HOST], "public.org");
        assert_eq!(sent[FORWARDED], "for=1.2.3.4;host=\"inner\";proto=https");
    }
}
