//! Unpaid requests: each is answered with a fresh invoice, signed by the gateway's own embedded node, and a token.
//!
//! The node is real and runs on the simulated chain, which lives in this process.

use std::{fs, process::Command};

use anyhow::Result;

use crate::{
    Setting,
    load::{self, Expect},
    process::{Program, free_address},
    proxy::private,
    table::Row,
};

/// Measures challenges per second, and per second of the gateway's CPU time.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let chain = farebox_lightning::sim::Chain::in_memory();
    let esplora = farebox_lightning::sim::EsploraServer::start(chain)?;

    let dir = tempfile::tempdir()?;
    let listen = free_address()?;
    let upstream = free_address()?;
    private(&dir.path().join("mint-secret"), &format!("{}\n", "07".repeat(32)))?;
    let file = dir.path().join("farebox.yaml");
    fs::write(
        &file,
        format!(
            "network: regtest
listen: [\"{listen}\"]
limits: {{ workers: 2 }}
ops: \"off\"
state-dir: {dir}
mint-secrets: [{{ from: {{ file: {dir}/mint-secret }} }}]
minting: {{ per-client: 1000000/s, total: 1000000/s }}
lightning:
  embedded:
    dir: {dir}/node
    chain: {{ esplora: \"{}\" }}
services:
  - name: bench
    upstream: http://{upstream}
    price: 10sat
",
            esplora.url(),
            dir = dir.path().display()
        ),
    )?;
    let mut command = Command::new(&setting.farebox);
    command.arg("serve").arg("--config").arg(&file).env("FAREBOX_LOG", "error");
    let gateway = Program::start(command, listen)?;

    load::run(&gateway, listen, "/", &[], setting.time, Expect::Refusal)?; // warm-up
    let before = gateway.resident()?;
    let measured = load::run(&gateway, listen, "/", &[], setting.time, Expect::Refusal)?;
    let after = gateway.resident()?;
    let row = |subject: &str, value, unit, ratio| Row { bench: "challenge", subject: subject.to_owned(), value, unit, ratio };
    #[expect(clippy::cast_precision_loss, reason = "memory sizes, for a ratio")]
    let growth = after as f64 / before as f64;
    #[expect(clippy::cast_precision_loss, reason = "a few million requests at most")]
    let count = measured.requests as f64;
    Ok(vec![
        row("challenges", measured.rate, "per second", None),
        row("challenges by CPU time", measured.rate / measured.cores, "per core second", None),
        row("CPU", measured.cpu_micros, "us/challenge", None),
        row("resident memory, before and after the run", growth, "times", Some(growth)),
        row("challenges in the run", count, "", None),
    ])
}
