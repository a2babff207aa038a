//! Calls to one lnd: the macaroon on each, a deadline on each, and an error that says what to do about it.
//!
//! The connection is made when it is first needed and made anew when it has broken; whether the node is *ready* is not
//! known here (see `watch`). lnd answers nearly every trouble with the code "unknown" and a sentence, so the sentences are
//! read, here and nowhere else.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{
    credential::{Credential, CredentialError, Macaroon},
    rpc::{
        invoicesrpc::invoices_client::InvoicesClient,
        lnrpc::{lightning_client::LightningClient, state_client::StateClient},
        routerrpc::router_client::RouterClient,
    },
    tls::{Link, LinkError, Trust},
};

/// How long opening a connection may take, with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection is asked this often whether its other end is still there. lnd forbids more than one ping in 5 s.
const PING_EVERY: Duration = Duration::from_secs(10);
/// How long it may take to say so.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest message that is read. Invoices of others have a record of each part they were paid in.
const MESSAGE_MAX: usize = 16 << 20;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// No connection, or it broke: the call may have been carried out.
    #[error("lnd can't be reached: {0}")]
    Unreachable(String),
    /// It may have been carried out, or be under way.
    #[error("lnd did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// There is no macaroon to send.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// Its wallet isn't open, so it answers nothing.
    #[error("lnd's wallet is locked; open it with `lncli unlock`")]
    Locked,
    /// It has no wallet.
    #[error("lnd has no wallet yet; make one with `lncli create`")]
    NoWallet,
    /// It is on its way up.
    #[error("lnd is still starting")]
    Starting,
    /// It doesn't know this macaroon, or not any more.
    #[error("lnd refuses the macaroon: {0}; is it this node's, on this network, and still valid?")]
    Refused(String),
    /// The macaroon is good, but not for this call.
    #[error(
        "the macaroon does not permit `{0}`; `farebox lnd bake` prints how to make one that permits what is needed"
    )]
    NotPermitted(&'static str),
    /// This lnd was built without it.
    #[error("this lnd has no `{0}`")]
    Unimplemented(&'static str),
    /// There is no such thing.
    #[error("lnd knows nothing of it: {0}")]
    NotFound(String),
    /// It answered "no".
    #[error("lnd refuses: {0}")]
    Said(String),
}

impl CallError {
    /// Whether any other call would fail, too: not this call but the node or the way to it is in trouble.
    pub(crate) const fn is_of_the_node(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::Credential(_)
            | Self::Locked
            | Self::NoWallet
            | Self::Starting
            | Self::Refused(_) => true,
            Self::TimedOut(_)
            | Self::NotPermitted(_)
            | Self::Unimplemented(_)
            | Self::NotFound(_)
            | Self::Said(_) => false,
        }
    }

    /// Whether lnd may have carried the call out, or be about to.
    pub(crate) const fn may_be_done(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::TimedOut(_))
    }

    /// What lnd's answer to `method` (such as `lnrpc.Lightning/AddInvoice`) means.
    pub(crate) fn of(status: &Status, method: &'static str) -> Self {
        if let Some(why) = link_error(status) {
            return Self::Unreachable(why);
        }
        let said = said(status);
        let says = |part: &str| said.contains(part);
        match status.code() {
            Code::NotFound => Self::NotFound(said),
            // lnd says neither: whoever stands before it has lost it, or has given up waiting for it.
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => Self::Unreachable(said),
            // lnd always says its own status; an answer without one is that of something before it, in tonic's words.
            Code::Unknown | Code::Internal if says("grpc-status header missing") => Self::Unreachable(said),
            _ if says("wallet locked") => Self::Locked,
            _ if says("wallet not created") => Self::NoWallet,
            _ if says("starting") || says("waiting to start") || says("not active yet") => Self::Starting,
            _ if says("permission denied") => Self::NotPermitted(method),
            Code::PermissionDenied => Self::NotPermitted(method),
            Code::Unauthenticated => Self::Refused(said),
            _ if says("macaroon") || says("verification failed") || says("caveat") => Self::Refused(said),
            Code::Unimplemented => Self::Unimplemented(method),
            // The connection broke in a way that tonic has no better word for.
            Code::Unknown | Code::Internal if std::error::Error::source(status).is_some() => {
                Self::Unreachable(said)
            }
            _ => Self::Said(said),
        }
    }
}

/// A node's sentence, fit for a log line.
fn said(status: &Status) -> String {
    status.message().chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Why the connection could not be made, in our own words rather than in those of every layer between.
fn link_error(status: &Status) -> Option<String> {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(link) = error.downcast_ref::<LinkError>() {
            return Some(link.to_string());
        }
        source = error.source();
    }
    None
}

/// Where lnd is, and what is shown to it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Host and port.
    pub(crate) address: String,
    pub(crate) trust: Trust,
    pub(crate) macaroon: Credential,
    /// How long any call may take that is answered once.
    pub(crate) deadline: Duration,
}

/// One lnd. Cheap to clone; all clones share a connection.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    macaroon: Arc<Macaroon>,
    deadline: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("macaroon", &self.macaroon).finish_non_exhaustive()
    }
}

impl Client {
    /// Opens nothing yet. Fails when the address is none.
    pub(crate) fn new(peer: Peer) -> Result<Self, tonic::transport::Error> {
        // TLS is the link's affair, so the endpoint's own scheme has none; lnd is told the truth.
        let endpoint = Endpoint::from_shared(format!("http://{}", peer.address))?
            .origin(format!("https://{}", peer.address).parse().unwrap_or_default())
            .user_agent(concat!("farebox/", env!("CARGO_PKG_VERSION")))?
            .http2_keep_alive_interval(PING_EVERY)
            // Only while a call is open: lnd hangs up on who pings without one.
            .keep_alive_timeout(PING_TIMEOUT);
        let link = Link {
            address: peer.address.into(),
            trust: Arc::new(peer.trust),
            timeout: CONNECT_TIMEOUT.min(peer.deadline),
        };
        Ok(Self {
            channel: endpoint.connect_with_connector_lazy(link),
            macaroon: Arc::new(Macaroon::new(peer.macaroon)),
            deadline: peer.deadline,
        })
    }

    /// `lnrpc.State`.
    pub(crate) fn state(&self) -> StateClient<Channel> {
        StateClient::new(self.channel.clone())
    }

    /// `lnrpc.Lightning`.
    pub(crate) fn lightning(&self) -> LightningClient<Channel> {
        LightningClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// `invoicesrpc.Invoices`, which not every lnd has.
    pub(crate) fn invoices(&self) -> InvoicesClient<Channel> {
        InvoicesClient::new(self.channel.clone())
    }

    /// `routerrpc.Router`.
    pub(crate) fn router(&self) -> RouterClient<Channel> {
        RouterClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// The deadline of calls that are answered once.
    pub(crate) const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// A request with the macaroon, and without a deadline: for streams, and for [`Self::answer`].
    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>, CallError> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("macaroon", self.macaroon.value()?);
        Ok(request)
    }

    /// Waits for an answer until the deadline, and reads a refusal. `method` names the call as a macaroon's permission
    /// does: `lnrpc.Lightning/AddInvoice`.
    pub(crate) async fn answer<T>(
        &self,
        method: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        match time::timeout(self.deadline, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(CallError::of(&status, method)),
            Err(_) => Err(CallError::TimedOut(self.deadline)),
        }
    }

    /// The macaroon as it is sent.
    pub(crate) fn macaroon(&self) -> Result<MetadataValue<Ascii>, CallError> {
        Ok(self.macaroon.value()?)
    }

    /// Reads the macaroon again. Whether it is another one than before.
    pub(crate) fn reload_macaroon(&self) -> bool {
        self.macaroon.reload()
    }
}
