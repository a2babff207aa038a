//! What every store must do, as a suite to run over each of them.
//!
//! The laws of the books are stated here once. A store's own tests cover what only it has: files, locks, migrations.

use std::sync::Arc;

use farebox_lightning::{Cursor, Settlement};
use farebox_protocol::{
    IdentifierHash, Label, MintSecret, Msat, Offer, PaymentHash, ServiceName, Terms, Timestamp, TokenId,
};

use super::{
    Arrival, Booked, Page, Presentation, Purchase, Revocation, RevocationCursor, Sale, Sold, Store,
    StoreError,
};
use crate::Continuity;

mod accounts;
mod faulty;

pub use faulty::{Fault, Faulty};

/// Runs the whole suite; `fresh` opens an empty store each time.
///
/// # Panics
///
/// When a store breaks a law.
pub async fn check<F, S>(fresh: F)
where
    F: Fn() -> S,
    S: Future<Output = Arc<dyn Store>>,
{
    a_payment_and_its_presentation_meet_in_either_order(&*fresh().await, &*fresh().await).await;
    a_settlement_counts_once_however_often_it_is_told(&*fresh().await).await;
    a_second_payment_is_surplus(&*fresh().await).await;
    a_payment_that_is_short_is_flagged(&*fresh().await).await;
    a_payment_nobody_explains_is_unattributed(&*fresh().await).await;
    the_first_terms_stay(&*fresh().await).await;
    nodes_have_cursors_of_their_own(&*fresh().await).await;
    a_node_that_lost_its_history_is_noticed(&*fresh().await).await;
    an_empty_batch_changes_nothing(&*fresh().await).await;
    an_absurd_end_spoils_no_batch(&*fresh().await).await;
    a_batch_is_booked_whole_or_not_at_all(&*fresh().await).await;
    every_interleaving_keeps_the_law(&fresh).await;
    a_claim_is_on_the_row_before_its_token_and_gives_way_to_it(&*fresh().await, &*fresh().await).await;
    a_claim_that_the_token_contradicts_is_noticed(&*fresh().await, &*fresh().await).await;
    the_first_claim_stays(&*fresh().await).await;
    a_cursor_moves_past_what_is_not_booked(&*fresh().await).await;
    rows_come_in_pages_newest_first(&*fresh().await).await;
    a_revocation_is_read_from_a_cursor(&*fresh().await).await;
    secrets_belong_to_their_store(&*fresh().await).await;
    accounts::check(&fresh).await;
}

const NODE: &str = "02aa";

fn hash(number: u8) -> PaymentHash {
    PaymentHash::from_bytes([number; 32])
}

fn settlement(cursor: u64, number: u8, msat: u64) -> Settlement {
    let at = Timestamp::from_secs(1_000 + cursor);
    Settlement { cursor: Cursor(cursor), hash: hash(number), amount: Msat::new(msat), at, description: None }
}

fn sold(number: u8, msat: u64) -> Sold {
    Sold {
        token_id: TokenId::from_bytes([number; 32]),
        identifier_hash: IdentifierHash::from_bytes([number.wrapping_add(100); 32]),
        service: "weather".parse::<ServiceName>().expect("a name"),
        tier: 2,
        terms: Terms {
            offer: Offer::Duration(std::time::Duration::from_secs(3_600)),
            price: Msat::new(msat),
        },
        valid_until: Some(Timestamp::from_secs(9_999)),
    }
}

fn presentation(number: u8, msat: u64) -> Presentation {
    Presentation { hash: hash(number), sold: sold(number, msat), at: Timestamp::from_secs(2_000) }
}

async fn settle(store: &dyn Store, settlements: Vec<Settlement>) -> Booked {
    try_settle(store, NODE, settlements).await.expect("settles")
}

async fn try_settle(
    store: &dyn Store,
    node: &str,
    settlements: Vec<Settlement>,
) -> Result<Booked, StoreError> {
    let to = settlements.iter().map(|settlement| settlement.cursor).max().unwrap_or_default();
    store.settle(node, settlements.into_iter().map(Arrival::from).collect(), to).await
}

/// What an invoice says when it goes with [`sold`].
fn label(msat: u64) -> Label {
    let sold = sold(1, msat);
    Label { service: sold.service, offer: sold.terms.offer, price: sold.terms.price }
}

async fn settle_claimed(store: &dyn Store, settlement: Settlement, claimed: Label) -> Booked {
    let to = settlement.cursor;
    let arrival = Arrival { settlement, claimed: Some(claimed) };
    store.settle(NODE, vec![arrival], to).await.expect("settles")
}

async fn present(store: &dyn Store, number: u8) -> Vec<Sale> {
    store.present(vec![presentation(number, 10_000)]).await.expect("presents")
}

fn sale(is_first: bool, paid: u64, surplus: u64) -> Sale {
    let service = sold(1, 1).service;
    Sale { service, is_first, paid: Msat::new(paid), surplus: Msat::new(surplus), is_contradicted: false }
}

async fn row(store: &dyn Store, number: u8) -> Purchase {
    let row = store.purchase(hash(number)).await.expect("reads").expect("a row");
    assert!(row.is_balanced(), "the law: {row:?}");
    row
}

async fn a_payment_and_its_presentation_meet_in_either_order(
    paid_first: &dyn Store,
    shown_first: &dyn Store,
) {
    assert_eq!(paid_first.purchase(hash(1)).await.expect("reads"), None);
    assert_eq!(settle(paid_first, vec![settlement(1, 1, 10_000)]).await.sales, [], "nobody knows for what");
    assert_eq!(present(paid_first, 1).await, [sale(true, 10_000, 0)]);
    assert_eq!(present(paid_first, 1).await, [], "once");

    assert_eq!(present(shown_first, 1).await, [], "not paid");
    let unsettled = row(shown_first, 1).await;
    assert!(!unsettled.is_settled() && unsettled.settled_at.is_none());
    assert_eq!(settle(shown_first, vec![settlement(1, 1, 10_000)]).await.sales, [sale(true, 10_000, 0)]);

    let want = Purchase {
        hash: hash(1),
        sold: Some(sold(1, 10_000)),
        claimed: None,
        presented_at: Some(Timestamp::from_secs(2_000)),
        paid: Msat::new(10_000),
        payments: 1,
        settled_at: Some(Timestamp::from_secs(1_001)),
        surplus: Msat::ZERO,
        shortfall: Msat::ZERO,
    };
    assert_eq!(row(paid_first, 1).await, want);
    assert_eq!(row(shown_first, 1).await, want);
}

async fn a_settlement_counts_once_however_often_it_is_told(store: &dyn Store) {
    let told = vec![settlement(1, 1, 10_000), settlement(2, 2, 500)];
    assert_eq!(
        settle(store, told.clone()).await,
        Booked { new: 2, arrived: Msat::new(10_500), ..Booked::default() }
    );
    assert_eq!(settle(store, told).await, Booked { repeated: 2, ..Booked::default() });
    let twice = vec![settlement(3, 3, 7), settlement(3, 3, 7)];
    assert_eq!(
        settle(store, twice).await,
        Booked { new: 1, arrived: Msat::new(7), repeated: 1, ..Booked::default() }
    );
    assert_eq!(row(store, 1).await.paid, Msat::new(10_000));
    assert_eq!(row(store, 3).await.payments, 1);
    assert_eq!(store.cursor(NODE).await.expect("reads"), Cursor(3));
}

async fn a_second_payment_is_surplus(store: &dyn Store) {
    present(store, 1).await;
    let booked = settle(store, vec![settlement(1, 1, 10_000), settlement(2, 1, 10_000)]).await;
    assert_eq!(booked.sales, [sale(true, 10_000, 0), sale(false, 10_000, 10_000)]);
    let twice = row(store, 1).await;
    assert_eq!((twice.paid.get(), twice.payments, twice.surplus.get()), (20_000, 2, 10_000));
    assert_eq!(twice.settled_at, Some(Timestamp::from_secs(1_001)), "the first payment counts");

    settle(store, vec![settlement(3, 2, 12_345)]).await;
    assert_eq!(present(store, 2).await, [sale(true, 12_345, 2_345)]);
    assert_eq!(row(store, 2).await.surplus, Msat::new(2_345), "overpaid before it was known for what");
}

async fn a_payment_that_is_short_is_flagged(store: &dyn Store) {
    settle(store, vec![settlement(1, 1, 9_000)]).await;
    store.present(vec![presentation(1, 10_000)]).await.expect("presents");
    assert_eq!(row(store, 1).await.shortfall, Msat::new(1_000));
    assert_eq!(settle(store, vec![settlement(2, 1, 1_500)]).await.sales, [sale(false, 1_500, 500)]);
    let made_up = row(store, 1).await;
    assert_eq!((made_up.shortfall, made_up.surplus), (Msat::ZERO, Msat::new(500)));
}

async fn a_payment_nobody_explains_is_unattributed(store: &dyn Store) {
    settle(store, vec![settlement(1, 1, 10_000), settlement(2, 1, 10_000)]).await;
    let unexplained = row(store, 1).await;
    assert_eq!(unexplained.sold, None);
    assert_eq!((unexplained.paid, unexplained.surplus), (Msat::new(20_000), Msat::ZERO));
}

async fn the_first_terms_stay(store: &dyn Store) {
    store.present(vec![presentation(1, 10_000)]).await.expect("presents");
    let other = Presentation { at: Timestamp::from_secs(3_000), sold: sold(9, 1), ..presentation(1, 10_000) };
    store.present(vec![other]).await.expect("presents");
    let kept = row(store, 1).await;
    assert_eq!((kept.sold, kept.presented_at), (Some(sold(1, 10_000)), Some(Timestamp::from_secs(2_000))));
}

async fn nodes_have_cursors_of_their_own(store: &dyn Store) {
    assert_eq!(store.cursor(NODE).await.expect("reads"), Cursor(0));
    settle(store, vec![settlement(5, 1, 10)]).await;
    assert_eq!(store.cursor("03bb").await.expect("reads"), Cursor(0));
    let booked = try_settle(store, "03bb", vec![settlement(5, 1, 10)]).await.expect("settles");
    assert_eq!(booked.new, 1, "another node's payment is another payment");
    assert_eq!(row(store, 1).await.payments, 2);
    settle(store, vec![settlement(4, 2, 10)]).await;
    assert_eq!(store.cursor(NODE).await.expect("reads"), Cursor(5), "a cursor never goes back");
}

async fn a_node_that_lost_its_history_is_noticed(store: &dyn Store) {
    settle(store, vec![settlement(1, 1, 10)]).await;
    let again = settle(store, vec![settlement(1, 2, 10), settlement(1, 1, 11), settlement(2, 3, 5)]).await;
    assert_eq!(again, Booked { new: 1, arrived: Msat::new(5), conflicting: 2, ..Booked::default() });
    assert_eq!(store.purchase(hash(2)).await.expect("reads"), None);
    assert_eq!(row(store, 1).await.paid, Msat::new(10));
}

async fn an_empty_batch_changes_nothing(store: &dyn Store) {
    assert_eq!(settle(store, vec![]).await, Booked::default());
    store.present(vec![]).await.expect("presents");
    assert_eq!(store.cursor(NODE).await.expect("reads"), Cursor(0));
}

/// A holder writes what they like after the last `valid_until=`, and others' notes are written together with theirs.
async fn an_absurd_end_spoils_no_batch(store: &dyn Store) {
    let end = Some(Timestamp::from_secs(u64::MAX));
    let absurd = Presentation { sold: Sold { valid_until: end, ..sold(1, 10) }, ..presentation(1, 10) };
    store.present(vec![absurd, presentation(2, 10)]).await.expect("presents");
    assert!(
        row(store, 1).await.sold.is_some_and(|sold| sold.valid_until > Some(Timestamp::from_secs(9_999)))
    );
    assert_eq!(row(store, 2).await.sold, Some(sold(2, 10)));
}

async fn a_batch_is_booked_whole_or_not_at_all(store: &dyn Store) {
    let spoilt = vec![settlement(1, 1, 10), settlement(2, 2, u64::MAX)];
    let refused = try_settle(store, NODE, spoilt).await;
    assert!(matches!(refused, Err(StoreError::OutOfRange(_))), "{refused:?}");
    assert_eq!(store.purchase(hash(1)).await.expect("reads"), None);
    assert_eq!(store.cursor(NODE).await.expect("reads"), Cursor(0));
    settle(store, vec![settlement(1, 1, 10)]).await;
    assert_eq!(row(store, 1).await.paid, Msat::new(10), "an error spoils nothing that comes after it");
}

async fn a_claim_is_on_the_row_before_its_token_and_gives_way_to_it(
    paid_first: &dyn Store,
    shown_first: &dyn Store,
) {
    let booked = settle_claimed(paid_first, settlement(1, 1, 10_000), label(10_000)).await;
    assert_eq!((booked.new, booked.sales), (1, vec![]), "a claim is no sale yet");
    let claimed = row(paid_first, 1).await;
    assert_eq!((claimed.sold, claimed.claimed), (None, Some(label(10_000))));
    assert_eq!(
        (claimed.surplus, claimed.shortfall),
        (Msat::ZERO, Msat::ZERO),
        "what is too much, the terms say"
    );
    assert_eq!(present(paid_first, 1).await, [sale(true, 10_000, 0)]);

    present(shown_first, 1).await;
    let booked = settle_claimed(shown_first, settlement(1, 1, 10_000), label(10_000)).await;
    assert_eq!(booked.sales, [sale(true, 10_000, 0)]);
    assert_eq!(row(paid_first, 1).await, row(shown_first, 1).await);
    assert!(!row(paid_first, 1).await.is_contradicted());
}

async fn a_claim_that_the_token_contradicts_is_noticed(paid_first: &dyn Store, shown_first: &dyn Store) {
    let contradicted = Sale { is_contradicted: true, ..sale(true, 10_000, 0) };
    settle_claimed(paid_first, settlement(1, 1, 10_000), label(9_000)).await;
    assert_eq!(present(paid_first, 1).await, std::slice::from_ref(&contradicted));
    present(shown_first, 1).await;
    let booked = settle_claimed(shown_first, settlement(1, 1, 10_000), label(9_000)).await;
    assert_eq!(booked.sales, [contradicted]);
    for store in [paid_first, shown_first] {
        let row = row(store, 1).await;
        assert!(row.is_contradicted());
        assert_eq!((row.sold, row.claimed), (Some(sold(1, 10_000)), Some(label(9_000))), "both are kept");
    }
}

async fn the_first_claim_stays(store: &dyn Store) {
    settle(store, vec![settlement(1, 1, 10)]).await;
    assert_eq!(row(store, 1).await.claimed, None);
    settle_claimed(store, settlement(2, 1, 10), label(10)).await;
    settle_claimed(store, settlement(3, 1, 10), label(11)).await;
    settle(store, vec![settlement(4, 1, 10)]).await;
    assert_eq!(row(store, 1).await.claimed, Some(label(10)));
}

/// Of a node that is paid for other things, too.
async fn a_cursor_moves_past_what_is_not_booked(store: &dyn Store) {
    let go = |arrivals: Vec<Arrival>, to| store.settle(NODE, arrivals, Cursor(to));
    assert_eq!(go(vec![], 7).await.expect("settles"), Booked::default());
    assert_eq!(store.cursor(NODE).await.expect("reads"), Cursor(7));
    let booked = go(vec![settlement(8, 1, 10).into()], 12).await.expect("settles");
    assert_eq!((booked.new, store.cursor(NODE).await.expect("reads")), (1, Cursor(12)));
    go(vec![], 3).await.expect("settles");
    assert_eq!(store.cursor(NODE).await.expect("reads"), Cursor(12), "never back");
    let refused = go(vec![settlement(13, 2, u64::MAX).into()], 14).await;
    assert!(matches!(refused, Err(StoreError::OutOfRange(_))), "{refused:?}");
    assert_eq!(store.cursor(NODE).await.expect("reads"), Cursor(12), "not without its rows");
}

/// Two payments and two presentations of one hash, in all orders: the end is the same, and the law holds at each step.
async fn every_interleaving_keeps_the_law<F, S>(fresh: &F)
where
    F: Fn() -> S,
    S: Future<Output = Arc<dyn Store>>,
{
    let store = fresh().await;
    let mut number = 0;
    let mut ends = Vec::new();
    for order in permutations(&[0, 1, 2, 3]) {
        number += 1;
        for event in order {
            match event {
                0 => drop(settle(&*store, vec![settlement(u64::from(number) * 2, number, 6_000)]).await),
                1 => drop(settle(&*store, vec![settlement(u64::from(number) * 2 + 1, number, 9_000)]).await),
                _ => drop(present(&*store, number).await),
            }
            row(&*store, number).await;
        }
        let end = row(&*store, number).await;
        ends.push((end.paid, end.payments, end.surplus, end.shortfall, end.sold.is_some()));
    }
    assert_eq!(ends.len(), 24);
    assert!(
        ends.iter().all(|end| *end == (Msat::new(15_000), 2, Msat::new(5_000), Msat::ZERO, true)),
        "{ends:?}"
    );
}

fn permutations(events: &[u8]) -> Vec<Vec<u8>> {
    if events.is_empty() {
        return vec![vec![]];
    }
    events
        .iter()
        .flat_map(|first| {
            let rest: Vec<u8> = events.iter().copied().filter(|event| event != first).collect();
            permutations(&rest).into_iter().map(|mut order| {
                order.insert(0, *first);
                order
            })
        })
        .collect()
}

async fn rows_come_in_pages_newest_first(store: &dyn Store) {
    for number in 1..=5 {
        settle(store, vec![settlement(u64::from(number), number, 10)]).await;
    }
    let page = |after| async move {
        let rows = store.purchases(Page { after, rows_max: 2 }).await.expect("reads");
        rows.iter().map(|row| row.hash).collect::<Vec<_>>()
    };
    assert_eq!(page(None).await, [hash(5), hash(4)]);
    assert_eq!(page(Some(hash(4))).await, [hash(3), hash(2)]);
    assert_eq!(page(Some(hash(2))).await, [hash(1)]);
    assert_eq!(page(Some(hash(1))).await, []);
    assert_eq!(page(Some(hash(99))).await, [], "behind a row that isn't there is nothing");
}

async fn a_revocation_is_read_from_a_cursor(store: &dyn Store) {
    let revoke = |number: u8| async move {
        let identifier_hash = IdentifierHash::from_bytes([number; 32]);
        let revocation =
            Revocation { identifier_hash, at: Timestamp::from_secs(1), reason: "lost".to_owned() };
        store.revoke(revocation).await.expect("revokes");
    };
    let read = |after| async move { store.revocations(after).await.expect("reads") };
    let none = read(RevocationCursor::default()).await;
    assert!(none.hashes.is_empty());
    revoke(1).await;
    revoke(2).await;
    revoke(1).await;
    let two = read(none.cursor).await;
    assert_eq!(two.hashes.len(), 2);
    assert_eq!(read(two.cursor).await.hashes.len(), 0);
    revoke(3).await;
    let third = read(two.cursor).await;
    assert_eq!(third.hashes, [IdentifierHash::from_bytes([3; 32])]);
    assert_eq!(read(RevocationCursor::default()).await.hashes.len(), 3, "from the start, all of them");
}

async fn secrets_belong_to_their_store(store: &dyn Store) {
    let secret = |number: u8| MintSecret::from_bytes([number; 32]).fingerprint();
    let adopt = |secrets: Vec<u8>, continuity| {
        let secrets = secrets.into_iter().map(secret).collect();
        store.adopt(secrets, continuity, Timestamp::from_secs(1))
    };
    let (required, abandon) = (Continuity::Required, Continuity::Abandon);
    adopt(vec![1], required).await.expect("a new store takes any");
    adopt(vec![1], required).await.expect("and the same again");
    let refused = adopt(vec![2], required).await;
    assert!(
        matches!(&refused, Err(StoreError::OtherSecrets { known, .. }) if *known == secret(1).to_string())
    );
    adopt(vec![2, 1], required).await.expect("a rotation overlaps");
    adopt(vec![2], required).await.expect("the old one may go");
    assert!(adopt(vec![1], required).await.is_err(), "it has gone, and can't come back alone");
    adopt(vec![1, 2], required).await.expect("beside the one in use it can");
    assert!(adopt(vec![3], required).await.is_err());
    adopt(vec![3], abandon).await.expect("by express wish");
    adopt(vec![3], required).await.expect("and from then on");
    assert!(adopt(vec![2], required).await.is_err());
}
