//! What stands before the first coin: which challenges are understood, and which of them are not paid, each for its reason.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::sync::atomic::Ordering;

use farebox_protocol::Network;
use http::{HeaderValue, header};
use support::mint::Draft;
use support::shop::{Asked, Till, challenge};
use support::{Shop, World, get, told};

async fn check_unpaid(
    handler: impl Fn(&Till, &Asked) -> axum::response::Response + Send + Sync + 'static,
    want: &str,
) {
    let world = World::new();
    let wallet = world.wallet();
    let engine = world.engine_with(wallet.clone());
    let shop = Shop::with(&world.net, handler).await;
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, want);
    assert_eq!(wallet.asked.load(Ordering::SeqCst), 0, "the wallet was asked");
    assert_eq!(engine.purchases().await.unwrap().len(), 0, "something was recorded");
}

#[tokio::test]
async fn an_invoice_without_an_amount_is_not_paid() {
    let handler = |till: &Till, _: &_| {
        let draft = Draft { amount: None, ..till.draft(1) };
        challenge(&draft.challenge(&till.root_key, "svc").header_values())
    };
    check_unpaid(handler, "amount_missing none").await;
}

#[tokio::test]
async fn an_invoice_that_cannot_be_read_is_not_paid() {
    let handler = |till: &Till, _: &_| {
        let values = till.draft(1).challenge(&till.root_key, "svc").header_values();
        challenge(&values.map(|value| value.replace("lnbcrt", "lnxx")))
    };
    check_unpaid(handler, "invoice_unreadable none").await;
}

#[tokio::test]
async fn coins_of_another_network_are_not_paid() {
    let handler = |till: &Till, _: &_| {
        let draft = Draft { network: Network::Mainnet, ..till.draft(1) };
        challenge(&draft.challenge(&till.root_key, "svc").header_values())
    };
    check_unpaid(handler, "wrong_network none").await;
}

#[tokio::test]
async fn a_price_above_the_limit_is_not_paid() {
    check_unpaid(|till, _| till.challenge("svc", 1_001), "over_price_limit none").await;
}

#[tokio::test]
async fn a_price_claimed_elsewhere_changes_nothing() {
    // A body, a header or a parameter that says `1` beside an invoice of 2,000 sat.
    let handler = |till: &Till, _: &_| {
        let mut response = till.challenge("svc", 2_000);
        response.headers_mut().insert("x-price-sats", HeaderValue::from_static("1"));
        *response.body_mut() = r#"{"priceSats":1,"price_sats":1}"#.into();
        response
    };
    check_unpaid(handler, "over_price_limit none").await;
}

#[tokio::test]
async fn a_challenge_beside_another_status_is_not_paid() {
    let handler = |till: &Till, _: &_| {
        let mut response = till.challenge("svc", 1);
        *response.status_mut() = http::StatusCode::OK;
        response
    };
    check_unpaid(handler, "200 pay first").await;
    let handler = |till: &Till, _: &_| {
        let mut response = till.challenge("svc", 1);
        *response.status_mut() = http::StatusCode::UNAUTHORIZED;
        response
    };
    check_unpaid(handler, "401 pay first").await;
}

#[tokio::test]
async fn a_token_of_another_invoice_is_not_paid() {
    let handler = |till: &Till, _: &_| {
        let token = till.draft(1).macaroon(&till.root_key, &[]).to_base64();
        challenge(&[format!("L402 token=\"{token}\", invoice=\"{}\"", till.draft(1).invoice())])
    };
    check_unpaid(handler, "other_invoice none").await;
}

#[tokio::test]
async fn every_form_of_challenge_in_the_wild_is_understood() {
    type Form = fn(&str, &str) -> Vec<String>;
    let forms: [(&str, Form); 9] = [
        ("the specification's", |t, i| vec![format!("L402 version=\"0\", token=\"{t}\", invoice=\"{i}\"")]),
        ("aperture's", |t, i| {
            vec![
                format!("LSAT macaroon=\"{t}\", invoice=\"{i}\""),
                format!("L402 macaroon=\"{t}\", invoice=\"{i}\""),
            ]
        }),
        ("LSAT alone", |t, i| vec![format!("LSAT macaroon=\"{t}\", invoice=\"{i}\"")]),
        ("behind another scheme", |t, i| {
            vec![
                "Payment id=\"a\", realm=\"b\", method=\"lightning\", request=\"e30\"".to_owned(),
                format!("L402 macaroon=\"{t}\", invoice=\"{i}\""),
            ]
        }),
        ("folded into one line", |t, i| {
            vec![format!("Payment id=\"a\", LSAT macaroon=\"{t}\", invoice=\"{i}\", Basic realm=\"x\"")]
        }),
        ("another order", |t, i| vec![format!("L402 invoice=\"{i}\", foo=\"bar\", token=\"{t}\"")]),
        ("without quotes", |t, i| vec![format!("L402 token={t}, invoice={i}")]),
        ("single quotes and no commas", |t, i| vec![format!("l402 token='{t}' invoice='{i}'")]),
        ("url-safe", |t, i| {
            let t = t.replace('+', "-").replace('/', "_").replace('=', "");
            vec![format!("L402 token=\"{t}\", invoice=\"{i}\"")]
        }),
    ];
    for (name, form) in forms {
        let world = World::new();
        let engine = world.engine();
        let shop = Shop::with(&world.net, move |till, asked| match till.paid(&asked.headers) {
            Some(_) => till.serve("goods"),
            None => {
                let draft = till.draft(1);
                let token = draft.macaroon(&till.root_key, &[]).to_base64();
                challenge(&form(&token, draft.invoice().as_str()))
            }
        })
        .await;
        assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods", "{name}");
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_read_is_sent_back_as_it_came() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::with(&world.net, |till, asked| {
        let shown = asked.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        match shown.and_then(|value| value.strip_prefix("L402 opaque.To-ken_1~:")) {
            Some(preimage) if preimage.len() == 64 => till.serve("goods"),
            _ => challenge(&[format!(
                "L402 token=\"opaque.To-ken_1~\", invoice=\"{}\"",
                till.draft(1).invoice()
            )]),
        }
    })
    .await;
    for _ in 0..2 {
        assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    }
    assert_eq!(world.net.payments().len(), 1);
}
