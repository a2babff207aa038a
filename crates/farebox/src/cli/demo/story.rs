//! The demo's story: what a buyer does, one step at a time, each told with its time.
//!
//! Told by hand, without the client library, so that every byte of the protocol can be shown. `farebox get` does all of
//! it in one command, and safely; this shows what it does.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use farebox_lightning::{
    PayRequest,
    outgoing::{Ended, Outgoing},
};
use farebox_protocol::{Credential, Invoice, Msat, OfferedChallenge, PaymentHash, Preimage, Scheme};
use http::{Method, StatusCode, header};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::tell::Teller;

/// The most that the route may cost. The demo's two nodes are neighbours: it costs nothing.
const FEE_MAX: Msat = Msat::new(10_000);

/// How long the payment may take.
const PAY_TIMEOUT: Duration = Duration::from_secs(30);

/// How many free requests are used up to come to one that isn't.
const FREEBIES_MAX: u32 = 1_000;

/// What is asked for.
pub(super) struct Wish {
    pub(super) url: String,
    pub(super) method: Method,
    /// The host, where it isn't the one in the address.
    pub(super) host: Option<String>,
    /// How many requests may be free before one must be paid.
    pub(super) freebies: u32,
}

/// What was bought, for the journal and the commands that are printed afterwards.
pub(super) struct Bought {
    /// The whole value of the `Authorization` header.
    pub(super) authorization: Zeroizing<String>,
    pub(super) hash: PaymentHash,
    pub(super) price: Msat,
    pub(super) fee: Msat,
    pub(super) token: String,
    pub(super) preimage: Preimage,
}

/// The answer to the first request: what it costs and what to pay.
struct Asked {
    lines: Vec<String>,
    challenge: OfferedChallenge,
    invoice: Invoice,
}

/// Buys it with `wallet`.
pub(super) async fn run(wish: &Wish, wallet: &Outgoing, tell: &Teller) -> Result<Bought> {
    let http = reqwest::Client::builder().no_proxy().build().context("cannot make an HTTP client")?;

    tell.step(format_args!("ask without paying: {} {}", wish.method, wish.url));
    let asked = ask(&http, wish, tell).await?;
    tell.challenge(&asked.lines, &asked.challenge.token, &asked.invoice);

    let price = asked.invoice.amount().unwrap_or_default();
    tell.step(format_args!("pay {price} over Lightning"));
    let (preimage, fee) = pay(wallet, &asked.invoice).await?;
    let hash = asked.invoice.payment_hash();
    tell.payment(&preimage, fee, &hash);
    ensure!(preimage.pays(&hash), "the preimage does not hash to the payment hash: this was no payment");

    tell.step(format_args!("ask again with token and preimage"));
    let token = asked.challenge.macaroon().context("the challenge's token is not a macaroon")?;
    let authorization =
        Credential { tokens: vec![token], preimage: preimage.clone() }.header_value(Scheme::L402);
    answer(&http, wish, &authorization, &hash, &preimage, tell).await?;
    Ok(Bought { authorization, hash, price, fee, token: asked.challenge.token, preimage })
}

impl Wish {
    fn request(&self, http: &reqwest::Client) -> reqwest::RequestBuilder {
        let request = http.request(self.method.clone(), &self.url);
        match &self.host {
            Some(host) => request.header(header::HOST, host),
            None => request,
        }
    }
}

/// Asks until it has to be paid: what the first requests get for nothing is used up first.
async fn ask(http: &reqwest::Client, wish: &Wish, tell: &Teller) -> Result<Asked> {
    let url = &wish.url;
    let mut free = 0;
    let response = loop {
        let response = wish.request(http).send().await.with_context(|| format!("cannot reach `{url}`"))?;
        match response.status() {
            StatusCode::PAYMENT_REQUIRED => break response,
            status if status != StatusCode::UNAUTHORIZED && free < wish.freebies.min(FREEBIES_MAX) => {
                free += 1
            }
            status => {
                let body = response.text().await.unwrap_or_default();
                bail!(
                    "expected `{url}` to ask for payment, but it answered {status}: {body}; name a path that is for sale with --path"
                );
            }
        }
    };
    if free > 0 {
        tell.note(format_args!(
            "answered {free} times without payment: the service gives as many requests away first"
        ));
    }
    let values: Vec<_> = response.headers().get_all(header::WWW_AUTHENTICATE).iter().collect();
    let lines = values.iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
    let challenge = OfferedChallenge::read_all(values.iter().map(|value| value.as_bytes()))
        .into_iter()
        .find(|offered| offered.scheme == Scheme::L402)
        .context("the 402 carries no L402 challenge")?;
    let invoice: Invoice =
        challenge.invoice.as_deref().context("the challenge carries no invoice")?.parse()?;
    Ok(Asked { lines, challenge, invoice })
}

async fn pay(wallet: &Outgoing, invoice: &Invoice) -> Result<(Preimage, Msat)> {
    let request = PayRequest { invoice: invoice.clone(), fee_max: FEE_MAX, timeout: PAY_TIMEOUT };
    match wallet.pay(request).await? {
        Ended::Settled(paid) => Ok((paid.preimage, paid.fee)),
        Ended::NotPaid(failure) => bail!("the payment failed: {}", failure.reason),
        Ended::Unknown { reason } => {
            bail!("the payment did not arrive within {} s: {reason}", PAY_TIMEOUT.as_secs())
        }
    }
}

async fn answer(
    http: &reqwest::Client,
    wish: &Wish,
    authorization: &str,
    hash: &PaymentHash,
    preimage: &Preimage,
    tell: &Teller,
) -> Result<()> {
    let asked_at = Instant::now();
    let response = wish.request(http).header(header::AUTHORIZATION, authorization).send().await?;
    let status = response.status();
    let took = asked_at.elapsed();
    let body = response.text().await?;
    tell.answer(status, authorization, hash, preimage, &body, took);
    let is_refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED);
    ensure!(!is_refused && !status.is_server_error(), "paid, but the answer was {status}: {body}");
    if status.is_client_error() {
        tell.note(format_args!(
            "paid for all the same: that is the API's own answer; ask for another path with --path"
        ));
    }
    Ok(())
}
