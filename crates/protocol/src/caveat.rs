//! What a token's caveats allow: the table of conditions farebox knows, and the judgement of one request by them.
//!
//! Everything about a condition stands in its row of [`TABLE`]. The rule for all: a condition that comes again must be at
//! most as wide as before, and each must hold for the request. So whatever a holder appends can only take away.
//!
//! Conditions outside `farebox_` that nobody here knows are skipped, as the specification says, since a holder may add
//! caveats meant for others; `strict` refuses them. Unknown ones *inside* `farebox_` are always refused: an older gateway
//! must not widen what a newer one sold. Judge only after the signature has held: before that, the text is anybody's.

mod refusal;
mod rules;

use std::{fmt, net::IpAddr};

use crate::{CapabilityName, IdentifierHash, Macaroon, Msat, Offer, ServiceName, Terms, Timestamp};

pub use refusal::{CaveatError, CaveatRefusal};
pub(crate) use rules::{method::is_method, path::reads as is_path};

/// The most entries in a list-valued condition; it bounds the work of comparing two of them.
pub const LIST_MAX: usize = 32;

/// One condition that farebox knows.
#[derive(Debug)]
#[non_exhaustive]
pub struct Row {
    /// Which conditions this row is about.
    pub condition: Condition,
    /// What its value looks like.
    pub grammar: &'static str,
    /// When a later one is at most as wide as an earlier one.
    pub narrowing: &'static str,
    /// Whom it is honest from.
    pub added_by: AddedBy,
    /// Whether judging it takes more than the token and the request.
    pub needs_store: bool,
    reads: fn(&str) -> bool,
    /// `(before, now)`; `None` for a condition that may stand only once.
    narrows: Option<fn(&str, &str) -> bool>,
    holds: fn(&str, &Asked<'_>, &mut Judged) -> Result<(), CaveatRefusal>,
}

/// How a row's conditions are spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// This word.
    Exactly(&'static str),
    /// A service's name and then this; judged for that service only.
    PerService(&'static str),
    /// A capability's name and then this; judged for requests that take that capability.
    PerCapability(&'static str),
}

/// Who adds a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddedBy {
    /// The seller, at the sale. It can't be told from a holder's by its bytes, so it must be one that stands only once.
    Mint,
    /// The seller or any holder.
    Anyone,
    /// The holder's client, to send the preimage along.
    Client,
}

/// Every condition that farebox knows. To add one: a row here, its three functions in `rules`, rows in the vectors.
pub const TABLE: [Row; 14] = [
    Row {
        condition: Condition::Exactly("services"),
        grammar: "name:tier[,name:tier…], tier 0 to 255, no name twice",
        narrowing: "a subset of the names, no tier higher",
        added_by: AddedBy::Anyone,
        needs_store: false,
        reads: rules::services::reads,
        narrows: Some(rules::services::narrows),
        holds: rules::services::holds,
    },
    Row {
        condition: Condition::Exactly("farebox_terms"),
        grammar: "v1;offer=forever;msat=…, with duration;secs=…, requests;count=… or credit;unit=msat for forever",
        narrowing: "once only",
        added_by: AddedBy::Mint,
        needs_store: false,
        reads: rules::terms::reads,
        narrows: None,
        holds: rules::terms::holds,
    },
    Row {
        condition: Condition::Exactly("farebox_replaces"),
        grammar: "64 lower-case hexadecimal digits: the hash of an older token's identifier; before `farebox_terms`",
        narrowing: "once only",
        added_by: AddedBy::Mint,
        needs_store: false,
        reads: rules::replaces::reads,
        narrows: None,
        holds: rules::replaces::holds,
    },
    Row {
        condition: Condition::Exactly("farebox_bound"),
        grammar: "METHOD;msat=…;/path: one method, the most that a use may cost, one normalised path",
        narrowing: "the same method and path, the ceiling no higher",
        added_by: AddedBy::Anyone,
        needs_store: false,
        reads: rules::bound::reads,
        narrows: Some(rules::bound::narrows),
        holds: rules::bound::holds,
    },
    Row {
        condition: Condition::Exactly("farebox_valid_until"),
        grammar: "Unix seconds",
        narrowing: "not later",
        added_by: AddedBy::Anyone,
        needs_store: false,
        reads: rules::valid_until::reads,
        narrows: Some(rules::valid_until::narrows),
        holds: rules::valid_until::holds,
    },
    Row {
        condition: Condition::Exactly("farebox_method"),
        grammar: "METHOD[,METHOD…], upper case, none twice",
        narrowing: "a subset",
        added_by: AddedBy::Anyone,
        needs_store: false,
        reads: rules::method::reads,
        narrows: Some(rules::method::narrows),
        holds: rules::method::holds,
    },
    Row {
        condition: Condition::Exactly("farebox_path"),
        grammar: "a normalised path; covers itself and what is below it",
        narrowing: "the same path or one below it",
        added_by: AddedBy::Anyone,
        needs_store: false,
        reads: rules::path::reads,
        narrows: Some(rules::path::narrows),
        holds: rules::path::holds,
    },
    Row {
        condition: Condition::Exactly("farebox_client"),
        grammar: "address or network[,…], no bits set below the prefix",
        narrowing: "each inside one from before",
        added_by: AddedBy::Anyone,
        needs_store: false,
        reads: rules::client::reads,
        narrows: Some(rules::client::narrows),
        holds: rules::client::holds,
    },
    Row {
        condition: Condition::Exactly("preimage"),
        grammar: "64 hexadecimal digits",
        narrowing: "the same",
        added_by: AddedBy::Client,
        needs_store: false,
        reads: rules::preimage::reads,
        narrows: Some(rules::preimage::narrows),
        holds: rules::preimage::holds,
    },
    Row {
        condition: Condition::PerService(VALID_UNTIL),
        grammar: "Unix seconds",
        narrowing: "not later",
        added_by: AddedBy::Anyone,
        needs_store: false,
        reads: rules::valid_until::reads,
        narrows: Some(rules::valid_until::narrows),
        holds: rules::valid_until::holds,
    },
    Row {
        condition: Condition::PerService("_capabilities"),
        grammar: "name[,name…], or nothing",
        narrowing: "a subset",
        added_by: AddedBy::Anyone,
        needs_store: false,
        reads: rules::capabilities::reads,
        narrows: Some(rules::capabilities::narrows),
        holds: rules::capabilities::holds,
    },
    Row {
        condition: Condition::PerCapability(VALID_UNTIL),
        grammar: "Unix seconds",
        narrowing: "not later",
        added_by: AddedBy::Anyone,
        needs_store: false,
        reads: rules::valid_until::reads,
        narrows: Some(rules::valid_until::narrows),
        holds: rules::valid_until::holds,
    },
    Row {
        condition: Condition::PerCapability(MONTHLY_VOLUME),
        grammar: "satoshi in a calendar month (UTC)",
        narrowing: "not more",
        added_by: AddedBy::Anyone,
        needs_store: true,
        reads: rules::monthly::reads,
        narrows: Some(rules::monthly::narrows),
        holds: rules::monthly::holds,
    },
    Row {
        condition: Condition::PerCapability(MONTHLY_REQUESTS),
        grammar: "requests in a calendar month (UTC)",
        narrowing: "not more",
        added_by: AddedBy::Anyone,
        needs_store: true,
        reads: rules::monthly::reads,
        narrows: Some(rules::monthly::narrows),
        holds: rules::monthly::holds,
    },
];

/// Ends what is said of the end of a service or a capability.
const VALID_UNTIL: &str = "_valid_until";
/// Ends the conditions of [`Most::Spent`].
const MONTHLY_VOLUME: &str = "_monthly_volume_sats";
/// Ends the conditions of [`Most::Requests`].
const MONTHLY_REQUESTS: &str = "_monthly_requests";

const MSAT_PER_SAT: u64 = 1_000;

/// One request, as the caveats see it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The service it was routed to.
    pub service: &'a ServiceName,
    /// Its method.
    pub method: &'a http::Method,
    /// Its path without the query, normalised: the one the upstream gets.
    pub path: &'a str,
    /// Who asks, as far as trusted proxies tell.
    pub client: Option<IpAddr>,
    /// The present moment.
    pub now: Timestamp,
    /// Refuse conditions that farebox doesn't know, instead of skipping them.
    pub strict: bool,
    /// The capabilities that the request takes, by the seller's configuration. A token that lists capabilities of the
    /// service must list all of these, and allows nothing that takes none. `None`: nobody enforces capabilities here, as
    /// the reference gateway doesn't.
    pub capabilities: Option<&'a [&'a str]>,
    /// What the service asks for such a request today; `None` where that isn't known. Bound tokens have a ceiling for it.
    pub price: Option<Msat>,
    /// What such a request takes from credit today, or sets aside of it; `None` where that isn't known. A token that was
    /// sold as credit has its ceiling for this: the price of a service that sells credit is no price of any request.
    pub cost: Option<Msat>,
}

/// What the caveats say of a request that they allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// The terms it was sold on. `None` on a token that farebox didn't sell, or that somebody else's key signed.
    pub terms: Option<Terms>,
    /// The tier of the service; `None` when the token doesn't say which services it is for.
    pub tier: Option<u8>,
    /// The first moment at which it is no longer good.
    pub valid_until: Option<Timestamp>,
    /// The older token in whose place it was sold, which is good no longer.
    pub replaces: Option<IdentifierHash>,
    /// Whether it has limits that only the ledger can judge: then it allows nothing until [`limits`] have been asked there.
    pub is_limited: bool,
    /// Whether a holder has said something of a capability that the request doesn't take. It may be one that the service
    /// hasn't: then it allows nothing until [`check_capabilities`] has been asked.
    pub names_others: bool,
}

/// A limit by the calendar month (UTC), as it is sold. Printed, it is the caveat that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monthly {
    /// Of what.
    pub capability: CapabilityName,
    /// How much; above zero, and money in whole satoshi.
    pub most: Most,
}

/// A limit on what may be used in a calendar month (UTC), counted over all tokens made from one purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit<'a> {
    /// Which capability.
    pub capability: &'a str,
    /// How much of it.
    pub most: Most,
}

/// The most that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Most {
    /// So much money drawn down.
    Spent(Msat),
    /// So many requests answered.
    Requests(u64),
}

/// Whether the caveats of a token allow a request. The token's signature must have been verified before.
pub fn judge(macaroon: &Macaroon, asked: &Asked<'_>) -> Result<Judged, CaveatRefusal> {
    let asked = &Asked { price: price(macaroon, asked), ..*asked };
    let mut judged = Judged::default();
    let mut before = [None; TABLE.len()];
    for (at, caveat) in macaroon.caveats().enumerate() {
        let Some((name, value)) = caveat.split_once('=') else {
            // The text may be anything, so an error doesn't repeat it.
            match caveat.starts_with(OURS) || asked.strict {
                true => return Err(CaveatRefusal::Unknown { condition: "(without a value)".to_owned() }),
                false => continue,
            }
        };
        let mut is_known = false;
        for (index, row, subject) in find(name) {
            let wider = match row.condition {
                Condition::PerCapability(_) => {
                    let Some(taken) = asked.capabilities else { continue };
                    is_known = true;
                    if !taken.contains(&subject) {
                        // The terms come last of what the mint writes.
                        judged.names_others |=
                            judged.terms.is_some() && is_about(row, subject, asked.service);
                        continue;
                    }
                    // Any of several capabilities may have come before: it is looked for, instead of one place kept for each.
                    earlier(macaroon.caveats().take(at), name)
                }
                Condition::PerService(_) if subject != asked.service.as_str() => {
                    is_known = true;
                    continue;
                }
                Condition::PerService(_) | Condition::Exactly(_) => {
                    is_known = true;
                    before[index].replace(value)
                }
            };
            if !(row.reads)(value) {
                return Err(CaveatRefusal::Malformed { condition: shown(name) });
            }
            match (wider, row.narrows) {
                (Some(_), None) => return Err(CaveatRefusal::Repeated { condition: shown(name) }),
                (Some(wider), Some(narrows)) if !narrows(wider, value) => {
                    return Err(CaveatRefusal::Widened { condition: shown(name) });
                }
                _ => {}
            }
            (row.holds)(value, asked, &mut judged)?;
        }
        if !is_known && (name.starts_with(OURS) || asked.strict) {
            return Err(CaveatRefusal::Unknown { condition: shown(name) });
        }
    }
    Ok(judged)
}

/// Whether what holders have said of capabilities is said of some that there are. A limit or an end for one that the
/// token's service hasn't would bind nothing: it is mistyped, or the seller has renamed what it was for, and whoever lent the token
/// relied on it. Where the token is for several services it may be meant for another one of them. What the mint
/// wrote is not asked for: it narrows what is sold, and a seller who gives a capability up gives its limits up.
///
/// # Errors
///
/// When a condition is for a capability that the service hasn't.
pub fn check_capabilities(
    macaroon: &Macaroon,
    service: &ServiceName,
    has: impl Fn(&str) -> bool,
) -> Result<(), CaveatRefusal> {
    let is_for_one = macaroon
        .caveats()
        .filter_map(|caveat| caveat.strip_prefix("services="))
        .any(|list| !list.contains(','));
    if !is_for_one {
        return Ok(());
    }
    let of_holders = macaroon.caveats().skip_while(|caveat| !caveat.starts_with("farebox_terms="));
    for (name, _) in of_holders.filter_map(|caveat| caveat.split_once('=')) {
        let is_about_none =
            |(_, row, subject): (usize, &Row, &str)| is_about(row, subject, service) && !has(subject);
        if find(name).any(is_about_none) {
            return Err(CaveatRefusal::Unknown { condition: shown(name) });
        }
    }
    Ok(())
}

/// Whether a row's condition with this subject is about a capability. The end of a service is spelled like that of a capability.
fn is_about(row: &Row, subject: &str, service: &ServiceName) -> bool {
    matches!(row.condition, Condition::PerCapability(suffix) if suffix != VALID_UNTIL || subject != service.as_str())
}

/// The limits that a token sets for a request that takes these capabilities, and only a ledger can judge: all of them must be
/// kept. Ask for a token that [`judge`] has allowed.
pub fn limits<'a>(macaroon: &'a Macaroon, taken: &'a [&str]) -> impl Iterator<Item = Limit<'a>> {
    macaroon.caveats().filter_map(move |caveat| {
        let (name, value) = caveat.split_once('=')?;
        limit(name, value).filter(|limit| taken.contains(&limit.capability))
    })
}

/// The limit that a condition sets, if it sets one.
pub(crate) fn limit<'a>(name: &'a str, value: &str) -> Option<Limit<'a>> {
    let value = crate::terms::decimal(value)?;
    let (capability, most) = match name.strip_suffix(MONTHLY_VOLUME) {
        // More than there is limits nothing.
        Some(capability) => (capability, Most::Spent(Msat::from_sat(value).unwrap_or(Msat::MAX))),
        None => (name.strip_suffix(MONTHLY_REQUESTS)?, Most::Requests(value)),
    };
    Some(Limit { capability, most })
}

impl Monthly {
    /// `None` where no capability can have that name.
    pub(crate) fn of(limit: &Limit<'_>) -> Option<Self> {
        Some(Self { capability: limit.capability.parse().ok()?, most: limit.most })
    }

    /// Whether both are for one capability in one unit.
    pub fn is_like(&self, other: &Self) -> bool {
        self.capability == other.capability
            && std::mem::discriminant(&self.most) == std::mem::discriminant(&other.most)
    }

    /// Whether it can be written into a token, and allows anything.
    pub fn is_sellable(&self) -> bool {
        match self.most {
            Most::Spent(most) => {
                most > Msat::ZERO && most <= Msat::MAX && most.get().is_multiple_of(MSAT_PER_SAT)
            }
            Most::Requests(most) => most > 0,
        }
    }
}

impl fmt::Display for Monthly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (suffix, most) = match self.most {
            Most::Spent(most) => (MONTHLY_VOLUME, most.get() / MSAT_PER_SAT),
            Most::Requests(most) => (MONTHLY_REQUESTS, most),
        };
        write!(f, "{}{suffix}={most}", self.capability)
    }
}

/// What a ceiling is for. The mint writes the terms behind it, so they are looked for beforehand; those of a token that has
/// several refuse it anyway.
fn price(macaroon: &Macaroon, asked: &Asked<'_>) -> Option<Msat> {
    let terms = macaroon.caveats().find_map(|caveat| caveat.strip_prefix("farebox_terms="));
    let is_credit =
        terms.and_then(|terms| terms.parse::<Terms>().ok()).is_some_and(|of| of.offer == Offer::Credit);
    if is_credit { asked.cost } else { asked.price }
}

/// The last value of a condition among these caveats.
fn earlier<'a>(caveats: impl Iterator<Item = &'a str>, name: &str) -> Option<&'a str> {
    caveats
        .filter_map(|held| held.split_once('='))
        .filter(|(held, _)| *held == name)
        .last()
        .map(|(_, value)| value)
}

/// Whether a holder may append `caveat` to a token with the caveats `held` and get one that isn't dead.
pub(crate) fn check_added<'a>(held: impl Iterator<Item = &'a str>, caveat: &str) -> Result<(), CaveatError> {
    let (name, value) =
        caveat.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or(CaveatError::NotACaveat)?;
    if caveat.chars().any(char::is_control) {
        return Err(CaveatError::NotACaveat);
    }
    // Where several rows have a name, they agree in all that is asked here.
    let Some((_, row, _)) = find(name).next() else {
        return if name.starts_with(OURS) { Err(CaveatError::Unknown(shown(name))) } else { Ok(()) };
    };
    let Some(narrows) = row.narrows.filter(|_| row.added_by != AddedBy::Mint) else {
        return Err(CaveatError::MintOnly(shown(name)));
    };
    if !(row.reads)(value) {
        return Err(CaveatError::Malformed { condition: shown(name), grammar: row.grammar });
    }
    match earlier(held, name) {
        Some(wider) if !(row.reads)(wider) || !narrows(wider, value) => Err(CaveatError::Widens(shown(name))),
        _ => Ok(()),
    }
}

/// Our namespace.
const OURS: &str = "farebox_";

/// The rows that are about a condition, and the service or capability that it names.
fn find(name: &str) -> impl Iterator<Item = (usize, &'static Row, &str)> {
    static ROWS: [Row; TABLE.len()] = TABLE;
    ROWS.iter().enumerate().filter_map(move |(index, row)| match row.condition {
        Condition::Exactly(word) => (name == word).then_some((index, row, "")),
        Condition::PerService(suffix) | Condition::PerCapability(suffix) => {
            let subject = name.strip_suffix(suffix).filter(|subject| ServiceName::allows(subject))?;
            Some((index, row, subject))
        }
    })
}

/// A condition's name, fit for a log: a holder may have put anything there.
fn shown(name: &str) -> String {
    name.chars().take(64).flat_map(char::escape_debug).collect()
}
