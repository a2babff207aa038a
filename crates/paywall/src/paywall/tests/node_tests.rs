//! Several nodes: who is asked, in what time, and whose money is booked.

use farebox_lightning::Health;

use super::*;
use crate::testing::Node;

/// A challenge, and how long it took.
async fn timed(shop: &Shop) -> (Admission, Duration) {
    let began = time::Instant::now();
    (shop.get(&HeaderMap::new()).await, began.elapsed())
}

fn asked(node: &Node) -> usize {
    node.asked.lock().len()
}

#[tokio::test(start_paused = true)]
async fn a_challenge_goes_to_the_first_node_that_works_and_has_one_invoice() {
    let (mut shop, nodes) = Shop::open_over(config(), &["03bb", "04cc"]).await;
    shop.service.offer = hour();
    shop.service.price = Msat::new(10_500);
    *nodes[1].granularity.lock() = Msat::new(1_000);
    *nodes[1].grace.lock() = Duration::from_secs(7_000);
    let (_, invoice) = shop.challenge().await;
    assert_eq!((asked(&nodes[0]), asked(&nodes[1])), (1, 0));
    assert_eq!(invoice.amount(), Some(Msat::new(10_500)));

    for mood in [Mood::Down, Mood::Greedy, Mood::OnMainnet, Mood::Late, Mood::Silent] {
        *nodes[0].mood.lock() = mood;
        let before = asked(&nodes[1]);
        let (macaroon, invoice) = shop.challenge().await;
        assert_eq!(asked(&nodes[1]), before + 1, "{mood:?}: one invoice for one asker");
        assert_eq!(asked(&nodes[2]), 0, "{mood:?}");
        // Granularity and grace are those of the node that is paid.
        assert_eq!(invoice.amount(), Some(Msat::new(11_000)), "{mood:?}");
        let end = format!("weather_valid_until={}", START.secs() + 600 + 7_000 + 3_600);
        assert!(macaroon.caveats().any(|caveat| caveat == end), "{mood:?}");
        let preimage = nodes[1].preimage(&invoice.payment_hash());
        check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
        *nodes[0].mood.lock() = Mood::Well;
        time::advance(Duration::from_secs(10)).await;
        assert!(shop.challenge().await.1.amount() == Some(Msat::new(10_500)), "and back");
    }
}

#[tokio::test(start_paused = true)]
async fn all_nodes_together_have_the_time_of_one() {
    let (shop, nodes) = Shop::open_over(config(), &["03bb"]).await;
    let timeout = shop.paywall.config.invoice_timeout;
    *nodes[0].mood.lock() = Mood::Silent;
    let (challenged, took) = timed(&shop).await;
    check(&challenged, Code::PaymentRequired);
    assert!(took >= timeout / 2 && took < timeout, "{took:?}");

    *nodes[1].mood.lock() = Mood::Silent;
    for _ in 0..6 {
        let (refused, took) = timed(&shop).await;
        check(&refused, Code::NodeTimeout);
        assert!(took <= timeout + Duration::from_millis(5), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_keeps_failing_keeps_nobody_waiting_and_is_tried_again() {
    let (shop, nodes) = Shop::open_over(config(), &["03bb"]).await;
    *nodes[0].mood.lock() = Mood::Silent;
    for _ in 0..3 {
        check(&timed(&shop).await.0, Code::PaymentRequired);
    }
    assert_eq!(asked(&nodes[0]), 3);
    for _ in 0..5 {
        let (challenged, took) = timed(&shop).await;
        check(&challenged, Code::PaymentRequired);
        assert_eq!(took, Duration::ZERO);
    }
    assert_eq!(asked(&nodes[0]), 3, "nobody is sent there");

    *nodes[0].mood.lock() = Mood::Well;
    time::advance(Duration::from_secs(4)).await;
    shop.challenge().await;
    shop.challenge().await;
    assert_eq!(asked(&nodes[0]), 5, "one to see, and then all");
}

#[tokio::test(start_paused = true)]
async fn buyers_who_hang_up_on_a_silent_node_send_later_ones_elsewhere() {
    let (shop, nodes) = Shop::open_over(config(), &["03bb"]).await;
    *nodes[0].mood.lock() = Mood::Silent;
    for _ in 0..3 {
        assert!(time::timeout(Duration::from_secs(1), shop.get(&HeaderMap::new())).await.is_err());
    }
    assert_eq!(asked(&nodes[1]), 0);
    let (challenged, took) = timed(&shop).await;
    check(&challenged, Code::PaymentRequired);
    assert_eq!((took, asked(&nodes[1])), (Duration::ZERO, 1));
}

#[tokio::test(start_paused = true)]
async fn an_only_node_is_asked_every_time_and_sells_again_at_once() {
    let shop = Shop::open().await;
    *shop.node.mood.lock() = Mood::Down;
    for _ in 0..10 {
        check(&shop.get(&HeaderMap::new()).await, Code::NodeUnavailable);
    }
    assert_eq!(asked(&shop.node), 10);
    *shop.node.mood.lock() = Mood::Well;
    check(&shop.get(&HeaderMap::new()).await, Code::PaymentRequired);
}

#[tokio::test(start_paused = true)]
async fn when_the_time_is_up_no_other_node_is_asked_or_blamed() {
    let (shop, nodes) = Shop::open_over(config(), &["03bb"]).await;
    // The second has just failed; while the first one keeps a buyer waiting, its back-off ends.
    let second = shop.paywall.nodes.iter().nth(1).unwrap();
    (0..3).for_each(|_| second.breaker.insist().failed());
    *nodes[0].mood.lock() = Mood::Silent;
    let (refused, took) = timed(&shop).await;
    check(&refused, Code::NodeTimeout);
    assert!(took >= shop.paywall.config.invoice_timeout);
    assert_eq!(asked(&nodes[1]), 0, "an invoice for nobody");
    check(&timed(&shop).await.0, Code::PaymentRequired);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_reached_late_is_followed_at_once() {
    let (shop, nodes) = Shop::open_over(config(), &[]).await;
    nodes[0].is_reached.store(false, Ordering::SeqCst);
    nodes[0].settle(PaymentHash::from_bytes([1; 32]), 5);
    running(&shop.paywall, async {
        time::sleep(Duration::from_secs(100)).await;
        assert!(shop.paywall.health().settling.is_some());
        nodes[0].is_reached.store(true, Ordering::SeqCst);
        time::sleep(Duration::from_secs(1)).await;
        assert_eq!(shop.paywall.health().payments_booked, 1);
        assert_eq!(shop.paywall.health().settling, None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn when_all_have_failed_they_are_still_asked_in_turn() {
    let (shop, nodes) = Shop::open_over(config(), &["03bb"]).await;
    nodes.iter().for_each(|node| *node.mood.lock() = Mood::Down);
    for _ in 0..5 {
        check(&shop.get(&HeaderMap::new()).await, Code::NodeUnavailable);
    }
    *nodes[1].mood.lock() = Mood::Well;
    check(&shop.get(&HeaderMap::new()).await, Code::PaymentRequired);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_no_node_can_carry_out_is_no_nodes_fault() {
    let (mut shop, nodes) = Shop::open_over(config(), &["03bb"]).await;
    nodes.iter().for_each(|node| *node.granularity.lock() = Msat::new(u64::MAX));
    for _ in 0..5 {
        check(&shop.get(&HeaderMap::new()).await, Code::PriceInvalid);
    }
    nodes.iter().for_each(|node| *node.granularity.lock() = Msat::new(1));
    shop.service.price = Msat::new(7);
    shop.challenge().await;
    assert_eq!((asked(&nodes[0]), asked(&nodes[1])), (1, 0), "the first is as good as before");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_down_delays_the_money_of_no_other_and_is_named() {
    let (shop, nodes) = Shop::open_over(config(), &["03bb"]).await;
    let hash = |number| PaymentHash::from_bytes([number; 32]);
    *nodes[0].mood.lock() = Mood::Down;
    nodes[0].follow_fails.store(true, Ordering::SeqCst);
    running(&shop.paywall, async {
        nodes[1].settle(hash(1), 5);
        until_true(|| shop.paywall.health().payments_booked == 1).await;
        let health = shop.paywall.health();
        assert_eq!((health.node, health.settling), (Health::Ready, None), "sales go on");
        let [first, second] = health.nodes.as_slice() else { panic!("two") };
        assert_eq!(
            (first.name.as_str(), &first.node),
            ("02aa", &Health::Down("connection refused".to_owned()))
        );
        assert_eq!(first.settling.as_deref(), Some("the node is not available: gone"));
        assert_eq!((second.name.as_str(), &second.node, &second.settling), ("03bb", &Health::Ready, &None));

        // What happened at the first meanwhile is booked when it is back, from its own cursor.
        nodes[0].settle(hash(2), 7);
        nodes[0].follow_fails.store(false, Ordering::SeqCst);
        until_true(|| shop.paywall.health().payments_booked == 2).await;
        assert_eq!(shop.paywall.health().nodes[0].settling, None);

        nodes.iter().for_each(|node| *node.mood.lock() = Mood::Down);
        let why = "02aa: connection refused; 03bb: connection refused";
        assert_eq!(shop.paywall.health().node, Health::Down(why.to_owned()));
    })
    .await;
    for id in ["02aa", "03bb"] {
        assert_eq!(shop.store.cursor(id).await.unwrap(), Cursor(1), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_turns_out_to_be_on_another_network_is_out() {
    let (shop, nodes) = Shop::open_over(config(), &[]).await;
    let late = Arc::new(Node::new(shop.clock.clone(), "03bb"));
    late.is_reached.store(false, Ordering::SeqCst);
    let nodes = [late.clone(), nodes[0].clone()];
    let paywall = shop.over(config(), &nodes).await;
    let shop = Shop { paywall, ..shop };
    shop.challenge().await;
    *late.network.lock() = Network::Mainnet;
    late.is_reached.store(true, Ordering::SeqCst);
    late.settle(PaymentHash::from_bytes([1; 32]), 5);
    running(&shop.paywall, async {
        shop.challenge().await;
        nodes[1].settle(PaymentHash::from_bytes([2; 32]), 5);
        until_true(|| shop.paywall.health().payments_booked == 1).await;
    })
    .await;
    assert_eq!((asked(&late), late.followed.load(Ordering::SeqCst)), (0, 0), "neither sold nor booked");
    let why = "it is on mainnet, but regtest is sold on; nothing is sold through it";
    assert_eq!(shop.paywall.health().nodes[0].node, Health::Down(why.to_owned()));

    let opened =
        Paywall::open(config(), Keyring::single(secret()), late, shop.store.clone(), shop.clock.clone());
    assert!(matches!(opened.await, Err(OpenError::OtherNetwork { .. })), "known at the start, it stops it");
}

#[test]
fn without_a_node_there_is_nothing_to_open() {
    assert!(crate::Backends::new(vec![]).is_err());
}
