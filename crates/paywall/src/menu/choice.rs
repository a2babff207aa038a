//! How a buyer chooses: by a header or by a parameter of the query, both called `farebox-offer`.
//!
//! Both are for us. What they name is looked up in the menu and nowhere else, and neither is passed on: an upstream that is
//! strict about its parameters need not know that it is sold.

use http::{HeaderMap, uri::PathAndQuery};

use super::{OFFER_HEADER, UnknownOffer};

/// The offer that a buyer names, in the header or in the query.
///
/// # Errors
///
/// When it names two, or something that is no name.
pub fn choice<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Result<Option<&'a str>, UnknownOffer> {
    let mut chosen: Option<&'a str> = None;
    let header = headers.get_all(OFFER_HEADER).into_iter().map(|value| value.to_str().map_err(|_| "?"));
    let query = query.unwrap_or_default().split('&').filter_map(|pair| named(pair).map(Ok));
    for named in header.chain(query) {
        let named = named.map_err(|text: &str| UnknownOffer(text.to_owned()))?;
        if chosen.is_some_and(|earlier| earlier != named) {
            return Err(UnknownOffer(named.chars().take(64).collect()));
        }
        chosen = Some(named);
    }
    Ok(chosen)
}

/// What a parameter of a query names, if it is the one that chooses.
fn named(parameter: &str) -> Option<&str> {
    let (name, value) = parameter.split_once('=')?;
    (name == OFFER_HEADER.as_str()).then_some(value)
}

/// The target without the parameter that chooses; none where it has none, which is nearly always. The other parameters stay
/// as they are, byte by byte and in their order.
pub fn without_choice(target: &PathAndQuery) -> Option<PathAndQuery> {
    let query = target.query().filter(|query| query.contains(OFFER_HEADER.as_str()))?;
    let rest = others(query)?;
    let path = target.path();
    let whole = if rest.is_empty() { path.to_owned() } else { format!("{path}?{rest}") };
    PathAndQuery::try_from(whole).ok()
}

/// The query without the parameter that chooses; none where it has none.
pub(crate) fn others(query: &str) -> Option<String> {
    let rest: Vec<&str> = query.split('&').filter(|parameter| named(parameter).is_none()).collect();
    (rest.len() < query.split('&').count()).then(|| rest.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_goes_no_further_and_everything_else_does() {
        for (target, want) in [
            ("/a", None),
            ("/a?x=1", None),
            ("/a?farebox-offers=large&x=farebox-offer", None),
            ("/a?farebox-offer", None),
            ("/a?farebox-offer=large", Some("/a")),
            ("/a?x=%20+&farebox-offer=large&&y", Some("/a?x=%20+&&y")),
            ("/a?farebox-offer=large&farebox-offer=", Some("/a")),
        ] {
            let target: PathAndQuery = target.parse().unwrap();
            assert_eq!(without_choice(&target).as_ref().map(PathAndQuery::as_str), want, "{target}");
        }
    }
}
