//! The two tools that act: fetch, and find out what became of a payment.

use farebox_client::{Fault, Refusal, Stop};
use farebox_protocol::PaymentHash;
use serde_json::json;

use super::{
    Desk, answer,
    desk::{Caller, Counter, Purse, Rules},
    look, request,
    told::{Told, Trouble},
    tools::{FetchArgs, PaymentState, ResumeArgs},
};

/// Fetches, or finds the answer that this call has had before.
pub(super) async fn fetch(desk: &Desk, caller: Caller, args: Box<FetchArgs>) -> Result<Told, Trouble> {
    let Some(key) = &args.idempotency_key else { return carry_out(desk, caller, &args).await };
    // Judged before it is kept.
    request::fetch(&args)?;
    let kept = desk.kept(caller, key, &args)?;
    kept.get_or_try_init(|| carry_out(desk, caller, &args)).await.cloned()
}

async fn carry_out(desk: &Desk, caller: Caller, args: &FetchArgs) -> Result<Told, Trouble> {
    let request = request::fetch(args)?;
    // Asked before anything is paid for what goes there.
    let place = match (&args.save_to, &desk.settings.folder) {
        (None, _) => None,
        (Some(name), Some(folder)) => Some((folder.place(name)?, name.as_str())),
        (Some(_), None) => {
            return Err(Trouble::new(
                "save_to_refused",
                "no directory is set apart for files; the person can name one with `farebox mcp --files`",
            ));
        }
    };
    let counter = desk.counter(args.max_sats, Purse::Needed).await?;
    let fetched = Box::pin(counter.engine.fetch(request)).await.map_err(|error| {
        desk.remember(caller, &error, args);
        let unreadable = counter.rules == Rules::Unreadable
            && matches!(
                error.fault(),
                Fault::Purchase(Stop::Refused(Refusal::Denied { .. } | Refusal::OverPriceLimit { .. }))
            );
        let trouble = Trouble::of(&error);
        match error.fault() {
            _ if unreadable => trouble.and(
                "the rules themselves can't be read at the moment, so nothing is paid; `farebox policy check` tells the \
                 person why",
            ),
            Fault::Purchase(Stop::Refused(Refusal::NoWallet { .. })) => {
                trouble.and("whoever runs farebox finds the reason in its log")
            }
            _ => trouble,
        }
    })?;
    Box::pin(answer::take(&counter.engine, fetched, place, &desk.settings)).await
}

/// Finds out what became of a payment, and fetches what it was for where that is known and changes nothing.
pub(super) async fn resume(desk: &Desk, caller: Caller, args: ResumeArgs) -> Result<Told, Trouble> {
    let payment: PaymentHash =
        args.payment.parse().map_err(|_| Trouble::arguments("`payment` is not a payment hash"))?;
    let Counter { engine, .. } = desk.counter(Some(0), Purse::Needed).await?;
    let find = || async {
        let found = engine.purchase(payment).await.map_err(|error| Trouble::of(&error))?;
        found.ok_or_else(|| Trouble::new("no_such_payment", "no payment has this hash"))
    };
    let mut row = find().await?;
    if look::state(row.state) == PaymentState::Unknown {
        Box::pin(engine.resume()).await.map_err(|error| Trouble::of(&error))?;
        row = find().await?;
    }
    let state = look::state(row.state);
    let mut fields = json!({ "payment": look::purchase(&row) });
    let next = match state {
        PaymentState::Unknown => {
            "nobody knows yet; ask again later, and don't pay elsewhere for the same thing"
        }
        PaymentState::Failed => "nothing was paid; the call may be made again",
        PaymentState::Settled => "it is paid; make the same `farebox_fetch` call again, which costs nothing",
    };
    fields["next"] = next.into();
    let again = match state {
        PaymentState::Settled => desk.recall(caller, &payment).filter(FetchArgs::changes_nothing),
        _ => None,
    };
    let Some(again) = again else { return Ok(Told::of(fields)) };
    // With what was bought, and not for money.
    match Box::pin(carry_out(desk, caller, &FetchArgs { max_sats: Some(0), ..again })).await {
        Ok(Told { fields: response, body }) => {
            fields["response"] = response;
            fields["next"] = "this is the answer that was paid for".into();
            Ok(Told { fields, body })
        }
        Err(trouble) => {
            tracing::info!(code = trouble.code(), "a settled payment's answer could not be fetched");
            Ok(Told::of(fields))
        }
    }
}

impl FetchArgs {
    fn changes_nothing(&self) -> bool {
        let method = self.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
        matches!(&*method, "GET" | "HEAD") && self.body.is_none() && self.body_base64.is_none()
    }
}
