//! Which servers may be called for somebody who could be talked into anything: with [`Reach::Public`], those that everybody can
//! reach and no others.
//!
//! The check is made on the very addresses that are connected to next, by the resolver that hands them out, so a name that
//! means something else a moment later changes nothing. A host that is written as a number never comes by a resolver; it is
//! judged as it stands, in the one spelling that is left of all when the address has been parsed. Through a proxy that looks
//! names up itself (`http://`, `socks5h://`) only what the name says can be judged: what such a proxy can reach is its owner's
//! business.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use farebox_lightning::lnaddress::public::{Names, is_public};
use reqwest::Url;
use reqwest::dns::{Name, Resolve, Resolving};

use super::Proxy;

/// Names that mean this machine or the network around it, wherever they are looked up.
const NEARBY: [&str; 5] = ["localhost", "local", "internal", "lan", "home.arpa"];

/// Which servers may be called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Any: a person has written the address, or agreed to it.
    #[default]
    Anywhere,
    /// Those on the public internet only: whoever wrote the address may want one that only this machine can reach.
    Public,
}

/// An address that is not everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has an address that is not public")]
pub(super) struct NotPublic;

/// Finds addresses, and keeps those back that may not be called.
pub(super) struct Finder {
    reach: Reach,
    names: Arc<dyn Names>,
    /// The hosts of proxies, which may be anywhere.
    proxies: Vec<String>,
}

impl Finder {
    pub(super) fn new(reach: Reach, names: Arc<dyn Names>, proxy: &Proxy) -> Self {
        let proxies = match proxy {
            Proxy::None => Vec::new(),
            Proxy::Through(url) => host_of(url).into_iter().collect(),
            Proxy::Environment => ["http_proxy", "https_proxy", "all_proxy"]
                .iter()
                .flat_map(|name| [std::env::var(name), std::env::var(name.to_uppercase())])
                .filter_map(|value| host_of(&value.ok()?))
                .collect(),
        };
        Self { reach, names, proxies }
    }

    /// Whether `url` may be asked, as far as that can be told before its name is looked up.
    pub(super) fn may_ask(&self, url: &Url) -> bool {
        if self.reach == Reach::Anywhere {
            return true;
        }
        let Some(host) = url.host_str() else { return false };
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            return is_public(&address);
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        let is_nearby = NEARBY.iter().any(|suffix| {
            name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        });
        // A name without a dot is one of the network at hand, and that of a proxy would be looked up unchecked.
        name.contains('.') && !is_nearby && !self.proxies.iter().any(|proxy| proxy == name)
    }
}

/// The host of a proxy, as it is looked up.
fn host_of(proxy: &str) -> Option<String> {
    let url = Url::parse(proxy).or_else(|_| Url::parse(&format!("http://{proxy}"))).ok()?;
    url.host_str().map(str::to_owned)
}

impl Resolve for Finder {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let must_be_public = self.reach == Reach::Public && !self.proxies.contains(&host);
        let names = Arc::clone(&self.names);
        Box::pin(async move {
            let addresses = names.look_up(&host).await?;
            // One that isn't public among others that are is no slip.
            if must_be_public && !addresses.iter().all(is_public) {
                return Err(NotPublic.into());
            }
            let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

/// Whether this is what kept a request from being sent.
pub(super) fn is_not_public(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<NotPublic>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use farebox_lightning::lnaddress::public::SystemNames;

    fn finder(proxy: &Proxy) -> Finder {
        Finder::new(Reach::Public, Arc::new(SystemNames), proxy)
    }

    #[track_caller]
    fn check(finder: &Finder, url: &str, want: bool) {
        assert_eq!(finder.may_ask(&Url::parse(url).unwrap()), want, "{url}");
    }

    #[test]
    fn a_number_is_judged_in_whichever_spelling_it_comes() {
        let finder = finder(&Proxy::None);
        for private in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0177.0.0.1/",
            "http://0x7f.1/",
            "http://127.0.0.1./",
            "http://%31%32%37.0.0.1/",
            "http://１２７.０.０.１/",
            "http://0/",
            "http://10.1.2.3/",
            "http://192.168.0.1:8080/",
            "http://172.16.0.1/",
            "http://100.64.0.1/",
            "http://169.254.169.254/latest/meta-data/",
            "http://[::1]/",
            "http://[::]/",
            "http://[0:0:0:0:0:0:0:1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[::127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[fe80::1]/",
            "http://[fd00::1]/",
        ] {
            check(&finder, private, false);
        }
        for public in
            ["http://1.1.1.1/", "http://16843009/", "https://[2606:4700::1]/", "http://[::ffff:1.1.1.1]/"]
        {
            check(&finder, public, true);
        }
    }

    #[test]
    fn a_name_that_means_something_near_is_not_even_looked_up() {
        let finder = finder(&Proxy::Through("socks5h://tor.example:9050".to_owned()));
        for near in [
            "http://localhost/",
            "http://LOCALHOST./",
            "http://a.localhost/",
            "https://printer.local/",
            "https://metadata.google.internal/",
            "https://router/",
            "https://nas.home.arpa./",
            "http://tor.example/",
        ] {
            check(&finder, near, false);
        }
        for public in ["https://example.com/", "https://notlocalhost.example/", "https://my-local.example/"] {
            check(&finder, public, true);
        }
    }

    #[test]
    fn who_may_go_anywhere_may_go_home() {
        let finder = Finder::new(Reach::Anywhere, Arc::new(SystemNames), &Proxy::None);
        check(&finder, "http://127.0.0.1/", true);
        check(&finder, "http://localhost/", true);
    }
}
