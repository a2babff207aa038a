//! Talking to one upstream: picking an address, picking or making a connection, sending a request, trying once more where
//! that is safe.
//!
//! Each worker has connections of its own, so nothing here is contended (`pool`). An upstream may have several addresses:
//! a request goes to the least busy one of those that are in good standing (`standing`), and on to another one if it was
//! never sent, or if nothing came back and it does no more when it is sent twice (`outgoing`). Each address is tried at
//! most once, besides one more connection where a kept one has proved stale, and a few where the upstream ends its HTTP/2
//! connections without having looked at the request. What a failure means to the client is not decided here but in
//! `proxy/failure.rs`.

mod address;
mod connect;
mod gather;
pub(crate) mod health;
mod lease;
mod names;
mod outgoing;
mod pool;
mod standing;
mod trust;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use hyper::body::Incoming;
use tokio::time::{Duration, Instant};

use self::{
    address::Address,
    outgoing::{Heard, again},
    pool::Want,
    trust::Trust,
};
pub(crate) use self::{lease::Lease, outgoing::Outgoing};
use crate::{
    config::{UpstreamConfig, UpstreamScheme, UpstreamTls, UpstreamUrl},
    worker::Worker,
};

/// How many times over a request may find that its HTTP/2 connection is just being ended, before that is a failure. Many
/// requests at once find the same end, and share the connection after it.
const GOODBYES_MAX: usize = 4;

/// One upstream, as all workers see it.
pub(crate) struct Upstream {
    /// At least one.
    addresses: Box<[Address]>,
    /// Which address is asked first among those that are equally busy.
    turn: AtomicUsize,
    /// For those with `https`.
    trust: Option<Trust>,
    config: UpstreamConfig,
}

/// Why an upstream can't be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// There is nowhere to send requests.
    #[error("the upstream has no address; give it at least one")]
    NoAddress,
    /// One address twice.
    #[error("the upstream address `{0}` is listed twice; keep one")]
    Duplicate(UpstreamUrl),
    /// A number or time with which nothing would ever pass.
    #[error("`{0}` of the upstream cannot be zero; leave it out for the default")]
    Zero(&'static str),
    /// The health check's path isn't one.
    #[error("`{0}` is not a path to ask for; write it from its first `/`")]
    HealthPath(String),
    /// The file with its authority's certificates can't be read.
    #[error("cannot read the certificates in `{}`: {error}", .path.display())]
    CaFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
    /// The machine's own store of certificates has none that can be used.
    #[error(
        "this machine trusts no authority ({error}); install its package of certificates (often `ca-certificates`), or \
         name a file with `tls.ca`"
    )]
    SystemRoots {
        /// What is wrong with it.
        error: String,
    },
    /// Its name can't stand in a certificate.
    #[error("`{0}` is neither a host name nor an address that a certificate could be for")]
    Name(String),
}

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("no connection within the time-out")]
    ConnectTimeout,
    #[error("all its connections stayed in use for as long as the time-out for connecting")]
    Busy,
    #[error("cannot start the conversation")]
    Handshake(#[source] hyper::Error),
    #[error("the exchange failed")]
    Exchange(#[source] hyper::Error),
    #[error("its answer is in a transfer coding that nobody asked for")]
    Coding,
    #[error("it switched to another protocol than was asked for, if any")]
    Switched,
    #[error("it answered without switching protocols, which cannot be told from consent over HTTP/2")]
    NotSwitched,
    #[error("it switched to WebSocket without the proof that it has read the key")]
    Unproven,
    #[error("it speaks HTTP/2 only, and does not offer extended CONNECT (RFC 8441)")]
    NoExtendedConnect,
}

/// How one address is doing: what the operator's gauges show. Made without a lock from numbers that are kept anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressStatus<'a> {
    /// As it is configured; each upstream has it once.
    pub(crate) url: &'a str,
    /// Connections open to it, by all workers, used or not.
    pub(crate) connections: usize,
    /// Requests for which it was picked and whose answers have not been read to the end, those that still wait for a
    /// connection included.
    pub(crate) in_flight: usize,
    /// Left out for its failures, unless all others are as well.
    pub(crate) is_ejected: bool,
}

/// Where a request goes.
#[derive(Clone, Copy)]
struct Pick {
    at: usize,
    /// It finds out whether an address that was left out works again.
    is_trial: bool,
}

/// Which address a request is with: told by the one who sends it to the one who waits for the answer, and who gives up
/// first where there is none.
#[derive(Default)]
pub(crate) struct With(AtomicUsize);

impl With {
    fn tell(&self, pick: Pick) {
        self.0.store((pick.at << 1 | usize::from(pick.is_trial)) + 1, Relaxed);
    }

    fn tell_none(&self) {
        self.0.store(0, Relaxed);
    }

    fn pick(&self) -> Option<Pick> {
        let told = self.0.load(Relaxed).checked_sub(1)?;
        Some(Pick { at: told >> 1, is_trial: told & 1 == 1 })
    }
}

/// An attempt that came to nothing.
struct Failed {
    error: SendError,
    /// The same request again, where it may go elsewhere.
    again: Option<Box<Outgoing>>,
    /// It was not looked at, and the connection is at an end, which says nothing about the address.
    is_goodbye: bool,
}

impl Upstream {
    /// Judges a configuration and makes an upstream of it. If one of `known` is the same, to the last certificate, it is
    /// that one, with its connections and all that is known of its addresses. Nothing is sent to it yet.
    pub(crate) fn new(
        config: &UpstreamConfig,
        workers: usize,
        known: &[Arc<Self>],
    ) -> Result<Arc<Self>, UpstreamError> {
        judge(config)?;
        let is_https = |url: &UpstreamUrl| url.scheme() == UpstreamScheme::Https;
        let trust = if config.urls.iter().any(is_https) { Some(Trust::read(&config.tls)?) } else { None };
        if let Some(same) = known.iter().find(|known| known.config == *config && known.trust == trust) {
            return Ok(same.clone());
        }
        if trust.is_some() && config.tls == UpstreamTls::InsecureSkipVerify {
            tracing::warn!(
                upstream = %config.urls[0],
                "the certificate of this upstream is NOT verified: anyone in between can read and change everything",
            );
        }
        let tls = trust.as_ref().map(Trust::client_config);
        let address = |url: &UpstreamUrl| Address::new(url, config, tls.as_ref(), workers);
        let addresses = config.urls.iter().map(address).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { addresses, turn: AtomicUsize::new(0), trust, config: config.clone() }))
    }

    /// Sends a request and waits for the head of its answer. A kept connection may have been closed by the upstream just
    /// now, so a request that is safe to repeat is sent once more, on a new connection; one that was never sent, likewise.
    ///
    /// On a kept connection it is sent before this returns, and the future has no room for a request: an `async fn` would
    /// carry it through every await, and be moved about with it. `came` is when the request did; `with` is told where it is.
    pub(crate) fn send<'a>(
        &'a self,
        worker: &'a Worker,
        mut outgoing: Outgoing,
        came: Instant,
        with: &'a With,
    ) -> impl Future<Output = Result<(http::Response<Incoming>, Lease), SendError>> + Send + use<'a> {
        let pick = self.pick();
        with.tell(pick);
        let address = &self.addresses[pick.at];
        let mut lease = address.lease(worker);
        // A connection that is to be handed over is a new one: it never comes back, and what was asked isn't kept.
        let begun = if outgoing.upgrade.is_none() && lease.checkout(came) {
            lease.shape(&mut outgoing, address.naming());
            let spare = lease.keep(&mut outgoing.request);
            let Outgoing { request, host, upgrade, lines } = outgoing;
            Ok((lease.send(request, lines.as_ref()), spare, host, upgrade, lines))
        } else {
            Err(Box::new(outgoing))
        };
        async move {
            let (outgoing, want) = match begun {
                Ok((exchange, spare, host, upgrade, lines)) => match exchange.await {
                    Ok(response) => {
                        address.answered();
                        return Ok((response, lease));
                    }
                    Err(mut failed) => {
                        let unsent = failed.take_message().inspect(outgoing::came_back);
                        lease.give_up(unsent.is_none());
                        match again(unsent, lines, spare, Heard::of(failed.error())) {
                            Some((request, lines)) => {
                                (Box::new(Outgoing { request, host, upgrade, lines }), Want::New)
                            }
                            None => {
                                let error = SendError::Exchange(failed.into_error());
                                address.failed(pick.is_trial, &error);
                                return Err(error);
                            }
                        }
                    }
                },
                Err(outgoing) if outgoing.upgrade.is_some() => (outgoing, Want::New),
                Err(outgoing) => (outgoing, Want::Any),
            };
            // Boxed, so that requests on a kept connection, which are most, don't carry the room for making one.
            Box::pin(self.send_anew(worker, with, pick, lease, want, outgoing)).await
        }
    }

    /// Sends a request on a new connection, to one address after the other until one answers.
    async fn send_anew(
        &self,
        worker: &Worker,
        with: &With,
        mut pick: Pick,
        mut lease: Lease,
        mut want: Want,
        mut outgoing: Box<Outgoing>,
    ) -> Result<(http::Response<Incoming>, Lease), SendError> {
        let mut tried = Vec::new();
        let mut goodbyes = 0;
        loop {
            let address = &self.addresses[pick.at];
            let Failed { error, again, is_goodbye } =
                match self.attempt(worker, with, pick, &mut lease, want, outgoing).await {
                    Ok(response) => {
                        address.answered();
                        return Ok((response, lease));
                    }
                    Err(failed) => failed,
                };
            let again = match again {
                Some(request) if is_goodbye && goodbyes < GOODBYES_MAX => {
                    goodbyes += 1;
                    lease = address.lease(worker);
                    (outgoing, want) = (request, Want::New);
                    continue;
                }
                again => again,
            };
            address.failed(pick.is_trial, &error);
            tried.push(pick.at);
            let Some(request) = again else { return Err(error) };
            // A second choice uses up nobody's turn.
            let next = self.pick_among(self.turn.load(Relaxed), |at| !tried.contains(&at));
            let Some(next) = next else { return Err(error) };
            (pick, lease) = (next, self.addresses[next.at].lease(worker));
            (outgoing, want) = (request, Want::New);
        }
    }

    async fn attempt(
        &self,
        worker: &Worker,
        with: &With,
        pick: Pick,
        lease: &mut Lease,
        want: Want,
        mut outgoing: Box<Outgoing>,
    ) -> Result<http::Response<Incoming>, Failed> {
        let address = &self.addresses[pick.at];
        with.tell(pick);
        if self.config.connections_max.is_some() {
            // Who waits for others to be done with theirs hasn't asked it anything.
            with.tell_none();
        }
        let patience = self.config.connect_timeout;
        let mut connected = lease.connect(address.connector(), worker, want, patience).await;
        if connected.is_ok() && outgoing.upgrade.is_some() && !lease.takes_upgrades() {
            lease.give_up(true);
            connected = if address.connector().may_be_http1() {
                lease.connect(address.connector(), worker, Want::Http1, patience).await
            } else {
                Err(SendError::NoExtendedConnect)
            };
        }
        if let Err(error) = connected {
            // Where all connections are in use, those of the other addresses are as well: this one was the least busy.
            let again = (!matches!(error, SendError::Busy)).then_some(outgoing);
            return Err(Failed { error, again, is_goodbye: false });
        }
        lease.shape(&mut outgoing, address.naming());
        let is_shared = lease.is_shared();
        let may_move = (self.addresses.len() > 1 || is_shared) && outgoing.upgrade.is_none();
        let spare = if may_move { lease.keep(&mut outgoing.request) } else { None };
        let Outgoing { request, host, upgrade, lines } = *outgoing;
        with.tell(pick);
        let mut failed = match lease.send(request, lines.as_ref()).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        let unsent = failed.take_message().inspect(outgoing::came_back);
        lease.give_up(unsent.is_none());
        let heard = Heard::of(failed.error());
        let is_goodbye = is_shared && (unsent.is_some() || heard == Heard::Never);
        let again = again(unsent, lines, spare, heard)
            .map(|(request, lines)| Box::new(Outgoing { request, host, upgrade, lines }));
        Err(Failed { error: SendError::Exchange(failed.into_error()), again, is_goodbye })
    }

    /// A request has had no answer within its time: as good as a failure of the address that it was with.
    pub(crate) fn is_late(&self, with: &With) {
        if let Some(Pick { at, is_trial }) = with.pick() {
            self.addresses[at].is_late(is_trial);
        }
    }

    fn pick(&self) -> Pick {
        if self.addresses.len() == 1 {
            return Pick { at: 0, is_trial: false };
        }
        let turn = self.turn.fetch_add(1, Relaxed);
        self.pick_among(turn, |_| true).expect("an upstream has at least one address")
    }

    /// The least busy of these addresses among those in good standing, the next in turn where several are; or one whose
    /// time has come to be tried again; or, rather than none, the least busy of those that are left out.
    fn pick_among(&self, turn: usize, is_eligible: impl Fn(usize) -> bool) -> Option<Pick> {
        let count = self.addresses.len();
        let turn = turn % count;
        let (mut best, mut last_resort) = (None, None);
        for at in (turn..count).chain(0..turn).filter(|at| is_eligible(*at)) {
            let address = &self.addresses[at];
            let busy = address.in_flight();
            let place = if address.is_out() {
                if address.claim() {
                    return Some(Pick { at, is_trial: true });
                }
                &mut last_resort
            } else {
                &mut best
            };
            if place.is_none_or(|(least, _)| busy < least) {
                *place = Some((busy, at));
            }
        }
        best.or(last_resort).map(|(_, at)| Pick { at, is_trial: false })
    }

    /// How each address is doing, in the order of the configuration.
    pub(crate) fn status(&self) -> impl Iterator<Item = AddressStatus<'_>> {
        self.addresses.iter().map(Address::status)
    }

    /// Lets go of connections of this worker that nobody has used for a while.
    pub(crate) fn prune(&self, worker: usize) {
        for address in &self.addresses {
            address.prune(worker);
        }
    }

    pub(crate) const fn config(&self) -> &UpstreamConfig {
        &self.config
    }
}

fn judge(config: &UpstreamConfig) -> Result<(), UpstreamError> {
    if config.urls.is_empty() {
        return Err(UpstreamError::NoAddress);
    }
    for (at, url) in config.urls.iter().enumerate() {
        if config.urls[..at].iter().any(|other| other.is_same_place(url)) {
            return Err(UpstreamError::Duplicate(url.clone()));
        }
    }
    let health = config.health.as_ref();
    let zero = |is_zero: bool, what| if is_zero { Err(UpstreamError::Zero(what)) } else { Ok(()) };
    zero(config.connect_timeout == Duration::ZERO, "connect_timeout")?;
    zero(config.connections_max == Some(0), "connections_max")?;
    zero(config.failures_max == 0, "failures_max")?;
    zero(config.eject_for == Duration::ZERO, "eject_for")?;
    zero(health.is_some_and(|health| health.every == Duration::ZERO), "health.every")?;
    zero(health.is_some_and(|health| health.timeout == Duration::ZERO), "health.timeout")?;
    match health {
        Some(health) if !health::is_path(&health.path) => Err(UpstreamError::HealthPath(health.path.clone())),
        _ => Ok(()),
    }
}
