//! A double of a wallet: it moves no money, but keeps its books in files, so that several processes can share it and a
//! killed one loses nothing. What it can prove and how it behaves is up to the test.

use std::{
    fs,
    io::Write as _,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use farebox_lightning::{FeeControl, Outcome, Pay, PayError, PayFacts, PayRequest, WalletId};
use farebox_protocol::{Msat, Network, PaymentHash, Preimage};
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::Semaphore;

use super::Net;

/// How the double answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Pays at once.
    Prompt,
    /// Pays, says that it is under way, and tells the outcome from the second lookup on.
    Slow,
    /// Pays, and then the line is cut.
    Mute,
    /// Can't find a way and says so.
    Stranded,
    /// Loses the order on its way and never hears of it.
    Lost,
    /// Pays at once, and until then says of every payment that it failed.
    Forgetful,
}

/// The double.
pub(crate) struct WalletDouble {
    net: Net,
    pub(crate) facts: PayFacts,
    pub(crate) mood: Mood,
    /// How many payments may begin; the rest wait. Closed never.
    pub(crate) gate: Semaphore,
    pub(crate) asked: AtomicUsize,
    /// What a route costs, whatever the limit.
    pub(crate) fee: Msat,
    /// The fee limit, in msat, of the latest payment that it was asked for.
    pub(crate) fee_max: AtomicU64,
    lookups: AtomicUsize,
}

impl WalletDouble {
    pub(crate) fn new(net: Net) -> Self {
        let facts = PayFacts {
            wallet: WalletId("double".to_owned()),
            network: Network::Regtest,
            proves_unsent: false,
            refuses_paid_hash: true,
            fee_control: FeeControl::Exact,
        };
        Self {
            net,
            facts,
            mood: Mood::Prompt,
            gate: Semaphore::new(1_000),
            asked: AtomicUsize::new(0),
            fee: Msat::new(1_000),
            fee_max: AtomicU64::new(u64::MAX),
            lookups: AtomicUsize::new(0),
        }
    }

    pub(crate) fn in_mood(mut self, mood: Mood) -> Self {
        self.mood = mood;
        self
    }

    fn preimage(&self, hash: &PaymentHash) -> Preimage {
        let hex = fs::read_to_string(self.net.path().join(format!("invoices/{hash}"))).unwrap();
        Preimage::from_hex(&hex).unwrap()
    }

    /// Moves the money, as far as there is any. A wallet that refuses a paid hash does so once.
    fn move_money(&self, hash: &PaymentHash) {
        let first = fs::File::create_new(self.net.path().join(format!("paid/{hash}"))).is_ok();
        if first || !self.facts.refuses_paid_hash {
            let mut log =
                fs::File::options().create(true).append(true).open(self.net.path().join("payments")).unwrap();
            log.write_all(format!("{hash}\n").as_bytes()).unwrap();
        }
    }

    fn settled(&self, hash: &PaymentHash) -> Outcome {
        Outcome::Settled { preimage: self.preimage(hash), fee: self.fee }
    }
}

impl Pay for WalletDouble {
    fn facts(&self) -> PayFacts {
        self.facts.clone()
    }

    fn pay(&self, request: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        async move {
            self.fee_max.store(request.fee_max.get(), Ordering::SeqCst);
            self.asked.fetch_add(1, Ordering::SeqCst);
            let _permit = self.gate.acquire().await.unwrap();
            let hash = request.invoice.payment_hash();
            match self.mood {
                Mood::Stranded => return Ok(Outcome::Failed("no route".to_owned())),
                Mood::Lost => return Err(PayError::Unavailable("the line was cut".to_owned())),
                Mood::Prompt | Mood::Slow | Mood::Mute | Mood::Forgetful => self.move_money(&hash),
            }
            match self.mood {
                Mood::Slow => Ok(Outcome::InFlight),
                Mood::Mute => Err(PayError::Unavailable("the line was cut".to_owned())),
                _ => Ok(self.settled(&hash)),
            }
        }
        .boxed()
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        async move {
            let before = self.lookups.fetch_add(1, Ordering::SeqCst);
            if !self.net.path().join(format!("paid/{hash}")).exists() {
                return Ok(match self.mood {
                    Mood::Forgetful => Outcome::Failed("no route".to_owned()),
                    _ => Outcome::NotFound,
                });
            }
            if self.mood == Mood::Slow && before == 0 {
                return Ok(Outcome::InFlight);
            }
            Ok(self.settled(&hash))
        }
        .boxed()
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        async { Ok(Msat::MAX) }.boxed()
    }
}
