//! How a fetch fails, and what became of the money: to people in sentences, to programs in JSON, and to scripts by the exit code.

use std::{fmt::Write as _, io::IsTerminal as _, path::PathBuf, process::ExitCode};

use farebox_client::{Fault, FetchError, Money, PurchaseRow, Receipt, Refusal, RequestError, Stop};
use serde::Serialize;

use super::{
    body::{Broken, TimeUp},
    report::Report,
};
use crate::{
    output::{OutputFlags, chain},
    shortfall,
};

/// How the program ends; the help text says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Done = 0,
    Other = 1,
    Usage = 2,
    NotPaid = 3,
    Network = 4,
    Rejected = 5,
    RateLimited = 6,
    Refused = 7,
    Unknown = 8,
    ApprovalNeeded = 9,
    DryRun = 10,
    Status = 22,
    Interrupted = 130,
}

impl Exit {
    pub(super) fn code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }

    fn of(error: &FetchError) -> Self {
        match error.fault() {
            Fault::Request(
                RequestError::Network { .. } | RequestError::Silent { .. } | RequestError::NotTls { .. },
            ) => Self::Network,
            Fault::Request(RequestError::PrivateTarget(_)) => Self::Refused,
            Fault::Request(RequestError::Address | RequestError::Setup(_) | RequestError::Certificate(_)) => {
                Self::Usage
            }
            Fault::Purchase(Stop::Refused(Refusal::ApprovalNeeded { .. })) => Self::ApprovalNeeded,
            Fault::Purchase(Stop::Refused(_)) => Self::Refused,
            Fault::Purchase(Stop::Failed(_)) => Self::NotPaid,
            Fault::Purchase(Stop::Unknown(..)) => Self::Unknown,
            Fault::Purchase(Stop::Rejected(..)) => Self::Rejected,
            _ => Self::Other,
        }
    }
}

/// What went wrong, as it is told on standard error.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    code: &'static str,
    message: String,
    retryable: bool,
    money: Box<MoneyReport>,
    /// The name under which the question waits for a person.
    approval: Option<String>,
    /// What has come of a file, and how much that is.
    part: Option<(PathBuf, u64)>,
    heard: Box<Heard>,
}

/// What the server said besides, as far as it is repeated.
#[derive(Debug, Default, Serialize)]
struct Heard {
    /// Why it answered so, in a farebox gateway's one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_secs: Option<u64>,
    /// What was bought before, is good, and was not enough for this.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shortfalls: Vec<serde_json::Value>,
}

/// What became of the money.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct MoneyReport {
    /// `none`, `spent` or `unknown`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount_msat: Option<u64>,
    /// What the route cost or, while that is unknown, the most that it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    fee_msat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_hash: Option<String>,
}

impl MoneyReport {
    fn of_row(row: &PurchaseRow) -> Self {
        Self {
            state: "unknown",
            amount_msat: Some(row.price.get()),
            fee_msat: row.fee.map(|fee| fee.get()),
            payment_hash: Some(row.payment_hash.to_string()),
        }
    }

    /// What a purchase has cost.
    pub(super) fn spent(receipt: &Receipt) -> Self {
        let Receipt { payment_hash, price, fee, .. } = receipt;
        Self::of(&Money::Spent { payment_hash: *payment_hash, price: *price, fee: *fee })
    }

    pub(super) fn of(money: &Money) -> Self {
        let known = |state, hash: &dyn ToString, price: u64, fee: u64| Self {
            state,
            amount_msat: Some(price),
            fee_msat: Some(fee),
            payment_hash: Some(hash.to_string()),
        };
        match money {
            Money::None => Self { state: "none", ..Self::default() },
            Money::Spent { payment_hash, price, fee } => known("spent", payment_hash, price.get(), fee.get()),
            Money::Unknown { payment_hash, price, fee_worst } => {
                known("unknown", payment_hash, price.get(), fee_worst.get())
            }
        }
    }
}

impl Failure {
    pub(super) fn of(error: &FetchError) -> Self {
        let mut message = chain(error);
        let approval = match error.fault() {
            Fault::Purchase(Stop::Refused(Refusal::ApprovalNeeded { waits, .. })) => waits.clone(),
            _ => None,
        };
        match (&approval, error.fault()) {
            (Some(id), _) => _ = write!(message, "; agree with `farebox approve {id}`, then ask again"),
            (None, Fault::Purchase(Stop::Refused(Refusal::ApprovalNeeded { .. }))) => {
                message.push_str("; at a terminal you are asked, and elsewhere once `farebox policy secret` has set a secret");
            }
            (_, Fault::Purchase(Stop::Refused(Refusal::OverPriceLimit { .. }))) => message.push_str(
                "; --max-cost raises it as far as the policy allows, and --dry-run tells whether there are other offers",
            ),
            (_, Fault::Purchase(Stop::Refused(Refusal::OverFeeLimit { .. }))) => {
                message.push_str("; --max-fee raises it as far as the policy allows");
            }
            (_, Fault::Purchase(Stop::Rejected(..))) => {
                if let Some(reason) = error.reason() {
                    _ = write!(message, "; the server's reason is `{reason}`");
                }
                message.push_str("; ask the seller, or let --buy-again give that payment up");
            }
            _ => {}
        }
        for shortfall in error.shortfalls() {
            _ = write!(message, "; {}", shortfall::sentence(shortfall));
        }
        let heard = Heard {
            reason: error.reason().map(str::to_owned),
            retry_after_secs: None,
            shortfalls: error.shortfalls().iter().map(shortfall::fields).collect(),
        };
        Self {
            exit: Exit::of(error),
            code: error.code(),
            message,
            retryable: error.retryable(),
            money: MoneyReport::of(error.money()).into(),
            approval,
            part: None,
            heard: heard.into(),
        }
    }

    pub(super) fn other(code: &'static str, message: &str) -> Self {
        Self {
            exit: Exit::Other,
            code,
            message: message.to_owned(),
            retryable: false,
            money: MoneyReport::of(&Money::None).into(),
            approval: None,
            part: None,
            heard: Box::default(),
        }
    }

    pub(super) fn usage(error: anyhow::Error) -> Self {
        Self { exit: Exit::Usage, ..Self::other("usage", &format!("{error:#}")) }
    }

    pub(super) fn interrupted() -> Self {
        let message = "interrupted; make the same call again: what has been paid for is not paid twice";
        let money = MoneyReport { state: "unknown", ..MoneyReport::default() }.into();
        Self { exit: Exit::Interrupted, retryable: true, money, ..Self::other("interrupted", message) }
    }

    /// The time is up, and a payment is under way.
    pub(super) fn late_and_unknown(row: &PurchaseRow) -> Self {
        let message = format!(
            "the time is up (--max-time) while payment {} of {} to {} is under way; don't pay again: make the same call once \
             more, or ask with --resume",
            row.payment_hash, row.price, row.origin
        );
        let money = MoneyReport { state: "unknown", ..MoneyReport::of_row(row) }.into();
        Self { exit: Exit::Unknown, money, ..Self::other("payment_unknown", &message) }
    }

    /// The time is up, and nothing is under way. `paid`: what this call has bought before.
    pub(super) fn late(paid: Option<&PurchaseRow>) -> Self {
        let mut message = "the time is up (--max-time)".to_owned();
        let mut money = MoneyReport::of(&Money::None);
        if let Some(row) = paid {
            money = MoneyReport { state: "spent", ..MoneyReport::of_row(row) };
            _ = write!(
                message,
                "; {} were paid, and the same call once more uses what they bought",
                row.price
            );
        }
        Self { exit: Exit::Network, retryable: true, money: money.into(), ..Self::other("timeout", &message) }
    }

    /// The server doesn't sell what `--offer` names.
    pub(super) fn no_such_offer(offer: &str) -> Self {
        let message =
            format!("there is no offer `{offer}`; --dry-run without --offer lists them; nothing was paid");
        Self { exit: Exit::Refused, ..Self::other("offer_unknown", &message) }
    }

    /// A status of 400 or more, with `--fail`.
    pub(super) fn status(report: &Report) -> Self {
        let limited = report.status == 429;
        Self {
            exit: if limited { Exit::RateLimited } else { Exit::Status },
            code: if limited { "rate_limited" } else { "status" },
            message: report.refusal(),
            retryable: limited || report.status >= 500,
            money: report.money.clone().into(),
            approval: None,
            part: None,
            heard: Heard {
                reason: report.reason.clone(),
                retry_after_secs: report.retry_after_secs,
                shortfalls: Vec::new(),
            }
            .into(),
        }
    }

    /// The answer came, and its body did not.
    pub(super) fn broken(Broken { error, part }: Broken, money: MoneyReport) -> Self {
        let is_late = error.chain().any(|cause| cause.is::<TimeUp>());
        let from_network = is_late || error.chain().any(|cause| cause.is::<reqwest::Error>());
        Self {
            exit: if from_network { Exit::Network } else { Exit::Other },
            code: match from_network {
                true if is_late => "timeout",
                true => "network",
                false => "output",
            },
            message: format!("{error:#}"),
            retryable: from_network,
            money: money.into(),
            approval: None,
            part,
            heard: Box::default(),
        }
    }

    /// What `--no-pay` came to. That there is no wallet then is not what is wrong.
    pub(super) fn unpaid(error: &FetchError) -> Self {
        let mut failure = Self::of(error);
        if let Fault::Purchase(Stop::Refused(Refusal::NoWallet { price })) = error.fault() {
            failure.message = format!("--no-pay: this costs {price} and nothing bought before opens it");
            for shortfall in error.shortfalls() {
                _ = write!(failure.message, "; {}", shortfall::sentence(shortfall));
            }
        }
        failure
    }

    /// Adds why there was no wallet, where that is what was missing.
    pub(super) fn because(mut self, no_wallet: Option<anyhow::Error>) -> Self {
        if self.code == "no_wallet" {
            match no_wallet {
                Some(error) => _ = write!(self.message, ": {error:#}"),
                None => self.message.push_str("; name one with --wallet or --wallet-url"),
            }
        }
        self
    }

    /// Says it on standard error.
    pub(super) fn tell(&self, output: OutputFlags) {
        if output.is_json() || (!output.is_human() && !std::io::stderr().is_terminal()) {
            let mut error = serde_json::json!({
                "error": true,
                "code": self.code,
                "message": self.message,
                "exit_code": self.exit as u8,
                "retryable": self.retryable,
                "money": self.money,
            });
            if let Some(id) = &self.approval {
                error["approval"] = id.as_str().into();
            }
            if let (Some(error), Ok(serde_json::Value::Object(heard))) =
                (error.as_object_mut(), serde_json::to_value(&self.heard))
            {
                error.extend(heard);
            }
            if let Some((path, bytes)) = &self.part {
                error["part"] = path.display().to_string().into();
                error["part_bytes"] = (*bytes).into();
            }
            eprintln!("{error}");
        } else {
            eprintln!("error: {}", self.message);
        }
    }
}
