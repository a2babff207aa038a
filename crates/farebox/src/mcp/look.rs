//! The tools that only look: prices, limits, purchases, credentials, answers to questions.

use farebox_client::{Approval, BudgetUse, Origin, Overrun, PurchaseRow};
use serde_json::{Value, json};

use super::{
    Desk,
    desk::{Counter, Purse, Rules},
    request,
    told::{Told, Trouble, untrusted},
    tools::{
        ApprovalArgs, BudgetArgs, CredentialsArgs, PaymentState, QuoteArgs, ROWS_MAX, ROWS_USUAL,
        ReceiptsArgs,
    },
};

/// The tool `farebox_quote`.
pub(super) async fn quote(desk: &Desk, args: QuoteArgs) -> Result<Told, Trouble> {
    let request = request::quote(&args)?;
    let Counter { engine, rules, .. } = desk.counter(None, Purse::Unneeded).await?;
    let asked = request.clone().map(drop);
    let quote = Box::pin(engine.quote(request)).await.map_err(|error| Trouble::of(&error))?;
    // What the rules say of the address as it was given; the refusal is about whoever has answered.
    let explained = engine.explain(&asked).await.map_err(|error| Trouble::of(&error))?;
    let offer = quote.offer.as_ref().map(|offer| {
        json!({
            "scheme": "L402",
            "amount_msat": offer.price.get(),
            "max_fee_msat": offer.fee_max.get(),
            "network": offer.network.name(),
            "payee": offer.payee,
            "service": untrusted(&offer.service),
            "expires_at": offer.expires_at.secs(),
        })
    });
    Ok(Told::of(json!({
        "origin": quote.origin.to_string(),
        "status": quote.status.as_u16(),
        "requires_payment": quote.status == http::StatusCode::PAYMENT_REQUIRED,
        "offers": offer.into_iter().collect::<Vec<_>>(),
        "would_pay": quote.offer.is_some() && quote.refusal.is_none(),
        "refusal": quote.refusal.as_ref().map(|refusal| json!({
            "code": refusal.code(), "message": refusal.to_string(),
        })),
        "policy": {
            "verdict": explained.judgement.verdict.to_string(),
            "rule": explained.judgement.rule,
            "source": source(rules),
        },
        "has_credential": quote.has_credential,
    })))
}

/// The tool `farebox_budget`.
pub(super) async fn budget(desk: &Desk, args: BudgetArgs) -> Result<Told, Trouble> {
    let Counter { engine, policy, limits, rules } = desk.counter(None, Purse::Unneeded).await?;
    let mut budgets = policy.budgets();
    if let Some(scope) = &args.scope {
        if !policy.rules.iter().any(|rule| rule.name == *scope) {
            return Err(Trouble::arguments("no rule has this name"));
        }
        budgets.retain(|budget| budget.rule.as_ref() == Some(scope));
    }
    let used = engine.budgets(budgets).await.map_err(|error| Trouble::of(&error))?;
    let overruns = engine.overruns().await.map_err(|error| Trouble::of(&error))?;
    let fee = policy.caps.fee.map_or(limits.fee_max, |fee| fee.min(limits.fee_max));
    let payment = policy.caps.payment.map_or(limits.per_payment, |payment| payment.min(limits.per_payment));
    let caps = policy.rules.iter().filter(|rule| args.scope.as_ref().is_none_or(|scope| rule.name == *scope));
    Ok(Told::of(json!({
        "policy": source(rules),
        "payment_max_msat": payment.get(),
        "fee_max_msat": fee.get(),
        "rules": caps.map(|rule| json!({
            "rule": rule.name,
            "verdict": rule.verdict.map(|verdict| verdict.to_string()),
            "payment_max_msat": rule.caps.payment.map(farebox_protocol::Msat::get),
            "fee_max_msat": rule.caps.fee.map(farebox_protocol::Msat::get),
        })).collect::<Vec<_>>(),
        "budgets": used.iter().map(used_up).collect::<Vec<_>>(),
        "wallet_stopped": overruns.iter().map(stopped).collect::<Vec<_>>(),
        "notes": desk.notes(),
    })))
}

fn used_up(used: &BudgetUse) -> Value {
    json!({
        "rule": used.budget.rule,
        // Without one it is for ever.
        "window_secs": used.budget.window.secs(),
        "resets": if used.budget.window.secs().is_some() { "sliding" } else { "never" },
        "max_msat": used.budget.most.get(),
        "spent_msat": used.spent.get(),
        "reserved_msat": used.reserved.get(),
        "remaining_msat": used.left().get(),
    })
}

fn stopped(overrun: &Overrun) -> Value {
    json!({
        "payment_hash": overrun.payment.to_string(),
        "fee_msat": overrun.fee.get(),
        "promised_msat": overrun.promised.get(),
        "command": format!("farebox budget --acknowledge {}", overrun.payment),
    })
}

/// The tool `farebox_receipts`.
pub(super) async fn receipts(desk: &Desk, args: ReceiptsArgs) -> Result<Told, Trouble> {
    let limit = args.limit.unwrap_or(ROWS_USUAL);
    if !(1..=ROWS_MAX).contains(&limit) {
        return Err(Trouble::arguments("`limit` is 1 to 200"));
    }
    let filter = args.filter.unwrap_or_default();
    let origin = origin(filter.origin.as_deref())?;
    let Counter { engine, .. } = desk.counter(None, Purse::Unneeded).await?;
    let mut rows = engine.purchases().await.map_err(|error| Trouble::of(&error))?;
    if let Some(cursor) = &args.cursor {
        let last = rows.iter().position(|row| row.payment_hash.to_string() == *cursor);
        let last = last.ok_or_else(|| Trouble::arguments("`cursor` is not one that was given out"))?;
        rows.drain(..=last);
    }
    rows.retain(|row| {
        origin.as_ref().is_none_or(|origin| row.origin == *origin)
            && filter.state.is_none_or(|wanted| state(row.state) == wanted)
    });
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|row| row.payment_hash.to_string());
    Ok(Told::of(json!({
        "receipts": rows.iter().map(purchase).collect::<Vec<_>>(),
        "next_cursor": next,
    })))
}

/// The tool `farebox_credentials`.
pub(super) async fn credentials(desk: &Desk, args: CredentialsArgs) -> Result<Told, Trouble> {
    let origin = origin(args.filter.unwrap_or_default().origin.as_deref())?;
    let Counter { engine, .. } = desk.counter(None, Purse::Unneeded).await?;
    let mut rows = engine.tokens().await.map_err(|error| Trouble::of(&error))?;
    rows.retain(|row| origin.as_ref().is_none_or(|origin| row.origin == *origin));
    let told = rows.iter().map(|row| {
        json!({
            "payment_hash": row.payment_hash.to_string(),
            "origin": row.origin.to_string(),
            "service": untrusted(&row.service),
            "bought_for": { "method": row.method, "path": row.path },
            "state": match row.state {
                "honoured" => "in_use",
                "dead" | "used_up" => "over",
                _ => "unused",
            },
            "valid_until": row.valid_until.map(|end| end.secs()),
        })
    });
    Ok(Told::of(json!({ "credentials": told.collect::<Vec<_>>() })))
}

/// The tool `farebox_approval_status`.
pub(super) async fn approval(desk: &Desk, args: ApprovalArgs) -> Result<Told, Trouble> {
    let Counter { engine, .. } = desk.counter(None, Purse::Unneeded).await?;
    let found = engine.approval(&args.id).await.map_err(|error| Trouble::of(&error))?;
    let mut fields = json!({ "id": args.id });
    let (state, next) = match found {
        None => return Err(Trouble::new("no_such_approval", "no question has this name (any more)")),
        Some(Approval::Pending) => ("pending", "wait; the person answers with `farebox approve`"),
        Some(Approval::Approved { price_max, fee_max, until }) => {
            fields["price_max_msat"] = price_max.get().into();
            fields["fee_max_msat"] = fee_max.get().into();
            fields["until"] = until.secs().into();
            ("approved", "make the same call again")
        }
        Some(Approval::Used(payment)) => {
            fields["payment_hash"] = payment.to_string().into();
            ("approved", "it has been used for this payment, and is good for no other one")
        }
        Some(Approval::Denied) => ("denied", "the person has said no"),
        // Including ways of ending that are not known here yet.
        Some(_) => ("expired", "make the call again if it is still wanted"),
    };
    fields["state"] = state.into();
    fields["next"] = next.into();
    Ok(Told::of(fields))
}

/// One purchase, without any secret.
pub(super) fn purchase(row: &PurchaseRow) -> Value {
    json!({
        "payment_hash": row.payment_hash.to_string(),
        "state": match state(row.state) {
            PaymentState::Settled => "settled",
            PaymentState::Failed => "failed",
            PaymentState::Unknown => "unknown",
        },
        "served": row.state == "honoured",
        "amount_msat": row.price.get(),
        "fee_msat": row.fee.map(farebox_protocol::Msat::get),
        "origin": row.origin.to_string(),
        "service": untrusted(&row.service),
        "method": row.method,
        "path": row.path,
        "begun_at": row.begun_at.secs(),
        "valid_until": row.valid_until.map(|end| end.secs()),
    })
}

/// What the journal's word for a purchase means for the money.
pub(super) fn state(word: &str) -> PaymentState {
    match word {
        "paid" | "imported" | "honoured" | "used_up" | "dead" => PaymentState::Settled,
        "failed" | "unsent" => PaymentState::Failed,
        _ => PaymentState::Unknown,
    }
}

fn origin(text: Option<&str>) -> Result<Option<Origin>, Trouble> {
    let read = |text: &str| text.parse().map_err(|_| Trouble::arguments("`origin` is no origin"));
    text.map(read).transpose()
}

fn source(rules: Rules) -> &'static str {
    match rules {
        Rules::File => "file",
        Rules::Usual => "usual",
        Rules::Unreadable => "unreadable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_paid_for_is_settled_whatever_became_of_it_since() {
        for word in ["paid", "imported", "honoured", "used_up", "dead"] {
            assert_eq!(state(word), PaymentState::Settled, "{word}");
        }
        for word in ["failed", "unsent"] {
            assert_eq!(state(word), PaymentState::Failed, "{word}");
        }
        for word in ["recorded", "sent", "unknown"] {
            assert_eq!(state(word), PaymentState::Unknown, "{word}");
        }
    }
}
