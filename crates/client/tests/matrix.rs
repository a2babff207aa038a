//! The whole tables of what servers may do: where a redirect leads and who asks for money on the way, which status follows a
//! payment, in which words a price is told, and how often a body is sent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;
#[path = "support/tls.rs"]
mod tls_shop;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use axum::response::Response;
use bytes::Bytes;
use farebox_client::{Engine, EngineConfig, HttpConfig};
use farebox_lightning::lnaddress::public::Names;
use farebox_protocol::{Macaroon, Preimage};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderValue, StatusCode, header};
use support::shop::{Asked, Till, challenge, redirect, status};
use support::{Shop, World, get, told};
use tokio::task::JoinSet;

/// From where to where a redirect leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    SameOrigin,
    OtherPort,
    /// The same server by another name.
    OtherHost,
    ToTls,
    FromTls,
    /// Plain HTTP to a machine that isn't this one.
    ToStranger,
}

/// Who asks for money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seller {
    /// The one that redirects, before it does.
    First,
    /// The one that it leads to.
    Second,
}

/// Every name means this machine.
struct Here;

impl Names for Here {
    fn look_up<'a>(&'a self, _: &'a str) -> BoxFuture<'a, std::io::Result<Vec<IpAddr>>> {
        async { Ok(vec![IpAddr::from([127, 0, 0, 1])]) }.boxed()
    }
}

/// What is at `/` and what at `/there`, and what was seen there.
#[derive(Default)]
struct Town {
    to: OnceLock<String>,
    seen: parking_lot::Mutex<Vec<String>>,
}

impl Town {
    fn answer(&self, till: &Till, asked: &Asked, code: u16, seller: Seller) -> Response {
        let is_paid = till.paid(&asked.headers).is_some();
        if asked.path == "/there" {
            let body = if asked.body.is_empty() { "" } else { " with a body" };
            let credential =
                if asked.headers.contains_key(header::AUTHORIZATION) { " and a credential" } else { "" };
            self.seen.lock().push(format!("{}{body}{credential}", asked.method));
            return match seller {
                Seller::Second if !is_paid => till.challenge("there", 100),
                _ => till.serve("there"),
            };
        }
        match seller {
            Seller::First if !is_paid => till.challenge("here", 100),
            _ => redirect(code, self.to.get().unwrap()),
        }
    }
}

/// What came of it, what was seen behind the redirect, and how often was paid.
async fn redirected(way: Way, code: u16, seller: Seller) -> (String, Vec<String>, usize) {
    let (world, town) = (World::new(), Arc::new(Town::default()));
    let handler = || {
        let town = Arc::clone(&town);
        move |till: &Till, asked: &Asked| town.answer(till, asked, code, seller)
    };
    let mut roots = Vec::new();
    let first = if way == Way::FromTls {
        let (shop, root) = tls_shop::shop(&world, handler()).await;
        roots.push(root);
        shop
    } else {
        Shop::with(&world.net, handler()).await
    };
    let second = if way == Way::ToTls {
        let (shop, root) = tls_shop::shop(&world, handler()).await;
        roots.push(root);
        shop
    } else {
        Shop::with(&world.net, handler()).await
    };
    let to = match way {
        Way::SameOrigin => "/there".to_owned(),
        Way::OtherHost => first.url("/there").replace("127.0.0.1", "localhost"),
        Way::ToStranger => second.url("/there").replace("127.0.0.1", "stranger.example"),
        Way::OtherPort | Way::ToTls | Way::FromTls => second.url("/there"),
    };
    town.to.set(to).unwrap();
    let config = world.config();
    let http = HttpConfig { extra_roots: roots, names: Arc::new(Here), ..config.http.clone() };
    let engine = Engine::open(EngineConfig { http, ..config }).unwrap();
    let request = http::Request::post(first.url("/")).body(Bytes::from_static(b"body")).unwrap();
    let told = told(engine.fetch(request).await).await;
    let seen = town.seen.lock().clone();
    (told, seen, world.net.payments().len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_redirect_carries_what_it_may_and_nobody_is_paid_for_another() {
    use Seller::{First, Second};
    use Way::{FromTls, OtherHost, OtherPort, SameOrigin, ToStranger, ToTls};
    let mut cases = JoinSet::new();
    for code in [301, 302, 303, 307, 308] {
        for way in [SameOrigin, OtherPort, OtherHost, ToTls, FromTls, ToStranger] {
            for seller in [First, Second] {
                let request = if code < 307 { "GET" } else { "POST with a body" };
                let paid = format!("{request} and a credential");
                let (told, seen, payments) = match (seller, way) {
                    // Where it was bought it is good.
                    (First, SameOrigin) => ("200 there", vec![paid], 1),
                    // What was shown over TLS would go on in the clear.
                    (First, FromTls) => ("redirect spent", vec![], 1),
                    (First, _) => ("200 there", vec![request.to_owned()], 1),
                    (Second, ToStranger) => ("in_the_clear none", vec![request.to_owned()], 0),
                    (Second, _) => ("200 there", vec![request.to_owned(), paid], 1),
                };
                let want = (told.to_owned(), seen, payments);
                cases.spawn(async move {
                    assert_eq!(redirected(way, code, seller).await, want, "{code} {way:?}, paid: {seller:?}");
                });
            }
        }
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

/// What two calls come to where a paid request is answered so, and how the journal has it then.
async fn after_paying(code: u16, challenged: bool) -> (String, String, &'static str, usize) {
    let world = World::new();
    let shop = Shop::with(&world.net, move |till, asked| match till.paid(&asked.headers) {
        Some(_) if challenged => {
            let mut response = till.challenge("svc", 100);
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            response
        }
        Some(_) => status(code),
        None => till.challenge("svc", 100),
    })
    .await;
    let engine = world.engine();
    let first = told(engine.fetch(get(&shop.url("/"))).await).await;
    let second = told(engine.fetch(get(&shop.url("/"))).await).await;
    let state = engine.tokens().await.unwrap()[0].state;
    // The body of a challenge doesn't matter here.
    let brief = |told: String| told.trim_end_matches("pay first").trim_end().to_owned();
    (brief(first), brief(second), state, world.net.payments().len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_status_that_follows_a_payment_is_told_as_it_is_and_none_is_paid_for_twice() {
    let delivered = |code: u16, state| (code.to_string(), code.to_string(), state);
    let rejected = ("credential_rejected spent".to_owned(), "credential_rejected none".to_owned(), "paid");
    let mut cases = JoinSet::new();
    for (code, challenged, want) in [
        (200, false, delivered(200, "honoured")),
        (201, false, delivered(201, "honoured")),
        (204, false, delivered(204, "honoured")),
        (206, false, delivered(206, "honoured")),
        // A challenge beside an answer is no request for money.
        (200, true, delivered(200, "honoured")),
        (400, false, delivered(400, "honoured")),
        (404, false, delivered(404, "honoured")),
        (410, false, delivered(410, "honoured")),
        // Says nothing of the credential: it may be somebody else's 401.
        (401, false, delivered(401, "paid")),
        (401, true, rejected.clone()),
        // The second call is told nothing that could be answered.
        (402, false, (rejected.0.clone(), "402".to_owned(), "paid")),
        (402, true, rejected.clone()),
        (403, false, delivered(403, "paid")),
        (403, true, delivered(403, "paid")),
        (407, false, delivered(407, "paid")),
        (429, false, delivered(429, "paid")),
        (429, true, delivered(429, "paid")),
        (500, false, delivered(500, "paid")),
        (502, false, delivered(502, "paid")),
        (503, true, delivered(503, "paid")),
    ] {
        cases.spawn(async move {
            let (first, second, state) = want;
            let got = after_paying(code, challenged).await;
            assert_eq!(got, (first, second, state, 1), "{code}, with a challenge: {challenged}");
        });
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

/// How a price is told, in headers made of a token and an invoice, and what comes of it.
type Form = fn(&str, &str) -> Vec<String>;

/// Whether a request shows its token as it was given, in whichever letters, and the proof.
fn is_paid(till: &Till, asked: &Asked) -> bool {
    let shown = asked.headers.get(header::AUTHORIZATION).map_or("", |value| value.to_str().unwrap());
    let Some((token, preimage)) = shown.split_once(' ').and_then(|(_, shown)| shown.split_once(':')) else {
        return false;
    };
    let token = Macaroon::from_base64(token).or_else(|_| Macaroon::from_hex(token)).unwrap();
    let hash = token.identifier().unwrap().payment_hash;
    token.verify(&till.root_key).is_ok() && Preimage::from_hex(preimage).unwrap().pays(&hash)
}

async fn bought(form: Form, code: u16, body: &'static str) -> String {
    let world = World::new();
    let shop = Shop::with(&world.net, move |till, asked| match is_paid(till, asked) {
        true => till.serve("goods"),
        false => {
            let draft = till.draft(1);
            let token = draft.macaroon(&till.root_key, &[]).to_base64();
            let mut response = challenge(&form(&token, draft.invoice().as_str()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            *response.body_mut() = body.into();
            response
        }
    })
    .await;
    let told = told(world.engine().fetch(get(&shop.url("/"))).await).await;
    assert_eq!(world.net.payments().len(), usize::from(told == "200 goods"), "{told}");
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_header_that_is_found_in_the_wild_is_bought_or_refused_for_its_reason() {
    const CHARGE: &str = "Payment id=\"a\", realm=\"b\", method=\"lightning\", intent=\"charge\", request=\"eyJhIjoxfQ\", expires=\"9\"";
    const SESSION: &str =
        "Payment id=\"c\", realm=\"b\", method=\"lightning\", intent=\"session\", request=\"eyJhIjoxfQ\"";
    let forms: [(&str, Form, u16, &str, &str); 22] = [
        (
            "aperture",
            |t, i| {
                vec![
                    format!("LSAT macaroon=\"{t}\", invoice=\"{i}\""),
                    format!("L402 macaroon=\"{t}\", invoice=\"{i}\""),
                ]
            },
            402,
            "",
            "200 goods",
        ),
        (
            "aperture with payments of another scheme",
            |t, i| {
                vec![
                    format!("LSAT macaroon=\"{t}\", invoice=\"{i}\""),
                    format!("L402 macaroon=\"{t}\", invoice=\"{i}\""),
                    CHARGE.to_owned(),
                    SESSION.to_owned(),
                ]
            },
            402,
            "",
            "200 goods",
        ),
        (
            "the other scheme first",
            |t, i| vec![CHARGE.to_owned(), format!("L402 macaroon=\"{t}\", invoice=\"{i}\"")],
            402,
            "",
            "200 goods",
        ),
        (
            "all in one line, the other scheme first",
            |t, i| vec![format!("{CHARGE}, LSAT macaroon=\"{t}\", invoice=\"{i}\", {SESSION}")],
            402,
            "",
            "200 goods",
        ),
        (
            "all in one line, ours first",
            |t, i| vec![format!("L402 macaroon=\"{t}\", invoice=\"{i}\", {CHARGE}, Basic realm=\"x\"")],
            402,
            "",
            "200 goods",
        ),
        ("the other scheme alone", |_, _| vec![CHARGE.to_owned()], 402, "", "scheme_unsupported none"),
        (
            "others alone",
            |_, _| vec![SESSION.to_owned(), "Basic realm=\"x\"".to_owned()],
            402,
            "",
            "scheme_unsupported none",
        ),
        (
            "the specification",
            |t, i| vec![format!("L402 version=\"0\", token=\"{t}\", invoice=\"{i}\"")],
            402,
            "",
            "200 goods",
        ),
        ("LSAT alone", |t, i| vec![format!("LSAT macaroon=\"{t}\", invoice=\"{i}\"")], 402, "", "200 goods"),
        ("a bare name on 401", |_, _| vec!["L402".to_owned()], 401, "log in", "401 log in"),
        ("a bare name on 402", |_, _| vec!["L402".to_owned()], 402, "", "challenge_unreadable none"),
        ("without quotes", |t, i| vec![format!("L402 token={t}, invoice={i}")], 402, "", "200 goods"),
        ("single quotes", |t, i| vec![format!("L402 macaroon='{t}', invoice='{i}'")], 402, "", "200 goods"),
        (
            "spaces for commas",
            |t, i| vec![format!("L402 macaroon=\"{t}\" invoice=\"{i}\"")],
            402,
            "",
            "200 goods",
        ),
        (
            "url-safe and unpadded",
            |t, i| {
                let t = t.replace('+', "-").replace('/', "_").replace('=', "");
                vec![format!("L402 macaroon=\"{t}\", invoice=\"{i}\"")]
            },
            402,
            "",
            "200 goods",
        ),
        (
            "unpadded",
            |t, i| vec![format!("L402 macaroon=\"{}\", invoice=\"{i}\"", t.trim_end_matches('='))],
            402,
            "",
            "200 goods",
        ),
        (
            "hexadecimal",
            |t, i| {
                let token = Macaroon::from_base64(t).unwrap();
                vec![format!("L402 macaroon=\"{}\", invoice=\"{i}\"", token.to_hex())]
            },
            402,
            "",
            "200 goods",
        ),
        (
            "an upper-case invoice in another order",
            |t, i| vec![format!("l402 invoice=\"{}\", macaroon=\"{t}\"", i.to_uppercase())],
            402,
            "",
            "200 goods",
        ),
        ("no invoice", |t, _| vec![format!("L402 macaroon=\"{t}\"")], 402, "", "challenge_unreadable none"),
        ("no token", |_, i| vec![format!("L402 invoice=\"{i}\"")], 402, "", "challenge_unreadable none"),
        // A body is nobody's challenge: whoever can write it can write any price.
        (
            "an invoice in the body only",
            |_, _| vec![],
            402,
            r#"{"invoice":"lnbcrt1","priceSats":1}"#,
            r#"402 {"invoice":"lnbcrt1","priceSats":1}"#,
        ),
        ("nothing at all", |_, _| vec![], 402, "no", "402 no"),
    ];
    let mut cases = JoinSet::new();
    for (name, form, code, body, want) in forms {
        cases.spawn(async move { assert_eq!(bought(form, code, body).await, want, "{name}") });
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

#[tokio::test]
async fn a_price_in_another_scheme_is_refused_by_name_and_told_by_a_quote() {
    let world = World::new();
    let shop = Shop::with(&world.net, |_, _| {
        let mut response = status(402);
        response.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Payment id=\"a\", method=\"lightning\""),
        );
        response
    })
    .await;
    let engine = world.engine();
    let error = engine.fetch(get(&shop.url("/"))).await.unwrap_err();
    assert!(error.to_string().contains("L402"), "{error}");
    let quote = engine.quote(get(&shop.url("/"))).await.unwrap();
    assert_eq!(quote.refusal.unwrap().code(), "scheme_unsupported");
}

/// How often a body arrives that is posted to a server which answers so, and how the call ends.
async fn posted(answer: impl Fn(&Till, &Asked) -> Response + Send + Sync + 'static) -> (usize, String) {
    let world = World::new();
    let shop = Shop::with(&world.net, move |till, asked| {
        assert_eq!(&asked.body[..], b"once");
        answer(till, asked)
    })
    .await;
    let request = http::Request::post(shop.url("/")).body(Bytes::from_static(b"once")).unwrap();
    let told = told(world.engine().fetch(request).await).await;
    (shop.requests(), told)
}

#[tokio::test]
async fn a_body_is_sent_again_only_where_money_was_asked_for_it() {
    for code in [200, 201, 204, 400, 401, 403, 409, 425, 429, 500, 502, 503, 504] {
        assert_eq!(posted(move |_, _| status(code)).await, (1, format!("{code} ")), "{code}");
    }
    let sold = |till: &Till, asked: &Asked| match till.paid(&asked.headers) {
        Some(_) => till.serve("taken"),
        None => till.challenge("svc", 100),
    };
    assert_eq!(posted(sold).await, (2, "200 taken".to_owned()));
    let failing = |till: &Till, asked: &Asked| match till.paid(&asked.headers) {
        Some(_) => status(500),
        None => till.challenge("svc", 100),
    };
    assert_eq!(posted(failing).await, (2, "500 ".to_owned()));
}

#[tokio::test]
async fn a_body_is_not_sent_again_where_the_line_is_cut_before_an_answer() {
    use tokio::io::AsyncReadExt as _;
    let world = World::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let serve = async {
        let mut taken = 0;
        loop {
            let (mut guest, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"once") {
                assert_ne!(guest.read_buf(&mut request).await.unwrap(), 0);
            }
            taken += 1;
            assert_eq!(taken, 1, "it was sent twice");
        }
    };
    let request = http::Request::post(&url).body(Bytes::from_static(b"once")).unwrap();
    let engine = world.engine();
    tokio::select! {
        () = serve => {}
        fetched = engine.fetch(request) => assert_eq!(told(fetched).await, "network none"),
    }
}
