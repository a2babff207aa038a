//! `farebox receipt`: receipts that a seller signs and anybody can check, without asking anybody.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_paywall::{
    receipt::{Monthly, Receipt, ReceiptKey, ReceiptPublicKey, SellerName, SignedReceipt},
    store::sqlite::SqliteStore,
};
use farebox_protocol::Network;
use serde::Serialize;

use super::{Usage, ledger::counted};
use crate::{
    output::{Reader, line, utc},
    seller, state,
};

/// Make receipts for what was paid, and check them
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
A receipt names the payment by its hash and holds neither token nor preimage: it opens nothing.

Examples:
  farebox receipt make 5f3c09aa -o receipt.txt
  farebox receipt key
  farebox receipt verify receipt.txt --key \"$(farebox receipt key --human)\"
  farebox receipt verify receipt.txt --key b3a1…")]
pub(crate) enum Command {
    Make(Make),
    Verify(Verify),
    Key(Key),
}

/// Make a receipt for one purchase, as the books have it now
#[derive(Debug, clap::Args)]
#[command(after_help = "\
HASH is the payment hash, the first 8 digits or more of it, or the identifier hash that `token
inspect` shows. Limits by the month stand in the token and not in the books: only a receipt that the
buyer asks the gateway for tells them. The key is made with the first receipt: `receipt-key` in the state directory.

Examples:
  farebox receipt make 5f3c09aa
  farebox receipt make 5f3c09aa --seller 'Weather Inc.' -o receipt.txt --config /etc/farebox.yaml")]
pub(crate) struct Make {
    /// For which purchase
    #[arg(value_name = "HASH")]
    hash: String,
    /// Into this file, which must not be there yet [default: standard output]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Who sold it, in words for the buyer [default: `receipts.seller` of the configuration]
    #[arg(long, value_name = "NAME", env = "FAREBOX_SELLER")]
    seller: Option<SellerName>,
    /// The network that was paid on [default: the one in the configuration]
    #[arg(long, value_name = "NETWORK")]
    network: Option<Network>,
    #[command(flatten)]
    signing: Signing,
}

/// Print the key that receipts are checked with, for you to publish
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farebox receipt key
  farebox receipt key --human > key.txt            the key alone; a pipe gets JSON
  farebox receipt key --state-dir /var/lib/farebox --json")]
pub(crate) struct Key {
    #[command(flatten)]
    signing: Signing,
}

/// Check a receipt; exit code 1 if it was changed, or is not by the seller whose key you have
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Needs no network and no node. Without --key, it shows that the receipt is as its signer made it, and
who that is you must know: anybody can sign a receipt with a key of their own.

Examples:
  farebox receipt verify receipt.txt --key b3a1…
  farebox receipt verify - < receipt.txt")]
pub(crate) struct Verify {
    /// The receipt; `-` reads it from standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The seller's key, as `farebox receipt key` prints it for them
    #[arg(long, value_name = "KEY")]
    key: Option<ReceiptPublicKey>,
}

/// The flags that say which books and which key.
#[derive(Debug, clap::Args)]
struct Signing {
    /// The key that signs receipts [default: `receipt-key` in the state directory]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    place: seller::Place,
}

#[derive(Serialize)]
struct PublicKey {
    key: String,
}

/// A receipt that was checked.
#[derive(Serialize)]
struct Checked {
    /// Whether it is known to be the seller's; none where no key was given.
    is_sellers: Option<bool>,
    key: String,
    seller: Option<String>,
    network: String,
    payment_hash: String,
    service: String,
    tier: u8,
    offer: String,
    price_msat: u64,
    valid_until: Option<u64>,
    /// How much of it may be used in a calendar month.
    monthly: Vec<Limit>,
    paid_msat: u64,
    payments: u32,
    surplus_msat: u64,
    settled_at: u64,
    refunded_msat: u64,
    unit: Option<&'static str>,
    sold: Option<u64>,
    spent: Option<u64>,
    left: Option<u64>,
    issued_at: u64,
    #[serde(skip)]
    receipt: Receipt,
}

/// A limit by the month, in the words of a gateway's 402.
#[derive(Debug, Serialize)]
pub(super) struct Limit {
    capability: String,
    unit: &'static str,
    most: u64,
}

impl Limit {
    pub(super) fn all(limits: &[Monthly]) -> Vec<Self> {
        let told = |Monthly { capability, unit, most }: &Monthly| Self {
            capability: capability.to_string(),
            unit: unit.as_str(),
            most: *most,
        };
        limits.iter().map(told).collect()
    }
}

/// `at most 1000 requests a month of `read``, for each.
pub(super) fn limited(limits: &[Monthly]) -> impl Iterator<Item = String> {
    limits.iter().map(|Monthly { capability, unit, most }| {
        format!("at most {} a month of `{capability}`", counted(*unit, *most))
    })
}

pub(crate) fn run(command: &Command, reader: Reader) -> anyhow::Result<ExitCode> {
    match command {
        Command::Make(args) => make(args)?,
        Command::Verify(args) => reader.print(&args.checked()?)?,
        Command::Key(args) => reader.print(&PublicKey { key: args.signing.key()?.public().to_string() })?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The receipt itself is the same for people and programs.
fn make(args: &Make) -> anyhow::Result<()> {
    let place = &args.signing.place;
    let network = args.network.or_else(|| place.network()).ok_or_else(|| {
        Usage("the books do not say on which network they were paid; name it with --network".to_owned())
    })?;
    let books = state::books(&place.directory()?);
    let inspector = SqliteStore::open_to_inspect(&books)?;
    let entry = inspector.find(&args.hash)?;
    let seller = args.seller.clone().or_else(|| place.seller());
    let receipt = Receipt::of(&entry, network, seller, SystemClock.now())?;
    let signed = receipt.sign(&args.signing.key()?).to_string();
    match &args.output {
        None => Ok(line(&signed.trim_end())?),
        Some(path) => write_new(path, &signed).with_context(|| format!("cannot write `{}`", path.display())),
    }
}

fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())?;
    Ok(())
}

impl Signing {
    fn key(&self) -> anyhow::Result<ReceiptKey> {
        let path = match &self.key_file {
            Some(path) => path.clone(),
            None => state::receipt_key(&self.place.directory()?),
        };
        Ok(ReceiptKey::load_or_create(&path)?)
    }
}

/// The longest receipt that is read: some twenty short lines, with room to spare.
pub(super) const RECEIPT_BYTES_MAX: u64 = 64 * 1024;

impl Verify {
    fn checked(&self) -> anyhow::Result<Checked> {
        let text = self.text().with_context(|| format!("cannot read `{}`", self.file.display()))?;
        let signed = SignedReceipt::verify(&text, self.key.as_ref())?;
        Ok(Checked::of(&signed, self.key.is_some()))
    }

    fn text(&self) -> io::Result<String> {
        let mut text = String::new();
        if self.file == Path::new("-") {
            io::stdin().lock().take(RECEIPT_BYTES_MAX).read_to_string(&mut text)?;
        } else {
            File::open(&self.file)?.take(RECEIPT_BYTES_MAX).read_to_string(&mut text)?;
        }
        Ok(text)
    }
}

impl Checked {
    fn of(signed: &SignedReceipt, was_expected: bool) -> Self {
        let receipt = signed.receipt();
        let units = receipt.units;
        Self {
            is_sellers: was_expected.then_some(true),
            key: signed.key().to_string(),
            seller: receipt.seller.as_ref().map(ToString::to_string),
            network: receipt.network.to_string(),
            payment_hash: receipt.hash.to_string(),
            service: receipt.service.to_string(),
            tier: receipt.tier,
            offer: receipt.offer.to_string(),
            price_msat: receipt.price.get(),
            valid_until: receipt.valid_until.map(farebox_protocol::Timestamp::secs),
            monthly: Limit::all(&receipt.monthly),
            paid_msat: receipt.paid.get(),
            payments: receipt.payments,
            surplus_msat: receipt.surplus.get(),
            settled_at: receipt.settled_at.secs(),
            refunded_msat: receipt.refunded.get(),
            unit: units.map(|units| units.unit.as_str()),
            sold: units.map(|units| units.sold),
            spent: units.map(|units| units.spent),
            left: units.map(|units| units.left),
            issued_at: receipt.issued_at.secs(),
            receipt: receipt.clone(),
        }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let receipt = &self.receipt;
        if let Some(seller) = &receipt.seller {
            writeln!(f, "seller        {seller}")?;
        }
        writeln!(f, "payment hash  {}", receipt.hash)?;
        let tier = if receipt.tier == 0 { String::new() } else { format!(", tier {}", receipt.tier) };
        writeln!(f, "service       {}{tier}", receipt.service)?;
        writeln!(f, "offer         {} for {}", receipt.offer, receipt.price)?;
        if let Some(until) = receipt.valid_until {
            writeln!(f, "valid until   {}", utc(until))?;
        }
        for limit in limited(&receipt.monthly) {
            writeln!(f, "limited to    {limit}")?;
        }
        writeln!(f, "paid          {} on {}, {}", receipt.paid, receipt.network, utc(receipt.settled_at))?;
        let zero = farebox_protocol::Msat::ZERO;
        for (name, amount) in [("surplus", receipt.surplus), ("refunded", receipt.refunded)] {
            if amount > zero {
                writeln!(f, "{name:<13} {amount}")?;
            }
        }
        if let Some(units) = receipt.units {
            let part = |count| counted(units.unit, count);
            writeln!(
                f,
                "used          {} of {}; {} left",
                part(units.spent),
                part(units.sold),
                part(units.left)
            )?;
        }
        writeln!(f, "issued        {}", utc(receipt.issued_at))?;
        match self.is_sellers {
            Some(_) => write!(f, "\nThe receipt is the seller's, and as they made it."),
            None => write!(
                f,
                "\nThe receipt is as its signer made it. Whether that is the seller, their key tells: \n{}",
                self.key
            ),
        }
    }
}
