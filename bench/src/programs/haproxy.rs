//! HAProxy as a plain reverse proxy.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::Result;

use super::{Clients, Plan, Wire};

pub(super) fn proxy(dir: &Path, listen: SocketAddr, plan: &Plan) -> Result<Command> {
    let proto = |wire| if wire == Wire::Http1 { "" } else { "proto h2" };
    let clients = match plan.clients {
        Clients::Any => "",
        Clients::Limited => {
            "option forwardfor if-none
  stick-table type ip size 1m expire 60s store http_req_rate(10s)
  http-request track-sc0 hdr_ip(x-forwarded-for)
  http-request deny deny_status 429 if { sc_http_req_rate(0) gt 10000 }"
        }
    };
    let file = dir.join("haproxy.cfg");
    fs::write(
        &file,
        format!(
            "global
  nbthread 2
  maxconn 9000
defaults
  mode http
  timeout connect 10s
  timeout client 75s
  timeout server 120s
  timeout http-request 15s
  timeout http-keep-alive 75s
  timeout tunnel 1h
  http-reuse always
frontend front
  bind {listen} {front}
  {clients}
  default_backend app
backend app
  server app {upstream} {back}
",
            front = proto(plan.front),
            back = proto(plan.back),
            upstream = plan.upstream,
        ),
    )?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-q").arg("-f").arg(&file);
    Ok(command)
}
