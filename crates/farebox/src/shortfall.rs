//! What a seller says of credentials that are good and were not enough, for people and for programs: which, why, and when to
//! come back. It is the seller's word; the names in it have been read as names, so nothing in them obeys a terminal.

use farebox_client::{MonthReached, Short, Shortfall, Unit, UnitsLeft};
use farebox_protocol::Msat;
use serde_json::{Value, json};

use crate::output::utc;

/// One of them in a sentence, without its end.
pub(crate) fn sentence(shortfall: &Shortfall) -> String {
    let hash = shortfall.payment_hash;
    let of = match &shortfall.of {
        Short::Month(Some(MonthReached { capability, unit, most, used, ends_at, .. })) => format!(
            "has used {} of the {} of `{capability}` that it may in a month, and is good again from {}",
            counted(*unit, *used),
            counted(*unit, *most),
            utc(*ends_at)
        ),
        Short::Month(_) => "has reached its limit for this month, and is good again in the next".to_owned(),
        Short::Units(Some(UnitsLeft { unit, left, needed, .. })) => format!(
            "has {} left, of which this request needs {}; it still pays for those that take less",
            counted(*unit, *left),
            counted(*unit, *needed)
        ),
        _ => "has less left than this request needs; it still pays for those that take less".to_owned(),
    };
    format!("what payment {hash} bought {of}, as the seller says")
}

/// One of them for a program.
pub(crate) fn fields(shortfall: &Shortfall) -> Value {
    let mut fields =
        json!({ "payment_hash": shortfall.payment_hash.to_string(), "code": shortfall.of.code() });
    match &shortfall.of {
        Short::Month(Some(MonthReached { capability, unit, most, used, needed, ends_at, .. })) => {
            fields["capability"] = capability.as_str().into();
            fields["unit"] = unit.as_str().into();
            fields["most"] = (*most).into();
            fields["used"] = (*used).into();
            fields["needed"] = (*needed).into();
            fields["ends_at"] = ends_at.secs().into();
        }
        Short::Units(Some(UnitsLeft { unit, left, needed, .. })) => {
            fields["unit"] = unit.as_str().into();
            fields["left"] = (*left).into();
            fields["needed"] = (*needed).into();
        }
        _ => {}
    }
    fields
}

/// So much of it, like `1 request` or `21 sat`.
pub(crate) fn counted(unit: Unit, count: u64) -> String {
    match unit {
        Unit::Msat => Msat::new(count).to_string(),
        _ if count == 1 => "1 request".to_owned(),
        _ => format!("{count} requests"),
    }
}
