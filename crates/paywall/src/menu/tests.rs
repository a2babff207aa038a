use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

use super::*;
use crate::testing::weather;

fn names(list: &str) -> Vec<CapabilityName> {
    list.split(',').filter(|name| !name.is_empty()).map(|name| name.parse().unwrap()).collect()
}

fn capability(name: &str, methods: &str, paths: &str) -> Capability {
    Capability {
        name: name.parse().unwrap(),
        methods: methods.split_whitespace().map(|method| method.parse().unwrap()).collect(),
        paths: paths.split_whitespace().map(|path| path.parse().unwrap()).collect(),
    }
}

fn plan(name: &str, sat: u64) -> Plan {
    Plan {
        name: name.to_owned(),
        price: Msat::from_sat(sat).unwrap(),
        offer: Offer::Forever,
        good_for: None,
        monthly: Vec::new(),
    }
}

/// Reading is cheap, writing dear, administering dearer.
fn service() -> Service {
    let mut service = weather();
    service.menu = Menu {
        more: vec![plan("large", 90)],
        capabilities: vec![
            capability("read", "GET", ""),
            capability("write", "POST PUT", ""),
            capability("admin", "", "/admin /admin/*"),
        ],
        lowest: names("read"),
        tiers: vec![
            Tier {
                tier: 1,
                capabilities: names("read,write"),
                offers: vec![plan("pro", 100), plan("pro-large", 900)],
            },
            Tier { tier: 5, capabilities: names("read,write,admin"), offers: vec![plan("root", 10_000)] },
        ],
        ..Menu::default()
    };
    service
}

#[track_caller]
fn check(request: &str, choice: Option<&str>, want: &str) {
    let service = service();
    let (method, path) = request.split_once(' ').unwrap();
    let method: Method = method.parse().unwrap();
    let taken = service.taken(&method, path);
    let quoted = match service.quote(&method, path, choice) {
        Ok(quote) => {
            assert_eq!(quote.tier, service.tier_for(&taken), "what is sold is what is needed");
            format!("{} of {} for {}", quote.name, quote.tier, quote.price)
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(format!("{} -> {quoted}", taken.join("+")), want, "{request}");
}

#[test]
fn a_request_takes_every_capability_it_falls_under_and_needs_the_lowest_tier_that_has_them() {
    check("GET /a", None, "read -> default of 0 for 10 sat");
    check("POST /a", None, "write -> pro of 1 for 100 sat");
    check("GET /admin", None, "read+admin -> root of 5 for 10000 sat");
    check("DELETE /admin/x", None, "admin -> root of 5 for 10000 sat");
    check("GET /administer", None, "read -> default of 0 for 10 sat");
    check("HEAD /a", None, "read -> default of 0 for 10 sat");
    // Nobody has named it, so it belongs to everybody who has paid.
    check("DELETE /a", None, " -> default of 0 for 10 sat");
}

#[test]
fn a_buyer_chooses_among_the_offers_of_the_tier_that_is_needed() {
    check("GET /a", Some("default"), "read -> default of 0 for 10 sat");
    check("GET /a", Some("large"), "read -> large of 0 for 90 sat");
    check("POST /a", Some("pro-large"), "write -> pro-large of 1 for 900 sat");
    check("GET /a", Some("pro"), "read -> there is no one offer called `pro`");
    check("POST /a", Some("large"), "write -> there is no one offer called `large`");
    check("GET /a", Some(""), "read -> there is no one offer called ``");
    check("GET /a", Some("\n"), "read -> there is no one offer called `\\n`");
}

#[test]
fn without_tiers_everything_is_sold_in_one() {
    let mut service = service();
    service.menu.tiers.clear();
    service.menu.lowest.clear();
    let quote = service.quote(&Method::POST, "/admin", None).unwrap();
    assert_eq!((quote.tier, quote.price), (0, service.price));
    let plain = weather();
    assert!(plain.taken(&Method::GET, "/").is_empty());
    assert_eq!(plain.quote(&Method::GET, "/", None).unwrap().price, plain.price);
}

#[test]
fn a_choice_is_made_once() {
    let with = |values: &[&'static str]| {
        let values = values.iter().map(|value| (OFFER_HEADER, HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        values.for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    };
    for (header, query, want) in [
        (&[][..], None, Ok(None)),
        (&["large"][..], None, Ok(Some("large"))),
        (&[], Some("a=b&farebox-offer=large&c"), Ok(Some("large"))),
        (&["large"], Some("farebox-offer=large"), Ok(Some("large"))),
        (&["large", "large"], None, Ok(Some("large"))),
        (&[], Some("farebox-offers=large&farebox-offer"), Ok(None)),
        (&["large"], Some("farebox-offer=small"), Err("small")),
        (&["large", "small"], None, Err("small")),
        (&[], Some("farebox-offer=large&farebox-offer=small"), Err("small")),
    ] {
        let want = want.map_err(|name: &str| UnknownOffer(name.to_owned()));
        assert_eq!(choice(&with(header), query), want, "{header:?} {query:?}");
    }
    let odd = [(OFFER_HEADER, HeaderValue::from_bytes(b"\xff").unwrap())].into_iter().collect();
    assert!(choice(&odd, None).is_err());
}

#[test]
fn a_menu_that_could_not_be_sold_from_is_refused_at_start_up() {
    assert_eq!(service().menu.validate(&service()), Ok(()));
    assert_eq!(Menu::default().validate(&weather()), Ok(()));
    type Change = fn(&mut Menu);
    let changes: [(Change, &str); 10] = [
        (
            |menu| menu.capabilities.push(capability("read", "", "/x")),
            "service `weather` has two capabilities called `read`; give each a name of its own",
        ),
        (
            |menu| menu.lowest = names("read,raed"),
            "tier 0 of service `weather` has the capability `raed`, which the service has not",
        ),
        (
            |menu| menu.lowest = names("read,read"),
            "service `weather` has two capabilities of a tier called `read`; give each a name of its own",
        ),
        (
            |menu| menu.tiers[0].tier = 0,
            "tier 0 of service `weather` does not build on the one before: its number must be higher, and it must have at least the same capabilities",
        ),
        (
            |menu| menu.tiers[0].capabilities = names("write"),
            "tier 1 of service `weather` does not build on the one before: its number must be higher, and it must have at least the same capabilities",
        ),
        (
            |menu| menu.tiers.truncate(1),
            "no tier of service `weather` has the capability `admin`, so nobody could buy it; give it to the highest",
        ),
        (|menu| menu.tiers[1].offers.clear(), "tier 5 of service `weather` has no offer; say what it costs"),
        (
            |menu| menu.more[0].name = "Large".to_owned(),
            "service `weather` has an offer called `Large`; use 1 to 32 of `a-z 0-9 -`",
        ),
        (
            |menu| menu.more[0].name = "default".to_owned(),
            "service `weather` has two offers called `default`; give each a name of its own",
        ),
        (
            |menu| menu.tiers[0].offers[1].price = Msat::ZERO,
            "service `weather` sells `pro-large` for 0 sat; write a price from 1 msat to 100000000000 sat",
        ),
    ];
    for (change, want) in changes {
        let mut menu = service().menu;
        change(&mut menu);
        assert_eq!(menu.validate(&service()).unwrap_err().to_string(), want);
    }
    let many = (0..33).map(|at| capability(&format!("c{at}"), "", "")).collect();
    let menu = Menu { capabilities: many, ..Menu::default() };
    assert_eq!(menu.validate(&weather()), Err(MenuError::TooMany(weather().name, 33)));
}

#[test]
fn credit_that_would_not_pay_for_the_request_is_not_put_to_its_buyer() {
    let mut service = weather();
    let credit = |name: &str, sat| Plan { offer: Offer::Credit, ..plan(name, sat) };
    (service.offer, service.price) = (Offer::Credit, Msat::new(10_000));
    service.menu.more = vec![credit("large", 100), credit("huge", 1_000)];
    let fixed = |sat| Arc::new(price::Cost::Fixed(Msat::from_sat(sat).unwrap()));
    let routes = [("/dear", 50), ("/absurd", 5_000)].map(|(path, sat)| crate::RouteCost {
        methods: Vec::new(),
        paths: vec![path.parse().unwrap()],
        cost: fixed(sat),
    });
    service.costs = crate::Costs { routes: routes.into(), otherwise: Some(fixed(1)) };
    let quoted = |path, choice| service.quote(&Method::GET, path, choice).map(|quote| quote.name);
    assert_eq!(quoted("/", None), Ok("default"));
    assert_eq!(quoted("/dear", None), Ok("large"));
    assert_eq!(quoted("/dear", Some("huge")), Ok("huge"));
    assert!(quoted("/dear", Some("default")).is_err());
    assert!(quoted("/absurd", None).is_err());
}

#[test]
fn credit_that_would_not_pay_for_an_upload_that_is_announced_is_not_put_to_its_buyer() {
    let mut service = weather();
    (service.offer, service.price) = (Offer::Credit, Msat::new(10_000));
    service.menu.more = vec![Plan { offer: Offer::Credit, ..plan("large", 100) }];
    let meter = price::Meter::Bytes { request: price::PerMillion(1_000_000), response: price::PerMillion(0) };
    let cost = price::Cost::Metered { reserve: Msat::new(10), base: Msat::ZERO, meter };
    service.costs.otherwise = Some(Arc::new(cost));
    let quoted = |length| service.quote_sized(&Method::POST, "/", length, None).map(|quote| quote.name);
    assert_eq!(quoted(0), Ok("default"));
    assert_eq!(quoted(10_000), Ok("default"));
    assert_eq!(quoted(10_001), Ok("large"));
    assert!(quoted(100_001).is_err());
}

/// As many requests, or so many msat, a month.
fn monthly(limits: &[(&str, Most)]) -> Vec<Monthly> {
    limits.iter().map(|(name, most)| Monthly { capability: name.parse().unwrap(), most: *most }).collect()
}

#[test]
fn a_limit_by_the_month_that_could_not_be_kept_told_or_reached_is_refused_at_start_up() {
    let sat = |sat| Most::Spent(Msat::from_sat(sat).unwrap());
    let check = |offer: Offer, limits: &[(&str, Most)], want: Result<(), &str>| {
        let mut service = service();
        let fixed = |msat| Arc::new(price::Cost::Fixed(Msat::new(msat)));
        let route = |method, paths: &str, msat| crate::RouteCost {
            methods: vec![method],
            paths: vec![paths.parse().unwrap()],
            cost: fixed(msat),
        };
        service.costs.routes =
            vec![route(Method::POST, "/dear/*", 7_000), route(Method::GET, "/admin/x", 9_000)];
        service.costs.otherwise = (offer != Offer::Forever).then(|| fixed(2_000));
        // 10 sat of the lowest tier, which has `read`; 1000 sat of the one above, which has `write` beside it.
        (service.offer, service.menu.monthly) = (offer, monthly(limits));
        let told = |told: Result<(), MenuError>| told.map_err(|error| error.to_string());
        let want = want.map_err(str::to_owned);
        assert_eq!(told(service.menu.validate(&service)), want, "{offer:?} {limits:?}");
    };
    let thousand = Offer::Duration(Duration::from_secs(3_600));
    let five = Offer::Requests(5.try_into().unwrap());
    check(Offer::Forever, &[("read", Most::Requests(1))], Ok(()));
    check(thousand, &[("read", Most::Requests(1)), ("read", sat(9))], Ok(()));
    check(five, &[("read", Most::Requests(4)), ("read", sat(2))], Ok(()));
    for (offer, limits, why) in [
        (
            Offer::Forever,
            &[("read", Most::Requests(0))][..],
            "read_monthly_requests=0`, which allows nothing; write whole requests or satoshi, at least one",
        ),
        (
            Offer::Forever,
            &[("read", Most::Spent(Msat::new(999)))],
            "read_monthly_volume_sats=0`, which allows nothing; write whole requests or satoshi, at least one",
        ),
        (
            Offer::Forever,
            &[("read", Most::Requests(2)), ("read", Most::Requests(1))],
            "read_monthly_requests=1`, and another one for the same; keep the stricter",
        ),
        (
            Offer::Forever,
            &[("write", Most::Requests(2))],
            "write_monthly_requests=2`, which is for a capability that its tier has not",
        ),
        (
            Offer::Forever,
            &[("read", sat(2))],
            "read_monthly_volume_sats=2`, and nothing says what a request costs; write `cost`, or limit the number of requests",
        ),
        (
            thousand,
            &[("read", sat(8))],
            "read_monthly_volume_sats=8`, and has requests that need 9 sat to be left of it, so that nobody could ever \
             make them; raise it",
        ),
        (
            five,
            &[("read", sat(1))],
            "read_monthly_volume_sats=1`, and has requests that need 2 sat to be left of it, so that nobody could ever \
             make them; raise it",
        ),
        (
            five,
            &[("read", Most::Requests(5))],
            "read_monthly_requests=5`, which is never reached, since no more than that is sold; lower or remove it",
        ),
        (
            Offer::Credit,
            &[("read", sat(10))],
            "read_monthly_volume_sats=10`, which is never reached, since no more than that is sold; lower or remove it",
        ),
    ] {
        let want = format!("service `weather` sells `default` with the limit `{why}");
        check(offer, limits, Err(&want));
    }
    // Those of other offers, too.
    let mut service = service();
    service.menu.tiers[0].offers[1].monthly = monthly(&[("admin", Most::Requests(1))]);
    let error = service.menu.validate(&service).unwrap_err().to_string();
    assert!(error.contains("`pro-large`") && error.ends_with("that its tier has not"), "{error}");
    service.menu.tiers[0].offers[1].monthly =
        (0..9).map(|at| monthly(&[(&format!("c{at}"), Most::Requests(1))]).remove(0)).collect();
    let error = service.menu.validate(&service).unwrap_err().to_string();
    assert_eq!(
        error,
        "service `weather` sells `pro-large` with 9 limits by the month; a token has room for 8"
    );
}

#[test]
fn what_is_limited_to_less_than_the_request_takes_is_not_put_to_its_buyer() {
    let mut service = service();
    let route = crate::RouteCost {
        methods: Vec::new(),
        paths: vec!["/dear".parse().unwrap()],
        cost: Arc::new(price::Cost::Fixed(Msat::new(5_000))),
    };
    service.costs =
        crate::Costs { routes: vec![route], otherwise: Some(Arc::new(price::Cost::Fixed(Msat::new(1_000)))) };
    service.menu.monthly = monthly(&[("read", Most::Spent(Msat::new(4_000)))]);
    let quoted = |method, path| service.quote(&method, path, None).map(|quote| quote.name);
    assert_eq!(quoted(Method::GET, "/"), Ok("default"));
    assert_eq!(quoted(Method::GET, "/dear"), Ok("large"));
    // It takes nothing that is limited.
    assert_eq!(quoted(Method::DELETE, "/dear"), Ok("default"));
    assert!(service.quote(&Method::GET, "/dear", Some("default")).is_err());
}
