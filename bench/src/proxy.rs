//! A paid request through farebox beside the same request through nginx as a plain reverse proxy of the same upstream.
//!
//! 64 keep-alive connections, HTTP/1.1, logs off, two workers each. The figure that counts is the proxy's CPU time per
//! request: the load generator and the upstream share the cores, so the rate says more about the machine. The gateway's
//! Lightning node is unreachable on purpose: paid access needs none.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, process::Command};

use anyhow::Result;
use farebox_protocol::{
    Credential, Identifier, Macaroon, MintSecret, Msat, Network, Offer, Preimage, Sale, Scheme, Terms,
    TokenId,
};

use crate::{
    Setting,
    load::{self, Expect, Measured},
    process::{Program, free_address},
    table::Row,
};

/// Rounds of taking turns; the median of each counts.
const ROUNDS: usize = 3;

/// Measures both, taking turns.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let upstream_address = free_address()?;
    let _upstream = nginx(
        &dir.path().join("upstream"),
        upstream_address,
        "return 200 '0123456789abcdef0123456789abcdef';",
        "",
    )?;

    let nginx_address = free_address()?;
    let pool = format!("upstream app {{ server {upstream_address}; keepalive 64; }}");
    let pass = "proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection '';";
    let nginx = nginx(&dir.path().join("proxy"), nginx_address, pass, &pool)?;

    let secret = [7; 32];
    let gateway_address = free_address()?;
    let gateway =
        gateway(&setting.farebox, &dir.path().join("farebox"), gateway_address, upstream_address, &secret)?;
    let authorization = credential(&secret)?;
    let paid = [("Authorization", authorization.as_str())];

    let mut plain = Vec::new();
    let mut passed = Vec::new();
    // The first round warms up connections and caches and isn't counted.
    for round in 0..=ROUNDS {
        let nginx_run = load::run(&nginx, nginx_address, "/", &[], setting.time, Expect::Success)?;
        let gateway_run = load::run(&gateway, gateway_address, "/", &paid, setting.time, Expect::Success)?;
        if round > 0 {
            plain.push(nginx_run);
            passed.push(gateway_run);
        }
    }
    let plain = median(plain);
    let passed = median(passed);
    Ok(vec![
        row("nginx, plain proxy: CPU", plain.cpu_micros, "us/request", 1.0),
        row(
            "farebox, paid request: CPU",
            passed.cpu_micros,
            "us/request",
            passed.cpu_micros / plain.cpu_micros,
        ),
        row("nginx, plain proxy: rate", plain.rate, "requests/s", 1.0),
        row("farebox, paid request: rate", passed.rate, "requests/s", passed.rate / plain.rate),
    ])
}

fn row(subject: &str, value: f64, unit: &'static str, ratio: f64) -> Row {
    Row { bench: "proxy", subject: subject.to_owned(), value, unit, ratio: Some(ratio) }
}

fn median(mut runs: Vec<Measured>) -> Measured {
    runs.sort_by(|a, b| a.cpu_micros.total_cmp(&b.cpu_micros));
    runs.swap_remove(runs.len() / 2)
}

fn nginx(dir: &Path, address: SocketAddr, location: &str, http: &str) -> Result<Program> {
    fs::create_dir_all(dir)?;
    let mut conf = String::new();
    write!(
        conf,
        "daemon off; worker_processes 2; pid {dir}/pid; error_log {dir}/error.log;
         events {{ worker_connections 4096; }}
         http {{
           access_log off; keepalive_requests 100000000; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
           fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
           {http}
           server {{ listen {address}; location / {{ {location} }} }}
         }}",
        dir = dir.display(),
    )?;
    let file = dir.join("nginx.conf");
    fs::write(&file, conf)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir).arg("-e").arg(dir.join("error.log")).arg("-c").arg(&file);
    Program::start(command, address)
}

fn gateway(
    farebox: &Path,
    dir: &Path,
    listen: SocketAddr,
    upstream: SocketAddr,
    secret: &[u8; 32],
) -> Result<Program> {
    fs::create_dir_all(dir)?;
    private(&dir.join("mint-secret"), &format!("{}\n", hex::encode(secret)))?;
    let nowhere = free_address()?;
    let file = dir.join("farebox.yaml");
    fs::write(
        &file,
        format!(
            "network: regtest
listen: [\"{listen}\"]
limits: {{ workers: 2 }}
ops: \"off\"
state-dir: {dir}
mint-secrets: [{{ from: {{ file: {dir}/mint-secret }} }}]
lightning:
  embedded:
    dir: {dir}/node
    chain: {{ esplora: \"http://{nowhere}\" }}
services:
  - name: bench
    upstream: http://{upstream}
    price: 10sat
",
            dir = dir.display()
        ),
    )?;
    let mut command = Command::new(farebox);
    command.arg("serve").arg("--config").arg(&file).env("FAREBOX_LOG", "error");
    Program::start(command, listen)
}

/// A credential as if bought: the benchmark knows the mint secret, so it needs no payment.
fn credential(secret: &[u8; 32]) -> Result<String> {
    let preimage = Preimage::from_bytes([3; 32]);
    let identifier =
        Identifier { payment_hash: preimage.payment_hash(), token_id: TokenId::from_bytes([9; 32]) };
    let sale = Sale {
        service: "bench".parse()?,
        tier: 0,
        terms: Terms { offer: Offer::Forever, price: Msat::new(10_000) },
        valid_until: None,
    };
    let root = MintSecret::from_bytes(*secret).root_key(Network::Regtest, &identifier);
    // A third caveat, as a careful buyer would add it.
    let token = Macaroon::mint(&root, &identifier, &sale.caveats()?).attenuate("farebox_method=GET")?;
    Ok(Credential { tokens: vec![token], preimage }.header_value(Scheme::L402).to_string())
}

/// Writes a file that only its owner can read.
fn private(path: &Path, text: &str) -> Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}
