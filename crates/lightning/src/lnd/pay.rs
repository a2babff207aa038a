//! Paying with an lnd: `SendPaymentV2`, and `TrackPaymentV2` for what became of it.
//!
//! lnd has a payment in its database before it sends anything, keys it by payment hash, and refuses a second one while the
//! first is under way or once it has settled. So whatever is unclear is asked, never sent again; and where the connection
//! breaks after a request has left, what became of it is not known here.

use std::time::Duration;

use farebox_protocol::{Msat, Network, PaymentHash, Preimage};
use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Response, Status, Streaming};
use zeroize::Zeroizing;

use super::{
    client::{CallError, Client},
    rpc::{
        lnrpc::{
            ChannelBalanceRequest, GetInfoRequest, Payment, PaymentFailureReason, payment::PaymentStatus,
        },
        routerrpc::{SendPaymentRequest, TrackPaymentRequest},
    },
    tls::LinkError,
};
use crate::{FeeControl, Outcome, Pay, PayError, PayFacts, PayRequest, WalletId};

const SEND: &str = "routerrpc.Router/SendPaymentV2";
const TRACK: &str = "routerrpc.Router/TrackPaymentV2";
const INFO: &str = "lnrpc.Lightning/GetInfo";
const BALANCE: &str = "lnrpc.Lightning/ChannelBalance";

/// How much longer than lnd itself we wait for it to say that time is up.
const SLACK: Duration = Duration::from_secs(2);

/// An lnd that pays. Its macaroon allows the four calls above.
pub struct LndWallet {
    client: Client,
    facts: PayFacts,
}

impl LndWallet {
    /// Asks the node who it is.
    pub(crate) async fn open(client: Client) -> Result<Self, PayError> {
        let request = client.request(GetInfoRequest {}).map_err(pay_error)?;
        let mut lightning = client.lightning();
        let info = client.answer(INFO, lightning.get_info(request)).await.map_err(pay_error)?;
        let network = match info.chains.first().map(|chain| chain.network.parse::<Network>()) {
            Some(Ok(network)) => network,
            _ => return Err(PayError::Wrong("it does not say on which network it is".to_owned())),
        };
        let facts = PayFacts {
            wallet: WalletId(format!("lnd:{}", info.identity_pubkey)),
            network,
            // lnd itself never forgets a payment. But our request comes by a connection of its own: it may still be on its
            // way, or wait in lnd, when a lookup over another one has its answer.
            proves_unsent: false,
            // Unless its owner has deleted the payment from its database (`lncli deletepayments`); then the payee's node is
            // the one to refuse.
            refuses_paid_hash: true,
            // Of all parts together, and a limit of 0 finds routes that are free.
            fee_control: FeeControl::Exact,
        };
        Ok(Self { client, facts })
    }

    async fn send(&self, request: &PayRequest, deadline: Instant) -> Result<Outcome, PayError> {
        let hash = request.invoice.payment_hash();
        let message = SendPaymentRequest {
            payment_request: request.invoice.as_str().to_owned(),
            timeout_seconds: i32::try_from(request.timeout.as_secs()).unwrap_or(i32::MAX).max(1),
            fee_limit_msat: i64::try_from(request.fee_max.get()).unwrap_or(i64::MAX),
            no_inflight_updates: true,
            ..SendPaymentRequest::default()
        };
        let message = match self.client.request(message) {
            Ok(message) => message,
            Err(error) => return Ok(Outcome::Failed(error.to_string())),
        };
        let mut router = self.client.router();
        let Ok(end) = timeout_at(deadline, first(router.send_payment_v2(message))).await else {
            return Err(PayError::TimedOut(request.timeout));
        };
        let status = match end {
            Ok(payment) => return outcome(payment, hash),
            Err(status) => status,
        };
        if status.code() == Code::AlreadyExists {
            return self.follow(hash, deadline).await;
        }
        match CallError::of(&status, SEND) {
            // These come before lnd has looked at what is asked, if it was reached at all.
            error @ (CallError::Credential(_)
            | CallError::Locked
            | CallError::NoWallet
            | CallError::Starting
            | CallError::Refused(_)
            | CallError::NotPermitted(_)
            | CallError::Unimplemented(_)) => Ok(Outcome::Failed(error.to_string())),
            error @ CallError::Unreachable(_) if was_not_sent(&status) => {
                Ok(Outcome::Failed(error.to_string()))
            }
            // The answer is there, so nothing is on its way any more: what lnd hasn't written down by now, it won't.
            CallError::Said(why) | CallError::NotFound(why) => match self.track(hash).await? {
                Outcome::NotFound => Ok(Outcome::Failed(format!("lnd refuses to pay: {why}"))),
                known => Ok(known),
            },
            error @ (CallError::Unreachable(_) | CallError::TimedOut(_)) => Err(pay_error(error)),
        }
    }

    /// Waits for the end of a payment that lnd knows.
    async fn follow(&self, hash: PaymentHash, deadline: Instant) -> Result<Outcome, PayError> {
        match timeout_at(deadline, self.state(hash, Updates::OnlyTheEnd)).await {
            Ok(state) => state,
            Err(_) => Ok(Outcome::InFlight),
        }
    }

    /// What has become of a payment by now.
    async fn track(&self, hash: PaymentHash) -> Result<Outcome, PayError> {
        let limit = self.client.deadline();
        timeout(limit, self.state(hash, Updates::All)).await.unwrap_or(Err(PayError::TimedOut(limit)))
    }

    async fn state(&self, hash: PaymentHash, updates: Updates) -> Result<Outcome, PayError> {
        let message = TrackPaymentRequest {
            payment_hash: hash.as_bytes().to_vec(),
            no_inflight_updates: matches!(updates, Updates::OnlyTheEnd),
        };
        let message = self.client.request(message).map_err(pay_error)?;
        match first(self.client.router().track_payment_v2(message)).await {
            Ok(payment) => outcome(payment, hash),
            Err(status) => match CallError::of(&status, TRACK) {
                CallError::NotFound(_) => Ok(Outcome::NotFound),
                error => Err(pay_error(error)),
            },
        }
    }
}

/// What of a payment is told.
#[derive(Clone, Copy)]
enum Updates {
    /// Where it is, at once, and every change.
    All,
    /// How it ended, once it has.
    OnlyTheEnd,
}

impl Pay for LndWallet {
    fn facts(&self) -> PayFacts {
        self.facts.clone()
    }

    fn pay(&self, request: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        async move {
            let now = Instant::now();
            let deadline = now.checked_add(request.timeout.saturating_add(SLACK));
            // Stands in for a timeout that no clock can hold.
            let deadline = deadline.unwrap_or(now + Duration::from_secs(365 * 86_400));
            self.send(&request, deadline).await
        }
        .boxed()
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        self.track(hash).boxed()
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        async move {
            let request = self.client.request(ChannelBalanceRequest {}).map_err(pay_error)?;
            let mut lightning = self.client.lightning();
            let balance = self.client.answer(BALANCE, lightning.channel_balance(request)).await;
            let local = balance.map_err(pay_error)?.local_balance.unwrap_or_default();
            Ok(Msat::new(local.msat))
        }
        .boxed()
    }
}

/// The first that a stream tells.
async fn first(
    call: impl Future<Output = Result<Response<Streaming<Payment>>, Status>>,
) -> Result<Payment, Status> {
    let mut updates = call.await?.into_inner();
    // lnd ends it in silence only when it is itself about to end.
    updates.message().await?.ok_or_else(|| Status::unavailable("lnd ended its answer without a word"))
}

/// Whether there was no connection by which anything could have been sent.
fn was_not_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<LinkError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// What lnd's record of a payment says.
fn outcome(payment: Payment, hash: PaymentHash) -> Result<Outcome, PayError> {
    let preimage = Zeroizing::new(payment.payment_preimage);
    if payment.payment_hash.parse() != Ok(hash) {
        return Err(PayError::Wrong("it told of another payment".to_owned()));
    }
    match PaymentStatus::try_from(payment.status) {
        Ok(PaymentStatus::Succeeded) => {
            let preimage = Preimage::from_hex(&preimage).ok().filter(|preimage| preimage.pays(&hash));
            let preimage = preimage.ok_or_else(|| {
                PayError::Wrong(
                    "it calls the payment settled, but shows no preimage that proves it".to_owned(),
                )
            })?;
            let fee = u64::try_from(payment.fee_msat)
                .map_err(|_| PayError::Wrong("it tells of a fee below zero".to_owned()))?;
            Ok(Outcome::Settled { preimage, fee: Msat::new(fee) })
        }
        Ok(PaymentStatus::Failed) => Ok(Outcome::Failed(given_up(payment.failure_reason).to_owned())),
        Ok(PaymentStatus::InFlight | PaymentStatus::Initiated) => Ok(Outcome::InFlight),
        Ok(PaymentStatus::Unknown) | Err(_) => {
            Err(PayError::Wrong(format!("`{}` is no state of a payment", payment.status)))
        }
    }
}

/// Why lnd gave a payment up.
fn given_up(reason: i32) -> &'static str {
    use PaymentFailureReason as Reason;
    match Reason::try_from(reason) {
        Ok(Reason::FailureReasonTimeout) => "no route was found in time",
        Ok(Reason::FailureReasonNoRoute) => "no route within the fee limit",
        Ok(Reason::FailureReasonIncorrectPaymentDetails) => "the payee does not want this payment (any more)",
        Ok(Reason::FailureReasonInsufficientBalance) => "no channel has so much",
        Ok(Reason::FailureReasonCanceled) => "the payment was cancelled",
        Ok(Reason::FailureReasonError | Reason::FailureReasonNone) | Err(_) => "lnd gave the payment up",
    }
}

fn pay_error(error: CallError) -> PayError {
    match error {
        CallError::TimedOut(limit) => PayError::TimedOut(limit),
        error => PayError::Unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREIMAGE: [u8; 32] = [7; 32];

    fn payment(status: PaymentStatus) -> (Payment, PaymentHash) {
        let preimage = Preimage::from_bytes(PREIMAGE);
        let hash = preimage.payment_hash();
        let payment = Payment {
            payment_hash: hash.to_string(),
            payment_preimage: "0".repeat(64),
            status: status.into(),
            ..Payment::default()
        };
        (payment, hash)
    }

    #[test]
    fn a_payment_is_settled_with_its_own_preimage_only() {
        let (settled, hash) = payment(PaymentStatus::Succeeded);
        for shown in ["", "lnbcrt1", &"0".repeat(64), &"7".repeat(64)] {
            let payment = Payment { payment_preimage: shown.to_owned(), ..settled.clone() };
            assert!(matches!(outcome(payment, hash), Err(PayError::Wrong(_))), "{shown}");
        }
        let proven = Payment { payment_preimage: hex::encode(PREIMAGE), fee_msat: 21, ..settled.clone() };
        let Ok(Outcome::Settled { preimage, fee }) = outcome(proven.clone(), hash) else { panic!() };
        assert!(preimage.pays(&hash));
        assert_eq!(fee, Msat::new(21));
        let another = PaymentHash::from_bytes([1; 32]);
        assert!(matches!(outcome(proven, another), Err(PayError::Wrong(_))));
    }

    #[test]
    fn what_has_not_ended_is_in_flight_and_what_makes_no_sense_is_no_answer() {
        for status in [PaymentStatus::InFlight, PaymentStatus::Initiated] {
            let (payment, hash) = payment(status);
            assert!(matches!(outcome(payment, hash), Ok(Outcome::InFlight)));
        }
        let (mut odd, hash) = payment(PaymentStatus::Unknown);
        assert!(matches!(outcome(odd.clone(), hash), Err(PayError::Wrong(_))));
        odd.status = 99;
        assert!(matches!(outcome(odd, hash), Err(PayError::Wrong(_))));
    }

    #[test]
    fn a_payment_that_was_given_up_says_why() {
        let (mut failed, hash) = payment(PaymentStatus::Failed);
        failed.failure_reason = PaymentFailureReason::FailureReasonNoRoute.into();
        let Ok(Outcome::Failed(why)) = outcome(failed, hash) else { panic!() };
        assert_eq!(why, "no route within the fee limit");
    }
}
