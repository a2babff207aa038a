//! `nwc:` of a `wallet.yaml`: a wallet behind Nostr relays. It pays and is not sold through, so it is none of the backends of
//! a seller's `lightning:`.

use std::{sync::Arc, time::Duration};

use farebox_protocol::{Msat, Network};
use http::Uri;
use serde::{Deserialize, Deserializer, de};

use super::{ConfigProblem, ConnectError, Password, Places, call_timeout, duration};
use crate::{
    FeeControl,
    clock::SystemClock,
    nwc::{FEE_WORST, Nwc, NwcConfig},
};

/// A wallet by Nostr Wallet Connect (NIP-47): Alby Hub, Primal, coinos, Zeus and others.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NwcSettings {
    /// The connection, `nostr+walletconnect://…`, as the wallet shows it. Whoever has it can spend, so its file must be
    /// readable by you alone. Give it a budget in the wallet.
    pub uri: Password,
    /// The network: `mainnet`, `testnet`, `signet` or `regtest`. A wallet on another one is refused. Default: what the wallet
    /// tells; needed where it tells nothing.
    #[serde(default, deserialize_with = "network")]
    pub network: Option<Network>,
    /// The most that a payment costs on top of its amount. The wallet can't be given a limit, so this is kept aside for each
    /// payment, and one for which the limits leave less is not made; a wallet that takes more is not used again until you have
    /// seen it (`farebox budget`). Default: `0.5% + 5sat`.
    #[serde(default = "fee_worst", deserialize_with = "fee")]
    pub fee_worst: FeeControl,
    /// Whether the wallet is known to refuse an invoice that it has paid or is paying. Then an order of which nobody knows
    /// whether it arrived is given again. Default: `false`.
    #[serde(default)]
    pub pays_once: bool,
    /// A SOCKS5 proxy by which relays are reached, which also finds the addresses of their names: `socks5h://127.0.0.1:9050`
    /// is Tor. Default: none.
    #[serde(default)]
    pub proxy: Option<String>,
    /// How long any call but a payment may take, from `100ms` to `5m`. Default: `10s`.
    #[serde(default = "call_timeout", deserialize_with = "duration")]
    pub call_timeout: Duration,
}

impl NwcSettings {
    /// Finds what is wrong, without reading the secret or talking to anyone.
    pub fn check(&self) -> Result<(), ConfigProblem> {
        super::check_call_timeout(self.call_timeout)?;
        match &self.proxy {
            Some(proxy) if socks(proxy).is_none() => {
                super::scheme("proxy", proxy, &["socks5h://"], "`socks5h://`")?;
                Err(ConfigProblem::Address { key: "proxy", value: "socks5h://…".to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Connects to the wallet, which must be there.
    pub async fn connect(&self, places: Places<'_>) -> Result<Nwc, ConnectError> {
        let uri = self.uri.read_private(places)?;
        let config = NwcConfig {
            network: self.network,
            fee_worst: self.fee_worst.clone(),
            refuses_paid_hash: self.pays_once,
            proxy: self.proxy.as_deref().and_then(socks),
            timeout: self.call_timeout,
            ..NwcConfig::new(uri)
        };
        Ok(Nwc::connect(config, Arc::new(SystemClock)).await?)
    }
}

/// Host and port of a proxy, in the form in which it is dialled.
fn socks(proxy: &str) -> Option<Uri> {
    let address = proxy.strip_prefix("socks5h://")?.trim_end_matches('/');
    let uri: Uri = format!("http://{address}").parse().ok()?;
    uri.port()?;
    let is_plain = uri.path() == "/" && uri.query().is_none() && !address.contains('@');
    is_plain.then_some(uri)
}

fn network<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Network>, D::Error> {
    super::network(deserializer).map(Some)
}

fn fee_worst() -> FeeControl {
    FEE_WORST
}

/// `0.5% + 5sat`, or one of the two.
fn fee<'de, D: Deserializer<'de>>(deserializer: D) -> Result<FeeControl, D::Error> {
    let text = String::deserialize(deserializer)?;
    read_fee(&text).ok_or_else(|| {
        de::Error::custom(format!(
            "`{text}` is not a fee; write something like `0.5% + 5sat`, `10sat` or `1%`"
        ))
    })
}

fn read_fee(text: &str) -> Option<FeeControl> {
    let (mut share, mut base): (Option<u64>, Option<Msat>) = (None, None);
    for part in text.split('+').map(str::trim) {
        let is_second = match part.strip_suffix('%') {
            Some(percent) => share.replace(millionths(percent.trim())?).is_some(),
            None => base.replace(part.parse().ok()?).is_some(),
        };
        if is_second {
            return None;
        }
    }
    let (base, parts_per_million) = (base.unwrap_or_default(), share.unwrap_or_default());
    Some(FeeControl::WorstCase { base, parts_per_million })
}

/// Of a percentage of at most 100, with at most four places.
fn millionths(percent: &str) -> Option<u64> {
    let (whole, places) = percent.split_once('.').unwrap_or((percent, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(whole) || !is_digits(places) || places.len() > 4 {
        return None;
    }
    let millionths = format!("{whole}{places:0<4}").parse().ok()?;
    (millionths <= 1_000_000).then_some(millionths)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(more: serde_json::Value) -> Result<NwcSettings, String> {
        let mut settings = json!({ "uri": { "env": "NWC_URI" } });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let settings: NwcSettings = serde_json::from_value(settings).map_err(|error| error.to_string())?;
        settings.check().map(|()| settings).map_err(|problem| problem.to_string())
    }

    #[test]
    fn a_fee_is_a_share_and_an_amount() {
        for (text, want) in [
            ("0.5% + 5sat", Some((5_000, 5_000))),
            ("5sat+0.5 %", Some((5_000, 5_000))),
            ("10sat", Some((10_000, 0))),
            ("1%", Some((0, 10_000))),
            ("0.0001%", Some((0, 1))),
            ("100% + 1msat", Some((1, 1_000_000))),
            ("101%", None),
            ("0.00001%", None),
            ("1% + 1%", None),
            ("5", None),
            ("-1%", None),
            ("", None),
        ] {
            let want = want.map(|(base, parts_per_million)| FeeControl::WorstCase {
                base: Msat::new(base),
                parts_per_million,
            });
            assert_eq!(read_fee(text), want, "{text}");
        }
        let usual = read(json!({})).unwrap().fee_worst;
        assert_eq!(Some(usual), read_fee("0.5% + 5sat"));
        assert!(read(json!({ "fee-worst": "much" })).unwrap_err().contains("`0.5% + 5sat`"));
    }

    #[test]
    fn what_could_not_work_is_refused() {
        for (more, why) in [
            (json!({ "relay": "wss://x" }), "unknown field `relay`"),
            (json!({ "network": "main" }), "`main` is not a network"),
            (json!({ "call-timeout": "1ms" }), "`call-timeout` is 1 ms"),
            (json!({ "proxy": "socks5://127.0.0.1:9050" }), "doesn't begin with one of `socks5h://`"),
            (json!({ "proxy": "socks5h://127.0.0.1" }), "is not a host and a port"),
            (json!({ "proxy": "socks5h://me:hunter2@127.0.0.1:9050" }), "is not a host and a port"),
        ] {
            let said = read(more).unwrap_err();
            assert!(said.contains(why) && !said.contains("hunter2"), "{said}");
        }
        assert!(read(json!({ "proxy": "socks5h://[::1]:9050", "network": "signet" })).is_ok());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_connection_that_others_could_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nwc.uri");
        std::fs::write(&file, "nostr+walletconnect://x").unwrap();
        let places = Places { config: dir.path(), state: dir.path() };
        let settings = read(json!({ "uri": { "file": "nwc.uri" } })).unwrap();
        for (mode, why) in [(0o644, "chmod 600"), (0o640, "chmod 600"), (0o600, "no connection of a wallet")]
        {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let said = settings.connect(places).await.unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
    }
}
