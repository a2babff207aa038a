//! A wallet reached by Nostr Wallet Connect (NIP-47): [`Pay`] for buyers. Requests and answers are encrypted events, which
//! relays carry between us and a wallet service that may be anything from a phone to a custodian.
//!
//! Relays drop events and wallets differ, so what is *not* known is the subject here. A payment has failed if no relay could
//! be reached, or if the wallet says so with a reason that leaves no doubt; it has settled if the preimage hashes to the
//! payment hash; everything else is unknown, and is looked up, never ordered again.

mod call;
mod relay;
mod uri;
mod wire;

use std::{fmt, sync::Arc, time::Duration};

use farebox_protocol::{Invoice, Msat, Network, PaymentHash, Preimage};
use futures_util::future::{BoxFuture, FutureExt as _};
use http::Uri;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

pub use self::{call::Encryption, uri::UriError};
use self::{
    call::{Call, CallError, Channel, Handed},
    relay::{Dialer, name, plain},
    uri::Connection,
    wire::{Balance, Fault, Info, Paid, Transaction, Transactions},
};
use crate::{
    FeeControl, Outcome, Pay, PayError, PayFacts, PayRequest, WalletId, clock::Clock, phoenixd::Secret,
};

const PAY: &str = "pay_invoice";
const LOOKUP: &str = "lookup_invoice";
const INFO: &str = "get_info";
const BALANCE: &str = "get_balance";
const BUDGET: &str = "get_budget";
const LIST: &str = "list_transactions";

/// How many of the wallet's latest payments are read to see whether it shows proofs.
const LISTED: usize = 10;

/// How the wallet is reached, and what its owner says of it.
#[derive(Clone, Debug)]
pub struct NwcConfig {
    /// `nostr+walletconnect://…`: whoever has it can spend.
    pub uri: Secret,
    /// The network, for a wallet that does not tell; one that tells another is refused.
    pub network: Option<Network>,
    /// The most that a payment costs: the wallet takes no limit, and its word is its owner's.
    pub fee_worst: FeeControl,
    /// Its owner says that it refuses an invoice that it has paid or is paying.
    pub refuses_paid_hash: bool,
    /// A SOCKS5 proxy by which relays are reached, such as Tor's. It finds the addresses of their names.
    pub proxy: Option<Uri>,
    /// How long any call but a payment may take.
    pub timeout: Duration,
}

/// What a payment is taken to cost at most unless the wallet's owner says otherwise: 0.5 % and 5 sat. With more, a payment of
/// 1,000 sat would not fit into the 10 sat of fees that a buyer without a policy allows.
pub const FEE_WORST: FeeControl = FeeControl::WorstCase { base: Msat::new(5_000), parts_per_million: 5_000 };

impl NwcConfig {
    /// What holds unless its owner says otherwise.
    pub fn new(uri: Secret) -> Self {
        let (network, proxy) = (None, None);
        let timeout = Duration::from_secs(10);
        Self { uri, network, fee_worst: FEE_WORST, refuses_paid_hash: false, proxy, timeout }
    }
}

/// Why there is no wallet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URI is none.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// None of its relays can be reached.
    #[error("none of the wallet's relays can be reached: {0}")]
    Relays(String),
    /// The wallet itself is silent.
    #[error("the wallet does not answer: {0}; is it running, and does the connection still exist there?")]
    Silent(String),
    /// The wallet refuses this connection.
    #[error("the wallet refuses: {0}")]
    Refused(String),
    /// The connection is not for paying.
    #[error("this connection may not pay (`pay_invoice` is not among what it permits); make one that may")]
    MayNotPay,
    /// It does not say where its money is.
    #[error("the wallet does not tell its network; write `network` beside `uri`")]
    NoNetwork,
    /// Its money is elsewhere.
    #[error("the wallet is on {is}, and `network` says {wanted}")]
    Network {
        /// What the wallet tells.
        is: Network,
        /// What was written.
        wanted: Network,
    },
}

/// What a connection may still spend, as the wallet's owner has set it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Spent of it.
    pub used: Msat,
    /// All of it.
    pub total: Msat,
    /// When it begins anew: `daily`, `weekly`, `monthly`, `yearly`, `never`, in the wallet's own words.
    pub renewal: Option<String>,
}

/// A connected wallet.
pub struct Nwc {
    channel: Channel,
    clock: Arc<dyn Clock>,
    facts: PayFacts,
    encryption: Encryption,
    /// What the connection permits; empty if the wallet does not tell.
    methods: Vec<String>,
    /// The relays, and whether each could be reached at the beginning.
    relays: Vec<(String, bool)>,
    timeout: Duration,
}

impl fmt::Debug for Nwc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nwc").field("wallet", &self.facts.wallet.0).finish_non_exhaustive()
    }
}

impl Nwc {
    /// Asks the wallet who it is and what this connection may do.
    pub async fn connect(config: NwcConfig, clock: Arc<dyn Clock>) -> Result<Self, ConnectError> {
        let dialer = Dialer::new(config.proxy.clone());
        Self::connect_by(dialer, config, clock).await
    }

    async fn connect_by(
        dialer: Dialer,
        config: NwcConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConnectError> {
        let channel = Channel::new(Connection::read(&config.uri)?, dialer);
        let mut lines = channel.lines().await;
        let relays = channel.relays().iter().enumerate();
        let relays: Vec<_> = relays.map(|(index, relay)| (name(relay), lines.is_open(index))).collect();
        if lines.relays().is_empty() {
            return Err(ConnectError::Relays(lines.why_down(channel.relays())));
        }
        let note = channel.note(&mut lines, config.timeout).await;
        // Without a note there is nothing to go by: what should be, and then what was.
        let ways: &[Encryption] = match &note {
            Some(note) if speaks_nip44(note) => &[Encryption::Nip44],
            Some(_) => &[Encryption::Nip04],
            None => &[Encryption::Nip44, Encryption::Nip04],
        };
        let mut said = Err(ConnectError::Silent("no answer".to_owned()));
        for encryption in ways {
            let call = Call {
                method: INFO,
                params: json!({}),
                handed: Handed::ToAll,
                encryption: *encryption,
                limit: config.timeout,
                now: clock.now(),
            };
            let until = Instant::now() + config.timeout;
            said = info(channel.call_by(&mut lines, call, until).await).map(|info| (info, *encryption));
            if said.is_ok() {
                break;
            }
        }
        let (info, encryption) = said?;
        let of_note = || note.iter().flat_map(|note| note.content.split_whitespace()).map(plain).collect();
        let methods: Vec<String> = info.methods.clone().unwrap_or_else(of_note);
        if !methods.is_empty() && !methods.iter().any(|method| method == PAY) {
            return Err(ConnectError::MayNotPay);
        }
        let network = match (info.network.as_deref().and_then(network), config.network) {
            (Some(is), Some(wanted)) if is != wanted => return Err(ConnectError::Network { is, wanted }),
            (Some(network), _) | (None, Some(network)) => network,
            (None, None) => return Err(ConnectError::NoNetwork),
        };
        let (wallet, ours) =
            (channel.connection.wallet.to_hex(), channel.connection.keys.public_key().to_hex());
        let facts = PayFacts {
            // Another connection to the same wallet may have other money, and may not be shown what this one has paid.
            wallet: WalletId(format!("nwc:{wallet}/{}", ours.get(..16).unwrap_or(&ours))),
            network,
            // A request may wait at a relay, or in the wallet, while a lookup overtakes it; and some wallets look up
            // nothing but what they are paid.
            proves_unsent: false,
            refuses_paid_hash: config.refuses_paid_hash,
            fee_control: config.fee_worst,
        };
        Ok(Self { channel, clock, facts, encryption, methods, relays, timeout: config.timeout })
    }

    /// How requests are encrypted.
    pub fn encryption(&self) -> Encryption {
        self.encryption
    }

    /// The relays by name, and whether each could be reached when the wallet was connected.
    pub fn relays(&self) -> &[(String, bool)] {
        &self.relays
    }

    /// Whether the wallet can be asked what became of a payment. If not, what is unknown stays so.
    pub fn can_look_up(&self) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|method| method == LOOKUP)
    }

    /// What its owner lets this connection spend; `None` where there is no such limit, or the wallet does not tell.
    pub async fn budget(&self) -> Result<Option<Budget>, PayError> {
        let budget: wire::Budget = match self.ask(BUDGET, json!({})).await? {
            Ok(budget) => read(budget)?,
            Err(_) => return Ok(None),
        };
        Ok(budget.total_budget.map(|total| Budget {
            used: Msat::new(budget.used_budget.unwrap_or_default()),
            total: Msat::new(total),
            renewal: budget.renewal_period.as_deref().map(plain),
        }))
    }

    /// The latest payment that the wallet lists as settled, and whether it shows the proof of it. `None`: it lists none to
    /// this connection.
    pub async fn latest_payment(&self) -> Result<Option<(PaymentHash, bool)>, PayError> {
        let listed: Transactions =
            match self.ask(LIST, json!({ "type": "outgoing", "limit": LISTED })).await? {
                Ok(listed) => read(listed)?,
                Err(_) => return Ok(None),
            };
        let settled =
            listed.transactions.into_iter().take(LISTED).filter(|row| row.is_settled() && !row.is_incoming());
        let mut proofs = settled.filter_map(|row| {
            let hash: PaymentHash = row.payment_hash.as_deref()?.parse().ok()?;
            Some((hash, proof(row.preimage, &hash).is_ok()))
        });
        Ok(proofs.next())
    }

    async fn ask(&self, method: &str, params: Value) -> Result<Result<Value, Fault>, PayError> {
        self.call(method, params, Handed::ToAll, self.timeout).await.map_err(pay_error)
    }

    async fn call(
        &self,
        method: &str,
        params: Value,
        handed: Handed,
        limit: Duration,
    ) -> Result<Result<Value, Fault>, CallError> {
        let (encryption, now) = (self.encryption, self.clock.now());
        self.channel.call(Call { method, params, handed, encryption, limit, now }).await
    }

    async fn order(&self, request: PayRequest) -> Result<Outcome, PayError> {
        let PayRequest { invoice, timeout, .. } = request;
        let hash = invoice.payment_hash();
        if invoice.network() != self.facts.network {
            let why =
                format!("the invoice is for {}, the wallet on {}", invoice.network(), self.facts.network);
            return Ok(Outcome::Failed(why));
        }
        if invoice.is_expired(self.clock.now()) {
            return Ok(Outcome::Failed("the invoice has expired".to_owned()));
        }
        let params = json!({ "invoice": invoice.as_str() });
        let paid = match self.call(PAY, params, Handed::ToOne, timeout).await {
            Ok(Ok(result)) => read::<Paid>(result)?,
            Ok(Err(fault)) => return self.refused(hash, fault).await,
            Err(CallError::NotSent(why)) => {
                return Ok(Outcome::Failed(format!("no relay of the wallet can be reached: {why}")));
            }
            Err(error) => return Err(pay_error(error)),
        };
        let preimage = proof(paid.preimage, &hash)?;
        let fee = match paid.fees_paid {
            Some(fee) => Msat::new(fee),
            // Whoever does not tell it may still have noted it. If not, too much is booked, not too little.
            None => match self.outcome(hash).await {
                Ok(Outcome::Settled { fee, .. }) => fee,
                _ => self.fee_worst(invoice.amount().unwrap_or_default()),
            },
        };
        Ok(Outcome::Settled { preimage, fee })
    }

    /// What an error means for a payment. Only where the wallet can't have begun it, that it has failed.
    async fn refused(&self, hash: PaymentHash, fault: Fault) -> Result<Outcome, PayError> {
        let why = format!("the wallet refuses: {} ({})", fault.message, fault.code);
        match fault.code.as_str() {
            "RATE_LIMITED"
            | "NOT_IMPLEMENTED"
            | "INSUFFICIENT_BALANCE"
            | "QUOTA_EXCEEDED"
            | "RESTRICTED"
            | "UNAUTHORIZED"
            | "UNSUPPORTED_ENCRYPTION" => return Ok(Outcome::Failed(why)),
            // `PAYMENT_FAILED` may be no more than the wallet's own time limit, after which the payment can still arrive;
            // `INTERNAL`, `OTHER` and what the page does not know may be anything.
            _ => {}
        }
        match self.outcome(hash).await {
            Ok(Outcome::Failed(_)) => Ok(Outcome::Failed(why)),
            Ok(known @ (Outcome::Settled { .. } | Outcome::InFlight)) => Ok(known),
            Ok(Outcome::NotFound) | Err(_) => {
                Err(PayError::Unavailable(format!("{why}, and does not confirm that nothing was paid")))
            }
        }
    }

    /// What the wallet has noted of a payment.
    async fn outcome(&self, hash: PaymentHash) -> Result<Outcome, PayError> {
        let row: Transaction = match self.ask(LOOKUP, json!({ "payment_hash": hash.to_string() })).await? {
            Ok(row) => read(row)?,
            Err(fault) if fault.code == "NOT_FOUND" => return Ok(Outcome::NotFound),
            Err(fault) => {
                return Err(PayError::Unavailable(format!(
                    "it can't be asked: {} ({})",
                    fault.message, fault.code
                )));
            }
        };
        if row.payment_hash.as_deref().map(str::parse) != Some(Ok(hash)) {
            return Err(PayError::Wrong("it told of another payment".to_owned()));
        }
        if row.is_incoming() {
            return Ok(Outcome::NotFound);
        }
        if row.is_settled() {
            let worst = || self.fee_worst(Msat::new(row.amount.unwrap_or_default()));
            let fee = row.fees_paid.map_or_else(worst, Msat::new).saturating_add(excess(&row, &hash));
            return Ok(Outcome::Settled { preimage: proof(row.preimage, &hash)?, fee });
        }
        match row.state.as_deref().map(str::to_ascii_lowercase).as_deref() {
            Some("failed") => Ok(Outcome::Failed("the wallet gave the payment up".to_owned())),
            Some("pending" | "accepted") | None => Ok(Outcome::InFlight),
            Some(state) => Err(PayError::Wrong(format!("`{}` is no state of a payment", plain(state)))),
        }
    }

    fn fee_worst(&self, amount: Msat) -> Msat {
        self.facts.fee_control.fee_max(amount, Msat::ZERO)
    }
}

impl Pay for Nwc {
    fn facts(&self) -> PayFacts {
        self.facts.clone()
    }

    fn pay(&self, request: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        self.order(request).boxed()
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        self.outcome(hash).boxed()
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        async move {
            match self.ask(BALANCE, json!({})).await? {
                Ok(balance) => Ok(Msat::new(read::<Balance>(balance)?.balance)),
                Err(fault) => Err(PayError::Unavailable(format!(
                    "it does not tell: {} ({})",
                    fault.message, fault.code
                ))),
            }
        }
        .boxed()
    }
}

/// Whether a wallet's note about itself says so. One without a word about it is of the time before.
fn speaks_nip44(note: &nostr::Event) -> bool {
    note.tags.iter().any(|tag| match tag.as_slice() {
        [name, schemes @ ..] if name == "encryption" => {
            schemes.iter().flat_map(|schemes| schemes.split_whitespace()).any(|scheme| scheme == "nip44_v2")
        }
        _ => false,
    })
}

fn info(answer: Result<Result<Value, Fault>, CallError>) -> Result<Info, ConnectError> {
    match answer {
        // A wallet that can't be asked this may still pay, if its owner has said what is missing.
        Ok(Err(fault)) if matches!(fault.code.as_str(), "NOT_IMPLEMENTED" | "RESTRICTED") => {
            Ok(Info::default())
        }
        Ok(Err(fault)) => Err(ConnectError::Refused(format!("{} ({})", fault.message, fault.code))),
        Ok(Ok(result)) => serde_json::from_value(result)
            .map_err(|_| ConnectError::Silent("its answer can't be read".to_owned())),
        Err(error) => Err(ConnectError::Silent(pay_error(error).to_string())),
    }
}

/// Wallets call it by the names that their nodes have for it.
fn network(name: &str) -> Option<Network> {
    match name.to_ascii_lowercase().as_str() {
        "bitcoin" => Some(Network::Mainnet),
        name => name.parse().ok(),
    }
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, PayError> {
    // What is wrong with it is not repeated: it may be about a preimage.
    serde_json::from_value(value).map_err(|_| PayError::Wrong("its answer can't be read".to_owned()))
}

/// Wallets have been seen to return none, an empty one, zeros, or another payment's.
fn proof(shown: Option<Secret>, hash: &PaymentHash) -> Result<Preimage, PayError> {
    let preimage = shown.and_then(|text| Preimage::from_hex(text.expose()).ok());
    preimage.filter(|preimage| preimage.pays(hash)).ok_or_else(|| {
        PayError::Wrong("it calls the payment settled, but shows no preimage that proves it".to_owned())
    })
}

/// What the wallet says that it has paid beyond what the invoice asks for: to the buyer's budgets that is a fee like others.
fn excess(row: &Transaction, hash: &PaymentHash) -> Msat {
    let invoice = row.invoice.as_deref().and_then(|text| text.parse::<Invoice>().ok());
    let asked =
        invoice.filter(|invoice| invoice.payment_hash() == *hash).and_then(|invoice| invoice.amount());
    let paid = row.amount.unwrap_or_default();
    Msat::new(asked.map_or(0, |asked| paid.saturating_sub(asked.get())))
}

fn pay_error(error: CallError) -> PayError {
    match error {
        CallError::NotSent(why) | CallError::Lost(why) => PayError::Unavailable(why),
        CallError::TimedOut(limit) => PayError::TimedOut(limit),
        CallError::Wrong(what) => PayError::Wrong(what),
    }
}
