//! Tiers, capabilities and offers, as tokens carry them.

use super::*;

/// Reading is cheap, writing dear.
pub(super) fn with_tiers(service: &mut crate::Service) {
    let capability = |name: &str, method| crate::Capability {
        name: name.parse().unwrap(),
        methods: vec![method],
        paths: Vec::new(),
    };
    let plan = |name: &str, sat| crate::Plan {
        name: name.to_owned(),
        price: Msat::from_sat(sat).unwrap(),
        offer: Offer::Forever,
        good_for: None,
        monthly: Vec::new(),
    };
    service.menu = crate::Menu {
        more: vec![plan("large", 90)],
        capabilities: vec![capability("read", Method::GET), capability("write", Method::POST)],
        lowest: vec!["read".parse().unwrap()],
        tiers: vec![crate::Tier {
            tier: 3,
            capabilities: vec!["read".parse().unwrap(), "write".parse().unwrap()],
            offers: vec![plan("pro", 500)],
        }],
        ..crate::Menu::default()
    };
    assert_eq!(service.validate(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_token_does_what_its_tier_and_its_capabilities_say_and_no_more() {
    let mut shop = Shop::open().await;
    let (before, paid_before) = shop.buy().await;
    with_tiers(&mut shop.service);
    let ask = async |method: &Method, headers: &HeaderMap| {
        let request = crate::Request {
            service: &shop.service,
            method,
            path: "/forecast",
            client: IpAddr::from([192, 0, 2, 1]),
            headers,
            query: None,
            grpc: false,
        };
        shop.paywall.admit(&request).await
    };
    let buy = async |method: &Method, headers: &HeaderMap| {
        let (macaroon, invoice) = read_challenge(&answer(ask(method, headers).await));
        (macaroon, shop.node.preimage(&invoice.payment_hash()), invoice.amount().unwrap().sat_ceil())
    };
    let none = HeaderMap::new();
    let (cheap, cheap_paid, price) = buy(&Method::GET, &none).await;
    assert_eq!(price, 10);
    assert!(cheap.caveats().any(|caveat| caveat == "services=weather:0"));
    let (pro, pro_paid, price) = buy(&Method::POST, &none).await;
    assert_eq!(price, 500);
    assert!(pro.caveats().any(|caveat| caveat == "services=weather:3"));

    // A token has all of its tier, and no more; what nobody has named belongs to the lowest.
    for token in [credential(&cheap, &cheap_paid), credential(&before, &paid_before)] {
        check(&ask(&Method::GET, &token).await, Code::Pass);
        check(&ask(&Method::DELETE, &token).await, Code::Pass);
        check(&ask(&Method::POST, &token).await, Code::TierOutgrown);
    }
    let lent = credential(&cheap.attenuate("weather_capabilities=read").unwrap(), &cheap_paid);
    check(&ask(&Method::GET, &lent).await, Code::Pass);
    for method in [Method::POST, Method::DELETE] {
        check(&ask(&method, &lent).await, Code::TokenOtherCapability);
    }
    for method in [Method::GET, Method::POST] {
        check(&ask(&method, &credential(&pro, &pro_paid)).await, Code::Pass);
    }
    let lent = pro.attenuate("weather_capabilities=read").unwrap().attenuate("read_valid_until=1").unwrap();
    let lent = credential(&lent, &pro_paid);
    check(&ask(&Method::GET, &lent).await, Code::TokenExpired);
    let limited = credential(&pro.attenuate("write_monthly_requests=0").unwrap(), &pro_paid);
    check(&ask(&Method::GET, &limited).await, Code::Pass);
    check(&ask(&Method::POST, &limited).await, Code::LimitReached);
}

#[tokio::test(start_paused = true)]
async fn whatever_a_request_is_asked_to_pay_for_opens_that_request() {
    let mut shop = Shop::open().await;
    with_tiers(&mut shop.service);
    let menu = shop.service.menu.clone();
    // As it is; with the dear part named and nothing else; and without tiers.
    let only_the_dear = crate::Menu {
        capabilities: menu.capabilities[1..].to_vec(),
        lowest: Vec::new(),
        tiers: vec![crate::Tier { capabilities: vec!["write".parse().unwrap()], ..menu.tiers[0].clone() }],
        ..menu.clone()
    };
    let without_tiers = crate::Menu { tiers: Vec::new(), lowest: Vec::new(), ..menu.clone() };
    for menu in [menu, only_the_dear, without_tiers] {
        shop.service.menu = menu;
        assert_eq!(shop.service.validate(), Ok(()));
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            let (macaroon, invoice) =
                read_challenge(&answer(shop.ask(&method, "/x", &HeaderMap::new()).await));
            let bought = credential(&macaroon, &shop.node.preimage(&invoice.payment_hash()));
            check(&shop.ask(&method, "/x", &bought).await, Code::Pass);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_buyer_chooses_an_offer_or_is_told_that_there_is_none() {
    let mut shop = Shop::open().await;
    with_tiers(&mut shop.service);
    let choose = |name: &'static str| -> HeaderMap {
        [(crate::OFFER_HEADER, HeaderValue::from_static(name))].into_iter().collect()
    };
    let offered = answer(shop.get(&choose("large")).await);
    assert_eq!(read_challenge(&offered).1.amount(), Some(Msat::new(90_000)));
    let body: serde_json::Value = serde_json::from_slice(&offered.body).unwrap();
    let names: Vec<_> =
        body["offers"].as_array().unwrap().iter().map(|offer| offer["name"].clone()).collect();
    assert_eq!(names, ["default", "large"]);
    let refused = shop.get(&choose("pro")).await;
    check(&refused, Code::OfferUnknown);
    assert_eq!(answer(refused).status, StatusCode::BAD_REQUEST);
    assert_eq!(shop.node.asked.lock().len(), 1, "no invoice for what is not sold");
}

#[tokio::test(start_paused = true)]
async fn a_list_of_capabilities_opens_nothing_that_nobody_has_named() {
    let shop = Shop::open().await;
    let (macaroon, preimage) = shop.buy().await;
    for listed in ["read", ""] {
        let listed = macaroon.attenuate(&format!("weather_capabilities={listed}")).unwrap();
        check(&shop.get(&credential(&listed, &preimage)).await, Code::TokenOtherCapability);
    }
    let other = macaroon.attenuate("news_capabilities=read").unwrap();
    check(&shop.get(&credential(&other, &preimage)).await, Code::Pass);
}
