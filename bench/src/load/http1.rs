//! One connection of HTTP/1.1, blocking, as simple as it can be: heads are given as bytes, bodies are counted.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{net::TcpSocket, runtime};

/// Nothing on loopback takes this long that is not stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection that is kept alive.
pub(crate) struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
    /// How much of `buffer` has been read and belongs to the next answer.
    filled: usize,
}

/// The head of an answer.
#[derive(Debug, PartialEq)]
struct Head {
    /// Its length with the empty line.
    length: usize,
    status: u16,
    body: u64,
}

/// The head of a request for `path`, with `headers`.
pub(crate) fn head(method: &str, path: &str, headers: &[(&str, String)]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: bench\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// Connects to `to`, from `from` if given: all of 127.0.0.0/8 is this machine.
pub(crate) fn connect(from: Option<IpAddr>, to: SocketAddr) -> Result<TcpStream> {
    let socket = match from {
        None => TcpStream::connect_timeout(&to, PATIENCE)?,
        Some(from) => {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let socket = runtime.block_on(async {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::new(from, 0))?;
                tokio::time::timeout(PATIENCE, socket.connect(to)).await?
            })?;
            let socket = socket.into_std()?;
            socket.set_nonblocking(false)?;
            socket
        }
    };
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

impl Connection {
    /// Speaks on `socket`, reading up to `buffer` bytes at a time.
    pub(crate) fn new(socket: TcpStream, buffer: usize) -> Self {
        Self { socket, buffer: vec![0; buffer], filled: 0 }
    }

    /// Sends `head` and reads the whole answer; its status and the length of its body.
    pub(crate) fn exchange(&mut self, head: &[u8]) -> Result<(u16, u64)> {
        self.send(head)?;
        self.receive()
    }

    /// Sends bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.socket.write_all(bytes)?)
    }

    /// Reads an answer to its end.
    pub(crate) fn receive(&mut self) -> Result<(u16, u64)> {
        let head = loop {
            if let Some(head) = read_head(&self.buffer[..self.filled])? {
                break head;
            }
            if self.filled == self.buffer.len() {
                bail!("the head of the answer is larger than {} bytes", self.filled);
            }
            self.fill()?;
        };
        let mut left = head.body;
        let mut start = head.length;
        loop {
            let there = (self.filled - start) as u64;
            if there >= left {
                // What follows, if anything does, is the beginning of another answer.
                let end = start + usize::try_from(left)?;
                self.buffer.copy_within(end..self.filled, 0);
                self.filled -= end;
                return Ok((head.status, head.body));
            }
            left -= there;
            (start, self.filled) = (0, 0);
            self.fill()?;
        }
    }

    /// Reads an answer that fits into the buffer, as far as it is there: for a socket that doesn't block.
    pub(crate) fn try_receive(&mut self) -> Result<Option<(u16, u64)>> {
        match self.socket.read(&mut self.buffer[self.filled..]) {
            Ok(0) => bail!("the connection ended before the answer did, or the answer is too large"),
            Ok(read) => self.filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let Some(head) = read_head(&self.buffer[..self.filled])? else { return Ok(None) };
        let end = head.length + usize::try_from(head.body)?;
        if self.filled < end {
            return Ok(None);
        }
        self.buffer.copy_within(end..self.filled, 0);
        self.filled -= end;
        Ok(Some((head.status, head.body)))
    }

    /// Reads exactly `length` bytes that are not HTTP, and drops them.
    pub(crate) fn skip(&mut self, length: usize) -> Result<()> {
        while self.filled < length {
            self.fill()?;
        }
        self.buffer.copy_within(length..self.filled, 0);
        self.filled -= length;
        Ok(())
    }

    fn fill(&mut self) -> Result<()> {
        match self.socket.read(&mut self.buffer[self.filled..])? {
            0 => bail!("the connection ended before the answer did"),
            read => self.filled += read,
        }
        Ok(())
    }
}

/// Reads the head of an answer, if all of it is there. Only answers whose length is known are understood.
fn read_head(bytes: &[u8]) -> Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..end])?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status: u16 = status.with_context(|| format!("no status in `{text}`"))?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    let body = match length {
        Some(length) => length.parse()?,
        None if matches!(status, 101 | 204 | 304) => 0,
        None => bail!("an answer without a length: `{text}`"),
    };
    Ok(Some(Head { length: end + 4, status, body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_when_all_of_it_is_there() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n0123";
        assert_eq!(read_head(&whole[..30]).unwrap(), None);
        assert_eq!(read_head(whole).unwrap(), Some(Head { length: 39, status: 200, body: 32 }));
    }

    #[test]
    fn an_answer_of_unknown_length_is_refused() {
        assert!(read_head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        let switched = read_head(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap().unwrap();
        assert_eq!((switched.status, switched.body), (101, 0));
    }

    #[test]
    fn a_request_is_a_line_a_host_and_what_was_given() {
        let head = head("GET", "/a", &[("x-b", "c".to_owned())]);
        assert_eq!(head, b"GET /a HTTP/1.1\r\nhost: bench\r\nx-b: c\r\n\r\n");
    }
}
