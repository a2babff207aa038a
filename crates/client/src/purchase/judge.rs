//! Whether a challenge may be paid: every rule that stands before the first coin, in one place.
//!
//! The invoice is the only truth about the price: what a body, another header or the token claims is never looked at.

use std::{fmt, sync::Arc, time::Duration};

use farebox_lightning::{FeeControl, PayFacts};
use farebox_protocol::{Invoice, Msat, Network, OfferedChallenge, PaymentHash, Scheme, Timestamp};
use http::StatusCode;

use crate::pass::{TokenFacts, can_be_sent, facts_of};
use crate::policy::{Asked, Budget, Judgement, Policy, Verdict};
use crate::{Limits, Origin, Scope};

/// An invoice that lives shorter than this is not begun: the payment must arrive before it ends.
const TIME_TO_PAY: Duration = Duration::from_secs(5);

/// What is allowed, and with what.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How much one payment may cost.
    pub limits: Limits,
    /// The wallet, or `None` when nothing may be paid.
    pub wallet: Option<PayFacts>,
    /// Plain HTTP to strangers is allowed.
    pub in_the_clear: bool,
    /// The caller has put an `Authorization` of their own into the request; ours can't stand beside it.
    pub authorization_taken: bool,
    /// Something has been bought already on the way here, through a redirect.
    pub has_bought: bool,
    /// The caller knows that an earlier purchase here was never honoured, and wants another.
    pub buy_again: bool,
    /// What a person has written about who may be paid, and how much.
    pub policy: Arc<Policy>,
    /// The request, as far as the policy looks at it.
    pub request: Arc<RequestFacts>,
    /// This seller has been paid before.
    pub is_known: bool,
}

/// A request, as far as a policy looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestFacts {
    /// The method.
    pub method: String,
    /// The path of the address, without the query.
    pub path: String,
    /// On whose behalf.
    pub label: Option<String>,
}

/// The head of an answer, as far as it concerns money.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// Who answered.
    pub origin: Origin,
    /// The L402 and LSAT challenges in it.
    pub offered: Vec<OfferedChallenge>,
    /// It names one of these schemes, with a challenge or without.
    pub names_scheme: bool,
    /// It names a scheme of payment that is not spoken here.
    pub names_other: bool,
    /// It says that what was shown is good, only not for this request now: its limit for this month is reached, what is
    /// left of it is less than this request takes, or the request is one of a higher tier or otherwise not what it is for.
    pub is_too_little: bool,
    /// When it came.
    pub now: Timestamp,
}

impl Answer {
    /// Whether it asks for money, and only in a way that is not spoken here.
    pub(crate) fn asks_otherwise(&self) -> bool {
        let is_ours = self.names_scheme || !self.offered.is_empty();
        self.status == StatusCode::PAYMENT_REQUIRED && self.names_other && !is_ours
    }
}

/// A purchase that has been judged: what to pay, and what for.
#[derive(Clone)]
pub struct Order {
    /// Where the token will be good.
    pub scope: Scope,
    /// The scheme in which it was offered.
    pub scheme: Scheme,
    /// The token as the server wrote it.
    pub token: String,
    /// The invoice; it has an amount.
    pub invoice: Invoice,
    /// The amount of the invoice.
    pub price: Msat,
    /// The fee limit for the wallet.
    pub fee_max: Msat,
    /// The most that the fee can come to with this wallet.
    pub fee_worst: Msat,
    /// When the token ends, if it says so.
    pub valid_until: Option<Timestamp>,
    /// The token can be read and commits to this invoice. Otherwise the server's word is all there is.
    pub bound: bool,
    /// What the policy says of it. Never a denial.
    pub judgement: Judgement,
}

impl fmt::Debug for Order {
    /// Without the token, which is half of a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order")
            .field("scope", &self.scope)
            .field("payment_hash", &self.payment_hash())
            .field("price", &self.price)
            .finish_non_exhaustive()
    }
}

impl Order {
    /// The key of the purchase.
    pub fn payment_hash(&self) -> PaymentHash {
        self.invoice.payment_hash()
    }

    /// That a person must agree first.
    pub(crate) fn approval_needed(&self, waits: Option<String>) -> Refusal {
        let (origin, price) = (self.scope.origin.clone(), self.price);
        Refusal::ApprovalNeeded { origin, price, rule: self.judgement.rule.clone(), waits }
    }

    /// Whether the invoice can still be paid in time.
    pub fn leaves_time(&self, now: Timestamp) -> bool {
        now.saturating_add(TIME_TO_PAY) < self.invoice.expires_at()
    }
}

/// Why a challenge is not paid. Nothing has been spent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Somebody else answered.
    #[error("`{answered}` asks for money in the name of `{asked}`")]
    OtherOrigin {
        /// Who was asked.
        asked: Origin,
        /// Who answered.
        answered: Origin,
    },
    /// The credential would travel unencrypted.
    #[error(
        "`{0}` sells over plain http, where anybody could take the credential; {instead}", instead = .0.instead_of_the_clear()
    )]
    InTheClear(Origin),
    /// The caller's own `Authorization` is in the way.
    #[error(
        "`{0}` asks for money, but the request carries an authorization of its own; leave one of them out"
    )]
    AuthorizationTaken(Origin),
    /// What is bought is the answer to the whole request, and that can't be sent.
    #[error(
        "`{0}` asks for money, but the body of the request can't be sent once more; buy there by a small request first, keep \
         more of the body, or leave the file that it comes from as it is"
    )]
    BodyGone(Origin),
    /// One request buys at most once.
    #[error("`{0}` asks for money after another purchase on the way there; ask it directly")]
    SecondPurchase(Origin),
    /// Nothing in the answer is a challenge that can be paid.
    #[error("`{0}` asks for money, but its challenge can't be read: {1}")]
    ChallengeUnreadable(Origin, &'static str),
    /// The invoice is none, or its signature doesn't hold.
    #[error("the invoice of `{0}` can't be read: {1}")]
    InvoiceUnreadable(Origin, String),
    /// The invoice leaves the amount to the payer.
    #[error("the invoice of `{0}` names no amount; it is not paid")]
    AmountMissing(Origin),
    /// Too dear.
    #[error("the price is {price}, above the limit of {limit}; raise the limit to pay it")]
    OverPriceLimit {
        /// The amount of the invoice.
        price: Msat,
        /// The limit.
        limit: Msat,
    },
    /// The way there is too dear.
    #[error("the fee may come to {worst}, above the limit of {limit}; raise the fee limit to pay it")]
    OverFeeLimit {
        /// The most the wallet may spend on the route.
        worst: Msat,
        /// The limit.
        limit: Msat,
    },
    /// The policy forbids it.
    #[error("the policy denies paying `{origin}` ({}); change it to pay there", named(rule.as_deref()))]
    Denied {
        /// Who sells.
        origin: Origin,
        /// The rule that says so; without one, what the policy says of everything else or of new sellers.
        rule: Option<String>,
    },
    /// The policy wants a person to agree, and nobody has.
    #[error(
        "the policy asks a person before paying `{origin}` {price} ({}), and nobody has agreed{}",
        named(rule.as_deref()),
        waits.as_ref().map(|id| format!("; the question waits as `{id}`")).unwrap_or_default()
    )]
    ApprovalNeeded {
        /// Who sells.
        origin: Origin,
        /// The amount of the invoice.
        price: Msat,
        /// The rule that says so; without one, what the policy says of everything else or of new sellers.
        rule: Option<String>,
        /// The name under which the question waits for a person, if it does.
        waits: Option<String>,
    },
    /// The wallet has taken more than it had promised, and nobody has looked at that yet.
    #[error(
        "the wallet took {fee} of fee for payment {payment}, of which it had promised at most {promised}; it pays nothing \
         more until a person has acknowledged that"
    )]
    Overrun {
        /// The payment.
        payment: PaymentHash,
        /// What the route cost.
        fee: Msat,
        /// The most that it was to cost.
        promised: Msat,
    },
    /// A rule's cap on one payment.
    #[error("the price is {price}, above the {limit} that the rule `{rule}` allows for one payment")]
    OverRuleLimit {
        /// The amount of the invoice.
        price: Msat,
        /// The cap.
        limit: Msat,
        /// Whose.
        rule: String,
    },
    /// A budget has no room left.
    #[error(
        "no room in the budget ({budget}): {spent} are spent and {reserved} reserved, and this needs {price} and a fee \
         reserve of {fee_worst}"
    )]
    OverBudget {
        /// Which.
        budget: Budget,
        /// What has been paid within its time.
        spent: Msat,
        /// What is kept aside for payments under way.
        reserved: Msat,
        /// The amount of the invoice.
        price: Msat,
        /// The most that the fee can come to.
        fee_worst: Msat,
    },
    /// Coins of another network.
    #[error("the invoice is for {invoice}, the wallet pays on {wallet}")]
    WrongNetwork {
        /// Where the seller wants to be paid.
        invoice: Network,
        /// Where the wallet can pay.
        wallet: Network,
    },
    /// Too late.
    #[error("the invoice ends at {expires_at}, now {now}; ask again for a new one")]
    InvoiceExpired {
        /// The end of the invoice.
        expires_at: Timestamp,
        /// The buyer's clock.
        now: Timestamp,
    },
    /// Paying this invoice would not open this token.
    #[error("the token of `{0}` belongs to another invoice than the one beside it")]
    OtherInvoice(Origin),
    /// The token is over before it is bought.
    #[error("the token of `{origin}` ends at {valid_until}, now {now}; it would buy nothing")]
    TokenOver {
        /// Who sells it.
        origin: Origin,
        /// Its end, as it says itself.
        valid_until: Timestamp,
        /// The buyer's clock.
        now: Timestamp,
    },
    /// The journal knows this payment already.
    #[error("payment {0} has been made before; it is not made twice")]
    AlreadyPaid(PaymentHash),
    /// Money is asked for in a way that is not spoken here.
    #[error(
        "`{0}` wants to be paid by the `Payment` scheme alone, and only L402 and LSAT are spoken here; nothing was paid"
    )]
    SchemeUnsupported(Origin),
    /// Nothing to pay with.
    #[error("the price is {price}, and there is no wallet to pay it with")]
    NoWallet {
        /// The amount of the invoice.
        price: Msat,
    },
}

impl Refusal {
    /// The stable name of this refusal.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::OtherOrigin { .. } => "other_origin",
            Self::InTheClear(_) => "in_the_clear",
            Self::AuthorizationTaken(_) => "authorization_taken",
            Self::BodyGone(_) => "body_gone",
            Self::SecondPurchase(_) => "second_purchase",
            Self::ChallengeUnreadable(..) => "challenge_unreadable",
            Self::InvoiceUnreadable(..) => "invoice_unreadable",
            Self::AmountMissing(_) => "amount_missing",
            Self::OverPriceLimit { .. } => "over_price_limit",
            Self::OverFeeLimit { .. } => "over_fee_limit",
            Self::Denied { .. } => "denied",
            Self::ApprovalNeeded { .. } => "approval_needed",
            Self::Overrun { .. } => "fee_overrun",
            Self::OverRuleLimit { .. } => "over_rule_limit",
            Self::OverBudget { .. } => "over_budget",
            Self::WrongNetwork { .. } => "wrong_network",
            Self::InvoiceExpired { .. } => "invoice_expired",
            Self::OtherInvoice(_) => "other_invoice",
            Self::TokenOver { .. } => "token_over",
            Self::AlreadyPaid(_) => "already_paid",
            Self::NoWallet { .. } => "no_wallet",
            Self::SchemeUnsupported(_) => "scheme_unsupported",
        }
    }
}

/// Judges the challenges of one answer and takes the first that may be paid, or tells why the preferred one may not.
pub fn judge(asked: &Origin, answer: &Answer, rules: &Rules) -> Result<Order, Refusal> {
    if answer.origin != *asked {
        return Err(Refusal::OtherOrigin { asked: asked.clone(), answered: answer.origin.clone() });
    }
    if asked.is_in_the_clear() && !rules.in_the_clear {
        return Err(Refusal::InTheClear(asked.clone()));
    }
    if rules.authorization_taken {
        return Err(Refusal::AuthorizationTaken(asked.clone()));
    }
    if rules.has_bought {
        return Err(Refusal::SecondPurchase(asked.clone()));
    }
    if answer.asks_otherwise() {
        return Err(Refusal::SchemeUnsupported(asked.clone()));
    }
    // The current scheme first: a server that offers both means the older one for clients that know no better.
    let mut offered: Vec<_> = answer.offered.iter().collect();
    offered.sort_by_key(|challenge| challenge.scheme != Scheme::L402);
    let mut first_refusal = None;
    for challenge in offered {
        match judge_one(asked, challenge, answer.now, rules) {
            Ok(order) => return Ok(order),
            Err(refusal) => _ = first_refusal.get_or_insert(refusal),
        }
    }
    Err(first_refusal
        .unwrap_or(Refusal::ChallengeUnreadable(asked.clone(), "it offers no token and invoice")))
}

fn judge_one(
    asked: &Origin,
    challenge: &OfferedChallenge,
    now: Timestamp,
    rules: &Rules,
) -> Result<Order, Refusal> {
    if !can_be_sent(&challenge.token) {
        return Err(Refusal::ChallengeUnreadable(asked.clone(), "its token can't be sent back in a header"));
    }
    let Some(invoice) = &challenge.invoice else {
        return Err(Refusal::ChallengeUnreadable(asked.clone(), "it has no invoice"));
    };
    let invoice = Invoice::parse(invoice)
        .map_err(|error| Refusal::InvoiceUnreadable(asked.clone(), error.to_string()))?;
    let price = invoice
        .amount()
        .filter(|amount| *amount > Msat::ZERO)
        .ok_or_else(|| Refusal::AmountMissing(asked.clone()))?;

    let token = challenge.macaroon().map_or_else(|_| TokenFacts::default(), |macaroon| facts_of(&macaroon));
    if token.payment_hash.is_some_and(|hash| hash != invoice.payment_hash()) {
        return Err(Refusal::OtherInvoice(asked.clone()));
    }
    if let Some(valid_until) = token.valid_until.filter(|end| *end <= now) {
        return Err(Refusal::TokenOver { origin: asked.clone(), valid_until, now });
    }
    if let Some(wallet) = &rules.wallet
        && wallet.network != invoice.network()
    {
        return Err(Refusal::WrongNetwork { invoice: invoice.network(), wallet: wallet.network });
    }
    let (judgement, limits) = judge_policy(asked, challenge.scheme, price, rules)?;
    limits.allow_price(price)?;
    // Without a wallet nothing is paid; the quote assumes one that keeps to the limit.
    let fee_control = rules.wallet.as_ref().map_or(&FeeControl::Exact, |wallet| &wallet.fee_control);
    let fee_worst = limits.allow_fee(price, fee_control)?;
    let order = Order {
        scope: Scope { origin: asked.clone(), service: token.service },
        scheme: challenge.scheme,
        token: challenge.token.clone(),
        price,
        fee_max: limits.fee_max,
        fee_worst,
        valid_until: token.valid_until,
        bound: token.payment_hash.is_some(),
        judgement,
        invoice,
    };
    if !order.leaves_time(now) {
        return Err(Refusal::InvoiceExpired { expires_at: order.invoice.expires_at(), now });
    }
    Ok(order)
}

/// An earlier order as these rules have it: judged anew, but with the fee that is kept aside for it.
pub(super) fn judge_again(earlier: &Order, rules: &Rules) -> Result<Order, Refusal> {
    let (judgement, mut limits) = judge_policy(&earlier.scope.origin, earlier.scheme, earlier.price, rules)?;
    limits.allow_price(earlier.price)?;
    limits.fee_max = limits.fee_max.min(earlier.fee_max);
    if let Some(wallet) = &rules.wallet {
        limits.allow_fee(earlier.price, &wallet.fee_control)?;
    }
    Ok(Order { fee_max: limits.fee_max, judgement, ..earlier.clone() })
}

/// What the policy says of this price, and the limits that are left of those of the caller: the tighter of both.
fn judge_policy(
    origin: &Origin,
    scheme: Scheme,
    price: Msat,
    rules: &Rules,
) -> Result<(Judgement, Limits), Refusal> {
    let RequestFacts { method, path, label } = &*rules.request;
    let mut judgement = rules.policy.judge(&Asked { origin, path, method, label: label.as_deref(), scheme });
    if !rules.is_known && rules.policy.new_origins > judgement.verdict {
        judgement.verdict = rules.policy.new_origins;
        judgement.rule = None;
    }
    if judgement.verdict == Verdict::Deny {
        return Err(Refusal::Denied { origin: origin.clone(), rule: judgement.rule });
    }
    let mut limits = rules.limits;
    if let Some(cap) = &judgement.payment {
        match &cap.rule {
            Some(rule) if price > cap.most => {
                return Err(Refusal::OverRuleLimit { price, limit: cap.most, rule: rule.clone() });
            }
            _ => limits.per_payment = limits.per_payment.min(cap.most),
        }
    }
    if let Some(cap) = &judgement.fee {
        limits.fee_max = limits.fee_max.min(cap.most);
    }
    Ok((judgement, limits))
}

/// A rule as a refusal names it.
fn named(rule: Option<&str>) -> String {
    rule.map_or_else(|| "no rule allows it, or the seller is new".to_owned(), |rule| format!("rule `{rule}`"))
}
