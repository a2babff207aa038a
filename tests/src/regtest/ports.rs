//! Ports for programs that must be told theirs, and keep it over a restart.
//!
//! Not port 0: a program that is stopped would find its port taken by any connection of the machine. These lie below the
//! range from which the system serves such requests, so that only another regtest can come in between, and that is retried.

use std::net::TcpListener;

const LOWEST: u16 = 12_000;
const HIGHEST: u16 = 31_999;

/// A port of 127.0.0.1 that was free a moment ago.
pub(super) fn port() -> u16 {
    loop {
        let random = getrandom::u32().unwrap();
        let port = LOWEST + u16::try_from(random % u32::from(HIGHEST - LOWEST + 1)).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
