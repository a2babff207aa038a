//! Who gets how much, and who gets nothing.

use super::*;

#[tokio::test]
async fn what_is_left_of_credit_goes_back_and_the_law_holds() {
    let disk = Disk::new();
    let desk = disk.open().await;
    let token = desk.credit(1).await;
    desk.spend(&token, 30_000).await;
    let (status, what) = desk.send(&Method::GET, None, &token.headers(), "").await;
    assert_eq!(
        (status, &what["credit_msat"], &what["surplus_msat"]),
        (StatusCode::OK, &json!(70_000), &json!(0))
    );
    let most = what["most_msat"].as_u64().unwrap();
    assert_eq!(most + what["fee_max_msat"].as_u64().unwrap(), 70_000);

    *disk.wallet.mood.lock() = Mood::Pays(2_000);
    let (status, told) = desk.refund(&token, Bill::new(1, 50_000)).await;
    assert_eq!((status, &told["state"]), (StatusCode::OK, &json!("paid")), "{told}");
    assert_eq!((&told["amount_msat"], &told["fee_msat"]), (&json!(50_000), &json!(2_000)));
    let balance = disk.balance(&token).await;
    // What the route could have cost and did not is the buyer's again.
    assert_eq!((balance.spent(), balance.refunded(), balance.left()), (30_000, 52_000, 18_000));
    assert_eq!(disk.wallet.asked.lock()[0].fee_max, Msat::new(5_500));
    desk.lawful().await;
}

#[tokio::test]
async fn credit_that_nobody_has_used_goes_back_also_after_its_end() {
    let desk = Disk::new().open().await;
    let end = START.saturating_add(Duration::from_secs(100));
    let token = Token::sold_until(1, Offer::Credit, 100_000, Some(end));
    desk.settle(&token, 100_000).await;
    desk.disk.clock.set(START.saturating_add(Duration::from_secs(300)));
    let (_, told) = desk.refund(&token, Bill::new(1, 90_000)).await;
    assert_eq!(told["state"], "paid", "{told}");
    desk.lawful().await;
}

#[tokio::test]
async fn money_beyond_the_price_goes_back_once() {
    let desk = Disk::new().open().await;
    let token = Token::sold(1, Offer::Forever, 10_000);
    desk.settle(&token, 10_000).await;
    desk.settle(&token, 60_000).await;
    Desk::refused(&desk.refund(&token, Bill::new(1, 55_000)).await, "refund_too_much");
    let (_, told) = desk.refund(&token, Bill::new(2, 50_000)).await;
    assert_eq!((&told["state"], &told["of"]), (&json!("paid"), &json!("surplus")), "{told}");
    let (_, what) = desk.send(&Method::GET, None, &token.headers(), "").await;
    assert_eq!((&what["credit_msat"], &what["surplus_msat"]), (&json!(0), &json!(10_000)));
    Desk::refused(&desk.refund(&token, Bill::new(3, 5_000)).await, "refund_too_much");
    desk.lawful().await;
}

#[tokio::test]
async fn requests_that_were_not_made_are_no_money() {
    let desk = Disk::new().open().await;
    let token = Token::sold(1, Offer::Requests(NonZeroU64::new(10).unwrap()), 100_000);
    desk.settle(&token, 100_000).await;
    Desk::refused(&desk.refund(&token, Bill::new(1, 10_000)).await, "refund_too_much");
    assert_eq!(desk.disk.wallet.paid(), 0);
}

#[tokio::test]
async fn only_the_holder_of_the_whole_token_gets_money() {
    let desk = Disk::new().open().await;
    let token = desk.credit(1).await;
    let other = desk.credit(2).await;
    let body = || json!({ "to": Bill::new(1, 10_000).text() });

    Desk::refused(&desk.ask(&HeaderMap::new(), body()).await, "refund_credential_missing");
    let wrong = Token::shown(&token.macaroon, &other.preimage);
    Desk::refused(&desk.ask(&wrong, body()).await, "refund_credential_wrong");
    for caveat in ["weather_valid_until=1800000000", "farebox_path=/a", "weather_capabilities=read", "a=b"] {
        let narrowed = token.macaroon.attenuate(caveat).unwrap();
        let headers = Token::shown(&narrowed, &token.preimage);
        Desk::refused(&desk.ask(&headers, body()).await, "refund_token_narrowed");
        Desk::refused(&desk.send(&Method::GET, None, &headers, "").await, "refund_token_narrowed");
    }
    let mut both = token.headers();
    both.append(header::AUTHORIZATION, other.headers()[header::AUTHORIZATION].clone());
    Desk::refused(&desk.ask(&both, body()).await, "refund_credential_wrong");

    let (_, told) = desk.refund(&token, Bill::new(9, 10_000)).await;
    let query = format!("id={}", told["id"].as_str().unwrap());
    let seen = desk.send(&Method::GET, Some(&query), &other.headers(), "").await;
    Desk::refused(&seen, "refund_unknown");
    assert_eq!(desk.disk.wallet.paid(), 1);
}

#[tokio::test]
async fn a_revoked_token_gets_no_money() {
    let desk = Disk::new().open().await;
    let token = desk.credit(1).await;
    let identifier = token.macaroon.identifier().unwrap();
    desk.paywall.revoke(identifier.hash(), "traded for a better one").await.unwrap();
    Desk::refused(&desk.refund(&token, Bill::new(1, 10_000)).await, "refund_token_withdrawn");
    assert_eq!(desk.disk.wallet.paid(), 0);
}

#[tokio::test]
async fn a_preimage_without_money_on_the_books_gets_none() {
    let desk = Disk::new().open().await;
    let token = Token::sold(1, Offer::Credit, 100_000);
    Desk::refused(&desk.refund(&token, Bill::new(1, 10_000)).await, "refund_unsettled");
    // Too little of it is not enough either.
    desk.settle(&token, 99_000).await;
    Desk::refused(&desk.refund(&token, Bill::new(1, 10_000)).await, "refund_unsettled");
    assert_eq!(desk.disk.wallet.paid(), 0);
}

#[tokio::test]
async fn an_invoice_that_must_not_be_paid_is_not() {
    let desk = Disk::new().open().await;
    let token = desk.credit(1).await;
    let plain = Bill::new(1, 10_000);
    for bill in [
        Bill { currency: Currency::Bitcoin, ..plain.clone() },
        Bill { msat: None, ..plain.clone() },
        Bill { made_at: START.secs() - 600, ..plain.clone() },
        Bill { made_at: START.secs() - 585, ..plain.clone() },
    ] {
        Desk::refused(&desk.refund(&token, bill).await, "refund_invoice_refused");
    }
    for (to, code) in [
        ("lnbcrt1nonsense".to_owned(), "refund_invoice_refused"),
        ("alice@".to_owned(), "refund_address_refused"),
    ] {
        Desk::refused(&desk.ask(&token.headers(), json!({ "to": to })).await, code);
    }
    let over = json!({ "to": plain.text(), "amount_msat": 9_000 });
    Desk::refused(&desk.ask(&token.headers(), over).await, "refund_invoice_refused");
    Desk::refused(&desk.refund(&token, Bill::new(1, 999)).await, "refund_too_little");
    assert_eq!(desk.disk.wallet.paid(), 0);
    assert_eq!(desk.disk.balance(&token).await.left(), 100_000);
}

#[tokio::test]
async fn what_was_paid_or_sold_by_its_hash_is_not_paid_again() {
    let desk = Disk::new().open().await;
    let token = desk.credit(1).await;
    // An invoice of ours that somebody has paid, and one that the wallet has seen.
    let known = Token { preimage: Preimage::from_bytes([7; 32]), ..Token::sold(7, Offer::Forever, 1_000) };
    desk.settle(&known, 1_000).await;
    Desk::refused(&desk.refund(&token, Bill::new(7, 10_000)).await, "refund_invoice_refused");
    let seen = Preimage::from_bytes([8; 32]).payment_hash();
    desk.disk.wallet.know(seen, Outcome::Failed("no route".to_owned()));
    Desk::refused(&desk.refund(&token, Bill::new(8, 10_000)).await, "refund_invoice_refused");
    assert_eq!(desk.disk.wallet.paid(), 0);
}

#[tokio::test]
async fn the_sellers_own_node_is_not_paid() {
    // The node of these invoices, as the seller's backends call themselves: lnd, phoenixd, the embedded node, and its door.
    let payee = Invoice::parse(&Bill::new(1, 10_000).text()).unwrap().payee();
    for name in
        [payee.clone(), format!("phoenixd:{payee}"), format!("{payee}/0102"), format!("door:{payee}/0102")]
    {
        let disk = Disk::new();
        let desk = disk.start_as(name.clone().leak(), 1_000_000).await;
        desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
        let token = desk.credit(1).await;
        Desk::refused(&desk.refund(&token, Bill::new(1, 10_000)).await, "refund_invoice_refused");
        assert_eq!(disk.wallet.paid(), 0, "{name}");
    }
}

#[tokio::test]
async fn units_of_requests_under_way_are_not_paid_back() {
    let desk = Disk::new().open().await;
    let token = desk.credit(1).await;
    let reservation = desk.reserve(&token, 60_000).await;
    let refused = desk.refund(&token, Bill::new(1, 50_000)).await;
    Desk::refused(&refused, "refund_too_much");
    assert!(refused.1["most_msat"].as_u64().unwrap() < 40_000);
    let (_, told) = desk.refund(&token, Bill::new(2, 30_000)).await;
    assert_eq!(told["state"], "paid");
    assert_eq!(reservation.commit(60_000).spent, 60_000, "nothing of it was touched");
    desk.paywall.ledger().flush().await.unwrap();
    desk.lawful().await;
}

#[tokio::test]
async fn asking_again_is_asking_once() {
    let desk = Disk::new().open().await;
    let token = desk.credit(1).await;
    let first = desk.refund(&token, Bill::new(1, 10_000)).await;
    let again = desk.refund(&token, Bill::new(1, 10_000)).await;
    assert_eq!(first, again);
    // The invoice is used up, whoever asks.
    let other = desk.credit(2).await;
    Desk::refused(&desk.refund(&other, Bill::new(1, 10_000)).await, "refund_invoice_refused");
    let named = || json!({ "to": "alice@example.com", "amount_msat": 20_000, "id": "once" });
    let first = desk.ask(&token.headers(), named()).await;
    assert_eq!(first.1["state"], "paid");
    assert_eq!(desk.ask(&token.headers(), named()).await, first);
    assert_eq!(desk.disk.wallet.paid(), 2);
}

#[tokio::test]
async fn an_address_gets_what_there_is_in_whole_satoshi() {
    let desk = Disk::new().open().await;
    let token = desk.credit(1).await;
    let (_, told) = desk.ask(&token.headers(), json!({ "to": "alice@example.com" })).await;
    assert_eq!((&told["state"], &told["amount_msat"]), (&json!("paid"), &json!(94_000)), "{told}");
    assert_eq!(desk.disk.balance(&token).await.left(), 6_000);
}

#[tokio::test]
async fn a_payment_that_fails_gives_everything_back() {
    let disk = Disk::new();
    let desk = disk.open().await;
    let token = desk.credit(1).await;
    *disk.wallet.mood.lock() = Mood::Fails;
    let (status, told) = desk.refund(&token, Bill::new(1, 90_000)).await;
    assert_eq!((status, &told["state"]), (StatusCode::OK, &json!("failed")));
    assert_eq!(disk.balance(&token).await.left(), 100_000);
    *disk.wallet.mood.lock() = Mood::Pays(0);
    let again = desk.refund(&token, Bill::new(1, 90_000)).await;
    assert_eq!(again.1["state"], "failed", "one try for an invoice");
    assert_eq!(desk.refund(&token, Bill::new(2, 90_000)).await.1["state"], "paid");
    desk.lawful().await;
}

#[tokio::test]
async fn while_it_is_unknown_nothing_is_given_back_and_nothing_else_is_paid() {
    let disk = Disk::new();
    let desk = disk.open().await;
    let token = desk.credit(1).await;
    *disk.wallet.mood.lock() = Mood::Unclear;
    let (status, told) = desk.refund(&token, Bill::new(1, 50_000)).await;
    assert_eq!((status, &told["state"]), (StatusCode::ACCEPTED, &json!("open")));
    let balance = disk.balance(&token).await;
    assert_eq!((balance.left(), balance.refunding()), (44_500, 55_500));
    Desk::refused(&desk.refund(&token, Bill::new(2, 10_000)).await, "refund_under_way");
    let hash = Preimage::from_bytes([1; 32]).payment_hash();
    disk.wallet.know(hash, Outcome::Settled { preimage: proof(&hash), fee: Msat::new(500) });
    assert_eq!(desk.ended(&token, &told["id"]).await["state"], "paid");
    assert_eq!(disk.wallet.paid(), 1);
    assert_eq!(disk.balance(&token).await.refunded(), 50_500);
    desk.lawful().await;
}

#[tokio::test]
async fn a_day_has_so_much_also_over_a_restart() {
    let disk = Disk::new();
    let desk = disk.start(100_000).await;
    desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
    let (one, two) = (desk.credit(1).await, desk.credit(2).await);
    assert_eq!(desk.refund(&one, Bill::new(1, 60_000)).await.1["state"], "paid");
    Desk::refused(&desk.refund(&two, Bill::new(2, 40_000)).await, "refund_day_used_up");

    let desk = disk.start(100_000).await;
    desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
    Desk::refused(&desk.refund(&two, Bill::new(2, 40_000)).await, "refund_day_used_up");
    assert_eq!(desk.refund(&two, Bill::new(3, 30_000)).await.1["state"], "paid", "the rest of it");
    // What fails takes nothing from the day; a day later there is as much again.
    let bill = Bill { made_at: START.secs() + 86_400, ..Bill::new(4, 40_000) };
    disk.clock.set(START.saturating_add(Duration::from_secs(86_400)));
    assert_eq!(desk.refund(&two, bill).await.1["state"], "paid");
    desk.lawful().await;
}

#[tokio::test]
async fn what_may_still_leave_counts_however_long_ago_it_was_asked_for() {
    let disk = Disk::new();
    let desk = disk.start(100_000).await;
    desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
    let (one, two) = (desk.credit(1).await, desk.credit(2).await);
    // An invoice that its payee holds: it can leave on any later day.
    *disk.wallet.mood.lock() = Mood::Hangs;
    let (_, held) = desk.refund(&one, Bill::new(1, 60_000)).await;
    let later = START.saturating_add(Duration::from_secs(2 * 86_400));
    disk.clock.set(later);
    let bill = |number| Bill { made_at: later.secs(), ..Bill::new(number, 40_000) };
    Desk::refused(&desk.refund(&two, bill(2)).await, "refund_day_used_up");

    // It leaves, and counts as of then.
    let mut id = [0; 16];
    hex::decode_to_slice(held["id"].as_str().unwrap(), &mut id).unwrap();
    desk.refunds.journal.end(RefundId(id), &State::Paid { fee: Msat::ZERO }, later).unwrap();
    Desk::refused(&desk.refund(&two, bill(3)).await, "refund_day_used_up");
}

#[tokio::test]
async fn what_nobody_can_explain_does_not_take_from_every_day_for_ever() {
    let disk = Disk::new();
    let desk = disk.start(100_000).await;
    desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
    let (one, two) = (desk.credit(1).await, desk.credit(2).await);
    *disk.wallet.mood.lock() = Mood::Hangs;
    desk.refund(&one, Bill::new(1, 60_000)).await;
    let later = START.saturating_add(Duration::from_secs(31 * 86_400));
    disk.clock.set(later);
    *disk.wallet.mood.lock() = Mood::Pays(0);
    let bill = Bill { made_at: later.secs(), ..Bill::new(2, 40_000) };
    assert_eq!(desk.refund(&two, bill).await.1["state"], "paid");
    desk.lawful().await;
}

#[tokio::test]
async fn a_name_is_for_one_request_and_not_for_another_amount_or_source() {
    let desk = Disk::new().open().await;
    let token = desk.credit(1).await;
    let named = |amount: u64, of: &str| json!({ "to": "alice@example.com", "amount_msat": amount, "of": of, "id": "once" });
    let first = desk.ask(&token.headers(), named(20_000, "credit")).await;
    assert_eq!(first.1["state"], "paid");
    Desk::refused(&desk.ask(&token.headers(), named(30_000, "credit")).await, "refund_malformed");
    Desk::refused(&desk.ask(&token.headers(), named(20_000, "surplus")).await, "refund_malformed");
    assert_eq!(desk.ask(&token.headers(), named(20_000, "credit")).await, first);
    assert_eq!(desk.disk.wallet.paid(), 1);
}

/// A server that takes its time.
struct Slow(tokio::sync::mpsc::UnboundedSender<()>);

impl Resolve for Slow {
    fn invoice<'a>(
        &'a self,
        _: &'a LightningAddress,
        _: Msat,
    ) -> BoxFuture<'a, Result<Invoice, AddressError>> {
        self.0.send(()).unwrap();
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_few_buyers_with_slow_addresses_keep_nobody_else_from_their_money() {
    let disk = Disk::new();
    let (tell, mut called) = tokio::sync::mpsc::unbounded_channel();
    let slow = Arc::new(Slow(tell));
    let desk = disk.start_over("02aa", 1_000_000_000, disk.store.clone(), slow).await;
    desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
    let mut asking = tokio::task::JoinSet::new();
    for number in 1..=4 {
        let headers = desk.credit(number).await.headers();
        for _ in 0..50 {
            let (refunds, headers) = (Arc::clone(&desk.refunds), headers.clone());
            let wish = Wish { to: "alice@example.com".to_owned(), ..Wish::default() };
            asking.spawn(async move { refunds.ask(&headers, wish).await });
        }
        called.recv().await.unwrap();
    }
    // All but the first of each are told to wait.
    for _ in 0..4 * 49 {
        assert_eq!(asking.join_next().await.unwrap().unwrap(), Err(RefundRefusal::UnderWay));
    }
    let token = desk.credit(9).await;
    assert_eq!(desk.refund(&token, Bill::new(1, 10_000)).await.1["state"], "paid");
}

#[tokio::test]
async fn however_many_addresses_are_slow_an_invoice_is_paid() {
    let disk = Disk::new();
    let (tell, mut called) = tokio::sync::mpsc::unbounded_channel();
    let slow = Arc::new(Slow(tell));
    let desk = disk.start_over("02aa", 1_000_000_000, disk.store.clone(), slow).await;
    desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
    let mut asking = tokio::task::JoinSet::new();
    for number in 1..=AT_ONCE_MAX {
        let headers = desk.credit(number.try_into().unwrap()).await.headers();
        let refunds = Arc::clone(&desk.refunds);
        let wish = Wish { to: "alice@example.com".to_owned(), ..Wish::default() };
        asking.spawn(async move { refunds.ask(&headers, wish).await });
        called.recv().await.unwrap();
    }
    let token = desk.credit(99).await;
    assert_eq!(desk.refund(&token, Bill::new(1, 10_000)).await.1["state"], "paid");
}

#[tokio::test]
async fn a_wallet_that_can_not_be_held_to_the_limit_pays_nothing() {
    let disk = Disk::new();
    let desk = disk.open().await;
    let token = desk.credit(1).await;
    *disk.wallet.fee_control.lock() = FeeControl::WorstCase { base: Msat::new(6_000), parts_per_million: 0 };
    Desk::refused(&desk.refund(&token, Bill::new(1, 10_000)).await, "refund_unavailable");
    assert_eq!(disk.wallet.paid(), 0);
}

#[tokio::test]
async fn without_its_wallet_it_says_so_and_pays_nothing() {
    let desk = Disk::new().start(1_000_000).await;
    let token = desk.credit(1).await;
    Desk::refused(&desk.refund(&token, Bill::new(1, 10_000)).await, "refund_unavailable");
}

#[tokio::test]
async fn who_asks_too_often_has_to_wait() {
    let desk = Disk::new().open().await;
    let token = desk.credit(1).await;
    let mut last = (StatusCode::OK, json!({}));
    for _ in 0..11 {
        last = desk.refund(&token, Bill { currency: Currency::Bitcoin, ..Bill::new(1, 10_000) }).await;
    }
    Desk::refused(&last, "refund_too_often");
}

#[tokio::test]
async fn of_many_at_once_one_is_paid() {
    let disk = Disk::new();
    let desk = Arc::new(disk.open().await);
    let token = Arc::new(desk.credit(1).await);
    let asked = (1..=8).map(|number| {
        let (desk, token) = (desk.clone(), token.clone());
        async move { desk.refund(&token, Bill::new(number, 90_000)).await.1 }
    });
    let answers = futures_util::future::join_all(asked).await;
    let paid = answers.iter().filter(|answer| answer["state"] == "paid").count();
    assert_eq!((paid, disk.wallet.paid()), (1, 1), "{answers:?}");
    desk.lawful().await;
}

#[tokio::test]
async fn the_front_takes_get_and_post_and_reads_what_it_understands() {
    let desk = Disk::new().open().await;
    let token = desk.credit(1).await;
    let headers = token.headers();
    let (status, _) = desk.send(&Method::PUT, None, &headers, "").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    Desk::refused(&desk.send(&Method::POST, None, &headers, "to=me").await, "refund_malformed");
    Desk::refused(&desk.send(&Method::GET, Some("id=zz"), &headers, "").await, "refund_malformed");
    let nobody = "id=00000000000000000000000000000000";
    Desk::refused(&desk.send(&Method::GET, Some(nobody), &headers, "").await, "refund_unknown");
}
