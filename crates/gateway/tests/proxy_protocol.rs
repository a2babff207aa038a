//! The PROXY protocol, on real sockets: who may speak it, what it changes, and what becomes of nonsense.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{net::SocketAddr, time::Duration};

use farebox_gateway::{Certificate, ClientLists, Gateway, GatewayConfig, Listen, Tls};
use support::{Rig, free, raw, upstream::Upstream, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const PROXY: &str = "127.0.0.1/32";

/// A listener for the PROXY protocol, with these proxies to be believed.
fn config(upstream: &Upstream, trusted: &[&str]) -> GatewayConfig {
    let listen = Listen { proxy_protocol: true, ..Listen::new("127.0.0.1:0".parse().unwrap()) };
    GatewayConfig {
        listen: vec![listen],
        trusted_proxies: trusted.iter().map(|net| net.parse().unwrap()).collect(),
        ..support::config(vec![free("api", &upstream.url())])
    }
}

fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, addresses].concat()
}

/// What the upstream is told, for a connection that begins like this.
async fn told(addr: SocketAddr, header: &[u8], request: &str) -> String {
    raw(addr, &[header, request.as_bytes()].concat(), "").await
}

#[tokio::test]
async fn the_address_in_the_header_is_the_clients() {
    let upstream = Upstream::echo().await;
    let rig = Rig::with(config(&upstream, &[PROXY])).await;
    let mut v6 = [0_u8; 36];
    v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    v6[15] = 1;
    for (header, client) in [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 5 443\r\n".to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::1 ::1 5 443\r\n".to_vec(), "2001:db8::1"),
        (v2(0x21, 0x11, &[192, 0, 2, 8, 1, 1, 1, 1, 0, 5, 0, 6]), "192.0.2.8"),
        (v2(0x21, 0x21, &v6), "2001:db8::1"),
        (v2(0x21, 0x11, &[192, 0, 2, 9, 1, 1, 1, 1, 0, 5, 0, 6, 4, 0, 2, 1, 1]), "192.0.2.9"),
        // It speaks for itself, or doesn't know.
        (v2(0x20, 0x00, b""), "127.0.0.1"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
    ] {
        let told = told(rig.addr, &header, GET).await;
        assert!(told.contains(&format!("x-forwarded-for: {client}\"")), "{client}: {told}");
    }
}

#[tokio::test]
async fn a_header_that_comes_in_pieces_is_read_and_no_byte_too_many() {
    let upstream = Upstream::echo().await;
    let rig = Rig::with(config(&upstream, &[PROXY])).await;
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
    for cut in [1, 6, header.len() - 2, header.len() - 1, header.len()] {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(&header[..cut]).await.unwrap();
        // It has had time to arrive when something else has made the round.
        told(rig.addr, header, GET).await;
        stream.write_all(&[&header[cut..], GET.as_bytes()].concat()).await.unwrap();
        let mut told = String::new();
        within(stream.read_to_string(&mut told)).await.unwrap();
        assert!(told.contains("x-forwarded-for: 192.0.2.7\""), "{cut}: {told}");
    }
}

#[tokio::test]
async fn x_forwarded_for_is_read_on_only_if_the_announced_client_is_trusted_too() {
    let upstream = Upstream::echo().await;
    let rig = Rig::with(config(&upstream, &[PROXY, "10.0.0.0/8"])).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.5\r\n\r\n";
    let of_a_proxy = told(rig.addr, b"PROXY TCP4 10.1.2.3 198.51.100.1 5 443\r\n", request).await;
    assert!(of_a_proxy.contains("x-forwarded-for: 203.0.113.5, 10.1.2.3\""), "{of_a_proxy}");
    let of_a_stranger = told(rig.addr, b"PROXY TCP4 192.0.2.7 198.51.100.1 5 443\r\n", request).await;
    assert!(of_a_stranger.contains("x-forwarded-for: 192.0.2.7\""), "{of_a_stranger}");
    // A proxy that doesn't say whose connection it is has written no headers either: these are the client's own.
    for unknown in [b"PROXY UNKNOWN\r\n".to_vec(), v2(0x20, 0x00, b"")] {
        let of_nobody = told(rig.addr, &unknown, request).await;
        assert!(of_nobody.contains("x-forwarded-for: 127.0.0.1\""), "{of_nobody}");
    }
}

#[tokio::test]
async fn it_stands_before_tls() {
    let upstream = Upstream::echo().await;
    let mut config = config(&upstream, &[PROXY]);
    config.listen[0].tls = Some(Tls::new(Certificate::SelfSigned { names: Vec::new() }));
    let rig = Rig::with(config).await;
    let mut socket = TcpStream::connect(rig.addr).await.unwrap();
    socket.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 5 443\r\n").await.unwrap();
    let mut tls = within(support::tls::connect(socket, "localhost")).await.unwrap();
    tls.write_all(GET.as_bytes()).await.unwrap();
    let mut told = String::new();
    let _ = within(tls.read_to_string(&mut told)).await;
    assert!(
        told.contains("x-forwarded-for: 192.0.2.7\"") && told.contains("x-forwarded-proto: https"),
        "{told}"
    );
    // TLS at once isn't what was asked for.
    let socket = TcpStream::connect(rig.addr).await.unwrap();
    assert!(within(support::tls::connect(socket, "localhost")).await.is_err());
}

#[tokio::test]
async fn nobody_else_gets_in_and_nothing_else_is_read() {
    let upstream = Upstream::echo().await;
    let rig = Rig::with(config(&upstream, &["10.0.0.0/8"])).await;
    let said = told(rig.addr, b"PROXY TCP4 192.0.2.7 198.51.100.1 5 443\r\n", GET).await;
    assert_eq!(said, "", "this machine is none of the proxies");
    rig.metric("farebox_connections_refused_total{reason=\"proxy_header\"} 1").await;

    let rig = Rig::with(config(&upstream, &[PROXY])).await;
    let endless = format!("PROXY UNKNOWN {}", "x".repeat(1000));
    let nonsense: [&[u8]; 6] = [
        GET.as_bytes(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 5\r\n",
        endless.as_bytes(),
        &v2(0x21, 0x11, &[0; 4]),
        &v2(0x21, 0x11, &[0; 600]),
    ];
    for (count, header) in nonsense.into_iter().enumerate() {
        assert_eq!(told(rig.addr, header, "").await, "");
        let refused = format!("farebox_connections_refused_total{{reason=\"proxy_header\"}} {}", count + 1);
        rig.metric(&refused).await;
    }
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn a_header_that_never_ends_is_not_waited_for() {
    let upstream = Upstream::echo().await;
    let mut config = config(&upstream, &[PROXY]);
    config.timeouts.headers = Duration::from_millis(50);
    let rig = Rig::with(config).await;
    for said in ["", "P", "PROXY TCP4 192.0.2.7 "] {
        assert_eq!(raw(rig.addr, said.as_bytes(), "").await, "", "{said}");
    }
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn the_limit_and_the_lists_are_about_the_announced_client() {
    let upstream = Upstream::echo().await;
    let mut config = config(&upstream, &[PROXY]);
    config.limits.connections_per_client_max = 1;
    config.clients = ClientLists { allow: vec![], block: vec!["192.0.2.66/32".parse().unwrap()] };
    let rig = Rig::with(config).await;
    let announce = |client: &str| format!("PROXY TCP4 {client} 198.51.100.1 5 443\r\n").into_bytes();
    let open = async |client: &str| {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        stream.write_all(&[&announce(client)[..], request].concat()).await.unwrap();
        assert!(within(stream.read(&mut [0; 16])).await.unwrap() > 0);
        stream
    };
    let first = open("192.0.2.1").await;
    let _other = open("192.0.2.2").await;
    assert_eq!(told(rig.addr, &announce("192.0.2.1"), GET).await, "");
    rig.metric("farebox_connections_refused_total{reason=\"too_many\"} 1").await;
    assert_eq!(told(rig.addr, &announce("192.0.2.66"), GET).await, "");
    rig.metric("farebox_connections_refused_total{reason=\"blocked\"} 1").await;
    drop(first);
    while told(rig.addr, &announce("192.0.2.1"), GET).await.is_empty() {}
}

#[tokio::test]
async fn a_listener_for_it_without_any_proxy_to_believe_is_refused() {
    let upstream = Upstream::echo().await;
    let rig = Rig::with(support::config(vec![free("api", &upstream.url())])).await;
    let config = config(&upstream, &[]);
    let checked = Gateway::check_listen(&config.listen, &config.trusted_proxies).unwrap_err().to_string();
    let Err(bound) = Gateway::bind(config, rig.paywall.clone()) else { panic!("bound") };
    assert_eq!(checked, bound.to_string());
    assert!(checked.contains("PROXY protocol") && checked.contains("127.0.0.1:0"), "{checked}");
}
