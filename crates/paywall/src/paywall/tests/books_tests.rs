//! What is paid and presented gets on the books, whatever node and store do.

use super::*;

#[tokio::test(start_paused = true)]
async fn money_and_terms_meet_on_the_books() {
    let shop = Shop::open().await;
    let (macaroon, invoice) = shop.challenge().await;
    let hash = invoice.payment_hash();
    let headers = credential(&macaroon, &shop.node.preimage(&hash));
    running(&shop.paywall, async {
        shop.node.settle(hash, 10_000);
        let unattributed = row(&shop, hash, |row| row.is_settled()).await;
        assert_eq!(unattributed.sold, None);
        for _ in 0..3 {
            check(&shop.get(&headers).await, Code::Pass);
        }
        let whole = row(&shop, hash, |row| row.sold.is_some()).await;
        let sold = whole.sold.unwrap();
        assert_eq!(sold.terms, Terms { offer: Offer::Forever, price: Msat::new(10_000) });
        assert_eq!((whole.paid.get(), whole.surplus.get(), whole.shortfall.get()), (10_000, 0, 0));
        shop.node.settle(hash, 10_000);
        let twice = row(&shop, hash, |row| row.payments == 2).await;
        assert_eq!(twice.surplus, Msat::new(10_000));
    })
    .await;
    let health = shop.paywall.health();
    assert_eq!((health.payments_booked, health.presentations_booked), (2, 1), "{health:?}");
    // A later start goes on where the books stop.
    let again = shop.reopen(Keyring::single(secret())).await;
    running(&again, until(async || (shop.node.followed.load(Ordering::SeqCst) > 1).then_some(()))).await;
    assert_eq!(again.health().payments_booked, 0);
    assert_eq!(shop.store.purchase(hash).await.unwrap().unwrap().payments, 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_at_the_end_is_written() {
    let shop = Shop::open().await;
    let mut hashes = Vec::new();
    for _ in 0..20 {
        let (macaroon, preimage) = shop.buy().await;
        check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
        hashes.push(preimage.payment_hash());
    }
    running(&shop.paywall, async {}).await;
    for hash in hashes {
        assert!(shop.store.purchase(hash).await.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_drops_notes_and_the_next_presentation_brings_them() {
    let shop =
        Shop::open_with(PaywallConfig { presentations_queued_max: 2, ..config() }, Keyring::single(secret()))
            .await;
    let mut all = Vec::new();
    for _ in 0..5 {
        let (macaroon, preimage) = shop.buy().await;
        check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
        all.push((macaroon, preimage));
    }
    assert_eq!(shop.paywall.health().presentations_dropped, 3);
    running(&shop.paywall, async {
        for (macaroon, preimage) in &all {
            until(async || {
                check(&shop.get(&credential(macaroon, preimage)).await, Code::Pass);
                shop.store.purchase(preimage.payment_hash()).await.unwrap()
            })
            .await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_in_trouble_loses_nothing_and_the_task_goes_on() {
    let shop = Shop::open().await;
    let (macaroon, preimage) = shop.buy().await;
    let hash = preimage.payment_hash();
    let stop = CancellationToken::new();
    let test = async {
        for fault in [Fault::Fails, Fault::Hangs] {
            *shop.store.fault.lock() = Some(fault);
            shop.node.settle(hash, 10_000);
            check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
            until_true(|| {
                let health = shop.paywall.health();
                health.settling.is_some() && health.revoking.is_some()
            })
            .await;
        }
        assert!(shop.paywall.health().presentations_dropped > 0);
        *shop.store.fault.lock() = None;
        until_true(|| shop.paywall.health().payments_booked == 2).await;
        check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
        until_true(|| shop.paywall.health().presentations_booked == 1).await;
        until_true(|| {
            let health = shop.paywall.health();
            health.settling.is_none() && health.presenting.is_none() && health.revoking.is_none()
        })
        .await;
        stop.cancel();
    };
    tokio::join!(shop.paywall.run(stop.clone()), test);
    let row = shop.store.purchase(hash).await.unwrap().unwrap();
    assert_eq!((row.payments, row.surplus), (2, Msat::new(10_000)));
}

#[tokio::test(start_paused = true)]
async fn a_token_with_an_absurd_end_keeps_nobody_elses_purchase_off_the_books() {
    let shop = Shop::open().await;
    let (absurd, absurd_preimage) = shop.buy().await;
    let absurd = absurd.attenuate(&format!("farebox_valid_until={}", u64::MAX)).unwrap();
    let (honest, honest_preimage) = shop.buy().await;
    // Both wait in the queue, so they are written together.
    check(&shop.get(&credential(&absurd, &absurd_preimage)).await, Code::Pass);
    check(&shop.get(&credential(&honest, &honest_preimage)).await, Code::Pass);
    running(&shop.paywall, async {}).await;
    assert_eq!(shop.paywall.health().presentations_dropped, 0);
    for preimage in [honest_preimage, absurd_preimage] {
        let row = shop.store.purchase(preimage.payment_hash()).await.unwrap().expect("it is on the books");
        assert_eq!(row.sold.unwrap().terms.offer, Offer::Forever);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_breaks_off_is_followed_again_for_ever() {
    let shop = Shop::open().await;
    shop.node.follow_fails.store(true, Ordering::SeqCst);
    let stop = CancellationToken::new();
    let test = async {
        until_true(|| shop.node.followed.load(Ordering::SeqCst) > 20).await;
        assert_eq!(shop.paywall.health().settling.unwrap(), "the node is not available: gone");
        shop.node.follow_fails.store(false, Ordering::SeqCst);
        shop.node.settle(PaymentHash::from_bytes([1; 32]), 5);
        until_true(|| shop.paywall.health().payments_booked == 1).await;
        assert_eq!(shop.paywall.health().settling, None);
        stop.cancel();
    };
    tokio::join!(shop.paywall.run(stop.clone()), test);
    assert_eq!(shop.store.cursor("02aa").await.unwrap(), Cursor(1));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_history_is_noticed() {
    let shop = Shop::open().await;
    let hash = |number| PaymentHash::from_bytes([number; 32]);
    shop.node.tell(hash(1), 5, 3);
    running(&shop.paywall, until(async || (shop.paywall.health().payments_booked == 1).then_some(()))).await;
    // Its numbers begin again, and the books already know what number 3 was.
    let told = farebox_lightning::Settlement {
        cursor: Cursor(3),
        hash: hash(2),
        amount: Msat::new(5),
        at: START,
        description: None,
    };
    assert_eq!(shop.store.settle("02aa", vec![told.into()], Cursor(3)).await.unwrap().conflicting, 1);
}
