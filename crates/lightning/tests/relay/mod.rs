//! A relay with a wallet behind it, for injecting failures: it answers what a test tells it to. The events are real: signed,
//! and encrypted with the library that the backend uses. Another library judges them in the live suite.

use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use nostr::{
    Event, EventBuilder, Keys, Kind, PublicKey, Tag, TagKind, Timestamp,
    nips::{nip04, nip44},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_tungstenite::{accept_async, tungstenite::Message};

use super::fakes::NOW;

/// A request that has come in and could be read.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) id: String,
    pub(crate) relay: usize,
    pub(crate) method: String,
    pub(crate) params: Value,
    pub(crate) is_nip44: bool,
    pub(crate) expires: bool,
    pub(crate) by: PublicKey,
}

/// What is done about it, one after the other.
pub(crate) enum Act {
    /// The wallet's answer, as it should be.
    Answer(Value),
    /// Any event.
    Event(Event),
    /// Any text.
    Text(String),
    /// The relay says that it refuses the request, instead of having taken it.
    Refuse,
    /// The line breaks.
    Break,
}

type Script = dyn Fn(&Wallet, &Asked) -> Option<Vec<Act>> + Send + Sync;

/// What the wallet leaves at its relays about itself.
pub(crate) enum Note {
    Nip44,
    Old,
    None,
}

/// A wallet that does what it was told to. Asked who it is and what it has, it answers by itself.
pub(crate) struct Wallet {
    pub(crate) keys: Keys,
    note: Note,
    pub(crate) info: Mutex<Value>,
    script: Box<Script>,
    asked: Mutex<Vec<Asked>>,
    orders: watch::Sender<usize>,
}

impl Wallet {
    pub(crate) fn new(script: impl Fn(&Self, &Asked) -> Option<Vec<Act>> + Send + Sync + 'static) -> Self {
        let methods = ["pay_invoice", "lookup_invoice", "get_balance", "get_info"];
        Self {
            keys: Keys::parse(&"21".repeat(32)).unwrap(),
            note: Note::Nip44,
            info: Mutex::new(json!({ "network": "regtest", "methods": methods })),
            script: Box::new(script),
            asked: Mutex::default(),
            orders: watch::Sender::new(0),
        }
    }

    pub(crate) fn with_note(mut self, note: Note) -> Self {
        self.note = note;
        self
    }

    /// The requests of this method, in their order.
    pub(crate) fn asked(&self, method: &str) -> Vec<Asked> {
        self.asked.lock().iter().filter(|asked| asked.method == method).cloned().collect()
    }

    /// Waits until it has been asked to pay.
    pub(crate) async fn is_asked_to_pay(&self) {
        self.orders.subscribe().wait_for(|orders| *orders > 0).await.unwrap();
    }

    /// An answer to `asked`, signed by `keys`.
    pub(crate) fn answer_by(&self, keys: &Keys, asked: &Asked, answer: &Value) -> Event {
        let text = answer.to_string();
        let content = match asked.is_nip44 {
            true => nip44::encrypt(keys.secret_key(), &asked.by, text, nip44::Version::V2).unwrap(),
            false => nip04::encrypt(keys.secret_key(), &asked.by, text).unwrap(),
        };
        let tags = [Tag::public_key(asked.by), Tag::custom(TagKind::custom("e"), [asked.id.clone()])];
        sign(keys, Kind::WalletConnectResponse, content, tags)
    }

    fn read(&self, relay: usize, event: &Event) -> Asked {
        event.verify().unwrap();
        assert_eq!(event.kind, Kind::WalletConnectRequest);
        let is_nip44 = !event.content.contains("?iv=");
        let (key, by) = (self.keys.secret_key(), event.pubkey);
        let text = match is_nip44 {
            true => nip44::decrypt(key, &by, &event.content).unwrap(),
            false => nip04::decrypt(key, &by, event.content.as_str()).unwrap(),
        };
        let has = |name: &str| event.tags.iter().any(|tag| tag.as_slice()[0] == name);
        assert_eq!(has("encryption"), is_nip44, "the way of encryption is said where it is not the old one");
        let request: Value = serde_json::from_str(&text).unwrap();
        Asked {
            id: event.id.to_hex(),
            relay,
            method: request["method"].as_str().unwrap().to_owned(),
            params: request["params"].clone(),
            is_nip44,
            expires: has("expiration"),
            by,
        }
    }

    fn acts(&self, asked: &Asked) -> Vec<Act> {
        (self.script)(self, asked).unwrap_or_else(|| {
            let result = match asked.method.as_str() {
                "get_info" => self.info.lock().clone(),
                "get_balance" => json!({ "balance": 123_456 }),
                _ => return vec![fault(asked, "NOT_IMPLEMENTED")],
            };
            vec![found(asked, result)]
        })
    }

    fn note(&self) -> Option<Event> {
        let tags = match self.note {
            Note::Nip44 => vec![Tag::custom(TagKind::custom("encryption"), ["nip44_v2 nip04"])],
            Note::Old => vec![],
            Note::None => return None,
        };
        Some(sign(&self.keys, Kind::WalletConnectInfo, "pay_invoice get_info".to_owned(), tags))
    }
}

/// The answer that it is so.
pub(crate) fn found(asked: &Asked, result: Value) -> Act {
    Act::Answer(json!({ "result_type": asked.method, "result": result }))
}

/// The answer that it can't be.
pub(crate) fn fault(asked: &Asked, code: &str) -> Act {
    let error = json!({ "code": code, "message": "because" });
    Act::Answer(json!({ "result_type": asked.method, "error": error, "result": null }))
}

fn sign(keys: &Keys, kind: Kind, content: String, tags: impl IntoIterator<Item = Tag>) -> Event {
    let made = EventBuilder::new(kind, content).tags(tags);
    made.custom_created_at(Timestamp::from_secs(NOW.secs())).sign_with_keys(keys).unwrap()
}

/// Relays of one wallet.
pub(crate) struct Relays {
    pub(crate) urls: Vec<String>,
    _serving: JoinSet<()>,
}

impl Relays {
    pub(crate) async fn start(wallet: &Arc<Wallet>, count: usize) -> Self {
        let (mut urls, mut serving) = (Vec::new(), JoinSet::new());
        for relay in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            urls.push(format!("ws://{}", listener.local_addr().unwrap()));
            let wallet = Arc::clone(wallet);
            serving.spawn(async move {
                let mut lines = JoinSet::new();
                while let Ok((socket, _)) = listener.accept().await {
                    lines.spawn(line(Arc::clone(&wallet), relay, socket));
                }
            });
        }
        Self { urls, _serving: serving }
    }
}

async fn line(wallet: Arc<Wallet>, relay: usize, socket: TcpStream) {
    socket.set_nodelay(true).unwrap(); // what is said in several messages would wait for an acknowledgement of each
    let mut socket = accept_async(socket).await.unwrap();
    let mut answers_to = Value::Null;
    while let Some(Ok(Message::Text(text))) = socket.next().await {
        let message: Value = serde_json::from_str(&text).unwrap();
        let mut say = Vec::new();
        match message[0].as_str().unwrap() {
            "REQ" => {
                let is_for_note = message[2]["kinds"] == json!([13_194]);
                if let Some(note) = wallet.note().filter(|_| is_for_note) {
                    say.push(json!(["EVENT", message[1], note]).to_string());
                }
                if !is_for_note {
                    answers_to = message[1].clone();
                }
                say.push(json!(["EOSE", message[1]]).to_string());
            }
            "EVENT" => {
                let event: Event = serde_json::from_value(message[1].clone()).unwrap();
                let asked = wallet.read(relay, &event);
                wallet.asked.lock().push(asked.clone());
                let acts = wallet.acts(&asked);
                let is_taken = !acts.iter().any(|act| matches!(act, Act::Refuse));
                say.push(json!(["OK", asked.id, is_taken, "blocked: not here"]).to_string());
                for act in acts {
                    let event = match act {
                        Act::Answer(answer) => wallet.answer_by(&wallet.keys, &asked, &answer),
                        Act::Event(event) => event,
                        Act::Text(text) => {
                            say.push(text);
                            continue;
                        }
                        Act::Refuse => continue,
                        Act::Break => {
                            wallet.orders.send_modify(|orders| *orders += 1);
                            return;
                        }
                    };
                    say.push(json!(["EVENT", answers_to, event]).to_string());
                }
                if asked.method == "pay_invoice" {
                    wallet.orders.send_modify(|orders| *orders += 1);
                }
            }
            other => panic!("`{other}` is not for a relay"),
        }
        for text in say {
            _ = socket.send(Message::text(text)).await;
        }
    }
}
