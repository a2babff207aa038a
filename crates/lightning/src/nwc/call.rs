//! One request to the wallet and its answer. A request is one signed event, made once and never made again: what became of a
//! payment is asked, not tried.
//!
//! An answer counts if the wallet has signed it, it names the request, and it decrypts. What relays send besides is passed
//! over, so that no relay can end a call by talking.

use std::time::Duration;

use farebox_protocol::Timestamp;
use nostr::{
    Event, EventBuilder, Keys, Kind, PublicKey, Tag, TagKind,
    nips::{nip04, nip44},
};
use parking_lot::Mutex;
use reqwest::Url;
use serde_json::{Value, json};
use tokio::time::{self, Instant};
use zeroize::Zeroizing;

use super::{
    relay::{Dialer, Lines, Said, name, plain},
    uri::Connection,
    wire::{Envelope, Fault},
};

/// How a request is made unreadable to relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// The one that is meant to be used.
    Nip44,
    /// The old one, which tells the length and can be altered unseen were it not for the signature. For wallets that know
    /// nothing else.
    Nip04,
}

/// Whom a request is handed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handed {
    /// To every relay: a question may be answered twice.
    ToAll,
    /// To one, and to the next only if the first refuses it: a wallet that should take the same event from two relays for
    /// two orders can't pay twice.
    ToOne,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// No relay could be reached: nothing has left.
    NotSent(String),
    /// It was handed out, and then the lines broke, or the relays say that they refused it.
    Lost(String),
    TimedOut(Duration),
    /// The wallet has answered, in a way that can't be understood.
    Wrong(String),
}

/// A request to make.
pub(super) struct Call<'a> {
    pub(super) method: &'a str,
    pub(super) params: Value,
    pub(super) handed: Handed,
    pub(super) encryption: Encryption,
    pub(super) limit: Duration,
    pub(super) now: Timestamp,
}

/// The wallet, as far as it is reached by relays.
pub(super) struct Channel {
    pub(super) connection: Connection,
    dialer: Dialer,
    /// By which relay it answered last: that one it listens to.
    heard: Mutex<Option<usize>>,
}

impl Channel {
    pub(super) fn new(connection: Connection, dialer: Dialer) -> Self {
        Self { connection, dialer, heard: Mutex::new(None) }
    }

    pub(super) fn relays(&self) -> &[Url] {
        &self.connection.relays
    }

    pub(super) async fn lines(&self) -> Lines {
        Lines::open(&self.dialer, self.relays()).await
    }

    /// What the wallet has left at its relays about itself; the newest, if there are several.
    pub(super) async fn note(&self, lines: &mut Lines, limit: Duration) -> Option<Event> {
        let author = self.connection.wallet;
        let kind = Kind::WalletConnectInfo;
        let filter = json!({ "kinds": [kind.as_u16()], "authors": [author.to_hex()], "limit": 1 });
        lines.subscribe("note", &filter).await;
        let mut open = lines.relays().len();
        let mut newest: Option<Event> = None;
        let until = Instant::now() + limit;
        while open > 0 {
            let Ok(Some((_, said))) = time::timeout_at(until, lines.next()).await else { break };
            match said {
                Said::Event(event) if event.kind == kind && is_by(&event, author) => {
                    let is_newer = newest.as_ref().is_none_or(|held| held.created_at < event.created_at);
                    newest = if is_newer { Some(*event) } else { newest };
                }
                Said::Kept | Said::Gone(_) => open -= 1,
                Said::Event(_) | Said::Took { .. } => {}
            }
        }
        newest
    }

    /// Makes a request over new lines, and waits for its answer.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Result<Value, Fault>, CallError> {
        let until = Instant::now() + call.limit;
        let limit = call.limit;
        let Ok(mut lines) = time::timeout_at(until, self.lines()).await else {
            return Err(CallError::NotSent(format!("no connection to a relay within {} s", limit.as_secs())));
        };
        self.call_by(&mut lines, call, until).await
    }

    /// The same over lines that are there.
    pub(super) async fn call_by(
        &self,
        lines: &mut Lines,
        call: Call<'_>,
        until: Instant,
    ) -> Result<Result<Value, Fault>, CallError> {
        let request = self.request(&call).map_err(CallError::NotSent)?;
        let mut waiting = lines.relays();
        if waiting.is_empty() {
            return Err(CallError::NotSent(lines.why_down(self.relays())));
        }
        let heard = *self.heard.lock();
        waiting.sort_by_key(|relay| Some(*relay) != heard); // stable: then the quickest
        waiting.reverse(); // taken from the end
        let filter = json!({
            "kinds": [Kind::WalletConnectResponse.as_u16()],
            "authors": [self.connection.wallet.to_hex()],
            "#e": [request.id.to_hex()],
        });
        lines.subscribe("answer", &filter).await;
        let mut gone = String::new();
        let answer = async {
            hand_out(lines, &mut waiting, &request, call.handed).await;
            while let Some((relay, said)) = lines.next().await {
                match said {
                    Said::Event(event) if self.answers(&event, &request) => {
                        *self.heard.lock() = Some(relay);
                        return Some(self.open_answer(&event, call.method));
                    }
                    Said::Took { id, accepted: false, why } if id == request.id.to_hex() => {
                        gone = format!("{} refuses the request: {why}", name(&self.relays()[relay]));
                        hand_out(lines, &mut waiting, &request, call.handed).await;
                    }
                    Said::Gone(why) => gone = format!("{}: {why}", name(&self.relays()[relay])),
                    Said::Event(_) | Said::Took { .. } | Said::Kept => {}
                }
            }
            None
        };
        match time::timeout_at(until, answer).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(CallError::Lost(format!("the line to the wallet's relay broke ({gone})"))),
            Err(_) => Err(CallError::TimedOut(call.limit)),
        }
    }

    fn request(&self, call: &Call<'_>) -> Result<Event, String> {
        let text = Zeroizing::new(json!({ "method": call.method, "params": call.params }).to_string());
        let Connection { wallet, keys, .. } = &self.connection;
        let mut tags = vec![Tag::public_key(*wallet)];
        let content = match call.encryption {
            Encryption::Nip44 => {
                tags.push(tag("encryption", "nip44_v2"));
                nip44::encrypt(keys.secret_key(), wallet, text.as_str(), nip44::Version::V2)
                    .map_err(|error| error.to_string())?
            }
            Encryption::Nip04 => {
                nip04::encrypt(keys.secret_key(), wallet, text.as_str()).map_err(|error| error.to_string())?
            }
        };
        if call.handed == Handed::ToOne {
            // A wallet that comes by later need not begin with what nobody waits for. Clocks differ, so this has slack.
            let end = call.now.saturating_add(call.limit).saturating_add(Duration::from_secs(60));
            tags.push(Tag::expiration(nostr::Timestamp::from_secs(end.secs())));
        }
        sign(keys, Kind::WalletConnectRequest, content, tags, call.now)
    }

    /// Whether this is the wallet's answer to this request, whoever brought it.
    fn answers(&self, event: &Event, request: &Event) -> bool {
        let id = request.id.to_hex();
        let names = |tag: &Tag| matches!(tag.as_slice(), [kind, of, ..] if kind == "e" && *of == id);
        event.kind == Kind::WalletConnectResponse
            && event.tags.iter().any(names)
            && is_by(event, self.connection.wallet)
    }

    fn open_answer(&self, event: &Event, method: &str) -> Result<Result<Value, Fault>, CallError> {
        let wrong = |what: &str| CallError::Wrong(what.to_owned());
        let Connection { wallet, keys, .. } = &self.connection;
        let text = if event.content.contains("?iv=") {
            nip04::decrypt(keys.secret_key(), wallet, event.content.as_str()).ok()
        } else {
            nip44::decrypt(keys.secret_key(), wallet, event.content.as_str()).ok()
        };
        let text = Zeroizing::new(text.ok_or_else(|| wrong("its answer can't be decrypted"))?);
        let answer: Envelope = serde_json::from_str(&text).map_err(|_| wrong("its answer can't be read"))?;
        if answer.result_type.is_some_and(|kind| kind != method) {
            return Err(wrong("it answered another question"));
        }
        match (answer.error, answer.result) {
            (Some(fault), None) => {
                Ok(Err(Fault { code: plain(&fault.code), message: plain(&fault.message) }))
            }
            (None, Some(result)) => Ok(Ok(result)),
            (Some(_), Some(_)) => Err(wrong("it answered both with a result and with an error")),
            (None, None) => Err(wrong("its answer is empty")),
        }
    }
}

/// Hands the request to those who should have it by now.
async fn hand_out(lines: &mut Lines, waiting: &mut Vec<usize>, request: &Event, handed: Handed) {
    while let Some(relay) = waiting.pop() {
        // Where the line breaks meanwhile, part of it may have arrived: the end of the line is told, and no other tried.
        _ = lines.publish(relay, request).await;
        if handed == Handed::ToOne {
            return;
        }
    }
}

fn tag(name: &'static str, value: &str) -> Tag {
    Tag::custom(TagKind::custom(name), [value])
}

pub(super) fn sign(
    keys: &Keys,
    kind: Kind,
    content: String,
    tags: Vec<Tag>,
    now: Timestamp,
) -> Result<Event, String> {
    EventBuilder::new(kind, content)
        .tags(tags)
        .custom_created_at(nostr::Timestamp::from_secs(now.secs()))
        .sign_with_keys(keys)
        .map_err(|error| error.to_string())
}

/// Signed by this key, all of it. The author is asked first: checking a signature is work that strangers could make us do.
fn is_by(event: &Event, author: PublicKey) -> bool {
    event.pubkey == author && event.verify().is_ok()
}
