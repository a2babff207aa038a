//! lnd as a backend, against the rules for every backend.

use std::time::Duration;

use farebox_lightning::{
    Ask, FeeControl, Outcome, PayRequest,
    clock::{Clock as _, SystemClock},
    config::{Connected, LightningConfig, Places},
    conformance::{self, Bad, Tender},
    embedded::Minter,
};
use farebox_protocol::{Invoice, Msat, Network, PaymentHash, Timestamp};
use farebox_tests::{Lnd, regtest, until};
use serde_json::json;

/// As the configuration file does it.
async fn connect(lnd: &Lnd, macaroon: &str) -> Connected {
    let config = json!({ "lnd": {
        "address": lnd.rpc(),
        "network": "regtest",
        "tls-cert": { "file": lnd.cert() },
        "macaroon": { "file": lnd.macaroon(macaroon) },
    }});
    let config: LightningConfig = serde_json::from_value(config).unwrap();
    let connected = config.connect(Places { config: lnd.dir(), state: lnd.dir() }).await.unwrap();
    let ready = async || connected.receive().health() == farebox_lightning::Health::Ready;
    until("the node can be sold through", ready).await;
    connected
}

/// An invoice of nobody that can be reached.
fn stranger(network: Network, at: Timestamp) -> Invoice {
    let ask = Ask { amount: Msat::new(1_000), expiry: Duration::from_secs(600), description: "bad".into() };
    Minter::new(&[9; 64], network).unwrap().mint(&ask, at).unwrap()
}

fn request(invoice: &Invoice, fee_max: Msat) -> PayRequest {
    PayRequest { invoice: invoice.clone(), fee_max, timeout: Duration::from_secs(30) }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn lnd_is_paid_as_every_backend_must_be() {
    let regtest = regtest().await;
    let seller = connect(&regtest.seller, "invoice").await;
    let buyer = &regtest.buyer;
    let pay = |invoice: Invoice, tender| async move {
        let paid = match tender {
            Tender::Exact => buyer.try_pay(&invoice).await,
            Tender::Amount(amount) => buyer.try_pay_amount(&invoice, amount.get()).await,
        };
        paid.map_err(|refused| refused.0)
    };
    conformance::receive(&*seller.receive(), pay).await;
    seller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn lnd_pays_as_every_backend_must() {
    let regtest = regtest().await;
    let (buyer, seller) = (connect(&regtest.buyer, "admin").await, connect(&regtest.seller, "invoice").await);
    let wallet = buyer.pay().await.unwrap();
    let facts = wallet.facts();
    assert!(facts.wallet.0.ends_with(regtest.buyer.node()), "{}", facts.wallet);
    assert_eq!((facts.network, facts.fee_control), (Network::Regtest, FeeControl::Exact));
    let now = SystemClock.now();
    let bad = Bad {
        expired: stranger(Network::Regtest, Timestamp::from_secs(1_700_000_000)),
        foreign: stranger(Network::Mainnet, now),
        unreachable: stranger(Network::Regtest, now),
    };
    conformance::pay(&*wallet, &*seller.receive(), bad).await;
    buyer.stop().await;
    seller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn a_fee_limit_is_never_exceeded_and_none_means_none() {
    let regtest = regtest().await;
    // Two hops: the buyer stands between, and takes a fee of 1 sat and a millionth.
    let far = regtest.another("far", &[]).await;
    let seller = connect(&regtest.seller, "admin").await;
    let wallet = seller.pay().await.unwrap();
    let invoice = far.invoice(10_000, "two hops").await;
    for limit in [Msat::ZERO, Msat::new(999)] {
        let outcome = wallet.pay(request(&invoice, limit)).await.unwrap();
        assert!(matches!(outcome, Outcome::Failed(_)), "with {limit}: {outcome:?}");
    }
    // Once the way is known, which others tell, it is paid, and at no more than that.
    let limit = Msat::new(1_001);
    let paid = async {
        loop {
            match wallet.pay(request(&invoice, limit)).await.unwrap() {
                Outcome::Settled { fee, .. } => return fee,
                Outcome::Failed(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let fee = tokio::time::timeout(Duration::from_secs(120), paid).await.unwrap();
    assert!(Msat::ZERO < fee && fee <= limit, "{fee}");
    seller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn an_invoice_of_ones_own_is_not_paid() {
    let regtest = regtest().await;
    let buyer = connect(&regtest.buyer, "admin").await;
    let wallet = buyer.pay().await.unwrap();
    let own = regtest.buyer.invoice(10_000, "to myself").await;
    let outcome = wallet.pay(request(&own, Msat::new(1_000))).await.unwrap();
    assert!(matches!(&outcome, Outcome::Failed(why) if why.contains("self-payments")), "{outcome:?}");
    let known = wallet.lookup(own.payment_hash()).await.unwrap();
    assert!(matches!(known, Outcome::NotFound), "{known:?}");
    buyer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn a_payment_under_way_is_in_flight_and_one_that_cannot_be_sent_has_failed() {
    let regtest = regtest().await;
    let payee = regtest.another("holding", &[]).await;
    let buyer = connect(&regtest.buyer, "admin").await;
    let wallet = buyer.pay().await.unwrap();
    // The payee takes the money but does not settle: it keeps the preimage for itself.
    let hash = PaymentHash::from_bytes([0x5a; 32]);
    let held = payee.hold_invoice(hash, 10_000).await;
    // Long enough for a busy machine to have it on its way.
    let timeout = Duration::from_secs(5);
    let first = wallet.pay(PayRequest { timeout, ..request(&held, Msat::ZERO) }).await;
    assert!(matches!(first, Err(_) | Ok(Outcome::InFlight)), "{first:?}");
    let known = wallet.lookup(hash).await.unwrap();
    assert!(matches!(known, Outcome::InFlight), "{known:?}");
    // Asked again it is not sent again, but waited for.
    let again = wallet.pay(PayRequest { timeout, ..request(&held, Msat::ZERO) }).await.unwrap();
    assert!(matches!(again, Outcome::InFlight), "{again:?}");
    payee.cancel_invoice(hash).await;
    let ended = async || !matches!(wallet.lookup(hash).await.unwrap(), Outcome::InFlight);
    until("the payment has ended", ended).await;
    let end = wallet.lookup(hash).await.unwrap();
    assert!(matches!(end, Outcome::Failed(_)), "{end:?}");
    buyer.stop().await;

    // A node that is down: nothing can have been sent.
    let owner = connect(&payee, "admin").await;
    let wallet = owner.pay().await.unwrap();
    let invoice = regtest.buyer.invoice(10_000, "never paid").await;
    payee.stop().await;
    let outcome = wallet.pay(request(&invoice, Msat::ZERO)).await.unwrap();
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    assert!(wallet.lookup(invoice.payment_hash()).await.is_err());
}
