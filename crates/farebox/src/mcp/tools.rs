//! The tools: their names, what they say of themselves, and how their arguments are read.
//!
//! The schemas are written out rather than derived, since they are what an agent reads. They are strict, and the types behind
//! them as strict: a misspelt argument is an error and never passed over, because it might have been the limit.

use std::{collections::BTreeMap, sync::Arc};

use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{desk::Errand, told::Trouble};

/// All the bitcoin there will be, in satoshi.
const SATS_MAX: u64 = 2_100_000_000_000_000;

/// So many rows are listed at once, at most.
pub(super) const ROWS_MAX: usize = 200;
/// And so many unless more are asked for.
pub(super) const ROWS_USUAL: usize = 50;

/// A call that has been read.
#[derive(Debug)]
pub(super) enum Call {
    Quote(QuoteArgs),
    Fetch(Box<FetchArgs>),
    Resume(ResumeArgs),
    Budget(BudgetArgs),
    Receipts(ReceiptsArgs),
    Credentials(CredentialsArgs),
    ApprovalStatus(ApprovalArgs),
}

/// Arguments of `farebox_quote`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuoteArgs {
    pub(super) url: String,
    pub(super) method: Option<String>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
}

/// Arguments of `farebox_fetch`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FetchArgs {
    pub(super) url: String,
    pub(super) method: Option<String>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Option<String>,
    pub(super) body_base64: Option<String>,
    pub(super) max_sats: Option<u64>,
    pub(super) idempotency_key: Option<String>,
    pub(super) save_to: Option<String>,
}

/// Arguments of `farebox_resume`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeArgs {
    pub(super) payment: String,
}

/// Arguments of `farebox_budget`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BudgetArgs {
    pub(super) scope: Option<String>,
}

/// Arguments of `farebox_receipts`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReceiptsArgs {
    pub(super) filter: Option<ReceiptsFilter>,
    pub(super) limit: Option<usize>,
    pub(super) cursor: Option<String>,
}

/// Which purchases.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReceiptsFilter {
    pub(super) origin: Option<String>,
    pub(super) state: Option<PaymentState>,
}

/// What is known of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PaymentState {
    Settled,
    Failed,
    Unknown,
}

/// Arguments of `farebox_credentials`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialsArgs {
    pub(super) filter: Option<CredentialsFilter>,
}

/// Which credentials.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialsFilter {
    pub(super) origin: Option<String>,
}

/// Arguments of `farebox_approval_status`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApprovalArgs {
    pub(super) id: String,
}

impl Call {
    /// Reads the arguments of the tool called `name`.
    pub(super) fn read(name: &str, arguments: JsonObject) -> Result<Self, Trouble> {
        fn args<T: DeserializeOwned>(arguments: JsonObject) -> Result<T, Trouble> {
            serde_json::from_value(Value::Object(arguments))
                .map_err(|error| Trouble::arguments(&error.to_string()))
        }
        Ok(match name {
            "farebox_quote" => Self::Quote(args(arguments)?),
            "farebox_fetch" => {
                let args: FetchArgs = args(arguments)?;
                if args.max_sats.is_some_and(|sats| sats > SATS_MAX) {
                    return Err(Trouble::arguments("`max_sats` is more than all the bitcoin there will be"));
                }
                Self::Fetch(args.into())
            }
            "farebox_resume" => Self::Resume(args(arguments)?),
            "farebox_budget" => Self::Budget(args(arguments)?),
            "farebox_receipts" => Self::Receipts(args(arguments)?),
            "farebox_credentials" => Self::Credentials(args(arguments)?),
            "farebox_approval_status" => Self::ApprovalStatus(args(arguments)?),
            _ => return Err(Trouble::arguments("there is no such tool")),
        })
    }

    /// What it may have to wait for.
    pub(super) fn errand(&self) -> Errand {
        match self {
            Self::Quote(_) | Self::Fetch(_) | Self::Resume(_) => Errand::Abroad,
            Self::Budget(_) | Self::Receipts(_) | Self::Credentials(_) | Self::ApprovalStatus(_) => {
                Errand::Look
            }
        }
    }
}

/// Every tool, in the order in which an agent should read them.
pub(super) fn all() -> Vec<Tool> {
    vec![quote(), fetch(), resume(), budget(), receipts(), credentials(), approval_status()]
}

/// A tool that changes nothing, here or elsewhere.
fn reads(open_world: bool) -> ToolAnnotations {
    ToolAnnotations::new().read_only(true).destructive(false).idempotent(true).open_world(open_world)
}

fn tool(name: &'static str, title: &str, description: &'static str, properties: Value) -> Tool {
    let required: Vec<&str> = match name {
        "farebox_quote" | "farebox_fetch" => vec!["url"],
        "farebox_resume" => vec!["payment"],
        "farebox_approval_status" => vec!["id"],
        _ => Vec::new(),
    };
    let mut schema = JsonObject::new();
    schema.insert("type".to_owned(), "object".into());
    schema.insert("properties".to_owned(), properties);
    schema.insert("required".to_owned(), required.into());
    schema.insert("additionalProperties".to_owned(), false.into());
    Tool::new(name, description, Arc::new(schema)).with_title(title)
}

fn url() -> Value {
    json!({ "type": "string", "maxLength": super::request::URL_BYTES_MAX, "description": "An http or https URL." })
}

fn headers() -> Value {
    json!({
        "type": "object",
        "additionalProperties": { "type": "string" },
        "maxProperties": super::request::HEADERS_MAX,
        "description": "Request headers by name. Credentials, cookies and framing are not accepted: farebox sets them.",
    })
}

fn origin() -> Value {
    json!({ "type": "string", "description": "Only of this seller, like `https://api.example.com`." })
}

fn quote() -> Tool {
    let description = "Tells what fetching a URL would cost, who would be paid, and whether the person's rules allow it. Sends \
        the request without any credential and never touches the wallet. Only for methods that change nothing (GET, HEAD, \
        OPTIONS); the price of another one is in the refusal of `farebox_fetch` with `max_sats` 0.";
    let properties = json!({
        "url": url(),
        "method": { "type": "string", "enum": ["GET", "HEAD", "OPTIONS"], "default": "GET" },
        "headers": headers(),
    });
    tool("farebox_quote", "Ask what a resource costs", description, properties).annotate(reads(true))
}

fn fetch() -> Tool {
    let description = "Fetches a URL and pays for it if it asks for money and the person's rules allow that. What was bought \
        before is used again and costs nothing. The body comes whole, or goes to a file with `save_to`, or the call fails; it \
        is never cut. A cancelled or failed call may be made again: a payment that has begun is finished and not repeated.";
    let properties = json!({
        "url": url(),
        "method": { "type": "string", "default": "GET", "description": "The method; POST if there is a body." },
        "headers": headers(),
        "body": { "type": "string", "description": "The body of the request, as text." },
        "body_base64": { "type": "string", "description": "The body of the request, in base64; instead of `body`." },
        "max_sats": {
            "type": "integer", "minimum": 0, "maximum": SATS_MAX,
            "description": "The highest price of this call in satoshi, without the routing fee, which the rules cap apart. \
                It lowers what the rules allow and never raises it; 0 pays nothing.",
        },
        "idempotency_key": {
            "type": "string", "minLength": 1, "maxLength": 128,
            "description": "A name for this very call. The same call under the same name gets the same answer again, while it \
                is remembered, without anything being sent; another call under it is refused. The server gets it as \
                Idempotency-Key.",
        },
        "save_to": {
            "type": "string",
            "description": "Put the body into this new file, a relative path below the directory that the person has set \
                apart for it.",
        },
    });
    let annotations =
        ToolAnnotations::new().read_only(false).destructive(true).idempotent(false).open_world(true);
    tool("farebox_fetch", "Fetch, and pay if needed", description, properties).annotate(annotations)
}

fn resume() -> Tool {
    let description = "Finds out what became of a payment whose outcome was unknown, or of a call that was cancelled: settled, \
        failed or unknown. Pays nothing. Where it has settled and the request is still remembered (GET or HEAD), the answer \
        that was paid for comes along.";
    let properties = json!({
        "payment": { "type": "string", "pattern": "^[0-9a-fA-F]{64}$", "description": "A `payment_hash`." },
    });
    let annotations =
        ToolAnnotations::new().read_only(false).destructive(false).idempotent(true).open_world(true);
    tool("farebox_resume", "Follow a payment up", description, properties).annotate(annotations)
}

fn budget() -> Tool {
    let description = "Shows the limits on payments: what is spent, what is kept aside for payments under way, what is left. \
        Times slide: what was spent counts until its hour, day or week is over.";
    let properties = json!({
        "scope": { "type": "string", "description": "Only the limits of the rule with this name." },
    });
    tool("farebox_budget", "Look at the limits", description, properties).annotate(reads(false))
}

fn receipts() -> Tool {
    let description = "Lists what has been paid or may have been, newest first.";
    let properties = json!({
        "filter": {
            "type": "object",
            "properties": {
                "origin": origin(),
                "state": { "type": "string", "enum": ["settled", "failed", "unknown"] },
            },
            "additionalProperties": false,
        },
        "limit": { "type": "integer", "minimum": 1, "maximum": ROWS_MAX, "default": ROWS_USUAL },
        "cursor": { "type": "string", "description": "The `next_cursor` of the page before." },
    });
    tool("farebox_receipts", "List purchases", description, properties).annotate(reads(false))
}

fn credentials() -> Tool {
    let description = "Lists what was bought and may be used again, without the credentials themselves.";
    let properties = json!({
        "filter": { "type": "object", "properties": { "origin": origin() }, "additionalProperties": false },
    });
    tool("farebox_credentials", "List what was bought", description, properties).annotate(reads(false))
}

fn approval_status() -> Tool {
    let description = "Tells whether a person has answered a question that `farebox_fetch` has left for them: pending, \
        approved, denied or expired. Once approved, make the call again.";
    let properties = json!({ "id": { "type": "string", "maxLength": 64 } });
    tool("farebox_approval_status", "See whether a person has agreed", description, properties)
        .annotate(reads(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_are_these_and_say_truly_what_they_do() {
        let told: Vec<String> = all()
            .iter()
            .map(|tool| {
                let hints = tool.annotations.as_ref().unwrap();
                assert_eq!(tool.input_schema["additionalProperties"], false, "{}", tool.name);
                format!(
                    "{} {}{}{}{}",
                    tool.name,
                    if hints.read_only_hint == Some(true) { "reads " } else { "acts " },
                    if hints.is_destructive() { "spends " } else { "" },
                    if hints.is_idempotent() { "repeatable " } else { "" },
                    if hints.open_world_hint == Some(true) { "outside" } else { "here" },
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                "farebox_quote reads repeatable outside",
                "farebox_fetch acts spends outside",
                "farebox_resume acts repeatable outside",
                "farebox_budget reads repeatable here",
                "farebox_receipts reads repeatable here",
                "farebox_credentials reads repeatable here",
                "farebox_approval_status reads repeatable here",
            ]
        );
    }

    #[track_caller]
    fn refused(name: &str, arguments: Value) {
        let Value::Object(arguments) = arguments else { panic!("no object") };
        assert_eq!(Call::read(name, arguments).unwrap_err().code(), "invalid_arguments");
    }

    #[test]
    fn an_argument_that_is_not_understood_is_an_error() {
        for limit in
            [json!(-1), json!(1.5), json!(100.0), json!("100"), json!(SATS_MAX + 1), json!(1e30), json!([1])]
        {
            refused("farebox_fetch", json!({ "url": "https://a.example", "max_sats": limit }));
        }
        refused("farebox_fetch", json!({ "url": "https://a.example", "max_sat": 1 }));
        refused("farebox_fetch", json!({ "url": "https://a.example", "headers": { "a": 1 } }));
        refused("farebox_fetch", json!({}));
        refused("farebox_receipts", json!({ "limit": -1 }));
        refused("farebox_receipts", json!({ "filter": { "stat": "open" } }));
        refused("farebox_budget", json!({ "raise": 1 }));
    }
}
