//! Mint secrets that were rotated, lost or leaked.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_rotation_keeps_old_tokens_alive_until_the_old_secret_goes() {
    let mut shop = Shop::open().await;
    let (old, old_preimage) = shop.buy().await;
    shop.paywall = shop.reopen(rotated(KeyState::Live)).await;
    check(&shop.get(&credential(&old, &old_preimage)).await, Code::Pass);
    let (new, new_preimage) = shop.buy().await;

    shop.paywall = shop.reopen(Keyring::single(MintSecret::from_bytes([0x88; 32]))).await;
    check(&shop.get(&credential(&new, &new_preimage)).await, Code::Pass);
    check(&shop.get(&credential(&old, &old_preimage)).await, Code::TokenUnknown);
}

#[tokio::test(start_paused = true)]
async fn a_lost_secret_stops_the_start() {
    let shop = Shop::open().await;
    let keyring = || Keyring::single(MintSecret::from_bytes([0x99; 32]));
    let open =
        |config| Paywall::open(config, keyring(), shop.node.clone(), shop.store.clone(), shop.clock.clone());
    let refused = open(config()).await.err().unwrap();
    assert!(matches!(refused, OpenError::Store(StoreError::OtherSecrets { .. })), "{refused}");
    open(PaywallConfig { continuity: Continuity::Abandon, ..config() }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_on_another_network_stops_the_start() {
    let shop = Shop::open().await;
    let keyring = Keyring::single(secret());
    let mainnet = PaywallConfig::new(Network::Mainnet);
    let refused =
        Paywall::open(mainnet, keyring, shop.node.clone(), shop.store.clone(), shop.clock.clone()).await;
    assert_eq!(
        refused.err().unwrap().to_string(),
        "the node is on regtest, the configuration says mainnet; test coins must not buy what costs money"
    );
}

#[tokio::test(start_paused = true)]
async fn a_leaked_secret_opens_only_what_had_been_paid_before() {
    let mut shop = Shop::open().await;
    let (used, used_preimage) = shop.buy().await;
    let (unused, unused_preimage) = shop.buy().await;
    let (unpaid, unpaid_preimage) = shop.buy().await;
    running(&shop.paywall, async {
        shop.node.settle(used_preimage.payment_hash(), 10_000);
        shop.node.settle(unused_preimage.payment_hash(), 10_000);
        check(&shop.get(&credential(&used, &used_preimage)).await, Code::Pass);
        row(&shop, used_preimage.payment_hash(), |row| row.is_settled() && row.sold.is_some()).await;
        row(&shop, unused_preimage.payment_hash(), |row| row.is_settled()).await;
    })
    .await;

    shop.clock.set(later(100));
    shop.paywall = shop.reopen(rotated(KeyState::SettledOnly { since: later(50) })).await;
    check(&shop.get(&credential(&used, &used_preimage)).await, Code::Pass);
    check(&shop.get(&credential(&unused, &unused_preimage)).await, Code::Pass);
    check(&shop.get(&credential(&unpaid, &unpaid_preimage)).await, Code::SecretWithdrawn);

    // Whoever has the secret writes what they like over a payment of their own.
    let identifier = used.identifier().unwrap();
    let dearer = ["services=dearer:0".to_owned(), "farebox_terms=v1;offer=forever;msat=10000".to_owned()];
    let forged = Macaroon::mint(&secret().root_key(Network::Regtest, &identifier), &identifier, &dearer);
    shop.service.name = "dearer".parse().unwrap();
    check(&shop.get(&credential(&forged, &used_preimage)).await, Code::SecretWithdrawn);
    shop.service = weather();

    // Paid, but after the secret had leaked.
    running(&shop.paywall, async {
        shop.node.settle(unpaid_preimage.payment_hash(), 10_000);
        row(&shop, unpaid_preimage.payment_hash(), |row| row.is_settled()).await;
    })
    .await;
    check(&shop.get(&credential(&unpaid, &unpaid_preimage)).await, Code::SecretWithdrawn);
}

#[tokio::test(start_paused = true)]
async fn one_payment_opens_one_thing_for_who_has_a_leaked_secret() {
    let mut shop = Shop::open().await;
    let (bought, preimage) = shop.buy().await;
    running(&shop.paywall, async {
        shop.node.settle(preimage.payment_hash(), 10_000);
        row(&shop, preimage.payment_hash(), |row| row.is_settled()).await;
    })
    .await;
    shop.clock.set(later(100));
    // The task that writes queued presentations doesn't run, as if it were late.
    shop.paywall = shop.reopen(rotated(KeyState::SettledOnly { since: later(50) })).await;

    let identifier = bought.identifier().unwrap();
    let caveats = ["services=maps:0".to_owned(), "farebox_terms=v1;offer=forever;msat=10000".to_owned()];
    let forged = Macaroon::mint(&secret().root_key(Network::Regtest, &identifier), &identifier, &caveats);
    check(&shop.get(&credential(&bought, &preimage)).await, Code::Pass);
    shop.service.name = "maps".parse().unwrap();
    check(&shop.get(&credential(&forged, &preimage)).await, Code::SecretWithdrawn);
}

#[tokio::test(start_paused = true)]
async fn books_that_cannot_be_read_never_look_like_a_bad_token() {
    let mut shop = Shop::open().await;
    let (macaroon, preimage) = shop.buy().await;
    shop.paywall = shop.reopen(rotated(KeyState::SettledOnly { since: later(50) })).await;
    for fault in [Fault::Fails, Fault::Hangs] {
        *shop.store.fault.lock() = Some(fault);
        let refused = answer(shop.get(&credential(&macaroon, &preimage)).await);
        assert_eq!((refused.status, refused.code), (StatusCode::SERVICE_UNAVAILABLE, Code::StoreUnavailable));
        assert_eq!(refused.headers[header::RETRY_AFTER], "5");
    }
    // A bad one is told so without asking the books.
    let asked = shop.store.asked.load(Ordering::SeqCst);
    check(&shop.get(&credential(&macaroon, &Preimage::from_bytes([1; 32]))).await, Code::PreimageWrong);
    assert_eq!(shop.store.asked.load(Ordering::SeqCst), asked);
}
