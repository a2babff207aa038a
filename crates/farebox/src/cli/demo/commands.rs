//! What a person can paste into another terminal once the story is told, and the buyer's side that it needs.
//!
//! That is a file for a shell to read, with the wallet's address and password; a journal with what was bought; and a policy, so
//! that the person's own is left out of it.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use farebox_client::{Engine, EngineConfig, import::Program};
use farebox_protocol::Scheme;
use http::Method;
use serde_json::json;

use super::{
    counters::Counter,
    goods::Goods,
    stage::Stage,
    story::{Bought, Wish},
};

/// The coins are worthless, and whatever the seller asks for is to be tried; by agents, too, which call no private addresses else.
const POLICY: &str =
    "otherwise: allow\nlimits: { payment: unlimited, day: unlimited }\nprivate-targets: allow\n";

/// What a buyer's shell needs to know.
pub(super) struct Buyer {
    /// A file for it to read.
    pub(super) file: PathBuf,
}

impl Buyer {
    /// Writes the files, and what was bought into the journal.
    pub(super) async fn settle(stage: &Stage, bought: Option<(&Wish, &Bought)>) -> Result<Self> {
        let dir = PathBuf::from(stage.data_dir());
        let (journal, policy) = (dir.join("journal.sqlite"), dir.join("policy.yaml"));
        let program = std::env::current_exe().unwrap_or_else(|_| "farebox".into());
        let mut text = format!(
            "export FAREBOX_WALLET_URL={} FAREBOX_WALLET_PASSWORD={}\nexport FAREBOX_JOURNAL={} FAREBOX_POLICY={}\nexport GATEWAY={} BOOKS={}\n",
            quoted(&stage.wallet_url),
            quoted(stage.wallet_password.expose()),
            quoted(&journal.display().to_string()),
            quoted(&policy.display().to_string()),
            quoted(&stage.gateway_url),
            quoted(&stage.data_dir()),
        );
        if let Some((wish, bought)) = bought {
            keep(&journal, &stage.gateway_url, wish, bought).await?;
            text.push_str(&format!("export PAID={}\n", bought.hash));
        }
        text.push_str(&format!("farebox() {{ {} \"$@\"; }}\n", quoted(&program.display().to_string())));
        let file = dir.join("buyer.env");
        for (path, text) in [(&policy, POLICY), (&file, &text)] {
            fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        Ok(Self { file })
    }
}

/// Puts what the story has bought by hand into the journal, as if `farebox get` had.
async fn keep(journal: &Path, gateway: &str, wish: &Wish, bought: &Bought) -> Result<()> {
    let path = wish.url.strip_prefix(gateway).and_then(|path| path.split('?').next());
    let token = json!({
        "origin": gateway, "path": path, "scheme": Scheme::L402.to_string(), "token": bought.token,
        "payment_hash": bought.hash.to_string(), "preimage": *bought.preimage.expose_hex(),
        "amount_msat": bought.price.get(), "fee_msat": bought.fee.get(),
    });
    let text = json!({ "farebox_tokens": 1, "tokens": [token] }).to_string();
    let haul = Program::read_own_text(&text, None)?;
    ensure!(haul.skipped.is_empty(), "what was bought does not fit the journal");
    let engine = Engine::open(EngineConfig::new(journal.to_owned()))?;
    engine.import(haul.found, "farebox demo").await?;
    engine.close(super::DRAIN).await;
    Ok(())
}

/// The commands.
pub(super) struct Commands<'a> {
    pub(super) stage: &'a Stage,
    pub(super) goods: &'a Goods,
    pub(super) buyer: &'a Buyer,
    /// What was bought, if anything.
    pub(super) bought: Option<(&'a Wish, &'a Bought)>,
}

impl fmt::Display for Commands<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, goods, buyer, bought } = self;
        writeln!(
            f,
            "
the demo stays up; Ctrl-C ends it. In another terminal, first of all:

  . {file}    # the buyer's wallet and journal, for all that follows",
            file = quoted(&buyer.file.display().to_string()),
        )?;
        for counter in &goods.counters {
            self.counter(f, counter)?;
        }
        if let Some((wish, bought)) = bought {
            self.by_hand(f, wish, bought)?;
        }
        if bought.is_some() && goods.signs_receipts_as.is_some() {
            f.write_str(
                "
  # what the seller signs of what was bought, and whether it holds
  farebox receipts fetch $PAID -o receipt.txt
  farebox receipt verify receipt.txt --key \"$(curl -s $GATEWAY/.well-known/farebox/receipt-key)\"
",
            )?;
        }
        // Only credit is money: of anything else nothing is left to be paid back.
        let is_credit = bought.is_some_and(|(wish, _)| {
            let path = wish.url.strip_prefix(&stage.gateway_url).unwrap_or_default();
            goods
                .counters
                .iter()
                .find(|counter| counter.has(path))
                .is_some_and(|counter| counter.sells_credit)
        });
        if is_credit && goods.refunds.is_some() {
            f.write_str(
                "
  # what can be paid back of it; an invoice of the buyer's node, of 5 sat; and the money to it
  curl $GATEWAY/.well-known/farebox/refund -H \"Authorization: $(farebox --human tokens export $PAID)\"
  curl -u \":$FAREBOX_WALLET_PASSWORD\" $FAREBOX_WALLET_URL/createinvoice -d amountSat=5
  curl $GATEWAY/.well-known/farebox/refund -H \"Authorization: $(farebox --human tokens export $PAID)\" \\
      --json '{\"to\": \"INVOICE\"}'
",
            )?;
        }
        write!(
            f,
            "
  # what was bought; the seller's books; what the gateway counts
  farebox purchases list
  farebox ledger list --state-dir \"$BOOKS\"
  curl {ops}/metrics
",
            ops = stage.ops_url,
        )
    }
}

impl Commands<'_> {
    /// One service: the whole purchase in one command.
    fn counter(&self, f: &mut fmt::Formatter<'_>, counter: &Counter) -> fmt::Result {
        let Counter { name, path, method, .. } = counter;
        let is_bought = self.bought.is_some_and(|(wish, _)| {
            (&wish.url, &wish.method, &wish.host) == (&self.url(counter), method, &counter.host)
        });
        let more = match (counter.is_paid, is_bought, counter.is_counted) {
            (false, ..) => "free",
            (_, true, true) => {
                "what was just bought, again: `farebox-left` tells what is left, and when nothing is, it buys anew"
            }
            (_, true, false) => "what was just bought, again: the token is a pass, it costs nothing more",
            (_, false, true) => "bought, and used; `farebox-left` tells what is left",
            (_, false, false) => "bought, and used; again, with the pass that was bought",
        };
        let method = if *method == Method::GET { String::new() } else { format!("-X {method} ") };
        writeln!(f, "\n  # {name}: {more}")?;
        if counter.is_silent {
            writeln!(f, "  # (nothing answers behind it just now)")?;
        }
        let target = at_gateway(path);
        if let Some(host) = &counter.host {
            // What is bought for a name is bought of that name; only a client that is told can ask for it here.
            return writeln!(f, "  curl -i {method}-H 'Host: {host}' {target}");
        }
        writeln!(f, "  farebox get -i {method}{target}")?;
        if counter.is_paid && !counter.offers.is_empty() {
            writeln!(f, "  # another offer, where what was bought doesn't do")?;
        }
        for offer in &counter.offers {
            writeln!(f, "  farebox get -i --offer {offer} {method}{target}")?;
        }
        Ok(())
    }

    fn by_hand(&self, f: &mut fmt::Formatter<'_>, wish: &Wish, bought: &Bought) -> fmt::Result {
        let host = wish.host.as_ref().map_or(String::new(), |host| format!("-H 'Host: {host}' "));
        let method = if wish.method == Method::GET { String::new() } else { format!("-X {} ", wish.method) };
        let url = quoted(&wish.url);
        write!(
            f,
            "
  # the same by hand: what was bought, with its token and preimage
  curl -i {method}{host}{url} -H 'Authorization: {authorization}'

  # ask, and see what it costs; pay the invoice from that answer: `paymentPreimage` is the proof; ask again with both
  curl -i {method}{host}{url}
  curl -u \":$FAREBOX_WALLET_PASSWORD\" $FAREBOX_WALLET_URL/payinvoice -d invoice=INVOICE
  curl {method}{host}{url} -H 'Authorization: L402 TOKEN:PREIMAGE'
",
            authorization = bought.authorization.as_str(),
        )
    }

    fn url(&self, counter: &Counter) -> String {
        format!("{}{}", self.stage.gateway_url, counter.path)
    }
}

/// A path of the gateway as one word of a shell, in which only the gateway's address is anything else than it says.
fn at_gateway(path: &str) -> String {
    // In double quotes a shell at which somebody types reads these, `!` as what was typed before, which no backslash prevents.
    match path.contains(['"', '\\', '$', '`', '!']) {
        true => format!("\"$GATEWAY\"{}", quoted(path)),
        false => format!("\"$GATEWAY{path}\""),
    }
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_in_which_nothing_is_run_or_looked_up() {
        assert_eq!(at_gateway("/v1/sun?lat=1&lon=2"), "\"$GATEWAY/v1/sun?lat=1&lon=2\"");
        // Literals and no shell that reads them: what a process starts inherits the locks that other tests hold, for a moment.
        for (path, word) in [
            ("/a!b", "'/a!b'"),
            ("/$(id)", "'/$(id)'"),
            ("/`id`", "'/`id`'"),
            ("/a\"b", "'/a\"b'"),
            ("/a\\b", "'/a\\b'"),
            ("/$HOME/it's", "'/$HOME/it'\\''s'"),
        ] {
            assert_eq!(at_gateway(path), format!("\"$GATEWAY\"{word}"));
        }
    }
}
