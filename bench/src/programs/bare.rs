//! The bare hyper proxy, `src/bin/bare-proxy.rs`, built beside this program.

use std::{net::SocketAddr, process::Command};

use super::{Plan, Wire};
use crate::Setting;

pub(super) fn proxy(setting: &Setting, listen: SocketAddr, plan: &Plan) -> Command {
    let wire = |wire| if wire == Wire::Http1 { "h1" } else { "h2" };
    let mut command = Command::new(&setting.bare);
    command.arg(listen.to_string()).arg(wire(plan.front));
    command.arg(plan.upstream.to_string()).arg(wire(plan.back));
    command
}
