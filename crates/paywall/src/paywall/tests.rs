use std::{net::IpAddr, num::NonZeroU32};

use farebox_lightning::Cursor;
use farebox_protocol::{Macaroon, MintSecret, Msat, Network, Offer, PaymentHash, Preimage, Terms};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    Auth, Bill, Continuity, KeyState, Rate,
    keyring::Entry,
    price::Ending,
    store::{Purchase, sqlite::SqliteStore},
    testing::{Fault, Mood, START, Shop, answer, config, credential, read_challenge, secret, weather},
};

mod books_tests;
mod counted_tests;
mod freebie_tests;
mod label_tests;
mod many_rows;
mod month_tests;
mod node_tests;
mod rate_tests;
mod ready_tests;
mod sales_tests;
mod secret_tests;
mod sold_month_tests;
mod tier_tests;
mod upgrade_tests;

#[track_caller]
fn check(admission: &Admission, want: Code) {
    assert_eq!(admission.code(), want, "{admission:?}");
    assert_eq!(
        matches!(admission, Admission::Pass(..)),
        matches!(want, Code::Pass | Code::Free | Code::Freebie)
    );
}

#[track_caller]
fn bill(admission: Admission) -> Box<Bill> {
    match admission {
        Admission::Pass(pass, Some(bill)) => {
            assert_eq!((pass.code, pass.payment_hash), (Code::Pass, Some(bill.hash())));
            bill
        }
        other => panic!("{other:?}"),
    }
}

/// Has 64 ask at once where ten may be served. Ten are, for a unit each, and the others are told to come again.
async fn race_for_ten(shop: &Arc<Shop>, headers: &HeaderMap) {
    let mut racing = JoinSet::new();
    for _ in 0..64 {
        let (shop, headers) = (Arc::clone(shop), headers.clone());
        racing.spawn(async move { shop.get(&headers).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) =
        racing.join_all().await.into_iter().partition(|admission| admission.code() == Code::Pass);
    assert_eq!((won.len(), lost.len()), (10, 54));
    for lost in lost {
        let answer = answer(lost);
        assert_eq!((answer.status, answer.code), (StatusCode::TOO_MANY_REQUESTS, Code::UnitsInFlight));
        assert_eq!(answer.headers[header::RETRY_AFTER], "1");
    }
    for mut won in won.into_iter().map(bill) {
        won.sent();
        assert_eq!(won.end(Ending::Whole).spent, 1);
    }
}

fn later(secs: u64) -> Timestamp {
    Timestamp::from_secs(START.secs() + secs)
}

fn hour() -> Offer {
    Offer::Duration(Duration::from_secs(3_600))
}

/// Waits until something in the background has happened: on the paused clock that takes as long as the work itself.
async fn until<T>(what: impl AsyncFn() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = what().await {
                return found;
            }
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    time::timeout(Duration::from_secs(3_600), found).await.expect("it happens")
}

async fn until_true(what: impl Fn() -> bool) {
    until(async || what().then_some(())).await;
}

async fn row(shop: &Shop, hash: PaymentHash, is: impl Fn(&Purchase) -> bool) -> Purchase {
    let row = until(async || shop.store.purchase(hash).await.unwrap().filter(&is)).await;
    assert!(row.is_balanced(), "{row:?}");
    row
}

fn entry(secret: MintSecret, state: KeyState) -> Entry {
    Entry { secret, state }
}

fn rotated(old: KeyState) -> Keyring {
    Keyring::new(vec![entry(MintSecret::from_bytes([0x88; 32]), KeyState::Live), entry(secret(), old)])
        .unwrap()
}

/// Runs the paywall's task beside a test, and joins it.
async fn running<T>(paywall: &Arc<Paywall>, test: impl Future<Output = T>) -> T {
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let (task, told) = (Arc::clone(paywall), stop.clone());
    tasks.spawn(async move { task.run(told).await });
    tasks.close();
    let outcome = test.await;
    stop.cancel();
    time::timeout(Duration::from_secs(20), tasks.wait()).await.expect("the task ends when told");
    outcome
}

#[tokio::test(start_paused = true)]
async fn a_request_is_challenged_and_passes_when_it_has_paid() {
    let shop = Shop::open().await;
    let challenged = answer(shop.get(&HeaderMap::new()).await);
    assert_eq!((challenged.status, challenged.code), (StatusCode::PAYMENT_REQUIRED, Code::PaymentRequired));
    let (macaroon, invoice) = read_challenge(&challenged);
    assert_eq!(invoice.amount(), Some(Msat::new(10_000)));
    let description = invoice.description().unwrap();
    assert!(
        description.starts_with("weather: access without end [farebox:1;forever;10000;"),
        "{description}"
    );
    let caveats: Vec<_> = macaroon.caveats().collect();
    assert_eq!(caveats, ["services=weather:0", "farebox_terms=v1;offer=forever;msat=10000"]);

    let preimage = shop.node.preimage(&invoice.payment_hash());
    let passed = shop.get(&credential(&macaroon, &preimage)).await;
    let identifier = macaroon.identifier().unwrap();
    assert_eq!(identifier.payment_hash, invoice.payment_hash());
    let Admission::Pass(pass, _) = passed else { panic!("{passed:?}") };
    assert_eq!(
        (pass.token_id, pass.payment_hash, pass.code),
        (Some(identifier.token_id), Some(identifier.payment_hash), Code::Pass)
    );
}

#[tokio::test(start_paused = true)]
async fn a_challenge_is_for_one_asker() {
    let shop = Shop::open().await;
    let (first, first_invoice) = shop.challenge().await;
    let (second, second_invoice) = shop.challenge().await;
    assert_ne!(first_invoice.payment_hash(), second_invoice.payment_hash());
    assert_ne!(first.identifier().unwrap().token_id, second.identifier().unwrap().token_id);

    *shop.node.mood.lock() = Mood::Repeating;
    check(&shop.get(&HeaderMap::new()).await, Code::PaymentRequired);
    check(&shop.get(&HeaderMap::new()).await, Code::NodeWrong);
}

#[tokio::test(start_paused = true)]
async fn what_is_free_asks_for_nothing() {
    let mut shop = Shop::open().await;
    shop.service.free_paths = vec!["/health".parse().unwrap()];
    *shop.node.mood.lock() = Mood::Down;
    let garbage = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("L402 x"))]);
    check(&shop.ask(&Method::GET, "/health", &HeaderMap::new()).await, Code::Free);
    check(&shop.ask(&Method::GET, "/health", &garbage).await, Code::Free);
    check(&shop.ask(&Method::GET, "/healthy", &HeaderMap::new()).await, Code::NodeUnavailable);
    shop.service.auth = Auth::Off;
    check(&shop.ask(&Method::GET, "/healthy", &HeaderMap::new()).await, Code::Free);
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_sold_a_paid_token_opens_and_the_node_is_never_asked() {
    let mut shop = Shop::open().await;
    shop.service.no_challenge_paths = vec!["/internal/*".parse().unwrap(), "/both".parse().unwrap()];
    shop.service.free_paths = vec!["/both".parse().unwrap()];
    let (macaroon, preimage) = shop.buy().await;
    let asked = shop.node.asked.lock().len();
    let garbage = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("L402 x"))]);
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST, Method::DELETE] {
        for (headers, want) in [(&HeaderMap::new(), Code::TokenRequired), (&garbage, Code::PreimageMissing)] {
            let refused = answer(shop.ask(&method, "/internal/x", headers).await);
            assert_eq!((refused.status, refused.code), (StatusCode::UNAUTHORIZED, want), "{method}");
            let challenges = refused.headers.get_all(header::WWW_AUTHENTICATE);
            let challenges: Vec<_> = challenges.iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(challenges, [format!("L402 version=\"0\", error=\"{want}\"")], "{method}");
        }
        check(&shop.ask(&method, "/internal/x", &credential(&macaroon, &preimage)).await, Code::Pass);
    }
    check(&shop.ask(&Method::GET, "/both", &HeaderMap::new()).await, Code::Free);
    assert_eq!(shop.node.asked.lock().len(), asked);
    check(&shop.ask(&Method::GET, "/internal", &HeaderMap::new()).await, Code::PaymentRequired);
}

#[tokio::test(start_paused = true)]
async fn each_way_in_which_a_credential_fails_has_its_own_code() {
    let mut shop = Shop::open().await;
    let (macaroon, preimage) = shop.buy().await;
    let other = Preimage::from_bytes([9; 32]);
    let header =
        |text: &'static str| HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(text))]);

    check(&shop.get(&header("Bearer something")).await, Code::PaymentRequired);
    check(&shop.get(&header("L402 nonsense")).await, Code::PreimageMissing);
    check(&shop.get(&header("L402 AAAA:zz")).await, Code::PreimageMalformed);
    let wrong = answer(shop.get(&credential(&macaroon, &other)).await);
    assert_eq!((wrong.status, wrong.code), (StatusCode::UNAUTHORIZED, Code::PreimageWrong));

    // The identifier is right, the signature somebody else's.
    let identifier = macaroon.identifier().unwrap();
    let forged = Macaroon::mint(
        &MintSecret::from_bytes([1; 32]).root_key(Network::Regtest, &identifier),
        &identifier,
        &[],
    );
    check(&shop.get(&credential(&forged, &preimage)).await, Code::TokenUnknown);
    // Test coins buy nothing on mainnet.
    let caveats: Vec<String> = macaroon.caveats().map(str::to_owned).collect();
    let testnet = Macaroon::mint(&secret().root_key(Network::Testnet, &identifier), &identifier, &caveats);
    check(&shop.get(&credential(&testnet, &preimage)).await, Code::TokenUnknown);
    // Ours, but with nothing sold in it.
    let root_key = secret().root_key(Network::Regtest, &identifier);
    let empty = Macaroon::mint(&root_key, &identifier, &["services=weather:0".to_owned()]);
    check(&shop.get(&credential(&empty, &preimage)).await, Code::TermsMissing);
    let everything = Macaroon::mint(&root_key, &identifier, &[caveats[1].clone()]);
    check(&shop.get(&credential(&everything, &preimage)).await, Code::TermsMissing);

    for (caveat, code) in [
        ("farebox_method=POST", Code::TokenOtherMethod),
        ("farebox_path=/other", Code::TokenOtherPath),
        ("farebox_client=198.51.100.0/24", Code::TokenOtherClient),
        ("farebox_valid_until=1", Code::TokenExpired),
        ("farebox_method=GET", Code::Pass),
        ("farebox_path=/forecast", Code::Pass),
        ("farebox_client=192.0.2.0/24", Code::Pass),
        ("unknown=skipped", Code::Pass),
    ] {
        let narrowed = macaroon.attenuate(caveat).unwrap();
        check(&shop.get(&credential(&narrowed, &preimage)).await, code);
    }
    shop.service.name = "dearer".parse().unwrap();
    check(&shop.get(&credential(&macaroon, &preimage)).await, Code::TokenOtherService);
}

#[tokio::test(start_paused = true)]
async fn the_terms_in_the_token_decide_whatever_is_sold_today() {
    let mut shop = Shop::open().await;
    let (macaroon, preimage) = shop.buy().await;
    shop.service.price = Msat::new(1_000_000);
    shop.service.offer = hour();
    check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
    shop.service.tier = 1;
    check(&shop.get(&credential(&macaroon, &preimage)).await, Code::TierOutgrown);
}

#[tokio::test(start_paused = true)]
async fn a_pass_lasts_at_least_as_long_as_was_sold_even_when_paid_at_the_last_moment() {
    let mut shop = Shop::open().await;
    shop.service.offer = hour();
    let challenged = answer(shop.get(&HeaderMap::new()).await);
    let (macaroon, invoice) = read_challenge(&challenged);
    let headers = credential(&macaroon, &shop.node.preimage(&invoice.payment_hash()));
    // Ten minutes to pay, a minute of the node's grace, an hour.
    let end = 600 + 60 + 3_600;
    let body: serde_json::Value = serde_json::from_slice(&challenged.body).unwrap();
    assert_eq!(body["valid_until"], later(end).secs());
    shop.clock.set(later(end - 1));
    check(&shop.get(&headers).await, Code::Pass);
    shop.clock.set(later(end));
    check(&shop.get(&headers).await, Code::TokenExpired);
}

#[tokio::test(start_paused = true)]
async fn a_price_is_rounded_up_and_the_token_says_what_the_invoice_says() {
    let mut shop = Shop::open().await;
    shop.service.price = Msat::new(1_500);
    *shop.node.granularity.lock() = Msat::new(1_000);
    let (macaroon, invoice) = shop.challenge().await;
    assert_eq!(invoice.amount(), Some(Msat::new(2_000)));
    assert!(macaroon.caveats().any(|caveat| caveat == "farebox_terms=v1;offer=forever;msat=2000"));

    shop.service.price = Msat::ZERO;
    check(&shop.get(&HeaderMap::new()).await, Code::PriceInvalid);
    assert_eq!(shop.node.asked.lock().len(), 1, "no invoice for any amount was asked for");
}

#[tokio::test(start_paused = true)]
async fn a_node_in_trouble_stops_sales_and_never_paid_access() {
    let shop = Shop::open().await;
    let (macaroon, preimage) = shop.buy().await;
    for (mood, code) in [
        (Mood::Down, Code::NodeUnavailable),
        (Mood::Silent, Code::NodeTimeout),
        (Mood::Greedy, Code::NodeWrong),
        (Mood::OnMainnet, Code::NodeWrong),
        (Mood::Late, Code::NodeWrong),
        (Mood::Patient, Code::NodeWrong),
    ] {
        *shop.node.mood.lock() = mood;
        let refused = answer(shop.get(&HeaderMap::new()).await);
        assert_eq!((refused.status, refused.code), (StatusCode::SERVICE_UNAVAILABLE, code), "{mood:?}");
        assert_eq!(refused.headers[header::RETRY_AFTER], "5");
        assert!(!refused.headers.contains_key(header::WWW_AUTHENTICATE));
        let body = String::from_utf8_lossy(&refused.body).into_owned();
        assert!(!body.contains("10.0.0.1"), "what the node said is not for strangers: {body}");
        assert!(shop.paywall.health().minting.is_some());
        check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
    }
    *shop.node.mood.lock() = Mood::Well;
    check(&shop.get(&HeaderMap::new()).await, Code::PaymentRequired);
    assert_eq!(shop.paywall.health().minting, None);
}

#[tokio::test(start_paused = true)]
async fn asking_while_the_node_is_away_costs_no_budget_and_asking_a_slow_one_does() {
    let rate = Rate::per_minute(NonZeroU32::new(3).unwrap());
    let shop =
        Shop::open_with(PaywallConfig { mint_per_client: rate, ..config() }, Keyring::single(secret())).await;
    *shop.node.mood.lock() = Mood::Down;
    for _ in 0..10 {
        check(&shop.get(&HeaderMap::new()).await, Code::NodeUnavailable);
    }
    *shop.node.mood.lock() = Mood::Silent;
    check(&shop.get(&HeaderMap::new()).await, Code::NodeTimeout);
    *shop.node.mood.lock() = Mood::Well;
    for code in [Code::PaymentRequired, Code::PaymentRequired, Code::ClientMintLimit] {
        check(&shop.get(&HeaderMap::new()).await, code);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unpaid_challenge_leaves_nothing_behind() {
    let shop = Shop::open().await;
    let before = shop.store.asked.load(Ordering::SeqCst);
    for _ in 0..50 {
        shop.challenge().await;
    }
    assert_eq!(shop.store.asked.load(Ordering::SeqCst), before, "the store was not even asked");
    assert_eq!(shop.store.purchases(crate::store::Page { after: None, rows_max: 9 }).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_paid_request_is_decided_at_once_without_store_or_node() {
    let shop = Shop::open().await;
    let (macaroon, preimage) = shop.buy().await;
    *shop.store.fault.lock() = Some(Fault::Hangs);
    *shop.node.mood.lock() = Mood::Silent;
    let (asked, headers) = (shop.store.asked.load(Ordering::SeqCst), credential(&macaroon, &preimage));
    let mut admission = Box::pin(shop.get(&headers));
    // One poll: it never yields.
    let std::task::Poll::Ready(admission) = futures_util::poll!(&mut admission) else { panic!("it waited") };
    check(&admission, Code::Pass);
    assert_eq!(shop.store.asked.load(Ordering::SeqCst), asked);
}

#[tokio::test(start_paused = true)]
async fn who_asks_too_often_waits_and_who_has_paid_does_not() {
    let rate = Rate::per_minute(NonZeroU32::new(3).unwrap());
    let shop =
        Shop::open_with(PaywallConfig { mint_per_client: rate, ..config() }, Keyring::single(secret())).await;
    let (macaroon, preimage) = shop.buy().await;
    shop.challenge().await;
    shop.challenge().await;
    let limited = answer(shop.get(&HeaderMap::new()).await);
    assert_eq!((limited.status, limited.code), (StatusCode::TOO_MANY_REQUESTS, Code::ClientMintLimit));
    assert_eq!(limited.headers[header::RETRY_AFTER], "20");
    assert!(
        !limited.headers.contains_key(header::WWW_AUTHENTICATE),
        "never a challenge made for somebody else"
    );
    assert_eq!(shop.node.asked.lock().len(), 3);
    check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
    time::advance(Duration::from_secs(20)).await;
    shop.challenge().await;
}

#[tokio::test(start_paused = true)]
async fn head_and_options_mint_nothing() {
    let shop = Shop::open().await;
    for method in [Method::HEAD, Method::OPTIONS] {
        let refused = answer(shop.ask(&method, "/", &HeaderMap::new()).await);
        assert_eq!(refused.status, StatusCode::PAYMENT_REQUIRED);
        assert_eq!(refused.headers[crate::CODE_HEADER], "payment_required");
        assert!(!refused.headers.contains_key(header::WWW_AUTHENTICATE));
        assert!(refused.body.is_empty());
    }
    assert!(shop.node.asked.lock().is_empty());
    let (macaroon, preimage) = shop.buy().await;
    check(&shop.ask(&Method::HEAD, "/", &credential(&macaroon, &preimage)).await, Code::Pass);
}

#[tokio::test(start_paused = true)]
async fn hostile_credentials_cost_no_store_and_are_refused() {
    let shop = Shop::open().await;
    let (macaroon, preimage) = shop.buy().await;
    let asked = shop.store.asked.load(Ordering::SeqCst);
    let many = vec![macaroon.to_base64(); 9].join(",");
    let headers =
        |text: String| HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::try_from(text).unwrap())]);
    let hex = preimage.expose_hex();
    check(&shop.get(&headers(format!("L402 {many}:{}", *hex))).await, Code::TooManyTokens);
    let bytes = macaroon.to_bytes();
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        if let Ok(altered) = Macaroon::from_bytes(&altered) {
            let admission = shop.get(&credential(&altered, &preimage)).await;
            // The location isn't signed; what is, can't be changed.
            let location = at < 8;
            assert!(location || !matches!(admission, Admission::Pass(..)), "byte {at}: {admission:?}");
        }
    }
    assert_eq!(shop.store.asked.load(Ordering::SeqCst), asked);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_is_dead_at_once_here_and_soon_elsewhere() {
    let shop = Shop::open().await;
    let (here, here_preimage) = shop.buy().await;
    let (there, there_preimage) = shop.buy().await;
    let hash = |token: &Macaroon| token.identifier().unwrap().hash();

    shop.paywall.revoke(hash(&here), "asked for").await.unwrap();
    check(&shop.get(&credential(&here, &here_preimage)).await, Code::TokenRevoked);
    let narrowed = here.attenuate("farebox_method=GET").unwrap();
    check(&shop.get(&credential(&narrowed, &here_preimage)).await, Code::TokenRevoked);
    check(&shop.get(&credential(&there, &there_preimage)).await, Code::Pass);

    running(&shop.paywall, async {
        let revoker = SqliteStore::open_for_revocation(&shop.dir.path().join("books.sqlite")).unwrap();
        let revocation = Revocation { identifier_hash: hash(&there), at: START, reason: "lost".to_owned() };
        revoker.revoke(&revocation).unwrap();
        until(async || {
            let headers = credential(&there, &there_preimage);
            (shop.get(&headers).await.code() == Code::TokenRevoked).then_some(())
        })
        .await;
    })
    .await;
    let restarted = shop.reopen(Keyring::single(secret())).await;
    assert_eq!(restarted.health().revoked_tokens, 2, "known before the first request");
}

#[tokio::test(start_paused = true)]
async fn the_future_of_a_paid_request_is_small() {
    let shop = Shop::open().await;
    let headers = HeaderMap::new();
    let client: IpAddr = [192, 0, 2, 1].into();
    let (service, method) = (&shop.service, &Method::GET);
    let request = Request { service, method, path: "/", client, headers: &headers, query: None, grpc: false };
    let size = size_of_val(&shop.paywall.admit(&request));
    assert!(size <= 4_096, "{size} bytes");
}
