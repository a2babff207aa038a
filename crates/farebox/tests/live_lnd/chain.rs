//! The regtest itself does what the other tests take for granted.

use farebox_tests::regtest;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn both_nodes_of_a_channel_can_pay() {
    let regtest = regtest().await;
    for (payer, payee) in [(&regtest.buyer, &regtest.seller), (&regtest.seller, &regtest.buyer)] {
        let invoice = payee.invoice(10_000, "both ways").await;
        assert!(payer.pay(&invoice).await.pays(&invoice.payment_hash()));
        // Not how many there are: other tests' invoices come and go meanwhile.
        assert!(payee.is_settled(&invoice).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn a_node_can_be_stopped_locked_and_given_a_new_certificate() {
    let regtest = regtest().await;
    let lnd = regtest.another("restarted", &[]).await;
    let cert = std::fs::read(lnd.cert()).unwrap();
    lnd.stop().await;
    assert_eq!(lnd.state().await, "");

    lnd.drop_certificate();
    lnd.start_locked().await;
    assert_eq!(lnd.state().await, "LOCKED");
    assert_ne!(std::fs::read(lnd.cert()).unwrap(), cert);
    lnd.unlock().await;
    lnd.until_serving().await;

    regtest.until_payable(&lnd).await;
    let invoice = lnd.invoice(10_000, "after all that").await;
    assert!(regtest.buyer.pay(&invoice).await.pays(&invoice.payment_hash()));
}
