//! Labels: what a shared node's settlements say, whose money is whose.

use std::collections::HashSet;

use farebox_protocol::Label;
use proptest::{prelude::*, test_runner::TestRunner};

use super::*;
use crate::{keyring::LabelKeys, store::Page};

fn memo(invoice: &farebox_protocol::Invoice) -> String {
    invoice.description().unwrap()
}

fn hash(number: u8) -> PaymentHash {
    PaymentHash::from_bytes([number; 32])
}

async fn shared() -> Shop {
    let shop = Shop::open().await;
    shop.node.is_shared.store(true, Ordering::SeqCst);
    shop
}

fn claim() -> Label {
    Label { service: weather().name, offer: Offer::Forever, price: Msat::new(10_000) }
}

fn keys(secret: &MintSecret, network: Network) -> LabelKeys {
    LabelKeys::of(&Keyring::single(secret.clone()), network)
}

#[tokio::test(start_paused = true)]
async fn every_invoice_says_what_it_is_for_and_no_two_say_the_same() {
    let shop = Shop::open().await;
    let mut seen = HashSet::new();
    for _ in 0..20 {
        let (_, invoice) = shop.challenge().await;
        let said = memo(&invoice);
        assert!(said.starts_with("weather: access without end ["), "{said}");
        assert_eq!(shop.paywall.mint.labels().read(&said, Msat::new(10_000)), Some(claim()));
        assert!(seen.insert(said), "nonces differ");
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_shared_node_our_money_is_booked_and_others_is_passed_over() {
    let shop = shared().await;
    let (macaroon, invoice) = shop.challenge().await;
    let sold = invoice.payment_hash();
    let ours = memo(&invoice);
    let strange = |secret: [u8; 32], network| {
        keys(&MintSecret::from_bytes(secret), network).write(&claim(), "access without end", [9; 8])
    };
    let theirs = [
        "coffee".to_owned(),
        String::new(),
        strange([1; 32], Network::Regtest),
        strange([0x77; 32], Network::Mainnet),
        ours.replace("weather", "climate"),
        ours.replace(";10000;", ";1;"),
        ours.replace("forever", "duration;secs=1"),
    ];
    for (number, memo) in (1..).zip(&theirs) {
        shop.node.settle_memo(hash(number), 10_000, memo);
    }
    shop.node.settle(hash(100), 10_000);
    shop.node.settle_memo(hash(101), 9_999, &ours);
    shop.node.settle_memo(sold, 10_000, &ours);
    shop.node.settle_memo(hash(102), 10_000, "more coffee");
    let others = theirs.len() as u64 + 3;
    running(&shop.paywall, async {
        until_true(|| shop.paywall.health().nodes[0].payments_of_others == others).await;
        let row = row(&shop, sold, |_| true).await;
        assert_eq!((row.sold, row.claimed, row.paid), (None, Some(claim()), Msat::new(10_000)));
        assert_eq!(shop.paywall.health().payments_booked, 1);
        check(&shop.get(&credential(&macaroon, &shop.node.preimage(&sold))).await, Code::Pass);
        let row = super::row(&shop, sold, |row| row.sold.is_some()).await;
        assert!(!row.is_contradicted());
    })
    .await;
    assert_eq!(shop.store.purchases(Page { after: None, rows_max: 99 }).await.unwrap().len(), 1);
    assert_eq!(shop.store.cursor("02aa").await.unwrap(), Cursor(others + 1), "past all of them");
    assert_eq!(shop.paywall.health().payments_contradicted, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_paid_while_the_gateway_is_down_is_booked_under_its_service_before_its_token_is_seen() {
    let mut shop = shared().await;
    shop.service.offer = hour();
    let (_, invoice) = shop.challenge().await;
    // The first settlement ever, and nobody is there.
    shop.node.settle_memo(invoice.payment_hash(), 10_000, &memo(&invoice));
    let again = shop.reopen(rotated(KeyState::SettledOnly { since: later(1) })).await;
    running(&again, async {
        let row = row(&shop, invoice.payment_hash(), |_| true).await;
        let want = Label { offer: hour(), ..claim() };
        assert_eq!((row.sold, row.claimed), (None, Some(want)), "whatever has become of the secret since");
    })
    .await;
}

/// Somebody else who may make invoices on the node copies one of our descriptions.
#[tokio::test(start_paused = true)]
async fn a_copied_label_is_a_claim_on_their_money_and_opens_nothing() {
    let shop = shared().await;
    let (macaroon, invoice) = shop.challenge().await;
    let preimage = farebox_protocol::Preimage::from_bytes([5; 32]);
    shop.node.settle_memo(preimage.payment_hash(), 10_000, &memo(&invoice));
    running(&shop.paywall, async {
        let copied = row(&shop, preimage.payment_hash(), |_| true).await;
        assert_eq!((copied.sold, copied.claimed), (None, Some(claim())));
        check(&shop.get(&credential(&macaroon, &preimage)).await, Code::PreimageWrong);
        // And the sale it was copied from is booked all the same.
        shop.node.settle_memo(invoice.payment_hash(), 10_000, &memo(&invoice));
        row(&shop, invoice.payment_hash(), |row| row.is_settled()).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_label_that_the_token_contradicts_is_counted_and_the_token_wins() {
    let shop = shared().await;
    let (macaroon, invoice) = shop.challenge().await;
    let sold = invoice.payment_hash();
    let other = Label { price: Msat::new(9_000), ..claim() };
    let lie = keys(&secret(), Network::Regtest).write(&other, "access", [1; 8]);
    shop.node.settle_memo(sold, 10_000, &lie);
    running(&shop.paywall, async {
        row(&shop, sold, |_| true).await;
        check(&shop.get(&credential(&macaroon, &shop.node.preimage(&sold))).await, Code::Pass);
        until_true(|| shop.paywall.health().payments_contradicted == 1).await;
        let row = row(&shop, sold, |row| row.sold.is_some()).await;
        assert_eq!((row.surplus, row.claimed), (Msat::ZERO, Some(other)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_a_node_of_our_own_all_money_is_booked() {
    let shop = Shop::open().await;
    shop.node.settle_memo(hash(1), 5, "a gift");
    shop.node.settle(hash(2), 5);
    running(&shop.paywall, until_true(|| shop.paywall.health().payments_booked == 2)).await;
    assert_eq!(shop.paywall.health().nodes[0].payments_of_others, 0);
}

#[tokio::test(start_paused = true)]
async fn books_that_cannot_be_written_hold_the_cursor_of_a_shared_node_back() {
    let shop = shared().await;
    let (_, invoice) = shop.challenge().await;
    *shop.store.fault.lock() = Some(Fault::Fails);
    running(&shop.paywall, async {
        shop.node.settle_memo(hash(1), 5, "coffee");
        shop.node.settle_memo(invoice.payment_hash(), 10_000, &memo(&invoice));
        until_true(|| shop.paywall.health().settling.is_some()).await;
        assert_eq!(
            shop.paywall.health().nodes[0].payments_of_others,
            0,
            "nothing is counted that isn't done"
        );
        *shop.store.fault.lock() = None;
        row(&shop, invoice.payment_hash(), |_| true).await;
    })
    .await;
    assert_eq!(shop.store.cursor("02aa").await.unwrap(), Cursor(2));
}

/// Memos of strangers come in on the money path: none may stop it, and none is worth a row.
#[test]
fn no_memo_of_others_is_taken_for_ours() {
    let labels = keys(&secret(), Network::Regtest);
    let ours = labels.write(&claim(), "access without end", [3; 8]);
    let strategy = (any::<String>(), 0..ours.len(), any::<u64>());
    let mut runner = TestRunner::new(ProptestConfig::with_cases(2_000));
    let run = runner.run(&strategy, |(noise, at, paid)| {
        for memo in
            [noise.clone(), format!("{ours}{noise}"), format!("{}{noise}{}", &ours[..at], &ours[at..])]
        {
            let read = labels.read(&memo, Msat::new(paid));
            let is_paid = paid >= 10_000;
            prop_assert!(read.is_none() || (is_paid && read == Some(claim())), "{memo:?}");
        }
        Ok(())
    });
    run.unwrap();
}

#[test]
fn a_label_without_a_price_that_can_be_booked_is_none() {
    let labels = keys(&secret(), Network::Regtest);
    for price in [Msat::ZERO, Msat::new(u64::MAX)] {
        let memo = labels.write(&Label { price, ..claim() }, "access", [1; 8]);
        assert_eq!(labels.read(&memo, Msat::new(u64::MAX)), None, "{price}");
    }
}
