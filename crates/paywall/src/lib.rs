//! Who may pass: one pure decision, offers, minting, revocation and the seller's books.
//!
//! Start reading at [`decide`]. [`Paywall`] gathers the facts for it and carries its decision out; [`layer`] puts it in
//! front of a tower service. This crate knows no sockets: a front door translates what it received into a [`Request`]
//! and what it is told ([`Admission`]) into bytes.

mod admission;
mod bill;
mod books;
mod code;
mod config;
pub mod decide;
pub mod forward;
pub mod keyring;
pub mod layer;
pub mod ledger;
mod limit;
mod menu;
mod mint;
mod nodes;
mod path;
mod paywall;
pub mod price;
pub mod receipt;
pub mod refund;
mod respond;
mod sales;
mod seen;
mod service;
pub mod store;
mod trouble;

pub use admission::{Admission, Answer, Pass, Request};
pub use bill::{Bill, LEFT_HEADER, LEFT_UNIT_HEADER};
pub use code::Code;
pub use config::{Continuity, PaywallConfig, Rate};
pub use keyring::{KeyState, Keyring};
pub use limit::{Freebie, FreebieFileError};
pub use menu::{
    BadMonthly, Capability, DEFAULT_OFFER, Menu, MenuError, OFFER_HEADER, Plan, Quote, Tier, UnknownOffer,
    choice, without_choice,
};
pub use nodes::{Backend, Backends, NoBackend, NodeHealth};
pub use path::{PathError, normalise};
pub use paywall::{Health, KEY_HEADER, Once, OpenError, Paywall, UPGRADE_HEADER};
pub use respond::{CODE_HEADER, tell_freebie};
pub use sales::Sales;
pub use service::{
    Auth, Costs, Freebies, LimitBy, PathPattern, PathPatternError, RateLimit, RouteCost, Service,
    ServiceError,
};

#[cfg(test)]
extern crate self as farebox_paywall;
#[cfg(test)]
mod testing;
