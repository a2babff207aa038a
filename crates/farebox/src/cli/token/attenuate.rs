//! `farebox token attenuate`: a narrower token from a token, without any key.

use std::{fmt, process::ExitCode};

use anyhow::Context as _;
use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_protocol::{Credential, Macaroon, Scheme, Timestamp};
use http::Method;
use ipnet::IpNet;
use serde::Serialize;

use super::{Given, text_of};
use crate::{cli::Usage, config::value::Span, output::Reader};

/// Make a narrower token from a token: to lend it out, or to carry less risk. Nobody can widen it again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
With a credential the result is a credential, with a bare token a token.

Examples:
  farebox token attenuate - --method GET --method HEAD --path /v1/public
  farebox token attenuate - --expires 1h --client 10.0.0.0/8 --human < credential.txt")]
pub(crate) struct Args {
    /// The token or credential; `-` reads it from standard input
    token: String,
    #[command(flatten)]
    narrow: Narrow,
}

/// How to narrow a token.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Narrow {
    /// Only for this method (may be repeated)
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<String>,
    /// Only at this path and below
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Only for so long from now, like 10m or 1h
    #[arg(long, visible_alias = "valid-for", value_name = "DURATION")]
    expires: Option<Span>,
    /// Only from this address or network (may be repeated)
    #[arg(long = "client", value_name = "CIDR")]
    clients: Vec<String>,
    /// Any other caveat, as CONDITION=VALUE (may be repeated). One that the seller doesn't know limits nothing
    #[arg(long = "caveat", value_name = "CAVEAT")]
    caveats: Vec<String>,
}

/// The new token. Asked for by the person who has the old one, so it is printed.
#[derive(Serialize)]
pub(in crate::cli) struct Attenuated {
    token: String,
    /// The value of an `Authorization` header, if a credential was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<String>,
    added: Vec<String>,
}

impl fmt::Display for Attenuated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.credential.as_deref().unwrap_or(&self.token))
    }
}

pub(crate) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    reader.print(&args.narrow.apply(&text_of(&args.token)?, Scheme::L402)?)?;
    Ok(ExitCode::SUCCESS)
}

fn narrow(token: &Macaroon, caveats: &[String]) -> anyhow::Result<Macaroon> {
    let mut token = token.clone();
    for caveat in caveats {
        token = token.attenuate(caveat).with_context(|| format!("cannot add `{}`", caveat.escape_debug()))?;
    }
    Ok(token)
}

impl Narrow {
    /// The narrower form of a token or a credential.
    pub(in crate::cli) fn apply(&self, text: &str, scheme: Scheme) -> anyhow::Result<Attenuated> {
        let added = self.caveats(SystemClock.now())?;
        let Given { tokens, preimage } = Given::read(text)?;
        let narrowed: Vec<Macaroon> =
            tokens.iter().map(|token| narrow(token, &added)).collect::<anyhow::Result<_>>()?;
        let token = narrowed.iter().map(Macaroon::to_base64).collect::<Vec<_>>().join(",");
        let credential = preimage.map(|preimage| Credential { tokens: narrowed, preimage });
        let credential = credential.map(|credential| credential.header_value(scheme).to_string());
        Ok(Attenuated { token, credential, added })
    }

    /// The caveats that were asked for; at least one.
    fn caveats(&self, now: Timestamp) -> anyhow::Result<Vec<String>> {
        let mut caveats = Vec::new();
        if !self.methods.is_empty() {
            let methods = self.methods.iter().map(|text| method(text)).collect::<anyhow::Result<Vec<_>>>()?;
            caveats.push(format!("farebox_method={}", methods.join(",")));
        }
        if let Some(path) = &self.path {
            caveats.push(format!("farebox_path={path}"));
        }
        if let Some(span) = self.expires {
            // Caveats count whole seconds.
            if span.0.as_secs() == 0 {
                let hint = "`--expires` must be at least 1s; a token that is over opens nothing";
                return Err(Usage(hint.to_owned()).into());
            }
            caveats.push(format!("farebox_valid_until={}", now.saturating_add(span.0).secs()));
        }
        if !self.clients.is_empty() {
            let clients = self.clients.iter().map(|text| client(text)).collect::<anyhow::Result<Vec<_>>>()?;
            caveats.push(format!("farebox_client={}", clients.join(",")));
        }
        caveats.extend(self.caveats.iter().cloned());
        if caveats.is_empty() {
            let hint =
                "nothing to add; say how to narrow it with --method, --path, --expires, --client or --caveat";
            return Err(Usage(hint.to_owned()).into());
        }
        Ok(caveats)
    }
}

fn method(text: &str) -> anyhow::Result<String> {
    let upper = text.to_ascii_uppercase();
    match upper.parse::<Method>() {
        Ok(_) if upper.bytes().all(|byte| byte.is_ascii_uppercase()) => Ok(upper),
        _ => Err(Usage(format!("`{}` is not a method; write one, like GET", text.escape_debug())).into()),
    }
}

/// An address or network without stray bits below its prefix, as gateways want it.
fn client(text: &str) -> anyhow::Result<String> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(address.to_string());
    }
    match text.parse::<IpNet>() {
        Ok(network) => Ok(network.trunc().to_string()),
        Err(_) => Err(Usage(format!(
            "`{}` is not an address or network; write one, like 192.0.2.1 or 10.0.0.0/8",
            text.escape_debug()
        ))
        .into()),
    }
}
