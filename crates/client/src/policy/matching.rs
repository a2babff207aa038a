//! What a rule is for: origin, host, path, method, label, scheme.
//!
//! Hosts and methods are compared without regard to case, paths byte by byte. A path that servers read in more than one way
//! (`//`, an encoded slash, an encoded dot) is *ambiguous*: a rule that forbids matches it, one that permits doesn't, so that
//! no spelling slips through between the two.

use std::{borrow::Cow, fmt, str::FromStr};

use farebox_protocol::Scheme;

use super::Asked;
use crate::Origin;

/// What a rule is for. What is left out matches everything; of a list, one must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// These sellers: scheme, host and port.
    pub origins: Vec<Origin>,
    /// These hosts, at any port.
    pub hosts: Vec<HostPattern>,
    /// These paths.
    pub paths: Vec<PathPattern>,
    /// These methods.
    pub methods: Vec<String>,
    /// Requests made on behalf of these.
    pub labels: Vec<String>,
    /// These ways of asking for money.
    pub schemes: Vec<Scheme>,
}

/// `api.example.com`, or `*.example.com` for everything below it (and not itself).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    host: String,
    below: bool,
}

/// `/v1/weather`, or `/v1/*` for everything below `/v1/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    path: String,
    below: bool,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// Not a host.
    #[error(
        "`{0}` is not a host; write `api.example.com`, or `*.example.com` for all below it, without scheme or port"
    )]
    Host(String),
    /// Not a path.
    #[error(
        "`{0}` is not a path; write `/v1/weather`, or `/v1/*` for all below it, as the server names it, unencoded"
    )]
    Path(String),
}

impl Match {
    /// Whether this is for what is asked. `doubt` is the answer where a path can be read in more than one way.
    pub(super) fn is_for(&self, asked: &Asked<'_>, doubt: bool) -> bool {
        fn any<T>(list: &[T], is: impl FnMut(&T) -> bool) -> bool {
            list.is_empty() || list.iter().any(is)
        }
        any(&self.origins, |origin| origin.is_same_server(asked.origin))
            && any(&self.hosts, |host| host.matches(&asked.origin.plain_host()))
            && any(&self.methods, |method| method.eq_ignore_ascii_case(asked.method))
            && any(&self.labels, |label| Some(label.as_str()) == asked.label)
            && any(&self.schemes, |scheme| *scheme == asked.scheme)
            && (self.paths.is_empty()
                || match plain(asked.path) {
                    Some(path) => self.paths.iter().any(|pattern| pattern.matches(&path)),
                    None => doubt,
                })
    }
}

/// The path with what needn't be encoded decoded; `None` when servers may disagree about what it names.
fn plain(path: &str) -> Option<Cow<'_, str>> {
    if !path.starts_with('/') || path.contains("//") || path.contains(['\\', ';']) {
        return None;
    }
    let path: Cow<'_, str> = if path.contains('%') { decode(path)?.into() } else { path.into() };
    // Dot segments that were written plainly are gone by the time an address has been read; these came encoded.
    let dotted = path.split('/').any(|segment| segment == "." || segment == "..");
    (!dotted).then_some(path)
}

fn decode(path: &str) -> Option<String> {
    let mut bytes = path.bytes();
    let mut plain = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let value = digit(bytes.next())? * 16 + digit(bytes.next())?;
        let value = u8::try_from(value).ok()?;
        // An encoded separator (of the query, too), an encoded percent sign and control characters are where readings part.
        if matches!(value, b'/' | b'\\' | b'%' | b';' | b'?' | b'#' | 0..=0x1f | 0x7f) {
            return None;
        }
        plain.push(value);
    }
    String::from_utf8(plain).ok()
}

impl HostPattern {
    fn matches(&self, host: &str) -> bool {
        if !self.below {
            return host.eq_ignore_ascii_case(&self.host);
        }
        let Some(at) = host.len().checked_sub(self.host.len()) else { return false };
        at > 1
            && host.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(&self.host))
            && host.as_bytes().get(at - 1) == Some(&b'.')
    }
}

impl FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (host, below) = match text.strip_prefix("*.") {
            Some(host) => (host, true),
            None => (text, false),
        };
        // The address of a server that has this host tells how the host is compared: lower case, IDNA, IPv6 in brackets.
        let origin: Option<Origin> = format!("https://{host}/").parse().ok();
        match origin {
            Some(origin)
                if origin.to_string() == format!("https://{}", origin.host())
                    && !host.contains(['*', '@', '/', '?', '#']) =>
            {
                Ok(Self { host: origin.plain_host().into_owned(), below })
            }
            _ => Err(PatternError::Host(text.to_owned())),
        }
    }
}

impl PathPattern {
    fn matches(&self, path: &str) -> bool {
        if self.below { path.starts_with(&self.path) } else { path == self.path }
    }
}

impl FromStr for PathPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (path, below) = match text.strip_suffix('*') {
            Some(path) if path.ends_with('/') => (path, true),
            Some(_) => return Err(PatternError::Path(text.to_owned())),
            None => (text, false),
        };
        let is_plain = !path.contains(['%', '*', '?', '#']) && plain(path).is_some();
        if is_plain {
            Ok(Self { path: path.to_owned(), below })
        } else {
            Err(PatternError::Path(text.to_owned()))
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.host)
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.path, if self.below { "*" } else { "" })
    }
}
