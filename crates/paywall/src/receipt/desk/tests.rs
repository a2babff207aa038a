use std::sync::atomic::Ordering;

use farebox_lightning::{Cursor, Settlement};
use farebox_protocol::{
    Macaroon, MintSecret, Monthly, Msat, Network, Offer, PaymentHash, Preimage, Timestamp, caveat::Most,
};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    Bill, KeyState, Keyring, Pass,
    admission::Admission,
    keyring::Entry as KeyringEntry,
    price::Ending,
    receipt::ReceiptPublicKey,
    store::{Arrival, Store as _},
    testing::{Fault, START, Shop, credential, secret},
};

/// A seller who signs receipts, and what somebody has bought there.
struct Desk {
    shop: Shop,
    receipts: Arc<Receipts>,
    macaroon: Macaroon,
    preimage: Preimage,
}

fn key() -> ReceiptKey {
    ReceiptKey::from_seed(&[7; 32])
}

fn receipts(paywall: &Arc<Paywall>) -> Arc<Receipts> {
    Receipts::new(Arc::clone(paywall), key(), Some("Weather Inc.".parse().unwrap()))
}

impl Desk {
    async fn selling(offer: Offer) -> Self {
        Self::limiting(offer, Vec::new()).await
    }

    /// With limits by the month.
    async fn limiting(offer: Offer, monthly: Vec<Monthly>) -> Self {
        let mut shop = Shop::open().await;
        shop.service.offer = offer;
        shop.service.menu.monthly = monthly;
        let (macaroon, preimage) = shop.buy().await;
        Self { receipts: receipts(&shop.paywall), shop, macaroon, preimage }
    }

    /// One whose purchase was paid and used.
    async fn sold(offer: Offer) -> Self {
        let desk = Self::selling(offer).await;
        desk.settle(1, 10_000).await;
        desk.tell().await;
        desk
    }

    fn hash(&self) -> PaymentHash {
        self.preimage.payment_hash()
    }

    fn headers(&self) -> HeaderMap {
        credential(&self.macaroon, &self.preimage)
    }

    /// Money arrives.
    async fn settle(&self, cursor: u64, msat: u64) {
        let cursor = Cursor(cursor);
        let settlement =
            Settlement { cursor, hash: self.hash(), amount: Msat::new(msat), at: START, description: None };
        self.shop.store.settle("02aa", vec![Arrival::from(settlement)], cursor).await.unwrap();
    }

    /// The books hear what was sold.
    async fn tell(&self) {
        let holder = self.shop.paywall.holder(&self.headers()).unwrap();
        let presentation = crate::store::Presentation { hash: self.hash(), sold: holder.sold, at: START };
        self.shop.store.present(vec![presentation]).await.unwrap();
    }

    /// Uses it, as a request that is served.
    async fn serve(&self) {
        match self.shop.get(&self.headers()).await {
            Admission::Pass(Pass { .. }, Some(bill)) => end(bill),
            Admission::Pass(Pass { .. }, None) => {}
            Admission::Answer(answer) => panic!("{answer:?}"),
        }
    }

    async fn asked(&self, headers: &HeaderMap) -> Response<Bytes> {
        let answer = self.receipts.answer(&Method::POST, headers).await;
        assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
        answer
    }

    /// The receipt, checked with the seller's key.
    async fn receipt(&self) -> Receipt {
        let answer = self.asked(&self.headers()).await;
        let text = String::from_utf8(answer.body().to_vec()).unwrap();
        assert_eq!(
            (answer.status(), &answer.headers()[header::CONTENT_TYPE]),
            (StatusCode::OK, &HeaderValue::from_static("text/plain; charset=utf-8")),
            "{text}"
        );
        assert!(!text.contains(&self.macaroon.to_base64()) && !text.contains(&*self.preimage.expose_hex()));
        SignedReceipt::verify(&text, Some(&key().public())).unwrap().receipt().clone()
    }

    /// By which code these headers are refused, and when to come again.
    async fn refused(&self, headers: &HeaderMap) -> (u16, String, Option<String>) {
        refusal(&self.asked(headers).await)
    }
}

fn refusal(answer: &Response<Bytes>) -> (u16, String, Option<String>) {
    let said: Value = serde_json::from_slice(answer.body()).unwrap();
    let code = said["code"].as_str().unwrap();
    assert_eq!(answer.headers()[&CODE_HEADER], code);
    assert_eq!(said["status"], answer.status().as_u16());
    let wait = answer.headers().get(header::RETRY_AFTER);
    (answer.status().as_u16(), code.to_owned(), wait.map(|wait| wait.to_str().unwrap().to_owned()))
}

fn end(mut bill: Box<Bill>) {
    bill.sent();
    bill.answer(StatusCode::OK, &mut HeaderMap::new());
    bill.end(Ending::Whole);
}

fn want(status: u16, code: &str, wait: Option<&str>) -> (u16, String, Option<String>) {
    (status, code.to_owned(), wait.map(str::to_owned))
}

#[tokio::test(start_paused = true)]
async fn a_receipt_tells_the_limits_by_the_month_that_were_sold() {
    let limit = |most| Monthly { capability: "read".parse().unwrap(), most };
    let limits = vec![limit(Most::Requests(2)), limit(Most::Spent(Msat::new(21_000)))];
    let desk = Desk::limiting(Offer::Forever, limits).await;
    desk.settle(1, 10_000).await;
    desk.tell().await;
    let told: Vec<_> =
        desk.receipt().await.monthly.iter().map(|limit| (limit.unit.as_str(), limit.most)).collect();
    assert_eq!(told, [("request", 2), ("msat", 21_000)]);
}

#[tokio::test(start_paused = true)]
async fn a_pass_has_its_receipt_with_what_was_paid_for_it() {
    let desk = Desk::sold(Offer::Forever).await;
    let receipt = desk.receipt().await;
    assert_eq!(
        receipt,
        Receipt {
            seller: Some("Weather Inc.".parse().unwrap()),
            network: Network::Regtest,
            hash: desk.hash(),
            service: "weather".parse().unwrap(),
            tier: 0,
            offer: Offer::Forever,
            price: Msat::new(10_000),
            valid_until: None,
            monthly: Vec::new(),
            paid: Msat::new(10_000),
            payments: 1,
            surplus: Msat::ZERO,
            settled_at: START,
            refunded: Msat::ZERO,
            units: None,
            issued_at: START,
        }
    );
    // It is the one that the seller would make by hand.
    let entry = desk.shop.store.entry(desk.hash()).await.unwrap().unwrap();
    assert_eq!(Receipt::of(&entry, Network::Regtest, receipt.seller.clone(), START), Ok(receipt));
    desk.settle(2, 3_000).await;
    let again = desk.receipt().await;
    assert_eq!((again.paid.get(), again.payments, again.surplus.get()), (13_000, 2, 3_000));
}

#[tokio::test(start_paused = true)]
async fn what_was_used_a_moment_ago_is_counted() {
    let desk = Desk::sold(Offer::Requests(5.try_into().unwrap())).await;
    assert_eq!(desk.receipt().await.units, None, "nobody has used any");
    for used in 1..=3 {
        desk.serve().await;
        let units = desk.receipt().await.units.unwrap();
        assert_eq!((units.sold, units.spent, units.left), (5, used, 5 - used));
    }
    // A request that is under way has used nothing yet.
    let Admission::Pass(_, Some(under_way)) = desk.shop.get(&desk.headers()).await else { panic!() };
    assert_eq!(desk.receipt().await.units.unwrap().left, 2);
    end(under_way);
    assert_eq!(desk.receipt().await.units.unwrap().left, 1);
}

#[tokio::test(start_paused = true)]
async fn asking_charges_nothing_and_opens_no_account() {
    let desk = Desk::sold(Offer::Requests(1.try_into().unwrap())).await;
    for _ in 0..3 {
        desk.receipt().await;
    }
    assert_eq!(desk.shop.paywall.ledger().balance(&desk.hash()), None);
    desk.serve().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_time_is_over_has_its_receipt() {
    let desk = Desk::sold(Offer::Duration(Duration::from_secs(60))).await;
    let valid_until = desk.receipt().await.valid_until.unwrap();
    desk.shop.clock.set(valid_until.saturating_add(Duration::from_secs(1)));
    assert_eq!(desk.receipt().await.issued_at, valid_until.saturating_add(Duration::from_secs(1)));
}

#[tokio::test(start_paused = true)]
async fn a_narrowed_token_that_was_used_first_changes_nothing_for_the_holder_of_the_whole_one() {
    let minute = START.saturating_add(Duration::from_secs(60));
    for narrower in [format!("weather_valid_until={}", minute.secs()), "services=weather:0".to_owned()] {
        let mut shop = Shop::open().await;
        shop.service.offer = Offer::Duration(Duration::from_secs(3_600));
        shop.service.tier = 2;
        let (macaroon, preimage) = shop.buy().await;
        // The lower tier is served as well.
        shop.service.tier = 0;
        let narrowed = macaroon.attenuate(&narrower).unwrap();
        let desk = Desk { receipts: receipts(&shop.paywall), shop, macaroon, preimage };
        desk.settle(1, 10_000).await;
        let whole = desk.shop.paywall.holder(&desk.headers()).unwrap().sold;
        let (paywall, stop) = (desk.shop.paywall.clone(), CancellationToken::new());
        let mut beside = JoinSet::new();
        let stopped = stop.clone();
        beside.spawn(async move { paywall.run(stopped).await });
        let answer = desk.shop.get(&credential(&narrowed, &desk.preimage)).await;
        assert!(matches!(answer, Admission::Pass(..)), "{answer:?}");
        let booked = async {
            loop {
                let sold = desk.shop.store.purchase(desk.hash()).await.unwrap().unwrap().sold;
                if let Some(sold) = sold {
                    return sold;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let sold = tokio::time::timeout(Duration::from_secs(60), booked).await.unwrap();
        assert_ne!(sold, whole, "the books have it as it was shown: {narrower}");
        let receipt = desk.receipt().await;
        assert_eq!((receipt.tier, receipt.valid_until), (2, whole.valid_until), "{narrower}");
        let holder = desk.shop.paywall.holder(&desk.headers()).unwrap();
        desk.shop.paywall.bought(&holder, START).await.unwrap();
        stop.cancel();
        beside.join_next().await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn before_the_money_is_on_the_books_there_is_no_receipt_and_no_row() {
    let desk = Desk::selling(Offer::Forever).await;
    let not_booked = want(404, "receipt_not_booked", Some("5"));
    assert_eq!(desk.refused(&desk.headers()).await, not_booked);
    assert_eq!(desk.shop.store.purchase(desk.hash()).await, Ok(None), "rows begin with money");
    // A token that was used, whose money has not been told of.
    desk.tell().await;
    assert_eq!(desk.refused(&desk.headers()).await, not_booked);
    desk.settle(1, 10_000).await;
    desk.receipt().await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_before_any_request_tells_the_books_what_was_bought() {
    let desk = Desk::selling(Offer::Forever).await;
    desk.settle(1, 10_000).await;
    let not_booked = want(404, "receipt_not_booked", Some("5"));
    assert_eq!(desk.refused(&desk.headers()).await, not_booked);
    let (paywall, stop) = (desk.shop.paywall.clone(), CancellationToken::new());
    let mut beside = JoinSet::new();
    let stopped = stop.clone();
    beside.spawn(async move { paywall.run(stopped).await });
    let booked = async {
        while desk.shop.store.purchase(desk.hash()).await.unwrap().unwrap().sold.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), booked).await.unwrap();
    assert_eq!(desk.receipt().await.paid, Msat::new(10_000));
    stop.cancel();
    beside.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_the_holder_of_the_whole_token_gets_a_receipt() {
    let desk = Desk::sold(Offer::Forever).await;
    let other = Desk::selling(Offer::Forever).await;
    let missing = want(401, "receipt_credential_missing", None);
    assert_eq!(desk.refused(&HeaderMap::new()).await, missing);
    let narrowed = desk.macaroon.attenuate("weather_valid_until=4000000000").unwrap();
    let wrong = want(401, "receipt_credential_wrong", None);
    let narrow = want(403, "receipt_token_narrowed", None);
    let forged = {
        let identifier = desk.macaroon.identifier().unwrap();
        let root_key = MintSecret::from_bytes([1; 32]).root_key(Network::Regtest, &identifier);
        Macaroon::mint(
            &root_key,
            &identifier,
            &desk.macaroon.caveats().map(str::to_owned).collect::<Vec<_>>(),
        )
    };
    let stranger = Preimage::from_bytes([0xaa; 32]);
    for (token, preimage, want) in [
        (&narrowed, &desk.preimage, narrow),
        (&desk.macaroon, &stranger, wrong.clone()),
        (&forged, &desk.preimage, wrong.clone()),
    ] {
        let headers = credential(token, preimage);
        let answer = desk.asked(&headers).await;
        assert_eq!(refusal(&answer), want);
        assert_eq!(answer.headers().contains_key(header::WWW_AUTHENTICATE), want.0 == 401);
    }
    // Two credentials are one too many, also where one of them is right.
    let mut two = desk.headers();
    two.append(header::AUTHORIZATION, other.headers()[header::AUTHORIZATION].clone());
    assert_eq!(desk.refused(&two).await, wrong);
}

#[tokio::test(start_paused = true)]
async fn nobody_who_proves_no_payment_has_the_books_read() {
    let desk = Desk::sold(Offer::Forever).await;
    let narrowed = desk.macaroon.attenuate("farebox_method=GET").unwrap();
    let asked = desk.shop.store.asked.load(Ordering::SeqCst);
    for headers in [
        HeaderMap::new(),
        credential(&desk.macaroon, &Preimage::from_bytes([0xaa; 32])),
        credential(&narrowed, &desk.preimage),
    ] {
        desk.asked(&headers).await;
    }
    desk.receipts.answer(&Method::GET, &desk.headers()).await;
    for method in [Method::GET, Method::HEAD, Method::POST] {
        desk.receipts.answer_key(&method);
    }
    assert_eq!(desk.shop.store.asked.load(Ordering::SeqCst), asked);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_revoked_or_whose_secret_has_leaked_gets_none() {
    let desk = Desk::sold(Offer::Forever).await;
    let withdrawn = want(403, "receipt_token_withdrawn", None);
    let leaked = KeyringEntry {
        secret: secret(),
        state: KeyState::SettledOnly { since: Timestamp::from_secs(u64::MAX / 2) },
    };
    let fresh = KeyringEntry { secret: MintSecret::from_bytes([9; 32]), state: KeyState::Live };
    let paywall = desk.shop.reopen(Keyring::new(vec![fresh, leaked]).unwrap()).await;
    let answer = receipts(&paywall).answer(&Method::POST, &desk.headers()).await;
    assert_eq!(refusal(&answer), withdrawn);

    desk.shop.paywall.revoke(desk.macaroon.identifier().unwrap().hash(), "test").await.unwrap();
    assert_eq!(desk.refused(&desk.headers()).await, withdrawn);
    // What was paid for it is on the books all the same, and the seller's to sign.
    let entry = desk.shop.store.entry(desk.hash()).await.unwrap().unwrap();
    Receipt::of(&entry, Network::Regtest, None, START).unwrap();
}

#[tokio::test(start_paused = true)]
async fn books_that_have_another_sale_for_the_payment_make_no_receipt() {
    let desk = Desk::selling(Offer::Forever).await;
    desk.settle(1, 10_000).await;
    let mut sold = desk.shop.paywall.holder(&desk.headers()).unwrap().sold;
    sold.tier = 7;
    let presentation = crate::store::Presentation { hash: desk.hash(), sold, at: START };
    desk.shop.store.present(vec![presentation]).await.unwrap();
    let withdrawn = want(403, "receipt_token_withdrawn", None);
    assert_eq!(desk.refused(&desk.headers()).await, withdrawn);
}

#[tokio::test(start_paused = true)]
async fn books_that_can_not_be_asked_never_look_like_a_missing_purchase() {
    let requests = Offer::Requests(5.try_into().unwrap());
    for offer in [Offer::Forever, requests] {
        let desk = Desk::sold(offer).await;
        desk.serve().await;
        for fault in [Fault::Fails, Fault::Hangs] {
            *desk.shop.store.fault.lock() = Some(fault);
            let unavailable = want(503, "receipt_unavailable", Some("30"));
            assert_eq!(desk.refused(&desk.headers()).await, unavailable, "{fault:?}");
        }
        *desk.shop.store.fault.lock() = None;
        let receipt = desk.receipt().await;
        assert_eq!(receipt.units.map(|units| units.spent), offer.is_counted().then_some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn one_purchase_has_so_many_receipts_in_a_time_and_others_are_not_held_up() {
    let desk = Desk::sold(Offer::Forever).await;
    for _ in 0..10 {
        desk.receipt().await;
    }
    assert_eq!(desk.refused(&desk.headers()).await, want(429, "receipt_too_often", Some("30")));
    let (macaroon, preimage) = desk.shop.buy().await;
    let other = credential(&macaroon, &preimage);
    assert_eq!(desk.refused(&other).await.1, "receipt_not_booked");
    tokio::time::advance(Duration::from_secs(30)).await;
    desk.receipt().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_than_a_few_are_looked_up_at_once() {
    let desk = Desk::sold(Offer::Forever).await;
    *desk.shop.store.fault.lock() = Some(Fault::Hangs);
    let mut waiting = JoinSet::new();
    for _ in 0..AT_ONCE_MAX {
        let (receipts, headers) = (desk.receipts.clone(), desk.headers());
        waiting.spawn(async move { receipts.answer(&Method::POST, &headers).await });
    }
    while desk.receipts.at_once.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(desk.refused(&desk.headers()).await, want(503, "receipt_unavailable", Some("30")));
    *desk.shop.store.fault.lock() = None;
    // Who was turned away so has used up no try: eight have, and two are left.
    while waiting.join_next().await.is_some() {}
    desk.receipt().await;
    desk.receipt().await;
    assert_eq!(desk.refused(&desk.headers()).await.1, "receipt_too_often");
}

#[tokio::test(start_paused = true)]
async fn other_methods_are_told_which_one_it_is() {
    let desk = Desk::sold(Offer::Forever).await;
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::OPTIONS, Method::DELETE] {
        let answer = desk.receipts.answer(&method, &desk.headers()).await;
        assert_eq!((refusal(&answer).0, &answer.headers()[header::ALLOW]), (405, &"POST".parse().unwrap()));
    }
    for method in [Method::POST, Method::PUT, Method::OPTIONS] {
        let answer = desk.receipts.answer_key(&method);
        assert_eq!(
            (refusal(&answer).0, &answer.headers()[header::ALLOW]),
            (405, &"GET, HEAD".parse().unwrap())
        );
    }
    let published = desk.receipts.answer_key(&Method::GET);
    let text = std::str::from_utf8(published.body()).unwrap();
    assert_eq!(text.parse::<ReceiptPublicKey>(), Ok(key().public()));
    assert_eq!(refusal(&not_offered()), want(404, "receipts_not_offered", None));
}

#[tokio::test(start_paused = true)]
async fn the_desk_shows_no_key() {
    let desk = Desk::selling(Offer::Forever).await;
    assert!(!format!("{:?}", desk.receipts).contains(&"07".repeat(32)));
}
