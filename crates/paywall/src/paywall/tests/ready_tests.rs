//! Invoices that lie ready: to whom they go, when they are dropped, and what they cost the node.

use std::{collections::HashSet, num::NonZeroU32};

use super::*;
use crate::{Rate, testing::Node};

const EACH: Duration = Duration::from_secs(2);

fn kept(ready_invoices: usize) -> PaywallConfig {
    // These wait for hours, in which revocations would be read very often.
    let revocation_poll = Duration::from_secs(600);
    PaywallConfig { ready_invoices, revocation_poll, mint_per_client: per_second(100), ..config() }
}

fn per_second(count: u32) -> Rate {
    Rate::per_second(NonZeroU32::new(count).unwrap())
}

/// A node that takes its time.
async fn slow(config: PaywallConfig) -> Shop {
    let shop = Shop::open_with(config, Keyring::single(secret())).await;
    *shop.node.mood.lock() = Mood::Slow(EACH);
    shop
}

fn asked(node: &Node) -> usize {
    node.asked.lock().len()
}

fn ready(shop: &Shop) -> usize {
    shop.paywall.health().nodes[0].invoices_ready
}

async fn timed(shop: &Shop) -> (PaymentHash, Duration) {
    let began = time::Instant::now();
    let (_, invoice) = shop.challenge().await;
    (invoice.payment_hash(), began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn the_first_asker_waits_and_those_after_get_what_lies_ready_once_each() {
    let shop = slow(kept(3)).await;
    running(&shop.paywall, async {
        time::sleep(Duration::from_secs(60)).await;
        assert_eq!(asked(&shop.node), 0, "nothing is made for prices that nobody asks for");
        assert_eq!(timed(&shop).await.1, EACH);
        until_true(|| ready(&shop) == 3).await;
        let mut given = HashSet::new();
        for _ in 0..3 {
            let (hash, took) = timed(&shop).await;
            assert_eq!(took, Duration::ZERO);
            assert!(given.insert(hash));
        }
        until_true(|| ready(&shop) == 3).await;
        assert_eq!(asked(&shop.node), 7, "one for the first, three ready, three in their place");
        let (macaroon, preimage) = shop.buy().await;
        check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn each_price_and_offer_has_its_own() {
    let mut shop = slow(kept(2)).await;
    running(&shop.paywall.clone(), async {
        shop.challenge().await;
        until_true(|| ready(&shop) == 2).await;
        shop.service.price = Msat::new(20_000);
        assert_eq!(timed(&shop).await.1, EACH);
        shop.service.offer = hour();
        assert_eq!(timed(&shop).await.1, EACH);
        until_true(|| ready(&shop) == 6).await;
        let (macaroon, invoice) = shop.challenge().await;
        assert_eq!(invoice.amount(), Some(Msat::new(20_000)));
        assert!(macaroon.caveats().any(|caveat| caveat.contains("offer=duration;secs=3600;msat=20000")));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn when_the_node_goes_down_all_that_lies_ready_is_dropped() {
    let shop = slow(kept(3)).await;
    running(&shop.paywall, async {
        shop.challenge().await;
        until_true(|| ready(&shop) == 3).await;
        *shop.node.mood.lock() = Mood::Down;
        check(&shop.get(&HeaderMap::new()).await, Code::NodeUnavailable);
        assert_eq!(ready(&shop), 0);
        *shop.node.mood.lock() = Mood::Slow(EACH);
        shop.challenge().await;
        until_true(|| ready(&shop) == 3).await;
        // Or without anybody asking.
        *shop.node.mood.lock() = Mood::Down;
        time::sleep(Duration::from_secs(2)).await;
        assert_eq!(ready(&shop), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_settlements_cannot_be_followed_hands_out_nothing_made_earlier() {
    let shop = slow(kept(1)).await;
    running(&shop.paywall, async {
        shop.challenge().await;
        until_true(|| ready(&shop) == 1).await;
        shop.node.follow_fails.store(true, Ordering::SeqCst);
        shop.node.settle(PaymentHash::from_bytes([1; 32]), 1);
        until_true(|| shop.paywall.health().settling.is_some()).await;
        assert_eq!(timed(&shop).await.1, EACH);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_that_has_lain_for_a_tenth_of_its_life_is_dropped_and_cold_prices_are_given_up() {
    let shop = slow(kept(2)).await;
    let expiry = shop.paywall.config.invoice_expiry;
    running(&shop.paywall, async {
        shop.challenge().await;
        until_true(|| ready(&shop) == 2).await;
        let first = asked(&shop.node);
        time::sleep(expiry / 10 + Duration::from_secs(10)).await;
        assert_eq!((ready(&shop), asked(&shop.node)), (2, first + 2), "others have taken their place");
        time::sleep(Duration::from_secs(900)).await;
        assert_eq!(ready(&shop), 0, "nobody asked any more");
        let last = asked(&shop.node);
        time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!(asked(&shop.node), last);
    })
    .await;
}

/// However many ask, the node makes no more invoices than the budget has challenges.
#[tokio::test(start_paused = true)]
async fn a_flood_makes_the_node_no_busier_than_the_budget() {
    let config = PaywallConfig {
        mint_per_client: per_second(1_000),
        mint_total: Rate { count: NonZeroU32::new(30).unwrap(), per: Duration::from_secs(3_600) },
        ..kept(8)
    };
    let shop = Shop::open_with(config, Keyring::single(secret())).await;
    running(&shop.paywall, async {
        let mut sold = 0;
        for _ in 0..400 {
            sold += usize::from(shop.get(&HeaderMap::new()).await.code() == Code::PaymentRequired);
            time::sleep(Duration::from_millis(100)).await;
        }
        assert!(asked(&shop.node) <= 31, "{}", asked(&shop.node));
        assert!((20..=31).contains(&sold), "{sold}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_fails_to_fill_the_shelf_is_left_alone_for_a_while() {
    let shop = slow(kept(4)).await;
    running(&shop.paywall, async {
        shop.challenge().await;
        *shop.node.mood.lock() = Mood::Greedy;
        time::sleep(Duration::from_secs(60)).await;
        assert!(asked(&shop.node) < 20, "{}", asked(&shop.node));
        assert_eq!(ready(&shop), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_fills_the_shelf_again_is_not_said_to_make_no_invoices() {
    let shop = slow(kept(2)).await;
    let minting = || shop.paywall.health().nodes[0].minting.clone();
    running(&shop.paywall, async {
        shop.challenge().await;
        *shop.node.mood.lock() = Mood::Greedy;
        until_true(|| minting().is_some()).await;
        *shop.node.mood.lock() = Mood::Well;
        until_true(|| ready(&shop) == 2).await;
        assert_eq!(minting(), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn unless_it_is_asked_for_nothing_is_made_ahead() {
    let shop = Shop::open().await;
    running(&shop.paywall, async {
        shop.challenge().await;
        time::sleep(Duration::from_secs(60)).await;
        assert_eq!(asked(&shop.node), 1);
    })
    .await;
}
