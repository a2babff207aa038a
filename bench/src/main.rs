//! The side-by-side benchmark: starts what it compares, loads it over loopback, and prints a table of ratios.
//!
//! Machines are shared and noisy, so nothing here is an absolute claim: everything compared runs in one go, taking
//! turns, and the ratio counts. CPU time is that of the compared process and its children, from the kernel.
//! Run it with `cargo xtask bench`, which builds the programs first.

mod descriptors;
mod figures;
mod load;
mod parts;
mod process;
mod programs;
mod table;
mod upstream;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};

use crate::{
    parts::{attack, bodies, client, grpc, idle, latency, metered, proxy, proxy_h2, verify, websocket},
    table::Row,
};

/// One benchmark: its name, what it shows, and how it is measured.
struct Bench {
    name: &'static str,
    shows: &'static str,
    run: fn(&Setting) -> Result<Vec<Row>>,
}

/// What can be measured.
const BENCHES: &[Bench] = &[
    Bench { name: "verify", shows: "check one credential with three caveats, in process", run: verify::run },
    Bench {
        name: "proxy",
        shows: "a small request through each proxy, HTTP/1.1, 64 connections",
        run: proxy::run,
    },
    Bench {
        name: "proxy-h2",
        shows: "a small request through each proxy, HTTP/2 in clear text, 8 connections of 8 streams",
        run: proxy_h2::run,
    },
    Bench {
        name: "metered",
        shows: "a small request with a token that is good for so many, beside one with a pass, HTTP/1.1",
        run: metered::run,
    },
    #[cfg(feature = "challenge")]
    Bench {
        name: "challenge",
        shows: "unpaid requests: an invoice and a token each",
        run: crate::parts::challenge::run,
    },
    #[cfg(feature = "challenge")]
    Bench {
        name: "challenge-lnd",
        shows: "the same over a real lnd, whose part is counted apart (needs Go)",
        run: crate::parts::challenge::over_lnd,
    },
    Bench {
        name: "grpc",
        shows: "unary gRPC calls through each proxy, 8 connections of 8 streams",
        run: grpc::run,
    },
    Bench {
        name: "client",
        shows: "a small request for something free, by clients that would pay and by the same ones alone",
        run: client::run,
    },
    Bench { name: "bodies", shows: "large bodies both ways through each proxy, HTTP/1.1", run: bodies::run },
    Bench {
        name: "websocket",
        shows: "frames of 100 bytes and their echo through each proxy, 64 connections",
        run: websocket::run,
    },
    Bench {
        name: "idle",
        shows: "memory of each proxy for 5,000 idle connections, HTTP/1.1",
        run: idle::run,
    },
    Bench {
        name: "latency",
        shows: "latency at half of nginx's capacity, counted from when each request was due",
        run: latency::run,
    },
    Bench {
        name: "attack",
        shows: "what well-behaved clients notice of an attack by a fifth of a core, HTTP/1.1",
        run: attack::run,
    },
];

/// How to measure.
struct Setting {
    /// How long each measurement takes.
    time: Duration,
    /// The built `farebox` program.
    farebox: PathBuf,
    /// The built `bare-proxy` program.
    bare: PathBuf,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut names = Vec::new();
    let mut secs = 3;
    let mut json = None;
    let mut markdown = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--secs" => secs = arguments.next().unwrap_or_default().parse()?,
            "--json" => json = arguments.next().map(PathBuf::from),
            "--markdown" => markdown = arguments.next().map(PathBuf::from),
            name if BENCHES.iter().any(|bench| bench.name == name) => names.push(argument),
            other => {
                let known: Vec<_> =
                    BENCHES.iter().map(|bench| format!("  {:10} {}", bench.name, bench.shows)).collect();
                bail!("`{other}` is not a benchmark; there are:\n{}", known.join("\n"));
            }
        }
    }
    let built = std::env::current_exe()?;
    let setting = Setting {
        time: Duration::from_secs(secs),
        farebox: built.with_file_name("farebox"),
        bare: built.with_file_name("bare-proxy"),
    };

    let mut rows = Vec::new();
    for bench in BENCHES {
        if names.is_empty() || names.iter().any(|wanted| wanted == bench.name) {
            eprintln!("{}: {} …", bench.name, bench.shows);
            rows.extend((bench.run)(&setting)?);
        }
    }
    table::print(&rows);
    if let Some(file) = json {
        std::fs::write(&file, table::json(&rows)?)?;
    }
    if let Some(file) = markdown {
        std::fs::write(&file, table::markdown(&rows, secs)?)?;
    }
    Ok(())
}
