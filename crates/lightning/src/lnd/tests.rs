//! What the backend does when lnd does not do what it should.

mod double;

use std::{sync::Arc, time::Duration};

use farebox_protocol::{Msat, PaymentHash};
use futures_util::StreamExt as _;
use lightning_invoice::Currency;
use tonic::{Code, Status};

use self::double::{Double, Flaw, MACAROON};
use super::{
    Credential, DESCRIPTION_MAX, Lnd, LndConfig, LndWallet, Trust,
    client::CallError,
    rpc::lnrpc::{WalletState, invoice::InvoiceState},
    shorten,
};
use crate::{
    Ask, Cursor, Health, Incoming, Pay as _, PayError, Receive as _, ReceiveError, clock::SystemClock,
    phoenixd::Secret,
};

fn ask() -> Ask {
    Ask { amount: Msat::new(1_001), expiry: Duration::from_secs(600), description: "weather".to_owned() }
}

/// Waits until nothing can be sold for a reason that says this.
async fn down(lnd: &Lnd, says: &str) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        lnd.node.watch.until(|health| matches!(health, Health::Down(why) if why.contains(says))).await;
    });
    assert!(waited.await.is_ok(), "it never says `{says}`, but {:?}", lnd.health());
}

async fn ready(lnd: &Lnd) {
    let waited = tokio::time::timeout(Duration::from_secs(20), lnd.node.watch.ready());
    assert!(waited.await.is_ok(), "never ready: {:?}", lnd.health());
}

#[tokio::test]
async fn it_sells_through_a_node_that_is_ready_and_says_which_it_is() {
    let double = Double::start().await;
    let lnd = double.connect();
    assert!(lnd.facts().is_none(), "nothing is known before the node has been spoken to");
    ready(&lnd).await;
    let invoice = lnd.invoice(ask()).await.unwrap();
    assert_eq!(invoice.amount(), Some(Msat::new(1_001)));
    assert_eq!(lnd.facts().unwrap().node, invoice.payee());
    assert!(lnd.facts().unwrap().is_shared);
    assert_eq!(lnd.lookup(invoice.payment_hash()).await.unwrap(), Incoming::Unpaid);
    assert_eq!(lnd.lookup(PaymentHash::from_bytes([3; 32])).await.unwrap(), Incoming::Unpaid);
    double.settle(2, 1);
    assert!(matches!(
        lnd.lookup(invoice.payment_hash()).await.unwrap(),
        Incoming::Settled { amount, .. } if amount == Msat::new(1_001)
    ));
}

#[tokio::test]
async fn a_node_that_is_silent_does_not_keep_the_program_from_ending() {
    let double = Double::start().await;
    let config = LndConfig { call_timeout: Duration::from_secs(300), ..double.config() };
    let lnd = Lnd::connect(config, Arc::new(SystemClock)).unwrap();
    ready(&lnd).await;
    double.manner.lock().flaw = Some(Flaw::Silence);
    tokio::time::pause();
    let stopped = async {
        let began = tokio::time::Instant::now();
        lnd.stop().await;
        began.elapsed()
    };
    let (made, took) = tokio::join!(lnd.invoice(ask()), stopped);
    assert!(made.is_err() && took < Duration::from_secs(9), "{took:?}");
}

#[tokio::test]
async fn a_node_is_known_by_one_invoice_however_often_it_is_asked() {
    let double = Double::start().await;
    for _ in 0..3 {
        double.ready().await.stop().await;
    }
    assert_eq!(double.manner.lock().invoices.len(), 1);
}

#[tokio::test]
async fn an_invoice_that_it_was_known_by_is_replaced_when_it_is_dead() {
    let double = Double::start().await;
    let first = double.ready().await.facts().unwrap();
    double.manner.lock().invoices[0].set_state(InvoiceState::Canceled);
    assert_eq!(double.ready().await.facts().unwrap().node, first.node);
    double.manner.lock().invoices[0].set_state(InvoiceState::Canceled);
    double.manner.lock().denied.insert("DeleteCanceledInvoice");
    assert_eq!(double.ready().await.facts().unwrap().node, first.node);
    let open = |invoice: &&super::rpc::lnrpc::Invoice| invoice.state() == InvoiceState::Open;
    assert_eq!(double.manner.lock().invoices.iter().filter(open).count(), 1);
}

#[tokio::test]
async fn another_certificate_is_refused_until_its_file_says_it() {
    let double = Double::start().await;
    let pem = double.renew_certificate();
    let lnd = double.connect();
    down(&lnd, "shows another certificate than the one in").await;
    assert!(matches!(lnd.invoice(ask()).await, Err(ReceiveError::Unavailable(_))));
    std::fs::write(double.file("tls.cert"), pem).unwrap();
    ready(&lnd).await;
}

#[tokio::test]
async fn a_certificate_that_is_missing_is_found_when_it_comes() {
    let double = Double::start().await;
    let config = LndConfig { trust: Trust::Pinned(double.file("new.cert")), ..double.config() };
    let lnd = Lnd::connect(config, Arc::new(SystemClock)).unwrap();
    down(&lnd, "can't read the certificate in").await;
    std::fs::copy(double.file("tls.cert"), double.file("new.cert")).unwrap();
    ready(&lnd).await;
}

#[tokio::test]
async fn a_self_signed_certificate_is_not_believed_where_an_authority_should_have_signed() {
    let double = Double::start().await;
    let config = LndConfig { trust: Trust::System, ..double.config() };
    let lnd = Lnd::connect(config, Arc::new(SystemClock)).unwrap();
    down(&lnd, "no TLS with").await;
}

#[tokio::test]
async fn a_refused_macaroon_is_named_and_a_new_one_counts_without_a_restart() {
    let double = Double::start().await;
    let lnd = double.ready().await;
    double.manner.lock().macaroon = "0201ff";
    assert!(matches!(lnd.invoice(ask()).await, Err(ReceiveError::Unavailable(_))));
    down(&lnd, "lnd refuses the macaroon: verification failed").await;
    std::fs::write(double.file("macaroon"), "0201ff").unwrap();
    ready(&lnd).await;
}

#[tokio::test]
async fn a_wallet_pays_with_the_new_macaroon_too() {
    let double = Double::start().await;
    let lnd = double.ready().await;
    let wallet = LndWallet::open(lnd.client()).await.unwrap();
    wallet.balance().await.unwrap();
    double.manner.lock().macaroon = "0201ff";
    assert!(matches!(wallet.balance().await, Err(PayError::Unavailable(why)) if why.contains("macaroon")));
    std::fs::write(double.file("macaroon"), "0201ff").unwrap();
    // Nobody tells the wallet: the node's own watch finds that the old one is refused, and reads the file again.
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while wallet.balance().await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_ok(), "the wallet never shows the new macaroon");
}

#[tokio::test]
async fn a_port_that_speaks_no_grpc_is_called_that() {
    let double = Double::start().await;
    double.speak(&[]);
    let lnd = double.connect();
    down(&lnd, "speaks no gRPC").await;
    double.speak(&[b"h2"]);
    ready(&lnd).await;
}

#[tokio::test]
async fn a_permission_that_is_missing_is_named() {
    let double = Double::start().await;
    double.manner.lock().denied.extend(["LookupInvoice", "GetInfo"]);
    let lnd = double.connect();
    down(&lnd, "the macaroon does not permit `lnrpc.Lightning/LookupInvoice`").await;
    double.manner.lock().denied.remove("LookupInvoice");
    ready(&lnd).await;
}

#[tokio::test]
async fn each_way_of_not_being_ready_says_what_to_do_and_ends_by_itself() {
    for (state, says) in [
        (WalletState::Locked, "lncli unlock"),
        (WalletState::NonExisting, "lncli create"),
        (WalletState::Unlocked, "still starting"),
        (WalletState::RpcActive, "catching up with the chain"),
        (WalletState::WaitingToStart, "waits for another one of its cluster"),
    ] {
        let double = Double::start().await;
        double.manner.lock().state = state;
        let lnd = double.connect();
        down(&lnd, says).await;
        assert!(lnd.facts().is_none());
        double.manner.lock().state = WalletState::ServerActive;
        ready(&lnd).await;
    }
}

#[tokio::test]
async fn a_node_that_is_behind_the_chain_is_not_sold_through_where_that_is_known() {
    let double = Double::start().await;
    double.manner.lock().synced = false;
    let lnd = double.connect();
    down(&lnd, "catching up with the chain").await;
    double.manner.lock().denied.insert("GetInfo");
    ready(&lnd).await;
}

#[tokio::test]
async fn a_node_that_comes_late_is_found() {
    let double = Double::start().await;
    double.manner.lock().hangs_up = true;
    let lnd = double.connect();
    down(&lnd, "lnd can't be reached").await;
    double.manner.lock().hangs_up = false;
    ready(&lnd).await;
}

#[tokio::test]
async fn test_coins_are_not_taken_for_real_ones() {
    let double = Double::start().await;
    double.manner.lock().currency = Currency::Signet;
    let lnd = double.connect();
    down(&lnd, "lnd is on signet, but regtest is sold on").await;
    assert!(lnd.facts().is_none());
}

#[tokio::test]
async fn another_node_at_the_same_address_is_not_taken_for_the_one_before() {
    let double = Double::start().await;
    let lnd = double.ready().await;
    let was = lnd.facts().unwrap().node;
    {
        let mut manner = double.manner.lock();
        manner.key = 3;
        manner.invoices.clear();
    }
    lnd.node.watch.note(&CallError::TimedOut(Duration::ZERO));
    down(&lnd, &format!("instead of `{was}`")).await;
    assert_eq!(lnd.facts().unwrap().node, was);
}

#[tokio::test]
async fn an_invoice_that_is_not_what_was_asked_for_is_not_sold() {
    let double = Double::start().await;
    let lnd = double.ready().await;
    for (flaw, says) in [
        (Flaw::Amount, "is not for 1001 msat"),
        (Flaw::Hash, "is not for the payment hash that was asked for"),
        (Flaw::Network, "is for mainnet, not for regtest"),
        (Flaw::Expiry, "lives 300 s, not 600 s"),
        (Flaw::Past, "is expired already"),
        (Flaw::Payee, "is to be paid to another node"),
        (Flaw::Garbage, "can't be read"),
    ] {
        double.manner.lock().flaw = Some(flaw);
        match lnd.invoice(ask()).await {
            Err(ReceiveError::Wrong(why)) => assert!(why.contains(says), "{flaw:?}: {why}"),
            other => panic!("{flaw:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_refused_before_lnd_is_asked() {
    let double = Double::start().await;
    let lnd = double.connect();
    for bad in [
        Ask { amount: Msat::ZERO, ..ask() },
        Ask { amount: Msat::new(u64::MAX), ..ask() },
        Ask { expiry: Duration::from_secs(400 * 86_400), ..ask() },
    ] {
        assert!(matches!(lnd.invoice(bad).await, Err(ReceiveError::Invalid(_))));
    }
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_waited_for_no_longer_than_said() {
    let double = Double::start().await;
    let lnd = Lnd::connect(
        LndConfig { call_timeout: Duration::from_millis(300), ..double.config() },
        Arc::new(SystemClock),
    );
    let lnd = lnd.unwrap();
    ready(&lnd).await;
    double.manner.lock().flaw = Some(Flaw::Silence);
    assert!(matches!(lnd.invoice(ask()).await, Err(ReceiveError::TimedOut(_))));
}

#[tokio::test]
async fn the_first_settlement_is_found_and_all_are_told_in_order() {
    let double = Double::start().await;
    let lnd = double.ready().await;
    for _ in 0..4 {
        lnd.invoice(ask()).await.unwrap();
    }
    // Not in the order in which they were made, and while nobody listens.
    for (add_index, settle_index) in [(4, 1), (2, 2), (3, 3)] {
        double.settle(add_index, settle_index);
    }
    let cursors = |after, take| {
        let told = lnd.settlements(Cursor(after)).take(take);
        told.map(|told| told.unwrap().cursor.0).collect::<Vec<_>>()
    };
    assert_eq!(cursors(0, 3).await, [1, 2, 3]);
    assert_eq!(cursors(1, 2).await, [2, 3]);
    let (live, ()) = tokio::join!(cursors(3, 1), async {
        // Until somebody listens.
        while double.told.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        double.settle(5, 4);
    });
    assert_eq!(live, [4]);
}

#[tokio::test]
async fn a_node_that_has_lost_its_settlements_is_read_from_the_beginning() {
    let double = Double::start().await;
    let config = LndConfig { call_timeout: Duration::from_millis(500), ..double.config() };
    let lnd = Lnd::connect(config, Arc::new(SystemClock)).unwrap();
    ready(&lnd).await;
    for _ in 0..4 {
        lnd.invoice(ask()).await.unwrap();
    }
    let told = async |after, take| {
        let told = lnd.settlements(Cursor(after)).take(take);
        told.map(|told| told.unwrap().cursor.0).collect::<Vec<_>>().await
    };
    // As many as before or more, and it hasn't come so far again; or it has come further, and the place is another's.
    for (add_index, settle_index) in [(2, 1), (3, 2)] {
        double.settle(add_index, settle_index);
    }
    assert_eq!(told(7, 2).await, [1, 2]);
    double.settle(4, 9);
    assert_eq!(told(7, 3).await, [1, 2, 9]);
    assert_eq!(told(2, 1).await, [9], "one that has lost nothing is read from where it was left");
}

#[tokio::test]
async fn a_first_settlement_that_cannot_be_found_holds_up_nothing() {
    let double = Double::start().await;
    let lnd = double.ready().await;
    for _ in 0..3 {
        lnd.invoice(ask()).await.unwrap();
    }
    // The first one was of something that has no place of its own, or that is skipped.
    for (add_index, settle_index) in [(3, 3), (2, 2)] {
        double.settle(add_index, settle_index);
    }
    let told = lnd.settlements(Cursor(0)).take(2);
    let told: Vec<_> = told.map(|told| told.unwrap().cursor.0).collect().await;
    assert_eq!(told, [2, 3]);
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_error_and_goes_on_from_the_cursor() {
    let double = Double::start().await;
    let lnd = double.ready().await;
    for _ in 0..2 {
        lnd.invoice(ask()).await.unwrap();
    }
    double.settle(2, 1);
    let mut told = lnd.settlements(Cursor(0));
    let first = told.next().await.unwrap().unwrap();
    assert_eq!((first.cursor, first.description.as_deref()), (Cursor(1), Some("weather")));
    // Again and again, since it isn't seen from here when the next stream is open.
    let next = loop {
        tokio::select! {
            biased;
            next = told.next() => break next,
            () = tokio::task::yield_now() => {
                _ = double.told.send(Err("transport is closing"));
            }
        }
    };
    assert!(matches!(next, Some(Err(ReceiveError::Unavailable(_)))), "{next:?}");
    assert!(told.next().await.is_none());
    double.settle(3, 2);
    let next = lnd.settlements(first.cursor).next().await.unwrap().unwrap();
    assert_eq!(next.cursor, Cursor(2));
}

#[tokio::test]
async fn a_full_list_sells_nothing_and_what_expires_makes_room() {
    let double = Double::start().await;
    let config = LndConfig { open_invoices_max: 2, ..double.config() };
    let lnd = Lnd::connect(config, Arc::new(SystemClock)).unwrap();
    ready(&lnd).await;
    for _ in 0..2 {
        lnd.invoice(ask()).await.unwrap();
    }
    match lnd.invoice(ask()).await {
        Err(ReceiveError::Unavailable(why)) => assert_eq!(why, "2 invoices are open (`open-invoices-max`)"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_nobody_pays_is_deleted_and_what_was_paid_is_kept() {
    let double = Double::start().await;
    let lnd = double.ready().await;
    let unpaid = lnd.invoice(ask()).await.unwrap().payment_hash();
    let paid = lnd.invoice(ask()).await.unwrap().payment_hash();
    double.settle(3, 1);
    // As if both had expired, and the program ended.
    lnd.node.open.expire_all();
    lnd.stop().await;
    let left: Vec<_> = double.manner.lock().invoices.iter().map(|left| left.r_hash.clone()).collect();
    assert!(!left.contains(&unpaid.as_bytes().to_vec()), "an unpaid invoice is deleted");
    assert!(left.contains(&paid.as_bytes().to_vec()), "a paid one is not");
    assert_eq!(lnd.node.open.len(), 0);
}

#[tokio::test]
async fn an_invoice_whose_answer_was_lost_is_cleared_up_like_the_others() {
    let double = Double::start().await;
    let config = LndConfig { call_timeout: Duration::from_millis(500), ..double.config() };
    let lnd = Lnd::connect(config, Arc::new(SystemClock)).unwrap();
    ready(&lnd).await;
    // One that lnd has made, though it doesn't say so, and one that it has not.
    for (flaw, are_there) in [(Flaw::LostAnswer, 2), (Flaw::Silence, 2)] {
        double.manner.lock().flaw = Some(flaw);
        assert!(matches!(lnd.invoice(ask()).await, Err(ReceiveError::TimedOut(_))), "{flaw:?}");
        assert_eq!(double.manner.lock().invoices.len(), are_there, "{flaw:?}");
    }
    double.manner.lock().flaw = None;
    assert_eq!(lnd.node.open.len(), 2);
    lnd.node.open.expire_all();
    lnd.stop().await;
    assert_eq!(double.manner.lock().invoices.len(), 1, "all but the one by which the node is known");
    assert_eq!(lnd.node.open.len(), 0);
}

#[tokio::test]
async fn what_lnd_refuses_to_make_takes_up_no_room() {
    let double = Double::start().await;
    let config = LndConfig { open_invoices_max: 1, ..double.config() };
    let lnd = Lnd::connect(config, Arc::new(SystemClock)).unwrap();
    ready(&lnd).await;
    double.manner.lock().denied.insert("AddInvoice");
    for _ in 0..2 {
        match lnd.invoice(ask()).await {
            Err(ReceiveError::Unavailable(why)) => assert!(why.contains("AddInvoice"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    double.manner.lock().denied.clear();
    lnd.invoice(ask()).await.unwrap();
}

#[tokio::test]
async fn what_lnd_has_cancelled_is_deleted_without_the_right_to_cancel() {
    let double = Double::start().await;
    double.manner.lock().denied.insert("CancelInvoice");
    let lnd = double.ready().await;
    lnd.invoice(ask()).await.unwrap();
    double.manner.lock().invoices[1].set_state(InvoiceState::Canceled);
    lnd.node.open.expire_all();
    lnd.stop().await;
    assert_eq!(double.manner.lock().invoices.len(), 1);
}

#[tokio::test]
async fn sales_go_on_where_nothing_can_be_deleted_and_the_owner_is_told() {
    let double = Double::start().await;
    double.manner.lock().denied.extend(["DeleteCanceledInvoice", "CancelInvoice"]);
    let lnd = double.ready().await;
    lnd.invoice(ask()).await.unwrap();
    lnd.node.open.expire_all();
    lnd.invoice(ask()).await.unwrap();
    let advice = lnd.advice().await;
    assert!(advice[0].contains("gc-canceled-invoices-on-the-fly"), "{advice:?}");
    assert!(advice.iter().any(|line| line.contains("`lnrpc.Lightning/DeleteCanceledInvoice`")), "{advice:?}");
    assert!(advice.iter().any(|line| line.contains("at most 21000 sat")), "{advice:?}");
    double.manner.lock().state = WalletState::Locked;
    lnd.node.watch.note(&CallError::Locked);
    assert!(lnd.advice().await[0].contains("lncli unlock"));
}

#[tokio::test]
async fn nothing_that_can_be_printed_shows_the_macaroon() {
    let double = Double::start().await;
    let config = LndConfig { macaroon: Credential::Text(Secret::new(MACAROON)), ..double.config() };
    assert!(!format!("{config:?}").contains(MACAROON));
    let lnd = Lnd::connect(config, Arc::new(SystemClock)).unwrap();
    ready(&lnd).await;
    double.manner.lock().macaroon = "0201ff";
    let refused = lnd.invoice(ask()).await.unwrap_err();
    let request = lnd.client().request(()).unwrap();
    let shown = format!("{lnd:?} {refused} {refused:?} {:?} {:?} {request:?}", lnd.health(), lnd.client());
    assert!(!shown.contains(MACAROON), "{shown}");
}

#[test]
fn a_long_description_keeps_its_beginning_and_its_end() {
    let label = " [farebox:1;duration;secs=3600;10000;AAECAwQFBgc7o4ULSHoW2vdj]";
    for length in [0, 1, 500, 575, 576, 577, 600, 2_000] {
        for letter in ["a", "ü", "€", "𝄞"] {
            let long = format!("weather: {}{label}", letter.repeat(length));
            let short = shorten(&long);
            assert!(short.len() <= DESCRIPTION_MAX);
            assert!(short.starts_with("weather: ") && short.ends_with(label), "{short}");
            assert_eq!(short == long, long.len() <= DESCRIPTION_MAX);
        }
    }
}

#[test]
fn lnds_sentences_are_understood() {
    let said = |code, text: &str| CallError::of(&Status::new(code, text), "a/B");
    let unknown = |text: &str| said(Code::Unknown, text);
    assert_eq!(unknown("wallet locked, unlock it to enable full RPC access"), CallError::Locked);
    assert_eq!(unknown("wallet not created, create one to enable full RPC access"), CallError::NoWallet);
    for starting in [
        "the RPC server is in the process of starting up, but not yet ready to accept calls",
        "waiting to start, RPC services not available",
        "server is still in the process of starting",
    ] {
        assert_eq!(unknown(starting), CallError::Starting);
    }
    assert_eq!(unknown("permission denied"), CallError::NotPermitted("a/B"));
    for refused in [
        "verification failed: signature mismatch after caveat verification",
        "cannot get macaroon: root key with id 0 doesn't exist",
        "expected 1 macaroon, got 0",
        "caveat \"time-before 2020-01-01T00:00:00Z\" not satisfied: macaroon has expired",
    ] {
        assert_eq!(unknown(refused), CallError::Refused(refused.to_owned()));
    }
    assert_eq!(said(Code::Unimplemented, "unknown service"), CallError::Unimplemented("a/B"));
    assert!(matches!(said(Code::NotFound, "unable to locate invoice"), CallError::NotFound(_)));
    for code in [Code::Unavailable, Code::Cancelled, Code::DeadlineExceeded] {
        let error = said(code, "upstream request timeout");
        assert!(matches!(error, CallError::Unreachable(_)), "{code:?}: it may be carried out yet");
    }
    let of_a_proxy = unknown("grpc-status header missing, mapped from HTTP status code 500");
    assert!(matches!(of_a_proxy, CallError::Unreachable(_)), "whether lnd has heard of it, nobody said");
    assert_eq!(unknown("invoice not canceled\n"), CallError::Said("invoice not canceled".to_owned()));
}
