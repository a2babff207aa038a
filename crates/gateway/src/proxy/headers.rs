//! Header fields that end here, and those that begin here.
//!
//! What is a matter between neighbours ends here in both directions, `Connection` and all that it names first, so that
//! nobody can name away what is set afterwards. All else passes: several lines of one name as several, empty values, bytes
//! beyond ASCII, `Date`, `Server`, `Trailer`. No `Via` is added, though RFC 9110 7.6.3 would have one: nginx and others stop
//! compressing for whoever sends it. `Max-Forwards` is left, as TRACE isn't served and OPTIONS is the upstream's. Of interim
//! answers (1xx) only 100 is given, by hyper, which has no way to send others.

use farebox_paywall::{Pass, forward::remove_labels};
use farebox_protocol::{Credential, Presented, Scheme, strip_credentials};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRANSFER_ENCODING, UPGRADE,
    },
};

use crate::config::ForwardCredential;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Fields that are a matter between neighbours (RFC 9110 7.6.1), besides those that `Connection` names. `Trailer` is
/// kept, as trailers are passed on. A static: a constant would be built, and dropped, wherever it is looked at.
static HOP_BY_HOP: [HeaderName; 8] = [
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
];

/// What there is among the names of a message that something has to be done about. Most have next to nothing of it, so one
/// look at each name takes the place of a search for every name that might be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey(u16);

impl Survey {
    /// `Connection: keep-alive`, as many say it: nothing has to be removed with it.
    const KEPT_ALIVE: Self = Self(1);
    /// Something else that is between neighbours, or more than one length.
    pub(super) const NEIGHBOURS: Self = Self(1 << 1);
    /// A length that is one.
    const LENGTH: Self = Self(1 << 2);
    /// What a client might say in a proxy's name, or to change what it has asked for.
    pub(super) const SPOOFED: Self = Self(1 << 3);
    /// What only we may say.
    const LABEL: Self = Self(1 << 4);
    pub(super) const AUTHORIZATION: Self = Self(1 << 5);
    /// What else may hold a credential.
    pub(super) const METADATA: Self = Self(1 << 6);
    const EXPECT: Self = Self(1 << 7);
    /// What pages of other origins may do.
    pub(super) const CORS: Self = Self(1 << 8);
    pub(super) const ORIGIN: Self = Self(1 << 9);
    pub(super) const CONTENT_TYPE: Self = Self(1 << 10);

    pub(super) fn of(headers: &HeaderMap) -> Self {
        headers.iter().fold(Self::default(), |found, (name, value)| match Self::of_name(name.as_str()) {
            Self::LENGTH if found.has(Self::LENGTH) || value.as_bytes().contains(&b',') => {
                found.and(Self::NEIGHBOURS)
            }
            Self::KEPT_ALIVE if !value.as_bytes().eq_ignore_ascii_case(b"keep-alive") => {
                found.and(Self::NEIGHBOURS)
            }
            other => found.and(other),
        })
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn has(self, what: Self) -> bool {
        self.0 & what.0 != 0
    }

    fn of_name(name: &str) -> Self {
        match name.as_bytes() {
            b"connection" => Self::KEPT_ALIVE,
            b"content-length" => Self::LENGTH,
            b"te" | b"upgrade" | b"keep-alive" | b"transfer-encoding" | b"http2-settings" => Self::NEIGHBOURS,
            b"authorization" => Self::AUTHORIZATION,
            b"macaroon" | b"token" | b"grpc-metadata-macaroon" => Self::METADATA,
            b"expect" => Self::EXPECT,
            b"origin" => Self::ORIGIN,
            b"content-type" => Self::CONTENT_TYPE,
            b"forwarded" | b"true-client-ip" | b"cf-connecting-ip" | [b'x', ..] => Self::SPOOFED,
            [b't' | b'c', ..] if name.contains('_') => Self::SPOOFED,
            [b'a', ..] if name.starts_with("access-control-") => Self::CORS,
            [b'f', ..] if name.starts_with("farebox") => Self::LABEL,
            [b'p', ..] if name.starts_with("proxy-") => Self::NEIGHBOURS,
            _ => Self(0),
        }
    }
}

/// Removes from the headers of a request what isn't the client's to say to the upstream, its credential aside.
pub(super) fn strip(headers: &mut HeaderMap, found: Survey, is_vouched_for: bool) {
    strip_neighbours(headers, found);
    if found.has(Survey::EXPECT) {
        // hyper answers it for us, once the upstream asks for the body.
        headers.remove(EXPECT);
    }
    if found.has(Survey::SPOOFED) {
        strip_spoofed(headers, is_vouched_for);
    }
    if found.has(Survey::LABEL) {
        remove_labels(headers);
    }
}

/// What [`strip_hop_by_hop`] does, where there is anything to do.
pub(super) fn strip_neighbours(headers: &mut HeaderMap, found: Survey) {
    if found.has(Survey::NEIGHBOURS) {
        strip_hop_by_hop(headers);
    } else if found.has(Survey::KEPT_ALIVE) {
        headers.remove(CONNECTION);
    }
}

/// Removes what was meant for the gateway alone. `TE: trailers` is said again, since trailers are passed on.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    settle_length(headers);
    // Comparing the names that are there costs less than looking for each that might be.
    let mut ended = [false; HOP_BY_HOP.len()];
    let mut has_connection = false;
    for name in headers.keys() {
        if *name == CONNECTION {
            has_connection = true;
        } else if let Some(at) = HOP_BY_HOP.iter().position(|hop| hop == name) {
            ended[at] = true;
        }
    }
    let takes_trailers =
        headers.contains_key(TE) && headers.get_all(TE).iter().any(|value| lists(value, "trailers"));
    if has_connection {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            // What most upstreams say, and no more than the name of a header that is removed anyway.
            .filter(|name| !name.eq_ignore_ascii_case(b"keep-alive"))
            .filter_map(|name| HeaderName::from_bytes(name).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for (name, _) in HOP_BY_HOP.iter().zip(ended).filter(|(_, is_there)| *is_there) {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether a body comes as it is: in chunks, or without any coding for the transfer (RFC 9112 6.1). Whoever passes it on in
/// chunks of their own, and takes off no other coding, must not take off its name. What some servers write for none is none.
pub(super) fn is_plainly_coded(headers: &HeaderMap) -> bool {
    let mut said = headers.get_all(TRANSFER_ENCODING).iter();
    let is_plain = |value: &HeaderValue| {
        ["chunked", "identity"]
            .iter()
            .any(|plain| value.as_bytes().trim_ascii().eq_ignore_ascii_case(plain.as_bytes()))
    };
    said.next().is_none_or(is_plain) && said.next().is_none()
}

/// Leaves one length or none: equal ones are legal and more than many servers take, and beside chunks it means nothing
/// (RFC 9112 6.3). That they are equal has been checked by whoever read them.
fn settle_length(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
        return;
    }
    let mut said = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = said.next() else { return };
    if said.next().is_none() && !first.as_bytes().contains(&b',') {
        return;
    }
    let first = first.as_bytes().split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
    if let Ok(one) = HeaderValue::from_bytes(first) {
        headers.insert(CONTENT_LENGTH, one);
    }
}

/// Removes from the trailers of a request what no client may say in its headers: there are servers that merge the two.
pub(super) fn clean_trailers(trailers: &mut HeaderMap, ours: &[(HeaderName, HeaderValue)]) {
    strip_credentials(trailers);
    strip_hop_by_hop(trailers);
    strip_spoofed(trailers, false);
    remove_labels(trailers);
    strip_lookalikes(trailers, ours);
    for name in ours.iter().map(|(name, _)| name).chain(&[AUTHORIZATION, CONTENT_LENGTH, HOST, TE]) {
        trailers.remove(name);
    }
}

/// What makes frameworks serve another method, path or host than the one that was asked for, decided on and paid for.
/// Nobody may say it, trusted proxies included: they don't write these, they pass on what a client wrote. A client that
/// means PUT can say PUT here.
const OVERRIDES: [&str; 12] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-method",
    "x-forwarded-method",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-forwarded-uri",
    "x-forwarded-path",
    "x-original-host",
    "x-http-host-override",
];

/// Where upstreams look for the client's address, besides `Forwarded` and `X-Forwarded-*`.
const ADDRESSES: [&str; 5] =
    ["x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "cf-connecting-ip"];

/// Removes overrides, and what a client says in the name of a proxy before us, in every spelling that an upstream may
/// take for it: CGI and its descendants don't tell `_` from `-`, in lengths no more than elsewhere. What a trusted proxy
/// says in the true spelling is left.
fn strip_spoofed(headers: &mut HeaderMap, is_vouched_for: bool) {
    let is_spoofed = |name: &&HeaderName| {
        let text = name.as_str();
        if !matches!(text.as_bytes().first(), Some(b'x' | b'f' | b't' | b'c')) {
            return false;
        }
        let has_underscore = text.as_bytes().contains(&b'_');
        let text = if has_underscore { &text.replace('_', "-") } else { text };
        // What framed the message stood under the true names.
        let is_framing = has_underscore && matches!(text, "content-length" | "transfer-encoding");
        let is_forwarding =
            text == "forwarded" || text.starts_with("x-forwarded-") || ADDRESSES.contains(&text);
        (is_forwarding && (!is_vouched_for || has_underscore)) || is_framing || OVERRIDES.contains(&text)
    };
    // Most requests have none, and then nothing is allocated.
    let spoofed: Vec<HeaderName> = headers.keys().filter(is_spoofed).cloned().collect();
    for name in spoofed {
        headers.remove(name);
    }
}

/// Removes what an upstream that doesn't tell `_` from `-` would take for a header of the operator's.
pub(super) fn strip_lookalikes(headers: &mut HeaderMap, ours: &[(HeaderName, HeaderValue)]) {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let is_alike = |a: &HeaderName, b: &HeaderName| {
        a != b && a.as_str().bytes().map(plain).eq(b.as_str().bytes().map(plain))
    };
    for (own, _) in ours {
        // An empty list, as mostly, allocates nothing.
        let alike: Vec<HeaderName> = headers.keys().filter(|name| is_alike(name, own)).cloned().collect();
        for name in alike {
            headers.remove(name);
        }
    }
}

/// The credential that let a request pass, in the form in which the upstream wants to see it. Only the token that was
/// judged: whoever has one can put forged ones of the same name beside it.
pub(super) fn credential_for(
    wanted: ForwardCredential,
    headers: &HeaderMap,
    pass: &Pass,
) -> Option<HeaderValue> {
    let scheme = match wanted {
        ForwardCredential::None => return None,
        ForwardCredential::L402 => Scheme::L402,
        ForwardCredential::Lsat => Scheme::Lsat,
    };
    let Presented::Credentials(presented) = Presented::read(headers) else { return None };
    let mut shown = presented.into_iter().flat_map(|Credential { tokens, preimage }| {
        tokens.into_iter().map(move |token| Credential { tokens: vec![token], preimage: preimage.clone() })
    });
    let value = shown.nth(pass.token_index?)?.header_value(scheme);
    let mut value = HeaderValue::from_str(&value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

pub(super) fn lists(value: &HeaderValue, wanted: &str) -> bool {
    value
        .as_bytes()
        .split(|byte| *byte == b',')
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static(value));
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn what_is_between_neighbours_ends_here() {
        let mut sent = headers(&[
            ("connection", "x-secret, Keep-Alive"),
            ("connection", "x-other"),
            ("x-secret", "1"),
            ("x-other", "1"),
            ("keep-alive", "5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("trailer", "x-sum"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut sent);
        assert_eq!(sent, headers(&[("trailer", "x-sum"), ("accept", "*/*"), ("te", "trailers")]));
    }

    #[test]
    fn only_trusted_proxies_speak_for_the_client() {
        let lines = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x_forwarded_for", "1.1.1.1"),
            ("forwarded", "for=1.1.1.1"),
            ("x-real-ip", "1.1.1.1"),
            ("x_harmless", "1"),
        ];
        let mut sent = headers(&lines);
        strip_spoofed(&mut sent, false);
        assert_eq!(names(&sent), ["x_harmless"]);
        let mut sent = headers(&lines);
        strip_spoofed(&mut sent, true);
        let mut left = names(&sent);
        left.sort_unstable();
        assert_eq!(left, ["forwarded", "x-forwarded-for", "x-real-ip", "x_harmless"]);
    }

    #[test]
    fn nobody_turns_a_request_into_another_one() {
        for name in OVERRIDES {
            for name in [name.to_owned(), name.replace('-', "_")] {
                for is_vouched_for in [false, true] {
                    let mut sent = headers(&[("accept", "*/*")]);
                    sent.insert(
                        HeaderName::from_bytes(name.as_bytes()).unwrap(),
                        HeaderValue::from_static("PUT"),
                    );
                    strip_spoofed(&mut sent, is_vouched_for);
                    assert_eq!(names(&sent), ["accept"], "{name}");
                }
            }
        }
    }

    #[test]
    fn every_spelling_of_a_clients_address_is_a_proxys_to_say() {
        for name in ADDRESSES.into_iter().chain(["forwarded", "x-forwarded-prefix", "x-forwarded-port"]) {
            let sent = |vouched: bool| {
                let mut sent = headers(&[]);
                sent.insert(HeaderName::from_static(name), HeaderValue::from_static("6.6.6.6"));
                strip_spoofed(&mut sent, vouched);
                sent.len()
            };
            assert_eq!((sent(false), sent(true)), (0, 1), "{name}");
        }
    }

    #[test]
    fn a_client_cannot_have_a_proxys_or_the_operators_word_removed_by_naming_it_in_connection() {
        // What is named goes, whoever said it; what is ours is said afterwards.
        let mut sent = headers(&[
            ("connection", "close, x-forwarded-for, farebox-service, cookie, content-length, host, te"),
            ("x-forwarded-for", "1.2.3.4"),
            ("cookie", "a=b"),
            ("te", "trailers;q=0.5"),
        ]);
        strip_hop_by_hop(&mut sent);
        assert_eq!(sent.len(), 0, "{sent:?}");
    }

    #[test]
    fn nothing_that_is_looked_for_is_overlooked_beforehand() {
        let spellings = |name: &str| [name.to_owned(), name.replace('-', "_")];
        let forwarding = ["forwarded", "x-forwarded-for", "x-forwarded-anything"];
        let framing = ["content-length", "transfer-encoding"];
        let mine = ["farebox-token-id", "farebox-payment-hash", "farebox-service", "farebox-else"];
        let all = OVERRIDES.iter().chain(&ADDRESSES).chain(&forwarding).chain(&framing).chain(&mine);
        let hops = HOP_BY_HOP.iter().map(|name| name.as_str().to_owned());
        for name in all
            .flat_map(|name| spellings(name))
            .chain(hops)
            .chain([CONNECTION.to_string(), EXPECT.to_string()])
        {
            if name == "content-length" {
                continue;
            }
            let mut sent = headers(&[("accept", "*/*")]);
            sent.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("1"));
            let found = Survey::of(&sent);
            strip(&mut sent, found, false);
            assert_eq!(names(&sent), ["accept"], "{name}");
        }
        for lines in [
            &[("connection", "keep-alive"), ("connection", "x-secret"), ("x-secret", "1")][..],
            &[("connection", "keep-alive, x-secret"), ("x-secret", "1")],
            &[("connection", "x-secret"), ("x-secret", "1")],
            &[("connection", "Keep-Alive")],
        ] {
            let mut sent = headers(lines);
            let found = Survey::of(&sent);
            strip_neighbours(&mut sent, found);
            assert!(sent.is_empty(), "{sent:?}");
        }
        for lines in [&[("content-length", "3"), ("content-length", "3")][..], &[("content-length", "3, 3")]]
        {
            let mut sent = headers(lines);
            let found = Survey::of(&sent);
            strip_neighbours(&mut sent, found);
            assert_eq!(sent, headers(&[("content-length", "3")]));
        }
    }

    #[test]
    fn a_body_in_a_coding_of_its_own_is_told_from_one_in_chunks() {
        let coded = |lines: &[&'static str]| {
            is_plainly_coded(&headers(
                &lines.iter().map(|line| ("transfer-encoding", *line)).collect::<Vec<_>>(),
            ))
        };
        for lines in [&[][..], &["chunked"], &[" Chunked\t"], &["identity"]] {
            assert!(coded(lines), "{lines:?}");
        }
        for lines in [&["gzip, chunked"][..], &["gzip", "chunked"], &["chunked", "chunked"], &["gzip"], &[""]]
        {
            assert!(!coded(lines), "{lines:?}");
        }
    }

    #[test]
    fn only_trailers_are_asked_for_again() {
        for (said, want) in
            [("trailers", true), ("Trailers, deflate;q=0.5", true), ("gzip", false), ("", false)]
        {
            let mut sent = headers(&[("te", said)]);
            strip_hop_by_hop(&mut sent);
            assert_eq!(sent.get(TE).map(HeaderValue::as_bytes), want.then_some(&b"trailers"[..]), "{said}");
        }
    }

    #[test]
    fn what_is_neither_framing_nor_forged_passes_untouched() {
        let mut sent = headers(&[
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("x-empty", ""),
            ("content-length", "0"),
            ("max-forwards", "3"),
            ("via", "1.1 cache"),
            ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("server", "app"),
            ("trailer", "x-sum"),
            ("range", "bytes=0-1"),
            ("if-range", "\"e\""),
        ]);
        sent.insert("x-bytes", HeaderValue::from_bytes(b"caf\xe9\xff").unwrap());
        let before = sent.clone();
        strip_hop_by_hop(&mut sent);
        strip_spoofed(&mut sent, false);
        assert_eq!(sent, before);
    }
}
