//! HTTP/2 by hand: frames that no library would send.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// One frame after the other of a request on stream 1.
#[derive(Debug)]
pub enum Piece {
    Headers(Vec<(Vec<u8>, Vec<u8>)>),
    Data(Vec<u8>),
}

/// Sends a request and says with which status it was answered, or nothing if it was broken off.
pub async fn ask(addr: SocketAddr, pieces: &[Piece]) -> Option<u16> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    for (at, piece) in pieces.iter().enumerate() {
        let last = if at + 1 == pieces.len() { END_STREAM } else { 0 };
        match piece {
            Piece::Headers(fields) => frame(&mut bytes, HEADERS, END_HEADERS | last, 1, &block(fields)),
            Piece::Data(data) => frame(&mut bytes, DATA, last, 1, data),
        }
    }
    // The other side may hang up before it has read everything.
    let _ = stream.write_all(&bytes).await;
    let mut status = None;
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return status;
        }
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        if stream.read_exact(&mut payload).await.is_err() {
            return status;
        }
        let (kind, flags) = (head[3], head[4]);
        match kind {
            HEADERS if status.is_none() => status = Some(read_status(&payload)),
            RST_STREAM | GOAWAY => return status,
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return status;
        }
    }
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
    bytes.extend_from_slice(payload);
}

/// Fields as literals, without compression or table (RFC 7541 6.2.2).
fn block(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "a longer one would need a longer length");
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text);
        }
    }
    block
}

/// The status, which is the first field of every answer.
fn read_status(block: &[u8]) -> u16 {
    // The size of the table may be said first.
    let block = &block[block.iter().position(|byte| byte & 0xe0 != 0x20).unwrap()..];
    if block[0] & 0x80 != 0 {
        return [200, 204, 206, 304, 400, 404, 500][usize::from(block[0] & 0x7f) - 8];
    }
    assert_eq!(block[0] & 0x0f, 8, "the name is `:status`");
    let (is_compressed, length) = (block[1] & 0x80 != 0, usize::from(block[1] & 0x7f));
    let text = &block[2..2 + length];
    if !is_compressed {
        return std::str::from_utf8(text).unwrap().parse().unwrap();
    }
    // The code of digits (RFC 7541, appendix B): five bits up to 2, six from 3 on.
    let bits: String = text.iter().map(|byte| format!("{byte:08b}")).collect();
    let (mut at, mut status) = (0, 0);
    for _ in 0..3 {
        let five = u16::from_str_radix(&bits[at..at + 5], 2).unwrap();
        let digit = if five <= 2 {
            at += 5;
            five
        } else {
            at += 6;
            u16::from_str_radix(&bits[at - 6..at], 2).unwrap() - 0b1_1001 + 3
        };
        status = status * 10 + digit;
    }
    status
}
