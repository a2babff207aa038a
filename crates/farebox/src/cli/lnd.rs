//! `farebox lnd`: what helps with an lnd of one's own. Nothing here talks to it.

use std::{fmt, path::PathBuf, process::ExitCode};

use farebox_protocol::Network;
use serde::Serialize;

use crate::output::Reader;

/// Prepare an lnd to be paid through
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  farebox lnd bake --save-to /etc/farebox/lnd.macaroon")]
pub(crate) enum Command {
    Bake(Bake),
}

/// Print the command that makes a macaroon which permits what farebox needs, and nothing else
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing is run. Run the printed command where lncli can reach your lnd, hand the file to farebox
(`macaroon: { file: PATH }` below `lightning: lnd:`), and let nobody else read it. To undo it later,
bake with a --root-key-id of its own and delete that with `lncli deletemacaroonid`.

Examples:
  farebox lnd bake
  farebox lnd bake --network signet --save-to /etc/farebox/lnd.macaroon
  farebox lnd bake --pay --lnddir /var/lib/lnd
  farebox lnd bake --save-to lnd.macaroon | sh")]
pub(crate) struct Bake {
    /// Permit paying, too: for a buyer, or for refunds. Whoever has such a macaroon can spend the node's money
    #[arg(long)]
    pay: bool,
    /// Where lncli writes it
    #[arg(long, value_name = "FILE", default_value = "farebox.macaroon")]
    save_to: PathBuf,
    /// The network of the lnd: mainnet, testnet, signet or regtest [default: lncli's own, mainnet]
    #[arg(long, value_name = "NETWORK")]
    network: Option<Network>,
    /// The directory of the lnd [default: lncli's own]
    #[arg(long, value_name = "DIR")]
    lnddir: Option<PathBuf>,
    /// The root key that signs it: any number that is in no other use
    #[arg(long, value_name = "NUMBER")]
    root_key_id: Option<u64>,
}

/// What being paid takes: to make an invoice, to learn of its payment, and to clear it away when nobody pays.
const RECEIVE: [&str; 5] = [
    "/lnrpc.Lightning/AddInvoice",
    "/lnrpc.Lightning/LookupInvoice",
    "/lnrpc.Lightning/SubscribeInvoices",
    "/invoicesrpc.Invoices/CancelInvoice",
    "/lnrpc.Lightning/DeleteCanceledInvoice",
];

/// What paying takes besides: to pay, to learn how that ended, to know whose node it is and what it can spend.
const PAY: [&str; 4] = [
    "/routerrpc.Router/SendPaymentV2",
    "/routerrpc.Router/TrackPaymentV2",
    "/lnrpc.Lightning/GetInfo",
    "/lnrpc.Lightning/ChannelBalance",
];

#[derive(Debug, Serialize)]
struct Baking {
    /// The words of the command.
    command: Vec<String>,
}

impl fmt::Display for Baking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, word) in self.command.iter().enumerate() {
            let before = match at {
                0 => "",
                _ if word.starts_with("uri:") => " \\\n  ",
                _ => " ",
            };
            write!(f, "{before}{}", quoted(word))?;
        }
        Ok(())
    }
}

pub(crate) fn run(command: &Command, reader: Reader) -> anyhow::Result<ExitCode> {
    let Command::Bake(bake) = command;
    reader.print(&bake.command())?;
    Ok(ExitCode::SUCCESS)
}

impl Bake {
    fn command(&self) -> Baking {
        let mut words = vec!["lncli".to_owned()];
        let mut flag = |name: &str, value: Option<String>| {
            words.extend(value.map(|value| format!("--{name}={value}")));
        };
        flag("lnddir", self.lnddir.as_ref().map(|dir| dir.display().to_string()));
        flag("network", self.network.map(|network| network.to_string()));
        words.push("bakemacaroon".to_owned());
        words.push(format!("--save_to={}", self.save_to.display()));
        words.extend(self.root_key_id.map(|id| format!("--root_key_id={id}")));
        let pay = PAY.into_iter().filter(|_| self.pay);
        words.extend(RECEIVE.into_iter().chain(pay).map(|uri| format!("uri:{uri}")));
        Baking { command: words }
    }
}

/// As a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=./:+,@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(bake: &Bake, want: &Expect) {
        want.assert_eq(&format!("{}\n", bake.command()));
    }

    fn plain() -> Bake {
        Bake {
            pay: false,
            save_to: "farebox.macaroon".into(),
            network: None,
            lnddir: None,
            root_key_id: None,
        }
    }

    #[test]
    fn being_paid_takes_five_permissions() {
        check(
            &plain(),
            &expect![[r#"
                lncli bakemacaroon --save_to=farebox.macaroon \
                  uri:/lnrpc.Lightning/AddInvoice \
                  uri:/lnrpc.Lightning/LookupInvoice \
                  uri:/lnrpc.Lightning/SubscribeInvoices \
                  uri:/invoicesrpc.Invoices/CancelInvoice \
                  uri:/lnrpc.Lightning/DeleteCanceledInvoice
            "#]],
        );
    }

    #[test]
    fn paying_takes_four_more_and_words_are_quoted_for_the_shell() {
        let bake = Bake {
            pay: true,
            save_to: "it's here/x; rm -rf".into(),
            network: Some(Network::Signet),
            lnddir: Some("/var/lib/lnd".into()),
            root_key_id: Some(7),
        };
        check(
            &bake,
            &expect![[r#"
                lncli --lnddir=/var/lib/lnd --network=signet bakemacaroon '--save_to=it'\''s here/x; rm -rf' --root_key_id=7 \
                  uri:/lnrpc.Lightning/AddInvoice \
                  uri:/lnrpc.Lightning/LookupInvoice \
                  uri:/lnrpc.Lightning/SubscribeInvoices \
                  uri:/invoicesrpc.Invoices/CancelInvoice \
                  uri:/lnrpc.Lightning/DeleteCanceledInvoice \
                  uri:/routerrpc.Router/SendPaymentV2 \
                  uri:/routerrpc.Router/TrackPaymentV2 \
                  uri:/lnrpc.Lightning/GetInfo \
                  uri:/lnrpc.Lightning/ChannelBalance
            "#]],
        );
    }
}
