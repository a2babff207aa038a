//! WebSocket frames through each proxy: 64 connections, each sending a masked frame of 100 bytes and waiting for its echo.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Result, anyhow, ensure};
use tokio::time::Instant;

use super::closed_loop;
use crate::{
    Setting,
    figures::{Latencies, taking_turns},
    load::http1::{self, Connection},
    programs::{self, Plan, Proxy, Wire},
    table::Row,
    upstream::Upstream,
};

const CONNECTIONS: usize = 64;
const PAYLOAD: u8 = 100;
/// The bare proxy has no upgrades.
const PROXIES: [Proxy; 4] = [Proxy::Nginx, Proxy::Haproxy, Proxy::FareboxFree, Proxy::FareboxPaid];

/// Measures the proxies that hand over connections, taking turns.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let upstream = Upstream::start(Wire::Http1)?;
    let proxies = programs::start_all(&PROXIES, setting, &Plan::http1(upstream.address))?;
    taking_turns(
        "websocket",
        &proxies,
        |running| running.proxy.name(),
        |running| {
            let (latencies, cpu) =
                running.program.cpu_while(|| load(running.address, &running.headers, setting.time))?;
            Ok(closed_loop(latencies, setting.time, cpu))
        },
    )
}

fn load(to: SocketAddr, headers: &[(&str, String)], time: Duration) -> Result<Latencies> {
    let mut headers = headers.to_vec();
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ] {
        headers.push((name, value.to_owned()));
    }
    let head = http1::head("GET", "/echo", &headers);
    let end = Instant::now() + time;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(|| one(to, &head, end))).collect();
        let mut all = Latencies::default();
        for thread in threads {
            all.append(thread.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(all)
    })
}

fn one(to: SocketAddr, head: &[u8], end: Instant) -> Result<Latencies> {
    let mut connection = Connection::new(http1::connect(None, to)?, 4096);
    let (status, _) = connection.exchange(head)?;
    ensure!(status == 101, "an upgrade was answered with {status}");
    let frame = frame();
    let mut latencies = Latencies::default();
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(latencies);
        }
        connection.send(&frame)?;
        connection.skip(frame.len())?;
        latencies.push(sent.elapsed());
    }
}

/// A whole binary message, masked as a client's are: RFC 6455 5.2.
fn frame() -> Vec<u8> {
    let mut frame = vec![0x82, 0x80 | PAYLOAD, 1, 2, 3, 4];
    frame.extend((0..PAYLOAD).map(|byte| byte ^ [1, 2, 3, 4][usize::from(byte % 4)]));
    frame
}
