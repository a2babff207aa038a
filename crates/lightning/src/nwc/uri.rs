//! The connection URI: whose wallet it is, by which relays it is reached, and the key that may spend. The whole text is a
//! secret; no message about it repeats a part.

use std::fmt;

use nostr::{Keys, PublicKey};
use reqwest::Url;

use crate::phoenixd::Secret;

/// How many relays one URI may name.
const RELAYS_MAX: usize = 8;

/// Why a text is no connection URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no connection of a wallet: {0}; copy the whole `nostr+walletconnect://…` that the wallet shows"
)]
pub struct UriError(&'static str);

/// A connection to a wallet, read.
pub(super) struct Connection {
    pub(super) wallet: PublicKey,
    /// Ours, for this connection alone.
    pub(super) keys: Keys,
    /// `ws://` or `wss://`, each once.
    pub(super) relays: Vec<Url>,
}

impl Connection {
    pub(super) fn read(uri: &Secret) -> Result<Self, UriError> {
        let text = uri.expose().trim();
        let rest = ["nostr+walletconnect:", "nostrwalletconnect:"].iter().find_map(|s| text.strip_prefix(s));
        let rest = rest.ok_or(UriError("it does not begin with `nostr+walletconnect:`"))?;
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (wallet, query) = rest.split_once('?').ok_or(UriError("it has neither relay nor secret"))?;
        let wallet = PublicKey::from_hex(wallet.trim_end_matches('/'))
            .map_err(|_| UriError("the wallet's key is not one"))?;
        // Only to take the query apart: the scheme of the URI itself is none that has rules for it.
        let query = Url::parse(&format!("nwc:?{query}")).map_err(|_| UriError("its query can't be read"))?;
        let (mut relays, mut keys) = (Vec::new(), None);
        for (name, value) in query.query_pairs() {
            match &*name {
                "relay" => {
                    let relay = relay(&value)?;
                    if !relays.contains(&relay) {
                        relays.push(relay);
                    }
                }
                "secret" => {
                    let key = nostr::SecretKey::from_hex(&value);
                    keys = Some(Keys::new(key.map_err(|_| UriError("its secret is no key"))?));
                }
                _ => {}
            }
        }
        if relays.is_empty() || relays.len() > RELAYS_MAX {
            return Err(UriError("it names no relay, or more than eight"));
        }
        Ok(Self { wallet, keys: keys.ok_or(UriError("it has no secret"))?, relays })
    }
}

fn relay(text: &str) -> Result<Url, UriError> {
    let wrong = UriError("a relay in it is no address of the kind `wss://host`");
    let relay = Url::parse(text).map_err(|_| wrong)?;
    let is_plain = relay.username().is_empty() && relay.password().is_none();
    let is_relay = matches!(relay.scheme(), "ws" | "wss") && relay.host().is_some() && is_plain;
    if is_relay { Ok(relay) } else { Err(wrong) }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("wallet", &self.wallet.to_hex()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    const SECRET: &str = "4242424242424242424242424242424242424242424242424242424242424242";

    fn read(text: &str) -> Result<Connection, UriError> {
        Connection::read(&Secret::new(text))
    }

    #[test]
    fn it_is_read_in_the_spellings_that_wallets_give_out() {
        for head in ["nostr+walletconnect://", "nostr+walletconnect:", "nostrwalletconnect://"] {
            let text = format!(
                "{head}{KEY}?relay=wss%3A%2F%2Frelay.example%2Fv1&relay=ws://[::1]:7000&secret={SECRET}&lud16=me@shop.example\n"
            );
            let connection = read(&text).unwrap();
            assert_eq!(connection.wallet.to_hex(), KEY);
            let relays: Vec<_> = connection.relays.iter().map(Url::as_str).collect();
            assert_eq!(relays, ["wss://relay.example/v1", "ws://[::1]:7000/"]);
        }
    }

    #[test]
    fn what_is_none_is_refused_and_not_repeated() {
        let relay = "relay=wss://relay.example";
        for text in [
            String::new(),
            format!("https://{KEY}?{relay}&secret={SECRET}"),
            format!("nostr+walletconnect://{KEY}"),
            format!("nostr+walletconnect://{SECRET}{SECRET}?{relay}&secret={SECRET}"),
            format!("nostr+walletconnect://{KEY}?secret={SECRET}"),
            format!("nostr+walletconnect://{KEY}?{relay}"),
            format!("nostr+walletconnect://{KEY}?{relay}&secret={}", &SECRET[1..]),
            format!("nostr+walletconnect://{KEY}?relay=https://relay.example&secret={SECRET}"),
            format!("nostr+walletconnect://{KEY}?relay=wss://{SECRET}@relay.example&secret={SECRET}"),
        ] {
            let said = read(&text).unwrap_err().to_string();
            assert!(!said.contains(&SECRET[1..]) && !said.contains(KEY), "{said}");
        }
        let shown = format!("{:?}", read(&format!("nostr+walletconnect:{KEY}?{relay}&secret={SECRET}")));
        assert!(!shown.contains(SECRET), "{shown}");
    }
}
