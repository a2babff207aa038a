//! phoenixd, ACINQ's small Lightning server, as a backend: [`Receive`] and [`Pay`] over its HTTP API.
//!
//! It deals in whole satoshi, so prices round up. "Paid" is read from `isPaid` alone: phoenixd shows the preimage of
//! unpaid invoices, too. A payment whose request may have arrived is never called failed unless phoenixd says so. Our
//! own wallet door ([`crate::door`]) speaks the same API with a few fields more, and is told apart by them.

mod http;
mod secret;
mod settlements;
pub(crate) mod wire;

use std::{fmt, sync::Arc, time::Duration};

use farebox_protocol::{Invoice, Msat, Network, PaymentHash, Preimage, Timestamp};
use futures_util::{FutureExt as _, future::BoxFuture, stream::BoxStream};
use reqwest::{StatusCode, Url};

pub use secret::Secret;

use self::{
    http::{Answer, CallError, Http},
    wire::{Balance, CreatedInvoice, DoorFacts, IncomingPayment, NodeInfo, OutgoingPayment, PaymentAnswer},
};
use crate::{
    Ask, Cursor, FeeControl, Health, Incoming, Outcome, Pay, PayError, PayFacts, PayRequest, Receive,
    ReceiveError, ReceiveFacts, Settlement, WalletId, clock::Clock,
};

/// What phoenixd allows in a description, in UTF-16 units (it is written in Kotlin).
pub(crate) const DESCRIPTION_MAX: usize = 128;

/// phoenixd's own fee: 0.4 % and 4 sat. It takes no limit from us.
pub(crate) const FEE: FeeControl = FeeControl::WorstCase { base: Msat::new(4_000), parts_per_million: 4_000 };

/// phoenixd refuses payments of expired invoices, but one that came in time may wait for a channel to be opened.
const GRACE: Duration = Duration::from_secs(600);

/// How much longer than asked an invoice may live before its answer is called wrong.
const EXPIRY_SLACK: Duration = Duration::from_secs(60);

/// Where phoenixd is, and how patient we are with it.
#[derive(Clone, Debug)]
pub struct PhoenixdConfig {
    /// Its address, such as `http://127.0.0.1:9740`.
    pub url: String,
    /// `http-password` of phoenix.conf; for a seller `http-password-limited-access` is enough, and better.
    pub password: Secret,
    /// How long any call but a payment may take.
    pub timeout: Duration,
    /// How often the list of settlements is read.
    pub poll: Duration,
}

impl PhoenixdConfig {
    /// The usual patience: 10 s per call, a poll every second.
    pub fn new(url: impl Into<String>, password: Secret) -> Self {
        Self { url: url.into(), password, timeout: Duration::from_secs(10), poll: Duration::from_secs(1) }
    }
}

/// Why there is no connection to phoenixd.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address can't be used.
    #[error("`{url}` is not phoenixd's address: {what}; write something like `http://127.0.0.1:9740`")]
    Address {
        /// The address without a password that may be in it.
        url: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No HTTP client could be made.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// It does not answer.
    #[error("phoenixd at `{url}` does not answer: {why}")]
    NoAnswer {
        /// Where it should be.
        url: String,
        /// What happened.
        why: String,
    },
    /// It refuses the password.
    #[error("phoenixd at `{url}` refuses the password; see `http-password` in its phoenix.conf")]
    Password {
        /// Where it is.
        url: String,
    },
    /// It runs on a network that farebox does not know.
    #[error("phoenixd at `{url}` runs on `{chain}`, which farebox does not know")]
    Chain {
        /// Where it is.
        url: String,
        /// What it calls its network.
        chain: String,
    },
}

/// A connected phoenixd.
pub struct Phoenixd {
    http: Http,
    poll: Duration,
    clock: Arc<dyn Clock>,
    node: String,
    network: Network,
    door: Option<DoorFacts>,
}

impl fmt::Debug for Phoenixd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Phoenixd").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Phoenixd {
    /// Asks phoenixd who it is.
    pub async fn connect(config: PhoenixdConfig, clock: Arc<dyn Clock>) -> Result<Self, ConnectError> {
        let url = config.url.clone();
        check_address(&url)?;
        let http = Http::new(&url, config.password, config.timeout).map_err(ConnectError::Client)?;
        let no_answer = |why: String| ConnectError::NoAnswer { url: url.clone(), why };
        let answer = http.get("/getinfo", &()).await.map_err(|error| no_answer(error.to_string()))?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Err(ConnectError::Password { url }),
            _ => return Err(no_answer(answer.complaint())),
        }
        let info: NodeInfo = answer.json().map_err(|error| no_answer(error.to_string()))?;
        let network = match info.chain.as_str() {
            "testnet3" => Network::Testnet,
            chain => chain.parse().map_err(|_| ConnectError::Chain { url, chain: info.chain.clone() })?,
        };
        Ok(Self { http, poll: config.poll, clock, node: info.node_id, network, door: info.farebox })
    }

    /// The invoice that phoenixd made, if it is the one that was asked for.
    fn check_invoice(
        &self,
        created: &CreatedInvoice,
        amount: Msat,
        expiry: Duration,
    ) -> Result<Invoice, ReceiveError> {
        let wrong = |what: String| ReceiveError::Wrong(format!("the new invoice {what}"));
        let invoice: Invoice =
            created.serialized.parse().map_err(|error| wrong(format!("can't be read: {error}")))?;
        if created.payment_hash.parse() != Ok(invoice.payment_hash()) {
            return Err(wrong("has another payment hash than it says".to_owned()));
        }
        if invoice.amount() != Some(amount) {
            return Err(wrong(format!("is not for {amount}")));
        }
        if invoice.network() != self.network {
            return Err(wrong(format!("is for {}, not for {}", invoice.network(), self.network)));
        }
        let lives = invoice.expires_at().since(invoice.created_at());
        if lives < expiry || lives > expiry + EXPIRY_SLACK || invoice.is_expired(self.clock.now()) {
            return Err(wrong(format!("lives {} s, not {} s", lives.as_secs(), expiry.as_secs())));
        }
        Ok(invoice)
    }

    fn receive_error(&self, error: CallError) -> ReceiveError {
        match error {
            CallError::NotSent(_) | CallError::Lost(_) => ReceiveError::Unavailable(error.to_string()),
            CallError::TimedOut(limit) => ReceiveError::TimedOut(limit),
            CallError::Wrong(what) => ReceiveError::Wrong(what),
        }
    }

    /// What phoenixd's answer to a payment means.
    async fn paid(&self, hash: PaymentHash, answer: &Answer) -> Result<Outcome, PayError> {
        if answer.status.is_client_error() {
            // The request itself was refused (password, form, invoice): nothing was begun.
            return Ok(Outcome::Failed(format!("phoenixd refused: {}", answer.complaint())));
        }
        if answer.status != StatusCode::OK {
            return Err(PayError::Unavailable(answer.complaint()));
        }
        let paid: PaymentAnswer = answer.json().map_err(pay_error)?;
        if paid.kind == "payment_failed" {
            // "Failed" is also the answer to a hash that was paid earlier, or is being paid right now: ask for the truth.
            let reason = paid.reason.unwrap_or_else(|| "no reason given".to_owned());
            return Ok(match self.outcome(hash).await? {
                settled @ (Outcome::Settled { .. } | Outcome::InFlight) => settled,
                Outcome::Failed(_) | Outcome::NotFound => Outcome::Failed(reason),
            });
        }
        let preimage = preimage(paid.payment_preimage, &hash)?;
        let fee = match (paid.routing_fee_msat, paid.routing_fee_sat) {
            (Some(msat), _) => Msat::new(msat),
            // phoenixd cuts the fee to whole satoshi here, but lists it in full. If it can't be had, count too much.
            (None, sat) => match self.outcome(hash).await {
                Ok(Outcome::Settled { fee, .. }) => fee,
                _ => Msat::new(sat.unwrap_or_default().saturating_mul(1_000).saturating_add(999)),
            },
        };
        Ok(Outcome::Settled { preimage, fee })
    }

    /// What has become of a payment.
    async fn outcome(&self, hash: PaymentHash) -> Result<Outcome, PayError> {
        let path = format!("/payments/outgoingbyhash/{hash}");
        let answer = self.http.get(&path, &()).await.map_err(pay_error)?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(Outcome::NotFound),
            _ => return Err(PayError::Unavailable(answer.complaint())),
        }
        let row: OutgoingPayment = answer.json().map_err(pay_error)?;
        if row.payment_hash.as_deref().map(str::parse) != Some(Ok(hash)) {
            return Err(PayError::Wrong("it told of another payment".to_owned()));
        }
        Ok(match (row.is_paid, row.completed_at) {
            (true, _) => {
                Outcome::Settled { preimage: preimage(row.preimage, &hash)?, fee: Msat::new(row.fees) }
            }
            (false, Some(_)) => Outcome::Failed("phoenixd gave the payment up".to_owned()),
            (false, None) => Outcome::InFlight,
        })
    }
}

impl Receive for Phoenixd {
    fn facts(&self) -> Option<ReceiveFacts> {
        // Their cursors differ, so a cursor of the one must not be taken for the other's.
        let (node, grace) = match &self.door {
            Some(door) => (format!("door:{}", door.node), Duration::from_secs(door.grace_secs)),
            None => (format!("phoenixd:{}", self.node), GRACE),
        };
        let (network, granularity) = (self.network, Msat::new(1_000));
        Some(ReceiveFacts { network, node, grace, granularity, is_shared: false })
    }

    fn invoice(&self, ask: Ask) -> BoxFuture<'_, Result<Invoice, ReceiveError>> {
        async move {
            let sat = ask.amount.sat_ceil();
            let amount = Msat::from_sat(sat).filter(|amount| *amount > Msat::ZERO);
            let amount =
                amount.ok_or_else(|| ReceiveError::Invalid(format!("`{}` is no price", ask.amount)))?;
            let expiry = Timestamp::default().saturating_add(ask.expiry); // part of a second counts as a whole one
            let form = [
                ("amountSat", sat.to_string()),
                ("expirySeconds", expiry.secs().to_string()),
                ("description", cut(&ask.description)),
            ];
            let answer = self.http.post("/createinvoice", &form, self.http.timeout()).await;
            let answer = answer.map_err(|error| self.receive_error(error))?;
            match answer.status {
                StatusCode::OK => {}
                StatusCode::BAD_REQUEST => return Err(ReceiveError::Invalid(answer.complaint())),
                _ => return Err(ReceiveError::Unavailable(answer.complaint())),
            }
            let created: CreatedInvoice = answer.json().map_err(|error| self.receive_error(error))?;
            self.check_invoice(&created, amount, Duration::from_secs(expiry.secs()))
        }
        .boxed()
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Incoming, ReceiveError>> {
        async move {
            let answer = self.http.get(&format!("/payments/incoming/{hash}"), &()).await;
            let answer = answer.map_err(|error| self.receive_error(error))?;
            match answer.status {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => return Ok(Incoming::Unpaid),
                _ => return Err(ReceiveError::Unavailable(answer.complaint())),
            }
            let row: IncomingPayment = answer.json().map_err(|error| self.receive_error(error))?;
            if row.payment_hash.parse() != Ok(hash) {
                return Err(ReceiveError::Wrong("it told of another payment".to_owned()));
            }
            if !row.is_paid {
                return Ok(Incoming::Unpaid);
            }
            let settlement = settlements::settlement(&row)?;
            Ok(Incoming::Settled { amount: settlement.amount, at: settlement.at })
        }
        .boxed()
    }

    fn settlements(&self, after: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>> {
        settlements::follow(self, after)
    }

    fn health(&self) -> Health {
        self.http.health()
    }
}

impl Pay for Phoenixd {
    fn facts(&self) -> PayFacts {
        let common = PayFacts {
            wallet: WalletId(format!("phoenixd:{}", self.node)),
            network: self.network,
            // A request may be on its way, or wait in phoenixd, while a lookup overtakes it.
            proves_unsent: false,
            // phoenixd refuses a hash that is paid, but not one that is being paid: a repeated request is a second
            // payment of the same invoice.
            refuses_paid_hash: false,
            fee_control: FEE,
        };
        match &self.door {
            None => common,
            Some(door) => PayFacts {
                wallet: WalletId(format!("door:{}", door.wallet)),
                refuses_paid_hash: door.refuses_paid_hash,
                fee_control: if door.fees_exact { FeeControl::Exact } else { FEE },
                ..common
            },
        }
    }

    fn pay(&self, request: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        async move {
            let hash = request.invoice.payment_hash();
            let mut form = vec![("invoice", request.invoice.as_str().to_owned())];
            if self.door.is_some() {
                form.push(("maxFeeMsat", request.fee_max.get().to_string()));
            }
            match self.http.post("/payinvoice", &form, request.timeout).await {
                Ok(answer) => self.paid(hash, &answer).await,
                Err(CallError::NotSent(why)) => {
                    Ok(Outcome::Failed(format!("phoenixd can't be reached: {why}")))
                }
                Err(error) => Err(pay_error(error)),
            }
        }
        .boxed()
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        self.outcome(hash).boxed()
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        async move {
            let answer = self.http.get("/getbalance", &()).await.map_err(pay_error)?;
            if answer.status != StatusCode::OK {
                return Err(PayError::Unavailable(answer.complaint()));
            }
            let balance: Balance = answer.json().map_err(pay_error)?;
            Msat::from_sat(balance.balance_sat)
                .ok_or_else(|| PayError::Wrong("more money than exists".to_owned()))
        }
        .boxed()
    }
}

/// What arrived. phoenixd keeps its fee for liquidity and cuts the rest to whole satoshi; it calls an invoice paid only
/// when at least the amount asked for has come in.
pub(crate) fn received(row: &IncomingPayment) -> Msat {
    let exact = row.received_msat.map(Msat::new);
    exact.unwrap_or_else(|| {
        let net = Msat::new(row.received_sat.saturating_mul(1_000));
        let asked = Msat::new(row.requested_sat.unwrap_or_default().saturating_mul(1_000));
        net.saturating_add(Msat::new(row.fees)).max(asked)
    })
}

/// Wallets have been seen to return none, an empty one, zeros, or another payment's.
fn preimage(text: Option<Secret>, hash: &PaymentHash) -> Result<Preimage, PayError> {
    text.and_then(|text| Preimage::from_hex(text.expose()).ok())
        .filter(|preimage| preimage.pays(hash))
        .ok_or_else(|| {
            PayError::Wrong("it calls the payment settled, but shows no preimage that proves it".to_owned())
        })
}

fn pay_error(error: CallError) -> PayError {
    match error {
        CallError::NotSent(_) | CallError::Lost(_) => PayError::Unavailable(error.to_string()),
        CallError::TimedOut(limit) => PayError::TimedOut(limit),
        CallError::Wrong(what) => PayError::Wrong(what),
    }
}

/// As much of a description as phoenixd takes.
fn cut(description: &str) -> String {
    let mut units = 0;
    let fits = |c: &char| {
        units += c.len_utf16();
        units <= DESCRIPTION_MAX
    };
    description.chars().take_while(fits).collect()
}

fn check_address(text: &str) -> Result<(), ConnectError> {
    let refuse = |url: &str, what| Err(ConnectError::Address { url: url.to_owned(), what });
    // A text that isn't what it should be may hold a password anywhere: no more than the host is repeated.
    let Ok(url) = Url::parse(text) else { return refuse("…", "it is no URL") };
    let host = url.host_str().unwrap_or("…");
    if !url.username().is_empty() || url.password().is_some() {
        return refuse(host, "the password goes into `password`, not into the address");
    }
    if !matches!(url.scheme(), "http" | "https") {
        return refuse(host, "it is neither http nor https");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse(host, "it has a query or a fragment");
    }
    Ok(())
}
