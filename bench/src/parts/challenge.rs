//! Unpaid requests: each is answered with a fresh invoice and a token. Over the gateway's own embedded node, which signs the
//! invoices itself; and over a real lnd, which makes them and is counted apart.
//!
//! The embedded node is real, with a channel to a buyer's, on the simulated chain; chain and buyer live in this process. lnd runs
//! on a regtest of its own, built with Go from `tests/peers/lnd` the first time.

use std::{fs, net::SocketAddr, process::Command};

use anyhow::{Context, Result};
use farebox_tests::{Regtest, Seller, until_selling};

use crate::{
    Setting,
    load::wrk::{self, Expect},
    process::{Program, cpu_of, free_address},
    table::Row,
};

/// Budgets that bound nothing.
const BUDGETS: &str = "minting: { per-client: 1000000/s, total: 1000000/s }\nlimits: { workers: 2 }\n";

/// Measures challenges per second, and per second of the gateway's CPU time.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let farebox = setting.farebox.to_str().context("the path of farebox is not text")?;
    let (seller, net) = runtime.block_on(Seller::with_own_node(farebox, BUDGETS));
    let (gateway, listen) = serve(setting, &seller)?;
    let url = format!("http://{listen}/");
    runtime.block_on(until_selling(&net, &url));
    let before = gateway.resident()?;
    let mut rows = measure(setting, &gateway, listen, "challenge")?;
    let after = gateway.resident()?;
    // wrk can't tell one refusal from another: look again, so that nobody measures how fast a 503 is.
    runtime.block_on(until_selling(&net, &url));
    drop(gateway);
    runtime.block_on(net.buyer.stop());
    #[expect(clippy::cast_precision_loss, reason = "memory sizes, for a ratio")]
    let growth = after as f64 / before as f64;
    let mut memory = row("challenge", "memory after by before", "farebox", growth, "times");
    memory.ratio = Some(growth);
    rows.push(memory);
    Ok(rows)
}

/// The same over lnd: what the gateway uses, and what lnd does.
pub(crate) fn over_lnd(setting: &Setting) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let farebox = setting.farebox.to_str().context("the path of farebox is not text")?;
    let regtest = runtime.block_on(Regtest::start());
    let lnd = &regtest.seller;
    let seller = Seller::with_lnd(farebox, lnd, &lnd.macaroon("invoice"), BUDGETS);
    let (gateway, listen) = serve(setting, &seller)?;
    let url = format!("http://{listen}/");
    runtime.block_on(until_402(&url))?;
    let pid = lnd.pid().context("lnd does not run")?;
    let before = (cpu_of(pid)?, runtime.block_on(lnd.invoices()));
    let mut rows = measure(setting, &gateway, listen, "challenge over lnd")?;
    let used = cpu_of(pid)?.saturating_sub(before.0);
    let made = runtime.block_on(lnd.invoices()).saturating_sub(before.1);
    runtime.block_on(until_402(&url))?;
    drop(gateway);
    #[expect(clippy::cast_precision_loss, reason = "a million invoices at most")]
    let each = used.as_secs_f64() * 1e6 / made.max(1) as f64;
    rows.push(row("challenge over lnd", "CPU", "lnd", each, "us/challenge"));
    Ok(rows)
}

/// The program, selling what `seller` sells at an address of our choice.
fn serve(setting: &Setting, seller: &Seller) -> Result<(Program, SocketAddr)> {
    let listen = free_address()?;
    let file = seller.dir.path().join("farebox.yaml");
    let config = fs::read_to_string(&file)?.replacen("127.0.0.1:0", &listen.to_string(), 1);
    fs::write(&file, config)?;
    let mut command = Command::new(&setting.farebox);
    command.arg("serve").arg("--config").arg(&file).env("FAREBOX_LOG", "error");
    Ok((Program::start(command, listen)?, listen))
}

async fn until_402(url: &str) -> Result<()> {
    let selling = async { while Seller::status(url).await != 402 {} };
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, selling).await.context("farebox does not sell through lnd within a minute")
}

fn measure(
    setting: &Setting,
    gateway: &Program,
    listen: SocketAddr,
    bench: &'static str,
) -> Result<Vec<Row>> {
    wrk::run(listen, &[], setting.time, Expect::Refusal)?; // warm-up
    let (measured, cpu) = gateway.cpu_while(|| wrk::run(listen, &[], setting.time, Expect::Refusal))?;
    let cpu = cpu.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a few million requests at most")]
    let count = measured.requests as f64;
    let row = |what, value, unit| row(bench, what, "farebox", value, unit);
    Ok(vec![
        row("rate", measured.rate, "challenges/s"),
        row("CPU", cpu * 1e6 / count, "us/challenge"),
        row("rate by CPU time", count / cpu, "per core second"),
        row("p99", measured.p99_millis, "ms"),
    ])
}

fn row(bench: &'static str, what: &str, subject: &str, value: f64, unit: &'static str) -> Row {
    Row { bench, what: what.to_owned(), subject: subject.to_owned(), value, unit, ratio: None }
}
