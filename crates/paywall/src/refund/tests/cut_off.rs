//! Processes that end in the middle of a refund: the next one brings it to its end, and it is paid at most once.

use super::*;
use crate::store::conformance::{Fault, Faulty};

/// One process: dropped, all its tasks are gone.
pub(super) fn process() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A refund of 50 sat that a process has begun, and whose wallet answers nothing any more.
pub(super) fn cut_off() -> (Arc<Disk>, Token, Value) {
    let disk = Disk::new();
    *disk.wallet.mood.lock() = Mood::Hangs;
    let first = process();
    let (token, told) = first.block_on(async {
        let desk = disk.open().await;
        let token = desk.credit(1).await;
        let (status, told) = desk.refund(&token, Bill::new(1, 50_000)).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        disk.wallet.sent.notified().await;
        (token, told)
    });
    drop(first);
    (disk, token, told["id"].clone())
}

fn known(disk: &Disk, outcome: Option<Outcome>) {
    let hash = Preimage::from_bytes([1; 32]).payment_hash();
    match outcome {
        Some(outcome) => disk.wallet.know(hash, outcome),
        None => drop(disk.wallet.known.lock().remove(&hash)),
    }
}

/// What the next process makes of it.
#[track_caller]
fn resumed(disk: &Arc<Disk>, token: &Token, id: &Value, state: &str, refunded: u64) {
    process().block_on(async {
        let desk = disk.open().await;
        assert_eq!(desk.ended(token, id).await["state"], state);
        let balance = disk.balance(token).await;
        assert_eq!((balance.refunded(), balance.refunding()), (refunded, 0));
        desk.lawful().await;
    });
    assert_eq!(disk.wallet.paid(), 1, "never a second time");
}

#[test]
fn what_was_paid_before_the_end_is_booked_after_it() {
    let (disk, token, id) = cut_off();
    let preimage = Preimage::from_bytes([1; 32]);
    known(&disk, Some(Outcome::Settled { preimage, fee: Msat::new(700) }));
    resumed(&disk, &token, &id, "paid", 50_700);
}

#[test]
fn what_failed_meanwhile_is_given_back() {
    let (disk, token, id) = cut_off();
    known(&disk, Some(Outcome::Failed("no route".to_owned())));
    resumed(&disk, &token, &id, "failed", 0);
}

#[test]
fn what_never_reached_the_wallet_is_given_back_and_not_sent() {
    let (disk, token, id) = cut_off();
    known(&disk, None);
    resumed(&disk, &token, &id, "failed", 0);
}

#[test]
fn what_is_still_on_its_way_stays_set_aside() {
    let (disk, token, id) = cut_off();
    process().block_on(async {
        let desk = disk.open().await;
        let query = format!("id={}", id.as_str().unwrap());
        let (_, told) = desk.send(&Method::GET, Some(&query), &token.headers(), "").await;
        assert_eq!(told["state"], "open");
        Desk::refused(&desk.refund(&token, Bill::new(2, 10_000)).await, "refund_under_way");
        assert_eq!(disk.balance(&token).await.refunding(), 55_500);
    });
    known(&disk, Some(Outcome::Settled { preimage: Preimage::from_bytes([1; 32]), fee: Msat::ZERO }));
    resumed(&disk, &token, &id, "paid", 50_000);
}

/// A row that the process wrote before it ended.
pub(super) fn row(token: &Token, number: u8) -> Wanted {
    let payment = Preimage::from_bytes([number; 32]).payment_hash();
    let purchase = token.hash();
    let id = id_of(&purchase, payment.as_bytes());
    let (amount, fee_max) = (Msat::new(50_000), Msat::new(5_500));
    Wanted { id, purchase, of: RefundOf::Credit, amount, fee_max, payment }
}

/// The way that such a row was to leave by.
pub(super) fn way() -> Way {
    let expires = Invoice::parse(&Bill::new(1, 50_000).text()).unwrap().expires_at();
    Way { wallet: WalletId("wallet".to_owned()), expires }
}

#[test]
fn what_was_written_down_and_not_set_aside_comes_to_nothing() {
    let disk = Disk::new();
    let (token, wanted) = process().block_on(async {
        let desk = disk.open().await;
        let token = desk.credit(1).await;
        let wanted = row(&token, 1);
        desk.refunds.journal.record(&wanted, &way(), Msat::MAX, START).unwrap();
        (token, wanted)
    });
    process().block_on(async {
        let desk = disk.open().await;
        assert_eq!(desk.ended(&token, &json!(hex::encode(wanted.id.0))).await["state"], "failed");
        let (_, told) = desk.refund(&token, Bill::new(2, 50_000)).await;
        assert_eq!(told["state"], "paid", "and makes room: {told}");
    });
    assert_eq!(disk.wallet.paid(), 1);
}

#[test]
fn what_was_set_aside_and_not_sent_is_given_back() {
    for is_recorded in [false, true] {
        let disk = Disk::new();
        let (token, wanted) = process().block_on(async {
            let desk = disk.open().await;
            let token = desk.credit(1).await;
            desk.refunds.bought(&desk.refunds.holder(&token.headers()).unwrap()).await.unwrap();
            let wanted = row(&token, 1);
            desk.refunds.journal.record(&wanted, &way(), Msat::MAX, START).unwrap();
            let order = crate::store::accounts::RefundOrder {
                id: wanted.id,
                hash: wanted.purchase,
                of: wanted.of,
                amount: Msat::new(55_500),
                at: START,
            };
            desk.paywall.ledger().begin_refund(order).await.unwrap();
            if is_recorded {
                let invoice = Invoice::parse(&Bill::new(1, 50_000).text()).unwrap();
                let intent = farebox_lightning::outgoing::NewIntent {
                    invoice,
                    amount: wanted.amount,
                    fee_max: wanted.fee_max,
                    wallet: WalletId("wallet".to_owned()),
                };
                farebox_lightning::outgoing::Intents::record(&desk.refunds.intents, &intent, START).unwrap();
            }
            (token, wanted)
        });
        process().block_on(async {
            let desk = disk.open().await;
            assert_eq!(desk.ended(&token, &json!(hex::encode(wanted.id.0))).await["state"], "failed");
            assert_eq!(disk.balance(&token).await.left(), 100_000);
            desk.lawful().await;
        });
        assert_eq!(disk.wallet.paid(), 0);
    }
}

#[test]
fn what_was_booked_and_not_ended_here_ends_as_the_books_say() {
    let (disk, token, id) = cut_off();
    let preimage = Preimage::from_bytes([1; 32]);
    known(&disk, Some(Outcome::Settled { preimage, fee: Msat::new(700) }));
    process().block_on(async {
        // The process that booked it ended right after that.
        let desk = disk.start(1_000_000_000).await;
        let mut bytes = [0; 16];
        hex::decode_to_slice(id.as_str().unwrap(), &mut bytes).unwrap();
        let part = crate::ledger::law::Refund::Part(Msat::new(50_700));
        desk.paywall.ledger().end_refund(RefundId(bytes), part).await.unwrap();
    });
    resumed(&disk, &token, &id, "paid", 50_700);
}

/// The books did as they were asked and didn't say so, then could not be read for a moment: it is still not known that
/// nothing was set aside.
#[tokio::test(start_paused = true)]
async fn what_may_have_been_set_aside_is_not_given_up_because_the_books_fail() {
    let disk = Disk::new();
    let faulty = Arc::new(Faulty::new(disk.store.clone()));
    let addresses = Arc::new(Addresses(Mutex::new(100)));
    let desk = disk.start_over("02aa", 1_000_000_000, faulty.clone(), addresses).await;
    desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
    let token = desk.credit(1).await;
    desk.refunds.bought(&desk.refunds.holder(&token.headers()).unwrap()).await.unwrap();
    let wanted = row(&token, 1);
    let Recorded::New(entry) = desk.refunds.journal.record(&wanted, &way(), Msat::MAX, START).unwrap() else {
        panic!("it is new");
    };
    let busy = crate::store::StoreError::Failed("busy".to_owned());
    // Asked for, begun, begun again, asked for.
    faulty.next.lock().extend([Fault::None, Fault::HangsAfterwards, Fault::None, Fault::Fails(busy)]);
    let invoice = Invoice::parse(&Bill::new(1, 50_000).text()).unwrap();
    let outgoing = desk.refunds.outgoing.get().cloned().unwrap();
    let state = Arc::clone(&desk.refunds).carry_out(entry, invoice, outgoing).await;
    assert_eq!(state, State::Paid { fee: Msat::ZERO });
    let balance = disk.balance(&token).await;
    assert_eq!((balance.refunding(), balance.refunded()), (0, 50_000));
    desk.lawful().await;
}
