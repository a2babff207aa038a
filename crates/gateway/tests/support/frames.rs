//! HTTP/2, frame by frame: for clients that do what no library lets them do.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf},
    net::{TcpSocket, TcpStream},
};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// None that anybody knows.
pub const UNKNOWN: u8 = 0xfb;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// Why a connection was ended (RFC 9113 section 7).
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame that came back.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A connection that has said its preface.
pub struct Wire<S = TcpStream> {
    socket: S,
}

/// One frame, as it is sent.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A list of header fields, none of them compressed: `:method` first, then what is given.
pub fn fields(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = match method {
        "GET" => vec![0x82],
        _ => vec![0x83],
    };
    // `:scheme: http`, `:path: /`
    block.extend([0x86, 0x84]);
    field(&mut block, ":authority", "localhost");
    for (name, value) in more {
        field(&mut block, name, value);
    }
    block
}

/// Adds a field, not to be remembered.
pub fn field(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        length(block, text.len());
        block.extend(text.as_bytes());
    }
}

/// A length as HPACK has it: seven bits, and more where they don't do (RFC 7541 section 5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        return block.push(u8::try_from(length).unwrap());
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128 + 128).unwrap());
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

impl Frame {
    /// The code in a `RST_STREAM` or `GOAWAY`.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

impl Wire {
    /// Connects and says these settings.
    pub async fn connect(addr: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let socket = TcpStream::connect(addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::begin(socket, settings).await
    }

    /// The same, with so little room for what comes back that it is soon full.
    pub async fn narrow(addr: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self::begin(socket.connect(addr).await.unwrap(), &[]).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// On what is connected, says these settings.
    pub async fn begin(mut socket: S, settings: &[(u16, u32)]) -> Self {
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &settings)].concat();
        socket.write_all(&preface).await.unwrap();
        Self { socket }
    }

    /// Sends these bytes, unless the other side has closed.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).await.is_ok()
    }

    /// Asks for `/` on this stream.
    pub async fn get(&mut self, stream: u32) -> bool {
        self.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields("GET", &[]))).await
    }

    /// Opens the window of a stream, or with stream 0 of the connection.
    pub async fn open(&mut self, stream: u32, by: u32) -> bool {
        self.send(&frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())).await
    }

    /// The next frame; none if the other side has closed.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.socket.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.socket.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap()) & 0x7fff_ffff;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads until a frame is of this kind, on this stream.
    pub async fn until(&mut self, kind: u8, stream: u32) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if (frame.kind, frame.stream) == (kind, stream) {
                return Some(frame);
            }
        }
    }

    /// Reads to the end: the code of the `GOAWAY`, if there was one.
    pub async fn ended(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                code = Some(frame.code());
            }
        }
        code
    }

    /// Sends these bytes again and again until the other side has closed: the code of the `GOAWAY`, if it arrived before
    /// the end did. `None` if all of them were taken.
    pub async fn flood(self, bytes: &[u8], times: usize) -> Option<Option<u32>> {
        let (reading, mut writing) = tokio::io::split(self.socket);
        let mut reader = Reader(reading);
        let write = async {
            for _ in 0..times {
                if writing.write_all(bytes).await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::select! {
            biased;
            code = reader.ended() => Some(code),
            all = write => if all { None } else { Some(reader.ended().await) },
        }
    }
}

struct Reader<S>(ReadHalf<S>);

impl<S: AsyncRead> Reader<S> {
    async fn ended(&mut self) -> Option<u32> {
        let mut code = None;
        let mut head = [0; 9];
        while self.0.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            if self.0.read_exact(&mut payload).await.is_err() {
                break;
            }
            if head[3] == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        code
    }
}
