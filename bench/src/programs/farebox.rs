//! farebox before one service. Its Lightning node is unreachable on purpose: paid access needs none.

use std::{
    fs, io::Write as _, net::SocketAddr, num::NonZeroU64, os::unix::fs::OpenOptionsExt as _, path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};
use farebox_protocol::{
    Credential, Identifier, Macaroon, MintSecret, Msat, Network, Offer, Preimage, Sale, Scheme, Terms,
    TokenId,
};

use super::{Clients, Plan, Wire};
use crate::{Setting, process::free_address};

const SECRET: [u8; 32] = [7; 32];

/// Whether the service costs something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sold {
    Free,
    Paid,
}

pub(super) fn proxy(
    setting: &Setting,
    dir: &Path,
    listen: SocketAddr,
    plan: &Plan,
    sold: Sold,
) -> Result<Command> {
    private(&dir.join("mint-secret"), &format!("{}\n", hex::encode(SECRET)))?;
    let nowhere = free_address()?;
    let scheme = if plan.back == Wire::Http1 { "http" } else { "h2c" };
    let price = if sold == Sold::Free { "auth: off" } else { "price: 10sat" };
    let (trusted, limited) = match plan.clients {
        Clients::Any => ("", ""),
        Clients::Limited => {
            ("trusted-proxies: [127.0.0.0/8]", "rate-limits: [{ by: client, rate: 1000/s, burst: 1000 }]")
        }
    };
    let file = dir.join("farebox.yaml");
    fs::write(
        &file,
        format!(
            "network: regtest
listen: [\"{listen}\"]
limits: {{ workers: 2 }}
ops: \"off\"
state-dir: {dir}
mint-secrets: [{{ from: {{ file: {dir}/mint-secret }} }}]
lightning:
  phoenixd: {{ url: \"http://{nowhere}\", password: {{ text: none }} }}
{trusted}
services:
  - name: bench
    upstream: {scheme}://{upstream}
    {price}
    {limited}
",
            dir = dir.display(),
            upstream = plan.upstream,
        ),
    )?;
    let mut command = Command::new(&setting.farebox);
    command.arg("serve").arg("--config").arg(&file).env("FAREBOX_LOG", "error");
    Ok(command)
}

/// A pass as if bought: the benchmark knows the mint secret, so it needs no payment.
pub(crate) fn credential() -> Result<String> {
    sold([3; 32], Offer::Forever)
}

/// The same for more requests than anybody makes.
pub(crate) fn counted_credential() -> Result<String> {
    sold([4; 32], Offer::Requests(NonZeroU64::new(1 << 40).context("above zero")?))
}

fn sold(preimage: [u8; 32], offer: Offer) -> Result<String> {
    let preimage = Preimage::from_bytes(preimage);
    let identifier =
        Identifier { payment_hash: preimage.payment_hash(), token_id: TokenId::from_bytes([9; 32]) };
    let sale = Sale {
        service: "bench".parse()?,
        tier: 0,
        terms: Terms { offer, price: Msat::new(10_000) },
        valid_until: None,
        capabilities: None,
        monthly: Vec::new(),
        bound: None,
        replaces: None,
    };
    let root = MintSecret::from_bytes(SECRET).root_key(Network::Regtest, &identifier);
    // A third caveat, as a careful buyer would add it.
    let token = Macaroon::mint(&root, &identifier, &sale.caveats()?).attenuate("farebox_method=GET,POST")?;
    Ok(Credential { tokens: vec![token], preimage }.header_value(Scheme::L402).to_string())
}

/// Writes a file that only its owner can read.
fn private(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}
