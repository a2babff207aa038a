//! The refunds as the seller sees them, beside a gateway that runs or without one; and the word of a person about one that
//! nobody can explain.
//!
//! A wallet that knows nothing of a payment and can't prove that it never sent it leaves the refund open for ever, and its
//! money set aside. Then somebody has to look (at the wallet's own list, at the node, at the buyer) and say what became of it.
//! Their word is only written down here. Whoever pays takes it, since nobody else knows what is being asked of the wallet at
//! the same moment: the gateway does, within a minute or when it next starts, and only where it has given up finding out. What
//! the wallet itself says outweighs it.
//!
//! The books are looked at, too: a refund that only they know (an *orphan*, since the journal was lost or is an older copy) is
//! shown and can be spoken of like any other.

use std::path::Path;

use farebox_lightning::outgoing::{
    IntentError,
    sqlite::{self, SqliteIntents},
};
use farebox_protocol::{Msat, PaymentHash, Timestamp};

use super::journal::{Entry, Journal, State};
use crate::{
    ledger::law::Refund,
    store::{
        StoreError,
        accounts::{RefundId, RefundOf, RefundRow},
        sqlite::Inspector,
    },
};

/// The refunds of a seller, to be looked at.
pub struct Records {
    journal: Option<Journal>,
    books: Option<Inspector>,
}

/// Which refunds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that haven't ended.
    Open,
    /// All of them.
    All,
}

/// A refund, as its seller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which.
    pub id: RefundId,
    /// The payment that bought what is paid back.
    pub purchase: PaymentHash,
    /// From what.
    pub of: RefundOf,
    /// What arrives. Of an orphan what was set aside, the route included, or what has left.
    pub amount: Msat,
    /// What the route may cost; set aside beside the amount. `None` of an orphan.
    pub fee_max: Option<Msat>,
    /// The payment that brings it back. `None` of an orphan: nobody knows any more.
    pub payment: Option<PaymentHash>,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// `open`, `paid` or `failed`.
    pub state: &'static str,
    /// What the route cost, where it was paid.
    pub fee: Option<Msat>,
    /// Why it wasn't paid, or isn't known to be.
    pub why: Option<String>,
    /// How far its payment is, as `outgoing` calls it; `None` where the wallet was never to be asked.
    pub sending: Option<&'static str>,
    /// What a person has said.
    pub word: Option<Word>,
    /// What the books know of it. `None` where they know nothing, or weren't looked at.
    pub booked: Option<RefundRow>,
}

/// Why refunds can't be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] IntentError),
    /// The books.
    #[error("the books can't be read")]
    Books(#[from] StoreError),
}

/// What a person says became of a refund.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// That.
    pub verdict: Verdict,
    /// How they know.
    pub note: String,
    /// When they said it.
    pub said_at: Timestamp,
}

/// Paid or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The money has left, and will not come back.
    Paid {
        /// What the route cost, as far as they know.
        fee: Msat,
    },
    /// It has not, and never will.
    NotPaid,
}

/// Why a person's word was not written down.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WordError {
    /// It is known already.
    #[error("refund `{}` has ended: it is `{state}`", hex::encode(id.0))]
    Ended {
        /// Which.
        id: RefundId,
        /// How.
        state: &'static str,
    },
    /// Something else was said before.
    #[error("something was said of refund `{}` before, and the first word counts", hex::encode(.0.0))]
    Said(RefundId),
    /// More than was set aside for it.
    #[error("the route of this refund was allowed {fee_max}, so it can't have cost {fee}")]
    Fee {
        /// What was said.
        fee: Msat,
        /// What was set aside.
        fee_max: Msat,
    },
    /// What an orphan's route has cost says nothing: nobody knows what it was to bring.
    #[error("only the books know refund `{}`, and all that is set aside for it counts as paid; say no fee", hex::encode(.0.0))]
    FeeOfOrphan(RefundId),
    /// Nobody knows it.
    #[error("neither the journal of refunds nor the books know a refund `{}`", hex::encode(.0.0))]
    Unknown(RefundId),
    /// There is nowhere to write it to.
    #[error(
        "there is no journal of refunds; start the gateway with `refunds` in its configuration, which makes one"
    )]
    NoJournal,
    /// The refund can't be looked at.
    #[error(transparent)]
    Records(#[from] RecordsError),
}

impl From<IntentError> for WordError {
    fn from(error: IntentError) -> Self {
        Self::Records(error.into())
    }
}

impl Records {
    /// Opens the journal in this file, where there is one, beside these books. Blocks on the disk, as all here does.
    ///
    /// # Errors
    ///
    /// When the journal can't be used.
    pub fn open(journal: &Path, books: Option<Inspector>) -> Result<Self, IntentError> {
        let journal = match journal.exists() {
            true => Some(Journal::open(&SqliteIntents::open(journal)?)?),
            false => None,
        };
        Ok(Self { journal, books })
    }

    /// The last refunds, newest first. Among the open ones are those that only the books hold money for, and those whose money
    /// isn't all taken from their purchases.
    ///
    /// # Errors
    ///
    /// When the journal or the books can't be read.
    pub fn last(&self, which: Which, rows_max: u32) -> Result<Vec<Record>, RecordsError> {
        let mut records: Vec<Record> = match &self.journal {
            Some(journal) => {
                let entries = journal.last(which, rows_max)?;
                entries.into_iter().map(|entry| self.record(journal, entry)).collect::<Result<_, _>>()?
            }
            None => Vec::new(),
        };
        if let Some(books) = &self.books {
            let mut rows = books.open_refunds(rows_max)?;
            rows.extend(books.missed_refunds(rows_max)?);
            if which == Which::All {
                rows.extend(books.last_refunds(rows_max)?);
            }
            for row in rows {
                let id = row.order.id;
                if !records.iter().any(|record| record.id == id) {
                    records.extend(self.find(id)?);
                }
            }
        }
        records.sort_by_key(|record| std::cmp::Reverse(record.asked_at));
        records.truncate(usize::try_from(rows_max).unwrap_or(usize::MAX));
        Ok(records)
    }

    /// One refund.
    ///
    /// # Errors
    ///
    /// When the journal or the books can't be read.
    pub fn find(&self, id: RefundId) -> Result<Option<Record>, RecordsError> {
        if let Some(journal) = &self.journal
            && let Some(entry) = journal.find(id)?
        {
            return self.record(journal, entry).map(Some);
        }
        self.booked(id)?.map(|row| self.orphan(row)).transpose()
    }

    /// What was said of a refund, also of one that stands in the books alone.
    ///
    /// # Errors
    ///
    /// When the journal can't be read.
    pub fn word(&self, id: RefundId) -> Result<Option<Word>, IntentError> {
        Ok(self.journal.as_ref().map(|journal| journal.word(id)).transpose()?.flatten())
    }

    /// Writes down what a person says of a refund; saying the same again is no error.
    ///
    /// # Errors
    ///
    /// When nobody knows the refund, it is known how it ended, something else was said, or the journal can't be written.
    pub fn say(&self, id: RefundId, word: &Word) -> Result<(), WordError> {
        let Record { state, fee_max, .. } = self.find(id)?.ok_or(WordError::Unknown(id))?;
        if state != "open" {
            return Err(WordError::Ended { id, state });
        }
        match (word.verdict, fee_max) {
            (Verdict::Paid { fee }, Some(fee_max)) if fee > fee_max => {
                return Err(WordError::Fee { fee, fee_max });
            }
            (Verdict::Paid { fee }, None) if fee > Msat::ZERO => return Err(WordError::FeeOfOrphan(id)),
            _ => {}
        }
        let journal = self.journal.as_ref().ok_or(WordError::NoJournal)?;
        if journal.say(id, word)? || journal.word(id)?.is_some_and(|said| said.verdict == word.verdict) {
            return Ok(());
        }
        Err(WordError::Said(id))
    }

    fn booked(&self, id: RefundId) -> Result<Option<RefundRow>, StoreError> {
        Ok(self.books.as_ref().map(|books| books.refund(id)).transpose()?.flatten())
    }

    fn record(&self, journal: &Journal, entry: Entry) -> Result<Record, RecordsError> {
        let wanted = entry.wanted;
        let sent = sqlite::find(&journal.connection().lock(), &wanted.payment)?;
        let (state, fee, why) = match entry.state {
            State::Open => ("open", None, None),
            State::Paid { fee } => ("paid", Some(fee), None),
            State::Failed { why } => ("failed", None, Some(why)),
        };
        let unknown = sent.as_ref().and_then(|sent| match &sent.state {
            farebox_lightning::outgoing::State::Unknown { reason } => Some(reason.clone()),
            _ => None,
        });
        Ok(Record {
            id: wanted.id,
            purchase: wanted.purchase,
            of: wanted.of,
            amount: wanted.amount,
            fee_max: Some(wanted.fee_max),
            payment: Some(wanted.payment),
            asked_at: entry.asked_at,
            state,
            fee,
            why: why.or(unknown),
            sending: sent.map(|sent| sent.state.name()),
            word: journal.word(wanted.id)?,
            booked: self.booked(wanted.id)?,
        })
    }

    /// One that only the books know.
    fn orphan(&self, row: RefundRow) -> Result<Record, RecordsError> {
        let (state, why) = match row.ended {
            None => ("open", Some("its money is set aside, and nobody knows whether it was paid".to_owned())),
            Some((Refund::Failed, _)) => ("failed", None),
            Some(_) => ("paid", None),
        };
        Ok(Record {
            id: row.order.id,
            purchase: row.order.hash,
            of: row.order.of,
            amount: row.order.amount.saturating_add(row.missing),
            fee_max: None,
            payment: None,
            asked_at: row.order.at,
            state,
            fee: None,
            why,
            sending: None,
            word: self.word(row.order.id)?,
            booked: Some(row),
        })
    }
}

impl Record {
    /// Whether only the books know it.
    pub const fn is_orphan(&self) -> bool {
        self.payment.is_none()
    }

    /// What isn't taken from its purchase.
    pub fn missing(&self) -> Msat {
        self.booked.map_or(Msat::ZERO, |row| row.missing)
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}
