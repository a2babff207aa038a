//! wrk: 64 keep-alive connections of HTTP/1.1 from one thread, each asking again as soon as it is answered.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

/// What one run showed.
#[derive(Debug, PartialEq)]
pub(crate) struct Measured {
    /// Requests answered.
    pub(crate) requests: u64,
    /// Requests per second.
    pub(crate) rate: f64,
    /// The time that 99 of 100 stayed within, in milliseconds.
    pub(crate) p99_millis: f64,
    /// Answers with a status of 400 and up.
    refused: u64,
}

/// Which answers a run must consist of.
#[derive(Clone, Copy)]
pub(crate) enum Expect {
    /// Statuses below 400.
    Success,
    /// Statuses from 400.
    #[cfg_attr(not(feature = "challenge"), expect(dead_code, reason = "no other part counts refusals"))]
    Refusal,
}

/// Loads `http://{address}/` for `time`. Every answer must be as `expect` says: a benchmark of errors would be fast and
/// worthless.
pub(crate) fn run(
    address: SocketAddr,
    headers: &[(&str, String)],
    time: Duration,
    expect: Expect,
) -> Result<Measured> {
    let mut wrk = Command::new("wrk");
    wrk.args(["--latency", "-t1", "-c64", &format!("-d{}s", time.as_secs())]);
    for (name, value) in headers {
        wrk.arg("-H").arg(format!("{name}: {value}"));
    }
    wrk.arg(format!("http://{address}/"));
    let output = wrk.output().context("cannot run `wrk`; install it, for example with `apt install wrk`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("wrk failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let measured = read(&text)?;
    let wrong = match expect {
        Expect::Success => measured.refused,
        Expect::Refusal => measured.requests.saturating_sub(measured.refused),
    };
    if wrong > 0 || measured.requests == 0 {
        bail!("{wrong} of {} answers of {address} were not as expected:\n{text}", measured.requests);
    }
    Ok(measured)
}

/// Reads what wrk prints.
fn read(text: &str) -> Result<Measured> {
    let missing = |mark| format!("wrk printed no `{mark}`:\n{text}");
    let after = |mark| {
        let rest = text.split_once(mark).map(|(_, rest)| rest)?;
        rest.split_whitespace().next()
    };
    let requests = text.split_once(" requests in ").and_then(|(before, _)| before.split_whitespace().last());
    let requests = requests.and_then(|count| count.parse().ok()).with_context(|| missing("requests in"))?;
    let rate = after("Requests/sec:").and_then(|rate| rate.parse().ok());
    Ok(Measured {
        requests,
        rate: rate.with_context(|| missing("Requests/sec"))?,
        p99_millis: after(" 99% ").and_then(millis).with_context(|| missing("99%"))?,
        // There is no such line when there were none.
        refused: after("Non-2xx or 3xx responses:").map_or(Ok(0), str::parse)?,
    })
}

/// Reads `1.23ms`, `870.00us` or `1.50s` as milliseconds.
fn millis(text: &str) -> Option<f64> {
    let at = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "Running 3s test @ http://127.0.0.1:1/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.07ms  310.00us   9.99ms   91.01%
    Req/Sec    31.03k     2.20k   35.00k    70.00%
  Latency Distribution
     50%    2.00ms
     75%    2.10ms
     90%    2.30ms
     99%  870.00us
  92644 requests in 3.00s, 20.14MB read
Requests/sec:  30863.98
Transfer/sec:      6.71MB
";

    #[test]
    fn what_wrk_prints_is_read() {
        let mut wanted = Measured { requests: 92_644, rate: 30_863.98, p99_millis: 0.87, refused: 0 };
        assert_eq!(read(PRINTED).unwrap(), wanted);
        let refused = PRINTED.replace("Requests/sec", "  Non-2xx or 3xx responses: 17\nRequests/sec");
        wanted.refused = 17;
        assert_eq!(read(&refused).unwrap(), wanted);
    }

    #[test]
    fn a_line_that_is_missing_is_named() {
        let said = read(&PRINTED.replace(" 99%", " 98%")).unwrap_err().to_string();
        assert!(said.contains("`99%`"), "{said}");
    }

    #[test]
    fn times_are_read_in_every_unit_of_wrk() {
        assert_eq!(
            ["250.00us", "1.50ms", "2.00s", "1.00m", "3", "x"].map(millis),
            [Some(0.25), Some(1.5), Some(2e3), Some(60e3), None, None]
        );
    }
}
