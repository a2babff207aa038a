//! The page a browser gets: what it costs and what else there is to choose from, the invoice as text, as a QR code and as a
//! link to a wallet, how to go on.
//!
//! One self-contained document: no script, no external asset, no cookie; the content security policy forbids all but
//! this one style sheet. The offers to choose from are links to the same page with another invoice on it.

use std::{fmt::Write, sync::LazyLock, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};

use farebox_protocol::{Monthly, Offer, caveat::Most};

use super::{Refusal, qr};
use crate::{
    DEFAULT_OFFER, OFFER_HEADER, Quote,
    menu::others,
    mint::{Minted, spoken},
};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}\
code,textarea{font:13px/1.4 ui-monospace,monospace;overflow-wrap:anywhere}\
textarea{width:100%;box-sizing:border-box}\
.pay{display:inline-block;padding:.6rem 1.2rem;border-radius:.4rem;background:#f7931a;color:#000;text-decoration:none}\
@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}textarea{background:#222;color:#ddd}}";

/// Allows this style sheet, by its hash, and nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).expect("visible ASCII")
});

/// Writes the page and sets its headers.
pub(super) fn render(refusal: &Refusal<'_>, status: StatusCode, headers: &mut HeaderMap) -> Bytes {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));

    let title = status.canonical_reason().unwrap_or_default();
    let mut page = String::with_capacity(4_096);
    let mut line = |text: &str| {
        page.push_str(text);
        page.push('\n');
    };
    line("<!doctype html>");
    line("<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">");
    line(&format!("<title>{}</title><style>{STYLE}</style>", escape(title)));
    line(&format!("<h1>{}</h1>", escape(title)));
    line(&format!("<p>{}.</p>", escape(&capitalised(refusal.detail()))));
    if let (Some(service), Some(minted)) = (refusal.service, refusal.minted) {
        let chosen = refusal.choices().find(|quote| quote.name == minted.name);
        line(&challenge(service.name.as_str(), minted, chosen.and_then(|quote| quote.good_for)));
    }
    if let Some(choices) = choices(refusal) {
        line(&choices);
    }
    line(&format!("<p><small>code: <code>{}</code></small></p>", refusal.code));
    Bytes::from(page)
}

fn challenge(service: &str, minted: &Minted, good_for: Option<Duration>) -> String {
    let (before, after) = match minted.terms.offer {
        Offer::Forever => ("access to".to_owned(), "without end".to_owned()),
        Offer::Duration(time) => ("access to".to_owned(), format!("for {}", spoken(time))),
        Offer::Requests(count) if count.get() == 1 => {
            ("1 request to".to_owned(), "whenever you like".to_owned())
        }
        Offer::Requests(count) => (format!("{count} requests to"), "whenever you like".to_owned()),
        Offer::Credit => ("as much credit at".to_owned(), "to be drawn down by use".to_owned()),
    };
    let picture = qr::invoice(minted.challenge.invoice.as_str()).unwrap_or_default();
    let invoice = escape(minted.challenge.invoice.as_str());
    let token = escape(&minted.challenge.macaroon.to_base64());
    let good_for = good_for.map(|time| format!(", good for {}", spoken(time))).unwrap_or_default();
    let monthly = limited(&minted.monthly);
    let mut text = String::new();
    write!(
        text,
        "<p><strong>{}</strong> buys {before} <strong>{}</strong> {after}{good_for}{monthly}.</p>\n\
         <p><a class=\"pay\" href=\"lightning:{invoice}\">Pay with a Lightning wallet</a></p>\n\
         <p>{picture}</p>\n\
         <p>Or copy the invoice:</p>\n<textarea readonly rows=\"6\">{invoice}</textarea>\n\
         <p>Your wallet shows a <em>preimage</em> when it has paid. Send it with this header:</p>\n\
         <textarea readonly rows=\"6\">Authorization: L402 {token}:&lt;preimage&gt;</textarea>",
        escape(&minted.terms.price.to_string()),
        escape(service),
    )
    .expect("writing to a string");
    text
}

/// What else there is to choose from, each with a link to this page for it.
fn choices(refusal: &Refusal<'_>) -> Option<String> {
    let query = refusal.request.and_then(|request| request.query).unwrap_or_default();
    let chosen = refusal.minted.map(|minted| minted.name.as_str());
    let others: Vec<Quote<'_>> = refusal.choices().filter(|quote| Some(quote.name) != chosen).collect();
    if others.is_empty() {
        return None;
    }
    let mut text = "<p>There is also:</p>\n<ul>\n".to_owned();
    for quote in others {
        let buys = match quote.offer {
            Offer::Forever => "access without end".to_owned(),
            Offer::Duration(time) => format!("access for {}", spoken(time)),
            Offer::Requests(count) if count.get() == 1 => "1 request".to_owned(),
            Offer::Requests(count) => format!("{count} requests"),
            Offer::Credit => "as much credit".to_owned(),
        };
        let good_for = quote.good_for.map(|time| format!(", good for {}", spoken(time)));
        writeln!(
            text,
            "<li><a href=\"{}\">{}</a>: {} buys {buys}{}{}</li>",
            escape(&link(query, quote.name)),
            escape(quote.name),
            escape(&quote.price.to_string()),
            good_for.unwrap_or_default(),
            limited(quote.monthly),
        )
        .expect("writing to a string");
    }
    text.push_str("</ul>");
    Some(text)
}

/// How much may be used in a month: `, at most 1000 requests a month of "read"`.
fn limited(monthly: &[Monthly]) -> String {
    let mut text = String::new();
    for (at, Monthly { capability, most }) in monthly.iter().enumerate() {
        let joint = if at == 0 { ", at most" } else { " and" };
        let most = match most {
            Most::Requests(1) => "1 request".to_owned(),
            Most::Requests(most) => format!("{most} requests"),
            Most::Spent(most) => most.to_string(),
            _ => continue,
        };
        write!(text, "{joint} {most} a month of <code>{}</code>", escape(capability.as_str()))
            .expect("writing to a string");
    }
    text
}

/// A link to the page that was asked for, with another choice.
fn link(query: &str, name: &str) -> String {
    let mut link = format!("?{}", others(query).as_deref().unwrap_or(query));
    if name != DEFAULT_OFFER {
        let joint = if link.len() > 1 { "&" } else { "" };
        write!(link, "{joint}{OFFER_HEADER}={name}").expect("writing to a string");
    }
    link
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_page_can_break_out_of_it() {
        assert_eq!(escape("<a href=\"x\" y='z'>&"), "&lt;a href=&quot;x&quot; y=&#39;z&#39;&gt;&amp;");
    }

    #[test]
    fn a_link_changes_the_choice_and_nothing_else() {
        for (query, name, want) in [
            ("", "large", "?farebox-offer=large"),
            ("", "default", "?"),
            ("city=x", "large", "?city=x&farebox-offer=large"),
            ("city=x&farebox-offer=large&y", "day", "?city=x&y&farebox-offer=day"),
            ("city=x&farebox-offer=large", "default", "?city=x"),
        ] {
            assert_eq!(link(query, name), want);
        }
    }

    #[test]
    fn the_policy_allows_one_style_sheet_and_nothing_else() {
        let policy = POLICY.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"), "no external asset");
    }
}
