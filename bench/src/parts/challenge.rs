//! Unpaid requests: each is answered with a fresh invoice, signed by the gateway's own embedded node, and a token.
//!
//! The node is real, with a channel to a buyer's, on the simulated chain; chain and buyer live in this process.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use farebox_tests::{Seller, until_selling};

use crate::{
    Setting,
    load::wrk::{self, Expect},
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
    wrk::run(listen, &[], setting.time, Expect::Refusal)?; // warm-up
    let before = gateway.resident()?;
    let (measured, cpu) = gateway.cpu_while(|| wrk::run(listen, &[], setting.time, Expect::Refusal))?;
    let after = gateway.resident()?;
    // wrk can't tell one refusal from another: look again, so that nobody measures how fast a 503 is.
    runtime.block_on(until_selling(&net, &url));
    drop(gateway);
    runtime.block_on(net.buyer.stop());

    let cpu = cpu.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "memory sizes, for a ratio")]
    let growth = after as f64 / before as f64;
    #[expect(clippy::cast_precision_loss, reason = "a few million requests at most")]
    let count = measured.requests as f64;
    let row = |what: &str, value, unit| Row {
        bench: "challenge",
        what: what.to_owned(),
        subject: "farebox".to_owned(),
        value,
        unit,
        ratio: None,
    };
    Ok(vec![
        row("rate", measured.rate, "challenges/s"),
        row("CPU", cpu * 1e6 / count, "us/challenge"),
        row("rate by CPU time", count / cpu, "per core second"),
        row("p99", measured.p99_millis, "ms"),
        Row { ratio: Some(growth), ..row("memory after by before", growth, "times") },
    ])
}
