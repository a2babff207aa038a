//! What every store must do for the ledger.

use std::sync::Arc;

use bytes::Bytes;
use farebox_protocol::{Msat, Timestamp};

use super::{hash, present, presentation, settle, settlement, sold};
use crate::{
    ledger::{
        law::{Balance, Refund},
        month::Month,
    },
    store::{
        Page, Presentation, Revocation, Store, StoreError,
        accounts::{
            Account, Accounts, Allotment, AnswerKey, DayOfUse, Debit, Debited, EpochId, Group, KeptAnswer,
            MonthlyUse, Place, RefundId, RefundMark, RefundOf, RefundOrder, RefundRow, RequestDigest,
            StoredAnswer, Unit,
        },
        entry::Entry,
    },
};

pub(super) async fn check<F, S>(fresh: &F)
where
    F: Fn() -> S,
    S: Future<Output = Arc<dyn Store>>,
{
    an_account_begins_with_its_terms(&*fresh().await).await;
    a_payment_opens_one_account_on_its_first_terms(&*fresh().await).await;
    a_group_is_written_once_and_in_its_turn(&*fresh().await).await;
    an_account_is_charged_at_its_place_or_wherever_it_is(&*fresh().await).await;
    an_epoch_that_is_over_writes_nothing(&*fresh().await).await;
    a_debit_that_does_not_fit_holds_nothing_else_up(&*fresh().await).await;
    an_impossible_debit_spoils_its_group_and_no_other(&*fresh().await).await;
    a_sum_is_cut_at_the_most_there_is_and_never_goes_round(&*fresh().await).await;
    use_is_counted_by_service_and_day(&*fresh().await).await;
    use_by_the_month_adds_up_and_never_goes_round(&*fresh().await).await;
    an_answer_is_kept_for_its_time(&*fresh().await).await;
    credit_goes_back_once_and_no_more_than_is_left(&*fresh().await).await;
    surplus_goes_back_once_and_no_more_than_there_is(&*fresh().await).await;
    a_refund_that_older_books_missed_is_booked_once_and_as_far_as_there_is_something(&*fresh().await).await;
    a_mark_of_refunds_is_kept(&*fresh().await).await;
    accounts_come_in_pages_newest_first(&*fresh().await).await;
    an_entry_says_what_the_rows_say(&*fresh().await).await;
}

const CREDIT: Allotment = Allotment { unit: Unit::Msat, units: 10_000 };

async fn open(store: &dyn Store, number: u8) -> Account {
    let opened = store.open_account(presentation(number, 10_000), CREDIT).await.expect("opens");
    opened.account.expect("an account")
}

fn charge(number: u8, units: u64) -> Debit {
    let (hash, service) = (hash(number), sold(1, 1).service);
    Debit { hash, place: None, service, requests: 1, units, written_off: 0 }
}

fn group(epoch: EpochId, number: u64, debits: Vec<Debit>) -> Group {
    Group { epoch, number, at: at(3_000), debits, uses: vec![], answers: vec![] }
}

const fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

async fn write(store: &dyn Store, group: Group) -> Result<Debited, StoreError> {
    store.debit(Arc::new(group)).await
}

async fn balance(store: &dyn Store, number: u8) -> Balance {
    let account = store.account(hash(number)).await.expect("reads").expect("an account");
    assert!(account.balance.holds(), "the law: {account:?}");
    account.balance
}

async fn lawful(store: &dyn Store) {
    let breaches = store.audit().await.expect("reads").breaches;
    assert!(breaches.is_empty(), "{breaches:#?}");
}

async fn an_account_begins_with_its_terms(store: &dyn Store) {
    assert_eq!(store.account(hash(1)).await.expect("reads"), None);
    let account = open(store, 1).await;
    assert_eq!(
        account,
        Account {
            hash: hash(1),
            service: sold(1, 1).service,
            unit: Unit::Msat,
            price: Msat::new(10_000),
            balance: Balance::new(10_000, 0, 0, 0, 0).expect("lawful"),
            requests: 0,
            opened_at: at(2_000),
            debited_at: None,
            place: account.place,
        }
    );
    assert_eq!(open(store, 1).await, account, "again");
    assert_eq!(store.account(hash(1)).await.expect("reads"), Some(account));
    let purchase = store.purchase(hash(1)).await.expect("reads").expect("a row");
    assert_eq!(purchase.sold, Some(sold(1, 10_000)), "the presentation is booked with it");

    settle(store, vec![settlement(1, 2, 10_000)]).await;
    let opened = store.open_account(presentation(2, 10_000), CREDIT).await.expect("opens");
    assert_eq!(opened.sales.len(), 1, "money and terms have met");
    lawful(store).await;
}

async fn a_payment_opens_one_account_on_its_first_terms(store: &dyn Store) {
    present(store, 1).await;
    let other = Presentation { hash: hash(1), ..presentation(2, 20_000) };
    let dearer = Allotment { units: 20_000, ..CREDIT };
    let refused = store.open_account(other.clone(), dearer).await.expect("answers");
    assert_eq!(refused.account, None, "it was presented as something else");
    open(store, 1).await;
    let refused = store.open_account(other, dearer).await.expect("answers");
    assert_eq!(refused.account, None, "it was opened as something else");
    assert_eq!(balance(store, 1).await.sold(), 10_000);
    lawful(store).await;
}

async fn a_group_is_written_once_and_in_its_turn(store: &dyn Store) {
    let epoch = store.begin_epoch(at(1)).await.expect("begins");
    open(store, 1).await;
    open(store, 2).await;
    let first = group(epoch, 1, vec![charge(1, 100), charge(2, 7)]);
    for _ in 0..3 {
        assert_eq!(write(store, first.clone()).await, Ok(Debited::default()));
    }
    assert_eq!((balance(store, 1).await.spent(), balance(store, 2).await.spent()), (100, 7));
    write(store, group(epoch, 2, vec![charge(1, 1)])).await.expect("writes");
    write(store, first).await.expect("was written");
    assert_eq!(balance(store, 1).await.spent(), 101);
    assert!(write(store, group(epoch, 4, vec![charge(1, 1)])).await.is_err(), "3 is missing");
    assert_eq!(balance(store, 1).await.spent(), 101);
    let account = store.account(hash(1)).await.expect("reads").expect("an account");
    assert_eq!((account.requests, account.debited_at), (2, Some(at(3_000))));
    let told = store.epochs(1).await.expect("reads");
    assert_eq!((told[0].id, told[0].groups, told[0].written_at), (epoch, 2, Some(at(3_000))));
    lawful(store).await;
}

async fn an_account_is_charged_at_its_place_or_wherever_it_is(store: &dyn Store) {
    let epoch = store.begin_epoch(at(1)).await.expect("begins");
    let mut places = Vec::new();
    for number in 1..=3 {
        places.push(open(store, number).await.place);
    }
    let at_place = |number, place, units| Debit { place, ..charge(number, units) };
    let nowhere = Some(Place(u64::MAX >> 1));
    let debits = vec![at_place(1, places[0], 10), at_place(2, nowhere, 20), at_place(3, places[2], 10_030)];
    let debited = write(store, group(epoch, 1, debits)).await;
    assert_eq!(debited, Ok(Debited { excess: 30, missing: 0 }));
    let spent = [balance(store, 1).await, balance(store, 2).await, balance(store, 3).await];
    assert_eq!(spent.map(|balance| balance.spent()), [10, 20, 10_000]);
    lawful(store).await;
}

async fn an_epoch_that_is_over_writes_nothing(store: &dyn Store) {
    let first = store.begin_epoch(at(1)).await.expect("begins");
    open(store, 1).await;
    write(store, group(first, 1, vec![charge(1, 1)])).await.expect("writes");
    let second = store.begin_epoch(at(2)).await.expect("begins");
    assert!(second > first);
    let late = write(store, group(first, 2, vec![charge(1, 1)])).await;
    assert_eq!(late, Err(StoreError::Superseded(first.0)));
    write(store, group(first, 1, vec![charge(1, 1)])).await.expect("was written");
    write(store, group(second, 1, vec![charge(1, 1)])).await.expect("writes");
    store.end_epoch(second, at(9)).await.expect("ends");
    store.end_epoch(second, at(10)).await.expect("is over");
    let late = write(store, group(second, 2, vec![charge(1, 1)])).await;
    assert_eq!(late, Err(StoreError::Superseded(second.0)));
    let never = write(store, group(EpochId(99), 1, vec![charge(1, 1)])).await;
    assert_eq!(never, Err(StoreError::Superseded(99)));
    assert_eq!(balance(store, 1).await.spent(), 2);
    let ends: Vec<_> =
        store.epochs(9).await.expect("reads").iter().map(|epoch| (epoch.id, epoch.ended_at)).collect();
    assert_eq!(ends, [(second, Some(at(9))), (first, None)], "the first one was cut off");
    lawful(store).await;
}

async fn a_debit_that_does_not_fit_holds_nothing_else_up(store: &dyn Store) {
    let epoch = store.begin_epoch(at(1)).await.expect("begins");
    open(store, 1).await;
    open(store, 2).await;
    let debits = vec![charge(1, 10_007), charge(2, 3), charge(9, 1)];
    let debited = write(store, group(epoch, 1, debits)).await.expect("writes");
    assert_eq!(debited, Debited { excess: 7, missing: 1 });
    let full = balance(store, 1).await;
    assert_eq!((full.spent(), full.left(), full.written_off()), (10_000, 0, 7));
    assert_eq!(balance(store, 2).await.spent(), 3);
    lawful(store).await;
}

async fn an_impossible_debit_spoils_its_group_and_no_other(store: &dyn Store) {
    let epoch = store.begin_epoch(at(1)).await.expect("begins");
    open(store, 1).await;
    let refused = write(store, group(epoch, 1, vec![charge(1, 1), charge(1, u64::MAX)])).await;
    assert!(matches!(refused, Err(StoreError::OutOfRange(_))), "{refused:?}");
    assert_eq!(balance(store, 1).await.spent(), 0);
    write(store, group(epoch, 1, vec![charge(1, 2)])).await.expect("writes");
    assert_eq!(balance(store, 1).await.spent(), 2);
    lawful(store).await;
}

async fn a_sum_is_cut_at_the_most_there_is_and_never_goes_round(store: &dyn Store) {
    let epoch = store.begin_epoch(at(1)).await.expect("begins");
    open(store, 1).await;
    for number in 1..=3 {
        let debit = Debit { requests: u64::MAX, written_off: u64::MAX - number, ..charge(1, 10) };
        assert_eq!(write(store, group(epoch, number, vec![debit])).await, Ok(Debited::default()));
    }
    let account = store.account(hash(1)).await.expect("reads").expect("an account");
    let most = i64::MAX.unsigned_abs();
    assert_eq!((account.balance.spent(), account.balance.written_off(), account.requests), (30, most, most));
    let day = &store.days_of_use(0, 1).await.expect("reads")[0];
    assert_eq!((day.units, day.written_off, day.requests), (30, most, most));
    lawful(store).await;
}

async fn use_is_counted_by_service_and_day(store: &dyn Store) {
    let epoch = store.begin_epoch(at(1)).await.expect("begins");
    open(store, 1).await;
    open(store, 2).await;
    let day = |number, day: u64, debits| Group { at: at(day * 86_400 + 5), ..group(epoch, number, debits) };
    let beyond = Debit { written_off: 4, ..charge(1, 10) };
    write(store, day(1, 3, vec![beyond, charge(2, 1)])).await.expect("writes");
    write(store, day(2, 3, vec![charge(1, 1)])).await.expect("writes");
    write(store, day(3, 5, vec![charge(1, 2)])).await.expect("writes");
    let service = sold(1, 1).service;
    let of = |day, requests, units, written_off| DayOfUse {
        day,
        service: service.clone(),
        unit: Unit::Msat,
        requests,
        units,
        written_off,
    };
    assert_eq!(store.days_of_use(0, u64::MAX).await.expect("reads"), [of(3, 3, 12, 4), of(5, 1, 2, 0)]);
    assert_eq!(store.days_of_use(4, 5).await.expect("reads"), [of(5, 1, 2, 0)]);
    lawful(store).await;
}

async fn use_by_the_month_adds_up_and_never_goes_round(store: &dyn Store) {
    let epoch = store.begin_epoch(at(1)).await.expect("begins");
    let used = |number, month, name: &str, unit, used| {
        let capability = name.parse().expect("a name");
        MonthlyUse { hash: hash(number), month: Month(month), capability, unit, used }
    };
    let first = vec![
        used(1, 7, "read", Unit::Request, 3),
        used(1, 7, "read", Unit::Msat, 500),
        used(1, 7, "write", Unit::Request, 1),
        used(1, 8, "read", Unit::Request, 2),
        used(2, 7, "read", Unit::Request, 9),
    ];
    assert_eq!(store.uses(hash(1), Month(7)).await, Ok(vec![]));
    let group = |number, uses| Group { uses, ..group(epoch, number, vec![]) };
    // Nobody has opened an account, nor shown a token that the books would know of.
    for _ in 0..2 {
        assert_eq!(write(store, group(1, first.clone())).await, Ok(Debited::default()));
    }
    let more = vec![used(1, 7, "read", Unit::Msat, u64::MAX), used(1, 7, "read", Unit::Request, 1)];
    write(store, group(2, more)).await.expect("writes");
    let mut found = store.uses(hash(1), Month(7)).await.expect("reads");
    found.sort_by_key(|of| (of.capability.clone(), of.unit.as_str()));
    let want = [
        used(1, 7, "read", Unit::Msat, i64::MAX.unsigned_abs()),
        used(1, 7, "read", Unit::Request, 4),
        used(1, 7, "write", Unit::Request, 1),
    ];
    assert_eq!(found, want);
    assert_eq!(store.uses(hash(1), Month(8)).await.expect("reads")[0].used, 2);
    lawful(store).await;
}

async fn an_answer_is_kept_for_its_time(store: &dyn Store) {
    let epoch = store.begin_epoch(at(1)).await.expect("begins");
    open(store, 1).await;
    let key = |number| AnswerKey([number; 32]);
    let answer = StoredAnswer {
        status: 201,
        headers: Bytes::from_static(b"a: b\r\n"),
        body: Bytes::from_static(b"\0\xffx"),
    };
    let kept = |number, answer: Option<StoredAnswer>| KeptAnswer {
        key: key(number),
        request: RequestDigest([7; 32]),
        answer: answer.map(Arc::new),
        until: at(5_000),
    };
    let answers = vec![kept(1, Some(answer)), kept(2, None)];
    write(store, Group { answers: answers.clone(), ..group(epoch, 1, vec![charge(1, 1)]) })
        .await
        .expect("writes");
    let found = async |number, now| store.kept_answer(key(number), at(now)).await.expect("reads");
    assert_eq!(found(1, 4_999).await.as_ref(), Some(&answers[0]));
    assert_eq!(found(2, 4_999).await.as_ref(), Some(&answers[1]));
    assert_eq!(found(1, 5_000).await, None, "its time is up");
    assert_eq!(found(3, 1).await, None);
    let later = Group { at: at(6_000), ..group(epoch, 2, vec![charge(1, 1)]) };
    write(store, later).await.expect("writes");
    assert_eq!(found(1, 1).await, None, "thrown away");
}

fn order(id: u8, of: RefundOf, number: u8, msat: u64) -> RefundOrder {
    RefundOrder { id: RefundId([id; 16]), hash: hash(number), of, amount: Msat::new(msat), at: at(4_000) }
}

async fn credit_goes_back_once_and_no_more_than_is_left(store: &dyn Store) {
    let epoch = store.begin_epoch(at(1)).await.expect("begins");
    open(store, 1).await;
    write(store, group(epoch, 1, vec![charge(1, 4_000)])).await.expect("writes");
    let ask = |id, msat| store.begin_refund(order(id, RefundOf::Credit, 1, msat));
    assert_eq!(ask(1, 6_001).await, Err(StoreError::NotThere));
    ask(1, 2_000).await.expect("begins");
    ask(1, 2_000).await.expect("has begun");
    assert_eq!(ask(1, 2_001).await, Err(StoreError::OtherRefund));
    ask(2, 4_000).await.expect("begins");
    assert_eq!(ask(3, 1).await, Err(StoreError::NotThere));
    let under_way = balance(store, 1).await;
    assert_eq!((under_way.left(), under_way.refunding(), under_way.refunded()), (0, 6_000, 0));
    assert_eq!(store.open_refunds(9).await.expect("reads").len(), 2);
    lawful(store).await;

    let end = |id, end| store.end_refund(RefundId([id; 16]), end, at(5_000));
    end(1, Refund::Paid).await.expect("ends");
    let again = end(1, Refund::Failed).await.expect("has ended");
    assert_eq!(again.ended, Some((Refund::Paid, at(5_000))), "the first end stays");
    end(2, Refund::Failed).await.expect("ends");
    assert_eq!(end(3, Refund::Paid).await, Err(StoreError::NotThere));
    let ended = balance(store, 1).await;
    assert_eq!((ended.left(), ended.refunding(), ended.refunded()), (4_000, 0, 2_000));
    let failed = store.refund(RefundId([2; 16])).await.expect("reads").and_then(|row| row.ended);
    assert_eq!(failed, Some((Refund::Failed, at(5_000))));
    assert_eq!(store.open_refunds(9).await.expect("reads"), []);
    lawful(store).await;

    ask(4, 3_000).await.expect("begins");
    let part = end(4, Refund::Part(Msat::new(2_500))).await.expect("ends");
    assert_eq!((part.order.amount, part.ended), (Msat::new(2_500), Some((Refund::Paid, at(5_000)))));
    assert_eq!(end(4, Refund::Failed).await.expect("has ended"), part, "the first end stays");
    let ended = balance(store, 1).await;
    assert_eq!(
        (ended.left(), ended.refunding(), ended.refunded()),
        (1_500, 0, 4_500),
        "the rest has come back"
    );
    ask(5, 1_000).await.expect("begins");
    assert!(end(5, Refund::Part(Msat::ZERO)).await.is_err());
    end(5, Refund::Part(Msat::new(9_000))).await.expect("ends");
    assert_eq!(balance(store, 1).await.refunded(), 5_500, "never more than was set aside");
    lawful(store).await;

    let requests = Allotment { unit: Unit::Request, units: 5 };
    store.open_account(presentation(2, 10_000), requests).await.expect("opens");
    let refused = store.begin_refund(order(7, RefundOf::Credit, 2, 1)).await;
    assert_eq!(refused, Err(StoreError::NotThere), "requests are no money");
}

async fn surplus_goes_back_once_and_no_more_than_there_is(store: &dyn Store) {
    present(store, 1).await;
    settle(store, vec![settlement(1, 1, 10_000), settlement(2, 1, 3_000)]).await;
    let ask = |id, msat| store.begin_refund(order(id, RefundOf::Surplus, 1, msat));
    assert_eq!(ask(1, 3_001).await, Err(StoreError::NotThere));
    ask(1, 2_000).await.expect("begins");
    assert_eq!(ask(2, 1_001).await, Err(StoreError::NotThere), "that is on its way already");
    store.end_refund(RefundId([1; 16]), Refund::Failed, at(5_000)).await.expect("ends");
    ask(2, 3_000).await.expect("begins");
    store.end_refund(RefundId([2; 16]), Refund::Paid, at(5_000)).await.expect("ends");
    assert_eq!(ask(3, 1).await, Err(StoreError::NotThere));
    assert_eq!(store.begin_refund(order(4, RefundOf::Surplus, 9, 1)).await, Err(StoreError::NotThere));
    lawful(store).await;
}

async fn a_refund_that_older_books_missed_is_booked_once_and_as_far_as_there_is_something(store: &dyn Store) {
    let epoch = store.begin_epoch(at(1)).await.expect("begins");
    open(store, 1).await;
    write(store, group(epoch, 1, vec![charge(1, 4_000)])).await.expect("writes");
    let (paid, limit) = (Some(at(4_500)), Some(Msat::new(5_000)));
    let known = |row: RefundRow| (row.order.amount.get(), row.missing.get(), row.ended);
    let ids = |ids: &[u8]| ids.iter().map(|id| RefundId([*id; 16])).collect::<Vec<_>>();
    assert_eq!(store.unknown_refunds(ids(&[1, 2])).await, Ok(ids(&[1, 2])));
    let add = |id, msat, paid, limit| store.add_refund(order(id, RefundOf::Credit, 1, msat), paid, limit);
    assert_eq!(
        add(1, 7_000, paid, None).await,
        Ok(None),
        "whoever has the account at work says how much it has"
    );
    for _ in 0..2 {
        let row = add(1, 7_000, paid, limit).await.expect("books").expect("a row");
        assert_eq!(known(row), (5_000, 2_000, Some((Refund::Paid, at(4_500)))));
    }
    let after = balance(store, 1).await;
    assert_eq!((after.spent(), after.refunded(), after.left()), (4_000, 5_000, 1_000));
    assert_eq!(store.unknown_refunds(ids(&[2, 1])).await, Ok(ids(&[2])));
    assert_eq!(
        store.add_refund(order(1, RefundOf::Credit, 2, 7_000), paid, limit).await,
        Err(StoreError::OtherRefund)
    );
    lawful(store).await;

    // One that may have left, and of which there is only a part.
    let row = add(2, 3_000, None, limit).await.expect("books").expect("a row");
    assert_eq!(known(row), (1_000, 2_000, None));
    assert_eq!(store.open_refunds(9).await.expect("reads"), [row]);
    let end = Refund::Part(Msat::new(1_500));
    let ended = store.end_refund(row.order.id, end, at(5_000)).await.expect("ends");
    assert_eq!(known(ended), (1_000, 500, Some((Refund::Paid, at(5_000)))));
    lawful(store).await;

    // Of an account that isn't there yet.
    for (id, msat, paid) in [(3, 4_000, paid), (4, 2_000, None), (5, 1_000, None)] {
        let row = store.add_refund(order(id, RefundOf::Credit, 2, msat), paid, None).await;
        assert_eq!(
            row.map(|row| row.map(|row| (row.order.amount.get(), row.missing.get()))),
            Ok(Some((0, msat)))
        );
    }
    let gone = store.end_refund(RefundId([5; 16]), Refund::Failed, at(5_000)).await.expect("ends");
    assert_eq!((gone.missing, gone.ended), (Msat::ZERO, Some((Refund::Failed, at(5_000)))));
    let opened = open(store, 2).await.balance;
    assert_eq!((opened.refunded(), opened.refunding(), opened.left()), (4_000, 2_000, 4_000));
    store.end_refund(RefundId([4; 16]), Refund::Failed, at(5_000)).await.expect("ends");
    assert_eq!(balance(store, 2).await.left(), 6_000);
    lawful(store).await;

    // Of surplus that isn't told of yet, and of one that somebody said wasn't paid.
    present(store, 3).await;
    settle(store, vec![settlement(1, 3, 10_000)]).await;
    let missed = order(6, RefundOf::Surplus, 3, 2_500);
    let row = store.add_refund(missed, paid, None).await.expect("books").expect("a row");
    assert_eq!(known(row), (0, 2_500, Some((Refund::Paid, at(4_500)))));
    settle(store, vec![settlement(2, 3, 2_000)]).await;
    settle(store, vec![settlement(3, 3, 2_000)]).await;
    let row = store.refund(RefundId([6; 16])).await.expect("reads").expect("a row");
    assert_eq!(known(row), (2_500, 0, Some((Refund::Paid, at(4_500)))));
    store.begin_refund(order(7, RefundOf::Surplus, 3, 1_500)).await.expect("begins");
    store.end_refund(RefundId([7; 16]), Refund::Failed, at(5_000)).await.expect("ends");
    assert_eq!(store.unknown_refunds(ids(&[7])).await, Ok(ids(&[7])));
    let denied = store.add_refund(order(7, RefundOf::Surplus, 3, 1_500), paid, None).await;
    assert_eq!(denied.map(|row| row.map(known)), Ok(Some((1_500, 0, Some((Refund::Paid, at(4_500)))))));
    lawful(store).await;
}

async fn a_mark_of_refunds_is_kept(store: &dyn Store) {
    assert_eq!(store.refund_mark().await, Ok(None));
    for place in [3, 9, 2] {
        let mark = RefundMark { place, id: RefundId([7; 16]) };
        store.mark_refunds(mark).await.expect("writes");
        assert_eq!(store.refund_mark().await, Ok(Some(mark)));
    }
}

async fn accounts_come_in_pages_newest_first(store: &dyn Store) {
    for number in 1..=5 {
        open(store, number).await;
    }
    present(store, 6).await;
    let page = async |after| {
        let rows = Accounts::accounts(store, Page { after, rows_max: 2 }).await.expect("reads");
        rows.iter().map(|row| row.hash).collect::<Vec<_>>()
    };
    assert_eq!(page(None).await, [hash(5), hash(4)]);
    assert_eq!(page(Some(hash(4))).await, [hash(3), hash(2)]);
    assert_eq!(page(Some(hash(2))).await, [hash(1)]);
    assert_eq!(page(Some(hash(1))).await, []);
}

async fn an_entry_says_what_the_rows_say(store: &dyn Store) {
    assert_eq!(store.entry(hash(1)).await.expect("reads"), None);
    let epoch = store.begin_epoch(at(1)).await.expect("begins");
    settle(store, vec![settlement(1, 1, 10_000), settlement(2, 1, 3_000)]).await;
    let entry = async || store.entry(hash(1)).await.expect("reads").expect("an entry");
    let unattributed = entry().await;
    assert_eq!((unattributed.purchase.sold, unattributed.account), (None, None));

    let account = open(store, 1).await;
    write(store, group(epoch, 1, vec![charge(1, 100)])).await.expect("writes");
    store.begin_refund(order(1, RefundOf::Surplus, 1, 2_000)).await.expect("begins");
    store.end_refund(RefundId([1; 16]), Refund::Paid, at(5_000)).await.expect("ends");
    store.begin_refund(order(2, RefundOf::Surplus, 1, 500)).await.expect("begins");
    store.begin_refund(order(3, RefundOf::Credit, 1, 40)).await.expect("begins");
    store.end_refund(RefundId([3; 16]), Refund::Paid, at(5_000)).await.expect("ends");
    let revocation = Revocation {
        identifier_hash: sold(1, 10_000).identifier_hash,
        at: at(6_000),
        reason: "leaked".to_owned(),
    };
    store.revoke(revocation).await.expect("revokes");

    let Entry { purchase, account: now, surplus_refunding, surplus_refunded, revoked } = entry().await;
    assert_eq!(Some(purchase), store.purchase(hash(1)).await.expect("reads"));
    let now = now.expect("an account");
    assert_eq!(now, store.account(hash(1)).await.expect("reads").expect("an account"));
    assert_eq!((now.place, now.balance.spent(), now.balance.refunded()), (account.place, 100, 40));
    assert_eq!((surplus_refunding.get(), surplus_refunded.get()), (500, 2_000));
    assert_eq!(revoked.map(|revoked| revoked.at), Some(at(6_000)));
    assert_eq!(store.entry(hash(2)).await.expect("reads"), None, "of another payment");
    lawful(store).await;
}
