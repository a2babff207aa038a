//! The names that a token lists: of services (`services=`), and of what may be done with one (`<service>_capabilities=`).

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// A service's name: 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit, and not with `farebox`.
///
/// A `:` or `,` would let one name pass for several in `services=`; a name in our caveat namespace would let one service's
/// condition pass for ours.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(Arc<str>);

/// A text that can't name a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` cannot name a service; use 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit and not with `farebox`",
    .0.escape_debug()
)]
pub struct BadServiceName(pub String);

/// The name of a capability: something that may be done with a service. Made of what names of services are made of, since
/// both begin conditions (`<capability>_valid_until=`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CapabilityName(Arc<str>);

/// A text that can't name a capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` cannot name a capability; use 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit and not with `farebox`",
    .0.escape_debug()
)]
pub struct BadCapabilityName(pub String);

impl CapabilityName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CapabilityName {
    type Err = BadCapabilityName;

    fn from_str(text: &str) -> Result<Self, BadCapabilityName> {
        if ServiceName::allows(text) {
            Ok(Self(text.into()))
        } else {
            Err(BadCapabilityName(text.to_owned()))
        }
    }
}

impl fmt::Display for CapabilityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CapabilityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapabilityName({self})")
    }
}

impl ServiceName {
    /// The longest name, in bytes.
    pub const LEN_MAX: usize = 64;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `text` may name a service.
    pub(crate) fn allows(text: &str) -> bool {
        text.len() <= Self::LEN_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && !text.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("farebox"))
    }
}

impl FromStr for ServiceName {
    type Err = BadServiceName;

    fn from_str(text: &str) -> Result<Self, BadServiceName> {
        if Self::allows(text) { Ok(Self(text.into())) } else { Err(BadServiceName(text.to_owned())) }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceName({self})")
    }
}

impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for ServiceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_word_of_its_own() {
        for name in ["a", "weather", "Weather-2.v1_x", "0", &"x".repeat(64)] {
            assert_eq!(name.parse::<ServiceName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_name_that_could_pass_for_another_is_refused() {
        for name in [
            "",
            "a:0",
            "a,b",
            "a=b",
            " a",
            "-a",
            ".",
            "_a",
            "é",
            "a\n",
            "farebox",
            "Farebox_x",
            &"x".repeat(65),
        ] {
            assert!(name.parse::<ServiceName>().is_err(), "{name:?}");
            assert!(name.parse::<CapabilityName>().is_err(), "{name:?}");
        }
    }
}
