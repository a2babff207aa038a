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
use http::{StatusCode, header};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::tell::Teller;

/// The most that the route may cost. The demo's two nodes are neighbours: it costs nothing.
const FEE_MAX: Msat = Msat::new(10_000);

/// How long the payment may take.
const PAY_TIMEOUT: Duration = Duration::from_secs(30);

/// What was bought, for the commands that are printed afterwards.
pub(super) struct Bought {
    /// The whole value of the `Authorization` header.
    pub(super) authorization: Zeroizing<String>,
}

/// The answer to the first request: what it costs and what to pay.
struct Asked {
    lines: Vec<String>,
    challenge: OfferedChallenge,
    invoice: Invoice,
}

/// Buys `url` with `wallet`.
pub(super) async fn run(url: &str, wallet: &Outgoing, tell: &Teller) -> Result<Bought> {
    let http = reqwest::Client::builder().no_proxy().build().context("cannot make an HTTP client")?;

    tell.step(format_args!("ask without paying: GET {url}"));
    let asked = ask(&http, url).await?;
    tell.challenge(&asked.lines, &asked.challenge.token, &asked.invoice);

    tell.step(format_args!("pay {} over Lightning", asked.invoice.amount().unwrap_or_default()));
    let (preimage, fee) = pay(wallet, &asked.invoice).await?;
    let hash = asked.invoice.payment_hash();
    tell.payment(&preimage, fee, &hash);
    ensure!(preimage.pays(&hash), "the preimage does not hash to the payment hash: this was no payment");

    tell.step(format_args!("ask again with token and preimage"));
    let token = asked.challenge.macaroon().context("the challenge's token is not a macaroon")?;
    let authorization =
        Credential { tokens: vec![token], preimage: preimage.clone() }.header_value(Scheme::L402);
    answer(&http, url, &authorization, &hash, &preimage, tell).await?;
    Ok(Bought { authorization })
}

async fn ask(http: &reqwest::Client, url: &str) -> Result<Asked> {
    let response = http.get(url).send().await.with_context(|| format!("cannot reach `{url}`"))?;
    let status = response.status();
    if status != StatusCode::PAYMENT_REQUIRED {
        let body = response.text().await.unwrap_or_default();
        bail!("expected `{url}` to ask for payment, but it answered {status}: {body}");
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
    url: &str,
    authorization: &str,
    hash: &PaymentHash,
    preimage: &Preimage,
    tell: &Teller,
) -> Result<()> {
    let asked_at = Instant::now();
    let response = http.get(url).header(header::AUTHORIZATION, authorization).send().await?;
    let status = response.status();
    let took = asked_at.elapsed();
    let body = response.text().await?;
    tell.answer(status, authorization, hash, preimage, &body, took);
    ensure!(status.is_success(), "paid, but the answer was {status}: {body}");
    Ok(())
}
