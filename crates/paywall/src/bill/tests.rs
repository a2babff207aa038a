use std::num::NonZeroU64;

use farebox_protocol::{Msat, Offer};

use super::*;
use crate::{
    ledger::month::{Draw, Taken},
    price::{PerMillion, Rates, TokenRates},
    store::{Presentation, Sold, accounts::Allotment},
    testing::{START, Shop},
};

/// A bill over 100 units of 1,000, and the shop in which it was made.
async fn of(cost: Option<Cost>) -> (Shop, Box<Bill>) {
    let shop = Shop::open().await;
    let identifier = shop.buy().await.0.identifier().unwrap();
    let hash = identifier.payment_hash;
    let offer = if cost.is_some() { Offer::Credit } else { Offer::Requests(1_000.try_into().unwrap()) };
    let terms = farebox_protocol::Terms { offer, price: Msat::new(1_000) };
    let sold = Sold {
        token_id: identifier.token_id,
        identifier_hash: identifier.hash(),
        service: shop.service.name.clone(),
        tier: 0,
        terms,
        valid_until: None,
    };
    let units = NonZeroU64::new(cost.as_ref().map_or(1, |cost| cost.reserve().get())).unwrap();
    let presentation = Presentation { hash, sold, at: START };
    let reserved = shop.paywall.ledger().reserve(presentation, Allotment::of(&terms).unwrap(), units).await;
    let reservation = reserved.unwrap().reservation;
    let bill = match cost {
        Some(cost) => Bill::of_credit(reservation, &Arc::new(cost)),
        None => Bill::of_one(reservation),
    };
    (shop, Box::new(bill))
}

fn metered(meter: Meter) -> Cost {
    Cost::Metered { reserve: Msat::new(100), base: Msat::ZERO, meter }
}

fn by_bytes() -> Cost {
    metered(Meter::Bytes { request: PerMillion(1_000_000), response: PerMillion(1_000_000) })
}

fn by_usage() -> Cost {
    let each = PerMillion(1_000_000);
    let rates = Rates { otherwise: Some(TokenRates { input: each, output: each }), ..Rates::default() };
    metered(Meter::Usage { shape: Arc::default(), rates })
}

fn by_header() -> Cost {
    metered(Meter::Header(HeaderName::from_static("x-cost")))
}

fn head(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

/// What is charged where the request brings 10 bytes, and the answer these headers and this body.
async fn charged(
    cost: Option<Cost>,
    headers: &[(&'static str, &'static str)],
    body: &str,
    ending: Ending,
) -> u64 {
    let (shop, mut bill) = of(cost).await;
    let hash = bill.hash();
    bill.sent();
    bill.request(10);
    bill.answer(StatusCode::OK, &mut head(headers));
    bill.chunk(body.as_bytes());
    let charged = bill.end(ending);
    let balance = shop.paywall.ledger().balance(&hash).unwrap();
    assert_eq!((balance.spent(), balance.reserved()), (charged.spent, 0));
    charged.spent
}

#[tokio::test(start_paused = true)]
async fn each_ending_is_charged_as_the_rule_of_the_house_says() {
    use Ending::{Abandoned, Broken, Failed, Whole};
    let usage = r#"{"usage":{"prompt_tokens":7,"completion_tokens":8}}"#;
    for (cost, headers, body, want) in [
        (None, &[][..], "hello", [1, 1, 0, 0]),
        (Some(Cost::Fixed(Msat::new(9))), &[], "hello", [9, 9, 0, 0]),
        (Some(by_bytes()), &[], "hello", [15, 15, 0, 0]),
        (Some(by_header()), &[("x-cost", "42")], "", [42, 42, 0, 0]),
        (Some(by_header()), &[("x-cost", "142")], "", [142, 142, 0, 0]),
        (Some(by_header()), &[], "", [100, 0, 0, 0]),
        (Some(by_usage()), &[("content-type", "application/json")], usage, [15, 15, 0, 0]),
        (Some(by_usage()), &[("content-type", "application/json")], r#"{"usa"#, [100, 5, 0, 0]),
    ] {
        for (ending, want) in [Whole, Abandoned, Broken, Failed].into_iter().zip(want) {
            assert_eq!(
                charged(cost.clone(), headers, body, ending).await,
                want,
                "{cost:?} {body} {ending:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_is_abandoned_once_it_was_sent_and_costs_nothing_before() {
    for (is_sent, want) in [(false, 0), (true, 1)] {
        let (shop, mut bill) = of(None).await;
        let hash = bill.hash();
        if is_sent {
            bill.sent();
        }
        drop(bill);
        assert_eq!(shop.paywall.ledger().balance(&hash).unwrap().spent(), want);
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_serves_nobody_and_charges_nobody() {
    let (shop, mut bill) = of(None).await;
    let hash = bill.hash();
    bill.sent();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _bill = bill;
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(panicked.is_err());
    assert_eq!(shop.paywall.ledger().balance(&hash).unwrap().left(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_says_it_failed_is_not_paid_in_grpc_as_in_http() {
    let kind = ("content-type", "application/grpc");
    for (status, headers, trailers, want) in [
        (200, &[][..], &[][..], 1),
        (404, &[], &[], 1),
        (500, &[], &[], 0),
        (200, &[kind, ("grpc-status", "0")], &[], 1),
        (200, &[kind, ("grpc-status", "5")], &[], 1),
        (200, &[kind, ("grpc-status", "14")], &[], 0),
        (200, &[kind], &[("grpc-status", "13")], 0),
        // The deadline is the buyer's own.
        (200, &[kind], &[("grpc-status", "4")], 1),
        // Not gRPC: perhaps what the buyer has sent, sent back.
        (200, &[("grpc-status", "14")], &[], 1),
    ] {
        let (_shop, mut bill) = of(None).await;
        bill.sent();
        bill.answer(StatusCode::from_u16(status).unwrap(), &mut head(headers));
        bill.trailers(&head(trailers));
        assert_eq!(bill.end(Ending::Whole).spent, want, "{status} {headers:?} {trailers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_after_its_first_message_is_charged_for_what_has_passed() {
    let message = "\0\0\0\0\x03abc";
    let kind = ("content-type", "application/grpc");
    // Of the 10 bytes of each request, an estimate is 3 units; 8 bytes of the answer are 2.
    for (cost, headers, whole, cut) in [
        (None, &[kind][..], 1, 0),
        (Some(Cost::Fixed(Msat::new(9))), &[kind], 9, 0),
        (Some(by_bytes()), &[kind], 18, 0),
        (Some(by_header()), &[kind, ("x-cost", "42")], 42, 0),
        (Some(by_header()), &[kind], 0, 0),
        (Some(by_usage()), &[kind], 5, 0),
    ] {
        for (body, want) in [(message, whole), (&message[..7], cut), ("", 0)] {
            let (_shop, mut bill) = of(cost.clone()).await;
            bill.sent();
            bill.request(10);
            bill.answer(StatusCode::OK, &mut head(headers));
            bill.chunk(body.as_bytes());
            bill.trailers(&head(&[("grpc-status", "13")]));
            assert_eq!(bill.end(Ending::Whole).spent, want, "{cost:?} {headers:?} {body:?}");
        }
    }
    // Neither an upstream that breaks off nor one that answers 5xx is paid for a message.
    for (status, ending) in [(200, Ending::Broken), (503, Ending::Whole)] {
        let (_shop, mut bill) = of(None).await;
        bill.sent();
        bill.answer(StatusCode::from_u16(status).unwrap(), &mut head(&[kind]));
        bill.chunk(message.as_bytes());
        bill.trailers(&head(&[("grpc-status", "14")]));
        assert_eq!(bill.end(ending).spent, 0, "{status} {ending:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_serves_nothing_costs_what_it_says_or_only_what_every_request_does() {
    let json = ("content-type", "application/json");
    let usage = r#"{"usage":{"prompt_tokens":7,"completion_tokens":8}}"#;
    let with_base = |cost| match cost {
        Cost::Metered { reserve, meter, .. } => Cost::Metered { reserve, base: Msat::new(4), meter },
        Cost::Fixed(_) => cost,
    };
    for (cost, status, headers, body, want) in [
        (by_usage(), 200, &[json][..], "{}", 100),
        (by_usage(), 404, &[json], "{}", 4),
        (by_usage(), 429, &[json], r#"{"err"#, 4),
        (by_usage(), 422, &[json], usage, 19),
        (by_usage(), 400, &[("content-type", "text/html")], "no", 4),
        (by_usage(), 307, &[], "", 4),
        (by_usage(), 304, &[], "", 4),
        (by_usage(), 204, &[], "", 4),
        (by_usage(), 101, &[], "", 100),
        // What makes no sense is no silence.
        (by_usage(), 404, &[json], r#"{"usage":{"prompt_tokens":-1}}"#, 100),
        (by_header(), 200, &[], "", 100),
        (by_header(), 404, &[], "", 4),
        (by_header(), 404, &[("x-cost", "42")], "", 46),
        (by_header(), 404, &[("x-cost", "much")], "", 100),
        (by_bytes(), 404, &[], "no", 16),
        (Cost::Fixed(Msat::new(9)), 404, &[], "no", 9),
        (by_usage(), 200, &[("content-type", "application/grpc"), ("grpc-status", "5")], "", 4),
        (by_usage(), 200, &[("content-type", "application/grpc"), ("grpc-status", "0")], "", 100),
    ] {
        for ending in [Ending::Whole, Ending::Abandoned] {
            // Who leaves before the end pays for what came by then; for an answer that served nothing, not more than who stays.
            if ending == Ending::Abandoned && want == 100 {
                continue;
            }
            let (_shop, mut bill) = of(Some(with_base(cost.clone()))).await;
            bill.sent();
            bill.request(10);
            bill.answer(StatusCode::from_u16(status).unwrap(), &mut head(headers));
            bill.chunk(body.as_bytes());
            assert_eq!(bill.end(ending).spent, want, "{cost:?} {status} {headers:?} {body} {ending:?}");
        }
    }
    let (_shop, mut bill) = of(Some(with_base(by_usage()))).await;
    bill.is_for_head();
    bill.sent();
    bill.answer(StatusCode::OK, &mut head(&[json]));
    assert_eq!(bill.end(Ending::Whole).spent, 4, "HEAD");
}

#[tokio::test(start_paused = true)]
async fn what_is_used_beyond_the_reserve_is_set_aside_as_it_is_used_until_nothing_is_left() {
    let (shop, mut bill) = of(Some(by_bytes())).await;
    let hash = bill.hash();
    let balance = || shop.paywall.ledger().balance(&hash).unwrap();
    bill.sent();
    bill.answer(StatusCode::OK, &mut head(&[]));
    bill.chunk(&[0; 100]);
    assert!(bill.keeps_up(0));
    assert_eq!((balance().reserved(), balance().left()), (100, 900));
    bill.chunk(&[0; 1]);
    assert!(bill.keeps_up(0), "another reserve");
    assert_eq!((balance().reserved(), balance().left()), (200, 800));
    assert!(bill.keeps_up(599), "the request's own bytes count, and more than one reserve");
    assert_eq!((balance().reserved(), balance().left()), (700, 300));
    bill.chunk(&[0; 899]);
    assert!(bill.keeps_up(0), "all there is");
    assert_eq!((balance().reserved(), balance().left()), (1_000, 0));
    bill.chunk(&[0; 5]);
    assert!(!bill.keeps_up(0));
    assert_eq!(bill.end(Ending::Abandoned), Charged { spent: 1_000, written_off: 5 });
    assert!(balance().holds());

    // So it is before an answer has begun.
    let (_shop, mut bill) = of(Some(by_bytes())).await;
    assert!(bill.keeps_up(1_000) && !bill.keeps_up(1_001));
    bill.request(1_000);
    assert_eq!(bill.end(Ending::Abandoned), Charged { spent: 1_000, written_off: 0 });

    // What is only known at the end is never missed before it.
    for cost in [by_usage(), by_header(), Cost::Fixed(Msat::new(100))] {
        let (_shop, mut bill) = of(Some(cost)).await;
        bill.answer(StatusCode::OK, &mut head(&[("content-type", "application/json"), ("x-cost", "5000")]));
        bill.chunk(&[b' '; 100_000]);
        assert!(bill.keeps_up(100_000));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_set_aside_in_between_comes_back_if_the_upstream_fails() {
    let (shop, mut bill) = of(Some(by_bytes())).await;
    let hash = bill.hash();
    bill.sent();
    bill.answer(StatusCode::OK, &mut head(&[]));
    bill.chunk(&[0; 400]);
    assert!(bill.keeps_up(0));
    assert_eq!(bill.end(Ending::Broken).spent, 0);
    let balance = shop.paywall.ledger().balance(&hash).unwrap();
    assert_eq!((balance.left(), balance.reserved()), (1_000, 0));
}

#[tokio::test(start_paused = true)]
async fn the_answer_loses_what_is_for_us_alone_and_tells_what_is_left() {
    let (_shop, mut bill) = of(Some(by_header())).await;
    let mut headers = head(&[("x-cost", "42"), ("farebox-left", "1000000"), ("x-other", "1")]);
    bill.answer(StatusCode::OK, &mut headers);
    assert_eq!(headers, head(&[("farebox-left", "900"), ("farebox-left-unit", "msat"), ("x-other", "1")]));
    // Where requests are sold, it is requests that are left.
    let (_shop, mut bill) = of(None).await;
    let mut headers = head(&[("farebox-left-unit", "msat")]);
    bill.answer(StatusCode::OK, &mut headers);
    assert_eq!(headers["farebox-left-unit"], "request");
}

#[tokio::test(start_paused = true)]
async fn only_what_is_metered_by_usage_is_read_and_only_an_api_that_can_be_asked_is_asked() {
    let is = async |cost| {
        let (_shop, bill) = of(cost).await;
        (bill.is_metered_by_usage(), bill.asks_for_usage())
    };
    assert_eq!(is(None).await, (false, false));
    assert_eq!(is(Some(by_bytes())).await, (false, false));
    assert_eq!(is(Some(by_usage())).await, (true, true));
    let mut other = by_usage();
    if let Cost::Metered { meter: Meter::Usage { shape, .. }, .. } = &mut other {
        *shape = Arc::new(Shape { input: vec!["input_tokens".to_owned()], ..Shape::default() });
    }
    assert_eq!(is(Some(other)).await, (true, false), "others refuse what they don't know");
}

#[tokio::test(start_paused = true)]
async fn a_limit_by_the_month_ends_an_answer_as_the_end_of_the_credit_does() {
    let (shop, mut bill) = of(Some(by_bytes())).await;
    let (capability, taken) = ("read".parse().unwrap(), Taken::AsCharged);
    let limit = Draw { capability, unit: Unit::Msat, most: 300, takes: 100, taken };
    let held = bill.reservation.take().unwrap();
    bill.reservation = Some(shop.paywall.ledger().limit(held, &[limit]).await.unwrap());
    bill.sent();
    bill.answer(StatusCode::OK, &mut HeaderMap::new());
    let passes = (1..=10).take_while(|_| {
        bill.chunk(&[0; 100]);
        bill.keeps_up(0)
    });
    assert_eq!(passes.count(), 3);
    assert_eq!(bill.end(Ending::Abandoned).spent, 400, "the piece with which it is used up has passed");
}
