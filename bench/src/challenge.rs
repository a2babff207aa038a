//! Unpaid requests: each is answered with a fresh invoice, signed by the gateway's own embedded node, and a token.
//!
//! The node is real, with a channel to a buyer's, on the simulated chain; chain and buyer live in this process.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use farebox_tests::{Seller, until_selling};

use crate::{
    Setting,
    load::{self, Expect},
    process::{Program, free_address},
    table::Row,
};

/// Measures challenges per second, and per second of the gateway's CPU time.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let budget = "minting: { per-client: 1000000/s, total: 1000000/s }\nlimits: { workers: 2 }\n";
    let farebox = setting.farebox.to_str().context("the path of farebox is not text")?;
    let (seller, net) = runtime.block_on(Seller::with_own_node(farebox, budget));

    let listen = free_address()?;
    let file = seller.dir.path().join("farebox.yaml");
    let config = fs::read_to_string(&file)?.replacen("127.0.0.1:0", &listen.to_string(), 1);
    fs::write(&file, config)?;
    let mut command = Command::new(&setting.farebox);
    command.arg("serve").arg("--config").arg(&file).env("FAREBOX_LOG", "error");
    let gateway = Program::start(command, listen)?;

    let url = format!("http://{listen}/");
    runtime.block_on(until_selling(&net, &url));
    load::run(&gateway, listen, "/", &[], setting.time, Expect::Refusal)?; // warm-up
    let before = gateway.resident()?;
    let measured = load::run(&gateway, listen, "/", &[], setting.time, Expect::Refusal)?;
    let after = gateway.resident()?;
    // wrk can't tell one refusal from another: look again, so that nobody measures how fast a 503 is.
    runtime.block_on(until_selling(&net, &url));
    drop(gateway);
    runtime.block_on(net.buyer.stop());

    let row = |subject: &str, value, unit, ratio| Row {
        bench: "challenge",
        subject: subject.to_owned(),
        value,
        unit,
        ratio,
    };
    #[expect(clippy::cast_precision_loss, reason = "memory sizes, for a ratio")]
    let growth = after as f64 / before as f64;
    #[expect(clippy::cast_precision_loss, reason = "a few million requests at most")]
    let count = measured.requests as f64;
    Ok(vec![
        row("challenges", measured.rate, "per second", None),
        row("challenges by CPU time", measured.rate / measured.cores, "per core second", None),
        row("CPU", measured.cpu_micros, "us/challenge", None),
        row("challenges in the run", count, "", None),
        row("resident memory after the run, by before", growth, "times", Some(growth)),
    ])
}
