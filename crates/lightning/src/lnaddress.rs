//! Lightning addresses (LUD-16): from `name@host` to an invoice, asked of a server that a stranger has named.
//!
//! Whoever may name a server may try to make us call one that only we can reach. So a host must have public addresses
//! and no others, these are the ones that are connected to ([`public`]), and an address written as a number is no host. It is
//! asked over HTTPS, twice at most, follows no redirect and no proxy, and reads no more than a few kilobytes in a few
//! seconds. What comes back is checked for its amount; whom it pays is the business of who gave the address.

pub mod public;

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use farebox_protocol::{Invoice, Msat};
use futures_util::future::BoxFuture;
use reqwest::{Client, Url, redirect};
use serde::Deserialize;
use tokio::time;

use public::{Names, NotPublic, PublicOnly, SystemNames};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long one of the two questions may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of a stranger's words is repeated.
const WORDS_MAX: usize = 120;

/// A Lightning address, `name@host`.
#[derive(Clone, PartialEq, Eq)]
pub struct LightningAddress {
    name: String,
    /// The host, with a port where one was written.
    host: String,
}

/// Why an address leads to no invoice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Not written like one.
    #[error("this is no Lightning address; write it like `name@example.com`")]
    NotAnAddress,
    /// A host that must not be called.
    #[error("`{0}` is not called: it must be a host name with public addresses only, over HTTPS")]
    Private(String),
    /// No answer.
    #[error("`{0}` could not be asked")]
    Unreachable(String),
    /// It says no.
    #[error("the server of this address refuses: `{0}`")]
    Refused(String),
    /// It takes other amounts.
    #[error("this address takes from {least} to {most}")]
    Amount {
        /// The least.
        least: Msat,
        /// The most.
        most: Msat,
    },
    /// An answer that makes no sense.
    #[error("the server of this address answers wrongly: {0}")]
    Wrong(&'static str),
}

/// Who finds out where an address is paid.
pub trait Resolve: Send + Sync {
    /// An invoice over exactly this amount.
    fn invoice<'a>(
        &'a self,
        address: &'a LightningAddress,
        amount: Msat,
    ) -> BoxFuture<'a, Result<Invoice, AddressError>>;
}

/// Asks the servers of addresses.
pub struct AddressBook {
    client: Client,
    private_hosts: Arc<[String]>,
}

/// What the server says of an address.
#[derive(Deserialize)]
struct PayInfo {
    tag: Option<String>,
    callback: Option<String>,
    #[serde(rename = "minSendable")]
    least: Option<u64>,
    #[serde(rename = "maxSendable")]
    most: Option<u64>,
    status: Option<String>,
    reason: Option<String>,
}

/// What it says when asked for an invoice.
#[derive(Deserialize)]
struct Payable {
    pr: Option<String>,
    status: Option<String>,
    reason: Option<String>,
}

impl AddressBook {
    /// One that asks public servers only, and besides them these, each `host:port`, which may be private and go without TLS:
    /// for tests and networks of one's own.
    ///
    /// # Errors
    ///
    /// When there can be no HTTP client.
    pub fn new(private_hosts: Vec<String>) -> Result<Self, reqwest::Error> {
        Self::with_names(private_hosts, Arc::new(SystemNames))
    }

    /// The same with somebody else's answer to where a host is.
    ///
    /// # Errors
    ///
    /// When there can be no HTTP client.
    pub fn with_names(private_hosts: Vec<String>, names: Arc<dyn Names>) -> Result<Self, reqwest::Error> {
        // reqwest is built without a TLS provider of its own; an error means that the program has chosen one already.
        _ = rustls::crypto::ring::default_provider().install_default();
        let private_hosts: Arc<[String]> =
            private_hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        let client = Client::builder()
            .connect_timeout(PATIENCE)
            .redirect(redirect::Policy::none())
            .no_proxy()
            // Each question is asked of where the host is now.
            .pool_max_idle_per_host(0)
            .dns_resolver(Arc::new(PublicOnly::new(names, Arc::clone(&private_hosts))))
            .build()?;
        Ok(Self { client, private_hosts })
    }

    async fn find(&self, address: &LightningAddress, amount: Msat) -> Result<Invoice, AddressError> {
        let LightningAddress { name, host } = address;
        let scheme = if self.private_hosts.iter().any(|listed| listed == host) { "http" } else { "https" };
        let url = Url::parse(&format!("{scheme}://{host}/.well-known/lnurlp/{name}"))
            .map_err(|_| AddressError::NotAnAddress)?;
        let info: PayInfo = self.ask(url).await?;
        said_no(info.status.as_deref(), info.reason)?;
        let (Some("payRequest"), Some(callback)) = (info.tag.as_deref(), info.callback) else {
            return Err(AddressError::Wrong("it offers nothing to be paid"));
        };
        let (least, most) = (Msat::new(info.least.unwrap_or(1)), Msat::new(info.most.unwrap_or(0)));
        if !(least..=most).contains(&amount) {
            return Err(AddressError::Amount { least, most });
        }
        let mut url = Url::parse(&callback).map_err(|_| AddressError::Wrong("its callback is no URL"))?;
        url.query_pairs_mut().append_pair("amount", &amount.get().to_string());
        let payable: Payable = self.ask(url).await?;
        said_no(payable.status.as_deref(), payable.reason)?;
        let invoice = payable.pr.and_then(|text| Invoice::parse(&text).ok());
        let invoice = invoice.ok_or(AddressError::Wrong("it sends no invoice that can be read"))?;
        if invoice.amount() != Some(amount) {
            return Err(AddressError::Wrong("its invoice is over another amount"));
        }
        Ok(invoice)
    }

    async fn ask<T: for<'de> Deserialize<'de>>(&self, url: Url) -> Result<T, AddressError> {
        self.check(&url)?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let body = time::timeout(PATIENCE, self.read(url, &host)).await;
        let body = body.map_err(|_| AddressError::Unreachable(host))??;
        serde_json::from_slice(&body).map_err(|_| AddressError::Wrong("what it sends can't be read"))
    }

    /// Where a URL leads, as far as it can be told without asking where its host is. A host that is a number never comes by
    /// the resolver, in whichever of its spellings.
    fn check(&self, url: &Url) -> Result<(), AddressError> {
        let host = url.host_str().unwrap_or_default();
        let private = || AddressError::Private(host.chars().take(WORDS_MAX).collect());
        if let Some(port) = url.port_or_known_default()
            && self.private_hosts.iter().any(|listed| *listed == format!("{host}:{port}"))
        {
            return Ok(());
        }
        let is_name = url.domain().is_some();
        let is_bare = url.username().is_empty() && url.password().is_none();
        if url.scheme() == "https" && is_name && is_bare { Ok(()) } else { Err(private()) }
    }

    async fn read(&self, url: Url, host: &str) -> Result<Vec<u8>, AddressError> {
        let failed = |error: reqwest::Error| match is_not_public(&error) {
            true => AddressError::Private(host.to_owned()),
            false => AddressError::Unreachable(host.to_owned()),
        };
        let mut answer = self.client.get(url).send().await.map_err(failed)?;
        if answer.status().is_redirection() {
            return Err(AddressError::Wrong("it redirects"));
        }
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(AddressError::Wrong("it says too much"));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}

impl Resolve for AddressBook {
    fn invoice<'a>(
        &'a self,
        address: &'a LightningAddress,
        amount: Msat,
    ) -> BoxFuture<'a, Result<Invoice, AddressError>> {
        Box::pin(self.find(address, amount))
    }
}

impl FromStr for LightningAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.to_ascii_lowercase();
        let (name, host) = text.split_once('@').ok_or(AddressError::NotAnAddress)?;
        let is_name = (1..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.+".contains(&b))
            && !name.starts_with('.');
        let is_host = (1..=253).contains(&host.len())
            && host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:".contains(&b));
        if is_name && is_host {
            Ok(Self { name: name.to_owned(), host: host.to_owned() })
        } else {
            Err(AddressError::NotAnAddress)
        }
    }
}

impl fmt::Debug for LightningAddress {
    /// Without the name: it is somebody's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LightningAddress(…@{})", self.host)
    }
}

impl fmt::Debug for AddressBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressBook").field("private_hosts", &self.private_hosts).finish_non_exhaustive()
    }
}

fn said_no(status: Option<&str>, reason: Option<String>) -> Result<(), AddressError> {
    if status.is_some_and(|status| status.eq_ignore_ascii_case("error")) {
        let reason: String =
            reason.unwrap_or_default().chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect();
        return Err(AddressError::Refused(reason));
    }
    Ok(())
}

fn is_not_public(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<NotPublic>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests;
