//! Where buyers connect: addresses, certificates, who may come in, and what they can take up.

use std::{collections::BTreeSet, fs, slice};

use farebox_gateway::{
    Certificate, ClientCertificates, ClientLists, Gateway, HostPattern, Limits, Listen, OpsConfig, Timeouts,
    Tls, TlsFiles, TlsVersion,
};
use farebox_lightning::clock::{Clock as _, SystemClock};
use ipnet::IpNet;

use super::{
    file::{self, File, Ops},
    judge::Findings,
    value::{Addresses, Written},
};

pub(super) fn listen(file: &File, findings: &mut Findings<'_>) -> Vec<Listen> {
    if file.listen.is_empty() {
        findings.problem("listen", "nobody can connect; write at least one address, like `127.0.0.1:8402`");
    }
    let mut seen = BTreeSet::new();
    let mut listen = Vec::new();
    for (at, entry) in file.listen.iter().enumerate() {
        let key = format!("listen[{at}]");
        if entry.addr.port() != 0 && !seen.insert(entry.addr) {
            findings.problem(&key, format!("`{}` is listed twice; remove one", entry.addr));
        }
        if entry.proxy_protocol && file.trusted_proxies.is_empty() {
            let message =
                "nobody could connect: list those who speak the PROXY protocol in `trusted-proxies`";
            findings.problem(format!("{key}.proxy-protocol"), message);
        }
        let tls = entry.tls.as_ref().map(|tls| self::tls(&format!("{key}.tls"), tls, file, findings));
        let judged = Listen { addr: entry.addr, tls, proxy_protocol: entry.proxy_protocol };
        // Only certificates that are all here can be judged; what is missing has been said.
        let files = judged.tls.as_ref().filter(|tls| tls.certificates.iter().all(is_here));
        if files.is_some()
            && let Err(error) = Gateway::check_listen(
                slice::from_ref(&Listen { proxy_protocol: false, ..judged.clone() }),
                &[],
            )
        {
            findings.problem(format!("{key}.tls"), error.to_string());
        }
        // A start says so in the log, with all there is to say of a certificate.
        for untimely in Gateway::untimely_certificates(&judged, SystemClock.now()) {
            findings.check_note(format!("{key}.tls"), untimely);
        }
        listen.push(judged);
    }
    listen
}

fn tls(key: &str, tls: &file::Tls, file: &File, findings: &mut Findings<'_>) -> Tls {
    let tls = match tls {
        file::Tls::Files(tls) => tls,
        file::Tls::SelfSigned => {
            findings.note(
                key,
                "a certificate made by itself is for development: clients must be told to trust it",
            );
            return Tls::new(Certificate::SelfSigned { names: names(file) });
        }
    };
    let mut seen = BTreeSet::new();
    let mut files = |key: String, cert, key_file, findings: &mut Findings<'_>| {
        let files = TlsFiles {
            cert: findings.readable(&format!("{key}.cert"), cert),
            key: findings.readable(&format!("{key}.key"), key_file),
        };
        if !seen.insert(files.cert.clone()) {
            let message = format!("the certificate `{}` is listed twice; remove one", files.cert.display());
            findings.problem(format!("{key}.cert"), message);
        }
        Certificate::Files(files)
    };
    let mut read = Tls::new(files(key.to_owned(), &tls.cert, &tls.key, findings));
    for (at, more) in tls.more_certificates.iter().enumerate() {
        read.certificates.push(files(
            format!("{key}.more-certificates[{at}]"),
            &more.cert,
            &more.key,
            findings,
        ));
    }
    read.clients = match &tls.client_ca {
        Some(ca) => ClientCertificates::Required { ca: findings.readable(&format!("{key}.client-ca"), ca) },
        None => ClientCertificates::Off,
    };
    read.oldest = match tls.oldest {
        file::TlsVersion::V1_2 => TlsVersion::V1_2,
        file::TlsVersion::V1_3 => TlsVersion::V1_3,
    };
    read
}

/// Whether a certificate comes from files that can be read.
fn is_here(certificate: &Certificate) -> bool {
    match certificate {
        Certificate::Files(files) => fs::File::open(&files.cert).and(fs::File::open(&files.key)).is_ok(),
        Certificate::SelfSigned { .. } => false,
    }
}

/// What a certificate made by ourselves is for: this machine, and the hosts that services name.
fn names(file: &File) -> Vec<String> {
    let hosts = file.services.iter().flat_map(|service| &service.hosts).map(|host| host.0.to_string());
    let local = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut seen = BTreeSet::new();
    local
        .into_iter()
        .chain(hosts.filter(|host| host != "*"))
        .filter(|name| seen.insert(name.clone()))
        .collect()
}

/// Who may come in.
pub(super) fn clients(key: &str, clients: &file::Clients, findings: &mut Findings<'_>) -> ClientLists {
    let allow = networks(&format!("{key}.allow"), &clients.allow, findings);
    let block = networks(&format!("{key}.block"), &clients.block, findings);
    for (at, blocked) in block.iter().enumerate() {
        if blocked.prefix_len() == 0 {
            let message =
                format!("`{blocked}` is everybody; remove it, or write who may come in under `allow`");
            findings.problem(format!("{key}.block[{at}]"), message);
        }
    }
    for (at, allowed) in allow.iter().enumerate() {
        if let Some(blocked) = block.iter().find(|blocked| blocked.contains(allowed)) {
            let message = format!("`{allowed}` is kept out by `{blocked}` under `block`; remove one of them");
            findings.problem(format!("{key}.allow[{at}]"), message);
        }
    }
    ClientLists { allow, block }
}

fn networks(key: &str, entries: &[Written<Addresses>], findings: &mut Findings<'_>) -> Vec<IpNet> {
    let mut seen = BTreeSet::new();
    for (at, entry) in entries.iter().enumerate() {
        if !seen.insert(entry.0.0) {
            findings.problem(format!("{key}[{at}]"), format!("`{}` is listed twice; remove one", entry.0.0));
        }
    }
    entries.iter().map(|entry| entry.0.0).collect()
}

pub(super) fn ops(ops: Ops, listen: &[file::Listen], findings: &mut Findings<'_>) -> Option<OpsConfig> {
    let Ops::At(ops) = ops else { return None };
    let addr = ops.addr.0.0;
    let clash = listen.iter().position(|entry| addr.port() != 0 && entry.addr == addr);
    if let Some(at) = clash {
        let message =
            format!("`{addr}` is where health and metrics are (`ops`); choose another, or move those");
        findings.problem(format!("listen[{at}]"), message);
    }
    for (at, host) in ops.hosts.iter().enumerate() {
        if host.contains('*') || host.ends_with('.') || host.parse::<HostPattern>().is_err() {
            let message =
                format!("`{host}` is not a host; write a name without port, such as `ops.example.com`");
            findings.problem(format!("ops.hosts[{at}]"), message);
        }
    }
    Some(OpsConfig { addr, hosts: ops.hosts })
}

pub(super) fn trusted_proxies(proxies: &[Written<Addresses>], findings: &mut Findings<'_>) -> Vec<IpNet> {
    for (at, proxy) in proxies.iter().enumerate() {
        if proxy.0.0.prefix_len() == 0 {
            findings.problem(
                format!("trusted-proxies[{at}]"),
                format!(
                    "`{}` is everybody, who could then call themselves any client; name your proxies",
                    proxy.0.0
                ),
            );
        }
    }
    proxies.iter().map(|proxy| proxy.0.0).collect()
}

pub(super) fn limits(limits: &file::Limits, findings: &mut Findings<'_>) -> Limits {
    let counted = [
        ("limits.connections", limits.connections),
        ("limits.connections-per-client", limits.connections_per_client),
        ("limits.header-lines", limits.header_lines),
        ("limits.http2-streams", limits.http2_streams as usize),
    ];
    for (key, count) in counted {
        if count == 0 {
            findings.problem(key, "0 lets nobody in; write a number above it");
        }
    }
    // Below 8 KiB an honest token may not fit; above 1 MiB, it is memory that strangers decide about.
    let bytes = limits.header_size.0.0;
    if !(8 << 10..=1 << 20).contains(&bytes) {
        findings.problem("limits.header-size", format!("{bytes} bytes is out of bounds; write 8KiB to 1MiB"));
    }
    Limits {
        connections_max: limits.connections,
        connections_per_client_max: limits.connections_per_client,
        header_bytes_max: u32::try_from(bytes).unwrap_or(u32::MAX),
        header_count_max: limits.header_lines,
        http2_streams_max: limits.http2_streams,
        ..Limits::default()
    }
}

pub(super) fn timeouts(limits: &file::Limits, findings: &mut Findings<'_>) -> Timeouts {
    Timeouts {
        handshake: findings.positive("limits.handshake", limits.handshake),
        headers: findings.positive("limits.headers", limits.headers),
        keep_alive: findings.positive("limits.keep-alive", limits.keep_alive),
        write_stall: findings.positive("limits.write-stall", limits.write_stall),
        drain: limits.drain.0.0,
        ..Timeouts::default()
    }
}
