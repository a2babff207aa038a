//! Two who want the same money, and addresses whose server cheats.

use futures_util::future::join_all;

use super::*;

#[tokio::test]
async fn of_many_who_race_for_the_money_of_a_day_as_many_are_paid_as_it_holds() {
    let disk = Disk::new();
    let desk = Arc::new(disk.start(100_000).await);
    desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
    let mut asked = Vec::new();
    for number in 1..=8 {
        let (desk, token) = (desk.clone(), desk.credit(number).await);
        // With 5.3 sat for its route each.
        asked.push(async move { desk.refund(&token, Bill::new(number, 30_000)).await.1 });
    }
    let answers = join_all(asked).await;
    let with = |key: &str, value: &str| answers.iter().filter(|answer| answer[key] == value).count();
    // While one is under way its route may cost something; two are the most that fit at once, and three by and by.
    let paid = with("state", "paid");
    assert!((2..=3).contains(&paid), "{answers:?}");
    assert_eq!((disk.wallet.paid(), with("code", "refund_day_used_up")), (paid, 8 - paid), "{answers:?}");
    desk.lawful().await;
}

#[tokio::test]
async fn one_invoice_that_many_tokens_ask_for_at_once_is_paid_once() {
    let disk = Disk::new();
    let desk = Arc::new(disk.open().await);
    let mut asked = Vec::new();
    for number in 1..=6 {
        let (desk, token) = (desk.clone(), Arc::new(desk.credit(number).await));
        for _ in 0..2 {
            let (desk, token) = (desk.clone(), token.clone());
            asked.push(async move { desk.refund(&token, Bill::new(1, 30_000)).await.1 });
        }
    }
    let answers = join_all(asked).await;
    assert_eq!(disk.wallet.paid(), 1, "{answers:?}");
    let mut refunded = 0;
    for number in 1..=6 {
        let token = Token::sold(number, Offer::Credit, 100_000);
        refunded += Accounts::account(&*disk.store, token.hash())
            .await
            .unwrap()
            .map_or(0, |account| account.balance.refunded());
    }
    assert_eq!(refunded, 30_000, "and taken of one of them");
    desk.lawful().await;
}

/// Requests and a refund want the same credit: what is paid back and what is charged never come to more than was sold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_a_refund_share_one_balance() {
    for round in 0..8 {
        let disk = Disk::new();
        *disk.wallet.mood.lock() = Mood::Pays(1_000);
        let desk = Arc::new(disk.open().await);
        let token = Arc::new(desk.credit(1).await);
        desk.refunds.bought(&desk.refunds.holder(&token.headers()).unwrap()).await.unwrap();
        let mut requests = tokio::task::JoinSet::new();
        for number in 0..20_u8 {
            let (desk, hash) = (desk.clone(), token.hash());
            requests.spawn(async move {
                let units = NonZeroU64::new(9_000).unwrap();
                let Some(Ok(mut reservation)) = desk.paywall.ledger().reserve_at_once(&hash, units) else {
                    return;
                };
                if number % 3 == 0 {
                    reservation.extend(20_000);
                }
                tokio::task::yield_now().await;
                match number % 4 {
                    0 => reservation.release(),
                    // Dearer than what it has set aside.
                    1 => drop(reservation.commit(30_000)),
                    _ => drop(reservation.commit(9_000)),
                }
            });
        }
        let mut asked = desk.refund(&token, Bill::new(1, 60_000)).await.1;
        if asked["state"] == "open" {
            asked = desk.ended(&token, &asked["id"].clone()).await;
        }
        while let Some(done) = requests.join_next().await {
            done.unwrap();
        }
        desk.paywall.ledger().flush().await.unwrap();
        let balance = disk.balance(&token).await;
        let refunded = if asked["state"] == "paid" { 61_000 } else { 0 };
        assert_eq!((balance.refunded(), balance.refunding()), (refunded, 0), "{round}: {asked}");
        assert!(balance.holds() && balance.spent() + refunded <= 100_000, "{balance:?}");
        assert_eq!(Some(balance), desk.paywall.ledger().balance(&token.hash()), "in memory as on the disk");
        desk.lawful().await;
    }
}

#[tokio::test]
async fn what_is_being_paid_back_is_not_charged_by_a_request_that_comes_to_more_than_it_reserved() {
    let disk = Disk::new();
    let desk = disk.open().await;
    let token = desk.credit(1).await;
    let reservation = desk.reserve(&token, 10_000).await;
    *disk.wallet.mood.lock() = Mood::Unclear;
    let (_, told) = desk.refund(&token, Bill::new(1, 80_000)).await;
    assert_eq!(told["state"], "open");
    let charged = reservation.commit(50_000);
    assert_eq!(
        (charged.spent, charged.written_off),
        (14_200, 35_800),
        "its own, and what was left beside the refund"
    );
    let hash = Preimage::from_bytes([1; 32]).payment_hash();
    disk.wallet.know(hash, Outcome::Settled { preimage: proof(&hash), fee: Msat::new(5_800) });
    assert_eq!(desk.ended(&token, &told["id"]).await["state"], "paid");
    desk.paywall.ledger().flush().await.unwrap();
    let balance = disk.balance(&token).await;
    assert_eq!((balance.spent(), balance.refunded(), balance.left()), (14_200, 85_800, 0));
    desk.lawful().await;
}

#[tokio::test]
async fn midnight_and_a_clock_that_is_set_back_give_no_second_day() {
    let disk = Disk::new();
    let desk = disk.start(100_000).await;
    desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
    let (one, two) = (desk.credit(1).await, desk.credit(2).await);
    let midnight = START.secs().next_multiple_of(86_400) + 86_400;
    let at = |secs| {
        disk.clock.set(Timestamp::from_secs(secs));
        move |number| Bill { made_at: secs, ..Bill::new(number, 60_000) }
    };
    let bill = at(midnight - 1);
    assert_eq!(desk.refund(&one, bill(1)).await.1["state"], "paid");
    let mut number = 1;
    for moment in [midnight + 1, midnight + 80_000, midnight - 90_000, midnight - 10 * 86_400] {
        let bill = at(moment);
        number += 1;
        Desk::refused(&desk.refund(&two, bill(number)).await, "refund_day_used_up");
    }
    let bill = at(midnight + 86_400);
    assert_eq!(desk.refund(&two, bill(number + 1)).await.1["state"], "paid");
    desk.lawful().await;
}

/// Answers each call with the next of these invoices, whatever was asked for.
struct Cheats(Mutex<Vec<String>>);

impl Resolve for Cheats {
    fn invoice<'a>(
        &'a self,
        _: &'a LightningAddress,
        _: Msat,
    ) -> BoxFuture<'a, Result<Invoice, AddressError>> {
        let text = self.0.lock().remove(0);
        Box::pin(async move { Ok(Invoice::parse(&text).unwrap()) })
    }
}

#[tokio::test]
async fn an_address_whose_invoices_change_gets_what_was_agreed_on_or_nothing() {
    let disk = Disk::new();
    let sold = Token::sold(9, Offer::Forever, 10_000);
    let invoices = [
        // More, less, without an amount, of another network, too late, for a hash of the seller's.
        Bill::new(1, 20_001),
        Bill::new(2, 19_999),
        Bill { msat: None, ..Bill::new(3, 0) },
        Bill { currency: Currency::Bitcoin, ..Bill::new(4, 20_000) },
        Bill { made_at: START.secs() - 590, ..Bill::new(5, 20_000) },
        Bill::new(6, 20_000),
        // The right one; then the same again, for another request and for another token; then another one.
        Bill::new(7, 20_000),
        Bill::new(7, 20_000),
        Bill::new(7, 20_000),
        Bill::new(8, 20_000),
    ];
    let invoices = Cheats(Mutex::new(invoices.map(Bill::text).to_vec()));
    let desk = disk.start_over("02aa", 1_000_000_000, disk.store.clone(), Arc::new(invoices)).await;
    desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
    let (token, other) = (desk.credit(1).await, desk.credit(2).await);
    desk.settle(&Token { preimage: Preimage::from_bytes([6; 32]), ..sold }, 10_000).await;
    let ask = |name: &str| json!({ "to": "mallory@example.com", "amount_msat": 20_000, "id": name });
    for _ in 0..6 {
        Desk::refused(&desk.ask(&token.headers(), ask("once")).await, "refund_invoice_refused");
    }
    assert_eq!(disk.wallet.paid(), 0);
    let first = desk.ask(&token.headers(), ask("once")).await;
    assert_eq!(first.1["state"], "paid");
    assert_eq!(
        desk.ask(&token.headers(), ask("once")).await,
        first,
        "known by its name; the server isn't asked"
    );
    Desk::refused(&desk.ask(&token.headers(), ask("twice")).await, "refund_invoice_refused");
    Desk::refused(&desk.ask(&other.headers(), ask("once")).await, "refund_invoice_refused");
    assert_eq!(disk.wallet.paid(), 1);
    assert_eq!(
        desk.ask(&other.headers(), ask("once")).await.1["state"],
        "paid",
        "a name belongs to one purchase"
    );
    assert_eq!(disk.wallet.paid(), 2);
    desk.lawful().await;
}
