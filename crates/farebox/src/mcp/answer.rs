//! What a server has answered, for the agent: whole or not at all, as text, base64 or a file; and never with the credential in
//! it that it was asked with.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use farebox_client::{Engine, Fetched, Money, Pass, Receipt};
use http::HeaderMap;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use zeroize::Zeroizing;

use super::{
    Settings,
    files::{self, Draft, Place},
    told::{self, Told, Trouble},
};

/// So many bytes of headers are told.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// Answers to a credential, and what sets one: nothing that an agent needs.
const UNTOLD: [&str; 6] = [
    "set-cookie",
    "www-authenticate",
    "proxy-authenticate",
    "authentication-info",
    "proxy-authentication-info",
    "authorization",
];

/// A body that has been read.
#[derive(Clone, Debug)]
pub(super) struct Body(Vec<u8>);

impl Body {
    /// As text, and how.
    pub(super) fn into_text(self) -> (&'static str, String) {
        match String::from_utf8(self.0) {
            Ok(text) => ("utf-8", text),
            Err(error) => ("base64", STANDARD.encode(error.as_bytes())),
        }
    }

    fn encoding(&self) -> &'static str {
        if std::str::from_utf8(&self.0).is_ok() { "utf-8" } else { "base64" }
    }
}

/// Takes the answer to where it belongs: to the agent, or into a file.
pub(super) async fn take(
    engine: &Engine,
    fetched: Fetched,
    place: Option<(Place, &str)>,
    settings: &Settings,
) -> Result<Told, Trouble> {
    let Fetched { mut response, purchase, credential, shown, shortfalls, .. } = fetched;
    let money = purchase.as_ref().map_or(Money::None, |Receipt { payment_hash, price, fee, .. }| {
        Money::Spent { payment_hash: *payment_hash, price: *price, fee: *fee }
    });
    let mut passes = Vec::new();
    for payment in shown {
        let pass = engine.credential(payment).await;
        passes.extend(pass.map_err(|error| Trouble::of(&error).having(money.clone()))?);
    }
    let mut echo = Echo::of(&passes);
    let mut url = response.url().clone();
    url.set_query(None);
    if echo.clone().is_in(url.as_str().as_bytes()) {
        return Err(repeated().having(money));
    }
    let mut fields = json!({
        "url": url.as_str(),
        "status": response.status().as_u16(),
        "headers": headers(response.headers(), &echo),
        "payment": payment(purchase.as_ref()),
    });
    if let Some(payment) = credential {
        fields["credential"] = payment.to_string().into();
    }
    if !shortfalls.is_empty() {
        fields["shortfalls"] = told::shortfalls(&shortfalls);
    }

    let mut sink = match place {
        None => Sink::Memory(Vec::new()),
        Some((place, name)) => {
            let draft = place.begin().map_err(|error| unwritable(&error).having(money.clone()))?;
            Sink::File(draft, name)
        }
    };
    let mut length: u64 = 0;
    let too_large = || {
        let message = format!(
            "the body is longer than the {} bytes that are passed on; make the call again with `save_to`: what was paid for \
             is kept",
            settings.inline_bytes_max
        );
        Trouble::new("body_too_large", &message)
    };
    loop {
        let chunk =
            response.chunk().await.map_err(|error| broken(&error.without_url()).having(money.clone()))?;
        let Some(chunk) = chunk else { break };
        length += chunk.len() as u64;
        if echo.is_in(&chunk) {
            return Err(repeated().having(money));
        }
        match &mut sink {
            Sink::Memory(body) if body.len() + chunk.len() > settings.inline_bytes_max => {
                return Err(too_large().having(money));
            }
            Sink::Memory(body) => body.extend_from_slice(&chunk),
            Sink::File(..) if length > settings.file_bytes_max => {
                let message =
                    format!("the body is longer than the {} bytes of a file", settings.file_bytes_max);
                return Err(Trouble::new("body_too_large", &message).having(money));
            }
            Sink::File(draft, _) => draft
                .file
                .write_all(&chunk)
                .await
                .map_err(|error| unwritable(&error).having(money.clone()))?,
        }
    }
    let body = match sink {
        Sink::Memory(body) => {
            let body = Body(body);
            fields["body"] = json!({ "untrusted": true, "bytes": length, "encoding": body.encoding() });
            Some(body)
        }
        Sink::File(draft, name) => {
            draft.finish().await.map_err(|error| unwritable(&error).having(money))?;
            fields["body"] = json!({ "untrusted": true, "bytes": length, "file": name });
            None
        }
    };
    Ok(Told { fields, body })
}

enum Sink<'a> {
    Memory(Vec<u8>),
    File(Draft, &'a str),
}

fn broken(error: &reqwest::Error) -> Trouble {
    let message = format!("the answer broke off: {error}; make the call again: what was paid for is kept");
    Trouble::new("network", &message).retryable()
}

fn unwritable(error: &std::io::Error) -> Trouble {
    match error.kind() {
        std::io::ErrorKind::AlreadyExists => files::exists(),
        kind => Trouble::new("save_to_failed", &format!("the file can't be written: {kind}")),
    }
}

fn repeated() -> Trouble {
    Trouble::new(
        "credential_repeated",
        "the server's answer repeats the credential that it was asked with, so it is not passed on; the person can fetch it \
         with `farebox get`",
    )
}

fn payment(receipt: Option<&Receipt>) -> Value {
    let Some(Receipt { payment_hash, origin, service, price, fee, valid_until, .. }) = receipt else {
        return json!({ "paid": false });
    };
    json!({
        "paid": true,
        "amount_msat": price.get(),
        "fee_msat": fee.get(),
        "payment_hash": payment_hash.to_string(),
        "receipt_id": payment_hash.to_string(),
        "origin": origin.to_string(),
        "service": told::untrusted(service),
        "valid_until": valid_until.map(|end| end.secs()),
    })
}

/// What the server says beside the body. What doesn't fit is counted, and what is a secret is not even that.
fn headers(headers: &HeaderMap, echo: &Echo) -> Value {
    let mut values = Map::new();
    let (mut bytes, mut omitted) = (0, 0);
    for name in headers.keys().filter(|name| !UNTOLD.contains(&name.as_str())) {
        let all: Vec<_> = headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
        let all = all.join(&b", "[..]);
        bytes += name.as_str().len() + all.len();
        let is_echo = [name.as_str().as_bytes(), &all].into_iter().any(|text| echo.clone().is_in(text));
        if bytes > HEADER_BYTES_MAX || is_echo {
            omitted += 1;
            continue;
        }
        values.insert(name.as_str().to_owned(), String::from_utf8_lossy(&all).into_owned().into());
    }
    json!({ "untrusted": true, "values": values, "omitted": omitted })
}

/// Looks for a credential in what a server sends, across the pieces in which it comes.
#[derive(Clone)]
struct Echo {
    secrets: Vec<Zeroizing<Vec<u8>>>,
    /// The end of what has been seen, shorter than any secret that has yet to be completed.
    tail: Zeroizing<Vec<u8>>,
}

impl Echo {
    fn of(passes: &[Pass]) -> Self {
        let secrets = passes.iter().map(|pass| {
            let proof = pass.preimage.expose_hex();
            [
                Zeroizing::new(proof.as_bytes().to_vec()),
                Zeroizing::new(proof.to_ascii_uppercase().into_bytes()),
                Zeroizing::new(pass.token.as_bytes().to_vec()),
            ]
        });
        Self { secrets: secrets.flatten().collect(), tail: Zeroizing::default() }
    }

    fn is_in(&mut self, piece: &[u8]) -> bool {
        let Some(longest) = self.secrets.iter().map(|secret| secret.len()).max() else { return false };
        self.tail.extend_from_slice(piece);
        let found = self.secrets.iter().any(|secret| contains(&self.tail, secret));
        let seen = self.tail.len().saturating_sub(longest - 1);
        self.tail.drain(..seen);
        found
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    let Some((first, _)) = part.split_first() else { return false };
    let mut from = 0;
    while let Some(at) = text.get(from..).and_then(|rest| rest.iter().position(|byte| byte == first)) {
        if text[from + at..].starts_with(part) {
            return true;
        }
        from += at + 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_recognised_in_however_many_pieces_it_comes() {
        let secret = b"0123456789abcdef";
        let text = [b"before ".as_slice(), secret, b" after"].concat();
        for size in 1..=text.len() {
            let mut echo =
                Echo { secrets: vec![Zeroizing::new(secret.to_vec())], tail: Zeroizing::default() };
            assert!(text.chunks(size).any(|piece| echo.is_in(piece)), "{size}");
            assert!(echo.tail.len() < secret.len());
        }
        let mut echo = Echo { secrets: vec![Zeroizing::new(secret.to_vec())], tail: Zeroizing::default() };
        assert!(!echo.is_in(b"0123456789abcde") && !echo.is_in(b"0123456789abcde") && echo.is_in(b"f"));
        assert!(!Echo::of(&[]).is_in(&text));
    }

    #[test]
    fn a_body_that_is_no_text_comes_in_base64() {
        assert_eq!(Body(b"a\0\r\n".to_vec()).into_text(), ("utf-8", "a\0\r\n".to_owned()));
        assert_eq!(Body(vec![0xff, 0]).into_text(), ("base64", "/wA=".to_owned()));
    }
}
