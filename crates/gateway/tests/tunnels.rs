//! The life of a connection that goes on in another protocol: what is said when, who ends it, and when it is cut.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::time::Duration;

use farebox_gateway::{GatewayError, Timeouts};
use support::{
    Rig, config, free,
    websocket::{Io, Over, Puppet, handshake, open, read_head},
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const BOTH: [Over; 2] = [Over::Http1, Over::Http2];
/// Short, where something is to run out.
const SHORT: Duration = Duration::from_millis(200);

/// A tunnel to an upstream over HTTP/1.1: the client's end, and the upstream's.
async fn tunnel(over: Over, rig: &Rig, upstream: &Puppet) -> (Box<dyn Io>, TcpStream) {
    let (opened, (server, _)) = tokio::join!(open(over, rig.addr, "/", &[]), upstream.agree(b""));
    (opened.tunnel(), server)
}

async fn rig(upstream: &Puppet) -> Rig {
    Rig::new(vec![free("api", &upstream.url())]).await
}

/// The next bytes, which are as many as these, are these.
async fn expect(socket: &mut (impl Io + ?Sized), bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    within(socket.read_exact(&mut got)).await.unwrap();
    assert!(got == bytes, "{}", String::from_utf8_lossy(&got));
}

/// What is left up to the end, however it ends.
async fn rest(socket: &mut (impl Io + ?Sized)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = within(socket.read_to_end(&mut bytes)).await;
    bytes
}

#[tokio::test]
async fn what_is_said_in_the_same_breath_as_the_handshake_is_not_lost() {
    let upstream = Puppet::start().await;
    let rig = rig(&upstream).await;
    let mut client = TcpStream::connect(rig.addr).await.unwrap();
    // A client should wait for consent. What one says that doesn't is the tunnel's, or nobody's.
    client.write_all(format!("{}early", handshake("/", "")).as_bytes()).await.unwrap();
    let (mut server, _) = upstream.agree(b"welcome").await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101 "));
    expect(&mut client, b"welcome").await;
    expect(&mut server, b"early").await;

    let (opened, (mut server, _)) =
        tokio::join!(open(Over::Http2, rig.addr, "/", &[]), upstream.agree(b"welcome"));
    let mut client = opened.tunnel();
    expect(&mut *client, b"welcome").await;
    client.write_all(b"thanks").await.unwrap();
    expect(&mut server, b"thanks").await;
}

#[tokio::test]
async fn a_side_that_has_said_its_last_may_still_listen() {
    let upstream = Puppet::start().await;
    let rig = rig(&upstream).await;
    for over in BOTH {
        let (mut client, mut server) = tunnel(over, &rig, &upstream).await;
        client.write_all(b"that is all").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut server).await, b"that is all");
        server.write_all(b"not for me").await.unwrap();
        drop(server);
        assert_eq!(rest(&mut *client).await, b"not for me");

        let (mut client, mut server) = tunnel(over, &rig, &upstream).await;
        server.write_all(b"that is all").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(rest(&mut *client).await, b"that is all");
        client.write_all(b"not for me").await.unwrap();
        expect(&mut server, b"not for me").await;
        drop(client);
        assert_eq!(rest(&mut server).await, b"");
    }
    rig.metric("farebox_tunnels 0").await;
}

#[tokio::test]
async fn who_vanishes_is_missed_on_the_other_side() {
    let upstream = Puppet::start().await;
    let rig = rig(&upstream).await;
    for over in BOTH {
        let (client, mut server) = tunnel(over, &rig, &upstream).await;
        rig.metric("farebox_tunnels 1").await;
        drop(client);
        assert_eq!(rest(&mut server).await, b"");
        drop(server);
        rig.metric("farebox_tunnels 0").await;

        let (mut client, server) = tunnel(over, &rig, &upstream).await;
        // Closed with something unread, which breaks the connection off.
        client.write_all(b"unread").await.unwrap();
        within(server.readable()).await.unwrap();
        drop(server);
        assert_eq!(rest(&mut *client).await, b"");
        drop(client);
        rig.metric("farebox_tunnels 0").await;
    }
}

#[tokio::test]
async fn silence_in_both_directions_is_limited_and_talk_in_one_is_not() {
    let upstream = Puppet::start().await;
    let mut route = free("api", &upstream.url());
    route.upstream.idle_timeout = Some(SHORT);
    let rig = Rig::new(vec![route]).await;
    for over in BOTH {
        let (mut client, mut server) = tunnel(over, &rig, &upstream).await;
        let began = tokio::time::Instant::now();
        while began.elapsed() < 2 * SHORT {
            server.write_all(b".").await.unwrap();
            expect(&mut *client, b".").await;
        }
        // And now nobody does.
        assert_eq!(rest(&mut *client).await, b"");
        assert_eq!(rest(&mut server).await, b"");
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_let_go() {
    let upstream = Puppet::start().await;
    let mut config = config(vec![free("api", &upstream.url())]);
    config.timeouts = Timeouts { write_stall: SHORT, ..config.timeouts };
    let rig = Rig::with(config).await;
    for over in BOTH {
        let (client, mut server) = tunnel(over, &rig, &upstream).await;
        let flood = vec![0; 1 << 20];
        let lost = within(async { while server.write_all(&flood).await.is_ok() {} });
        lost.await;
        rig.metric("farebox_tunnels 0").await;
        drop(client);
    }
}

#[tokio::test]
async fn a_stop_leaves_tunnels_their_time_and_then_cuts_and_counts_them() {
    for over in BOTH {
        let upstream = Puppet::start().await;
        let mut config = config(vec![free("api", &upstream.url())]);
        config.timeouts = Timeouts { drain: 3 * SHORT, ..config.timeouts };
        let rig = Rig::with(config).await;
        let (mut client, mut server) = tunnel(over, &rig, &upstream).await;
        rig.stop.cancel();
        // Refused from here on, but what is open goes on.
        within(async {
            while TcpStream::connect(rig.addr).await.is_ok() {
                tokio::task::yield_now().await
            }
        })
        .await;
        client.write_all(b"still here?").await.unwrap();
        expect(&mut server, b"still here?").await;
        let stopped = rig.stop().await;
        assert!(matches!(stopped, Err(GatewayError::Cut { connections: 1, .. })), "{over:?}: {stopped:?}");
        assert_eq!(rest(&mut *client).await, b"");
        assert_eq!(rest(&mut server).await, b"");
    }
}

#[tokio::test]
async fn a_stop_waits_for_a_tunnel_that_ends_in_time() {
    for over in BOTH {
        let upstream = Puppet::start().await;
        let rig = rig(&upstream).await;
        let (mut client, server) = tunnel(over, &rig, &upstream).await;
        rig.stop.cancel();
        drop(server);
        assert_eq!(rest(&mut *client).await, b"");
        drop(client);
        rig.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_tunnel_is_one_connection_and_one_request_on_the_books() {
    let upstream = Puppet::start().await;
    let mut config = config(vec![free("api", &upstream.url())]);
    config.timeouts = Timeouts { keep_alive: SHORT, ..config.timeouts };
    let rig = Rig::with(config).await;
    let (mut client, mut server) = tunnel(Over::Http1, &rig, &upstream).await;
    // Much longer than a connection is kept that does nothing in HTTP.
    let began = tokio::time::Instant::now();
    while began.elapsed() < 3 * SHORT {
        client.write_all(b".").await.unwrap();
        expect(&mut server, b".").await;
    }
    rig.metric("farebox_tunnels 1").await;
    drop(client);
    drop(server);
    rig.metric("farebox_requests_total{service=\"api\",code=\"free\",class=\"1xx\"} 1").await;
    rig.metric("farebox_tunnels 0").await;
}
