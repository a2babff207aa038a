//! The chain: one btcd, which mines when it is told to.

use std::{path::PathBuf, process::Stdio};

use super::{
    leash::{Leash, tail},
    ports::port,
    until,
};
use crate::peers;

/// User and password that btcd and those who ask it agree on. On loopback, for as long as a test.
pub(super) const RPC_USER: &str = "regtest";

/// A btcd.
pub(super) struct Chain {
    dir: PathBuf,
    /// The port of its RPC interface. It stays the same: nodes ask there.
    rpc: u16,
    leash: Leash,
}

impl Chain {
    /// Starts one in `dir`.
    pub(super) async fn start(dir: PathBuf) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        // Without a file of its own it would look for one in the home directory, or write it.
        std::fs::write(dir.join("conf"), "").unwrap();
        loop {
            let rpc = port();
            let leash = run(&dir, rpc, None);
            let mut chain = Self { dir: dir.clone(), rpc, leash };
            if chain.answers().await {
                return chain;
            }
        }
    }

    /// Starts it again, to mine for `address` from now on.
    pub(super) async fn mine_for(mut self, address: &str) -> Self {
        self.leash.end().await;
        self.leash = run(&self.dir, self.rpc, Some(address));
        assert!(self.answers().await, "the port of btcd has been taken");
        self
    }

    /// Makes blocks.
    pub(super) async fn mine(&self, blocks: u32) {
        self.ask(&["generate", &blocks.to_string()]).await.unwrap();
    }

    /// How many blocks there are.
    pub(super) async fn height(&self) -> u64 {
        self.ask(&["getblockcount"]).await.unwrap().trim().parse().unwrap()
    }

    /// Where it is asked.
    pub(super) fn rpc(&self) -> String {
        format!("127.0.0.1:{}", self.rpc)
    }

    /// Its certificate.
    pub(super) fn cert(&self) -> PathBuf {
        self.dir.join("rpc.cert")
    }

    /// Waits until it answers; `false` if it can't have its port.
    async fn answers(&mut self) -> bool {
        let mut is_up = false;
        until("btcd answers", async || {
            if self.leash.has_ended() {
                return true;
            }
            is_up = self.ask(&["getblockcount"]).await.is_ok();
            is_up
        })
        .await;
        let log = tail(&self.dir.join("log"));
        assert!(is_up || log.contains("address already in use"), "btcd has ended\n{log}");
        is_up
    }

    async fn ask(&self, question: &[&str]) -> Result<String, String> {
        let mut btcctl = tokio::process::Command::new(peers("lnd").join("btcctl"));
        btcctl.arg(format!("--configfile={}/conf", self.dir.display()));
        btcctl.args(["--regtest", &format!("--rpcuser={RPC_USER}"), &format!("--rpcpass={RPC_USER}")]);
        btcctl.arg(format!("--rpcserver={}", self.rpc())).arg("--rpccert").arg(self.cert()).args(question);
        let output = btcctl.stdin(Stdio::null()).env("HOME", &self.dir).output().await.unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

fn run(dir: &std::path::Path, rpc: u16, payee: Option<&str>) -> Leash {
    let at = dir.display();
    let mut arguments = vec![
        "--regtest".to_owned(),
        "--txindex".to_owned(),
        format!("--configfile={at}/conf"),
        format!("--datadir={at}/data"),
        format!("--logdir={at}/logs"),
        format!("--rpcuser={RPC_USER}"),
        format!("--rpcpass={RPC_USER}"),
        format!("--rpccert={at}/rpc.cert"),
        format!("--rpckey={at}/rpc.key"),
        format!("--rpclisten=127.0.0.1:{rpc}"),
        // Each node keeps several connections.
        "--rpcmaxclients=100".to_owned(),
        "--rpcmaxwebsockets=100".to_owned(),
        // The only btcd on this chain.
        "--nolisten".to_owned(),
    ];
    arguments.extend(payee.map(|payee| format!("--miningaddr={payee}")));
    Leash::start(&peers("lnd").join("btcd"), &arguments, dir, &dir.join("log"))
}
