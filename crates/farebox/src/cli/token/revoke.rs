//! `farebox token revoke`: a token that is refused from now on, while the gateway runs.

use std::{fmt, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_paywall::store::{
    Revocation,
    sqlite::{Revoker, SqliteStore},
};
use farebox_protocol::{IdentifierHash, PaymentHash};
use serde::Serialize;

use super::{Given, text_of};
use crate::{output::Reader, seller, state};

/// Refuse a token from now on, without stopping the gateway. What was paid for it stays on the books
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A running gateway notices within about a second. Narrower tokens made from this one are refused with
it.

Examples:
  farebox token revoke - < leaked-credential.txt
  farebox token revoke 5f3c… --state-dir /var/lib/farebox")]
pub(crate) struct Args {
    /// The token or credential, or its identifier hash as `token inspect` shows it; `-` reads from standard input
    #[arg(value_name = "TOKEN|HASH")]
    token: String,
    #[command(flatten)]
    place: seller::Place,
    /// Why, for whoever reads the books
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

#[derive(Debug, Serialize)]
struct Revoked {
    identifier_hash: String,
    books: PathBuf,
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revoked {} in {}", self.identifier_hash, self.books.display())
    }
}

pub(crate) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let books = state::books(&args.place.directory()?);
    let store = SqliteStore::open_for_revocation(&books)?;
    let mut revoked = Vec::new();
    for hash in hashes(&text_of(&args.token)?, &store)? {
        store.revoke(&Revocation {
            identifier_hash: hash,
            at: SystemClock.now(),
            reason: args.reason.clone(),
        })?;
        revoked.push(Revoked { identifier_hash: hash.to_string(), books: books.clone() });
    }
    for revoked in &revoked {
        reader.print(revoked)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What to revoke: an identifier hash as it is, or the tokens themselves.
fn hashes(text: &str, store: &Revoker) -> anyhow::Result<Vec<IdentifierHash>> {
    if let Ok(hash) = text.parse() {
        check_meant(hash, store)?;
        return Ok(vec![hash]);
    }
    let given =
        Given::read(text).context("neither an identifier hash (64 hexadecimal digits) nor a token")?;
    let hash = |token: &farebox_protocol::Macaroon| Ok(token.identifier()?.hash());
    given.tokens.iter().map(hash).collect()
}

/// A payment hash looks the same, and as an identifier hash it would revoke nothing.
fn check_meant(hash: IdentifierHash, store: &Revoker) -> anyhow::Result<()> {
    if store.knows_token(hash)? {
        return Ok(());
    }
    let Some(purchase) = store.purchase(PaymentHash::from_bytes(*hash.as_bytes()))? else {
        // Only tokens that were presented are in the books, and a leaked one may not have been yet.
        eprintln!(
            "note: the books know no token `{hash}` yet; it must be the identifier hash, not the payment hash"
        );
        return Ok(());
    };
    match purchase.sold {
        Some(sold) => anyhow::bail!(
            "`{hash}` is a payment hash, nothing was revoked; the identifier hash of its token is `{}`",
            sold.identifier_hash
        ),
        None => anyhow::bail!(
            "`{hash}` is a payment hash, nothing was revoked; give the token, or its identifier hash as \
             `token inspect` shows it"
        ),
    }
}
