//! `farebox token`: look at a token, narrow it, revoke it.
//!
//! A token with its preimage opens the service, so nothing here prints a preimage that it wasn't asked to pass on, and
//! `-` reads from standard input: what stands on a command line ends up in the shell's history.

use std::{
    io::{self, Read as _},
    process::ExitCode,
};

use anyhow::Context as _;
use farebox_protocol::{Credential, Macaroon, OfferedChallenge, Preimage, Presented};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use zeroize::Zeroizing;

use crate::output::Reader;

pub(super) mod attenuate;
mod inspect;
mod revoke;

/// Look at a token, narrow it, or revoke it
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
A TOKEN is a macaroon in base64 or hexadecimal digits, a credential (`L402 <token>:<preimage>`), or
the challenge that offered it (`L402 macaroon=\"…\", invoice=\"…\"`). `-` reads it from standard
input.

Examples:
  farebox token inspect -
  farebox token attenuate - --method GET --expires 1h
  farebox token revoke - --state-dir /var/lib/farebox")]
pub(crate) enum Command {
    Inspect(inspect::Args),
    Attenuate(attenuate::Args),
    Revoke(revoke::Args),
}

pub(crate) fn run(command: Command, reader: Reader) -> anyhow::Result<ExitCode> {
    match command {
        Command::Inspect(args) => inspect::run(&args, reader),
        Command::Attenuate(args) => attenuate::run(&args, reader),
        Command::Revoke(args) => revoke::run(&args, reader),
    }
}

/// The longest text that is read: eight tokens in hexadecimal digits, with room to spare.
const INPUT_BYTES_MAX: u64 = 256 * 1024;

const NOT_ONE: &str = "this is no token (base64 or hexadecimal digits), credential or challenge";

/// A token as somebody has it at hand.
#[derive(Debug)]
struct Given {
    /// Mostly one.
    tokens: Vec<Macaroon>,
    /// If it is a credential.
    preimage: Option<Preimage>,
}

/// The argument itself, or standard input for `-`, without white space around it.
fn text_of(argument: &str) -> anyhow::Result<Zeroizing<String>> {
    if argument != "-" {
        return Ok(Zeroizing::new(argument.trim().to_owned()));
    }
    let mut text = Zeroizing::new(String::new());
    io::stdin()
        .lock()
        .take(INPUT_BYTES_MAX)
        .read_to_string(&mut text)
        .context("cannot read a token from standard input")?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

impl Given {
    /// Reads a macaroon, a credential, or a challenge. Errors never repeat the text: it is probably a secret.
    fn read(text: &str) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !text.is_empty(),
            "there is no token; pass one, or `-` to read it from standard input"
        );
        let text = strip_name(strip_name(text, "authorization:"), "www-authenticate:");
        if let Some(offered) = OfferedChallenge::read_all([text.as_bytes()]).first() {
            let token = offered.macaroon().context("the challenge's token cannot be read")?;
            return Ok(Self { tokens: vec![token], preimage: None });
        }
        if let Ok(bare) = Macaroon::from_base64(text).or_else(|_| Macaroon::from_hex(text)) {
            return Ok(Self { tokens: vec![bare], preimage: None });
        }
        anyhow::ensure!(text.contains(':'), "{NOT_ONE}");
        let scheme = text.split_whitespace().next().unwrap_or_default();
        let named = scheme.eq_ignore_ascii_case("l402") || scheme.eq_ignore_ascii_case("lsat");
        let value = Zeroizing::new(if named { text.to_owned() } else { format!("L402 {text}") });
        let value = HeaderValue::from_str(&value)
            .ok()
            .context("not a token: it has characters that no header has")?;
        match Presented::read(&HeaderMap::from_iter([(AUTHORIZATION, value)])) {
            Presented::Credentials(credentials) => {
                let Credential { tokens, preimage } =
                    credentials.into_iter().next().context("not a token: the credential is empty")?;
                Ok(Self { tokens, preimage: Some(preimage) })
            }
            Presented::Malformed(error) => Err(error).context(NOT_ONE),
            Presented::Nothing => anyhow::bail!("{NOT_ONE}"),
        }
    }
}

/// `text` without a header's name in front.
fn strip_name<'a>(text: &'a str, name: &str) -> &'a str {
    match text.get(..name.len()) {
        Some(start) if start.eq_ignore_ascii_case(name) => text[name.len()..].trim_start(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use farebox_protocol::{Identifier, MintSecret, Network, Scheme, TokenId};

    use super::*;

    fn token() -> (Macaroon, Preimage) {
        let preimage = Preimage::from_bytes([7; 32]);
        let identifier =
            Identifier { payment_hash: preimage.payment_hash(), token_id: TokenId::from_bytes([9; 32]) };
        let key = MintSecret::from_bytes([1; 32]).root_key(Network::Regtest, &identifier);
        (Macaroon::mint(&key, &identifier, &["services=weather:0".to_owned()]), preimage)
    }

    #[test]
    fn a_token_is_read_in_every_form_that_it_is_found_in() {
        let (macaroon, preimage) = token();
        let credential = Credential { tokens: vec![macaroon.clone()], preimage };
        let header = credential.header_value(Scheme::L402);
        let bare = header.strip_prefix("L402 ").unwrap();
        let base64 = macaroon.to_base64();
        for (text, with_preimage) in [
            (base64.clone(), false),
            (macaroon.to_hex(), false),
            (header.to_string(), true),
            (header.replace("L402", "lsat"), true),
            (bare.to_owned(), true),
            (format!("Authorization: {}", *header), true),
            (format!("L402 macaroon=\"{base64}\", invoice=\"lnbc1\""), false),
            (format!("WWW-Authenticate: LSAT macaroon=\"{base64}\", invoice=\"lnbc1\""), false),
        ] {
            let given = Given::read(&text).unwrap_or_else(|error| panic!("{text}: {error:#}"));
            assert_eq!(given.tokens[0].to_base64(), base64);
            assert_eq!(given.preimage.is_some(), with_preimage, "{text}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_repeated() {
        let secret = "5ec4e7";
        for text in [
            "5ec4e7",
            "L402 5ec4e7",
            "Bearer 5ec4e7",
            "L402 AgEE:5ec4e7",
            "5ec4e7:5ec4e7",
            "\u{7f}:5ec4e7",
            "ä5ec4e7",
        ] {
            let error = format!("{:#}", Given::read(text).unwrap_err());
            assert!(!error.contains(secret), "{error}");
        }
        assert!(Given::read("").is_err());
    }
}
