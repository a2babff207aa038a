//! The command line: one module per command, each with its flags, its help and what it does.
//!
//! Exit codes: 0 it worked, 1 it didn't, 2 the command line makes no sense; `get` has more, see its help.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::time::Instant;

use crate::output::{OutputFlags, Reader};

mod approve;
mod budget;
mod check;
mod completions;
#[cfg(feature = "embedded")]
mod demo;
mod get;
mod import;
mod ledger;
mod lnd;
mod mcp;
mod node;
mod policy;
mod purchases;
mod receipt;
mod receipts;
mod refund;
mod serve;
mod token;
mod version;
mod wallet;

/// Put a price on any HTTP or gRPC API and collect it over the Lightning Network.
#[derive(Debug, Parser)]
#[command(
    name = "farebox",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
#[command(after_help = "\
Examples:
  farebox demo
  farebox serve --upstream http://127.0.0.1:3000 --price 10sat --network signet \\
      --esplora https://mempool.space/signet/api
  farebox check farebox.yaml
  farebox get https://api.example.com/weather
  farebox token inspect -
  farebox ledger list

The log goes to standard error; FAREBOX_LOG=debug shows more of it.")]
pub(crate) struct Cli {
    #[command(flatten)]
    output: OutputFlags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "embedded")]
    Demo(demo::Args),
    Serve(Box<serve::Args>),
    Get(Box<get::Args>),
    Mcp(Box<mcp::Args>),
    Check(check::Args),
    #[command(subcommand)]
    Token(token::Command),
    #[command(subcommand)]
    Ledger(ledger::Command),
    #[command(subcommand)]
    Receipt(receipt::Command),
    #[command(subcommand)]
    Refund(refund::Command),
    #[command(subcommand)]
    Policy(policy::Command),
    Approve(approve::Args),
    Budget(budget::Args),
    #[command(subcommand)]
    Wallet(wallet::Command),
    #[command(subcommand)]
    Purchases(purchases::Command),
    #[command(subcommand)]
    Tokens(purchases::Tokens),
    Import(Box<import::Args>),
    #[command(subcommand)]
    Receipts(receipts::Command),
    Node(Box<node::Args>),
    #[command(subcommand)]
    Lnd(lnd::Command),
    Version(version::Args),
    Completions(completions::Args),
}

/// A command line that parses and makes no sense all the same: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

impl Cli {
    /// Carries the command out; `started` is when the process was.
    pub(crate) fn run(self, started: Instant) -> anyhow::Result<ExitCode> {
        // Only the demo tells how long it took.
        #[cfg(not(feature = "embedded"))]
        let _ = started;
        let reader = self.output.reader();
        match self.command {
            #[cfg(feature = "embedded")]
            Command::Demo(args) => demo::run(args, started, self.output.is_json()),
            Command::Serve(args) => serve::run(*args, reader),
            Command::Get(args) => get::run(*args, self.output),
            Command::Mcp(args) => mcp::run(*args),
            Command::Check(args) => check::run(&args, reader),
            Command::Token(command) => token::run(command, reader),
            Command::Ledger(command) => ledger::run(&command, self.output),
            Command::Receipt(command) => receipt::run(&command, reader),
            Command::Refund(command) => refund::run(&command, reader),
            Command::Policy(command) => policy::run(&command, reader),
            Command::Approve(args) => approve::run(&args, reader),
            Command::Budget(args) => budget::run(&args, reader),
            Command::Wallet(command) => wallet::run(&command, reader),
            Command::Purchases(command) => purchases::run(&command, reader),
            Command::Tokens(command) => purchases::run_tokens(&command, reader),
            Command::Import(args) => import::run(&args, reader),
            Command::Receipts(command) => receipts::run(&command, self.output),
            Command::Node(args) => node::run(*args, reader),
            // A command for a shell, which is what stands behind the pipe.
            Command::Lnd(command) if self.output.is_json() => lnd::run(&command, Reader::Program),
            Command::Lnd(command) => lnd::run(&command, Reader::Person),
            Command::Version(args) => version::run(&args, reader),
            Command::Completions(args) => completions::run(&args),
        }
    }
}
