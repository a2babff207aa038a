//! The embedded node against the rules for every backend, and against LDK's own invoices. One net for all tests: LDK
//! needs two seconds from a node's start to its first payment.
#![expect(clippy::unwrap_used, reason = "a test stops at what it didn't expect")]

use std::sync::Arc;
use std::time::Duration;

use farebox_lightning::conformance::{self, Bad, Tender};
use farebox_lightning::embedded::ldk_node::lightning_invoice::{
    Bolt11Invoice, Bolt11InvoiceDescription, Description,
};
use farebox_lightning::embedded::{EmbeddedNode, Minter};
use farebox_lightning::sim::{Net, NetConfig};
use farebox_lightning::{Ask, Cursor, Incoming, Outcome, Pay, PayRequest, Receive};
use farebox_protocol::{Invoice, Msat, Network, Preimage, Timestamp};
use tokio::sync::OnceCell;

async fn net() -> &'static Net {
    static NET: OnceCell<Net> = OnceCell::const_new();
    NET.get_or_init(async || Net::start(NetConfig::default()).await.unwrap()).await
}

fn ask(msat: u64) -> Ask {
    Ask { amount: Msat::new(msat), expiry: Duration::from_secs(600), description: "weather".into() }
}

fn request(invoice: &Invoice) -> PayRequest {
    PayRequest { invoice: invoice.clone(), fee_max: Msat::ZERO, timeout: Duration::from_secs(30) }
}

async fn pay(buyer: Arc<EmbeddedNode>, invoice: Invoice, tender: Tender) -> Result<Preimage, String> {
    if let Tender::Amount(amount) = tender {
        let bolt11: Bolt11Invoice = invoice.as_str().parse().unwrap();
        let send = move |node: &farebox_lightning::embedded::ldk_node::Node| {
            node.bolt11_payment().send_using_amount(&bolt11, amount.get(), None)
        };
        buyer.with_ldk(send).await.unwrap().map_err(|error| error.to_string())?;
    }
    // Sent behind its back, a payment is a duplicate to our own `pay`, which then waits for it.
    match buyer.pay(request(&invoice)).await.map_err(|error| error.to_string())? {
        Outcome::Settled { preimage, .. } => Ok(preimage),
        other => Err(format!("{other:?}")),
    }
}

#[tokio::test]
async fn an_embedded_node_is_paid_as_every_backend_must_be() {
    let net = net().await;
    conformance::receive(&*net.seller, |invoice, tender| pay(Arc::clone(&net.buyer), invoice, tender)).await;
}

#[tokio::test]
async fn an_embedded_node_pays_as_every_backend_must() {
    let net = net().await;
    let yesterday = Timestamp::from_secs(1_700_000_000);
    let stranger = |network| Minter::new(&[9; 64], network).unwrap();
    let bad = Bad {
        expired: net.seller.minter().mint(&ask(1_000), yesterday).unwrap(),
        foreign: stranger(Network::Signet).mint(&ask(1_000), now()).unwrap(),
        unreachable: stranger(Network::Regtest).mint(&ask(1_000), now()).unwrap(),
    };
    conformance::pay(&*net.buyer, &*net.seller, bad).await;
}

#[tokio::test]
async fn a_seller_can_pay_back_over_the_same_channel() {
    let net = net().await;
    let bad = Bad {
        expired: net.buyer.minter().mint(&ask(1_000), Timestamp::from_secs(1_700_000_000)).unwrap(),
        foreign: Minter::new(&[9; 64], Network::Mainnet).unwrap().mint(&ask(1_000), now()).unwrap(),
        unreachable: Minter::new(&[9; 64], Network::Regtest).unwrap().mint(&ask(1_000), now()).unwrap(),
    };
    conformance::pay(&*net.seller, &*net.buyer, bad).await;
}

/// The system's time, by way of an invoice: tests read no clock of their own.
fn now() -> Timestamp {
    use farebox_lightning::clock::{Clock, SystemClock};
    SystemClock.now()
}

#[tokio::test]
async fn a_minted_invoice_is_field_by_field_one_that_ldk_would_make() {
    let net = net().await;
    let ours: Bolt11Invoice = net.seller.invoice(ask(21_000)).await.unwrap().as_str().parse().unwrap();
    let theirs = net.seller.with_ldk(|node| {
        let text = Bolt11InvoiceDescription::Direct(Description::new("weather".into()).unwrap());
        node.bolt11_payment().receive(21_000, &text, 600)
    });
    // By way of the text, which is all that a payer sees: hints there have no HTLC limits.
    let theirs: Bolt11Invoice = theirs.await.unwrap().unwrap().to_string().parse().unwrap();
    assert_eq!(ours.currency(), theirs.currency());
    assert_eq!(ours.amount_milli_satoshis(), theirs.amount_milli_satoshis());
    assert_eq!(ours.description().to_string(), theirs.description().to_string());
    assert_eq!(ours.expiry_time(), theirs.expiry_time());
    assert_eq!(ours.min_final_cltv_expiry_delta(), theirs.min_final_cltv_expiry_delta());
    assert_eq!(ours.features(), theirs.features());
    assert_eq!(ours.fallbacks(), theirs.fallbacks());
    assert_eq!(ours.payment_metadata(), theirs.payment_metadata());
    assert_eq!(ours.get_payee_pub_key(), theirs.get_payee_pub_key());
    assert_eq!(ours.private_routes(), theirs.private_routes());
    assert_eq!(ours.route_hints().len(), 1);
}

#[tokio::test]
async fn ten_thousand_unpaid_invoices_leave_nothing_behind() {
    let net = net().await;
    let records = || net.seller.with_ldk(|node| node.list_payments().len());
    let before = records().await.unwrap();
    for _ in 0..10_000 {
        net.seller.minter().mint_text(&ask(1_000), now()).unwrap();
    }
    // The other tests of this net ask LDK for one record at most.
    assert!(records().await.unwrap() <= before + 1);
}

#[tokio::test]
async fn a_payment_outlives_the_caller_that_wanted_it() {
    let net = net().await;
    let invoice = net.seller.invoice(ask(5_000)).await.unwrap();
    {
        let paying = net.buyer.pay(request(&invoice));
        tokio::select! {
            biased;
            _ = paying => panic!("a payment takes longer than one poll"),
            () = tokio::task::yield_now() => {}
        }
    }
    let outcome = net.buyer.pay(request(&invoice)).await.unwrap();
    assert!(matches!(outcome, Outcome::Settled { .. }), "{outcome:?}");
    let got = Receive::lookup(&*net.seller, invoice.payment_hash()).await.unwrap();
    assert!(matches!(got, Incoming::Settled { amount, .. } if amount == Msat::new(5_000)));
}

/// As after a start with an older copy of the book.
#[tokio::test]
async fn a_payment_that_the_book_does_not_know_is_asked_of_ldk() {
    let net = net().await;
    let invoice = net.seller.invoice(ask(5_000)).await.unwrap();
    let hash = invoice.payment_hash();
    assert!(matches!(Pay::lookup(&*net.buyer, hash).await.unwrap(), Outcome::NotFound));
    let bolt11: Bolt11Invoice = invoice.as_str().parse().unwrap();
    net.buyer.with_ldk(move |node| node.bolt11_payment().send(&bolt11, None)).await.unwrap().unwrap();
    loop {
        match Pay::lookup(&*net.buyer, hash).await.unwrap() {
            Outcome::InFlight => tokio::task::yield_now().await,
            known => break assert!(matches!(known, Outcome::Settled { .. }), "{known:?}"),
        }
    }
}

#[tokio::test]
async fn a_payment_that_takes_too_long_is_in_flight_and_settles_later() {
    let net = net().await;
    let invoice = net.seller.invoice(ask(5_000)).await.unwrap();
    let hurried = PayRequest { timeout: Duration::ZERO, ..request(&invoice) };
    let outcome = net.buyer.pay(hurried).await.unwrap();
    assert!(matches!(outcome, Outcome::InFlight), "{outcome:?}");
    let known = Pay::lookup(&*net.buyer, invoice.payment_hash()).await.unwrap();
    assert!(matches!(known, Outcome::InFlight | Outcome::Settled { .. }), "{known:?}");
    let outcome = net.buyer.pay(request(&invoice)).await.unwrap();
    assert!(matches!(outcome, Outcome::Settled { .. }), "{outcome:?}");
}

#[tokio::test]
async fn more_payments_than_a_channel_has_places_for_all_arrive() {
    let net = net().await;
    let mut paying = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let invoice = net.seller.invoice(ask(1_000)).await.unwrap();
        let buyer = Arc::clone(&net.buyer);
        paying.spawn(async move { buyer.pay(request(&invoice)).await });
    }
    while let Some(outcome) = paying.join_next().await {
        let outcome = outcome.unwrap().unwrap();
        assert!(matches!(outcome, Outcome::Settled { .. }), "{outcome:?}");
    }
}

#[tokio::test]
async fn more_than_the_wallet_has_fails_at_once() {
    let net = net().await;
    let invoice = net.seller.minter().mint(&ask(100_000_000_000), now()).unwrap();
    let outcome = net.buyer.pay(request(&invoice)).await.unwrap();
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
}

#[tokio::test]
async fn an_invoice_without_an_amount_is_not_paid() {
    let net = net().await;
    let open = net.seller.with_ldk(|node| {
        let text = Bolt11InvoiceDescription::Direct(Description::new("any".into()).unwrap());
        node.bolt11_payment().receive_variable_amount(&text, 600)
    });
    let invoice: Invoice = open.await.unwrap().unwrap().to_string().parse().unwrap();
    let outcome = net.buyer.pay(request(&invoice)).await.unwrap();
    assert!(matches!(outcome, Outcome::Failed(why) if why == "the invoice has no amount"));
    let known = Pay::lookup(&*net.buyer, invoice.payment_hash()).await.unwrap();
    assert!(matches!(known, Outcome::NotFound), "{known:?}");
}

#[tokio::test]
async fn each_node_has_a_wallet_and_a_sequence_of_its_own() {
    let net = net().await;
    let (seller, buyer) = (Receive::facts(&*net.seller).unwrap(), Pay::facts(&*net.buyer));
    assert!(seller.node.starts_with(&net.seller.node_id().to_string()));
    assert!(buyer.wallet.0.starts_with(&net.buyer.node_id().to_string()));
    // Both have a part that is the book's: the same seed with another book is another wallet.
    assert_ne!(seller.node, net.seller.node_id().to_string());
    let minter = net.seller.minter().node_id();
    assert_eq!(net.seller.with_ldk(|node| node.node_id()).await.unwrap(), minter);
}

#[tokio::test]
async fn several_streams_tell_the_same() {
    use futures_util::StreamExt as _;
    let net = net().await;
    let invoice = net.seller.invoice(ask(7_000)).await.unwrap();
    pay(Arc::clone(&net.buyer), invoice, Tender::Exact).await.unwrap();
    let first = || async {
        let first = net.seller.settlements(Cursor(0)).next().await.unwrap();
        first.unwrap()
    };
    assert_eq!(first().await, first().await);
}
