use std::net::Ipv4Addr;

use farebox_protocol::{Credential, MintSecret, Network, PaymentHash, Preimage, Scheme, Timestamp, TokenId};
use http::Method;
use proptest::prelude::*;

use super::*;
use crate::{
    KeyState, Keyring, PaywallConfig, Request, Service,
    decide::decide,
    keyring::Entry,
    testing::{START, Shop, config, weather},
};

fn secret(byte: u8) -> MintSecret {
    MintSecret::from_bytes([byte; 32])
}

fn identifier(byte: u8) -> (Identifier, Preimage) {
    let preimage = Preimage::from_bytes([byte; 32]);
    let payment_hash = preimage.payment_hash();
    (Identifier { payment_hash, token_id: TokenId::from_bytes([byte; 32]) }, preimage)
}

fn token(signed_with: u8, of: &Identifier, caveats: &[&str]) -> Macaroon {
    let caveats: Vec<String> = caveats.iter().map(|caveat| (*caveat).to_owned()).collect();
    Macaroon::mint(&secret(signed_with).root_key(Network::Regtest, of), of, &caveats)
}

fn shown(tokens: Vec<Macaroon>, preimage: &Preimage) -> String {
    Credential { tokens, preimage: preimage.clone() }.header_value(Scheme::L402).to_string()
}

fn presented(values: &[&str]) -> HeaderMap {
    values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap())).collect()
}

/// As gRPC clients send it: digits, the preimage as a caveat of their own.
fn in_metadata(token: &Macaroon, preimage: &Preimage) -> HeaderValue {
    let token = token.attenuate(&format!("preimage={}", *preimage.expose_hex())).unwrap();
    token.to_hex().parse().unwrap()
}

const FOREVER: [&str; 2] = ["services=weather:1,maps:0", "farebox_terms=v1;offer=forever;msat=10000"];

/// Good ones and bad ones of every kind that the decision tells apart.
fn corpus() -> Vec<HeaderMap> {
    let mut all = vec![HeaderMap::new(), presented(&["L402 nonsense"]), presented(&["Bearer abc"])];
    let more = [
        &[][..],
        &["farebox_method=GET"],
        &["farebox_path=/forecast"],
        &["farebox_client=192.0.2.0/24"],
        &["farebox_valid_until=1700000050"],
        &["farebox_someday=1"],
        &["colour=blue"],
        &["services=maps:0"],
    ];
    // 1 is the live secret, 2 an older one, 3 was withdrawn, 4 is somebody else's.
    for signed_with in 1..=4 {
        for (number, more) in more.iter().enumerate() {
            let (of, preimage) = identifier(u8::try_from(number).unwrap() * 4 + signed_with);
            let caveats: Vec<&str> = FOREVER.iter().chain(*more).copied().collect();
            all.push(presented(&[&shown(vec![token(signed_with, &of, &caveats)], &preimage)]));
        }
        let (of, preimage) = identifier(100 + signed_with);
        let hour = "farebox_terms=v1;offer=duration;secs=100;msat=10000";
        let timed = token(signed_with, &of, &["services=weather:0", "weather_valid_until=1700000100", hour]);
        let good = token(signed_with, &of, &FOREVER);
        all.push(presented(&[&shown(vec![timed.clone()], &preimage)]));
        all.push(presented(&[&shown(vec![good.clone()], &Preimage::from_bytes([0xee; 32]))]));
        all.push(presented(&[&shown(vec![good.clone(), timed.clone()], &preimage)]));
        for beside in ["Basic abc", "Bearer null", &shown(vec![good.clone()], &preimage)] {
            let mut both = presented(&[beside]);
            all.push(both.clone());
            both.insert("macaroon", in_metadata(&good, &preimage));
            all.push(both);
        }
        let (one, other) = (shown(vec![good], &preimage), shown(vec![timed], &preimage));
        all.push(presented(&[&one, &other]));
        all.push(presented(&[&format!("{one}, {other}")]));
        all.push(presented(&[&format!("Basic abc, {one}")]));
        all.push(presented(&[&format!("{one}, Basic abc")]));
        all.push(presented(&[&one.replace("L402 ", "lsat  ")]));
        all.push(presented(&[&format!("{one}00")]));
    }
    all
}

fn keyring() -> Keyring {
    let entry = |byte, state| Entry { secret: secret(byte), state };
    let withdrawn = KeyState::SettledOnly { since: Timestamp::from_secs(START.secs() + 10) };
    Keyring::new(vec![entry(1, KeyState::Live), entry(2, KeyState::Live), entry(3, withdrawn)]).unwrap()
}

/// What is asked of the paywall next.
#[derive(Clone, Debug)]
struct Step {
    shows: prop::sample::Index,
    service: bool,
    tier: u8,
    method: bool,
    path: bool,
    client: u8,
    waits: u64,
    revokes: Option<prop::sample::Index>,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    let revokes = prop::option::weighted(0.1, index());
    // Mostly within the second, in which the caveats' last answer may stand.
    let waits = prop_oneof![4 => Just(0_u64), 1 => 0..20_u64];
    (index(), any::<bool>(), 0..3_u8, any::<bool>(), any::<bool>(), 1..3_u8, waits, revokes).prop_map(
        |(shows, service, tier, method, path, client, waits, revokes)| Step {
            shows,
            service,
            tier,
            method,
            path,
            client,
            waits,
            revokes,
        },
    )
}

async fn agrees(steps: &[Step], strict: bool) -> usize {
    let config = PaywallConfig { strict_caveats: strict, ..config() };
    let shop = Shop::open_with(config, keyring()).await;
    let corpus = corpus();
    let maps = Service { name: "maps".parse().unwrap(), ..weather() };
    let mut now = START;
    let mut remembered = 0;
    for step in steps {
        now = Timestamp::from_secs(now.secs() + step.waits);
        if let Some(revoked) = step.revokes {
            let (of, _) = identifier(u8::try_from(revoked.index(32)).unwrap());
            shop.paywall.revoke(of.hash(), "test").await.unwrap();
        }
        let headers = step.shows.get(&corpus);
        let service = if step.service { weather() } else { maps.clone() };
        let request = Request {
            service: &Service { tier: step.tier, ..service },
            method: if step.method { &Method::GET } else { &Method::POST },
            path: if step.path { "/forecast" } else { "/" },
            client: Ipv4Addr::new(192, 0, step.client, 1).into(),
            headers,
            query: None,
            grpc: false,
        };
        let known = &shop.paywall.known;
        let is_remembered = alone(headers).is_some_and(|value| known.find(value.as_bytes()).is_some());
        remembered += usize::from(is_remembered);
        let with = shop.paywall.examine(&request, now);
        // The same question to one that remembers nothing; then the memory comes back.
        let memory: Vec<Shard> =
            known.shards.iter().map(|shard| std::mem::take(&mut *shard.lock())).collect();
        let without = shop.paywall.examine(&request, now);
        for (shard, memory) in known.shards.iter().zip(memory) {
            *shard.lock() = memory;
        }
        let (facts, plain) = (with.facts(now), without.facts(now));
        assert_eq!(format!("{facts:?}"), format!("{plain:?}"), "{step:?}");
        assert_eq!(decide(&facts), decide(&plain));
        for index in 0..8 {
            if with.is_explained(index) {
                assert_eq!(with.names(index), without.names(index));
                assert_eq!(with.withdrawn(index), without.withdrawn(index));
                assert_eq!(with.sold(index, request.service), without.sold(index, request.service));
            }
        }
    }
    remembered
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_remembered_proof_changes_no_fact_and_no_decision(
        steps in prop::collection::vec(step(), 200),
        strict in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let remembered = runtime.block_on(agrees(&steps, strict));
        // Else nothing was compared.
        prop_assert!(remembered > 10, "{remembered} of {} steps found a proof", steps.len());
    }
}

fn proven(of: &Identifier, macaroon: &Macaroon) -> Arc<Proven> {
    Arc::new(Proven::new(macaroon.clone(), *of, 0))
}

#[tokio::test(start_paused = true)]
async fn only_what_held_is_remembered() {
    let shop = Shop::open_with(config(), keyring()).await;
    let mut held = 0;
    for headers in corpus() {
        let service = weather();
        let request = Request {
            service: &service,
            method: &Method::GET,
            path: "/forecast",
            client: Ipv4Addr::new(192, 0, 2, 1).into(),
            headers: &headers,
            query: None,
            grpc: false,
        };
        let examined = shop.paywall.examine(&request, START);
        let proofs = format!("{:?}", examined.facts(START));
        let holds = proofs.matches("preimage_holds: true").count() == 1
            && proofs.matches("preimage_holds").count() == 1
            && headers.get_all(AUTHORIZATION).iter().count() == 1
            // What is shown elsewhere, or in one line with something else, is proved each time.
            && headers[AUTHORIZATION].to_str().is_ok_and(|value| {
                !value.contains(", ") && ["l402 ", "lsat "].contains(&value[..5].to_lowercase().as_str())
            });
        let found = alone(&headers).and_then(|value| shop.paywall.known.find(value.as_bytes()));
        assert_eq!(found.is_some(), holds, "{proofs}");
        held += usize::from(holds);
    }
    assert!(held >= 24, "{held}");
}

#[tokio::test(start_paused = true)]
async fn what_is_padded_is_honoured_and_not_remembered() {
    let shop = Shop::open_with(config(), keyring()).await;
    let (of, preimage) = identifier(1);
    let plain = shown(vec![token(1, &of, &FOREVER)], &preimage);
    let service = weather();
    for (value, is_remembered) in [(format!("{plain}{:112}", ""), false), (plain, true)] {
        let headers = presented(&[&value]);
        let request = Request {
            service: &service,
            method: &Method::GET,
            path: "/forecast",
            client: Ipv4Addr::new(192, 0, 2, 1).into(),
            headers: &headers,
            query: None,
            grpc: false,
        };
        let decision = decide(&shop.paywall.examine(&request, START).facts(START));
        assert!(matches!(decision, crate::decide::Decision::Forward(_)), "{value:?}: {decision:?}");
        assert_eq!(shop.paywall.known.find(value.as_bytes()).is_some(), is_remembered, "{value:?}");
    }
}

#[test]
fn the_caveats_last_answer_stands_for_the_very_same_question_alone() {
    let (of, _) = identifier(1);
    let hour = ["services=weather:1", "weather_valid_until=1700000100", "farebox_path=/forecast"];
    let proven = proven(&of, &token(1, &of, &hour));
    let (weather, maps) = ("weather".parse().unwrap(), "maps".parse().unwrap());
    let asked = Asked {
        service: &weather,
        method: &Method::GET,
        path: "/forecast/today",
        client: None,
        now: Timestamp::from_secs(1_700_000_099),
        strict: false,
        capabilities: Some(&[]),
        price: None,
        cost: None,
    };
    let later = Timestamp::from_secs(1_700_000_100);
    for _ in 0..2 {
        assert_eq!(proven.judge(&asked).unwrap().tier, Some(1));
        for other in [
            Asked { now: later, ..asked },
            Asked { service: &maps, ..asked },
            Asked { path: "/else", ..asked },
        ] {
            assert_eq!(proven.judge(&other), judge(&proven.macaroon, &other));
            assert!(proven.judge(&other).is_err(), "{other:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_stood_beside_a_credential_does_not_stand_for_it() {
    let shop = Shop::open_with(config(), keyring()).await;
    let (of, preimage) = identifier(1);
    let mut headers = presented(&["Bearer null"]);
    headers.insert("grpc-metadata-macaroon", in_metadata(&token(1, &of, &FOREVER), &preimage));
    let service = weather();
    let mut request = Request {
        service: &service,
        method: &Method::GET,
        path: "/forecast",
        client: Ipv4Addr::new(192, 0, 2, 1).into(),
        headers: &headers,
        query: None,
        grpc: false,
    };
    let passes = |request: &Request<'_>| {
        let decision = decide(&shop.paywall.examine(request, START).facts(START));
        matches!(decision, crate::decide::Decision::Forward(_))
    };
    assert!(passes(&request));
    let without = presented(&["Bearer null"]);
    request.headers = &without;
    assert!(!passes(&request));
}

#[test]
fn it_never_grows_and_what_it_finds_is_what_was_put_there() {
    let known = Known::new();
    let (of, _) = identifier(1);
    let macaroon = token(1, &of, &FOREVER);
    for number in 0_u32..5_000 {
        let hash = Preimage::from_bytes([u8::try_from(number % 251).unwrap(); 32]).payment_hash();
        let mut bytes = *hash.as_bytes();
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        let of = Identifier { payment_hash: PaymentHash::from_bytes(bytes), ..of };
        known.remember(&number.to_be_bytes(), proven(&of, &macaroon));
    }
    let mut found = 0;
    for number in 0_u32..5_000 {
        if let Some(proven) = known.find(&number.to_be_bytes()) {
            assert_eq!(proven.identifier.payment_hash.as_bytes()[..4], number.to_be_bytes());
            found += 1;
        }
    }
    assert!(found <= PLACES && found > PLACES / 2, "{found}");
    known.remember(&[7; CREDENTIAL_BYTES_MAX + 1], proven(&of, &macaroon));
    assert!(known.find(&[7; CREDENTIAL_BYTES_MAX + 1]).is_none());
}

#[test]
fn bytes_that_differ_in_anything_are_another_credential() {
    let known = Known::new();
    let (of, preimage) = identifier(1);
    let macaroon = token(1, &of, &FOREVER);
    let text = shown(vec![macaroon.clone()], &preimage);
    known.remember(text.as_bytes(), proven(&of, &macaroon));
    assert!(known.find(text.as_bytes()).is_some());
    for at in 0..text.len() {
        let mut other = text.clone().into_bytes();
        other[at] ^= 1;
        assert!(known.find(&other).is_none());
        assert!(known.find(&text.as_bytes()[..at]).is_none());
    }
}
