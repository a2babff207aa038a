//! What an agent is told: results and errors, as fields for programs and as text, with what a server has written marked as such.

use std::fmt::Write as _;

use farebox_client::{Fault, FetchError, Money, Refusal, Shortfall, Stop};
use rmcp::model::{CallToolResult, ContentBlock, MetaObject, TextContent};
use serde_json::{Value, json};

use super::answer::Body;
use crate::{output::chain, shortfall};

/// No message is longer: some repeat what was given.
const MESSAGE_CHARS_MAX: usize = 600;

/// What came of a call.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// The fields. They hold everything but the body.
    pub(super) fields: Value,
    /// What the server has sent.
    pub(super) body: Option<Body>,
}

/// Why nothing came of it, and what became of the money.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    code: &'static str,
    message: String,
    retryable: bool,
    money: Box<Money>,
    more: Vec<(&'static str, Value)>,
}

impl Told {
    pub(super) fn of(fields: Value) -> Self {
        Self { fields, body: None }
    }

    /// The fields as structured content and as text; the body in a block of its own.
    pub(super) fn result(self) -> CallToolResult {
        let Self { mut fields, body } = self;
        let mut content = vec![ContentBlock::text(fields.to_string())];
        if let Some((encoding, text)) = body.map(Body::into_text) {
            let mut block = TextContent::new(text.clone());
            block.meta = Some(untrusted_meta(encoding));
            content.push(ContentBlock::Text(block));
            fields["body"]["data"] = text.into();
        }
        let mut result = CallToolResult::success(content);
        result.structured_content = Some(fields);
        result
    }
}

impl Trouble {
    pub(super) fn new(code: &'static str, message: &str) -> Self {
        let message = message.chars().take(MESSAGE_CHARS_MAX).collect();
        Self { code, message, retryable: false, money: Box::default(), more: Vec::new() }
    }

    pub(super) fn arguments(what: &str) -> Self {
        Self::new("invalid_arguments", what)
    }

    pub(super) fn cancelled() -> Self {
        let message = "cancelled; a payment that had begun goes on and is in `farebox_receipts`";
        Self { retryable: true, ..Self::new("cancelled", message) }
    }

    /// What stands in the way is on this side, and in the log for the person who runs it.
    pub(super) fn internal(error: &anyhow::Error) -> Self {
        tracing::error!(error = %format!("{error:#}"), "a call failed");
        Self::new("internal", "farebox itself is in trouble; whoever runs it finds the reason in its log")
    }

    pub(super) fn of(error: &FetchError) -> Self {
        let mut trouble = Self {
            retryable: error.retryable(),
            money: error.money().clone().into(),
            ..Self::new(error.code(), &chain(error))
        };
        match error.fault() {
            Fault::Purchase(Stop::Refused(refusal)) => trouble.refused(refusal),
            Fault::Purchase(Stop::Unknown(..)) => {
                trouble
                    .message
                    .push_str("; `farebox_resume` tells when it is known, and nothing is paid twice");
            }
            _ => {}
        }
        if let Some(reason) = error.reason() {
            trouble.more.push(("server_code", untrusted(reason)));
        }
        if !error.shortfalls().is_empty() {
            for shortfall in error.shortfalls() {
                _ = write!(trouble.message, "; {}", shortfall::sentence(shortfall));
            }
            trouble.more.push(("shortfalls", shortfalls(error.shortfalls())));
        }
        trouble
    }

    fn refused(&mut self, refusal: &Refusal) {
        match refusal {
            Refusal::ApprovalNeeded { waits: Some(id), .. } => {
                let command = format!("farebox approve {id}");
                _ = write!(self.message, "; the person can agree with `{command}`, then make this call again");
                self.more.push(("approval", json!({ "id": id, "command": command })));
            }
            Refusal::ApprovalNeeded { waits: None, .. } => self.message.push_str(
                "; nobody can agree from here: the policy has no secret for that, see `farebox policy secret`",
            ),
            Refusal::OverPriceLimit { price, .. }
            | Refusal::OverRuleLimit { price, .. }
            | Refusal::OverBudget { price, .. }
            | Refusal::NoWallet { price } => self.more.push(("price_msat", price.get().into())),
            _ => {}
        }
    }

    /// The same, of a call that has paid.
    pub(super) fn having(mut self, money: Money) -> Self {
        self.money = money.into();
        self
    }

    pub(super) fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// Adds what else there is to say.
    pub(super) fn and(mut self, more: &str) -> Self {
        _ = write!(self.message, "; {more}");
        self
    }

    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    pub(super) fn result(self) -> CallToolResult {
        let Self { code, message, retryable, money: paid, more } = self;
        let mut fields = json!({
            "error": true,
            "code": code,
            "message": message,
            "retryable": retryable,
            "money": money(&paid),
        });
        for (name, value) in more {
            fields[name] = value;
        }
        let mut result = CallToolResult::error(vec![ContentBlock::text(fields.to_string())]);
        result.structured_content = Some(fields);
        result
    }
}

/// What became of the money, in the words of `farebox get`.
pub(super) fn money(money: &Money) -> Value {
    match money {
        Money::None => json!({ "state": "none" }),
        Money::Spent { payment_hash, price, fee } => json!({
            "state": "spent", "amount_msat": price.get(), "fee_msat": fee.get(),
            "payment_hash": payment_hash.to_string(),
        }),
        Money::Unknown { payment_hash, price, fee_worst } => json!({
            "state": "unknown", "amount_msat": price.get(), "fee_msat": fee_worst.get(),
            "payment_hash": payment_hash.to_string(), "resume_id": payment_hash.to_string(),
        }),
    }
}

/// What was bought before and is not enough, as its seller says.
pub(super) fn shortfalls(all: &[Shortfall]) -> Value {
    json!({ "untrusted": true, "values": all.iter().map(shortfall::fields).collect::<Vec<_>>() })
}

/// Words of a server.
pub(super) fn untrusted(text: &str) -> Value {
    json!({ "untrusted": true, "text": text })
}

fn untrusted_meta(encoding: &'static str) -> MetaObject {
    let mut meta = MetaObject::new();
    meta.0.insert("untrusted".to_owned(), true.into());
    meta.0.insert("encoding".to_owned(), encoding.into());
    meta
}
