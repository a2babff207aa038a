//! What a person agrees to beforehand, or after a request was refused for want of their word: questions are left in the
//! journal, and signed answers found there.

use farebox_protocol::{Msat, PaymentHash, Timestamp};

use ring::rand::{SecureRandom as _, SystemRandom};

use super::{Engine, Fault, FetchError, Money, Shared};
use crate::Question;
use crate::journal::{Approval, Found, Given, Overrun, PendingApproval, Redating};
use crate::policy::{Consent, SecretError};

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApproveError {
    /// The policy knows no secret.
    #[error(
        "the policy has no `consents`, so nobody can agree out of band; `farebox policy secret` makes the line for it"
    )]
    NoKey,
    /// Nothing waits under this name.
    #[error("no question waits as `{0}`; it may have been answered, or be older than a day")]
    NotThere(String),
    /// It isn't the secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The journal can't be used.
    #[error(transparent)]
    Journal(#[from] FetchError),
}

impl Engine {
    /// The questions that wait for a person, oldest first.
    pub async fn pending(&self) -> Result<Vec<PendingApproval>, FetchError> {
        let now = self.0.now();
        self.asked(move |journal| journal.pending(now)).await
    }

    /// What has become of the question with this name; `None` where it isn't known (any more).
    pub async fn approval(&self, id: &str) -> Result<Option<Approval>, FetchError> {
        let (name, now) = (id.to_owned(), self.0.now());
        let found = self.asked(move |journal| journal.approval(&name, now)).await?;
        let holds = |given: &Given| {
            let key = self.0.config.policy.consents.as_ref();
            key.is_some_and(|key| key.holds(&given.consent, &given.signature))
        };
        Ok(found.map(|found| match found {
            Found::Open(approval) => approval,
            Found::Given(_, Some(payment)) => Approval::Used(payment),
            Found::Given(given, None) if given.consent.until > now && holds(&given) => {
                let Consent { price_max, fee_max, until, .. } = given.consent;
                Approval::Approved { price_max, fee_max, until }
            }
            Found::Given(..) => Approval::Expired,
        }))
    }

    /// Agrees to this question, as the person has seen it: one payment of at most `price_max` and `fee_max` (what was asked, if
    /// `None`) until then. Takes a moment, for the secret's sake.
    ///
    /// What is signed is what is given here and not what stands in the journal by now, which others can write.
    pub async fn approve(
        &self,
        seen: &PendingApproval,
        secret: &str,
        (price_max, fee_max): (Option<Msat>, Option<Msat>),
        until: Timestamp,
    ) -> Result<Consent, ApproveError> {
        let key = self.0.config.policy.consents.as_ref().ok_or(ApproveError::NoKey)?;
        let PendingApproval { id, origin, method, path, label, price, fee_worst, .. } = seen.clone();
        let (price_max, fee_max) = (price_max.unwrap_or(price), fee_max.unwrap_or(fee_worst));
        let consent = Consent { id, origin, method, path, label, price_max, fee_max, until };
        let signature = key.sign(secret, &consent)?;
        let given = Given { consent: consent.clone(), signature };
        let id = consent.id.clone();
        match self.asked(move |journal| journal.answer(&id, Ok(&given))).await? {
            true => Ok(consent),
            false => Err(ApproveError::NotThere(consent.id)),
        }
    }

    /// Answers no. Anybody may: it only forbids.
    pub async fn deny(&self, id: &str) -> Result<(), ApproveError> {
        let (name, now) = (id.to_owned(), self.0.now());
        match self.asked(move |journal| journal.answer(&name, Err(now))).await? {
            true => Ok(()),
            false => Err(ApproveError::NotThere(id.to_owned())),
        }
    }

    /// Payments whose fee exceeded the most that the wallet had promised, and which nobody has acknowledged.
    pub async fn overruns(&self) -> Result<Vec<Overrun>, FetchError> {
        self.asked(|journal| journal.overruns()).await
    }

    /// The latest moment that the journal knows, where that is more than an hour after the present: the clock was wrong when it
    /// was written, or is wrong now. Until that moment, what is paid stays in every budget by time, and consents are over
    /// as soon as they are given: a clock must not open what a person has closed.
    pub async fn journal_ahead(&self) -> Result<Option<Timestamp>, FetchError> {
        let now = self.0.now();
        self.asked(move |journal| journal.ahead(now)).await
    }

    /// A person says that the clock is right now and was ahead once ([`Engine::journal_ahead`]). What is dated after the present counts
    /// as paid now, so that it leaves the budgets by time in their time, and frees nothing at this moment. If the clock is wrong
    /// now instead, all of that, and what is paid meanwhile, counts again once it is right. Consents that weren't used
    /// are forgotten.
    ///
    /// Never to be called for who is not that person: an agent, say.
    pub async fn redate(&self) -> Result<Redating, FetchError> {
        let now = self.0.now();
        self.asked(move |journal| journal.redate(now)).await
    }

    /// Lets a wallet pay again after an overrun that a person knows of now. `false`: none waits for this.
    pub async fn acknowledge(&self, payment: PaymentHash) -> Result<bool, FetchError> {
        let now = self.0.now();
        self.asked(move |journal| journal.acknowledge(&payment, now)).await
    }

    pub(super) async fn asked<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&crate::journal::Journal) -> Result<T, crate::journal::JournalError> + Send + 'static,
    ) -> Result<T, FetchError> {
        self.0.journal(ask).await.map_err(|error| FetchError::new(error, Money::None))
    }
}

impl Shared {
    /// A consent that covers this question, if a person has given one.
    pub(super) async fn consent_for(&self, question: &Question) -> Result<Option<String>, Fault> {
        let Some(key) = &self.config.policy.consents else { return Ok(None) };
        let (asked, now) = (question.clone(), self.now());
        let given = self.journal(move |journal| journal.given(&asked, now)).await?;
        let fits = given.into_iter().find(|given| key.holds(&given.consent, &given.signature));
        Ok(fits.map(|given| given.consent.id))
    }

    /// Leaves a question for a person who can answer with their secret; its name.
    pub(super) async fn leave(&self, question: Question) -> Result<Option<String>, Fault> {
        if self.config.policy.consents.is_none() {
            return Ok(None);
        }
        // Short enough to be typed; that nobody can guess it is not needed.
        let mut name = [0; 5];
        if SystemRandom::new().fill(&mut name).is_err() {
            return Ok(None);
        }
        let (name, now) = (hex::encode(name), self.now());
        self.journal(move |journal| journal.ask(&question, &name, now)).await
    }
}
