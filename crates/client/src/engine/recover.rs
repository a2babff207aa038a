//! Payments whose end this journal doesn't know, long after whoever began them: at the start of an engine, and when a person
//! asks. The wallet is only looked into; nothing is ever paid here.

use std::sync::Arc;

use farebox_lightning::Outcome;
use farebox_lightning::outgoing::{Ended, Failure, Intents as _, State};
use farebox_protocol::PaymentHash;
use tokio::time;

use super::settle::{LOOKUP_TIMEOUT, Settled};
use super::{Engine, Fault, FetchError, Money, Shared};
use crate::import::Found;
use crate::journal::{Brought, Journal, PurchaseRow, WRITTEN_OFF};

/// What has become of one payment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Recovered {
    /// The purchase, as it stands now.
    pub purchase: PurchaseRow,
    /// What the wallet said.
    pub outcome: Recovery,
}

/// What a wallet says of an old payment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recovery {
    /// It was paid, and its credential is held.
    Paid,
    /// It was not paid, and why.
    NotPaid(String),
    /// Still nobody knows, and why.
    Unknown(String),
}

impl Engine {
    /// Asks the wallet about the payments whose outcome is not known, those that a person has written off and those that other
    /// programs have begun; or about this one, whatever is known of it. Keeps the credentials that turn out to be paid for.
    /// Pays nothing.
    pub async fn recover(&self, payment: Option<PaymentHash>) -> Result<Vec<Recovered>, FetchError> {
        let free = |fault| FetchError::new(fault, Money::None);
        let shared = &self.0;
        let asked = match payment {
            Some(hash) => vec![hash],
            None => shared.journal(Journal::unclear).await.map_err(free)?,
        };
        let mut recovered = Vec::new();
        for hash in asked {
            let outcome = shared.recover(hash).await.map_err(free)?;
            if let Some(purchase) = self.purchase(hash).await? {
                recovered.push(Recovered { purchase, outcome });
            }
        }
        Ok(recovered)
    }

    /// Brings in credentials that another program, `source`, has bought: all of them, or none where the journal can't be
    /// written. Those that it was about to pay for are looked up in the wallet, if there is one; nothing is paid for them.
    pub async fn import(&self, found: Vec<Found>, source: &str) -> Result<Vec<Brought>, FetchError> {
        let (now, source) = (self.0.now(), source.to_owned());
        let hashes: Vec<_> = found.iter().map(|found| found.payment_hash).collect();
        let brought = self.asked(move |journal| journal.import(&found, &source, now)).await?;
        let pending = hashes.iter().zip(&brought).filter(|(_, brought)| **brought == Brought::Pending);
        for (hash, _) in pending {
            self.0.recover(*hash).await.map_err(|fault| FetchError::new(fault, Money::None))?;
        }
        Ok(brought)
    }

    /// What [`import`](Self::import) would do.
    pub async fn plan_import(&self, found: Vec<Found>) -> Result<Vec<Brought>, FetchError> {
        self.asked(move |journal| journal.plan_import(&found)).await
    }
}

impl Shared {
    /// Looks up, in the background, what earlier processes have left open. An engine that is closed stops looking.
    pub(super) fn reconcile(self: &Arc<Self>) {
        // Without a runtime there is nobody to do it; whoever asks later finds it by themselves.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.outgoing.is_none() {
            return;
        }
        let shared = Arc::clone(self);
        let work = async move {
            tokio::select! {
                () = shared.closing.cancelled() => {}
                done = shared.look_at_all() => if let Err(error) = done {
                    tracing::warn!(%error, "payments of earlier runs could not be looked up");
                }
            }
        };
        self.tasks.spawn_on(work, &runtime);
    }

    async fn look_at_all(&self) -> Result<(), Fault> {
        for order in self.journal(Journal::unsettled).await? {
            if let Settled::Ended(Ended::Settled(_)) = self.look(order.payment_hash()).await? {
                tracing::info!(payment = %order.payment_hash(), "a payment of an earlier run has been made; its credential is held");
            }
        }
        for hash in self.journal(Journal::open_imports).await? {
            self.look_elsewhere(hash).await?;
        }
        Ok(())
    }

    /// Asks the wallet about one payment and writes down what it says.
    async fn recover(&self, hash: PaymentHash) -> Result<Recovery, Fault> {
        match self.journal(move |journal| journal.import_of(&hash)).await? {
            Some((state, _)) if state == "unknown" => return self.look_elsewhere(hash).await,
            // Only a proof changes what is taken for failed, by a person's word perhaps.
            Some((state, reason)) if state == "failed" => {
                return Ok(match self.look_elsewhere(hash).await? {
                    Recovery::Paid => Recovery::Paid,
                    Recovery::NotPaid(_) | Recovery::Unknown(_) => Recovery::NotPaid(reason),
                });
            }
            _ => {}
        }
        let found = self.payments(move |payments| payments.find(&hash)).await?;
        let Some(row) = found else {
            return Ok(match self.journal(move |journal| journal.pass(&hash)).await? {
                Some(_) => Recovery::Paid,
                None => Recovery::NotPaid("the journal knows no open payment of this hash".to_owned()),
            });
        };
        match row.state {
            State::Settled { .. } => Ok(Recovery::Paid),
            State::Recorded => Ok(Recovery::NotPaid("it has not been sent".to_owned())),
            State::Sent | State::Unknown { .. } => Ok(match self.look(hash).await? {
                Settled::Ended(Ended::Settled(_)) => Recovery::Paid,
                Settled::Ended(Ended::NotPaid(failure)) => Recovery::NotPaid(failure.reason),
                Settled::Ended(Ended::Unknown { reason }) | Settled::PayAgain(reason) => {
                    Recovery::Unknown(reason)
                }
            }),
            State::Failed(Failure { reason, .. }) => self.look_at_failed(hash, reason).await,
        }
    }

    /// A payment that is taken for failed, by a person's word perhaps: only a proof changes that.
    async fn look_at_failed(&self, hash: PaymentHash, reason: String) -> Result<Recovery, Fault> {
        let Some(Outcome::Settled { preimage, fee }) = self.asked_of_wallet(hash).await.ok() else {
            return Ok(Recovery::NotPaid(reason));
        };
        let now = self.now();
        self.payments(move |payments| payments.settle(&hash, &preimage, fee, now)).await?;
        Ok(Recovery::Paid)
    }

    /// A payment that another program began: this wallet may be the one that made it.
    async fn look_elsewhere(&self, hash: PaymentHash) -> Result<Recovery, Fault> {
        let now = self.now();
        match self.asked_of_wallet(hash).await {
            Ok(Outcome::Settled { preimage, fee }) => {
                self.journal(move |journal| journal.close_import(&hash, Ok((&preimage, fee)), now)).await?;
                Ok(Recovery::Paid)
            }
            Ok(Outcome::Failed(reason)) => {
                let why = reason.clone();
                self.journal(move |journal| journal.close_import(&hash, Err(&why), now)).await?;
                Ok(Recovery::NotPaid(reason))
            }
            Ok(Outcome::InFlight) => Ok(Recovery::Unknown("it is under way".to_owned())),
            Ok(Outcome::NotFound) => Ok(Recovery::Unknown(
                "this wallet doesn't know it; ask with the wallet that the other program paid from"
                    .to_owned(),
            )),
            Err(reason) => Ok(Recovery::Unknown(reason)),
        }
    }

    /// What the wallet says; a proof that proves nothing is no answer.
    async fn asked_of_wallet(&self, hash: PaymentHash) -> Result<Outcome, String> {
        let outgoing = self.outgoing.as_ref().ok_or("there is no wallet to ask")?;
        match time::timeout(LOOKUP_TIMEOUT, outgoing.wallet().lookup(hash)).await {
            Ok(Ok(Outcome::Settled { preimage, .. })) if !preimage.pays(&hash) => {
                Err("the wallet's proof of payment is none".to_owned())
            }
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err("the wallet did not answer in time".to_owned()),
        }
    }

    /// Takes a person's word that another program's payment was never made. `false`: there is no such open payment.
    pub(super) async fn write_off_elsewhere(&self, hash: PaymentHash) -> Result<bool, Fault> {
        let now = self.now();
        self.journal(move |journal| journal.close_import(&hash, Err(WRITTEN_OFF), now)).await
    }
}
