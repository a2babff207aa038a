//! nginx, as a plain reverse proxy and as the upstream of the small requests.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, process::Command};

use anyhow::Result;
use tempfile::TempDir;

use super::{Clients, Plan, Wire};
use crate::process::{Program, free_address};

/// What the small requests are answered with.
const ANSWER: &str = "return 200 '0123456789abcdef0123456789abcdef';";

/// An upstream that answers everything with 32 bytes, until it is dropped.
pub(crate) struct Small {
    _program: Program,
    pub(crate) address: SocketAddr,
    _dir: TempDir,
}

impl Small {
    pub(crate) fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = free_address()?;
        let program = Program::start(command(dir.path(), &address.to_string(), ANSWER, "")?, address)?;
        Ok(Self { _program: program, address, _dir: dir })
    }
}

pub(super) fn proxy(dir: &Path, listen: SocketAddr, http2: SocketAddr, plan: &Plan) -> Result<Command> {
    let mut http = format!("upstream app {{ server {}; keepalive 64; }}", plan.upstream);
    // Bodies go through as they come, as with the others, and not by way of a file.
    let mut location = "client_max_body_size 0; ".to_owned();
    location.push_str(match plan.back {
        Wire::Http1 => {
            "proxy_pass http://app; proxy_http_version 1.1; proxy_request_buffering off;
             proxy_max_temp_file_size 0; proxy_set_header Upgrade $http_upgrade;
             proxy_set_header Connection $onward;"
        }
        Wire::Http2 => "grpc_pass grpc://app;",
    });
    http.push_str(" map $http_upgrade $onward { default upgrade; '' ''; }");
    if plan.clients == Clients::Limited {
        http.push_str(
            " set_real_ip_from 127.0.0.0/8; real_ip_header X-Forwarded-For;
              limit_req_zone $binary_remote_addr zone=clients:64m rate=1000r/s;",
        );
        location.push_str(" limit_req zone=clients burst=1000 nodelay;");
    }
    let listen = match plan.front {
        Wire::Http1 => format!("{listen}; listen {http2} http2"),
        Wire::Http2 => format!("{listen} http2; listen {http2} http2"),
    };
    command(dir, &listen, &location, &http)
}

fn command(dir: &Path, listen: &str, location: &str, http: &str) -> Result<Command> {
    let mut conf = String::new();
    write!(
        conf,
        "daemon off; worker_processes 2; pid {dir}/pid; error_log {dir}/error.log crit;
         events {{ worker_connections 8192; }}
         http {{
           access_log off; keepalive_requests 100000000; keepalive_timeout 75s; client_header_timeout 15s;
           client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
           fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
           {http}
           server {{ listen {listen}; location / {{ {location} }} }}
         }}",
        dir = dir.display(),
    )?;
    let file = dir.join("nginx.conf");
    fs::write(&file, conf)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir).arg("-e").arg(dir.join("error.log")).arg("-c").arg(&file);
    Ok(command)
}
