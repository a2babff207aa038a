//! Attackers over HTTP/2: connections that say what no library would, as fast as it is taken.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Result, bail};

use super::budget::Budget;
use crate::load::http1;

const CONNECTIONS: usize = 8;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The type of a frame, its flags, and what it needs here.
pub(super) const HEADERS: (u8, u8) = (1, 0x5);
pub(super) const RST_STREAM: (u8, u8) = (3, 0);
pub(super) const PING: (u8, u8) = (6, 0);
const SETTINGS: (u8, u8) = (4, 0);

struct Attacker {
    socket: TcpStream,
    /// How often it has breathed.
    breaths: u32,
}

/// Has attackers say `breath` of how often they have spoken before, again and again; who is thrown out comes again. How
/// often it was said, `worth` times.
pub(super) fn run(
    to: SocketAddr,
    budget: &mut Budget<'_>,
    worth: u32,
    breath: fn(u32) -> Vec<u8>,
) -> Result<u64> {
    let mut attackers: Vec<Option<Attacker>> = (0..CONNECTIONS).map(|_| None).collect();
    let mut said = 0;
    loop {
        for attacker in &mut attackers {
            if !budget.goes_on()? {
                return Ok(said);
            }
            if attacker.is_none() {
                *attacker = Attacker::connect(to).ok();
            }
            match attacker.as_mut().map(|attacker| attacker.breathe(breath)) {
                Some(Ok(())) => said += u64::from(worth),
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
        Ok(Self { socket, breaths: 0 })
    }

    fn breathe(&mut self, breath: fn(u32) -> Vec<u8>) -> Result<()> {
        self.socket.write_all(&breath(self.breaths))?;
        self.breaths += 1;
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
pub(super) fn frame(bytes: &mut Vec<u8>, (kind, flags): (u8, u8), stream: u32, payload: &[u8]) {
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
        frame(&mut bytes, RST_STREAM, 0x0102_0305, &[0, 0, 0, 8]);
        assert_eq!(bytes, [0, 0, 4, 3, 0, 1, 2, 3, 5, 0, 0, 0, 8]);
    }
}
