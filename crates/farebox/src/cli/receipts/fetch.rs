//! `farebox receipts fetch`: a seller's own, signed receipt of what was bought, asked for, checked and kept.
//!
//! Who the seller is, their key says, and the first time nobody here knows it: it is shown, to be noted or asked about, and
//! given with `--key` from then on. Keys are not remembered.

use std::{fmt, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use farebox_client::{Engine, EngineConfig, HttpConfig, PurchaseRow, SellerAnswer};
use farebox_paywall::{
    receipt::{Monthly, PATH, Receipt, ReceiptPublicKey, SignedReceipt},
    store::accounts::Unit,
};
use farebox_protocol::{Macaroon, Msat, PaymentHash, Sale, caveat::Most};
use http::{Method, StatusCode};
use serde::Serialize;

use crate::{
    buyer::Files,
    cli::{
        get::certificates,
        ledger::export::to_file,
        receipt::{Limit, RECEIPT_BYTES_MAX, limited},
    },
    output::{Reader, harmless},
};

/// Ask a seller for their signed receipt of what was bought, check it, and keep it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The seller is shown the credential, and nobody else is. Exit code 1 if there is no receipt, or it
says something else than your journal. Anybody can check it again with `farebox receipt verify`.

Examples:
  farebox receipts fetch 4e9f…c2a1 -o receipt.txt
  farebox receipts fetch 4e9f…c2a1 -o receipt.txt --key b3a1…")]
pub(crate) struct Fetch {
    /// The hash of the payment, all 64 digits, as `purchases list` shows it
    payment: PaymentHash,
    /// The seller's key, as they have told it to you: a receipt by another one is refused
    #[arg(long, value_name = "KEY")]
    key: Option<ReceiptPublicKey>,
    /// Into this file, which must not be there yet [default: standard output]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Show the credential over plain http, too; loopback needs no permission
    #[arg(long, help_heading = "Network")]
    allow_http: bool,
    /// Trust the certificates in this PEM file, too
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    cacert: Option<PathBuf>,
    #[command(flatten)]
    files: Files,
}

/// A receipt that was asked for and holds.
#[derive(Debug, Serialize)]
struct Fetched {
    payment_hash: String,
    origin: String,
    /// Whose it is in their own words.
    seller: Option<String>,
    key: String,
    /// Whether that is the key that was given; none where none was.
    is_sellers: Option<bool>,
    paid_msat: u64,
    /// How much of it may be used in a calendar month, as the receipt says.
    monthly: Vec<Limit>,
    /// What it says otherwise than the journal.
    differs: Vec<String>,
    /// Where it is kept.
    file: Option<String>,
    /// The receipt, where it isn't.
    receipt: Option<String>,
    /// The limits in words.
    #[serde(skip)]
    limits: Vec<String>,
}

/// How long a seller may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

impl Fetch {
    pub(super) async fn run(&self, reader: Reader) -> anyhow::Result<ExitCode> {
        let engine = self.open()?;
        let row = engine.purchase(self.payment).await?;
        let row = row.with_context(|| {
            format!(
                "the journal knows no payment `{}`; `farebox purchases list` shows those it has",
                self.payment
            )
        })?;
        let most = usize::try_from(RECEIPT_BYTES_MAX)?;
        let answer = engine.ask_seller(self.payment, Method::POST, PATH, most).await?;
        let answer = answer.with_context(|| format!("payment {} has bought no credential", self.payment))?;
        let pass = engine.credential(self.payment).await?;
        let token = pass.and_then(|pass| Macaroon::from_base64(&pass.token).ok());
        let fetched = self.checked(&row, token.as_ref().and_then(Sale::of).as_ref(), &answer)?;
        let agrees = fetched.differs.is_empty();
        reader.print(&fetched)?;
        Ok(if agrees { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn open(&self) -> anyhow::Result<Engine> {
        let extra_roots = self.cacert.as_deref().map(certificates).transpose()?.unwrap_or_default();
        Ok(Engine::open(EngineConfig {
            http: HttpConfig { idle_timeout: PATIENCE, extra_roots, ..HttpConfig::default() },
            in_the_clear: self.allow_http,
            ..EngineConfig::new(self.files.journal()?)
        })?)
    }

    /// Keeps it, too: also where it differs, for then it is worth having.
    fn checked(
        &self,
        row: &PurchaseRow,
        sold: Option<&Sale>,
        answer: &SellerAnswer,
    ) -> anyhow::Result<Fetched> {
        let text = str::from_utf8(&answer.body).unwrap_or_default();
        anyhow::ensure!(answer.status == StatusCode::OK, "{}", refusal(answer, text));
        let signed = SignedReceipt::verify(text, self.key.as_ref())
            .with_context(|| format!("what `{}` has sent is no receipt of theirs", answer.origin))?;
        let receipt = signed.receipt();
        anyhow::ensure!(
            receipt.hash == self.payment,
            "`{}` has sent the receipt of another payment: {}",
            answer.origin,
            receipt.hash
        );
        let text = signed.to_string();
        if let Some(path) = &self.output {
            to_file(path, |out| Ok(std::io::Write::write_all(out, text.as_bytes())?))?;
        }
        Ok(Fetched {
            payment_hash: receipt.hash.to_string(),
            origin: answer.origin.to_string(),
            seller: receipt.seller.as_ref().map(ToString::to_string),
            key: signed.key().to_string(),
            is_sellers: self.key.is_some().then_some(true),
            paid_msat: receipt.paid.get(),
            monthly: Limit::all(&receipt.monthly),
            differs: differences(row.price, &row.service, receipt)
                .into_iter()
                .chain(limited_otherwise(sold, receipt))
                .collect(),
            limits: limited(&receipt.monthly).collect(),
            file: self.output.as_ref().map(|path| path.display().to_string()),
            receipt: self.output.is_none().then_some(text),
        })
    }
}

/// What a seller says who gives none.
fn refusal(answer: &SellerAnswer, text: &str) -> String {
    let (origin, status) = (&answer.origin, answer.status.as_u16());
    let said = serde_json::from_str::<serde_json::Value>(text).unwrap_or_default();
    match (said["code"].as_str(), said["detail"].as_str()) {
        (Some(code), Some(detail)) => {
            harmless(&format!("`{origin}` gives no receipt ({status} {code}): {detail}"))
        }
        _ => format!("`{origin}` gives no receipt: it answers {status}; perhaps it signs none"),
    }
}

/// What a receipt says otherwise than the journal: the price that was agreed to, and what the token is for, as far as they are
/// known.
fn differences(price: Msat, service: &str, receipt: &Receipt) -> Vec<String> {
    let mut differs = Vec::new();
    if price > Msat::ZERO && price != receipt.price {
        differs.push(format!("its price is {}, and {price} was agreed to", receipt.price));
    }
    if price > receipt.paid {
        differs.push(format!("it says that {} came, and {price} was paid", receipt.paid));
    }
    if !service.is_empty() && !service.split(',').any(|service| service == receipt.service.as_ref()) {
        differs.push(format!(
            "it is for `{}`, and the token for `{}`",
            receipt.service,
            service.escape_debug()
        ));
    }
    differs
}

/// What it says of limits by the month otherwise than the token. One that says nothing of them may be older than the telling.
fn limited_otherwise(sold: Option<&Sale>, receipt: &Receipt) -> Option<String> {
    let limits = &sold?.monthly;
    let is_like = |(told, sold): (&Monthly, &farebox_protocol::Monthly)| {
        let most = match sold.most {
            Most::Requests(most) => (Unit::Request, most),
            Most::Spent(most) => (Unit::Msat, most.get()),
            _ => return false,
        };
        told.capability == sold.capability && (told.unit, told.most) == most
    };
    let told = &receipt.monthly;
    let agrees = told.is_empty() || (told.len() == limits.len() && told.iter().zip(limits).all(is_like));
    (!agrees).then(|| "its limits by the month are not those of the token".to_owned())
}

impl fmt::Display for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(receipt) = &self.receipt {
            writeln!(f, "{receipt}")?;
        }
        if let Some(file) = &self.file {
            writeln!(f, "kept in {file}")?;
        }
        for limit in &self.limits {
            writeln!(f, "good for {limit}")?;
        }
        match self.is_sellers {
            Some(_) => writeln!(f, "signed with the key that you gave")?,
            None => writeln!(
                f,
                "signed with {}\nWhether that is the key of {} they can tell you some other way; give it with --key then.",
                self.key, self.origin
            )?,
        }
        if self.differs.is_empty() {
            return f.write_str("Payment and amount are those of your journal.");
        }
        write!(f, "It does not agree with your journal: {}.", self.differs.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use farebox_protocol::{Network, Offer, Timestamp};

    use super::*;

    fn receipt() -> Receipt {
        Receipt {
            seller: None,
            network: Network::Regtest,
            hash: PaymentHash::from_bytes([1; 32]),
            service: "weather".parse().unwrap(),
            tier: 0,
            offer: Offer::Forever,
            price: Msat::new(10_000),
            valid_until: None,
            monthly: Vec::new(),
            paid: Msat::new(10_000),
            payments: 1,
            surplus: Msat::ZERO,
            settled_at: Timestamp::from_secs(1),
            refunded: Msat::ZERO,
            units: None,
            issued_at: Timestamp::from_secs(2),
        }
    }

    #[track_caller]
    fn check(price: u64, service: &str, want: usize) {
        let differs = differences(Msat::new(price), service, &receipt());
        assert_eq!(differs.len(), want, "{differs:?}");
    }

    #[test]
    fn a_receipt_is_held_against_what_the_journal_knows() {
        for (price, service) in [(10_000, "weather"), (0, ""), (0, "weather"), (10_000, "maps,weather")] {
            check(price, service, 0);
        }
        check(12_000, "weather", 2);
        check(9_000, "weather", 1);
        check(10_000, "maps", 1);
    }

    #[test]
    fn limits_by_the_month_are_held_against_those_of_the_token() {
        let limit = |most| farebox_protocol::Monthly { capability: "read".parse().unwrap(), most };
        let sold = |monthly| Sale {
            service: "weather".parse().unwrap(),
            tier: 0,
            terms: farebox_protocol::Terms { offer: Offer::Forever, price: Msat::new(10_000) },
            valid_until: None,
            capabilities: None,
            monthly,
            bound: None,
            replaces: None,
        };
        let told = |most| Monthly { capability: "read".parse().unwrap(), unit: Unit::Request, most };
        let says = |monthly: Vec<Monthly>, token: Vec<_>| {
            limited_otherwise(Some(&sold(token)), &Receipt { monthly, ..receipt() }).is_some()
        };
        assert!(!says(vec![told(5)], vec![limit(Most::Requests(5))]));
        assert!(!says(vec![], vec![limit(Most::Requests(5))]), "a seller of before");
        assert!(says(vec![told(5)], vec![limit(Most::Requests(6))]));
        assert!(says(vec![told(5)], vec![limit(Most::Spent(Msat::new(5_000)))]));
        assert!(says(vec![told(5)], vec![]));
    }
}
