//! The Bitcoin network a token was sold on. Test coins must buy nothing on mainnet, so it is part of every root key.

use std::{fmt, str::FromStr};

/// A Bitcoin network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// Real money.
    Mainnet,
    /// The public test network (testnet3).
    Testnet,
    /// The public signed test network.
    Signet,
    /// A private chain, such as the simulated one.
    Regtest,
}

/// A text that names no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a network; write `mainnet`, `testnet`, `signet` or `regtest`")]
pub struct UnknownNetwork(pub String);

impl Network {
    /// The name in configuration files and in the derivation of root keys: never change one.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mainnet => "mainnet",
            Self::Testnet => "testnet",
            Self::Signet => "signet",
            Self::Regtest => "regtest",
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Network {
    type Err = UnknownNetwork;

    fn from_str(text: &str) -> Result<Self, UnknownNetwork> {
        [Self::Mainnet, Self::Testnet, Self::Signet, Self::Regtest]
            .into_iter()
            .find(|network| network.name() == text)
            .ok_or_else(|| UnknownNetwork(text.to_owned()))
    }
}
