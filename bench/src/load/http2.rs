//! HTTP/2 in clear text: some connections with some streams each, each stream asking again as soon as it is answered.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{Method, Request};
use tokio::{net::TcpStream, runtime, task::JoinSet, time::Instant};

use crate::figures::Latencies;

const CONNECTIONS: usize = 8;
const STREAMS: usize = 8;

/// What is asked over and over.
#[derive(Clone, Copy)]
pub(crate) enum Call {
    /// `GET /`.
    Get,
    /// A unary gRPC call with this message.
    Grpc(&'static [u8]),
}

/// Loads `to` for `time`; how long each request took. Every one must succeed.
pub(crate) fn run(
    to: SocketAddr,
    headers: &[(&'static str, String)],
    call: Call,
    time: Duration,
) -> Result<Latencies> {
    let request = request(to, headers, call)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connections = JoinSet::new();
        let mut streams = JoinSet::new();
        let mut senders = Vec::new();
        for _ in 0..CONNECTIONS {
            let socket = TcpStream::connect(to).await?;
            socket.set_nodelay(true)?;
            let (sender, connection) = client::handshake(socket).await?;
            connections.spawn(connection);
            senders.push(sender);
        }
        let end = Instant::now() + time;
        for sender in senders {
            for _ in 0..STREAMS {
                streams.spawn(repeat(sender.clone(), request.clone(), call, end));
            }
        }
        let mut all = Latencies::default();
        while let Some(latencies) = streams.join_next().await {
            all.append(latencies??);
        }
        Ok(all)
    })
}

fn request(to: SocketAddr, headers: &[(&'static str, String)], call: Call) -> Result<Request<()>> {
    let mut request = Request::get(format!("http://{to}/"));
    if let Call::Grpc(_) = call {
        request = Request::post(format!("http://{to}/bench.Bench/Unary"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
    }
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    Ok(request.body(())?)
}

async fn repeat(
    sender: SendRequest<Bytes>,
    request: Request<()>,
    call: Call,
    end: Instant,
) -> Result<Latencies> {
    let mut latencies = Latencies::default();
    let mut sender = sender.ready().await?;
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(latencies);
        }
        let is_whole = request.method() == Method::GET;
        let (response, mut stream) = sender.send_request(request.clone(), is_whole)?;
        if let Call::Grpc(message) = call {
            stream.send_data(Bytes::from_static(message), true)?;
        }
        let response = response.await?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data?.len())?;
        }
        ensure!(status == 200, "an answer of {to:?} had the status {status}", to = request.uri());
        if let Call::Grpc(_) = call {
            let trailers = body.trailers().await?.context("a gRPC answer without trailers")?;
            if trailers.get("grpc-status").is_none_or(|status| status != "0") {
                bail!("a gRPC call failed: {trailers:?}");
            }
        }
        latencies.push(sent.elapsed());
        sender = sender.ready().await?;
    }
}
