//! The refunds as the seller sees them, beside a gateway that runs or without one; and the word of a person about one that
//! nobody can explain.
//!
//! A wallet that knows nothing of a payment and can't prove that it never sent it leaves the refund open for ever, and its
//! money set aside. Then somebody has to look (at the wallet's own list, at the node, at the buyer) and say what became of it.
//! Their word is only written down here. Whoever pays takes it, since nobody else knows what is being asked of the wallet at
//! the same moment: the gateway does, within a minute or when it next starts, and only where it has given up finding out. What
//! the wallet itself says outweighs it.

use std::path::Path;

use farebox_lightning::outgoing::{
    IntentError,
    sqlite::{self, SqliteIntents},
};
use farebox_protocol::{Msat, PaymentHash, Timestamp};

use super::journal::{Entry, Journal, State};
use crate::store::accounts::{RefundId, RefundOf};

/// The journal of refunds, to be looked at.
pub struct Records(Journal);

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
    /// What arrives.
    pub amount: Msat,
    /// What the route may cost; set aside beside the amount.
    pub fee_max: Msat,
    /// The payment that brings it back.
    pub payment: PaymentHash,
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
    /// The journal.
    #[error(transparent)]
    Journal(#[from] IntentError),
}

impl Records {
    /// Opens the journal in this file, which must be there. Blocks on the disk, as all here does.
    ///
    /// # Errors
    ///
    /// When it isn't, or can't be used.
    pub fn open(path: &Path) -> Result<Self, IntentError> {
        if !path.exists() {
            let why = format!("there is no `{}`", path.display());
            let missing = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
            return Err(rusqlite::Error::SqliteFailure(missing, Some(why)).into());
        }
        Ok(Self(Journal::open(&SqliteIntents::open(path)?)?))
    }

    /// The last refunds, newest first.
    ///
    /// # Errors
    ///
    /// When the journal can't be read.
    pub fn last(&self, which: Which, rows_max: u32) -> Result<Vec<Record>, IntentError> {
        self.0.last(which, rows_max)?.into_iter().map(|entry| self.record(entry)).collect()
    }

    /// One refund.
    ///
    /// # Errors
    ///
    /// When the journal can't be read.
    pub fn find(&self, id: RefundId) -> Result<Option<Record>, IntentError> {
        self.0.find(id)?.map(|entry| self.record(entry)).transpose()
    }

    /// What was said of a refund, also of one that stands in the books alone.
    ///
    /// # Errors
    ///
    /// When the journal can't be read.
    pub fn word(&self, id: RefundId) -> Result<Option<Word>, IntentError> {
        self.0.word(id)
    }

    /// Writes down what a person says of a refund; saying the same again is no error. Of one that the journal doesn't know a
    /// word may be said as well: the books may.
    ///
    /// # Errors
    ///
    /// When it is known how it ended, something else was said, or the journal can't be written.
    pub fn say(&self, id: RefundId, word: &Word) -> Result<(), WordError> {
        if let Some(Record { state, fee_max, .. }) = self.find(id)? {
            if state != "open" {
                return Err(WordError::Ended { id, state });
            }
            if let Verdict::Paid { fee } = word.verdict
                && fee > fee_max
            {
                return Err(WordError::Fee { fee, fee_max });
            }
        }
        if self.0.say(id, word)? || self.0.word(id)?.is_some_and(|said| said.verdict == word.verdict) {
            return Ok(());
        }
        Err(WordError::Said(id))
    }

    fn record(&self, entry: Entry) -> Result<Record, IntentError> {
        let wanted = entry.wanted;
        let sent = sqlite::find(&self.0.connection().lock(), &wanted.payment)?;
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
            fee_max: wanted.fee_max,
            payment: wanted.payment,
            asked_at: entry.asked_at,
            state,
            fee,
            why: why.or(unknown),
            sending: sent.map(|sent| sent.state.name()),
            word: self.0.word(wanted.id)?,
        })
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}
