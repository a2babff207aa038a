//! grpc-go's interoperability server: something that speaks gRPC, to be sold.

use std::{
    io::{self, BufRead, BufReader},
    process::{Child, Command, Stdio},
    thread,
};

use crate::{Authority, peers};

/// The running server. It ends with its owner.
pub struct InteropServer {
    process: Child,
    upstream: String,
}

impl InteropServer {
    /// Starts it in clear text or, with an authority, with TLS.
    pub fn start(authority: Option<&Authority>) -> Self {
        let mut command = Command::new(peers("grpc").join("server"));
        // It tells its port in its log, and only when asked for so much.
        command.args(["-port", "0"]).env("GRPC_GO_LOG_SEVERITY_LEVEL", "info");
        if let Some(authority) = authority {
            command.arg("-use_tls");
            command.arg("-tls_cert_file").arg(authority.cert()).arg("-tls_key_file").arg(authority.key());
        }
        let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the server ended: {:?}", process.try_wait());
        }
        // Nobody reads the rest, but it must go somewhere.
        thread::spawn(move || io::copy(&mut log, &mut io::sink()));
        let port = line.trim().rsplit(':').next().unwrap();
        let upstream = match authority {
            None => format!("h2c://127.0.0.1:{port}"),
            Some(authority) => {
                let ca = authority.ca();
                format!("{{ url: \"https://127.0.0.1:{port}\", tls: {{ ca: {} }} }}", ca.display())
            }
        };
        Self { process, upstream }
    }

    /// How the gateway reaches it, as it is written in the configuration.
    pub fn upstream(&self) -> &str {
        &self.upstream
    }
}

impl Drop for InteropServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
