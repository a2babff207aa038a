//! The page a browser gets: what it costs, the invoice as text and as a link to a wallet, how to go on.
//!
//! One self-contained document: no script, no external asset, no cookie; the content security policy forbids all but
//! this one style sheet. It has no QR code: that would take a drawing library for a picture that a wallet on the same
//! machine doesn't need, and the link opens one.

use std::{fmt::Write, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};

use super::Refusal;
use crate::mint::{Minted, spoken};
use farebox_protocol::Offer;

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
        line(&challenge(service.name.as_str(), minted));
    }
    line(&format!("<p><small>code: <code>{}</code></small></p>", refusal.code));
    Bytes::from(page)
}

fn challenge(service: &str, minted: &Minted) -> String {
    let (before, after) = match minted.terms.offer {
        Offer::Forever => ("access to".to_owned(), "without end".to_owned()),
        Offer::Duration(time) => ("access to".to_owned(), format!("for {}", spoken(time))),
        Offer::Requests(count) if count.get() == 1 => {
            ("1 request to".to_owned(), "whenever you like".to_owned())
        }
        Offer::Requests(count) => (format!("{count} requests to"), "whenever you like".to_owned()),
        Offer::Credit => ("as much credit at".to_owned(), "to be drawn down by use".to_owned()),
    };
    let invoice = escape(minted.challenge.invoice.as_str());
    let token = escape(&minted.challenge.macaroon.to_base64());
    let mut text = String::new();
    write!(
        text,
        "<p><strong>{}</strong> buys {before} <strong>{}</strong> {after}.</p>\n\
         <p><a class=\"pay\" href=\"lightning:{invoice}\">Pay with a Lightning wallet</a></p>\n\
         <p>Or copy the invoice:</p>\n<textarea readonly rows=\"6\">{invoice}</textarea>\n\
         <p>Your wallet shows a <em>preimage</em> when it has paid. Send it with this header:</p>\n\
         <textarea readonly rows=\"6\">Authorization: L402 {token}:&lt;preimage&gt;</textarea>",
        escape(&minted.terms.price.to_string()),
        escape(service),
    )
    .expect("writing to a string");
    text
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
    fn the_policy_allows_one_style_sheet_and_nothing_else() {
        let policy = POLICY.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"), "no external asset");
    }
}
