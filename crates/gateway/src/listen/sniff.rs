//! Telling HTTP/2 from HTTP/1.1 in clear text, by the 24 bytes that every HTTP/2 client says first.
//!
//! hyper-util has a connection type that does this itself; it costs half as much memory again per idle connection.

use std::io;

use bytes::Bytes;
use tokio::net::TcpStream;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client speaks, with what it has said so far.
pub(super) enum Spoken {
    Http1(Bytes),
    Http2(Bytes),
    /// Nothing; it has gone again.
    Nothing,
}

/// Reads until it is clear what a client speaks. Until then no buffer is taken up for it.
pub(super) async fn sniff(socket: &TcpStream) -> io::Result<Spoken> {
    let mut said = [0; PREFACE.len()];
    let mut length = 0;
    loop {
        socket.readable().await?;
        match socket.try_read(&mut said[length..]) {
            Ok(0) if length == 0 => return Ok(Spoken::Nothing),
            // What is there may be a whole request of HTTP/1.0 from a client that has closed its side: hyper's matter.
            Ok(0) => return Ok(Spoken::Http1(Bytes::copy_from_slice(&said[..length]))),
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        if !PREFACE.starts_with(&said[..length]) {
            return Ok(Spoken::Http1(Bytes::copy_from_slice(&said[..length])));
        }
        if length == PREFACE.len() {
            return Ok(Spoken::Http2(Bytes::from_static(PREFACE)));
        }
    }
}
