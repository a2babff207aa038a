use expect_test::{Expect, expect};
use http::header;

use super::*;
use crate::testing::{Shop, answer, read_challenge};
use crate::{Plan, price::Cost};
use farebox_protocol::caveat::Most;

/// What varies from run to run, by name.
fn render(answer: &Answer) -> String {
    let mut text = format!("{}\n", answer.status);
    let (token, invoice) = match answer
        .headers
        .get(header::WWW_AUTHENTICATE)
        .is_some_and(|value| value.to_str().unwrap().contains("macaroon="))
    {
        true => {
            let (macaroon, invoice) = read_challenge(answer);
            (macaroon.to_base64(), invoice.to_string())
        }
        false => ("<none>".to_owned(), "<none>".to_owned()),
    };
    let hide = |text: &str| text.replace(&token, "TOKEN").replace(&invoice, "INVOICE");
    let mut headers: Vec<String> = answer
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", hide(value.to_str().unwrap())))
        .collect();
    // Stable, so that the two challenges keep their order.
    headers.sort_by_key(|line| line.split(':').next().unwrap().to_owned());
    text.extend(headers);
    text.push('\n');
    text + &hide(std::str::from_utf8(&answer.body).unwrap())
}

async fn challenged(accept: &'static str, grpc: bool) -> Answer {
    let shop = Shop::open().await;
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    let client = [192, 0, 2, 1].into();
    let (service, method) = (&shop.service, &Method::POST);
    let request = Request { service, method, path: "/", client, headers: &headers, query: None, grpc };
    answer(shop.paywall.admit(&request).await)
}

#[track_caller]
fn check(code: Code, audience: Audience, want: Expect) {
    let retry_after = (status(code).is_server_error()).then_some(Duration::from_millis(1_500));
    let refusal = Refusal {
        code,
        service: None,
        minted: None,
        retry_after,
        is_denied: false,
        short: None,
        reached: None,
        request: None,
    };
    want.assert_eq(&render(&refusal.answer(audience)));
}

#[tokio::test]
async fn a_program_gets_two_challenges_in_the_order_old_clients_need_and_problem_json() {
    let answer = challenged("*/*", false).await;
    expect![[r#"
        402 Payment Required
        access-control-allow-origin: *
        access-control-expose-headers: WWW-Authenticate, Retry-After, Farebox-Code
        cache-control: no-store
        content-type: application/problem+json
        farebox-code: payment_required
        www-authenticate: LSAT macaroon="TOKEN", invoice="INVOICE"
        www-authenticate: L402 macaroon="TOKEN", invoice="INVOICE", version="0", token="TOKEN"

        {"code":"payment_required","detail":"this resource costs money: pay the invoice and send token and preimage","expires_at":1700000600,"invoice":"INVOICE","offer":"forever","payment_hash":"55fcb19d086054e8045b9c5afabe3f6045f383726627a0c800c99a4406e4412e","price_msat":10000,"service":"weather","status":402,"title":"Payment Required","type":"about:blank"}"#]]
    .assert_eq(&render(&answer));
}

#[tokio::test]
async fn a_grpc_client_gets_200_and_the_rest_in_headers() {
    let answer = challenged("", true).await;
    expect![[r#"
        200 OK
        access-control-allow-origin: *
        access-control-expose-headers: WWW-Authenticate, Retry-After, Farebox-Code
        cache-control: no-store
        content-type: application/grpc
        farebox-code: payment_required
        grpc-message: payment required
        grpc-status: 13
        www-authenticate: LSAT macaroon="TOKEN", invoice="INVOICE"
        www-authenticate: L402 macaroon="TOKEN", invoice="INVOICE", version="0", token="TOKEN"

    "#]]
    .assert_eq(&render(&answer));
}

/// What is answered where there is more than one offer.
async fn put_to_choose(accept: &'static str, query: &str) -> Answer {
    let mut shop = Shop::open().await;
    let thirty_days = Duration::from_secs(30 * 86_400);
    let offer = Offer::Requests(1_200.try_into().unwrap());
    let large = Plan {
        name: "large".into(),
        price: Msat::new(90_000),
        offer,
        good_for: Some(thirty_days),
        monthly: Vec::new(),
    };
    let credit = Plan { name: "credit".into(), offer: Offer::Credit, good_for: None, ..large.clone() };
    // More than it costs to ask once, and so never put to anybody.
    let short = Plan { name: "short".into(), price: Msat::new(1), ..credit.clone() };
    shop.service.menu.more = vec![large, credit, short];
    shop.service.costs.otherwise = Some(Cost::Fixed(Msat::new(1_000)).into());
    let headers = [(header::ACCEPT, HeaderValue::from_static(accept))].into_iter().collect();
    let client = [192, 0, 2, 1].into();
    let (service, method) = (&shop.service, &Method::GET);
    let request =
        Request { service, method, path: "/", client, headers: &headers, query: Some(query), grpc: false };
    answer(shop.paywall.admit(&request).await)
}

#[tokio::test]
async fn a_program_is_told_what_there_is_to_choose_from_and_how() {
    for query in ["city=x&farebox-offer=large", "farebox-offer=huge"] {
        let answer = put_to_choose("*/*", query).await;
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(
            body["offers"],
            json!([
                { "name": "default", "price_msat": 10_000, "offer": "forever" },
                {
                    "name": "large", "price_msat": 90_000, "offer": "requests", "requests": 1_200,
                    "good_for_secs": 2_592_000,
                },
                { "name": "credit", "price_msat": 90_000, "offer": "credit", "credit_msat": 90_000 },
            ])
        );
        assert_eq!(body["choose_offer_by"], json!({ "header": "farebox-offer", "query": "farebox-offer" }));
        let (status, chosen) = match query {
            "farebox-offer=huge" => (400, Value::Null),
            _ => (402, json!("large")),
        };
        assert_eq!((answer.status.as_u16(), &body["offer_name"]), (status, &chosen));
    }
}

#[tokio::test]
async fn a_page_has_a_link_for_each_other_offer() {
    let answer = put_to_choose("text/html", "city=%22x%22&farebox-offer=large").await;
    let page = std::str::from_utf8(&answer.body).unwrap();
    for shown in [
        "<strong>90 sat</strong> buys 1200 requests to <strong>weather</strong> whenever you like, good for 30 days.",
        "<li><a href=\"?city=%22x%22\">default</a>: 10 sat buys access without end</li>",
        "<li><a href=\"?city=%22x%22&amp;farebox-offer=credit\">credit</a>: 90 sat buys as much credit</li>",
    ] {
        assert!(page.contains(shown), "{shown} is not in {page}");
    }
    assert!(!page.contains(">large<") && !page.contains(">short<"), "{page}");
    assert!(page.contains("<svg "), "there is a picture of the invoice");
}

#[tokio::test]
async fn a_page_says_how_much_a_month_gives() {
    let mut shop = Shop::open().await;
    let capability = |name: &str| crate::Capability {
        name: name.parse().unwrap(),
        methods: Vec::new(),
        paths: Vec::new(),
    };
    let limit = |name: &str, most| Monthly { capability: name.parse().unwrap(), most };
    shop.service.menu.capabilities = vec![capability("read"), capability("all")];
    shop.service.menu.monthly =
        vec![limit("read", Most::Requests(1)), limit("all", Most::Spent(Msat::new(21_000)))];
    shop.service.costs.otherwise = Some(Cost::Fixed(Msat::new(1_000)).into());
    let (offer, price) = (Offer::Forever, Msat::new(90_000));
    let monthly = vec![limit("read", Most::Requests(500))];
    shop.service.menu.more = vec![Plan { name: "large".into(), price, offer, good_for: None, monthly }];
    let headers = [(header::ACCEPT, HeaderValue::from_static("text/html"))].into_iter().collect();
    let answer = answer(shop.ask(&Method::GET, "/", &headers).await);
    let page = std::str::from_utf8(&answer.body).unwrap();
    for shown in [
        "without end, at most 1 request a month of <code>read</code> and 21 sat a month of <code>all</code>.</p>",
        "buys access without end, at most 500 requests a month of <code>read</code></li>",
    ] {
        assert!(page.contains(shown), "{shown} is not in {page}");
    }
}

#[tokio::test]
async fn a_browser_gets_a_page_that_needs_nothing_else() {
    let answer = challenged("text/html,*/*;q=0.8", false).await;
    let policy = answer.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    let (macaroon, invoice) = read_challenge(&answer);
    let page = std::str::from_utf8(&answer.body).unwrap();
    assert!(page.contains(&format!("href=\"lightning:{invoice}\"")));
    assert!(page.contains(&format!("L402 {}:", macaroon.to_base64())));
    assert!(page.contains("<strong>10 sat</strong> buys access to <strong>weather</strong> without end."));
    for loads in ["<script", "src=", "http:", "https:", "url(", "@import", "<form", "<iframe", "<link"] {
        assert!(!page.contains(loads), "{loads}");
    }
}

#[test]
fn a_refusal_names_a_scheme_and_nothing_to_buy() {
    check(
        Code::PreimageWrong,
        Audience::Program,
        expect![[r#"
        401 Unauthorized
        access-control-allow-origin: *
        access-control-expose-headers: WWW-Authenticate, Retry-After, Farebox-Code
        cache-control: no-store
        content-type: application/problem+json
        farebox-code: preimage_wrong
        www-authenticate: L402 version="0", error="preimage_wrong"

        {"code":"preimage_wrong","detail":"the preimage doesn't belong to this token: send the one that paying revealed","status":401,"title":"Unauthorized","type":"about:blank"}"#]],
    );
}

#[test]
fn a_denial_speaks_of_no_invoice() {
    let denied = |code, audience| {
        let refusal = Refusal {
            code,
            service: None,
            minted: None,
            retry_after: None,
            is_denied: true,
            short: None,
            reached: None,
            request: None,
        };
        render(&refusal.answer(audience))
    };
    expect![[r#"
        401 Unauthorized
        access-control-allow-origin: *
        access-control-expose-headers: WWW-Authenticate, Retry-After, Farebox-Code
        cache-control: no-store
        content-type: application/problem+json
        farebox-code: token_expired
        www-authenticate: L402 version="0", error="token_expired"

        {"code":"token_expired","detail":"a valid token is needed, and none is sold on this path: buy it on another path of this service","status":401,"title":"Unauthorized","type":"about:blank"}"#]]
    .assert_eq(&denied(Code::TokenExpired, Audience::Program));
    // Clients that take 13 with "payment required" for an offer find neither the words nor an invoice.
    expect![[r#"
        200 OK
        access-control-allow-origin: *
        access-control-expose-headers: WWW-Authenticate, Retry-After, Farebox-Code
        cache-control: no-store
        content-type: application/grpc
        farebox-code: token_required
        grpc-message: a valid token is needed, and none is sold on this path: buy it on another path of this service
        grpc-status: 13
        www-authenticate: L402 version="0", error="token_required"

    "#]]
    .assert_eq(&denied(Code::TokenRequired, Audience::Grpc));
    assert!(!denied(Code::TokenExpired, Audience::Browser).contains("invoice"));
}

#[test]
fn trouble_says_when_to_come_back() {
    check(
        Code::NodeUnavailable,
        Audience::Program,
        expect![[r#"
        503 Service Unavailable
        access-control-allow-origin: *
        access-control-expose-headers: WWW-Authenticate, Retry-After, Farebox-Code
        cache-control: no-store
        content-type: application/problem+json
        farebox-code: node_unavailable
        retry-after: 2

        {"code":"node_unavailable","detail":"no invoice can be made just now; tokens already paid for keep working: retry","retry_after":2,"status":503,"title":"Service Unavailable","type":"about:blank"}"#]],
    );
    check(
        Code::NodeUnavailable,
        Audience::Grpc,
        expect![[r#"
        200 OK
        access-control-allow-origin: *
        access-control-expose-headers: WWW-Authenticate, Retry-After, Farebox-Code
        cache-control: no-store
        content-type: application/grpc
        farebox-code: node_unavailable
        grpc-message: no invoice can be made just now; tokens already paid for keep working: retry
        grpc-status: 14
        retry-after: 2

    "#]],
    );
}

#[test]
fn a_head_request_has_headers_only() {
    check(
        Code::TokenExpired,
        Audience::HeadersOnly,
        expect![[r#"
        402 Payment Required
        access-control-allow-origin: *
        access-control-expose-headers: WWW-Authenticate, Retry-After, Farebox-Code
        cache-control: no-store
        content-type: application/problem+json
        farebox-code: token_expired

    "#]],
    );
}

#[test]
fn every_code_has_its_status_in_both_worlds() {
    let mut table = String::new();
    for code in Code::ALL {
        let status = status(code);
        table += &format!("{} {} {code}\n", status.as_u16(), grpc_status(status));
    }
    expect![[r#"
        200 13 pass
        200 13 free
        200 13 freebie
        402 13 payment_required
        401 13 token_required
        402 13 credential_not_text
        402 13 preimage_missing
        402 13 preimage_malformed
        402 13 token_malformed
        402 13 too_many_tokens
        402 13 token_unknown
        402 13 token_expired
        402 13 token_revoked
        402 13 token_other_service
        402 13 tier_outgrown
        402 13 token_other_method
        402 13 token_other_path
        402 13 token_other_client
        402 13 token_other_capability
        402 13 token_other_request
        402 13 token_price_ceiling
        402 13 caveat_widened
        402 13 caveat_repeated
        402 13 caveat_unknown
        402 13 caveat_malformed
        402 13 terms_missing
        402 13 secret_withdrawn
        402 13 units_spent
        402 13 units_short
        402 13 limit_reached
        429 8 units_in_flight
        503 14 ledger_unavailable
        503 14 cost_unknown
        411 3 length_required
        413 8 upload_too_dear
        409 10 key_in_use
        422 3 key_reused
        409 10 answer_not_kept
        400 3 offer_unknown
        401 13 preimage_wrong
        401 13 payment_unsettled
        503 14 payment_unconfirmed
        429 8 client_mint_limit
        429 8 total_mint_limit
        429 8 rate_limited
        503 14 node_unavailable
        503 14 node_timeout
        503 14 node_wrong
        503 14 price_invalid
        503 14 store_unavailable
        400 3 path_refused
        204 13 preflight
    "#]]
    .assert_eq(&table);
}

#[test]
fn every_answer_forbids_caching_and_names_its_code() {
    for code in Code::ALL {
        for audience in [Audience::Program, Audience::Browser, Audience::Grpc, Audience::HeadersOnly] {
            let refusal = Refusal {
                code,
                service: None,
                minted: None,
                retry_after: None,
                is_denied: false,
                short: None,
                reached: None,
                request: None,
            };
            let answer = refusal.answer(audience);
            assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
            assert_eq!(answer.headers[CODE_HEADER], code.as_str());
            assert_eq!(answer.headers.get_all(header::CONTENT_TYPE).iter().count(), 1);
            assert_eq!(answer.headers.get_all(header::ACCESS_CONTROL_ALLOW_ORIGIN).iter().count(), 1);
        }
    }
}

#[test]
fn a_preflight_may_send_a_credential() {
    let asked = HeaderMap::from_iter([
        (header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT")),
        (header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("authorization, x-mine")),
    ]);
    expect![[r#"
        204 No Content
        access-control-allow-headers: authorization, x-mine
        access-control-allow-methods: PUT
        access-control-allow-origin: *
        access-control-max-age: 600
        cache-control: no-store

    "#]]
    .assert_eq(&render(&preflight(&asked)));
}

#[test]
fn a_wait_is_whole_seconds_and_never_none() {
    for (wait, want) in [(0, 1), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (20_000, 20)] {
        assert_eq!(whole_seconds(Duration::from_millis(wait)), want);
    }
}
