//! The text of a receipt: what each line is called, how its value is written, and how it is read again.
//!
//! Reading is strict, in the order of writing, and what was read is written again and compared: there is one text for each
//! receipt. Only the ends of lines may have changed on the way, as mail does it.

use std::{fmt, str::FromStr};

use farebox_protocol::{Msat, Timestamp};

use super::{Monthly, Receipt, ReceiptError, ReceiptPublicKey, SignedReceipt, Units};

/// The first line of every receipt of this version.
pub(super) const FIRST: &str = "farebox receipt v1";
/// The name of the last.
pub(super) const SIGNATURE: &str = "signature";
const KEY: &str = "key";

/// All but the signature: what is signed.
pub(super) fn signed(receipt: &Receipt, key: &ReceiptPublicKey) -> String {
    let Receipt {
        seller,
        network,
        hash,
        service,
        tier,
        offer,
        price,
        valid_until,
        monthly,
        paid,
        payments,
        surplus,
        settled_at,
        refunded,
        units,
        issued_at,
    } = receipt;
    let mut text = format!("{FIRST}\n");
    let mut line = |name: &str, value: &dyn std::fmt::Display| text.push_str(&format!("{name}: {value}\n"));
    if let Some(seller) = seller {
        line("seller", seller);
    }
    line("network", network);
    line("payment-hash", hash);
    line("service", service);
    line("tier", tier);
    line("offer", offer);
    line("price-msat", &price.get());
    if let Some(until) = valid_until {
        line("valid-until", &until.secs());
    }
    for limit in monthly {
        line("monthly", limit);
    }
    line("paid-msat", &paid.get());
    line("payments", payments);
    line("surplus-msat", &surplus.get());
    line("settled-at", &settled_at.secs());
    line("refunded-msat", &refunded.get());
    if let Some(Units { unit, sold, spent, left }) = units {
        line("unit", &unit.as_str());
        line("sold", sold);
        line("spent", spent);
        line("left", left);
    }
    line("issued-at", &issued_at.secs());
    line(KEY, key);
    text
}

/// Reads a receipt, without checking its signature.
pub(super) fn read(text: &str) -> Result<SignedReceipt, ReceiptError> {
    let mut lines = Lines { lines: text.trim().lines().collect(), at: 0 };
    if lines.lines.first().map(|line| line.trim_end()) != Some(FIRST) {
        return Err(ReceiptError::NotAReceipt);
    }
    lines.at = 1;
    let msat = |msat: u64| Msat::new(msat);
    let receipt = Receipt {
        seller: lines.maybe("seller")?,
        network: lines.must("network")?,
        hash: lines.must("payment-hash")?,
        service: lines.must("service")?,
        tier: lines.must("tier")?,
        offer: lines.must("offer")?,
        price: lines.must("price-msat").map(msat)?,
        valid_until: lines.maybe("valid-until")?.map(Timestamp::from_secs),
        monthly: lines.all("monthly", |Limit(limit)| limit)?,
        paid: lines.must("paid-msat").map(msat)?,
        payments: lines.must("payments")?,
        surplus: lines.must("surplus-msat").map(msat)?,
        settled_at: lines.must("settled-at").map(Timestamp::from_secs)?,
        refunded: lines.must("refunded-msat").map(msat)?,
        units: match lines.maybe("unit")? {
            None => None,
            Some(unit) => Some(Units {
                unit,
                sold: lines.must("sold")?,
                spent: lines.must("spent")?,
                left: lines.must("left")?,
            }),
        },
        issued_at: lines.must("issued-at").map(Timestamp::from_secs)?,
    };
    let key = lines.must(KEY)?;
    let digits: String = lines.must(SIGNATURE)?;
    let mut signature = [0; 64];
    let wrong = lines.wrong(SIGNATURE, lines.at);
    hex::decode_to_slice(&digits, &mut signature).map_err(|_| wrong)?;
    if lines.at < lines.lines.len() {
        return Err(lines.wrong("nothing", lines.at + 1));
    }
    let read = SignedReceipt { receipt, key, signature };
    let again = read.to_string();
    let same = again.lines().eq(lines.lines.iter().map(|line| line.trim_end()));
    if same { Ok(read) } else { Err(ReceiptError::Spelling) }
}

impl fmt::Display for Monthly {
    /// As terms are written: `capability=read;unit=request;most=1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "capability={};unit={};most={}", self.capability, self.unit.as_str(), self.most)
    }
}

/// A limit that was read.
struct Limit(Monthly);

impl FromStr for Limit {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let read = || {
            let (capability, rest) = text.strip_prefix("capability=")?.split_once(";unit=")?;
            let (unit, most) = rest.split_once(";most=")?;
            let (capability, unit) = (capability.parse().ok()?, unit.parse().ok()?);
            Some(Self(Monthly { capability, unit, most: most.parse().ok()? }))
        };
        read().ok_or(())
    }
}

struct Lines<'t> {
    lines: Vec<&'t str>,
    /// How many are read.
    at: usize,
}

impl Lines<'_> {
    /// The value of the next line, which has this name.
    fn must<T: FromStr>(&mut self, name: &'static str) -> Result<T, ReceiptError> {
        self.maybe(name)?.ok_or_else(|| self.wrong(name, self.at + 1))
    }

    /// The value of the next line, if it has this name.
    fn maybe<T: FromStr>(&mut self, name: &'static str) -> Result<Option<T>, ReceiptError> {
        let Some(rest) = self.lines.get(self.at).and_then(|line| line.strip_prefix(name)) else {
            return Ok(None);
        };
        let Some(value) = rest.strip_prefix(": ") else { return Ok(None) };
        self.at += 1;
        value.trim_end().parse().map(Some).map_err(|_| self.wrong(name, self.at))
    }

    /// The values of the next lines that have this name.
    fn all<T: FromStr, U>(
        &mut self,
        name: &'static str,
        of: impl Fn(T) -> U,
    ) -> Result<Vec<U>, ReceiptError> {
        std::iter::from_fn(|| self.maybe(name).transpose()).map(|read| read.map(&of)).collect()
    }

    fn wrong(&self, want: &'static str, line: usize) -> ReceiptError {
        ReceiptError::Line { line, want }
    }
}
