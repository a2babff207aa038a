//! The machine through which all money leaves, against wallets that lie, journals that fail and processes that die.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod fakes;

use std::{sync::Arc, time::Duration};

use fakes::{LyingWallet, Made, NOW, Say, hash, invoice, preimage, request};
use farebox_lightning::{
    FeeControl, PayFacts, PayRequest, WalletId,
    clock::ManualClock,
    outgoing::{
        Ended, Failure, Intent, IntentError, Intents, NewIntent, Outgoing, OutgoingConfig, OutgoingError,
        Resolution,
        sqlite::{self, SqliteIntents},
    },
};
use farebox_protocol::{Msat, PaymentHash, Preimage, Timestamp};
use lightning_invoice::Currency;
use parking_lot::Mutex;

/// A machine over this wallet and journal; time is paused in these tests, so its patience costs nothing.
fn machine(wallet: &Arc<LyingWallet>, intents: impl Intents + 'static) -> Outgoing {
    let config = OutgoingConfig { empty_lookups_max: 3, ..OutgoingConfig::default() };
    Outgoing::new(Arc::clone(wallet) as _, Arc::new(intents), Arc::new(ManualClock::new(NOW)), config)
}

fn journal() -> SqliteIntents {
    SqliteIntents::in_memory().unwrap()
}

/// An outcome in a word or two.
fn told(ended: &Ended) -> String {
    match ended {
        Ended::Settled(paid) => {
            format!("settled, {} msat{}", paid.fee.get(), if paid.on_disk { "" } else { ", not on disk" })
        }
        Ended::NotPaid(Failure { reason, unsent }) => {
            format!("{}: {reason}", if *unsent { "unsent" } else { "failed" })
        }
        Ended::Unknown { reason } => format!("unknown: {reason}"),
    }
}

fn state(intents: &impl Intents, hash: PaymentHash) -> &'static str {
    intents.find(&hash).unwrap().map_or("none", |row| row.state.name())
}

/// The journal as an earlier run left it: `invoice(seed)` sent from `wallet`.
fn sent_earlier(intents: &SqliteIntents, seed: u8, wallet: &str) {
    let intent = NewIntent {
        invoice: invoice(seed),
        amount: Msat::new(10_000),
        fee_max: Msat::new(5_000),
        wallet: WalletId(wallet.to_owned()),
    };
    let row = intents.record(&intent, NOW).unwrap();
    intents.mark_sent(&row, &intent, NOW).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_payment_is_on_disk_before_and_after() {
    let (wallet, intents) = (LyingWallet::new(&[Say::Hang], &[]), journal());
    let outgoing = machine(&wallet, intents.clone());
    let paying = tokio::join!(outgoing.pay(request(1)), async {
        wallet.asked_now.notified().await;
        assert_eq!(state(&intents, hash(1)), "sent");
        wallet.go_on();
    });
    assert_eq!(told(&paying.0.unwrap()), "settled, 7 msat");
    assert_eq!(state(&intents, hash(1)), "settled");
}

#[tokio::test(start_paused = true)]
async fn an_invoice_that_is_paid_is_not_paid_again() {
    let (wallet, intents) = (LyingWallet::new(&[Say::Settled], &[]), journal());
    for outgoing in [machine(&wallet, intents.clone()), machine(&wallet, intents)] {
        for _ in 0..2 {
            let Ended::Settled(paid) = outgoing.pay(request(1)).await.unwrap() else { panic!("not settled") };
            assert!(paid.preimage.pays(&hash(1)));
        }
    }
    assert_eq!(wallet.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_stops_nothing() {
    let (wallet, intents) = (LyingWallet::new(&[Say::Hang], &[]), journal());
    let outgoing = machine(&wallet, intents.clone());
    tokio::select! {
        _ = outgoing.pay(request(1)) => panic!("the wallet has not answered"),
        () = wallet.asked_now.notified() => {}
    }
    wallet.go_on();
    assert_eq!(told(&outgoing.wait(hash(1)).await.unwrap().unwrap()), "settled, 7 msat");
    assert_eq!(state(&intents, hash(1)), "settled");
}

#[tokio::test(start_paused = true)]
async fn many_callers_at_once_make_one_payment() {
    let wallet = LyingWallet::new(&[Say::Hang], &[]);
    let outgoing = machine(&wallet, journal());
    let callers = futures_util::future::join_all((0..50).map(|_| outgoing.pay(request(1))));
    let (ended, ()) = tokio::join!(callers, async {
        wallet.asked_now.notified().await;
        wallet.go_on();
    });
    assert!(ended.iter().all(|ended| told(ended.as_ref().unwrap()) == "settled, 7 msat"));
    assert_eq!(wallet.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_after_paying_is_unknown_until_a_lookup_tells() {
    let lookups = [Say::Error, Say::InFlight, Say::NotFound, Say::InFlight, Say::Settled];
    let (wallet, intents) = (LyingWallet::new(&[Say::Error], &lookups), journal());
    let outgoing = machine(&wallet, intents.clone());
    let ended = outgoing.pay(request(1)).await.unwrap();
    assert_eq!(told(&ended), "unknown: the wallet is not available: the connection broke");
    assert_eq!(told(&outgoing.wait(hash(1)).await.unwrap().unwrap()), "settled, 7 msat");
    assert_eq!((wallet.asked(), wallet.looked_up()), (1, 5));
    assert_eq!(state(&intents, hash(1)), "settled");
}

#[tokio::test(start_paused = true)]
async fn a_wallet_that_panics_may_have_paid() {
    let wallet = LyingWallet::new(&[Say::Panic], &[Say::Panic, Say::Settled]);
    let outgoing = machine(&wallet, journal());
    let ended = outgoing.pay(request(1)).await.unwrap();
    assert_eq!(told(&ended), "unknown: the wallet answered wrongly: it panicked");
    assert_eq!(told(&outgoing.wait(hash(1)).await.unwrap().unwrap()), "settled, 7 msat");
}

#[tokio::test(start_paused = true)]
async fn a_preimage_that_proves_nothing_is_not_called_paid() {
    let (wallet, intents) = (LyingWallet::new(&[Say::WrongPreimage], &[Say::WrongPreimage]), journal());
    let outgoing = machine(&wallet, intents.clone());
    let lie =
        "unknown: the wallet calls it paid, but its preimage does not hash to the payment hash".to_owned();
    assert_eq!(told(&outgoing.pay(request(1)).await.unwrap()), lie);
    assert_eq!(told(&outgoing.wait(hash(1)).await.unwrap().unwrap()), lie);
    assert_eq!((state(&intents, hash(1)), wallet.asked(), wallet.looked_up()), ("unknown", 1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_final_unless_the_wallet_refuses_to_pay_twice() {
    for (refuses, asked, ended) in [(false, 1, "failed: no route"), (true, 2, "settled, 7 msat")] {
        let wallet = LyingWallet::new(&[Say::Failed, Say::Settled], &[]);
        let wallet = wallet.with(|facts| facts.refuses_paid_hash = refuses);
        let outgoing = machine(&wallet, journal());
        assert_eq!(told(&outgoing.pay(request(1)).await.unwrap()), "failed: no route");
        assert_eq!(told(&outgoing.pay(request(1)).await.unwrap()), ended);
        assert_eq!(wallet.asked(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_an_earlier_attempt_does_not_end_the_next() {
    // The second order is lost on its way, and a lookup overtakes it: the wallet still tells of the first.
    let lookups = [Say::Failed, Say::Failed, Say::Settled];
    let wallet = LyingWallet::new(&[Say::Failed, Say::Error], &lookups).with(|facts| {
        facts.refuses_paid_hash = true;
    });
    let intents = journal();
    let outgoing = machine(&wallet, intents.clone());
    assert_eq!(told(&outgoing.pay(request(1)).await.unwrap()), "failed: no route");
    assert!(told(&outgoing.pay(request(1)).await.unwrap()).starts_with("unknown"));
    assert_eq!(told(&outgoing.wait(hash(1)).await.unwrap().unwrap()), "settled, 7 msat");
    assert_eq!((wallet.asked(), state(&intents, hash(1))), (2, "settled"));
}

#[tokio::test(start_paused = true)]
async fn an_order_that_is_given_again_and_refused_says_nothing_of_the_one_before() {
    // The wallet is at the first order, and says of the second that it has no money left, or can't be reached any more.
    for (lookups, ended) in [
        (&[Say::NotFound][..], "unknown"),
        (&[Say::NotFound, Say::NotFound, Say::NotFound, Say::NotFound, Say::Error, Say::Settled], "settled"),
        (&[Say::NotFound, Say::NotFound, Say::NotFound, Say::NotFound, Say::Failed], "failed"),
    ] {
        let wallet = LyingWallet::new(&[Say::Error, Say::Failed], lookups).with(|facts| {
            facts.refuses_paid_hash = true;
        });
        let intents = journal();
        let outgoing = machine(&wallet, intents.clone());
        for _ in 0..2 {
            outgoing.pay(request(1)).await.unwrap();
            outgoing.wait(hash(1)).await.unwrap();
        }
        assert_eq!((wallet.asked(), state(&intents, hash(1))), (2, ended), "after {lookups:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_should_not_be_paid_is_refused_before_anything_is_written() {
    #[track_caller]
    fn check(got: Result<Ended, OutgoingError>, want: &str) {
        assert_eq!(got.unwrap_err().to_string(), want);
    }
    let (wallet, intents) = (LyingWallet::new(&[Say::Settled], &[]), journal());
    let outgoing = machine(&wallet, intents.clone());
    let pay = |made: Made| outgoing.pay(PayRequest { invoice: made.invoice(), ..request(7) });
    check(
        pay(Made { amount: None, ..Made::default() }).await,
        "the invoice names no amount; ask for one that does",
    );
    check(
        pay(Made { network: Currency::Bitcoin, ..Made::default() }).await,
        "the invoice is for mainnet, the wallet is on regtest",
    );
    check(
        pay(Made { created: Timestamp::from_secs(NOW.secs() - 7_200), ..Made::default() }).await,
        "the invoice expired at 1799996400, now 1800000000; ask for a new one",
    );
    wallet.facts.lock().fee_control =
        FeeControl::WorstCase { base: Msat::new(4_000), parts_per_million: 400_000 };
    check(
        pay(Made::default()).await,
        "the route may cost 8 sat, the limit is 5 sat, and this wallet can't be held to it; raise the limit",
    );
    assert_eq!((wallet.asked(), intents.open().unwrap().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn two_invoices_with_one_hash_are_not_both_paid() {
    let wallet = LyingWallet::new(&[Say::Settled], &[]);
    let outgoing = machine(&wallet, journal());
    let twin =
        || Made { preimage: preimage(1), description: "another".to_owned(), ..Made::default() }.invoice();
    outgoing.pay(request(1)).await.unwrap();
    let error = outgoing.pay(PayRequest { invoice: twin(), ..request(1) }).await.unwrap_err();
    assert!(error.to_string().contains("is in the journal with another invoice"), "{error}");
    assert_eq!(wallet.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn too_many_payments_at_once_are_refused() {
    let wallet = LyingWallet::new(&[Say::Hang], &[]);
    let config = OutgoingConfig { payments_max: 1, ..OutgoingConfig::default() };
    let clock = Arc::new(ManualClock::new(NOW));
    let outgoing = Outgoing::new(Arc::clone(&wallet) as _, Arc::new(journal()), clock, config);
    tokio::select! {
        _ = outgoing.pay(request(1)) => panic!("the wallet has not answered"),
        () = wallet.asked_now.notified() => {}
    }
    let error = outgoing.pay(request(2)).await.unwrap_err();
    assert_eq!(error.to_string(), "1 payments are under way already; try again when some have ended");
    wallet.go_on();
    outgoing.wait(hash(1)).await.unwrap();
    assert!(outgoing.stop(Duration::from_secs(10)).await);
    assert!(matches!(outgoing.pay(request(3)).await, Err(OutgoingError::Stopping)));
}

/// What a start makes of a payment that an earlier run sent from wallet `lying`.
async fn check_resume(
    facts: impl FnOnce(&mut PayFacts),
    lookup: &[Say],
    want_state: &str,
    want_asked: usize,
) {
    let (wallet, intents) = (LyingWallet::new(&[Say::Settled], lookup).with(facts), journal());
    sent_earlier(&intents, 1, "lying");
    let outgoing = machine(&wallet, intents.clone());
    let resumed = outgoing.resume().await.unwrap();
    assert_eq!(resumed.sent.len(), 1);
    outgoing.wait(hash(1)).await.unwrap();
    assert_eq!(state(&intents, hash(1)), want_state, "after {lookup:?}");
    assert_eq!(wallet.asked(), 0, "a start pays nothing");
    // Whoever wanted it asks for it again: paid only where that can't be the second time.
    _ = outgoing.pay(request(1)).await.unwrap();
    assert_eq!(wallet.asked(), want_asked, "after {lookup:?}");
}

#[tokio::test(start_paused = true)]
async fn a_start_finds_out_what_became_of_each_payment() {
    check_resume(|_| {}, &[Say::Settled], "settled", 0).await;
    check_resume(|_| {}, &[Say::InFlight, Say::Error, Say::Settled], "settled", 0).await;
    check_resume(|_| {}, &[Say::Failed], "failed", 0).await;
    check_resume(|facts| facts.refuses_paid_hash = true, &[Say::Failed], "failed", 1).await;
}

#[tokio::test(start_paused = true)]
async fn not_found_means_unsent_only_where_the_wallet_proves_it() {
    check_resume(|_| {}, &[Say::NotFound], "unknown", 0).await;
    check_resume(|facts| facts.proves_unsent = true, &[Say::NotFound], "unsent", 1).await;
    // It proves nothing, but a second payment would be refused.
    check_resume(|facts| facts.refuses_paid_hash = true, &[Say::NotFound], "unknown", 1).await;
}

#[tokio::test(start_paused = true)]
async fn another_wallet_proves_nothing_but_a_proof() {
    let other = |facts: &mut PayFacts| {
        *facts = PayFacts {
            wallet: WalletId("other".to_owned()),
            proves_unsent: true,
            refuses_paid_hash: true,
            ..facts.clone()
        };
    };
    check_resume(other, &[Say::NotFound], "unknown", 0).await;
    check_resume(other, &[Say::Failed], "unknown", 0).await;
    check_resume(other, &[Say::Settled], "settled", 0).await;
}

#[tokio::test(start_paused = true)]
async fn one_not_found_right_after_sending_is_too_few() {
    let (wallet, intents) =
        (LyingWallet::new(&[Say::Error], &[Say::NotFound, Say::NotFound, Say::Settled]), journal());
    let outgoing = machine(&wallet.clone().with(|facts| facts.proves_unsent = true), intents);
    outgoing.pay(request(1)).await.unwrap();
    assert_eq!(told(&outgoing.wait(hash(1)).await.unwrap().unwrap()), "settled, 7 msat");
    assert_eq!(wallet.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_person_resolves_what_no_lookup_explains() {
    let (wallet, intents) = (LyingWallet::new(&[Say::Error], &[Say::NotFound]), journal());
    let outgoing = machine(&wallet, intents.clone());
    for seed in [1, 2] {
        outgoing.pay(request(seed)).await.unwrap();
        assert!(told(&outgoing.wait(hash(seed)).await.unwrap().unwrap()).starts_with("unknown: "));
    }
    let wrong = Resolution::Settled { preimage: preimage(9), fee: Msat::ZERO };
    let error = outgoing.resolve(hash(1), wrong).await.unwrap_err();
    assert_eq!(error.to_string(), format!("this is not the preimage of payment `{}`", hash(1)));
    let paid = Resolution::Settled { preimage: preimage(1), fee: Msat::new(3) };
    outgoing.resolve(hash(1), paid.clone()).await.unwrap();
    let note = "the seller says so".to_owned();
    outgoing.resolve(hash(2), Resolution::NotPaid { note }).await.unwrap();
    assert_eq!((state(&intents, hash(1)), state(&intents, hash(2))), ("settled", "failed"));
    // What has ended is not resolved again, and a person's word doesn't make the invoice payable once more.
    let error = outgoing.resolve(hash(1), paid).await.unwrap_err().to_string();
    assert!(error.contains("is `settled`"), "{error}");
    outgoing.pay(request(2)).await.unwrap();
    assert_eq!(wallet.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_person_s_word_ends_the_lookups() {
    let (wallet, intents) = (LyingWallet::new(&[Say::Error], &[Say::InFlight]), journal());
    let outgoing = machine(&wallet, intents.clone());
    outgoing.pay(request(1)).await.unwrap();
    outgoing.resolve(hash(1), Resolution::NotPaid { note: "really".to_owned() }).await.unwrap();
    assert_eq!(told(&outgoing.wait(hash(1)).await.unwrap().unwrap()), "failed: resolved by hand: really");
    assert!(outgoing.stop(Duration::from_secs(100)).await);
}

/// A journal whose calls fail when it's told to.
struct Broken {
    journal: SqliteIntents,
    /// The calls that fail, and how often.
    fail: Mutex<Vec<(&'static str, usize)>>,
}

impl Broken {
    fn new(journal: &SqliteIntents, fail: &[(&'static str, usize)]) -> Self {
        Self { journal: journal.clone(), fail: Mutex::new(fail.to_vec()) }
    }

    fn call<T>(&self, name: &str, call: impl FnOnce() -> Result<T, IntentError>) -> Result<T, IntentError> {
        let mut fail = self.fail.lock();
        match fail.iter_mut().find(|(broken, times)| *broken == name && *times > 0) {
            Some((_, times)) => {
                *times -= 1;
                let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
                Err(rusqlite::Error::SqliteFailure(full, None).into())
            }
            None => call(),
        }
    }
}

impl Intents for Broken {
    fn record(&self, intent: &NewIntent, now: Timestamp) -> Result<Intent, IntentError> {
        self.call("record", || self.journal.record(intent, now))
    }
    fn mark_sent(&self, seen: &Intent, intent: &NewIntent, now: Timestamp) -> Result<Intent, IntentError> {
        self.call("sent", || self.journal.mark_sent(seen, intent, now))
    }
    fn settle(
        &self,
        hash: &PaymentHash,
        preimage: &Preimage,
        fee: Msat,
        now: Timestamp,
    ) -> Result<Intent, IntentError> {
        self.call("settle", || self.journal.settle(hash, preimage, fee, now))
    }
    fn fail(&self, seen: &Intent, failure: &Failure, now: Timestamp) -> Result<Intent, IntentError> {
        self.call("fail", || self.journal.fail(seen, failure, now))
    }
    fn unknown(&self, seen: &Intent, reason: &str, now: Timestamp) -> Result<Intent, IntentError> {
        self.call("unknown", || self.journal.unknown(seen, reason, now))
    }
    fn find(&self, hash: &PaymentHash) -> Result<Option<Intent>, IntentError> {
        self.call("find", || self.journal.find(hash))
    }
    fn open(&self) -> Result<Vec<Intent>, IntentError> {
        self.journal.open()
    }
    fn durable(&self) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_fails_before_sending_means_that_nothing_is_paid() {
    for call in ["find", "record", "sent"] {
        let (wallet, intents) = (LyingWallet::new(&[Say::Settled], &[]), journal());
        let outgoing = machine(&wallet, Broken::new(&intents, &[(call, 1)]));
        let error = outgoing.pay(request(1)).await.unwrap_err().to_string();
        assert!(error.starts_with("the journal of outgoing payments can't be used"), "{error}");
        assert_eq!(wallet.asked(), 0);
        // When there is room again, the same invoice is paid.
        assert_eq!(told(&outgoing.pay(request(1)).await.unwrap()), "settled, 7 msat");
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_fails_after_paying_loses_no_proof() {
    let (wallet, intents) = (LyingWallet::new(&[Say::Settled], &[]), journal());
    let outgoing = machine(&wallet, Broken::new(&intents, &[("settle", 5)]));
    let Ended::Settled(paid) = outgoing.pay(request(1)).await.unwrap() else { panic!("not settled") };
    assert!(paid.preimage.pays(&hash(1)) && !paid.on_disk);
    assert_eq!(state(&intents, hash(1)), "sent");
    assert!(outgoing.stop(Duration::from_secs(3_600)).await, "stopping waits until the proof is written");
    assert_eq!(state(&intents, hash(1)), "settled");
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_cannot_be_written_keeps_the_money_aside() {
    let (wallet, intents) = (LyingWallet::new(&[Say::Failed], &[]), journal());
    let outgoing = machine(&wallet, Broken::new(&intents, &[("fail", 2)]));
    let ended = outgoing.pay(request(1)).await.unwrap();
    assert_eq!(told(&ended), "unknown: the payment has failed, but the journal can't be written");
    assert_eq!(told(&outgoing.wait(hash(1)).await.unwrap().unwrap()), "failed: no route");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_that_cannot_be_written_is_followed_all_the_same() {
    let (wallet, intents) = (LyingWallet::new(&[Say::Error], &[Say::InFlight, Say::Settled]), journal());
    let outgoing = machine(&wallet, Broken::new(&intents, &[("unknown", 100)]));
    outgoing.pay(request(1)).await.unwrap();
    assert_eq!(state(&intents, hash(1)), "sent");
    assert_eq!(told(&outgoing.wait(hash(1)).await.unwrap().unwrap()), "settled, 7 msat");
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_the_lease_pays_nothing() {
    let wallet = LyingWallet::new(&[Say::Settled], &[]);
    let intents = journal();
    {
        let connection = intents.connection().lock();
        connection
            .execute_batch("CREATE TABLE lease (generation INTEGER); INSERT INTO lease VALUES (1)")
            .unwrap();
    }
    let holds = |generation: i64| {
        intents.clone().with_send_condition(Arc::new(move |transaction, _| {
            let now: i64 = transaction.query_row("SELECT generation FROM lease", [], |row| row.get(0))?;
            let lost = || IntentError::Forbidden(format!("the lease is at generation {now}"));
            if now == generation { Ok(()) } else { Err(lost()) }
        }))
    };
    let outgoing = machine(&wallet, holds(1));
    intents.connection().lock().execute("UPDATE lease SET generation = 2", []).unwrap();
    let error = outgoing.pay(request(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "sending is not allowed any more: the lease is at generation 2");
    assert_eq!((wallet.asked(), state(&intents, hash(1))), (0, "recorded"));
    // The successor takes over what was only recorded.
    assert_eq!(told(&machine(&wallet, holds(2)).pay(request(1)).await.unwrap()), "settled, 7 msat");
}

#[test]
fn of_two_processes_that_saw_the_same_row_one_sends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.sqlite");
    let (first, second) = (SqliteIntents::open(&path).unwrap(), SqliteIntents::open(&path).unwrap());
    let intent = NewIntent {
        invoice: invoice(1),
        amount: Msat::new(10_000),
        fee_max: Msat::ZERO,
        wallet: WalletId("w".to_owned()),
    };
    let seen = (first.record(&intent, NOW).unwrap(), second.record(&intent, NOW).unwrap());
    assert_eq!(first.mark_sent(&seen.0, &intent, NOW).unwrap().attempt, 1);
    let error = second.mark_sent(&seen.1, &intent, NOW).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("payment `{}` is `sent` by now: somebody else has moved it", hash(1))
    );
    // Nor does it call the other's attempt failed.
    let failure = Failure { reason: "not mine".to_owned(), unsent: true };
    assert!(matches!(second.fail(&seen.1, &failure, NOW), Err(IntentError::Moved { .. })));
}

#[test]
fn a_settled_row_never_moves() {
    let intents = journal();
    sent_earlier(&intents, 1, "lying");
    let row = intents.settle(&hash(1), &preimage(1), Msat::new(7), NOW).unwrap();
    intents.settle(&hash(1), &preimage(1), Msat::new(9), NOW).unwrap();
    let failure = Failure { reason: "no".to_owned(), unsent: false };
    assert!(matches!(intents.fail(&row, &failure, NOW), Err(IntentError::Moved { .. })));
    assert!(matches!(intents.unknown(&row, "no", NOW), Err(IntentError::Moved { .. })));
    let row = intents.find(&hash(1)).unwrap().unwrap();
    assert!(
        matches!(row.state, farebox_lightning::outgoing::State::Settled { fee, .. } if fee == Msat::new(7))
    );
}

#[test]
fn a_locked_or_full_journal_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.sqlite");
    let intents = SqliteIntents::open(&path).unwrap();
    intents.connection().lock().busy_timeout(Duration::ZERO).unwrap();
    let other = sqlite::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let intent = |seed| NewIntent {
        invoice: invoice(seed),
        amount: Msat::new(10_000),
        fee_max: Msat::ZERO,
        wallet: WalletId("w".to_owned()),
    };
    assert!(matches!(intents.record(&intent(1), NOW), Err(IntentError::Sqlite(_))));
    other.execute_batch("ROLLBACK").unwrap();
    intents.record(&intent(1), NOW).unwrap();
    // SQLite's own limit on pages stands in for a full disk: it gives the same error.
    let pages: i64 = other.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    intents.connection().lock().pragma_update(None, "max_page_count", pages).unwrap();
    let full = (2..200).find_map(|seed| intents.record(&intent(seed), NOW).err());
    assert!(matches!(full, Some(IntentError::Sqlite(_))), "{full:?}");
    assert!(intents.find(&hash(1)).unwrap().is_some());
}

#[cfg(unix)]
#[test]
fn the_journal_is_its_owner_s_alone_and_synced() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.sqlite");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let intents = SqliteIntents::open(&path).unwrap();
    sent_earlier(&intents, 1, "lying");
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
    let connection = intents.connection().lock();
    let pragma = |name: &str| -> String {
        connection
            .query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, rusqlite::types::Value>(0))
            .map(|value| format!("{value:?}"))
            .unwrap()
    };
    assert_eq!(pragma("journal_mode"), "Text(\"wal\")");
    assert_eq!(pragma("synchronous"), "Integer(2)");
}

#[test]
fn a_journal_of_a_later_version_is_refused() {
    let connection = sqlite::open_in_memory().unwrap();
    sqlite::migrate(&connection).unwrap();
    sqlite::migrate(&connection).unwrap();
    connection.execute("UPDATE outgoing_version SET version = 2", []).unwrap();
    let error = sqlite::migrate(&connection).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the journal has version 2, this program knows up to 1; use a newer farebox"
    );
}
