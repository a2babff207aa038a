//! A purchase as a person asks for it: the row of the books, its account, what was paid back, and whether its token was
//! revoked.
//!
//! For looking only: no request is decided by it, and nothing is written from it. A purchase can be in several states at
//! once (revoked, and with a surplus), so each is asked by itself. Money stays what it is whatever the state: revoking a
//! token takes nothing off the books.

use std::{fmt, str::FromStr};

use farebox_lightning::Cursor;
use farebox_protocol::{Msat, ServiceName, Timestamp};

use super::{
    Purchase,
    accounts::{Account, Audit},
};

/// A purchase with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The row of the books.
    pub purchase: Purchase,
    /// Its account, where it was sold in units and the token has been used.
    pub account: Option<Account>,
    /// Surplus that is on its way back.
    pub surplus_refunding: Msat,
    /// Surplus that was paid back.
    pub surplus_refunded: Msat,
    /// Whether its token was revoked, and why.
    pub revoked: Option<RevokedAt>,
}

/// That a token was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokedAt {
    /// When.
    pub at: Timestamp,
    /// Why, in the seller's words.
    pub reason: String,
}

/// What may be said of a purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Its token opens something: neither revoked nor ended nor used up.
    Open,
    /// All its units are used or paid back.
    UsedUp,
    /// Its time is over.
    Ended,
    /// Its token was revoked.
    Revoked,
    /// Money has come, and nobody has shown a token for it.
    Unattributed,
    /// Its token was shown, and the node has not told of the money yet.
    Unsettled,
    /// More money has come than was asked for.
    Surplus,
    /// Less money has come than was asked for.
    Short,
    /// Money is on its way back.
    Refunding,
    /// Money was paid back.
    Refunded,
}

/// A state that isn't known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no state of a purchase; there are {all}", all = State::ALL.map(State::as_str).join(", "))]
pub struct UnknownState(pub String);

/// Which purchases are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Select {
    /// Of this service; what nobody has shown a token for goes by what its invoice says.
    pub service: Option<ServiceName>,
    /// From this moment on, by when the money came or, before that, the token was shown.
    pub since: Option<Timestamp>,
    /// Before this moment.
    pub until: Option<Timestamp>,
    /// In this state.
    pub state: Option<State>,
}

/// In which order, by when they came on the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// For people who look.
    NewestFirst,
    /// For copies that are to be added to.
    OldestFirst,
}

/// One payment as a node has told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// The node.
    pub node: String,
    /// Its place in the node's sequence.
    pub cursor: Cursor,
    /// How much.
    pub amount: Msat,
    /// When.
    pub at: Timestamp,
}

/// What came in for one service on one day (UTC), and what was used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Day {
    /// Days since 1970.
    pub day: u64,
    /// The service; none for money that nobody has shown a token for.
    pub service: Option<ServiceName>,
    /// How many payments came.
    pub payments: u64,
    /// How much money.
    pub paid: Msat,
    /// How much of it is beyond the price.
    pub surplus: Msat,
    /// How much was paid back, be it of this day's money or of an earlier one's.
    pub refunded: Msat,
    /// How many requests were charged. Passes are not counted.
    pub requests: u64,
    /// Units charged where requests are counted.
    pub used_requests: u64,
    /// Credit charged.
    pub used: Msat,
    /// Credit's worth of use that nobody pays for.
    pub written_off: Msat,
}

/// Where all the money is. The law of all books together: what came in, is missing or awaited is what passes cost, what
/// became of units, surplus, and what nobody has claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// All that has arrived.
    pub paid: Msat,
    /// What is missing to prices that were paid in part.
    pub missing: Msat,
    /// The prices of what was shown, while the node has not told of the money.
    pub awaited: Msat,
    /// The prices of passes.
    pub passes: Msat,
    /// Of what was sold in units: earned.
    pub spent: Msat,
    /// On its way back.
    pub refunding: Msat,
    /// Paid back.
    pub refunded: Msat,
    /// Still owed to buyers, in service.
    pub left: Msat,
    /// Beyond the prices.
    pub surplus: Msat,
    /// Of which on its way back.
    pub surplus_refunding: Msat,
    /// Of which paid back.
    pub surplus_refunded: Msat,
    /// Money that nobody has shown a token for.
    pub unattributed: Msat,
}

/// What an examination of the books from outside has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Law by law.
    pub audit: Audit,
    /// In sum.
    pub totals: Totals,
    /// Whether a gateway has the books open.
    pub is_running: bool,
}

impl Entry {
    /// When its money came or, before that, its token was shown.
    pub fn at(&self) -> Option<Timestamp> {
        self.purchase.settled_at.or(self.purchase.presented_at)
    }

    /// Its service, as its token says or, before that was shown, its invoice.
    pub fn service(&self) -> Option<&ServiceName> {
        let claimed = || self.purchase.claimed.as_ref().map(|claimed| &claimed.service);
        self.purchase.sold.as_ref().map(|sold| &sold.service).or_else(claimed)
    }

    /// All that was paid back: credit and surplus.
    pub fn refunded(&self) -> Msat {
        let credit = self.account.as_ref().map_or(0, |account| account.balance.refunded());
        self.surplus_refunded.saturating_add(Msat::new(credit))
    }

    /// Whether this may be said of it.
    pub fn is(&self, state: State, now: Timestamp) -> bool {
        let Purchase { sold, surplus, shortfall, .. } = &self.purchase;
        let balance = self.account.as_ref().map(|account| &account.balance);
        match state {
            State::Open => {
                let over = [State::Revoked, State::Ended, State::UsedUp];
                sold.is_some() && !over.into_iter().any(|state| self.is(state, now))
            }
            State::UsedUp => balance.is_some_and(|balance| balance.left() == 0),
            State::Ended => sold.as_ref().and_then(|sold| sold.valid_until).is_some_and(|until| until <= now),
            State::Revoked => self.revoked.is_some(),
            State::Unattributed => sold.is_none(),
            State::Unsettled => !self.purchase.is_settled(),
            State::Surplus => *surplus > Msat::ZERO,
            State::Short => *shortfall > Msat::ZERO,
            State::Refunding => {
                self.surplus_refunding > Msat::ZERO || balance.is_some_and(|balance| balance.refunding() > 0)
            }
            State::Refunded => self.refunded() > Msat::ZERO,
        }
    }

    /// All that may be said of it.
    pub fn states(&self, now: Timestamp) -> impl Iterator<Item = State> {
        State::ALL.into_iter().filter(move |state| self.is(*state, now))
    }
}

impl State {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Open,
        Self::UsedUp,
        Self::Ended,
        Self::Revoked,
        Self::Unattributed,
        Self::Unsettled,
        Self::Surplus,
        Self::Short,
        Self::Refunding,
        Self::Refunded,
    ];

    /// As people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::UsedUp => "used-up",
            Self::Ended => "ended",
            Self::Revoked => "revoked",
            Self::Unattributed => "unattributed",
            Self::Unsettled => "unsettled",
            Self::Surplus => "surplus",
            Self::Short => "short",
            Self::Refunding => "refunding",
            Self::Refunded => "refunded",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| UnknownState(text.to_owned()))
    }
}

impl Totals {
    /// Whether what came in is what became of it.
    pub fn hold(&self) -> bool {
        let sum = |parts: &[Msat]| parts.iter().map(|part| u128::from(part.get())).sum::<u128>();
        sum(&[self.paid, self.missing, self.awaited])
            == sum(&[
                self.passes,
                self.spent,
                self.refunding,
                self.refunded,
                self.left,
                self.surplus,
                self.unattributed,
            ])
    }
}
