//! Lines to relays: websockets that carry signed events, opened for one call and closed after it. Nothing that a relay says
//! is believed but that it took an event; what counts is signed by the wallet.
//!
//! A line that was open before may be dead without a sign, and then a payment would be sent into nowhere. A new one for each
//! call costs a handshake, and tells "never sent" from "sent, and no answer".

use std::{sync::Arc, time::Duration};

use futures_util::{
    SinkExt as _, Stream, StreamExt as _,
    stream::{self, BoxStream, FuturesUnordered, SelectAll, SplitSink},
};
use http::Uri;
use hyper_util::client::legacy::connect::{HttpConnector, proxy::SocksV5};
use nostr::Event;
use reqwest::Url;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{self, Instant},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};
use tower_service::Service as _;

/// How long opening one line may take, with TLS.
const OPEN_MAX: Duration = Duration::from_secs(5);
/// How much longer the others are waited for once one is open.
const GRACE: Duration = Duration::from_millis(500);
/// The longest message that is read. Answers have a few hundred bytes, lists of payments a few thousand.
const MESSAGE_MAX: usize = 256 * 1024;
/// How many messages of one relay are read in one call: it may repeat itself, not keep us busy.
const MESSAGES_MAX: usize = 1_000;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

type WebSocket = WebSocketStream<Box<dyn Socket>>;

/// Opens lines.
#[derive(Clone)]
pub(super) struct Dialer {
    tls: Arc<ClientConfig>,
    /// A SOCKS5 proxy that also finds the addresses of names.
    proxy: Option<Uri>,
}

impl Dialer {
    /// Believes the authorities that browsers believe.
    pub(super) fn new(proxy: Option<Uri>) -> Self {
        Self::trusting(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }, proxy)
    }

    pub(super) fn trusting(roots: RootCertStore, proxy: Option<Uri>) -> Self {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring speaks the usual versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { tls: Arc::new(config), proxy }
    }

    async fn open(&self, relay: &Url) -> Result<WebSocket, String> {
        time::timeout(OPEN_MAX, self.connect(relay))
            .await
            .unwrap_or_else(|_| Err(format!("no connection within {} s", OPEN_MAX.as_secs())))
    }

    async fn connect(&self, relay: &Url) -> Result<WebSocket, String> {
        let host = relay.host_str().unwrap_or_default();
        let port = relay.port_or_known_default().unwrap_or(443);
        let tcp = match &self.proxy {
            None => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                TcpStream::connect((host, port)).await.map_err(|error| format!("no connection: {error}"))?
            }
            Some(proxy) => {
                let to = format!("http://{host}:{port}").parse::<Uri>().map_err(|error| error.to_string())?;
                let through = SocksV5::new(proxy.clone(), HttpConnector::new()).local_dns(false).call(to);
                through.await.map_err(|error| format!("no connection by the proxy: {error}"))?.into_inner()
            }
        };
        _ = tcp.set_nodelay(true); // slower without, not wrong
        let socket: Box<dyn Socket> = if relay.scheme() == "wss" {
            let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
            let tls = TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await;
            Box::new(tls.map_err(|error| format!("no TLS: {error}"))?)
        } else {
            Box::new(tcp)
        };
        let limits =
            WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
        let opened = client_async_with_config(relay.as_str(), socket, Some(limits)).await;
        opened.map(|(socket, _)| socket).map_err(|error| format!("no websocket: {error}"))
    }
}

/// What a relay says.
#[derive(Debug)]
pub(super) enum Said {
    /// Somebody's event. Neither its author nor its signature has been checked.
    Event(Box<Event>),
    /// What it did with the event of this id.
    Took { id: String, accepted: bool, why: String },
    /// It has told all that it kept.
    Kept,
    /// The line is gone, or of no use.
    Gone(String),
}

/// Lines to as many of the wallet's relays as could be reached.
pub(super) struct Lines {
    to: Vec<Line>,
    from: SelectAll<BoxStream<'static, (usize, Said)>>,
    /// Those that could not be reached, and why.
    pub(super) down: Vec<(usize, String)>,
}

struct Line {
    relay: usize,
    to: SplitSink<WebSocket, Message>,
}

impl Lines {
    /// Opens all at once. Once one is open, the others have little time left.
    pub(super) async fn open(dialer: &Dialer, relays: &[Url]) -> Self {
        let mut opening: FuturesUnordered<_> = relays
            .iter()
            .enumerate()
            .map(|(index, relay)| async move { (index, dialer.open(relay).await) })
            .collect();
        let mut lines = Self { to: Vec::new(), from: SelectAll::new(), down: Vec::new() };
        let mut until = Instant::now() + OPEN_MAX + GRACE;
        while let Ok(Some((relay, opened))) = time::timeout_at(until, opening.next()).await {
            match opened {
                Ok(socket) => {
                    until = until.min(Instant::now() + GRACE);
                    let (to, from) = socket.split();
                    lines.to.push(Line { relay, to });
                    lines.from.push(said(from).map(move |said| (relay, said)).boxed());
                }
                Err(why) => lines.down.push((relay, why)),
            }
        }
        for relay in 0..relays.len() {
            if !lines.is_open(relay) && lines.down.iter().all(|(down, _)| *down != relay) {
                lines.down.push((relay, "no connection while another was there".to_owned()));
            }
        }
        lines
    }

    /// The relays behind them, quickest first.
    pub(super) fn relays(&self) -> Vec<usize> {
        self.to.iter().map(|line| line.relay).collect()
    }

    pub(super) fn is_open(&self, relay: usize) -> bool {
        self.to.iter().any(|line| line.relay == relay)
    }

    /// Why there is no line, in one sentence.
    pub(super) fn why_down(&self, relays: &[Url]) -> String {
        let each = self.down.iter().map(|(relay, why)| format!("{}: {why}", name(&relays[*relay])));
        each.collect::<Vec<_>>().join("; ")
    }

    /// Asks every relay for events, those it keeps and those to come.
    pub(super) async fn subscribe(&mut self, id: &str, filter: &Value) {
        let text = json!(["REQ", id, filter]).to_string();
        for relay in self.relays() {
            _ = self.send(relay, text.clone()).await; // its end is told by the other half
        }
    }

    /// Hands an event to one relay. `Err`: the line broke; what of the event had left is not known.
    pub(super) async fn publish(&mut self, relay: usize, event: &Event) -> Result<(), ()> {
        self.send(relay, json!(["EVENT", event]).to_string()).await
    }

    async fn send(&mut self, relay: usize, text: String) -> Result<(), ()> {
        let line = self.to.iter_mut().find(|line| line.relay == relay).ok_or(())?;
        line.to.send(Message::text(text)).await.map_err(drop)
    }

    /// What is said next, and by which relay; `None` when no line is left.
    pub(super) async fn next(&mut self) -> Option<(usize, Said)> {
        let (relay, said) = self.from.next().await?;
        if let Said::Gone(_) = said {
            self.to.retain(|line| line.relay != relay);
        }
        Some((relay, said))
    }
}

/// What comes in, to the end of the line.
fn said(
    from: impl Stream<Item = Result<Message, tungstenite::Error>> + Send + 'static,
) -> impl Stream<Item = Said> + Send {
    let messages = from.take(MESSAGES_MAX).filter_map(async |message| match message {
        Ok(Message::Text(text)) => read(&text),
        Ok(_) => None,
        Err(error) => Some(Said::Gone(error.to_string())),
    });
    messages.chain(stream::once(async { Said::Gone("it ended".to_owned()) }))
}

fn read(text: &str) -> Option<Said> {
    let message: Vec<Value> = serde_json::from_str(text).ok()?;
    let word = |at: usize| message.get(at).and_then(Value::as_str);
    match word(0)? {
        "EVENT" => {
            let event = serde_json::from_value(message.get(2)?.clone()).ok()?;
            Some(Said::Event(Box::new(event)))
        }
        "OK" => Some(Said::Took {
            id: word(1)?.to_owned(),
            accepted: message.get(2)?.as_bool()?,
            why: plain(word(3).unwrap_or_default()),
        }),
        "EOSE" => Some(Said::Kept),
        // Asked for nothing else, so it is what we asked for that it refuses.
        "CLOSED" => Some(Said::Gone(format!("it refuses: {}", plain(word(2).unwrap_or_default())))),
        _ => None,
    }
}

/// A stranger's words, short and without anything that a terminal would obey.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// What a relay is called in messages.
pub(super) fn name(relay: &Url) -> String {
    match (relay.host_str(), relay.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or("…").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rustls::{ServerConfig, pki_types::PrivateKeyDer};
    use tokio::{net::TcpListener, task::JoinSet};
    use tokio_rustls::TlsAcceptor;
    use tokio_tungstenite::accept_async;

    use super::*;

    #[tokio::test]
    async fn a_line_by_tls_is_opened_to_whom_an_authority_knows_and_to_nobody_else() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key);
        let tls = TlsAcceptor::from(Arc::new(server.unwrap()));
        let listener = TcpListener::bind("localhost:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let Ok(socket) = tls.accept(socket).await else { continue };
                let mut socket = accept_async(socket).await.unwrap();
                socket.send(Message::text("[\"EOSE\",\"note\"]")).await.unwrap();
            }
        });
        let relays = ["localhost", "127.0.0.1"].map(|host| format!("wss://{host}:{port}").parse().unwrap());
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let mut lines = Lines::open(&Dialer::trusting(roots, None), &relays).await;
        assert_eq!(lines.relays(), [0], "the certificate is for the name alone: {:?}", lines.down);
        assert!(matches!(lines.next().await, Some((0, Said::Kept))));
        let lines = Lines::open(&Dialer::new(None), &relays).await;
        assert_eq!(lines.relays(), [0; 0]);
        assert!(lines.down.iter().any(|(_, why)| why.starts_with("no TLS")), "{:?}", lines.down);
    }
}
