//! Who the client is, and how the upstream is told.
//!
//! Only proxies that the configuration names are believed, and of what they say only the part that they can know: the
//! list is read from its end, up to the first address that isn't one of them. `X-Forwarded-For` is read, or `Forwarded`
//! (RFC 7239) where there is none. Where both are there and don't agree, `X-Forwarded-For` is the one that proxies write
//! and the other most likely the client's own: a proxy that writes only `Forwarded` must remove it.
//!
//! Nothing here depends on the scheme or host that a proxy says it was asked for; the upstream is told of both. What a proxy
//! says in one of the two ways is said in the other, too: an upstream that reads only that one would send those who came by
//! `https` there once more, or elsewhere.

use std::net::{IpAddr, SocketAddr};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{Entry, FORWARDED},
};
use ipnet::IpNet;

use super::{Peer, target::is_host};

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
    if peer.speaks_for_itself || !is_trusted(&peer.ip) {
        return Client { ip: peer.ip, is_vouched_for: false };
    }
    let mut walk = Walk { ip: peer.ip, is_trusted };
    if headers.contains_key(FOR) {
        let lines = headers.get_all(FOR).iter().rev();
        walk.back(lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')).map(address));
    } else {
        walk.back(headers.get_all(FORWARDED).iter().rev().flat_map(said_by));
    }
    Client { ip: walk.ip, is_vouched_for: true }
}

/// The way back from the connection's other end towards the client.
struct Walk<F> {
    ip: IpAddr,
    is_trusted: F,
}

impl<F: Fn(&IpAddr) -> bool> Walk<F> {
    /// Goes on as far as each hop is one that may say who was before it. Whatever stands before something unreadable
    /// (`unknown`, `_hidden`) wasn't vouched for by anybody we know.
    fn back(&mut self, hops: impl Iterator<Item = Option<IpAddr>>) {
        for hop in hops {
            let Some(ip) = hop else { return };
            self.ip = ip;
            if !(self.is_trusted)(&ip) {
                return;
            }
        }
    }
}

/// One hop, as a line of `Forwarded` tells of it; what it says twice it doesn't say.
#[derive(Default)]
struct Element<'l> {
    by_name: [Said<'l>; 3],
}

/// The names in it that are read, in their places.
const NAMES: [&str; 3] = ["for", "proto", "host"];

#[derive(Clone, Copy, Default)]
enum Said<'l> {
    #[default]
    Nothing,
    Once(&'l str),
    Twice,
}

impl<'l> Element<'l> {
    fn note(&mut self, name: &str, value: &'l str) {
        if let Some(at) = NAMES.iter().position(|known| known.eq_ignore_ascii_case(name)) {
            let said = &mut self.by_name[at];
            *said = if matches!(said, Said::Nothing) { Said::Once(value) } else { Said::Twice };
        }
    }

    fn said(&self) -> [Option<&'l str>; 3] {
        self.by_name.map(|said| if let Said::Once(value) = said { Some(value) } else { None })
    }

    fn ip(&self) -> Option<IpAddr> {
        self.said()[0].and_then(|said| address(said.as_bytes()))
    }
}

/// What a proxy has said of how the client asked, besides whose it is.
#[derive(Default)]
struct Asked {
    proto: Option<&'static str>,
    host: Option<HeaderValue>,
}

impl Asked {
    /// What can be told on: one of two schemes, and what may be a host.
    fn read(proto: Option<&str>, host: Option<&str>) -> Self {
        let proto = proto
            .and_then(|said| ["http", "https"].into_iter().find(|known| known.eq_ignore_ascii_case(said)));
        let host = host.filter(|said| is_host(said.as_bytes()));
        Self { proto, host: host.and_then(|said| HeaderValue::from_str(said).ok()) }
    }

    /// In `X-Forwarded-Proto` and `-Host`, where each is said once: of several nobody knows whose word they are.
    fn by_names(headers: &HeaderMap) -> Self {
        let one = |name: HeaderName| {
            let mut said = headers.get_all(name).iter();
            said.next().filter(|_| said.next().is_none())?.to_str().ok().map(str::trim)
        };
        Self::read(one(PROTO), one(HOST))
    }

    /// In the element of `Forwarded` that tells of this client.
    fn by_forwarded(headers: &HeaderMap, ip: IpAddr) -> Self {
        let lines = headers.get_all(FORWARDED).iter().rev();
        let mut all =
            lines.filter_map(|line| elements(line.to_str().ok()?)).flat_map(|line| line.into_iter().rev());
        let told = all.find(|element| element.ip() == Some(ip)).unwrap_or_default();
        let [_, proto, host] = told.said();
        Self::read(proto, host)
    }
}

/// The addresses in a line of `Forwarded`, the nearest first, with none for each element that doesn't tell one. A line that
/// isn't well formed tells none at all.
fn said_by(line: &HeaderValue) -> impl Iterator<Item = Option<IpAddr>> + '_ {
    let read = line.to_str().ok().and_then(elements).unwrap_or_else(|| vec![Element::default()]);
    read.into_iter().rev().map(|element| element.ip())
}

/// RFC 7239, section 4: `for=1.2.3.4;proto=https, for="[2001:db8::1]:443"`.
fn elements(line: &str) -> Option<Vec<Element<'_>>> {
    let mut hops = Vec::new();
    let mut rest = line.trim();
    let mut hop = Element::default();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            // Nothing that is read has anything in it that would be escaped.
            Some(quoted) => quoted.split_once('"').filter(|(value, _)| !value.contains('\\'))?,
            None => after.split_at(after.find([';', ',', ' ', '\t', '"']).unwrap_or(after.len())),
        };
        hop.note(name.trim(), value);
        rest = after.trim_start();
        let ends = rest.is_empty() || rest.starts_with(',');
        if !ends && !rest.starts_with(';') {
            return None;
        }
        if ends {
            hops.push(std::mem::take(&mut hop));
        }
        rest = rest.get(1..).unwrap_or_default().trim_start();
    }
    Some(hops)
}

fn address(said: &[u8]) -> Option<IpAddr> {
    let said = std::str::from_utf8(said.trim_ascii()).ok()?;
    let bare = said.strip_prefix('[').and_then(|said| said.strip_suffix(']')).unwrap_or(said);
    let ip = bare.parse().ok().or_else(|| said.parse::<SocketAddr>().ok().map(|address| address.ip()))?;
    Some(ip.to_canonical())
}

/// Tells the upstream who asks for what, where nobody spoke for the client. `ours` is of this connection and this host ([`of`]);
/// of these names there is nothing else in the headers, since what a client says of itself has been removed before.
pub(super) fn set(headers: &mut HeaderMap, peer: &Peer, host: HeaderValue, ours: HeaderValue) {
    headers.append(FORWARDED, ours);
    headers.append(FOR, peer.text.clone());
    headers.append(PROTO, HeaderValue::from_static(proto(peer)));
    if !host.is_empty() {
        headers.append(HOST, host);
    }
}

/// Tells the upstream who asks for what, going on with what a trusted proxy has said.
pub(super) fn go_on(headers: &mut HeaderMap, client: &Client, peer: &Peer, host: HeaderValue) {
    let mut ours = of(peer, &host);
    if client.ip != peer.ip && !headers.contains_key(FORWARDED) {
        // Our element is the first, and so it is about the client.
        let asked = Asked::by_names(headers);
        let (host, proto) = (asked.host.as_ref().unwrap_or(&host), asked.proto.unwrap_or(proto(peer)));
        ours = written(&client.ip, &text_of(&client.ip), host, proto);
    } else if client.ip != peer.ip && !headers.contains_key(FOR) {
        // It was `Forwarded` that told, which not every upstream reads.
        let Asked { proto, host } = Asked::by_forwarded(headers, client.ip);
        headers.insert(FOR, text_of(&client.ip));
        if let Some(proto) = proto {
            headers.entry(PROTO).or_insert(HeaderValue::from_static(proto));
        }
        if let Some(host) = host {
            headers.entry(HOST).or_insert(host);
        }
    }
    append(headers, FORWARDED, ours);
    append(headers, FOR, peer.text.clone());
    headers.entry(PROTO).or_insert(HeaderValue::from_static(proto(peer)));
    if !host.is_empty() {
        headers.entry(HOST).or_insert(host);
    }
}

/// What `Forwarded` says of a connection that asks for `host`.
pub(super) fn of(peer: &Peer, host: &HeaderValue) -> HeaderValue {
    written(&peer.ip, &peer.text, host, proto(peer))
}

fn proto(peer: &Peer) -> &'static str {
    if peer.is_tls { "https" } else { "http" }
}

fn text_of(ip: &IpAddr) -> HeaderValue {
    HeaderValue::try_from(ip.to_string()).expect("an address is digits, dots and colons")
}

/// RFC 7239: an IPv6 address stands in brackets and quotes, a host with its port in quotes.
fn written(ip: &IpAddr, text: &HeaderValue, host: &HeaderValue, proto: &str) -> HeaderValue {
    let [before, after] = if ip.is_ipv4() { ["for=", ";host=\""] } else { ["for=\"[", "]\";host=\""] };
    let [text, host] = [text, host].map(|part| part.to_str().unwrap_or_default());
    // Formatting would cost several times what joining does.
    let text = [before, text, after, host, "\";proto=", proto].concat();
    HeaderValue::try_from(text).expect("addresses and a host that was checked are visible ASCII")
}

/// Adds to a list, in one line however many there were.
fn append(headers: &mut HeaderMap, name: HeaderName, ours: HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(place) => {
            place.insert(ours);
        }
        Entry::Occupied(mut place) => {
            let mut lines: Vec<&[u8]> = place.iter().map(HeaderValue::as_bytes).collect();
            lines.push(ours.as_bytes());
            let merged = HeaderValue::from_bytes(&lines.join(&b", "[..]));
            place.insert(merged.unwrap_or(ours));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(ip: &str) -> Peer {
        Peer::new(ip.parse().unwrap(), true)
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

    #[track_caller]
    fn check_both(lines: &[(HeaderName, &'static str)], want: &str) {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let got = client(&peer("10.0.0.1"), &headers(lines), &trusted);
        assert_eq!(got.ip.to_string(), want, "{lines:?}");
    }

    #[test]
    fn forwarded_is_read_where_nothing_else_is_said() {
        for (said, want) in [
            ("for=1.2.3.4", "1.2.3.4"),
            ("For=1.2.3.4:5678;proto=https;by=203.0.113.43", "1.2.3.4"),
            ("proto=https ; for=\"1.2.3.4:99\"", "1.2.3.4"),
            ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=\"[::ffff:1.2.3.4]\"", "1.2.3.4"),
            ("for=6.6.6.6, for=1.2.3.4", "1.2.3.4"),
            ("for=6.6.6.6, for=1.2.3.4,for=10.0.0.2", "1.2.3.4"),
            ("for=10.0.0.3, for=10.0.0.2", "10.0.0.3"),
            ("host=\"a,b;for=6.6.6.6\";for=1.2.3.4", "1.2.3.4"),
        ] {
            check_both(&[(FORWARDED, said)], want);
        }
        check_both(&[(FORWARDED, "for=6.6.6.6"), (FORWARDED, "for=1.2.3.4")], "1.2.3.4");
        check_both(&[(FORWARDED, "for=1.2.3.4"), (FORWARDED, "for=10.0.0.2")], "1.2.3.4");
    }

    #[test]
    fn what_is_hidden_or_unreadable_ends_the_walk() {
        for said in [
            "for=1.2.3.4, for=unknown, for=10.0.0.2",
            "for=1.2.3.4, for=_hidden, for=10.0.0.2",
            "for=1.2.3.4, for=\"_gazonk\", for=10.0.0.2",
            "for=1.2.3.4, proto=https, for=10.0.0.2",
            "for=1.2.3.4, for=6.6.6.6;for=7.7.7.7, for=10.0.0.2",
        ] {
            check_both(&[(FORWARDED, said)], "10.0.0.2");
        }
        for said in
            ["for", "for=\"1.2.3.4", "for=1.2.3.4 x", "\"for=1.2.3.4\"", ", for=1.2.3.4 for=2.2.2.2", ""]
        {
            check_both(&[(FORWARDED, said)], "10.0.0.1");
        }
        check_both(&[(FOR, "1.2.3.4, unknown, 10.0.0.2")], "10.0.0.2");
        check_both(&[(FOR, "1.2.3.4, _hidden")], "10.0.0.1");
    }

    #[test]
    fn of_two_stories_the_one_that_proxies_write_counts() {
        check_both(&[(FOR, "1.2.3.4"), (FORWARDED, "for=1.2.3.4")], "1.2.3.4");
        check_both(&[(FOR, "1.2.3.4"), (FORWARDED, "for=6.6.6.6")], "1.2.3.4");
        check_both(&[(FOR, "garbage"), (FORWARDED, "for=6.6.6.6")], "10.0.0.1");
        check_both(&[(FOR, ""), (FORWARDED, "for=6.6.6.6")], "10.0.0.1");
    }

    #[test]
    fn what_only_forwarded_told_is_told_in_both_ways() {
        let mut sent = headers(&[(FORWARDED, "for=1.2.3.4")]);
        let who = Client { ip: "1.2.3.4".parse().unwrap(), is_vouched_for: true };
        go_on(&mut sent, &who, &peer("10.0.0.1"), HeaderValue::from_static("a"));
        assert_eq!(sent[FOR], "1.2.3.4, 10.0.0.1");
        assert_eq!(sent[FORWARDED], "for=1.2.3.4, for=10.0.0.1;host=\"a\";proto=https");
    }

    #[test]
    fn the_upstream_is_told_once_in_each_way() {
        let mut sent = HeaderMap::new();
        let (peer, host) = (peer("2001:db8::1"), HeaderValue::from_static("a.org:8443"));
        set(&mut sent, &peer, host.clone(), of(&peer, &host));
        assert_eq!(sent[FOR], "2001:db8::1");
        assert_eq!(sent[PROTO], "https");
        assert_eq!(sent[HOST], "a.org:8443");
        assert_eq!(sent[FORWARDED], "for=\"[2001:db8::1]\";host=\"a.org:8443\";proto=https");
    }

    #[test]
    fn what_a_trusted_proxy_said_is_continued() {
        let mut sent = headers(&[(FOR, "1.2.3.4"), (PROTO, "http"), (HOST, "public.org")]);
        let who = Client { ip: "1.2.3.4".parse().unwrap(), is_vouched_for: true };
        go_on(&mut sent, &who, &peer("10.0.0.1"), HeaderValue::from_static("inner"));
        assert_eq!(sent[FOR], "1.2.3.4, 10.0.0.1");
        assert_eq!(sent[PROTO], "http");
        assert_eq!(sent[HOST], "public.org");
        assert_eq!(sent[FORWARDED], "for=1.2.3.4;host=\"public.org\";proto=http");
    }

    #[test]
    fn how_a_client_asked_is_told_in_both_ways() {
        let tell = |lines: &[(HeaderName, &'static str)]| {
            let mut sent = headers(lines);
            let who = Client { ip: "1.2.3.4".parse().unwrap(), is_vouched_for: true };
            let mut peer = peer("10.0.0.1");
            peer.is_tls = false;
            go_on(&mut sent, &who, &peer, HeaderValue::from_static("inner"));
            let text = |name: HeaderName| sent[name].to_str().unwrap().to_owned();
            assert_eq!(sent.len(), sent.keys_len(), "{lines:?}");
            (text(PROTO), text(HOST), text(FORWARDED))
        };
        for (said, proto, host) in [
            ("for=1.2.3.4;proto=https;host=public.org", "https", "public.org"),
            (
                "for=6.6.6.6;proto=http, for=1.2.3.4;Proto=HTTPS;Host=\"public.org:8443\"",
                "https",
                "public.org:8443",
            ),
            ("for=1.2.3.4;proto=https, for=10.0.0.2;proto=http;host=b", "https", "inner"),
            // What can't be one, or is said twice.
            ("for=1.2.3.4;proto=gopher;host=\"a b\"", "http", "inner"),
            ("for=1.2.3.4;proto=https;proto=http;host=a;host=b", "http", "inner"),
        ] {
            let (told_proto, told_host, forwarded) = tell(&[(FORWARDED, said)]);
            assert_eq!((&*told_proto, &*told_host), (proto, host), "{said}");
            assert_eq!(forwarded, format!("{said}, for=10.0.0.1;host=\"inner\";proto=http"));
        }
        for (lines, want) in [
            (&[(PROTO, "https"), (HOST, "public.org")][..], "for=1.2.3.4;host=\"public.org\";proto=https"),
            (&[(PROTO, "https")], "for=1.2.3.4;host=\"inner\";proto=https"),
            (&[], "for=1.2.3.4;host=\"inner\";proto=http"),
            (
                &[(PROTO, "https, http"), (HOST, "a\";for=6.6.6.6;b=\"")],
                "for=1.2.3.4;host=\"inner\";proto=http",
            ),
        ] {
            let lines = [&[(FOR, "1.2.3.4")][..], lines].concat();
            assert_eq!(tell(&lines).2, want, "{lines:?}");
        }
    }
}
