//! A stand-in for lnd, for what a real one can't be made to do when a test wants it: answering wrongly, breaking off in
//! the middle, changing its certificate. How lnd really behaves, the live suite asks of a real one; what is imitated here
//! was read in its source: which sentences it refuses with, what it replays, and that it cancels before it deletes.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bitcoin::{
    hashes::{Hash as _, sha256},
    secp256k1::{Secp256k1, SecretKey},
};
use farebox_protocol::{Network, Preimage};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};
use parking_lot::Mutex;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::broadcast, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

use super::super::{
    Credential, Lnd, LndConfig, Trust,
    rpc::{
        invoicesrpc::{self, invoices_server},
        lnrpc::{self, WalletState, invoice::InvoiceState, lightning_server, state_server},
    },
};
use crate::clock::{Clock as _, SystemClock};

/// The macaroon that the double wants.
pub(super) const MACAROON: &str = "0201036c6e64";

/// How the next answers differ from what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    Amount,
    Hash,
    Network,
    Expiry,
    Past,
    Payee,
    Garbage,
    /// Nothing is done, or said.
    Silence,
    /// It is done, and not said.
    LostAnswer,
}

/// What the double is like.
pub(super) struct Manner {
    pub(super) state: WalletState,
    pub(super) synced: bool,
    pub(super) macaroon: &'static str,
    pub(super) denied: BTreeSet<&'static str>,
    pub(super) flaw: Option<Flaw>,
    pub(super) currency: Currency,
    pub(super) key: u8,
    pub(super) hangs_up: bool,
    pub(super) invoices: Vec<lnrpc::Invoice>,
}

/// A lnd that does as it is told.
pub(super) struct Double {
    pub(super) manner: Arc<Mutex<Manner>>,
    /// What its streams tell from now on; `Err` breaks them.
    pub(super) told: broadcast::Sender<Result<lnrpc::Invoice, &'static str>>,
    address: SocketAddr,
    dir: TempDir,
    tls: Arc<Mutex<TlsAcceptor>>,
    /// Ends with the double.
    _tasks: JoinSet<()>,
}

impl Double {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, _) = broadcast::channel(64);
        let manner = Manner {
            state: WalletState::ServerActive,
            synced: true,
            macaroon: MACAROON,
            denied: BTreeSet::new(),
            flaw: None,
            currency: Currency::Regtest,
            key: 1,
            hangs_up: false,
            invoices: Vec::new(),
        };
        let manner = Arc::new(Mutex::new(manner));
        let (dir, (tls, pem)) = (TempDir::new().unwrap(), certificate());
        std::fs::write(dir.path().join("tls.cert"), pem).unwrap();
        std::fs::write(dir.path().join("macaroon"), MACAROON).unwrap();
        let (tls, mut tasks) = (Arc::new(Mutex::new(tls)), JoinSet::new());
        let service = Service { manner: Arc::clone(&manner), told: told.clone() };
        tasks.spawn(serve(listener, Arc::clone(&tls), service));
        Self { manner, told, address, dir, tls, _tasks: tasks }
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// From the next connection on it shows another certificate. That one as PEM.
    pub(super) fn renew_certificate(&self) -> String {
        let (tls, pem) = certificate();
        *self.tls.lock() = tls;
        pem
    }

    /// From the next connection on it agrees on these protocols: on none, as lnd's REST interface does, or on HTTP/2.
    pub(super) fn speak(&self, protocols: &[&[u8]]) {
        let mut tls = self.tls.lock();
        let mut config = rustls::ServerConfig::clone(tls.config());
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        *tls = TlsAcceptor::from(Arc::new(config));
    }

    /// How a seller would be connected to it.
    pub(super) fn config(&self) -> LndConfig {
        LndConfig {
            address: self.address.to_string(),
            trust: Trust::Pinned(self.file("tls.cert")),
            macaroon: Credential::File(self.file("macaroon")),
            network: Network::Regtest,
            private_hints: false,
            open_invoices_max: 100,
            call_timeout: Duration::from_secs(10),
        }
    }

    pub(super) fn connect(&self) -> Arc<Lnd> {
        Lnd::connect(self.config(), Arc::new(SystemClock)).unwrap()
    }

    /// A node that has been found to be ready.
    pub(super) async fn ready(&self) -> Arc<Lnd> {
        let lnd = self.connect();
        lnd.node.watch.ready().await;
        lnd
    }

    /// An invoice is paid, as the settlement at this place.
    pub(super) fn settle(&self, add_index: u64, settle_index: u64) {
        let mut manner = self.manner.lock();
        let invoice = manner.invoices.iter_mut().find(|known| known.add_index == add_index).unwrap();
        invoice.set_state(InvoiceState::Settled);
        (invoice.settle_index, invoice.settle_date) = (settle_index, 1_700_000_000);
        invoice.amt_paid_msat = invoice.value_msat;
        // Nobody may be listening.
        _ = self.told.send(Ok(invoice.clone()));
    }
}

fn certificate() -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
}

async fn serve(listener: TcpListener, tls: Arc<Mutex<TlsAcceptor>>, service: Service) {
    let routes = Routes::new(state_server::StateServer::new(service.clone()))
        .add_service(lightning_server::LightningServer::new(service.clone()))
        .add_service(invoices_server::InvoicesServer::new(service.clone()))
        .prepare();
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        if service.manner.lock().hangs_up {
            connections.abort_all();
            continue;
        }
        let (tls, routes) = (tls.lock().clone(), routes.clone());
        connections.spawn(async move {
            let Ok(tls) = tls.accept(tcp).await else { return };
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            _ = http.serve_connection(TokioIo::new(tls), TowerToHyperService::new(routes)).await;
        });
    }
}

#[derive(Clone)]
struct Service {
    manner: Arc<Mutex<Manner>>,
    told: broadcast::Sender<Result<lnrpc::Invoice, &'static str>>,
}

impl Service {
    /// In lnd's order and words: the wallet first, then the macaroon, then the permission.
    fn admit<T>(&self, request: &Request<T>, method: &'static str) -> Result<(), Status> {
        let manner = self.manner.lock();
        match manner.state {
            WalletState::NonExisting => {
                return Err(Status::unknown("wallet not created, create one to enable full RPC access"));
            }
            WalletState::Locked => {
                return Err(Status::unknown("wallet locked, unlock it to enable full RPC access"));
            }
            WalletState::Unlocked => {
                return Err(Status::unknown("the RPC server is in the process of starting up"));
            }
            _ => {}
        }
        if request.metadata().get("macaroon").is_none_or(|shown| shown != manner.macaroon) {
            return Err(Status::unknown("verification failed: signature mismatch after caveat verification"));
        }
        if manner.denied.contains(method) {
            return Err(Status::unknown("permission denied"));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl state_server::State for Service {
    async fn get_state(
        &self,
        _: Request<lnrpc::GetStateRequest>,
    ) -> Result<Response<lnrpc::GetStateResponse>, Status> {
        Ok(Response::new(lnrpc::GetStateResponse { state: self.manner.lock().state.into() }))
    }
}

#[tonic::async_trait]
impl lightning_server::Lightning for Service {
    type SubscribeInvoicesStream = BoxStream<'static, Result<lnrpc::Invoice, Status>>;

    async fn add_invoice(
        &self,
        request: Request<lnrpc::Invoice>,
    ) -> Result<Response<lnrpc::AddInvoiceResponse>, Status> {
        self.admit(&request, "AddInvoice")?;
        let asked = request.into_inner();
        // What farebox has made for its own sake is never flawed.
        let flaw = self.manner.lock().flaw.filter(|_| !asked.memo.starts_with("farebox "));
        if flaw == Some(Flaw::Silence) {
            CancellationToken::new().cancelled().await;
        }
        let made = {
            let mut manner = self.manner.lock();
            let add_index = manner.invoices.last().map_or(0, |last| last.add_index) + 1;
            let made = lnrpc::Invoice { add_index, ..make(asked, add_index, flaw, &manner) };
            if manner.invoices.iter().any(|known| known.r_hash == made.r_hash) {
                return Err(Status::unknown("invoice with payment hash already exists"));
            }
            manner.invoices.push(made.clone());
            made
        };
        _ = self.told.send(Ok(made.clone()));
        if flaw == Some(Flaw::LostAnswer) {
            CancellationToken::new().cancelled().await;
        }
        let lnrpc::Invoice { r_hash, payment_request, add_index, .. } = made;
        Ok(Response::new(lnrpc::AddInvoiceResponse { r_hash, payment_request, add_index }))
    }

    async fn lookup_invoice(
        &self,
        request: Request<lnrpc::PaymentHash>,
    ) -> Result<Response<lnrpc::Invoice>, Status> {
        self.admit(&request, "LookupInvoice")?;
        let hash = request.into_inner().r_hash;
        let known = self.manner.lock().invoices.iter().find(|known| known.r_hash == hash).cloned();
        known.map(Response::new).ok_or_else(|| Status::not_found("unable to locate invoice"))
    }

    async fn subscribe_invoices(
        &self,
        request: Request<lnrpc::InvoiceSubscription>,
    ) -> Result<Response<Self::SubscribeInvoicesStream>, Status> {
        self.admit(&request, "SubscribeInvoices")?;
        let lnrpc::InvoiceSubscription { add_index, settle_index } = request.into_inner();
        let told = self.told.subscribe();
        let known = self.manner.lock().invoices.clone();
        let mut replayed = Vec::new();
        if add_index > 0 {
            replayed.extend(known.iter().filter(|known| known.add_index > add_index).cloned());
        }
        if settle_index > 0 {
            let mut settled: Vec<_> =
                known.into_iter().filter(|known| known.settle_index > settle_index).collect();
            settled.sort_by_key(|settled| settled.settle_index);
            replayed.extend(settled);
        }
        // As lnd: what lies at or below the index is not told, even when it happens later.
        let live = stream::unfold(told, async |mut told| Some((told.recv().await.ok()?, told)));
        let live = live.filter_map(move |told| {
            std::future::ready(match told {
                Ok(invoice) => {
                    let index = if invoice.settle_index > 0 { settle_index } else { add_index };
                    let place =
                        if invoice.settle_index > 0 { invoice.settle_index } else { invoice.add_index };
                    (place > index).then_some(Ok(invoice))
                }
                Err(why) => Some(Err(Status::unavailable(why))),
            })
        });
        Ok(Response::new(stream::iter(replayed.into_iter().map(Ok)).chain(live).boxed()))
    }

    async fn delete_canceled_invoice(
        &self,
        request: Request<lnrpc::DelCanceledInvoiceReq>,
    ) -> Result<Response<lnrpc::DelCanceledInvoiceResp>, Status> {
        self.admit(&request, "DeleteCanceledInvoice")?;
        let hash = hex::decode(request.into_inner().invoice_hash).unwrap();
        let mut manner = self.manner.lock();
        let place = manner.invoices.iter().position(|known| known.r_hash == hash);
        let place = place.ok_or_else(|| Status::unknown("unable to locate invoice"))?;
        if manner.invoices[place].state() != InvoiceState::Canceled {
            return Err(Status::unknown("invoice not canceled"));
        }
        let deleted = manner.invoices.remove(place);
        drop(manner);
        _ = self.told.send(Ok(deleted));
        Ok(Response::new(lnrpc::DelCanceledInvoiceResp {}))
    }

    async fn get_info(
        &self,
        request: Request<lnrpc::GetInfoRequest>,
    ) -> Result<Response<lnrpc::GetInfoResponse>, Status> {
        self.admit(&request, "GetInfo")?;
        let synced_to_chain = self.manner.lock().synced;
        let chains = vec![lnrpc::Chain { network: "regtest".to_owned() }];
        Ok(Response::new(lnrpc::GetInfoResponse { synced_to_chain, chains, ..Default::default() }))
    }

    async fn channel_balance(
        &self,
        request: Request<lnrpc::ChannelBalanceRequest>,
    ) -> Result<Response<lnrpc::ChannelBalanceResponse>, Status> {
        self.admit(&request, "ChannelBalance")?;
        let remote_balance = Some(lnrpc::Amount { sat: 21_000, msat: 21_000_000 });
        Ok(Response::new(lnrpc::ChannelBalanceResponse { local_balance: None, remote_balance }))
    }
}

#[tonic::async_trait]
impl invoices_server::Invoices for Service {
    async fn cancel_invoice(
        &self,
        request: Request<invoicesrpc::CancelInvoiceMsg>,
    ) -> Result<Response<invoicesrpc::CancelInvoiceResp>, Status> {
        self.admit(&request, "CancelInvoice")?;
        let hash = request.into_inner().payment_hash;
        let mut manner = self.manner.lock();
        let known = manner.invoices.iter_mut().find(|known| known.r_hash == hash);
        let known = known.ok_or_else(|| Status::not_found("unable to locate invoice"))?;
        if known.state() == InvoiceState::Settled {
            return Err(Status::unknown("invoice already settled"));
        }
        known.set_state(InvoiceState::Canceled);
        Ok(Response::new(invoicesrpc::CancelInvoiceResp {}))
    }
}

/// The invoice that was asked for, or one that is flawed.
fn make(asked: lnrpc::Invoice, seed: u64, flaw: Option<Flaw>, manner: &Manner) -> lnrpc::Invoice {
    let has = |one: Flaw| flaw == Some(one);
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    bytes[8] = manner.key;
    let preimage = asked.r_preimage.as_slice().try_into().unwrap_or(bytes);
    let hash = Preimage::from_bytes(preimage).payment_hash();
    let key = SecretKey::from_slice(&[manner.key + u8::from(has(Flaw::Payee)); 32]).unwrap();
    let currency = if has(Flaw::Network) { Currency::Bitcoin } else { manner.currency.clone() };
    let age = if has(Flaw::Past) { 100_000 } else { 0 };
    let text = InvoiceBuilder::new(currency)
        .description(asked.memo.clone())
        .payment_hash(sha256::Hash::from_byte_array(*hash.as_bytes()))
        .duration_since_epoch(Duration::from_secs(SystemClock.now().secs() - age))
        .min_final_cltv_expiry_delta(18)
        .expiry_time(Duration::from_secs(asked.expiry.unsigned_abs() / if has(Flaw::Expiry) { 2 } else { 1 }))
        .payment_secret(PaymentSecret([0x42; 32]))
        .amount_milli_satoshis(asked.value_msat.unsigned_abs() - u64::from(has(Flaw::Amount)))
        .build_raw()
        .unwrap()
        .sign(|message| Ok::<_, ()>(Secp256k1::new().sign_ecdsa_recoverable(message, &key)))
        .unwrap()
        .to_string();
    lnrpc::Invoice {
        r_hash: if has(Flaw::Hash) { vec![9; 32] } else { hash.as_bytes().to_vec() },
        payment_request: if has(Flaw::Garbage) { "lnbcrt1".to_owned() } else { text },
        ..asked
    }
}
