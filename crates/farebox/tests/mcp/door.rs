//! A wallet door with a double behind it, and a home with a policy: what `farebox mcp` needs to buy.

use std::{
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
};

use farebox_lightning::clock::SystemClock;
use farebox_lightning::door::{self, DoorConfig};
use farebox_lightning::outgoing::{Outgoing, OutgoingConfig, sqlite::SqliteIntents};
use farebox_lightning::phoenixd::Secret;
use tokio::{net::TcpListener, process::Command, task::JoinSet};

use crate::support::{NoReceive, WalletDouble, World, shop::Asked, shop::Till};

/// What nothing that is said may hold, besides proofs of payment.
pub(crate) const PASSWORD: &str = "canary-of-the-wallet-door";
/// The same for the secret that signs consents.
pub(crate) const SECRET: &str = "canary of the consents";

/// The rules of a test: it sells on this machine.
pub(crate) const RULES: &str = "private-targets: allow\notherwise: allow\n";

/// A person with a wallet, a policy and an agent.
pub(crate) struct Buyer {
    pub(crate) world: World,
    pub(crate) wallet: Arc<WalletDouble>,
    wallet_url: String,
    _door: JoinSet<()>,
}

impl Buyer {
    pub(crate) async fn new() -> Self {
        let world = World::new();
        let wallet = Arc::new(WalletDouble::new(world.net.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = listener.local_addr().unwrap();
        let intents = SqliteIntents::open(&world.directory.path().join("door.sqlite")).unwrap();
        let clock = Arc::new(SystemClock);
        let outgoing =
            Outgoing::new(wallet.clone(), Arc::new(intents), clock.clone(), OutgoingConfig::default());
        let config = DoorConfig::new(listen, Secret::new(PASSWORD));
        let router = door::router(Arc::new(NoReceive), outgoing, clock, config);
        let mut door = JoinSet::new();
        door.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let buyer = Self { world, wallet, wallet_url: format!("http://{listen}"), _door: door };
        buyer.rules(RULES);
        std::fs::write(buyer.path("secret"), SECRET).unwrap();
        buyer
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.world.directory.path().join(name)
    }

    pub(crate) fn policy(&self) -> PathBuf {
        self.path(".config/farebox/policy.yaml")
    }

    /// Writes the policy.
    pub(crate) fn rules(&self, text: &str) {
        std::fs::create_dir_all(self.policy().parent().unwrap()).unwrap();
        std::fs::write(self.policy(), text).unwrap();
    }

    /// `farebox` with these arguments, in this home, with this wallet.
    pub(crate) fn farebox(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farebox"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.world.directory.path())
            .env("FAREBOX_WALLET_URL", &self.wallet_url)
            .env("FAREBOX_WALLET_PASSWORD", PASSWORD)
            .env("FAREBOX_LOG", "trace")
            .env("NO_PROXY", "*")
            .kill_on_drop(true);
        command
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        self.farebox(arguments).stdin(std::process::Stdio::null()).output().await.unwrap()
    }

    pub(crate) fn payments(&self) -> usize {
        self.world.net.payments().len()
    }

    /// Every proof of payment that there is.
    pub(crate) fn preimages(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.world.net.path().join("invoices")).unwrap();
        files.flatten().map(|file| std::fs::read_to_string(file.path()).unwrap()).collect()
    }
}

pub(crate) fn sells(body: &'static str) -> impl Fn(&Till, &Asked) -> axum::response::Response {
    move |till, asked| match till.paid(&asked.headers) {
        Some(_) => till.serve(body),
        None => till.challenge("svc", 100),
    }
}

/// The names in a directory.
pub(crate) fn names(of: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(of).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
