//! What checking one credential costs: read from the header, root key derived, signature, preimage and caveats checked.

use std::{hint::black_box, net::IpAddr};

use anyhow::{Context, Result, bail};
use farebox_protocol::{
    Asked, Credential, Identifier, Macaroon, MintSecret, Msat, Network, Offer, Preimage, Presented, Sale,
    Scheme, ServiceName, Terms, Timestamp, TokenId, caveat,
};
use http::{HeaderMap, HeaderValue, Method, header};

use crate::{Setting, table::Row};

/// Measures the whole check with three caveats: `services`, `farebox_terms` and `<service>_valid_until`.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let secret = MintSecret::from_bytes([7; 32]);
    let service: ServiceName = "bench".parse()?;
    let preimage = Preimage::from_bytes([3; 32]);
    let identifier =
        Identifier { payment_hash: preimage.payment_hash(), token_id: TokenId::from_bytes([9; 32]) };
    let sale = Sale {
        service: service.clone(),
        tier: 0,
        terms: Terms {
            offer: Offer::Duration(std::time::Duration::from_secs(3600)),
            price: Msat::new(10_000),
        },
        valid_until: Some(Timestamp::from_secs(2_000_000_000)),
        capabilities: None,
        monthly: Vec::new(),
        bound: None,
        replaces: None,
    };
    let caveats = sale.caveats()?;
    if caveats.len() != 3 {
        bail!("expected three caveats, got {caveats:?}");
    }
    let token = Macaroon::mint(&secret.root_key(Network::Regtest, &identifier), &identifier, &caveats);
    let mut headers = HeaderMap::new();
    let value = Credential { tokens: vec![token], preimage }.header_value(Scheme::L402);
    headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&value)?);

    let asked = Asked {
        service: &service,
        method: &Method::GET,
        path: "/",
        client: Some(IpAddr::from([127, 0, 0, 1])),
        now: Timestamp::from_secs(1_800_000_000),
        strict: false,
        capabilities: Some(&[]),
        price: Some(Msat::new(10_000)),
        cost: None,
    };
    let check = || -> Result<()> {
        let Presented::Credentials(credentials) = Presented::read(black_box(&headers)) else {
            bail!("the credential was not read");
        };
        let credential = credentials.first().context("no credential")?;
        let token = credential.tokens.first().context("no token")?;
        let identifier = token.identifier()?;
        token.verify(&secret.root_key(Network::Regtest, &identifier))?;
        if !credential.preimage.pays(&identifier.payment_hash) {
            bail!("the preimage does not pay");
        }
        black_box(caveat::judge(token, &asked)?);
        Ok(())
    };

    let started = tokio::time::Instant::now();
    let mut rounds = 0_u32;
    while started.elapsed() < setting.time {
        for _ in 0..1_000 {
            check()?;
        }
        rounds += 1_000;
    }
    let micros = started.elapsed().as_secs_f64() * 1e6 / f64::from(rounds);
    let subject = "one credential, three caveats".to_owned();
    Ok(vec![Row {
        bench: "verify",
        what: "time".to_owned(),
        subject,
        value: micros,
        unit: "us",
        ratio: None,
    }])
}
