//! The paywall's own settings. Plain data; `farebox.yaml` and its reader are the program's business.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use farebox_protocol::Network;

use crate::ledger::LedgerConfig;

/// How a paywall behaves. Every wait and every bound has its name here.
#[derive(Clone, Debug)]
pub struct PaywallConfig {
    /// The network that is sold on. Test coins buy nothing on mainnet, so it is part of every root key.
    pub network: Network,
    /// How long an invoice can be paid.
    pub invoice_expiry: Duration,
    /// How long to wait for the node to make an invoice before answering 503.
    pub invoice_timeout: Duration,
    /// How long to wait for the store where a decision needs it, before answering 503.
    pub store_timeout: Duration,
    /// How long the owned task may take to write what is queued when it is told to stop.
    pub flush_timeout: Duration,
    /// Refuse tokens with conditions that nobody here knows, instead of skipping them as the specification says.
    pub strict_caveats: bool,
    /// Serve a token only once its payment is known to have settled, by the books or by a node; its preimage alone is not
    /// enough then. Asked once for each token, in `store_timeout` and `invoice_timeout`.
    pub verify_settled: bool,
    /// How many challenges one client may ask for: one IPv4 address, or one IPv6 /64.
    pub mint_per_client: Rate,
    /// How many challenges all clients together may ask for.
    pub mint_total: Rate,
    /// How many clients are counted apart from each other; beyond, new ones share one budget. 16 bytes each.
    pub mint_clients_max: usize,
    /// How many tokens, and how many clients, rate limits count apart from each other; beyond, new ones share one budget for
    /// each limit. 16 bytes each, taken only where a service has a limit.
    pub rate_subjects_max: usize,
    /// How many invoices to keep ready for each price that is being asked for; with 0, each is made when it is asked for.
    /// Every one costs the node what an unpaid invoice costs, so only a node that is slow to make them is worth it.
    pub ready_invoices: usize,
    /// How many networks are counted apart from each other where a service gives freebies; beyond, new ones share one allowance
    /// for each service. 16 bytes each, taken only where a service gives some, rounded up to whole pages of 256. A file of
    /// counts keeps the number that it was made with.
    pub freebie_networks_max: usize,
    /// Where counts of freebies outlive the process, for services that keep them. Without it, none do. One process may have it.
    pub freebie_file: Option<PathBuf>,
    /// How often what has changed is written there: what a crash forgets.
    pub freebie_write_every: Duration,
    /// How many first presentations may wait to be written. What doesn't fit is written at the next presentation.
    pub presentations_queued_max: usize,
    /// How often revocations are read from the store.
    pub revocation_poll: Duration,
    /// What to say in `Retry-After` when node or store are in trouble.
    pub retry_after: Duration,
    /// How the ledger of what is sold in units behaves.
    pub ledger: LedgerConfig,
    /// What to do when the store was last used with other mint secrets.
    pub continuity: Continuity,
}

/// So many per period, which is also the largest burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In which time; above zero.
    pub per: Duration,
}

/// What to do when the mint secrets and the store don't belong together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Continuity {
    /// Refuse to start: every token sold so far would turn worthless.
    #[default]
    Required,
    /// Start nonetheless, and let those tokens die.
    Abandon,
}

impl PaywallConfig {
    /// The usual settings.
    pub fn new(network: Network) -> Self {
        Self {
            network,
            invoice_expiry: Duration::from_secs(600),
            invoice_timeout: Duration::from_secs(5),
            store_timeout: Duration::from_secs(2),
            flush_timeout: Duration::from_secs(5),
            strict_caveats: false,
            verify_settled: false,
            mint_per_client: Rate::per_minute(const { NonZeroU32::new(60).expect("above zero") }),
            mint_total: Rate::per_second(const { NonZeroU32::new(100).expect("above zero") }),
            mint_clients_max: 65_536,
            rate_subjects_max: 65_536,
            ready_invoices: 0,
            freebie_networks_max: 65_536,
            freebie_file: None,
            freebie_write_every: Duration::from_secs(1),
            presentations_queued_max: 4_096,
            revocation_poll: Duration::from_secs(1),
            retry_after: Duration::from_secs(5),
            ledger: LedgerConfig::new(),
            continuity: Continuity::Required,
        }
    }
}

impl Rate {
    /// So many a second.
    pub const fn per_second(count: NonZeroU32) -> Self {
        Self { count, per: Duration::from_secs(1) }
    }

    /// So many a minute.
    pub const fn per_minute(count: NonZeroU32) -> Self {
        Self { count, per: Duration::from_secs(60) }
    }
}
