//! One of the two files is an older copy: what has left is booked where it isn't, and nothing is paid or spent a second time.

use super::{
    cut_off::{cut_off, row, way},
    words::{over, process, until},
    *,
};
use crate::{
    ledger::law::Refund,
    store::{
        accounts::{RefundMark, RefundOrder},
        conformance::{Fault, Faulty},
    },
};

const DAILY: u64 = 1_000_000_000;

/// The same machine with books that know nothing, or with a journal that does.
fn with(disk: Arc<Disk>, change: impl FnOnce(&mut Disk)) -> Arc<Disk> {
    let mut disk = Arc::into_inner(disk).unwrap();
    change(&mut disk);
    Arc::new(disk)
}

fn with_empty_books(disk: Arc<Disk>) -> Arc<Disk> {
    with(disk, |disk| {
        disk.store = Arc::new(SqliteStore::in_memory().unwrap());
        disk.settled = Mutex::new(0);
    })
}

/// 50 sat of 100 were paid back for 500 msat, and these books know nothing of it.
fn paid_back() -> (Arc<Disk>, Token) {
    let disk = Disk::new();
    *disk.wallet.mood.lock() = Mood::Pays(500);
    let token = process().block_on(async {
        let desk = disk.open().await;
        let token = desk.credit(1).await;
        assert_eq!(desk.refund(&token, Bill::new(1, 50_000)).await.1["state"], "paid");
        token
    });
    (with_empty_books(disk), token)
}

/// As somebody's first request does it.
async fn open_account(desk: &Desk, token: &Token) -> u64 {
    desk.refunds.bought(&desk.refunds.holder(&token.headers()).unwrap()).await.unwrap().credit
}

/// While these books were copied, one refund held all the money. It came back, and was paid back by the next.
#[test]
fn what_comes_back_to_older_books_is_what_a_later_refund_was_paid_of() {
    let (disk, at) = (Disk::new(), tempfile::tempdir().unwrap());
    let (books, older) = (at.path().join("books.sqlite"), at.path().join("older.sqlite"));
    let disk = with(disk, |disk| disk.store = Arc::new(SqliteStore::open(&books).unwrap()));
    // A disk takes time, so that none may be left out.
    let process = cut_off::process;
    *disk.wallet.mood.lock() = Mood::Hangs;
    let (token, id) = process().block_on(async {
        let desk = disk.open().await;
        let token = desk.credit(1).await;
        let (_, told) = desk.refund(&token, Bill::new(1, 80_000)).await;
        (token, told["id"].clone())
    });
    let copy = rusqlite::Connection::open(&books).unwrap();
    copy.execute("VACUUM INTO ?1", [older.to_str().unwrap()]).unwrap();
    std::fs::set_permissions(&older, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    disk.wallet.know(Preimage::from_bytes([1; 32]).payment_hash(), Outcome::Failed("no route".to_owned()));
    *disk.wallet.mood.lock() = Mood::Pays(500);
    process().block_on(async {
        let desk = disk.open().await;
        assert_eq!(desk.ended(&token, &id).await["state"], "failed");
        assert_eq!(desk.refund(&token, Bill::new(2, 80_000)).await.1["state"], "paid");
        assert_eq!(disk.balance(&token).await.left(), 19_500);
    });
    let disk = with(disk, |disk| disk.store = Arc::new(SqliteStore::open(&older).unwrap()));
    for is_first in [true, false] {
        process().block_on(async {
            let desk = disk.start(DAILY).await;
            let want = if is_first { compared(1, 1, 80_500, 0) } else { compared(0, 0, 0, 0) };
            assert_eq!(desk.refunds.compare().await.unwrap(), want);
            assert_eq!(open_account(&desk, &token).await, 19_500, "before anything is served");
            desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
            let balance = disk.balance(&token).await;
            assert_eq!((balance.refunded(), balance.refunding(), balance.left()), (80_500, 0, 19_500));
            Desk::refused(&desk.refund(&token, Bill::new(3, 50_000)).await, "refund_too_much");
            desk.lawful().await;
        });
    }
    assert_eq!(disk.wallet.paid(), 2);
}

/// The journal was lost, somebody said that nothing was paid, and the journal was found again.
#[test]
fn what_was_said_not_to_be_paid_is_taken_again_where_a_journal_that_was_found_leads_to_the_wallet() {
    let preimage = || Preimage::from_bytes([1; 32]);
    for is_seen in [true, false] {
        let (disk, token, id) = cut_off();
        let paid = Outcome::Settled { preimage: preimage(), fee: Msat::new(700) };
        process().block_on(async {
            let desk = disk.start(DAILY).await;
            let mut bytes = [0; 16];
            hex::decode_to_slice(id.as_str().unwrap(), &mut bytes).unwrap();
            desk.paywall.ledger().end_refund(RefundId(bytes), Refund::Failed).await.unwrap();
            assert_eq!(open_account(&desk, &token).await, 100_000);
        });
        if is_seen {
            let journal = rusqlite::Connection::open(disk.dir.path().join("refunds.sqlite")).unwrap();
            let settle = "UPDATE outgoing_payments SET state = 'settled', preimage = ?1, fee_msat = 700";
            assert_eq!(journal.execute(settle, [[1_u8; 32]]).unwrap(), 1);
        }
        disk.wallet.know(preimage().payment_hash(), paid);
        process().block_on(async {
            let desk = disk.start(DAILY).await;
            let want = if is_seen { compared(0, 1, 50_700, 0) } else { compared(0, 0, 0, 0) };
            assert_eq!(desk.refunds.compare().await.unwrap(), want);
            desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
            assert_eq!(over(&desk, &token, &id).await["state"], "paid");
            let balance = disk.balance(&token).await;
            assert_eq!((balance.refunded(), balance.left()), (50_700, 49_300));
            assert_eq!(open_account(&desk, &token).await, 49_300);
            desk.lawful().await;
        });
        assert_eq!(disk.wallet.paid(), 1);
    }
}

/// Copied when the refund was written down, and neither set aside nor sent.
#[test]
fn where_both_are_older_the_wallet_says_whether_what_is_written_down_was_paid() {
    for (outcome, state, left) in [
        (Outcome::Settled { preimage: Preimage::from_bytes([1; 32]), fee: Msat::new(700) }, "paid", 49_300),
        (Outcome::NotFound, "failed", 100_000),
    ] {
        let (disk, token, id) = cut_off();
        let disk = with_empty_books(disk);
        let journal = rusqlite::Connection::open(disk.dir.path().join("refunds.sqlite")).unwrap();
        assert_eq!(journal.execute("DELETE FROM outgoing_payments", []).unwrap(), 1);
        disk.wallet.know(Preimage::from_bytes([1; 32]).payment_hash(), outcome);
        process().block_on(async {
            let desk = disk.start(DAILY).await;
            desk.settle(&token, 100_000).await;
            open_account(&desk, &token).await;
            desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
            assert_eq!(over(&desk, &token, &id).await["state"], state);
            assert_eq!(open_account(&desk, &token).await, left);
            desk.lawful().await;
        });
        assert_eq!(disk.wallet.paid(), 1);
    }
}

fn compared(looked_for: u64, added: u64, amount: u64, missing: u64) -> Compared {
    Compared { looked_for, added, amount: Msat::new(amount), missing: Msat::new(missing) }
}

#[test]
fn what_was_paid_back_is_taken_of_older_books_as_far_as_it_is_there() {
    for spent in [0, 30_000, 80_000, 100_000] {
        let (disk, token) = paid_back();
        process().block_on(async {
            let desk = disk.start(DAILY).await;
            desk.settle(&token, 100_000).await;
            assert_eq!(open_account(&desk, &token).await, 100_000);
            if spent > 0 {
                desk.spend(&token, spent).await;
            }
        });
        let taken = 50_500.min(100_000 - spent);
        for is_first in [true, false] {
            process().block_on(async {
                let desk = disk.start(DAILY).await;
                let found = desk.refunds.compare().await.unwrap();
                let want =
                    if is_first { compared(1, 1, 50_500, 50_500 - taken) } else { compared(0, 0, 0, 0) };
                assert_eq!(found, want, "{spent}");
                assert_eq!(desk.refunds.compare().await.unwrap(), compared(0, 0, 0, 0));
                let balance = disk.balance(&token).await;
                assert_eq!((balance.spent(), balance.refunded(), balance.refunding()), (spent, taken, 0));
                assert_eq!(balance.left(), 100_000 - spent - taken);
                assert_eq!(open_account(&desk, &token).await, balance.left(), "in memory as on the disk");
                desk.lawful().await;

                desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
                Desk::refused(&desk.refund(&token, Bill::new(2, 50_000)).await, "refund_too_much");
                assert_eq!(desk.refund(&token, Bill::new(1, 50_000)).await.1["state"], "paid", "once");
                let id = id_of(&token.hash(), Preimage::from_bytes([1; 32]).payment_hash().as_bytes());
                let row = desk.paywall.ledger().refund(id).await.unwrap().unwrap();
                assert_eq!((row.order.amount.get(), row.missing.get()), (taken, 50_500 - taken));
            });
        }
        assert_eq!(disk.wallet.paid(), 1, "never a second time");
    }
}

#[test]
fn what_was_paid_back_is_taken_of_an_account_that_is_opened_later() {
    let (disk, token) = paid_back();
    process().block_on(async {
        let desk = disk.start(DAILY).await;
        assert_eq!(desk.refunds.compare().await.unwrap(), compared(1, 1, 50_500, 50_500));
        desk.lawful().await;
    });
    process().block_on(async {
        let desk = disk.start(DAILY).await;
        assert_eq!(desk.refunds.compare().await.unwrap(), compared(0, 0, 0, 0));
        // The node tells of the payment again, and the buyer comes back.
        desk.settle(&token, 100_000).await;
        assert_eq!(open_account(&desk, &token).await, 49_500, "and never a moment more");
        desk.spend(&token, 49_500).await;
        let balance = disk.balance(&token).await;
        assert_eq!((balance.spent(), balance.refunded(), balance.left()), (49_500, 50_500, 0));
        desk.lawful().await;
    });
}

#[test]
fn surplus_that_was_paid_back_is_taken_as_soon_as_it_is_told_of() {
    let disk = Disk::new();
    let token = process().block_on(async {
        let desk = disk.open().await;
        let token = Token::sold(1, Offer::Forever, 10_000);
        desk.settle(&token, 10_000).await;
        desk.settle(&token, 60_000).await;
        assert_eq!(desk.refund(&token, Bill::new(1, 50_000)).await.1["state"], "paid");
        token
    });
    for is_shown_first in [true, false] {
        let disk = with_empty_books(Disk::copy_of(&disk));
        process().block_on(async {
            let desk = disk.start(DAILY).await;
            assert_eq!(desk.refunds.compare().await.unwrap(), compared(1, 1, 50_000, 50_000));
            desk.settle(&token, 10_000).await;
            if is_shown_first {
                open_account(&desk, &token).await;
                desk.settle(&token, 60_000).await;
            } else {
                desk.settle(&token, 60_000).await;
                open_account(&desk, &token).await;
            }
            let id = id_of(&token.hash(), Preimage::from_bytes([1; 32]).payment_hash().as_bytes());
            let row = desk.paywall.ledger().refund(id).await.unwrap().unwrap();
            assert_eq!((row.order.amount, row.missing), (Msat::new(50_000), Msat::ZERO));
            desk.lawful().await;
            desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
            Desk::refused(&desk.refund(&token, Bill::new(2, 9_000)).await, "refund_too_much");
        });
    }
    assert_eq!(disk.wallet.paid(), 1);
}

/// Books that don't know their own refund must not pay it a second time either, where the journal is the one that was lost.
#[test]
fn surplus_that_is_missing_is_no_surplus_that_can_be_paid_back() {
    let disk = Disk::new();
    process().block_on(async {
        let desk = disk.start(DAILY).await;
        let token = Token::sold(1, Offer::Forever, 10_000);
        let order = |id, msat| RefundOrder {
            id: RefundId([id; 16]),
            hash: token.hash(),
            of: RefundOf::Surplus,
            amount: Msat::new(msat),
            at: START,
        };
        desk.settle(&token, 10_000).await;
        open_account(&desk, &token).await;
        let ledger = desk.paywall.ledger();
        let row = ledger.add_refund(order(1, 50_000), Some(START)).await.unwrap();
        assert_eq!(row.missing, Msat::new(50_000));
        desk.settle(&token, 30_000).await;
        assert!(ledger.begin_refund(order(2, 1_000)).await.is_err(), "all of it has left, and more");
        desk.settle(&token, 30_000).await;
        ledger.begin_refund(order(3, 10_000)).await.unwrap();
        desk.lawful().await;
    });
}

#[test]
fn what_may_have_left_is_set_aside_in_older_books_and_ends_as_the_wallet_says() {
    let preimage = || Preimage::from_bytes([1; 32]);
    let paid = || Outcome::Settled { preimage: preimage(), fee: Msat::new(700) };
    for (outcome, state, left) in
        [(paid(), "paid", 49_300), (Outcome::Failed("no route".to_owned()), "failed", 100_000)]
    {
        for is_opened in ["before", "meanwhile", "afterwards"] {
            let (disk, token, id) = cut_off();
            let disk = with_empty_books(disk);
            let open = async |desk: &Desk| {
                desk.settle(&token, 100_000).await;
                open_account(desk, &token).await
            };
            process().block_on(async {
                let desk = disk.start(DAILY).await;
                if is_opened == "before" {
                    open(&desk).await;
                }
                let missing = if is_opened == "before" { 0 } else { 55_500 };
                assert_eq!(desk.refunds.compare().await.unwrap(), compared(0, 1, 55_500, missing));
                if is_opened == "meanwhile" {
                    assert_eq!(open(&desk).await, 44_500);
                }
                desk.lawful().await;
            });
            disk.wallet.know(preimage().payment_hash(), outcome.clone());
            process().block_on(async {
                let desk = disk.open().await;
                assert_eq!(over(&desk, &token, &id).await["state"], state, "{is_opened}");
                if is_opened == "afterwards" {
                    open(&desk).await;
                }
                let balance = disk.balance(&token).await;
                assert_eq!((balance.left(), balance.refunding()), (left, 0), "{is_opened}");
                assert_eq!(open_account(&desk, &token).await, left);
                desk.lawful().await;
            });
            assert_eq!(disk.wallet.paid(), 1);
        }
    }
}

/// The books did as they were asked and said that they didn't, while the account is at work.
#[tokio::test(start_paused = true)]
async fn what_was_missed_is_taken_once_though_the_books_fail_after_taking_it() {
    for (of_account, left) in [(100_000, 39_500), (60_000, 0)] {
        let disk = Disk::new();
        let faulty = Arc::new(Faulty::new(disk.store.clone()));
        let addresses = Arc::new(Addresses(Mutex::new(100)));
        let desk = disk.start_over("02aa", DAILY, faulty.clone(), addresses).await;
        let token = Token::sold(1, Offer::Credit, of_account);
        desk.settle(&token, of_account).await;
        let reservation = desk.reserve(&token, 10_000).await;
        let order = RefundOrder {
            id: RefundId([1; 16]),
            hash: token.hash(),
            of: RefundOf::Credit,
            amount: Msat::new(50_500),
            at: START,
        };
        let busy = crate::store::StoreError::Failed("busy".to_owned());
        // Asked for, added, added again.
        faulty.next.lock().extend([Fault::None, Fault::FailsAfterwards(busy), Fault::None]);
        let ledger = desk.paywall.ledger();
        let row = ledger.add_refund(order, Some(START)).await.unwrap();
        let taken = 50_500.min(of_account - 10_000);
        assert_eq!((row.order.amount.get(), row.missing.get()), (taken, 50_500 - taken));
        assert_eq!(ledger.add_refund(order, Some(START)).await.unwrap(), row);
        assert_eq!(reservation.commit(10_000).spent, 10_000, "what a request has reserved is its own");
        ledger.flush().await.unwrap();
        let balance = disk.balance(&token).await;
        assert_eq!((balance.refunded(), balance.left()), (taken, left));
        assert_eq!(ledger.balance(&token.hash()), Some(balance), "in memory as on the disk");
        desk.lawful().await;
    }
}

/// Set aside is what there is; the end takes the rest, or gives it back.
#[test]
fn what_may_have_left_of_books_that_have_less_takes_all_there_is_until_it_ends() {
    for (outcome, refunded, left) in [
        (Outcome::Settled { preimage: Preimage::from_bytes([1; 32]), fee: Msat::new(700) }, 30_000, 0),
        (Outcome::Failed("no route".to_owned()), 0, 30_000),
    ] {
        let (disk, token, id) = cut_off();
        let disk = with_empty_books(disk);
        process().block_on(async {
            let desk = disk.start(DAILY).await;
            desk.settle(&token, 100_000).await;
            desk.spend(&token, 70_000).await;
        });
        disk.wallet.know(Preimage::from_bytes([1; 32]).payment_hash(), Outcome::InFlight);
        process().block_on(async {
            let desk = disk.open().await;
            let balance = disk.balance(&token).await;
            assert_eq!((balance.spent(), balance.refunding(), balance.left()), (70_000, 30_000, 0));
            disk.wallet.know(Preimage::from_bytes([1; 32]).payment_hash(), outcome);
            over(&desk, &token, &id).await;
            let balance = disk.balance(&token).await;
            assert_eq!((balance.refunded(), balance.refunding(), balance.left()), (refunded, 0, left));
            let mut bytes = [0; 16];
            hex::decode_to_slice(id.as_str().unwrap(), &mut bytes).unwrap();
            let row = desk.paywall.ledger().refund(RefundId(bytes)).await.unwrap().unwrap();
            let missing = if refunded > 0 { 20_700 } else { 0 };
            assert_eq!(row.missing, Msat::new(missing));
            desk.lawful().await;
        });
    }
}

#[test]
fn what_is_known_to_be_on_the_books_is_not_looked_for_again() {
    let disk = Disk::new();
    let looked_for = |disk: &Arc<Disk>| {
        process().block_on(async { disk.start(DAILY).await.refunds.compare().await.unwrap().looked_for })
    };
    let pay_back = |disk: &Arc<Disk>, numbers: &[u8]| {
        process().block_on(async {
            let desk = disk.open().await;
            for number in numbers {
                let token = desk.credit(*number).await;
                desk.refund(&token, Bill::new(*number, 10_000)).await;
            }
        });
    };
    pay_back(&disk, &[1, 2, 3]);
    assert_eq!((looked_for(&disk), looked_for(&disk)), (3, 0));

    // One that hasn't ended may come to be paid while books stand in its place that don't know it.
    *disk.wallet.mood.lock() = Mood::Hangs;
    pay_back(&disk, &[4]);
    *disk.wallet.mood.lock() = Mood::Pays(0);
    pay_back(&disk, &[5, 6]);
    assert_eq!((looked_for(&disk), looked_for(&disk)), (2, 2));

    // A mark that comes of another journal says nothing of this one.
    let disk = with(disk, |disk| disk.dir = tempfile::tempdir().unwrap());
    pay_back(&disk, &[7, 8, 9, 10]);
    let stray = RefundMark { place: 3, id: RefundId([9; 16]) };
    process().block_on(async { disk.start(DAILY).await.paywall.ledger().mark_refunds(stray).await.unwrap() });
    assert_eq!((looked_for(&disk), looked_for(&disk)), (4, 0));
}

/// So many rows, of which the books lack these: more than are looked for at once.
#[tokio::test]
async fn of_many_rows_those_that_are_missing_are_found() {
    const ROWS: u64 = 9_000;
    const LACKING: [u64; 5] = [1, 4_096, 4_097, 8_192, ROWS];

    let disk = Disk::new();
    let path = disk.dir.path().join("books.sqlite");
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    let disk = with(disk, |disk| disk.store = store);
    let token = Token::sold(1, Offer::Forever, 10_000);
    let desk = disk.start(DAILY).await;
    for msat in [10_000, 1_000 * ROWS] {
        desk.settle(&token, msat).await;
    }
    open_account(&desk, &token).await;
    let rows = "WITH RECURSIVE row (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM row WHERE n < ?1)";
    let id = "unhex(printf('%032x', n))";
    let journal = format!(
        "{rows} INSERT INTO refunds (id, purchase, source, amount_msat, fee_max_msat, payment_hash, asked_at, state, fee_msat,
             ended_at) SELECT {id}, ?2, 'surplus', 900, 200, unhex(printf('%064x', n)), 7, 'paid', 100, 8 FROM row"
    );
    desk.refunds.journal.connection().lock().execute(&journal, (ROWS, token.hash().as_bytes())).unwrap();
    let books = format!(
        "{rows} INSERT INTO refund (id, purchase, source, amount_msat, asked_at, state, ended_at)
         SELECT {id}, 1, 'surplus', 1000, 7, 'paid', 8 FROM row WHERE n NOT IN (1, 4096, 4097, 8192, ?1)"
    );
    rusqlite::Connection::open(&path).unwrap().execute(&books, [ROWS]).unwrap();
    let lacking = LACKING.len() as u64;
    assert_eq!(desk.refunds.compare().await.unwrap(), compared(ROWS, lacking, 1_000 * lacking, 0));
    assert_eq!(desk.refunds.compare().await.unwrap(), compared(0, 0, 0, 0));
    desk.lawful().await;
}

/// A journal from a backup, made between two steps of a refund: it says that nothing was sent.
fn older_journal(is_recorded: bool) -> (Arc<Disk>, Token, Value) {
    let disk = Disk::new();
    let (token, id) = process().block_on(async {
        let desk = disk.open().await;
        let token = desk.credit(1).await;
        open_account(&desk, &token).await;
        let wanted = row(&token, 1);
        desk.refunds.journal.record(&wanted, &way(), Msat::MAX, START).unwrap();
        let entry = desk.refunds.journal.find(wanted.id).unwrap().unwrap();
        desk.paywall.ledger().begin_refund(entry.order()).await.unwrap();
        if is_recorded {
            let intent = farebox_lightning::outgoing::NewIntent {
                invoice: Invoice::parse(&Bill::new(1, 50_000).text()).unwrap(),
                amount: wanted.amount,
                fee_max: wanted.fee_max,
                wallet: WalletId("wallet".to_owned()),
            };
            farebox_lightning::outgoing::Intents::record(&desk.refunds.intents, &intent, START).unwrap();
        }
        (token, json!(hex::encode(wanted.id.0)))
    });
    (disk, token, id)
}

#[test]
fn what_an_older_journal_says_was_never_sent_is_asked_of_the_wallet() {
    let hash = Preimage::from_bytes([1; 32]).payment_hash();
    let paid = Outcome::Settled { preimage: Preimage::from_bytes([1; 32]), fee: Msat::new(300) };
    for is_recorded in [false, true] {
        for (last, state, refunded) in
            [(paid.clone(), "paid", 50_300), (Outcome::Failed("no route".to_owned()), "failed", 0)]
        {
            let (disk, token, id) = older_journal(is_recorded);
            disk.wallet.know(hash, Outcome::InFlight);
            process().block_on(async {
                let desk = disk.open().await;
                tokio::time::sleep(Duration::from_secs(200_000)).await;
                assert_eq!(desk.refunds.health(), RefundHealth { open: 1, stuck: 0 });
                assert_eq!(disk.balance(&token).await.refunding(), 55_500, "nothing is given back");
                disk.wallet.know(hash, last.clone());
                assert_eq!(over(&desk, &token, &id).await["state"], state);
                assert_eq!(disk.balance(&token).await.refunded(), refunded);
                desk.lawful().await;
            });
            assert_eq!(disk.wallet.paid(), 0);
        }
    }
}

/// An order to pay may still be on its way to such a wallet.
#[test]
fn a_wallet_that_can_not_prove_it_is_believed_when_an_order_would_have_arrived() {
    let paid = Outcome::Settled { preimage: Preimage::from_bytes([1; 32]), fee: Msat::new(300) };
    for is_recorded in [false, true] {
        for (last, state, refunded) in [(Some(paid.clone()), "paid", 50_300), (None, "failed", 0)] {
            let (disk, token, id) = older_journal(is_recorded);
            *disk.wallet.is_plain.lock() = true;
            process().block_on(async {
                let desk = disk.open().await;
                tokio::time::sleep(Duration::from_secs(3)).await;
                assert_eq!(desk.refunds.health(), RefundHealth { open: 1, stuck: 0 });
                assert_eq!(disk.balance(&token).await.refunding(), 55_500, "nothing is given back");
                if let Some(outcome) = last {
                    disk.wallet.know(Preimage::from_bytes([1; 32]).payment_hash(), outcome);
                }
                assert_eq!(over(&desk, &token, &id).await["state"], state);
                assert_eq!(disk.balance(&token).await.refunded(), refunded);
                desk.lawful().await;
            });
            assert_eq!(disk.wallet.paid(), 0);
        }
    }
}

/// A relay may keep an order for days.
#[test]
fn a_wallet_behind_relays_is_believed_when_the_order_would_come_too_late() {
    let paid = Outcome::Settled { preimage: Preimage::from_bytes([1; 32]), fee: Msat::new(300) };
    for (is_recorded, name) in [(false, "nwc:wallet"), (true, "nwc:wallet"), (true, "door:nwc:wallet")] {
        for (last, state, refunded) in [(Some(paid.clone()), "paid", 50_300), (None, "failed", 0)] {
            let (disk, token, id) = older_journal(is_recorded);
            *disk.wallet.is_plain.lock() = true;
            *disk.wallet.name.lock() = name;
            let file = rusqlite::Connection::open(disk.dir.path().join("refunds.sqlite")).unwrap();
            file.execute("UPDATE refund_ways SET wallet = ?1", [name]).unwrap();
            process().block_on(async {
                let desk = disk.open().await;
                tokio::time::sleep(Duration::from_secs(200_000)).await;
                assert_eq!(desk.refunds.health(), RefundHealth { open: 1, stuck: 0 });
                assert_eq!(disk.balance(&token).await.refunding(), 55_500, "nothing is given back");
                match last {
                    Some(outcome) => disk.wallet.know(Preimage::from_bytes([1; 32]).payment_hash(), outcome),
                    None => disk.clock.set(way().expires.saturating_add(Duration::from_secs(600))),
                }
                assert_eq!(over(&desk, &token, &id).await["state"], state);
                assert_eq!(disk.balance(&token).await.refunded(), refunded);
                desk.lawful().await;
            });
            assert_eq!(disk.wallet.paid(), 0);
        }
    }
}

#[test]
fn what_another_wallet_does_not_know_or_has_not_paid_is_left_to_a_person() {
    for is_recorded in [false, true] {
        for other in [None, Some(Outcome::Failed("no route".to_owned()))] {
            let (disk, token, id) = older_journal(is_recorded);
            *disk.wallet.name.lock() = "another";
            disk.clock.set(way().expires.saturating_add(Duration::from_secs(1_000_000)));
            if let Some(outcome) = other {
                disk.wallet.know(Preimage::from_bytes([1; 32]).payment_hash(), outcome);
            }
            process().block_on(async {
                let desk = disk.open().await;
                until(|| desk.refunds.health() == RefundHealth { open: 1, stuck: 1 }).await;
                tokio::time::sleep(Duration::from_secs(200_000)).await;
                assert_eq!(disk.balance(&token).await.refunding(), 55_500, "nothing is given back");
                let verdict = Verdict::Paid { fee: Msat::new(300) };
                let word = Word { verdict, note: "looked".to_owned(), said_at: START };
                desk.refunds.journal.say(row(&token, 1).id, &word).unwrap();
                assert_eq!(over(&desk, &token, &id).await["state"], "paid");
                assert_eq!(disk.balance(&token).await.refunded(), 50_300);
                desk.lawful().await;
            });
        }
    }
}

#[test]
fn while_the_wallet_says_nothing_of_it_only_a_person_gives_it_back() {
    for is_recorded in [false, true] {
        let (disk, token, id) = older_journal(is_recorded);
        *disk.wallet.is_silent.lock() = true;
        process().block_on(async {
            let desk = disk.open().await;
            until(|| desk.refunds.health() == RefundHealth { open: 1, stuck: 1 }).await;
            tokio::time::sleep(Duration::from_secs(200_000)).await;
            assert_eq!(disk.balance(&token).await.refunding(), 55_500);
            let word = Word { verdict: Verdict::NotPaid, note: "looked".to_owned(), said_at: START };
            desk.refunds.journal.say(row(&token, 1).id, &word).unwrap();
            assert_eq!(over(&desk, &token, &id).await["state"], "failed");
            assert_eq!(disk.balance(&token).await.left(), 100_000);
            desk.lawful().await;
        });
        assert_eq!(disk.wallet.paid(), 0);
    }
}

/// The two files are from different days, whichever is older: of two starts and a buyer who asks again and again, one refund comes.
#[test]
fn a_journal_that_was_lost_pays_nothing_that_the_books_have_paid() {
    let disk = Disk::new();
    *disk.wallet.mood.lock() = Mood::Pays(500);
    let token = process().block_on(async {
        let desk = disk.open().await;
        let token = desk.credit(1).await;
        assert_eq!(desk.refund(&token, Bill::new(1, 90_000)).await.1["state"], "paid");
        token
    });
    let disk = with(disk, |disk| disk.dir = tempfile::tempdir().unwrap());
    process().block_on(async {
        let desk = disk.open().await;
        Desk::refused(&desk.refund(&token, Bill::new(1, 90_000)).await, "refund_too_much");
        Desk::refused(&desk.refund(&token, Bill::new(2, 90_000)).await, "refund_too_much");
        Desk::refused(&desk.refund(&token, Bill::new(1, 1_000)).await, "refund_invoice_refused");
        assert_eq!(disk.balance(&token).await.refunded(), 90_500);
    });
    assert_eq!(disk.wallet.paid(), 1);
}
