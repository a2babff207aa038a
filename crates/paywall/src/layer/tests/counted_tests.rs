//! Answers that are counted: charged by how they end.

use std::{num::NonZeroU64, time::Duration};

use farebox_protocol::{Macaroon, Offer, Preimage};
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;

use super::*;
use crate::{
    Costs, Freebies, LEFT_HEADER,
    price::{Cost, Meter, PerMillion},
};

type Answered = Result<Response<axum::body::Body>, axum::BoxError>;

/// A shop that sells 10 requests, and a token of it.
async fn shop() -> (Shop, Macaroon, Preimage) {
    let mut shop = Shop::open().await;
    shop.service.offer = Offer::Requests(NonZeroU64::new(10).unwrap());
    let (macaroon, preimage) = shop.buy().await;
    (shop, macaroon, preimage)
}

/// Asks an inner service that answers so.
async fn ask(
    shop: &Shop,
    method: Method,
    token: (&Macaroon, &Preimage),
    answer: impl Fn() -> Answered + Clone + Send + 'static,
) -> Result<Response<Body<axum::body::Body>>, axum::BoxError> {
    let inner = tower::service_fn(move |request: HttpRequest<axum::body::Body>| {
        let answer = answer.clone();
        async move {
            request.into_body().collect().await?;
            answer()
        }
    });
    let paid = PaywallLayer::new(Arc::clone(&shop.paywall), shop.service.clone()).layer(inner);
    let mut request = HttpRequest::builder().method(method).uri("/x").body("hello".into()).unwrap();
    *request.headers_mut() = credential(token.0, token.1);
    paid.oneshot(request).await
}

fn response(status: u16, body: axum::body::Body) -> Answered {
    Ok(Response::builder().status(status).body(body)?)
}

/// A body of two chunks, after which this comes.
fn chunks(last: Option<&'static str>) -> axum::body::Body {
    let whole = [Ok("hello"), Ok("world")].into_iter().chain(last.map(Err));
    let frames = whole.map(|chunk| chunk.map(|data| Frame::data(Bytes::from_static(data.as_bytes()))));
    axum::body::Body::new(StreamBody::new(stream::iter(frames)))
}

fn left(shop: &Shop, macaroon: &Macaroon) -> u64 {
    let hash = macaroon.identifier().unwrap().payment_hash;
    let balance = shop.paywall.ledger().balance(&hash).unwrap();
    assert_eq!(balance.reserved(), 0);
    balance.left()
}

#[tokio::test]
async fn an_answer_is_charged_when_it_has_passed_to_its_end() {
    let (shop, macaroon, preimage) = shop().await;
    let token = (&macaroon, &preimage);
    type Make = fn() -> Answered;
    let answers: [(Method, Make); 5] = [
        (Method::GET, || response(200, chunks(None))),
        (Method::GET, || response(404, "not here".into())),
        (Method::POST, || response(204, axum::body::Body::empty())),
        (Method::HEAD, || response(200, chunks(None))),
        (Method::GET, || {
            let sized = Response::builder().header(header::CONTENT_LENGTH, 10);
            Ok(sized.body(chunks(None))?)
        }),
    ];
    for ((method, answer), want) in answers.into_iter().zip([9, 8, 7, 6, 5]) {
        let answered = ask(&shop, method.clone(), token, answer).await.unwrap();
        assert_eq!(answered.headers()[LEFT_HEADER], want.to_string());
        // A server asks for no more than it needs.
        let is_sized = answered.headers().contains_key(header::CONTENT_LENGTH);
        let mut body = answered.into_body().into_data_stream();
        match (is_sized, method) {
            (_, Method::HEAD) => {}
            (true, _) => drop((body.next().await, body.next().await)),
            (false, _) => while body.next().await.transpose().unwrap().is_some() {},
        }
        drop(body);
        assert_eq!(left(&shop, &macaroon), want);
    }
}

#[tokio::test]
async fn who_gets_no_whole_answer_from_the_service_pays_nothing_for_it() {
    let (shop, macaroon, preimage) = shop().await;
    let token = (&macaroon, &preimage);
    let broken = ask(&shop, Method::GET, token, || response(200, chunks(Some("gone")))).await.unwrap();
    assert!(broken.into_body().collect().await.is_err());
    assert_eq!(left(&shop, &macaroon), 10);
    let failed = ask(&shop, Method::GET, token, || response(500, "sorry".into())).await.unwrap();
    failed.into_body().collect().await.unwrap();
    assert_eq!(left(&shop, &macaroon), 10);
    assert!(ask(&shop, Method::GET, token, || Err("no".into())).await.is_err());
    assert_eq!(left(&shop, &macaroon), 10);
    let short = || {
        let sized = Response::builder().header(header::CONTENT_LENGTH, 11);
        Ok(sized.body(chunks(None))?)
    };
    let short = ask(&shop, Method::GET, token, short).await.unwrap();
    short.into_body().collect().await.unwrap();
    assert_eq!(left(&shop, &macaroon), 10, "less than was announced");
}

#[tokio::test]
async fn who_leaves_while_served_pays() {
    let (shop, macaroon, preimage) = shop().await;
    let token = (&macaroon, &preimage);
    let answered = ask(&shop, Method::GET, token, || response(200, chunks(None))).await.unwrap();
    let mut body = answered.into_body().into_data_stream();
    body.next().await.unwrap().unwrap();
    drop(body);
    assert_eq!(left(&shop, &macaroon), 9);

    let inner = tower::service_fn(|_: HttpRequest<Empty<Bytes>>| std::future::pending::<Answered>());
    let paid = PaywallLayer::new(Arc::clone(&shop.paywall), shop.service.clone()).layer(inner);
    let mut request = HttpRequest::builder().uri("/x").body(Empty::new()).unwrap();
    *request.headers_mut() = credential(&macaroon, &preimage);
    tokio::time::timeout(Duration::from_millis(10), paid.oneshot(request)).await.unwrap_err();
    assert_eq!(left(&shop, &macaroon), 8);
}

#[tokio::test]
async fn the_bytes_of_both_bodies_have_their_price_and_a_body_of_unknown_length_none() {
    let mut shop = Shop::open().await;
    shop.service.offer = Offer::Credit;
    let meter = Meter::Bytes { request: PerMillion(2_000_000), response: PerMillion(1_000_000) };
    let cost = Cost::Metered { reserve: Msat::new(1_000), base: Msat::ZERO, meter };
    shop.service.costs = Costs { otherwise: Some(Arc::new(cost)), ..Costs::default() };
    let (macaroon, preimage) = shop.buy().await;
    let token = (&macaroon, &preimage);
    let answered = ask(&shop, Method::POST, token, || response(200, chunks(None))).await.unwrap();
    assert_eq!(answered.headers()[LEFT_HEADER], "9000");
    answered.into_body().collect().await.unwrap();
    assert_eq!(left(&shop, &macaroon), 10_000 - 2 * 5 - 10);

    let inner =
        tower::service_fn(|_: HttpRequest<axum::body::Body>| async { response(200, "served".into()) });
    let paid = PaywallLayer::new(Arc::clone(&shop.paywall), shop.service.clone()).layer(inner);
    let mut request = HttpRequest::builder().method(Method::POST).uri("/x").body(chunks(None)).unwrap();
    *request.headers_mut() = credential(&macaroon, &preimage);
    let refused = paid.oneshot(request).await.unwrap();
    assert_eq!(refused.status(), StatusCode::LENGTH_REQUIRED);
    assert_eq!(refused.headers()[crate::CODE_HEADER], "length_required");
    assert_eq!(left(&shop, &macaroon), 10_000 - 2 * 5 - 10);

    // More than is left, whether its head says so or only its body.
    for is_announced in [true, false] {
        let inner = tower::service_fn(|_: HttpRequest<axum::body::Body>| async {
            response(599, "it has heard of it".into())
        });
        let paid = PaywallLayer::new(Arc::clone(&shop.paywall), shop.service.clone()).layer(inner);
        let body = axum::body::Body::from(vec![0; 4_995]);
        let mut request = HttpRequest::builder().method(Method::POST).uri("/x").body(body).unwrap();
        *request.headers_mut() = credential(&macaroon, &preimage);
        if is_announced {
            request.headers_mut().insert(header::CONTENT_LENGTH, 4_995.into());
        }
        let refused = paid.oneshot(request).await.unwrap();
        assert_eq!(refused.status(), StatusCode::PAYMENT_REQUIRED);
        assert_eq!(refused.headers()[crate::CODE_HEADER], "units_short");
        assert_eq!(left(&shop, &macaroon), 10_000 - 2 * 5 - 10);
    }
}

#[tokio::test]
async fn a_freebie_that_the_service_fails_comes_back() {
    let shop = Shop::open().await;
    let requests = NonZeroU32::new(1).unwrap();
    let freebies = Some(Freebies { requests, per: None, keep: false });
    let service = Service { freebies, ..shop.service.clone() };
    let get = async |status: u16| {
        let inner = tower::service_fn(move |_: HttpRequest<Empty<Bytes>>| async move {
            let answered = Response::builder().status(status).body(Full::new(Bytes::new())).unwrap();
            if status == 599 { Err("no") } else { Ok(answered) }
        });
        let paid = PaywallLayer::new(Arc::clone(&shop.paywall), service.clone()).layer(inner);
        let request = HttpRequest::builder().uri("/x").body(Empty::new()).unwrap();
        let answered = paid.oneshot(request).await?;
        Ok::<_, &str>((answered.status().as_u16(), answered.headers().get(crate::CODE_HEADER).cloned()))
    };
    let freebie = Some(HeaderValue::from_static("freebie"));
    assert_eq!(get(503).await, Ok((503, None)));
    assert_eq!(get(599).await, Err("no"));
    assert_eq!(get(404).await, Ok((404, freebie)));
    assert_eq!(get(200).await.unwrap().0, 402, "it was the only one");
}
