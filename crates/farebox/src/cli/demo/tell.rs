//! How the demo tells its story: lines for a person, or JSON lines for a program.
//!
//! Tokens, preimages and a wallet password are printed here, which nothing else in farebox does: they open a demo on a
//! simulated chain, and to show them is what it is for.

use std::{
    fmt,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use farebox_protocol::{Invoice, Msat, PaymentHash, Preimage};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::counters::Counter;

/// Tells the story to standard output.
pub(super) struct Teller {
    /// When the process started: all times count from here.
    started: Instant,
    json: bool,
}

/// Where everything is.
pub(super) struct Ready<'a> {
    pub(super) gateway: &'a str,
    pub(super) upstream: &'a str,
    pub(super) wallet_url: &'a str,
    pub(super) wallet_password: &'a str,
    pub(super) ops_url: &'a str,
    pub(super) data_dir: &'a str,
    pub(super) counters: &'a [Counter],
    /// What a configuration says and the demo does otherwise, by key.
    pub(super) replaced: &'a [String],
}

impl Teller {
    pub(super) fn new(started: Instant, json: bool) -> Self {
        Self { started, json }
    }

    /// A step begins.
    pub(super) fn step(&self, what: fmt::Arguments<'_>) {
        if !self.json {
            print(format_args!("\n{} {what}", self.stamp()));
        }
    }

    /// Something worth knowing.
    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        if !self.json {
            print(format_args!("          {what}"));
        }
    }

    /// Something that isn't as asked, such as a port that was taken. It goes to standard error, so that programs that
    /// read the story aren't disturbed.
    pub(super) fn warn(&self, what: fmt::Arguments<'_>) {
        let _ = writeln!(io::stderr(), "note: {what}");
    }

    pub(super) fn ready(&self, ready: &Ready<'_>) {
        let url = |counter: &Counter| format!("{}{}", ready.gateway, counter.path);
        let service = |counter: &Counter| {
            json!({
                "name": counter.name, "url": url(counter), "method": counter.method.as_str(), "host": counter.host,
                "paid": counter.is_paid, "answers": !counter.is_silent,
            })
        };
        self.event(json!({
            "event": "ready", "gateway": ready.gateway, "upstream": ready.upstream, "wallet_url": ready.wallet_url,
            "wallet_password": ready.wallet_password, "ops_url": ready.ops_url, "data_dir": ready.data_dir,
            "services": ready.counters.iter().map(service).collect::<Vec<_>>(), "replaced": ready.replaced,
        }));
        self.note(format_args!("gateway     {}", ready.gateway));
        if let [_] = ready.counters {
            self.note(format_args!("sells       {}", ready.upstream));
        }
        self.note(format_args!("wallet      {} (the buyer's node)", ready.wallet_url));
        self.note(format_args!("operations  {}", ready.ops_url));
        for counter in ready.counters {
            let method = if counter.method == Method::GET { "" } else { counter.method.as_str() };
            let host = counter.host.as_ref().map_or(String::new(), |host| format!(" with `Host: {host}`"));
            let asked = format!("{method} {}{host}", url(counter));
            self.note(format_args!("service     {}", asked.trim_start()));
            for line in counter.sold.to_string().lines() {
                self.note(format_args!("            {line}"));
            }
        }
    }

    /// Nothing was bought.
    pub(super) fn nothing(&self, why: &str) {
        self.event(json!({ "event": "nothing_bought", "why": why }));
        self.note(format_args!("{why}"));
    }

    pub(super) fn challenge(&self, lines: &[String], token: &str, invoice: &Invoice) {
        let hash = invoice.payment_hash();
        let msat = invoice.amount().map(Msat::get);
        self.event(json!({
            "event": "challenge", "invoice": invoice.as_str(), "token": token, "payment_hash": hash.to_string(),
            "msat": msat,
        }));
        self.note(format_args!("402 Payment Required"));
        for line in lines {
            self.note(format_args!("WWW-Authenticate: {}", shortened(line)));
        }
        self.note(format_args!("invoice      {}", invoice.as_str()));
        self.note(format_args!("payment hash {hash}"));
    }

    pub(super) fn payment(&self, preimage: &Preimage, fee: Msat, hash: &PaymentHash) {
        self.event(json!({
            "event": "payment", "preimage": *preimage.expose_hex(), "fee_msat": fee.get(),
            "elapsed_ms": self.elapsed_ms(),
        }));
        if !self.json {
            print(format_args!("{} paid, for a fee of {fee}", self.stamp()));
        }
        let verdict = if preimage.pays(hash) { "==" } else { "!=" };
        self.note(format_args!("preimage     {}", *preimage.expose_hex()));
        self.note(format_args!("sha256(preimage) = {}", preimage.payment_hash()));
        self.note(format_args!("sha256(preimage) {verdict} payment_hash"));
    }

    pub(super) fn answer(
        &self,
        status: StatusCode,
        authorization: &str,
        hash: &PaymentHash,
        preimage: &Preimage,
        body: &str,
        took: Duration,
    ) {
        self.event(json!({
            "event": "answer", "status": status.as_u16(), "authorization": authorization,
            "payment_hash": hash.to_string(), "preimage": *preimage.expose_hex(), "elapsed_ms": self.elapsed_ms(),
        }));
        self.note(format_args!("Authorization: {}", shortened(authorization)));
        if !self.json {
            let micros = took.as_micros();
            print(format_args!(
                "{} {status}, after {}.{:01} ms",
                self.stamp(),
                micros / 1_000,
                micros % 1_000 / 100
            ));
        }
        self.note(format_args!("{}", body.trim_end()));
    }

    /// The demo stays up, and `commands` is what a person can paste; `file` is for a shell to read first.
    pub(super) fn commands(&self, file: &Path, commands: &dyn fmt::Display) {
        self.event(json!({ "event": "open", "buyer_file": file }));
        if !self.json {
            print(format_args!("{commands}"));
        }
    }

    fn event(&self, event: Value) {
        if self.json {
            print(format_args!("{event}"));
        }
    }

    /// `[  2.134 s]`, since the process started.
    fn stamp(&self) -> String {
        format!("{:7.3} s", self.started.elapsed().as_secs_f64())
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The beginning and the end of a long line.
fn shortened(line: &str) -> String {
    const KEPT: usize = 100;
    let chars: Vec<char> = line.chars().collect();
    if chars.len() <= KEPT {
        return line.to_owned();
    }
    let head: String = chars.iter().take(KEPT / 2).collect();
    let tail: String = chars.iter().skip(chars.len() - KEPT / 4).collect();
    format!("{head}…{tail}")
}

/// A line to standard output. Whoever closed it has heard enough; the demo goes on.
fn print(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}
