use std::{convert::Infallible, num::NonZeroU32};

use farebox_lightning::Receive;
use farebox_protocol::Msat;
use http::{HeaderMap, HeaderValue, Method, Request as HttpRequest, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use tower::{Layer, ServiceExt};

use super::*;
use crate::{
    Auth, Code, LimitBy, Rate, RateLimit,
    testing::{Shop, credential},
};

mod counted_tests;

/// An app that says what it was sent.
fn app(shop: &Shop) -> axum::Router {
    let mut service = shop.service.clone();
    service.free_paths = vec!["/free".parse().unwrap()];
    let echo = |headers: HeaderMap, uri: http::Uri| async move {
        let mut seen: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?")))
            .collect();
        seen.sort();
        format!("{}\n{}", uri.path(), seen.join("\n"))
    };
    axum::Router::new()
        .route("/{*rest}", axum::routing::any(echo))
        .layer(PaywallLayer::new(Arc::clone(&shop.paywall), service).client(|_| Some([192, 0, 2, 9].into())))
}

async fn call(
    app: axum::Router,
    method: Method,
    path: &str,
    headers: HeaderMap,
) -> (StatusCode, HeaderMap, String) {
    let mut request =
        HttpRequest::builder().method(method).uri(path).body(axum::body::Body::empty()).unwrap();
    *request.headers_mut() = headers;
    let response = app.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn an_app_behind_the_layer_is_paid_and_never_sees_the_credential() {
    let shop = Shop::open().await;
    let (status, headers, _) = call(app(&shop), Method::GET, "/paid", HeaderMap::new()).await;
    assert_eq!(status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(headers.get_all(header::WWW_AUTHENTICATE).iter().count(), 2);

    let (macaroon, preimage) = shop.buy().await;
    let mut headers = credential(&macaroon, &preimage);
    headers.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer for-the-app"));
    headers.insert("farebox-token-id", HeaderValue::from_static("forged"));
    let (status, _, body) = call(app(&shop), Method::GET, "/paid", headers).await;
    assert_eq!(status, StatusCode::OK);
    let identifier = macaroon.identifier().unwrap();
    assert_eq!(
        body,
        format!(
            "/paid\nauthorization: Bearer for-the-app\nfarebox-payment-hash: {}\nfarebox-service: weather\nfarebox-token-id: {}",
            identifier.payment_hash, identifier.token_id
        )
    );
}

#[tokio::test]
async fn an_offer_is_chosen_in_the_query_and_the_app_never_sees_it() {
    let mut shop = Shop::open().await;
    let price = Msat::new(90_000);
    let large = crate::Plan {
        name: "large".into(),
        price,
        offer: shop.service.offer,
        good_for: None,
        monthly: Vec::new(),
    };
    shop.service.menu.more = vec![large];
    let (status, _, body) =
        call(app(&shop), Method::GET, "/paid?x=1&farebox-offer=large", HeaderMap::new()).await;
    assert_eq!(status, StatusCode::PAYMENT_REQUIRED);
    assert!(body.contains("\"price_msat\":90000"), "{body}");

    let query = |uri: http::Uri| async move { uri.query().unwrap_or("none").to_owned() };
    let layer = PaywallLayer::new(Arc::clone(&shop.paywall), shop.service.clone());
    let app = axum::Router::new().route("/{*rest}", axum::routing::any(query)).layer(layer);
    let (macaroon, preimage) = shop.buy().await;
    for (asked, want) in [("/a?x=1&farebox-offer=large&y", "x=1&y"), ("/a?farebox-offer=large", "none")] {
        let headers = credential(&macaroon, &preimage);
        let (status, _, body) = call(app.clone(), Method::GET, asked, headers).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, want));
    }
}

#[tokio::test]
async fn a_path_that_is_not_what_it_seems_is_refused() {
    let shop = Shop::open().await;
    for path in ["/paid/../free", "/paid/%2e%2e/free", "//free", "/%66ree", "/free/.", "/free%2F..", "/a%00"]
    {
        let (status, headers, _) = call(app(&shop), Method::GET, path, HeaderMap::new()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(headers[crate::CODE_HEADER], "path_refused");
    }
    let (status, _, body) = call(app(&shop), Method::GET, "/free", HeaderMap::new()).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "/free\nfarebox-service: weather"));
    let (status, ..) = call(app(&shop), Method::GET, "/caf%c3%a9", HeaderMap::new()).await;
    assert_eq!(status, StatusCode::PAYMENT_REQUIRED, "lower-case hex is no crime");
    assert_eq!(shop.node.asked.lock().len(), 1);
}

#[tokio::test]
async fn options_never_mints() {
    let shop = Shop::open().await;
    let (status, ..) = call(app(&shop), Method::OPTIONS, "/paid", HeaderMap::new()).await;
    assert_eq!(status, StatusCode::PAYMENT_REQUIRED);
    let preflight =
        || HeaderMap::from_iter([(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("GET"))]);
    let (status, headers, body) = call(app(&shop), Method::OPTIONS, "/paid", preflight()).await;
    assert_eq!((status, body.as_str()), (StatusCode::NO_CONTENT, ""));
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_HEADERS], "authorization");
    let (status, ..) = call(app(&shop), Method::OPTIONS, "/free", preflight()).await;
    assert_eq!(status, StatusCode::OK, "what is free is the app's own business");
    assert!(shop.node.asked.lock().is_empty());
}

#[tokio::test]
async fn the_layer_limits_what_passes_but_counts_no_preflight() {
    let shop = Shop::open().await;
    let rate = Rate::per_minute(NonZeroU32::new(2).unwrap());
    let limit = RateLimit { by: LimitBy::Client, rate, burst: None, paths: Vec::new() };
    let service = Service { auth: Auth::Off, rate_limits: vec![limit], ..shop.service.clone() };
    let app = axum::Router::new()
        .route("/{*rest}", axum::routing::any(|| async { "hello" }))
        .layer(PaywallLayer::new(Arc::clone(&shop.paywall), service));
    let preflight =
        HeaderMap::from_iter([(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("GET"))]);
    for _ in 0..5 {
        let (status, ..) = call(app.clone(), Method::OPTIONS, "/x", preflight.clone()).await;
        assert_eq!(status, StatusCode::OK);
    }
    for (want, method) in
        [(200, Method::GET), (200, Method::HEAD), (429, Method::OPTIONS), (429, Method::GET)]
    {
        let (status, headers, _) = call(app.clone(), method, "/x", HeaderMap::new()).await;
        assert_eq!(status, want);
        assert_eq!(headers.contains_key(header::RETRY_AFTER), want == 429);
    }
}

#[tokio::test]
async fn a_grpc_call_is_refused_in_grpcs_own_way() {
    let shop = Shop::open().await;
    let headers =
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"))]);
    let (status, headers, body) = call(app(&shop), Method::POST, "/pkg.Service/Method", headers).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
    assert_eq!(
        (&headers["grpc-status"], &headers["grpc-message"]),
        (&"13".parse().unwrap(), &"payment required".parse().unwrap())
    );
    assert_eq!(headers[header::CONTENT_TYPE], "application/grpc");
    assert_eq!(headers.get_all(header::WWW_AUTHENTICATE).iter().count(), 2);
}

#[tokio::test]
async fn a_handler_in_the_same_process_is_told_who_paid() {
    let shop = Shop::open().await;
    let (macaroon, preimage) = shop.buy().await;
    let inner = tower::service_fn(|request: HttpRequest<Empty<Bytes>>| async move {
        let pass = request.extensions().get::<Pass>().cloned().expect("who passed");
        assert_eq!(pass.code, Code::Pass);
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
    });
    let paid = PaywallLayer::new(Arc::clone(&shop.paywall), shop.service.clone()).layer(inner);
    let mut request = HttpRequest::builder().uri("/x").body(Empty::new()).unwrap();
    *request.headers_mut() = credential(&macaroon, &preimage);
    let response = paid.oneshot(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    assert_eq!(shop.node.facts().unwrap().granularity, Msat::new(1));
}
