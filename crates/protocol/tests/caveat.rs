//! What caveats allow, against `vectors/caveat.json`, and what a sale writes.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

mod support;

use std::{net::IpAddr, num::NonZeroU64, time::Duration};

use farebox_protocol::{
    Asked, CaveatError, Identifier, Macaroon, Monthly, Msat, Offer, RootKey, Sale, Terms, Timestamp,
    caveat::{AddedBy, Condition, Limit, Most, TABLE, check_capabilities, judge, limits},
};
use serde::Deserialize;
use support::vectors;

#[derive(Deserialize)]
struct Vectors {
    judged: Vec<Row>,
    sales: Vec<Sold>,
    attenuate: Vec<Added>,
}

#[derive(Deserialize)]
struct Row {
    why: String,
    caveats: Vec<String>,
    #[serde(flatten)]
    asked: Request,
    allowed: Option<Allowed>,
    refused: Option<String>,
}

#[derive(Deserialize)]
#[serde(default)]
struct Request {
    service: String,
    method: String,
    path: String,
    client: Option<IpAddr>,
    now: u64,
    strict: bool,
    capabilities: Option<Vec<String>>,
    price: Option<u64>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Allowed {
    terms: Option<String>,
    tier: Option<u8>,
    valid_until: Option<u64>,
    #[serde(default)]
    is_limited: bool,
}

#[derive(Deserialize)]
struct Sold {
    why: String,
    service: String,
    tier: u8,
    secs: Option<u64>,
    requests: Option<NonZeroU64>,
    #[serde(default)]
    credit: bool,
    msat: u64,
    valid_until: Option<u64>,
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    monthly: Vec<String>,
    bound: Option<String>,
    replaces: Option<String>,
    caveats: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Added {
    why: String,
    held: Vec<String>,
    add: String,
    error: Option<String>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            service: "weather".to_owned(),
            method: "GET".to_owned(),
            path: "/".to_owned(),
            client: Some([192, 0, 2, 1].into()),
            now: 1_699_990_000,
            strict: false,
            capabilities: None,
            price: Some(10_000),
        }
    }
}

impl Request {
    /// Hands it over as the caveats see it.
    fn asked<T>(&self, then: impl FnOnce(&Asked<'_>) -> T) -> T {
        let taken: Option<Vec<&str>> =
            self.capabilities.as_ref().map(|all| all.iter().map(String::as_str).collect());
        then(&Asked {
            service: &self.service.parse().unwrap(),
            method: &self.method.parse().unwrap(),
            path: &self.path,
            client: self.client,
            now: Timestamp::from_secs(self.now),
            strict: self.strict,
            capabilities: taken.as_deref(),
            price: self.price.map(Msat::new),
            cost: None,
        })
    }
}

fn token(caveats: &[String]) -> Macaroon {
    Macaroon::mint(&RootKey::from_bytes([1; 32]), &Identifier::from_bytes(&[0; 66]).unwrap(), caveats)
}

fn judged(caveats: &[String], request: &Request) -> Result<Allowed, String> {
    match request.asked(|asked| judge(&token(caveats), asked)) {
        Ok(judged) => Ok(Allowed {
            terms: judged.terms.map(|terms| terms.to_string()),
            tier: judged.tier,
            valid_until: judged.valid_until.map(Timestamp::secs),
            is_limited: judged.is_limited,
        }),
        Err(refusal) => Err(refusal.code().to_owned()),
    }
}

fn all() -> Vectors {
    vectors("caveat.json")
}

#[test]
fn every_row_is_judged_as_written() {
    for row in all().judged {
        let want = row.allowed.ok_or_else(|| row.refused.unwrap());
        assert_eq!(judged(&row.caveats, &row.asked), want, "{}", row.why);
    }
}

#[test]
fn no_caveat_of_any_row_turns_the_refusal_of_another_into_a_permission() {
    let rows = all().judged;
    let mut additions: Vec<&String> = rows.iter().flat_map(|row| &row.caveats).collect();
    additions.sort();
    additions.dedup();
    for row in &rows {
        let before = judged(&row.caveats, &row.asked);
        for addition in &additions {
            let mut caveats = row.caveats.clone();
            caveats.push((*addition).clone());
            let after = judged(&caveats, &row.asked);
            match (&before, &after) {
                (Err(_), Ok(_)) => panic!("{}: `{addition}` opens it", row.why),
                (Ok(before), Ok(after)) => assert!(is_narrower(before, after), "{}: `{addition}`", row.why),
                _ => {}
            }
        }
    }
}

/// Terms can't change, tiers can't rise, ends can't move back.
fn is_narrower(before: &Allowed, after: &Allowed) -> bool {
    (before.terms.is_none() || before.terms == after.terms)
        && before.tier.is_none_or(|before| after.tier.is_some_and(|after| after <= before))
        && before.valid_until.is_none_or(|before| after.valid_until.is_some_and(|after| after <= before))
        && before.is_limited <= after.is_limited
}

#[test]
fn a_sale_is_written_whole_or_not_at_all() {
    for row in all().sales {
        let offer = match (row.secs, row.requests, row.credit) {
            (None, None, false) => Offer::Forever,
            (Some(secs), None, false) => Offer::Duration(Duration::from_secs(secs)),
            (None, Some(count), false) => Offer::Requests(count),
            (None, None, true) => Offer::Credit,
            _ => panic!("{}: one offer", row.why),
        };
        let capabilities =
            row.capabilities.map(|names| names.iter().map(|name| name.parse().unwrap()).collect());
        let sale = Sale {
            service: row.service.parse().unwrap(),
            tier: row.tier,
            terms: Terms { offer, price: Msat::new(row.msat) },
            valid_until: row.valid_until.map(Timestamp::from_secs),
            capabilities,
            monthly: row.monthly.iter().map(|limit| monthly(limit)).collect(),
            bound: row.bound.map(|bound| bound.parse().unwrap()),
            replaces: row.replaces.map(|older| older.parse().unwrap()),
        };
        assert_eq!(sale.caveats().ok(), row.caveats, "{}", row.why);
    }
}

#[test]
fn a_part_of_a_second_is_not_sold() {
    let sale = Sale {
        service: "weather".parse().unwrap(),
        tier: 0,
        terms: Terms { offer: Offer::Duration(Duration::from_millis(1500)), price: Msat::new(1) },
        valid_until: Some(Timestamp::from_secs(1)),
        capabilities: None,
        monthly: Vec::new(),
        bound: None,
        replaces: None,
    };
    assert!(sale.caveats().is_err());
}

#[test]
fn a_part_of_a_satoshi_is_no_limit_that_could_be_written() {
    let limit = |msat| Sale {
        service: "weather".parse().unwrap(),
        tier: 0,
        terms: Terms { offer: Offer::Forever, price: Msat::new(1) },
        valid_until: None,
        capabilities: None,
        monthly: vec![Monthly { capability: "read".parse().unwrap(), most: Most::Spent(Msat::new(msat)) }],
        bound: None,
        replaces: None,
    };
    assert!(limit(1_500).caveats().is_err());
    assert!(limit(Msat::MAX.get() + 1_000).caveats().is_err());
    assert_eq!(limit(2_000).caveats().unwrap()[1], "read_monthly_volume_sats=2");
}

/// Reads `read_monthly_requests=5`.
fn monthly(text: &str) -> Monthly {
    let (name, value) = text.split_once('=').unwrap();
    let value = value.parse().unwrap();
    let (capability, most) = match name.strip_suffix("_monthly_requests") {
        Some(capability) => (capability, Most::Requests(value)),
        None => {
            let most = Most::Spent(Msat::from_sat(value).unwrap());
            (name.strip_suffix("_monthly_volume_sats").unwrap(), most)
        }
    };
    Monthly { capability: capability.parse().unwrap(), most }
}

#[test]
fn a_token_is_whole_as_the_mint_made_it_and_no_longer_once_narrowed() {
    for row in all().sales {
        let Some(caveats) = row.caveats else { continue };
        let sale = Sale::of(&token(&caveats)).unwrap_or_else(|| panic!("{}", row.why));
        assert_eq!(sale.caveats().unwrap(), caveats, "{}", row.why);

        // What a holder adds may be word for word what the mint writes elsewhere.
        let added = [
            format!("{}_valid_until=99", row.service),
            format!("{}_capabilities=read", row.service),
            "farebox_path=/a".to_owned(),
            format!("preimage={}", "0".repeat(64)),
            "somebody=else".to_owned(),
            caveats[0].clone(),
            caveats[caveats.len() - 1].clone(),
        ];
        for added in added {
            let narrowed = [caveats.clone(), vec![added.clone()]].concat();
            assert_eq!(Sale::of(&token(&narrowed)), None, "{}: {added}", row.why);
        }
        assert_eq!(Sale::of(&token(&caveats[..caveats.len() - 1])), None, "{}: without terms", row.why);
    }
}

#[test]
fn what_was_sold_is_what_is_judged() {
    for row in all().sales {
        let Some(caveats) = row.caveats else { continue };
        let request = Request { service: row.service, price: Some(1), ..Request::default() };
        let allowed = judged(&caveats, &request).unwrap();
        assert_eq!((allowed.tier, allowed.valid_until), (Some(row.tier), row.valid_until), "{}", row.why);
        let terms: Terms = allowed.terms.unwrap().parse().unwrap();
        assert_eq!(terms.price, Msat::new(row.msat), "{}", row.why);
    }
}

#[test]
fn a_holder_adds_only_what_leaves_the_token_alive() {
    for row in all().attenuate {
        let got = token(&row.held).attenuate(&row.add).err().map(|error| match error {
            CaveatError::NotACaveat => "not_a_caveat",
            CaveatError::MintOnly(_) => "mint_only",
            CaveatError::Unknown(_) => "unknown",
            CaveatError::Malformed { .. } => "malformed",
            CaveatError::Widens(_) => "widens",
            other => panic!("{}: {other}", row.why),
        });
        assert_eq!(got, row.error.as_deref(), "{}", row.why);
    }
}

#[test]
fn every_limit_of_what_the_request_takes_is_for_the_ledger() {
    let caveats = [
        "services=weather:0",
        "read_monthly_requests=1000",
        "read_monthly_volume_sats=21",
        "write_monthly_requests=5",
        "news_monthly_requests=1",
        "read_monthly_requests=7",
        "read_monthly_volume_sats=18446744073709551615",
    ];
    let macaroon = token(&caveats.map(str::to_owned));
    let limit = |capability, most| Limit { capability, most };
    let found: Vec<_> = limits(&macaroon, &["write", "read"]).map(|limit| format!("{limit:?}")).collect();
    let want = [
        limit("read", Most::Requests(1_000)),
        limit("read", Most::Spent(Msat::new(21_000))),
        limit("write", Most::Requests(5)),
        limit("read", Most::Requests(7)),
        limit("read", Most::Spent(Msat::MAX)),
    ];
    assert_eq!(found, want.map(|limit| format!("{limit:?}")));
    for nothing in [&[][..], &["admin"][..]] {
        assert_eq!(limits(&macaroon, nothing).count(), 0, "{nothing:?}");
    }
}

#[test]
fn a_holders_word_on_a_capability_that_is_not_there_is_refused_and_never_passed_over() {
    const TERMS: &str = "farebox_terms=v1;offer=forever;msat=10000";
    let check = |caveats: &[&str], taken: &str, want: Result<(), &str>| {
        let macaroon = token(&caveats.iter().map(|caveat| (*caveat).to_owned()).collect::<Vec<_>>());
        let request = Request { capabilities: Some(vec![taken.to_owned()]), ..Request::default() };
        let judged = request.asked(|asked| {
            let judged = judge(&macaroon, asked)?;
            // Nothing is overlooked where nobody has to look.
            let checked =
                check_capabilities(&macaroon, asked.service, |name| ["read", "write"].contains(&name));
            assert!(judged.names_others || checked.is_ok(), "{caveats:?}");
            checked
        });
        assert_eq!(judged.map_err(|refusal| refusal.code()), want, "{caveats:?}");
    };
    let unknown = Err("caveat_unknown");
    for said in ["raed_monthly_requests=1", "raed_monthly_volume_sats=1", "raed_valid_until=1800000000"] {
        check(&["services=weather:0", TERMS, said], "read", unknown);
        // Nor does it become one by what stands beside it.
        check(&["services=weather:0", TERMS, "read_monthly_requests=1", said], "read", unknown);
        check(&["services=weather:0,news:0", TERMS, said, "services=weather:0"], "read", unknown);
        // It may be of the other service.
        check(&["services=weather:0,news:0", TERMS, said], "read", Ok(()));
        // The mint's own: what the seller has given up is limited no more.
        check(&["services=weather:0", said, TERMS], "read", Ok(()));
    }
    check(&["services=weather:0", TERMS, "write_monthly_requests=1"], "read", Ok(()));
    check(&["services=weather:0", TERMS, "write_valid_until=1"], "read", Ok(()));
    check(&["services=weather:0", TERMS, "weather_valid_until=1800000000"], "read", Ok(()));
    check(&["services=weather:0", TERMS, "weather_monthly_requests=1"], "read", unknown);
    // What nobody here would understand, whatever it stands for.
    for others in ["somebody=else", "raed_weekly_requests=1", "raed_capabilities=x", "_monthly_requests=1"] {
        check(&["services=weather:0", TERMS, others], "read", Ok(()));
    }
}

#[test]
fn what_needs_the_store_sets_a_token_aside_and_nothing_else_does() {
    for row in all().judged {
        let Some(allowed) = row.allowed else { continue };
        let taken = row.asked.capabilities.unwrap_or_default();
        let is_limited = row.caveats.iter().filter_map(|caveat| caveat.split_once('=')).any(|(name, _)| {
            TABLE.iter().filter(|row| row.needs_store).any(|row| match row.condition {
                Condition::PerCapability(suffix) => {
                    name.strip_suffix(suffix).is_some_and(|of| taken.iter().any(|taken| taken == of))
                }
                other => panic!("{other:?}"),
            })
        });
        assert_eq!(allowed.is_limited, is_limited, "{}", row.why);
    }
}

#[test]
fn a_condition_of_the_mint_stands_once() {
    // What a holder could repeat, a holder could replace. Only the place before the terms is out of a holder's reach.
    for row in TABLE.iter().filter(|row| row.added_by == AddedBy::Mint) {
        assert_eq!(row.narrowing, "once only", "{:?}", row.condition);
    }
}

#[test]
fn a_ceiling_is_for_what_the_request_costs_in_the_coin_of_the_tokens_terms() {
    let (weather, get) = ("weather".parse().unwrap(), http::Method::GET);
    let check = |offer: &str, price: Option<u64>, cost: Option<u64>, want: Result<(), &str>| {
        let bound = "farebox_bound=GET;msat=2500;/v1".to_owned();
        let terms = format!("farebox_terms=v1;{offer};msat=100000");
        let asked = Asked {
            service: &weather,
            method: &get,
            path: "/v1",
            client: None,
            now: Timestamp::default(),
            strict: false,
            capabilities: None,
            price: price.map(Msat::new),
            cost: cost.map(Msat::new),
        };
        // The mint's own stands before the terms, a holder's behind them.
        for caveats in [[terms.clone(), bound.clone()], [bound, terms]] {
            let judged = judge(&token(&caveats), &asked).map(drop);
            assert_eq!(judged.map_err(|refusal| refusal.code()), want, "{caveats:?} {price:?} {cost:?}");
        }
    };
    let dear = Err("token_price_ceiling");
    check("offer=credit;unit=msat", Some(100_000), Some(2_500), Ok(()));
    check("offer=credit;unit=msat", Some(1), Some(2_501), dear);
    check("offer=credit;unit=msat", Some(1), None, dear);
    check("offer=requests;count=1", Some(2_500), Some(100_000), Ok(()));
    check("offer=requests;count=1", Some(2_501), Some(1), dear);
    check("offer=forever", None, Some(1), dear);
}

#[test]
fn a_refusal_shows_a_strangers_text_escaped_and_short() {
    let caveats = [format!("farebox_\n\u{1b}[31m{}=x", "y".repeat(500))];
    let asked = Asked {
        service: &"weather".parse().unwrap(),
        method: &http::Method::GET,
        path: "/",
        client: None,
        now: Timestamp::default(),
        strict: false,
        capabilities: None,
        price: None,
        cost: None,
    };
    let text = judge(&token(&caveats), &asked).unwrap_err().to_string();
    assert!(text.len() < 200 && !text.contains(char::is_control), "{text}");
}
