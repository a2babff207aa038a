//! Unary gRPC calls through each proxy, HTTP/2 on both sides: 8 connections of 8 streams, messages of 32 bytes each way.

use anyhow::Result;

use super::closed_loop;
use crate::{
    Setting,
    figures::taking_turns,
    load::http2::{self, Call},
    programs::{self, Clients, Plan, Wire},
    table::Row,
    upstream::{GRPC_MESSAGE, Upstream},
};

/// Measures all proxies, taking turns.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let upstream = Upstream::start(Wire::Http2)?;
    let plan =
        Plan { front: Wire::Http2, back: Wire::Http2, upstream: upstream.address, clients: Clients::Any };
    let proxies = programs::start_all(&programs::ALL, setting, &plan)?;
    taking_turns(
        "grpc",
        &proxies,
        |running| running.proxy.name(),
        |running| {
            let call = Call::Grpc(GRPC_MESSAGE);
            let (latencies, cpu) = running
                .program
                .cpu_while(|| http2::run(running.address, &running.headers, call, setting.time))?;
            Ok(closed_loop(latencies, setting.time, cpu))
        },
    )
}
