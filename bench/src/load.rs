//! The load generator, wrk: 64 keep-alive connections from one thread, for a bounded time, at loopback only.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use crate::process::Program;

/// What one run of load showed.
pub(crate) struct Measured {
    /// Requests answered.
    pub(crate) requests: u64,
    /// Requests per second.
    pub(crate) rate: f64,
    /// CPU time of the measured program per request, in microseconds.
    pub(crate) cpu_micros: f64,
    /// CPU time of the measured program by time of the run: the cores it kept busy.
    pub(crate) cores: f64,
}

/// Loads `http://{address}{path}` for `time` and measures `program` meanwhile. Every answer must be as `expect` says:
/// a benchmark of errors would be fast and worthless.
pub(crate) fn run(
    program: &Program,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    time: Duration,
    expect: Expect,
) -> Result<Measured> {
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", "-c64", &format!("-d{}s", time.as_secs())]);
    for (name, value) in headers {
        wrk.arg("-H").arg(format!("{name}: {value}"));
    }
    wrk.arg(format!("http://{address}{path}"));

    let before = program.cpu()?;
    let output = wrk.output().context("cannot run `wrk`; install it from your distribution")?;
    let cpu = program.cpu()?.saturating_sub(before);
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("wrk failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    // "  123456 requests in 3.00s, 20.00MB read"
    let requests: u64 =
        field(&text, " requests in ", |before, _| before.split_whitespace().last().map(str::to_owned))?;
    let rate: f64 =
        field(&text, "Requests/sec:", |_, after| after.split_whitespace().next().map(str::to_owned))?;
    let refused: u64 = match text.find("Non-2xx or 3xx responses:") {
        Some(_) => field(&text, "Non-2xx or 3xx responses:", |_, after| {
            after.split_whitespace().next().map(str::to_owned)
        })?,
        None => 0,
    };
    let wrong = match expect {
        Expect::Success => refused,
        Expect::Refusal => requests.saturating_sub(refused),
    };
    if wrong > 0 || requests == 0 {
        bail!("{wrong} of {requests} answers at {address}{path} were not as expected:\n{text}");
    }
    #[expect(clippy::cast_precision_loss, reason = "a few million requests at most")]
    let count = requests as f64;
    Ok(Measured {
        requests,
        rate,
        cpu_micros: cpu.as_secs_f64() * 1e6 / count,
        cores: cpu.as_secs_f64() / time.as_secs_f64(),
    })
}

/// Which answers a run must consist of.
#[derive(Clone, Copy)]
pub(crate) enum Expect {
    /// Statuses below 400.
    Success,
    /// Statuses from 400.
    Refusal,
}

fn field<T: std::str::FromStr>(
    text: &str,
    mark: &str,
    pick: impl Fn(&str, &str) -> Option<String>,
) -> Result<T> {
    text.split_once(mark)
        .and_then(|(before, after)| pick(before, after))
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("wrk printed no `{mark}`:\n{text}"))
}
