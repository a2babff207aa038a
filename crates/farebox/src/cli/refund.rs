//! `farebox refund`: money on its way back to buyers, and a person's word about what nobody else can explain.
//!
//! It looks at the journal and at the books beside a gateway that runs, or without one, and pays nothing. A word is only written
//! down; whoever pays takes it, once the wallet can't tell any more.

use std::{fmt, process::ExitCode};

use anyhow::Context as _;
use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_paywall::{
    refund::{Record, Records, Verdict, Which, Word},
    store::{
        accounts::{RefundId, RefundOf},
        sqlite::SqliteStore,
    },
};
use farebox_protocol::Msat;
use serde::Serialize;

use crate::{
    output::{Reader, harmless, line, utc},
    seller, state,
};

/// Look at refunds, and say what became of one that nobody can explain
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
A wallet that knows nothing of a payment and can't prove that it never sent it (phoenixd is one)
leaves the refund open, and its money set aside. So does a journal that was lost or is an older
copy: then only the books know of the refund. `/readyz` and farebox_refunds_stuck count such
refunds, and the log names them (`refund_stuck`).

Examples:
  farebox refund list
  farebox refund show 4e9f…c2a1
  farebox refund resolve 4e9f…c2a1 --not-paid --note \"phoenixd lists no such payment\"")]
pub(crate) enum Command {
    List(List),
    Show(Show),
    Resolve(Resolve),
}

/// List refunds that haven't ended, newest first
///
/// Those that only the books know are among them, and those that books brought back from an older copy couldn't take from their
/// purchases: that money is lost, unless their tokens come yet.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Those that have ended, too
    #[arg(long)]
    all: bool,
    /// How many at most
    #[arg(long, value_name = "COUNT", default_value = "50")]
    limit: u32,
    #[command(flatten)]
    place: seller::Place,
}

/// Show one refund with all that is known of it
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Its id: 32 hexadecimal digits
    #[arg(value_name = "ID", value_parser = id)]
    id: RefundId,
    #[command(flatten)]
    place: seller::Place,
}

/// Say what became of a refund, for good
///
/// Look first: at the wallet's own list of payments, at the node, at the buyer. The gateway takes the word as soon as the wallet
/// can't tell any more: within a minute, or when it next starts. What the wallet says meanwhile outweighs it. Said wrongly,
/// --not-paid gives the money to the buyer a second time, and --paid keeps what they never got; the first word counts.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("verdict").required(true))]
pub(crate) struct Resolve {
    /// Its id: 32 hexadecimal digits
    #[arg(value_name = "ID", value_parser = id)]
    id: RefundId,
    /// The money has left and arrived
    #[arg(long, group = "verdict")]
    paid: bool,
    /// It has not, and never will: all of it is the buyer's again
    #[arg(long, group = "verdict")]
    not_paid: bool,
    /// What the route cost, like 3sat; what is left of what was set aside for it is the buyer's
    #[arg(long, value_name = "AMOUNT", default_value = "0msat", conflicts_with = "not_paid")]
    fee: Msat,
    /// How you know, for whoever asks later
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    #[command(flatten)]
    place: seller::Place,
}

/// One refund, for a program.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    state: &'static str,
    purchase: String,
    of: &'static str,
    amount_msat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    fee_max_msat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fee_msat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_hash: Option<String>,
    /// Only the books know it.
    is_orphan: bool,
    /// What is taken from the purchase; none where the books don't know the refund.
    #[serde(skip_serializing_if = "Option::is_none")]
    booked_msat: Option<u64>,
    /// What belongs to it and isn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_msat: Option<u64>,
    /// How far the payment is; none where the wallet was never to be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    payment: Option<&'static str>,
    asked_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<Said>,
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Serialize)]
struct Said {
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fee_msat: Option<u64>,
    note: String,
    at: u64,
}

#[derive(Debug, Serialize)]
struct Resolved {
    id: String,
    said: &'static str,
}

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, said } = self;
        write!(f, "refund {id}: {said}. The gateway takes the word within a minute, or when it next starts")
    }
}

pub(crate) fn run(command: &Command, reader: Reader) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(args) => {
            let which = if args.all { Which::All } else { Which::Open };
            let rows = records(&args.place)?.last(which, args.limit)?;
            if rows.is_empty() && reader == Reader::Person {
                line(&if args.all { "no refund was asked for" } else { "no refund is open" })?;
            }
            for row in rows {
                reader.print(&Row::from(row))?;
            }
        }
        Command::Show(args) => {
            let (found, name) = (records(&args.place)?.find(args.id)?, hex::encode(args.id.0));
            let found = found.with_context(|| {
                format!("neither the journal of refunds nor the books know a refund `{name}`")
            })?;
            reader.print(&Row::from(found))?;
        }
        Command::Resolve(args) => resolve(args, reader)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn resolve(args: &Resolve, reader: Reader) -> anyhow::Result<()> {
    let (records, id) = (records(&args.place)?, hex::encode(args.id.0));
    let verdict = if args.paid { Verdict::Paid { fee: args.fee } } else { Verdict::NotPaid };
    let word = Word { verdict, note: args.note.clone(), said_at: SystemClock.now() };
    records.say(args.id, &word)?;
    reader.print(&Resolved { id, said: name(verdict) })?;
    Ok(())
}

/// The journal, where there is one (the first gateway that pays money back makes it), and the books.
fn records(place: &seller::Place) -> anyhow::Result<Records> {
    let directory = place.directory()?;
    let (path, books) = (state::refunds(&directory), state::books(&directory));
    let books = match SqliteStore::open_to_inspect(&books) {
        Ok(books) => Some(books),
        Err(error) => {
            eprintln!("note: refunds that only the books know are not seen: {error}");
            None
        }
    };
    Records::open(&path, books)
        .with_context(|| format!("cannot open the journal of refunds, `{}`", path.display()))
}

const fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Paid { .. } => "paid",
        Verdict::NotPaid => "not paid",
    }
}

fn id(text: &str) -> Result<RefundId, String> {
    let mut id = [0; 16];
    match hex::decode_to_slice(text, &mut id) {
        Ok(()) => Ok(RefundId(id)),
        Err(_) => Err("a refund's id has 32 hexadecimal digits; `farebox refund list` shows it".to_owned()),
    }
}

impl From<Record> for Row {
    fn from(record: Record) -> Self {
        let (text, is_orphan, missing) = (told(&record), record.is_orphan(), record.missing());
        let said = record.word.map(|Word { verdict, note, said_at }| Said {
            verdict: name(verdict),
            fee_msat: match verdict {
                Verdict::Paid { fee } => Some(fee.get()),
                Verdict::NotPaid => None,
            },
            note,
            at: said_at.secs(),
        });
        Self {
            id: hex::encode(record.id.0),
            state: record.state,
            purchase: record.purchase.to_string(),
            of: source(record.of),
            amount_msat: record.amount.get(),
            fee_max_msat: record.fee_max.map(Msat::get),
            fee_msat: record.fee.map(Msat::get),
            payment_hash: record.payment.map(|hash| hash.to_string()),
            is_orphan,
            booked_msat: record.booked.map(|row| row.order.amount.get()),
            missing_msat: Some(missing.get()).filter(|missing| *missing > 0),
            payment: record.sending,
            asked_at: record.asked_at.secs(),
            why: record.why,
            said,
            text,
        }
    }
}

const fn source(of: RefundOf) -> &'static str {
    match of {
        RefundOf::Credit => "credit",
        RefundOf::Surplus => "surplus",
    }
}

fn told(record: &Record) -> String {
    let Record { amount, state, purchase, .. } = record;
    let (id, of, asked) = (hex::encode(record.id.0), source(record.of), utc(record.asked_at));
    let mut text = match (record.payment, record.fee_max) {
        (Some(payment), Some(fee_max)) => format!(
            "{id}  {state}\n  {amount} of {of}, and up to {fee_max} for the route; asked for at {asked}\n  \
             purchase {purchase}\n  payment  {payment} ({})",
            record.sending.unwrap_or("not begun"),
        ),
        _ => format!(
            "{id}  {state}, known to the books alone\n  {amount} of {of}, the route included; asked for at {asked}\n  \
             purchase {purchase}",
        ),
    };
    if record.missing() > Msat::ZERO {
        text.push_str(&format!(
            "\n  {} of it isn't taken from its purchase: these books are older than the refund, and nothing was left there, \
             or its token wasn't shown since",
            record.missing()
        ));
    }
    if let Some(fee) = record.fee {
        text.push_str(&format!("\n  the route cost {fee}"));
    }
    if let Some(why) = &record.why {
        text.push_str(&format!("\n  {}", harmless(why)));
    }
    if let Some(Word { verdict, note, said_at }) = &record.word {
        let (name, at, note) = (name(*verdict), utc(*said_at), harmless(note));
        text.push_str(format!("\n  said by hand at {at}: {name} {note}").trim_end());
    }
    text
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    #[track_caller]
    fn check(words: &str, is_right: bool) {
        let id = "4e".repeat(16);
        let words = words.replace("ID", &id);
        let parsed = Line::try_parse_from(["refund"].into_iter().chain(words.split(' ')));
        assert_eq!(parsed.is_ok(), is_right, "{words}");
    }

    #[test]
    fn a_word_is_said_of_one_refund_and_either_way() {
        check("resolve ID --paid --fee 3sat", true);
        check("resolve ID --not-paid --note seen", true);
        check("resolve ID", false);
        check("resolve ID --paid --not-paid", false);
        check("resolve ID --not-paid --fee 3sat", false);
        check("resolve 4e --paid", false);
        check("list --all", true);
        check("show ID", true);
    }

    #[test]
    fn a_word_of_what_nobody_knows_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let place = ["--state-dir", dir.path().to_str().unwrap()];
        let run_with = |words: &[&str]| {
            let line = Line::try_parse_from(["refund"].iter().chain(words).chain(&place)).unwrap();
            run(&line.command, Reader::Program)
        };
        let id = "4e".repeat(16);
        run_with(&["list"]).unwrap();
        assert!(run_with(&["resolve", &id, "--paid"]).is_err(), "nobody pays back here");
        // A journal as the gateway's first start leaves it.
        let journal = state::refunds(dir.path());
        std::fs::write(&journal, b"").unwrap();
        drop(Records::open(&journal, None).unwrap());
        run_with(&["list", "--all"]).unwrap();
        assert!(run_with(&["resolve", &id, "--paid"]).is_err(), "it may come to mean another one");
        assert!(run_with(&["show", &id]).is_err());
    }
}
