//! What every backend must do, as two suites: [`receive`] for a node that is paid, [`pay()`] for one that pays. Each rule is
//! asserted with a sentence, so that a backend that breaks one says which.
//!
//! The suites speak to the ports alone. What only a test can arrange (a payer, an invoice that has expired) is handed in.
//! They may run beside other payments of the same node: every check is about payment hashes of its own.

use std::future::Future;
use std::time::Duration;

use farebox_protocol::{Invoice, Msat, PaymentHash, Preimage};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use crate::{Ask, Cursor, Health, Incoming, Outcome, Pay, PayRequest, Receive, ReceiveError, Settlement};

/// How long a settlement or an outcome may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the suites ask for: small enough for any channel, large enough to be more than a fee.
const PRICE: Msat = Msat::new(20_000);
/// The most a suite lets a route cost.
const FEE_MAX: Msat = Msat::new(20_000);
/// A hash that nobody has ever been asked to pay.
const UNHEARD_OF: PaymentHash = PaymentHash::from_bytes([0xfb; 32]);

/// What an invoice is paid with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tender {
    /// The amount it says.
    Exact,
    /// Another amount. A payer that can't do that refuses.
    Amount(Msat),
}

/// Checks a backend that is paid. `payer` pays an invoice from elsewhere and answers the preimage, or why it could not.
///
/// # Panics
/// When the backend breaks a rule; the message is the rule.
pub async fn receive<P, F>(backend: &dyn Receive, payer: P)
where
    P: Fn(Invoice, Tender) -> F,
    F: Future<Output = Result<Preimage, String>>,
{
    assert_eq!(backend.health(), Health::Ready, "a backend under test is ready");
    an_invoice_says_what_was_asked(backend).await;
    what_cannot_be_asked_is_refused(backend).await;
    nothing_is_known_of_what_was_not_paid(backend).await;
    a_settlement_is_told_live_and_replayed(backend, &payer).await;
    another_amount_is_never_taken_for_the_price(backend, &payer).await;
}

fn ask(amount: Msat) -> Ask {
    Ask { amount, expiry: Duration::from_secs(600), description: "conformance".into() }
}

async fn invoice(backend: &dyn Receive, amount: Msat) -> Invoice {
    backend.invoice(ask(amount)).await.expect("a backend that is ready makes invoices")
}

async fn an_invoice_says_what_was_asked(backend: &dyn Receive) {
    let facts = backend.facts().expect("a backend that is ready knows its node");
    let invoice = invoice(backend, PRICE).await;
    assert_eq!(invoice.network(), facts.network, "an invoice is for the backend's network");
    let amount = invoice.amount().expect("an invoice has an amount");
    assert!(amount >= PRICE, "an invoice is never for less than was asked");
    let grain = facts.granularity.get();
    assert!(amount.get() < PRICE.get() + grain, "an invoice is rounded up by less than one grain");
    assert_eq!(amount.get() % grain, 0, "an amount is a multiple of the granularity");
    let lifetime = invoice.expires_at().since(invoice.created_at());
    assert!(lifetime >= Duration::from_secs(600), "an invoice lives as long as was asked");
    assert!(lifetime <= Duration::from_secs(660), "an invoice doesn't outlive what was asked");
    let next = self::invoice(backend, PRICE).await;
    assert_ne!(next.payment_hash(), invoice.payment_hash(), "every invoice has a hash of its own");
}

async fn what_cannot_be_asked_is_refused(backend: &dyn Receive) {
    for amount in [Msat::ZERO, Msat::new(u64::MAX)] {
        let refused = backend.invoice(ask(amount)).await;
        assert!(
            matches!(refused, Err(ReceiveError::Invalid(_))),
            "an absurd amount is called invalid, not {refused:?}"
        );
    }
}

async fn nothing_is_known_of_what_was_not_paid(backend: &dyn Receive) {
    let hash = invoice(backend, PRICE).await.payment_hash();
    for hash in [hash, UNHEARD_OF] {
        let incoming = backend.lookup(hash).await.expect("a lookup is answered");
        assert_eq!(incoming, Incoming::Unpaid, "what nobody paid is unpaid, with or without an invoice");
    }
}

async fn a_settlement_is_told_live_and_replayed<P, F>(backend: &dyn Receive, payer: &P)
where
    P: Fn(Invoice, Tender) -> F,
    F: Future<Output = Result<Preimage, String>>,
{
    let invoice = invoice(backend, PRICE).await;
    let (hash, amount) = (invoice.payment_hash(), invoice.amount().expect("checked before"));
    // Open before the payment, so that this one sees it live.
    let live = settlement_of(backend, Cursor(0), hash);
    let paid = async {
        let preimage = payer(invoice, Tender::Exact).await.expect("the payer can pay what was asked");
        assert!(preimage.pays(&hash), "the preimage that the payer gets proves this payment");
    };
    let (settlement, ()) = tokio::join!(live, paid);
    assert_eq!(settlement.amount, amount, "a settlement is of what arrived");
    assert_eq!(
        backend.lookup(hash).await.expect("a lookup is answered"),
        Incoming::Settled { amount, at: settlement.at },
        "lookup and stream agree"
    );
    let replayed = settlement_of(backend, Cursor(0), hash).await;
    assert_eq!(replayed, settlement, "a settlement is replayed from the beginning as it was");
    let before = Cursor(settlement.cursor.0.saturating_sub(1));
    assert_eq!(
        settlement_of(backend, before, hash).await,
        settlement,
        "a cursor is where the stream goes on"
    );
    let mut after = backend.settlements(settlement.cursor);
    let next = timeout(Duration::from_millis(50), after.next()).await;
    if let Ok(next) = next {
        let next = next.expect("a stream has no end").expect("a stream that began goes on");
        assert!(next.cursor > settlement.cursor, "after a cursor come later ones only");
    }
}

/// Waits for the settlement of one hash. Cursors rise.
async fn settlement_of(backend: &dyn Receive, after: Cursor, hash: PaymentHash) -> Settlement {
    let mut settlements = backend.settlements(after);
    let mut last = after;
    let found = async {
        loop {
            let next = settlements.next().await.expect("a stream has no end");
            let settlement = next.expect("the stream goes on while the node runs");
            assert!(settlement.cursor > last, "cursors rise");
            last = settlement.cursor;
            if settlement.hash == hash {
                return settlement;
            }
        }
    };
    timeout(PATIENCE, found).await.expect("a settlement is told in time")
}

async fn another_amount_is_never_taken_for_the_price<P, F>(backend: &dyn Receive, payer: &P)
where
    P: Fn(Invoice, Tender) -> F,
    F: Future<Output = Result<Preimage, String>>,
{
    let half = Msat::new(PRICE.get() / 2);
    let cheap = invoice(backend, PRICE).await;
    let hash = cheap.payment_hash();
    if payer(cheap, Tender::Amount(half)).await.is_ok() {
        let incoming = backend.lookup(hash).await.expect("a lookup is answered");
        assert!(
            matches!(incoming, Incoming::Settled { amount, .. } if amount == half),
            "half the price is never told as more"
        );
    } else {
        let incoming = backend.lookup(hash).await.expect("a lookup is answered");
        assert_eq!(incoming, Incoming::Unpaid, "a payment that was refused is not settled");
    }
    let double = Msat::new(PRICE.get() * 2);
    let dear = invoice(backend, PRICE).await;
    let hash = dear.payment_hash();
    if payer(dear, Tender::Amount(double)).await.is_ok() {
        let settlement = settlement_of(backend, Cursor(0), hash).await;
        assert_eq!(settlement.amount, double, "what is paid above the price is told");
    }
}

/// Invoices that a paying backend must refuse.
#[derive(Clone, Debug)]
pub struct Bad {
    /// Too late to pay.
    pub expired: Invoice,
    /// For a network that isn't the backend's.
    pub foreign: Invoice,
    /// By a node that nobody has a route to.
    pub unreachable: Invoice,
}

/// Checks a backend that pays. `payee` is a node that it can reach.
///
/// # Panics
/// When the backend breaks a rule; the message is the rule.
pub async fn pay(backend: &dyn Pay, payee: &dyn Receive, bad: Bad) {
    let payee_facts = payee.facts().expect("a payee that is ready knows its node");
    assert_eq!(backend.facts().network, payee_facts.network, "payer and payee are on one network");
    nothing_is_known_of_what_was_not_sent(backend, payee).await;
    a_payment_settles_with_its_proof(backend, payee).await;
    paying_again_pays_once(backend, payee).await;
    paying_at_once_pays_once(backend, payee).await;
    what_must_not_be_paid_is_not(backend, bad).await;
}

fn request(invoice: &Invoice) -> PayRequest {
    PayRequest { invoice: invoice.clone(), fee_max: FEE_MAX, timeout: PATIENCE }
}

/// The fee of a payment that is settled, proof checked.
#[track_caller]
fn settled(backend: &dyn Pay, outcome: &Outcome, invoice: &Invoice) -> Msat {
    let Outcome::Settled { preimage, fee } = outcome else {
        panic!("a payment to a reachable node settles: {outcome:?}")
    };
    assert!(preimage.pays(&invoice.payment_hash()), "the proof proves this payment");
    let amount = invoice.amount().unwrap_or_default();
    let most = backend.facts().fee_control.fee_max(amount, FEE_MAX);
    assert!(*fee <= most, "a route of {fee} costs no more than the limit of {most}");
    *fee
}

async fn nothing_is_known_of_what_was_not_sent(backend: &dyn Pay, payee: &dyn Receive) {
    let hash = invoice(payee, PRICE).await.payment_hash();
    for hash in [hash, UNHEARD_OF] {
        let outcome = backend.lookup(hash).await.expect("a lookup is answered");
        assert!(matches!(outcome, Outcome::NotFound), "what was never sent is not found, not {outcome:?}");
    }
}

async fn a_payment_settles_with_its_proof(backend: &dyn Pay, payee: &dyn Receive) {
    let before = backend.balance().await.expect("a balance is told");
    let invoice = invoice(payee, PRICE).await;
    let outcome = backend.pay(request(&invoice)).await.expect("a payment has an outcome");
    let fee = settled(backend, &outcome, &invoice);
    let again = backend.lookup(invoice.payment_hash()).await.expect("a lookup is answered");
    assert_eq!(settled(backend, &again, &invoice), fee, "a lookup tells the fee that the payment told");
    assert!(before > Msat::ZERO, "a wallet that could pay had a balance");
    assert_eq!(received(payee, &invoice).await, invoice.amount(), "what was paid has arrived");
}

async fn paying_again_pays_once(backend: &dyn Pay, payee: &dyn Receive) {
    let invoice = invoice(payee, PRICE).await;
    let first = backend.pay(request(&invoice)).await.expect("a payment has an outcome");
    settled(backend, &first, &invoice);
    if !backend.facts().refuses_paid_hash {
        return;
    }
    // Settled (with the proof it had), failed or an error: all are honest. What counts is the payee's side.
    let second = backend.pay(request(&invoice)).await;
    if let Ok(outcome @ Outcome::Settled { .. }) = &second {
        settled(backend, outcome, &invoice);
    }
    let known = backend.lookup(invoice.payment_hash()).await.expect("a lookup is answered");
    settled(backend, &known, &invoice);
    assert_eq!(received(payee, &invoice).await, invoice.amount(), "an invoice is paid once");
}

async fn paying_at_once_pays_once(backend: &dyn Pay, payee: &dyn Receive) {
    if !backend.facts().refuses_paid_hash {
        return;
    }
    let invoice = invoice(payee, PRICE).await;
    let pay = || backend.pay(request(&invoice));
    let outcomes = tokio::join!(pay(), pay(), pay());
    let outcomes = [outcomes.0, outcomes.1, outcomes.2];
    let paid = outcomes.iter().flatten().filter(|outcome| matches!(outcome, Outcome::Settled { .. })).count();
    assert!(paid >= 1, "one of several payments at once settles: {outcomes:?}");
    assert_eq!(
        received(payee, &invoice).await,
        invoice.amount(),
        "an invoice is paid once, however many ask at once"
    );
}

async fn what_must_not_be_paid_is_not(backend: &dyn Pay, bad: Bad) {
    let cases = [("expired", bad.expired), ("foreign", bad.foreign), ("unreachable", bad.unreachable)];
    for (what, invoice) in cases {
        let outcome = backend.pay(request(&invoice)).await;
        assert!(
            matches!(outcome, Ok(Outcome::Failed(_))),
            "an invoice that is {what} fails, not {outcome:?}"
        );
        let known = backend.lookup(invoice.payment_hash()).await.expect("a lookup is answered");
        assert!(
            matches!(known, Outcome::Failed(_) | Outcome::NotFound),
            "what failed is told as failed or not found, not {known:?}"
        );
    }
}

/// What the payee has for an invoice, once it has anything.
async fn received(payee: &dyn Receive, invoice: &Invoice) -> Option<Msat> {
    settlement_of(payee, Cursor(0), invoice.payment_hash()).await;
    match payee.lookup(invoice.payment_hash()).await.expect("a lookup is answered") {
        Incoming::Settled { amount, .. } => Some(amount),
        Incoming::Unpaid => None,
    }
}
