//! What holds of every token, and of whatever its holders append.
//!
//! The bytes are read as a token, and as a story: the first line is a request, the second what the mint wrote, each further
//! one a caveat that a holder appends. The law: no appended caveat turns a refusal into a permission, or a permission into a
//! wider one.

use std::net::IpAddr;

use farebox_protocol::{
    Asked, CaveatRefusal, Identifier, Judged, MACAROON_BYTES_MAX, Macaroon, Msat, RootKey, ServiceName,
    Terms, Timestamp, caveat::judge,
};
use http::Method;

const CONDITIONS: [&str; 16] = [
    "services=",
    "weather_valid_until=",
    "weather_capabilities=",
    "farebox_valid_until=",
    "farebox_method=",
    "farebox_path=",
    "farebox_client=",
    "farebox_terms=v1;offer=",
    "preimage=",
    "news_valid_until=",
    "farebox_",
    "",
    "farebox_bound=",
    "read_valid_until=",
    "read_monthly_requests=",
    "write_monthly_volume_sats=",
];

/// Panics when a law is broken.
pub(crate) fn check(data: &[u8]) {
    token(data);
    story(&String::from_utf8_lossy(data));
}

fn token(data: &[u8]) {
    let Ok(macaroon) = Macaroon::from_bytes(data) else { return };
    let bytes = macaroon.to_bytes();
    assert!(bytes.len() <= MACAROON_BYTES_MAX);
    // V2 has one spelling; V1 becomes it.
    assert!(data[0] != 2 || bytes == data);
    for again in [
        Macaroon::from_bytes(&bytes),
        Macaroon::from_base64(&macaroon.to_base64()),
        Macaroon::from_hex(&macaroon.to_hex()),
    ] {
        assert_eq!(again.expect("what we write, we read").to_bytes(), bytes);
    }
    if let Ok(identifier) = macaroon.identifier() {
        assert_eq!(Identifier::from_bytes(&identifier.to_bytes()), Ok(identifier));
    }
    let _ = macaroon.verify(&RootKey::from_bytes([0; 32]));
    let service: ServiceName = "weather".parse().expect("a name");
    let _ = judge(&macaroon, &asked(&service, &Method::GET, "/", ""));
    let _ = macaroon.attenuate("farebox_method=GET");
    let _ = format!("{macaroon:?}");
}

fn story(text: &str) {
    let mut lines = text.split('\n').take(24);
    let request = lines.next().unwrap_or_default();
    let (path, choices) = request.split_once(' ').unwrap_or((request, ""));
    let method = if choices.contains('p') { Method::POST } else { Method::GET };
    let service: ServiceName = "weather".parse().expect("a name");
    let asked = asked(&service, &method, path, choices);

    let root_key = RootKey::from_bytes([1; 32]);
    let identifier = Identifier::from_bytes(&[0; 66]).expect("version 0");
    let minted: Vec<String> = lines.next().unwrap_or_default().split('&').take(4).map(caveat).collect();
    if minted.iter().map(String::len).sum::<usize>() > MACAROON_BYTES_MAX / 2 {
        return;
    }
    let mut token = Macaroon::mint(&root_key, &identifier, &minted);
    let mut before = judge(&token, &asked);
    for line in lines {
        let caveat = caveat(line);
        if let Some(terms) = caveat.strip_prefix("farebox_terms=")
            && let Ok(read) = terms.parse::<Terms>()
        {
            assert_eq!(read.to_string(), terms, "terms have one spelling");
        }
        // A holder isn't bound to our `attenuate`: the chain takes anything.
        let mut caveats: Vec<String> = token.caveats().map(str::to_owned).collect();
        caveats.push(caveat.clone());
        if caveats.iter().map(|caveat| caveat.len() + 8).sum::<usize>() > MACAROON_BYTES_MAX - 256 {
            return;
        }
        let weaker = Macaroon::mint(&root_key, &identifier, &caveats);
        let after = judge(&weaker, &asked);
        assert!(only_narrows(&before, &after), "`{caveat}` turns {before:?} into {after:?}");
        if let Ok(attenuated) = token.attenuate(&caveat) {
            assert_eq!(attenuated.to_bytes(), weaker.to_bytes(), "one chain, with the key or without");
            assert_eq!(attenuated.verify(&root_key), Ok(()));
            assert!(before.is_err() || asked.strict || !is_dead(&after), "`{caveat}` kills: {after:?}");
        }
        token = weaker;
        before = after;
    }
}

fn asked<'a>(service: &'a ServiceName, method: &'a Method, path: &'a str, choices: &str) -> Asked<'a> {
    let client = match choices.contains('6') {
        true => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
        false => IpAddr::from([10, 1, 2, 3]),
    };
    Asked {
        service,
        method,
        path,
        client: (!choices.contains('u')).then_some(client),
        now: Timestamp::from_secs(500),
        strict: choices.contains('s'),
        capabilities: match (choices.contains('r'), choices.contains('w')) {
            (false, false) => None,
            (true, false) => Some(&["read"]),
            (false, true) => Some(&["write"]),
            (true, true) => Some(&["read", "write"]),
        },
        price: (!choices.contains('f')).then_some(Msat::new(5)),
        cost: (!choices.contains('f')).then_some(Msat::new(5)),
    }
}

/// A line's first letter stands for a condition, to save the fuzzer the spelling.
fn caveat(line: &str) -> String {
    match line.bytes().next().map(|byte| usize::from(byte.wrapping_sub(b'a'))) {
        Some(index) if index < CONDITIONS.len() => format!("{}{}", CONDITIONS[index], &line[1..]),
        _ => line.to_owned(),
    }
}

fn only_narrows(before: &Result<Judged, CaveatRefusal>, after: &Result<Judged, CaveatRefusal>) -> bool {
    match (before, after) {
        (_, Err(_)) => true,
        (Err(_), Ok(_)) => false,
        (Ok(before), Ok(after)) => {
            (before.terms.is_none() || before.terms == after.terms)
                && before.tier.is_none_or(|before| after.tier.is_some_and(|after| after <= before))
                && before
                    .valid_until
                    .is_none_or(|before| after.valid_until.is_some_and(|after| after <= before))
                && before.is_limited <= after.is_limited
        }
    }
}

/// Whether no request at all would be allowed.
fn is_dead(judged: &Result<Judged, CaveatRefusal>) -> bool {
    matches!(
        judged,
        Err(CaveatRefusal::Widened { .. }
            | CaveatRefusal::Repeated { .. }
            | CaveatRefusal::Unknown { .. }
            | CaveatRefusal::Malformed { .. })
    )
}
