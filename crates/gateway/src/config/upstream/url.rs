//! One address of an upstream, as text and taken apart: `http://`, `https://` or `h2c://` with host and port, or a Unix
//! socket by its path.
//!
//! Nothing is looked up and no file is touched here: whether anybody answers is found out by connecting.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use http::uri::Authority;

/// What is spoken with an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamScheme {
    /// HTTP/1.1 in clear text.
    Http,
    /// TLS; HTTP/2 where the upstream offers it, else HTTP/1.1.
    Https,
    /// HTTP/2 in clear text, without asking first: what gRPC servers speak.
    H2c,
}

/// The address of an upstream: `http://`, `https://` or `h2c://`, a host and a port if it isn't the usual one; or
/// `unix:` (HTTP/1.1) or `h2c+unix:` (HTTP/2) and the path of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamUrl {
    scheme: UpstreamScheme,
    /// `localhost` for a socket.
    authority: Authority,
    socket: Option<PathBuf>,
}

/// A text that isn't the address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// Not `scheme://host[:port]`.
    #[error(
        "`{0}` is not an upstream address; write `http://`, `https://` or `h2c://`, then host and port, or `unix:` and \
         the path of a socket"
    )]
    Form(String),
    /// A path, query or user name, which would be ignored.
    #[error("`{0}` has more than scheme, host and port; leave the rest out, requests bring their own path")]
    Extra(String),
    /// A Unix socket that isn't named by an absolute path.
    #[error(
        "`{0}` does not name a socket by its absolute path; write it like `unix:/run/app.sock`, or \
         `h2c+unix:/run/app.sock` for HTTP/2"
    )]
    Socket(String),
    /// A Unix socket whose path no system call would take.
    #[error(
        "the socket of `{url}` has a path of {bytes} bytes, and the system takes {max}; put it into a shorter one"
    )]
    SocketTooLong {
        /// Which.
        url: String,
        /// How long its path is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
}

/// What fits into a `sockaddr_un` beside its final zero, on the strictest of the systems that have it.
const SOCKET_BYTES_MAX: usize = 103;

impl UpstreamUrl {
    /// What is spoken.
    pub const fn scheme(&self) -> UpstreamScheme {
        self.scheme
    }

    /// Host and, unless it is the usual one, port; `localhost` for a Unix socket.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The port, given or usual. That of a Unix socket means nothing: ask for [`Self::socket`] first.
    pub fn port(&self) -> u16 {
        let usual = if self.scheme == UpstreamScheme::Https { 443 } else { 80 };
        self.authority.port_u16().unwrap_or(usual)
    }

    /// The path of the Unix socket, if it is one.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Whether the two lead to the same socket, whatever is spoken there: an address given twice would get twice its
    /// share.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.socket == other.socket
            && self.port() == other.port()
            && self.authority.host().eq_ignore_ascii_case(other.authority.host())
    }

    /// The host as it is looked up and stands in certificates: without port, and without the brackets of an address.
    pub(crate) fn name(&self) -> &str {
        let host = self.authority.host();
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    fn at_socket(text: &str, scheme: UpstreamScheme, path: &str) -> Result<Self, UrlError> {
        // `unix:///run/app.sock` is how other programs write it; two ways to write one address are one too many.
        if !path.starts_with('/') || path.starts_with("//") || path.ends_with('/') || path.contains('\0') {
            return Err(UrlError::Socket(text.to_owned()));
        }
        if path.len() > SOCKET_BYTES_MAX {
            let url = text.to_owned();
            return Err(UrlError::SocketTooLong { url, bytes: path.len(), max: SOCKET_BYTES_MAX });
        }
        let authority = Authority::from_static("localhost");
        Ok(Self { scheme, authority, socket: Some(PathBuf::from(path)) })
    }
}

impl FromStr for UpstreamUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::at_socket(text, UpstreamScheme::Http, path);
        }
        if let Some(path) = text.strip_prefix("h2c+unix:") {
            return Self::at_socket(text, UpstreamScheme::H2c, path);
        }
        let form = || UrlError::Form(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(form)?;
        let scheme = match scheme {
            "http" => UpstreamScheme::Http,
            "https" => UpstreamScheme::Https,
            "h2c" => UpstreamScheme::H2c,
            _ => return Err(form()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(UrlError::Extra(text.to_owned()));
        }
        let authority: Authority = authority.parse().map_err(|_| form())?;
        // `Authority` says that there is no port where there is one that it can't read.
        let has_port_unread = authority.port().is_none() && authority.host() != authority.as_str();
        if authority.host().is_empty() || has_port_unread {
            return Err(form());
        }
        Ok(Self { scheme, authority, socket: None })
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(socket) = &self.socket {
            let scheme = if self.scheme == UpstreamScheme::H2c { "h2c+unix" } else { "unix" };
            return write!(f, "{scheme}:{}", socket.display());
        }
        let scheme = match self.scheme {
            UpstreamScheme::Http => "http",
            UpstreamScheme::Https => "https",
            UpstreamScheme::H2c => "h2c",
        };
        write!(f, "{scheme}://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_scheme_host_and_port() {
        for (text, port) in [
            ("http://127.0.0.1:9000", 9000),
            ("https://api.example.com", 443),
            ("h2c://[::1]:50051", 50051),
            ("http://app/", 80),
        ] {
            let url: UpstreamUrl = text.parse().unwrap();
            assert_eq!(url.port(), port, "{text}");
            assert_eq!(url.socket(), None, "{text}");
            assert_eq!(url.to_string(), text.trim_end_matches('/'));
        }
    }

    #[test]
    fn or_a_socket_by_its_path() {
        for (text, scheme) in [
            ("unix:/run/app.sock", UpstreamScheme::Http),
            ("h2c+unix:/run/a b/\u{fc}.sock", UpstreamScheme::H2c),
        ] {
            let url: UpstreamUrl = text.parse().unwrap();
            assert_eq!((url.scheme(), url.authority().as_str(), url.port()), (scheme, "localhost", 80));
            assert_eq!(url.socket().map(Path::new), text.split_once(':').map(|(_, path)| Path::new(path)));
            assert_eq!(url.to_string(), text);
            assert_eq!(url.to_string().parse(), Ok(url));
        }
    }

    #[test]
    fn two_spellings_of_one_place_are_found_out() {
        let same = |left: &str, right: &str| {
            left.parse::<UpstreamUrl>().unwrap().is_same_place(&right.parse().unwrap())
        };
        assert!(same("http://app", "h2c://APP:80/"));
        assert!(same("unix:/run/a", "h2c+unix:/run/a"));
        assert!(!same("http://app", "https://app"));
        assert!(!same("unix:/run/a", "unix:/run/b"));
        assert!(!same("unix:/run/a", "http://localhost"));
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for text in [
            "127.0.0.1:80",
            "ftp://host",
            "http://",
            "http://:80",
            "http://host:99999",
            "http://ho st",
            "https+unix:/run/app.sock",
        ] {
            assert!(
                matches!(text.parse::<UpstreamUrl>(), Err(UrlError::Form(said)) if said == text),
                "{text}"
            );
        }
        for text in ["http://host/v1", "http://host?x=1", "http://user:pass@host"] {
            assert!(matches!(text.parse::<UpstreamUrl>(), Err(UrlError::Extra(_))), "{text}");
        }
        for text in
            ["unix:", "unix:app.sock", "unix:///run/app.sock", "unix:/run/", "h2c+unix:./a", "unix:/a\0b"]
        {
            assert!(
                matches!(text.parse::<UpstreamUrl>(), Err(UrlError::Socket(said)) if said == text),
                "{text}"
            );
        }
        let long = format!("unix:/{}", "a".repeat(200));
        assert!(matches!(
            long.parse::<UpstreamUrl>(),
            Err(UrlError::SocketTooLong { bytes: 201, max: SOCKET_BYTES_MAX, .. })
        ));
    }
}
