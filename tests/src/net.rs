//! One simulated Lightning network for each test binary, with a wallet door before each of its two nodes.

use std::{net::SocketAddr, sync::Arc, sync::OnceLock, thread};

use farebox_lightning::{
    Outcome, Pay, PayRequest, Receive,
    clock::SystemClock,
    door::{self, DoorConfig},
    embedded::{
        EmbeddedNode,
        ldk_node::payment::{PaymentDetails, PaymentDirection, PaymentKind, PaymentStatus},
    },
    outgoing::{Outgoing, OutgoingConfig, sqlite::SqliteIntents},
    phoenixd::Secret,
    sim::{Net, NetConfig},
};
use farebox_protocol::{Invoice, Msat, Preimage};

/// The network: a seller's and a buyer's node with a channel, and a wallet door before each.
pub struct Lightning {
    /// The chain and the nodes.
    pub net: Net,
    /// The seller's wallet, as a gateway in another process reaches it.
    pub seller: Door,
    /// The buyer's wallet, as `farebox get` reaches it.
    pub buyer: Door,
}

/// Where a wallet is reached, and with what.
#[derive(Clone, Debug)]
pub struct Door {
    /// Its address, like `http://127.0.0.1:40000`.
    pub url: String,
    /// Its password.
    pub password: String,
}

/// The network of this test binary.
pub fn net() -> &'static Lightning {
    static NET: OnceLock<Lightning> = OnceLock::new();
    NET.get_or_init(|| {
        let (told, started) = std::sync::mpsc::channel();
        // Every test has a runtime of its own that ends with it; the doors must outlive them all.
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                told.send(Lightning::start().await).unwrap();
                std::future::pending::<()>().await;
            });
        });
        started.recv().unwrap()
    })
}

impl Lightning {
    async fn start() -> Self {
        let net = Net::start(NetConfig::default()).await.unwrap();
        let seller = open(&net.seller).await;
        let buyer = open(&net.buyer).await;
        Self { net, seller, buyer }
    }

    /// Pays with the buyer's node.
    pub async fn pay(&self, invoice: &Invoice) -> Preimage {
        let request = PayRequest {
            invoice: invoice.clone(),
            fee_max: Msat::new(10_000),
            timeout: std::time::Duration::from_secs(60),
        };
        match self.net.buyer.pay(request).await.unwrap() {
            Outcome::Settled { preimage, .. } => preimage,
            other => panic!("expected the payment to settle, got {other:?}"),
        }
    }

    /// How many payments the buyer's node has made, or is making.
    pub async fn payments_made(&self) -> usize {
        let made = |payment: &&PaymentDetails| {
            payment.direction == PaymentDirection::Outbound
                && matches!(payment.kind, PaymentKind::Bolt11 { .. })
                && payment.status != PaymentStatus::Failed
        };
        self.net.buyer.with_ldk(move |node| node.list_payments_with_filter(made).len()).await.unwrap()
    }
}

async fn open(node: &Arc<EmbeddedNode>) -> Door {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen: SocketAddr = listener.local_addr().unwrap();
    let password = Secret::generate().unwrap();
    let clock = Arc::new(SystemClock);
    let outgoing = Outgoing::new(
        Arc::clone(node) as Arc<dyn Pay>,
        Arc::new(SqliteIntents::in_memory().unwrap()),
        clock.clone(),
        OutgoingConfig::default(),
    );
    let config = DoorConfig::new(listen, password.clone());
    let router = door::router(Arc::clone(node) as Arc<dyn Receive>, outgoing, clock, config);
    #[expect(clippy::disallowed_methods, reason = "the door lives as long as the test binary")]
    tokio::spawn(async move { axum::serve(listener, router).await });
    Door { url: format!("http://{listen}"), password: password.expose().to_owned() }
}
