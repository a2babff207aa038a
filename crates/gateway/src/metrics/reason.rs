//! Why a request was answered as it was, as a number: what the metrics count by, without looking anything up.

use farebox_paywall::Code;

use crate::proxy::failure::Failure;

/// Why a request was answered as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The paywall said so.
    Decided(Code),
    /// The gateway could not do it, or would not; one of [`Failure::CODES`].
    Failed(&'static str),
    /// The seller was asked, not a service: for money back, or for a receipt.
    Desk,
    /// The client went away before anything was decided.
    ClientGone,
}

const FAILED: usize = Code::ALL.len();
const DESK: usize = FAILED + Failure::CODES.len();
const GONE: usize = DESK + 1;

impl Reason {
    /// How many there are.
    pub(super) const COUNT: usize = GONE + 1;

    /// The word, in the log and in the metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Decided(code) => code.as_str(),
            Self::Failed(code) => code,
            Self::Desk => "desk",
            Self::ClientGone => "client_gone",
        }
    }

    /// Its number, below [`Self::COUNT`].
    pub(super) fn index(self) -> usize {
        match self {
            Self::Decided(code) => code.index(),
            Self::Failed(code) => FAILED + failure_index(code),
            Self::Desk => DESK,
            Self::ClientGone => GONE,
        }
    }

    /// All of them, in the order of their numbers.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let decided = Code::ALL.into_iter().map(Self::Decided);
        decided.chain(Failure::CODES.into_iter().map(Self::Failed)).chain([Self::Desk, Self::ClientGone])
    }
}

/// The place of a failure's code. Failures are rare, and their codes few.
pub(super) fn failure_index(code: &'static str) -> usize {
    let found = Failure::CODES.iter().position(|known| *known == code);
    debug_assert!(found.is_some(), "`{code}` is missing in `Failure::CODES`");
    // Whatever has been forgotten is our defect, and counted as one.
    found.unwrap_or(Failure::CODES.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_place_of_its_own() {
        let places: Vec<usize> = Reason::all().map(Reason::index).collect();
        assert_eq!(places, (0..Reason::COUNT).collect::<Vec<_>>());
    }

    /// Of everything in quotes there, the codes are what has no blank, digit or hyphen.
    #[test]
    fn no_failure_has_been_forgotten() {
        let source = include_str!("../proxy/failure.rs");
        let (_, table) = source.split_once("const fn verdict(").expect("the table");
        let (table, _) = table.split_once("\n    }\n").expect("its end");
        let mut codes: Vec<_> = table.split('"').skip(1).step_by(2).collect();
        codes.retain(|text| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
        codes.sort_unstable();
        codes.dedup();
        let mut known = Failure::CODES.to_vec();
        known.sort_unstable();
        assert_eq!(known, codes);
        assert_eq!(Failure::CODES.last(), Some(&"internal"), "what stands for one that was forgotten");
    }
}
