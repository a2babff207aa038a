//! What a token is bound to where the price varies by request: one method, one path, and the most that a use may cost.
//!
//! Without it, the cheapest path would buy the dearest use. The bound is signed into the token beside its terms
//! (`farebox_bound=`); a holder may add one too, or a narrower one, for somebody who is to spend less. Like the terms it
//! is read in one canonical spelling only.

use std::{fmt, str::FromStr};

use crate::{Msat, caveat, terms::decimal};

/// One request and its price ceiling, as `POST;msat=2500;/v1/chat`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bound {
    method: http::Method,
    ceiling: Msat,
    path: String,
}

/// A text that isn't the canonical spelling of a bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` binds nothing; write a method, a ceiling and a normalised path, like `POST;msat=2500;/v1/chat`",
    .0.escape_debug()
)]
pub struct UnknownBound(pub String);

/// The parts of a bound, where they lie: a caveat is read without copying.
pub(crate) struct Parts<'a> {
    pub(crate) method: &'a str,
    pub(crate) ceiling: Msat,
    pub(crate) path: &'a str,
}

impl Bound {
    /// Bound to requests with this method and exactly this path (normalised, without query), each costing no more than
    /// `ceiling`.
    ///
    /// # Errors
    ///
    /// When no such caveat could be read again: a path that isn't in normal form, a ceiling of nothing or of more than
    /// there is, a method that isn't made of capital letters.
    pub fn new(method: &http::Method, path: &str, ceiling: Msat) -> Result<Self, UnknownBound> {
        format!("{method};msat={};{path}", ceiling.get()).parse()
    }

    /// The method.
    pub fn method(&self) -> &http::Method {
        &self.method
    }

    /// The path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The most that a use may cost.
    pub fn ceiling(&self) -> Msat {
        self.ceiling
    }
}

impl<'a> Parts<'a> {
    /// The path stands last since it may hold anything that the others can't.
    pub(crate) fn read(text: &'a str) -> Option<Self> {
        let (method, rest) = text.split_once(";msat=")?;
        let (ceiling, path) = rest.split_once(';')?;
        let ceiling = decimal(ceiling).map(Msat::new)?;
        let sane = caveat::is_method(method)
            && (Msat::new(1)..=Msat::MAX).contains(&ceiling)
            && caveat::is_path(path);
        sane.then_some(Self { method, ceiling, path })
    }
}

impl FromStr for Bound {
    type Err = UnknownBound;

    fn from_str(text: &str) -> Result<Self, UnknownBound> {
        let read = || {
            let Parts { method, ceiling, path } = Parts::read(text)?;
            Some(Self { method: method.parse().ok()?, ceiling, path: path.to_owned() })
        };
        read().ok_or_else(|| UnknownBound(text.to_owned()))
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, ceiling, path } = self;
        write!(f, "{method};msat={};{path}", ceiling.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_has_one_spelling() {
        for text in ["GET;msat=1;/", "POST;msat=2500;/v1/chat", "M-SEARCH;msat=7;/a;msat=9;/b"] {
            assert_eq!(text.parse::<Bound>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_would_never_match_binds_nothing() {
        for text in [
            "",
            "GET",
            "GET;msat=1",
            "GET;msat=1;",
            ";msat=1;/",
            "get;msat=1;/",
            "GET,POST;msat=1;/",
            "GET;msat=0;/",
            "GET;msat=01;/",
            "GET;msat=+1;/",
            "GET;msat=2100000000000000001;/",
            "GET;msat=1;a",
            "GET;msat=1;/a/../b",
            "GET;msat=1;//a",
            "GET;msat=1;/a?b",
            "GET;msat=1;/a%2Fb",
            "GET;msat=1;/a b",
            "GET;/;msat=1",
        ] {
            assert!(text.parse::<Bound>().is_err(), "{text:?}");
        }
        assert!(Bound::new(&http::Method::GET, "/a/../b", Msat::new(1)).is_err());
        assert!(Bound::new(&http::Method::GET, "/a", Msat::ZERO).is_err());
    }
}
