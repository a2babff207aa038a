//! The suites that `cargo test` leaves out, as data: a name, what it shows, and the command behind it.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

/// One suite: its name, what it shows, and the steps to run.
struct Suite {
    name: &'static str,
    shows: &'static str,
    steps: &'static [Step],
}

/// One command, from the root of the workspace. Words stand in one text, as one would type them.
enum Step {
    /// `cargo test`, in this environment, of these programs and tests.
    Test {
        env: &'static [(&'static str, &'static str)],
        of: &'static str,
        /// What the test program is told.
        told: &'static str,
    },
    /// A fuzz target, and what it is told.
    Fuzz { target: &'static str, told: &'static str },
}

/// Tests that wait for somebody to ask for them.
const fn ignored(of: &'static str) -> Step {
    Step::Test { env: &[], of, told: "--ignored" }
}

/// Those, and others by the same name that `cargo test` runs too.
const fn all(of: &'static str) -> Step {
    Step::Test { env: &[], of, told: "--include-ignored" }
}

const fn fuzz(target: &'static str) -> Step {
    Step::Fuzz { target, told: "-max_total_time=60" }
}

const PROOFS: &[Suite] = &[
    Suite {
        name: "disk",
        shows: "a disk that is full, locked or can't be written loses and doubles no unit, and is survived (needs root)",
        steps: &[
            all("-p farebox-paywall --lib costs_nobody_a_unit"),
            all("-p farebox-gateway --test ledger_faults loses_no_unit"),
        ],
    },
    Suite {
        name: "download",
        shows: "`farebox get` of a gibibyte, down or up, takes no more memory than of a mebibyte",
        steps: &[ignored("--release -p farebox --test get a_gibibyte")],
    },
    Suite {
        name: "flood",
        shows: "1,000,000 unpaid challenges leave no row, no file and no memory behind",
        steps: &[ignored("--release -p farebox --test flood")],
    },
    Suite {
        name: "fuzz",
        shows: "each fuzz target runs a minute without a finding (needs nightly and cargo-fuzz)",
        steps: &[fuzz("header"), fuzz("macaroon"), fuzz("purchase"), fuzz("usage")],
    },
    Suite {
        name: "groups",
        shows: "what a crash could lose at 40,000 requests a second is below the bound that is documented",
        steps: &[ignored("--release -p farebox-paywall --lib what_waits_to_be_written")],
    },
    Suite {
        name: "ledger",
        shows: "no unit is lost or doubled in ten minutes of stories and ten of killed processes (needs nightly, cargo-fuzz)",
        steps: &[
            // Stories are long from the first on: short ones break nothing.
            Step::Fuzz { target: "ledger", told: "-max_total_time=600 -max_len=2000 -len_control=0" },
            Step::Test {
                env: &[("FAREBOX_PROVE_SECS", "600")],
                of: "-p farebox-paywall --lib killed_at_any_moment",
                told: "",
            },
        ],
    },
    Suite {
        name: "lnd-flood",
        shows: "20,000 unpaid challenges write nothing here and leave nothing in lnd (needs Go)",
        steps: &[ignored("--test live_lnd long::twenty")],
    },
    Suite {
        name: "lnd-history",
        shows: "with 200,000 invoices behind its lnd the gateway sells within 2 s of its start (needs Go)",
        steps: &[ignored("--test live_lnd long::a_long_history")],
    },
    Suite {
        name: "rows",
        shows: "10,000,000 purchases and 1,000,000 revocations make neither a start nor a debit slow",
        steps: &[Step::Test {
            env: &[("FAREBOX_PROVE_PURCHASES", "10000000"), ("FAREBOX_PROVE_REVOCATIONS", "1000000")],
            of: "--release -p farebox-paywall --lib neither_a_start_nor_a_token",
            told: "--ignored",
        }],
    },
];

// Without `-p`: the features, and so the builds, are then those of `cargo test`.
const LIVE: &[Suite] = &[
    Suite {
        name: "clients",
        shows: "the L402 clients that people have buy from a gateway over lnd, paying with theirs (needs Go, Python, Node.js, curl)",
        steps: &[ignored("--test live_clients")],
    },
    Suite {
        name: "demo",
        shows: "plain curl and `farebox get` buy from the running demo, which stays on loopback; a payment is on the disk first (needs curl, strace)",
        steps: &[ignored("--test live_demo"), ignored("--test disk")],
    },
    Suite {
        name: "grpc",
        shows: "every standard call of grpc-go's interoperability client passes, paid, in clear text and by TLS (needs Go)",
        steps: &[ignored("--test live_grpc")],
    },
    Suite {
        name: "h2",
        shows: "h2spec finds nothing in the gateway that it does not find in bare hyper, or that is not listed (needs Go)",
        steps: &[ignored("--test live_h2")],
    },
    Suite {
        name: "lnd",
        shows: "what is sold through a real lnd is bought from another, whatever becomes of the nodes meanwhile (needs Go)",
        steps: &[Step::Test {
            env: &[],
            of: "--test live_lnd",
            told: "--ignored --test-threads=4 --skip=long::",
        }],
    },
    Suite {
        name: "mcp",
        shows: "the official MCP SDK buys within the policy, and an agent of another user gets nothing else (needs Python, root)",
        steps: &[ignored("--test live_mcp")],
    },
    Suite {
        name: "nwc",
        shows: "a wallet of nostr-tools behind a relay pays as every backend must, and for `farebox get` (needs Node.js)",
        steps: &[ignored("--test live_nwc")],
    },
    Suite {
        name: "ws",
        shows: "Autobahn's cases go through the gateway as without it, and paid over HTTP/2 (needs Python, Node.js)",
        steps: &[ignored("--test live_ws")],
    },
];

/// Runs the proof called `name`, or lists them all.
pub(crate) fn prove(name: Option<&str>) -> Result<()> {
    run("prove", PROOFS, name)
}

/// Runs the live suite called `name`, or lists them all.
pub(crate) fn live(name: Option<&str>) -> Result<()> {
    run("live", LIVE, name)
}

/// Builds everything that is compared, then hands over to the benchmark itself.
pub(crate) fn bench(names: &[String], secs: u64, json: Option<&Path>, markdown: Option<&Path>) -> Result<()> {
    // One part needs Lightning nodes, which take minutes to build.
    let lean: &[&str] = match names {
        [] => &[],
        names if names.iter().any(|name| name.starts_with("challenge")) => &[],
        _ => &["--no-default-features"],
    };
    // Each by itself: features that only one of them asks for would get into the other.
    let build = ["build", "--release", "--quiet", "--package"];
    succeed(Command::new("cargo").args(build).arg("farebox").current_dir(root()))?;
    succeed(Command::new("cargo").args(build).arg("farebox-bench").args(lean).current_dir(root()))?;
    let mut command = Command::new("cargo");
    command.args(["run", "--release", "--quiet", "--package", "farebox-bench"]).args(lean).arg("--");
    command.args(names).arg("--secs").arg(secs.to_string());
    for (flag, file) in [("--json", json), ("--markdown", markdown)] {
        if let Some(file) = file {
            command.arg(flag).arg(std::path::absolute(file)?);
        }
    }
    succeed(&mut command)
}

fn run(kind: &str, suites: &[Suite], name: Option<&str>) -> Result<()> {
    let list =
        || suites.iter().map(|suite| format!("  {:11} {}\n", suite.name, suite.shows)).collect::<String>();
    let Some(name) = name else {
        print!("{}", list());
        return Ok(());
    };
    let Some(suite) = suites.iter().find(|suite| suite.name == name) else {
        bail!("there is no `cargo xtask {kind} {name}`; there are:\n{}", list());
    };
    suite.steps.iter().try_for_each(|step| succeed(&mut step.command()))
}

impl Step {
    fn command(&self) -> Command {
        let mut command = Command::new("cargo");
        let words = str::split_ascii_whitespace;
        match self {
            Self::Test { env, of, told } => {
                command.arg("test").args(words(of)).arg("--").args(words(told)).arg("--nocapture");
                command.envs(env.iter().copied()).current_dir(root());
            }
            Self::Fuzz { target, told } => {
                command.args(["+nightly", "fuzz", "run", target, "--"]).args(words(told));
                command.current_dir(root().join("fuzz"));
            }
        }
        command
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    // What cargo says of this program it says again of each that is built. Build scripts that ask to be run when it changes
    // (`ring` has one) would be run, and all that depends on them be built anew, in each run of a suite and in the next without.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} failed: {status}") }
}

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
