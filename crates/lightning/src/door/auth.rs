//! Who gets in: the right `Host`, no foreign `Origin`, and one of the two passwords.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use base64::Engine as _;
use zeroize::Zeroizing;

use super::{Door, DoorConfig, refuse};

/// What the password that was shown opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everything.
    Full,
    /// Creating invoices and reading.
    Limited,
}

/// Lets a request in, or answers it.
pub(super) async fn admit(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response {
    if let Err(what) = check_host(&door, &request) {
        return refuse(StatusCode::FORBIDDEN, what);
    }
    let Some(access) = access(&door, request.headers()) else {
        let mut response = refuse(
            StatusCode::UNAUTHORIZED,
            "Invalid authentication (use basic auth with an empty user and the door's password)",
        );
        let challenge = HeaderValue::from_static("Basic realm=\"farebox wallet\", charset=\"UTF-8\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        return response;
    };
    request.extensions_mut().insert(access);
    next.run(request).await
}

/// A page on the web can point a name of its own at this address and have its visitor's browser call it. The browser
/// then sends that name as `Host`, and the page's site as `Origin` with every form.
fn check_host(door: &Door, request: &Request) -> Result<(), String> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let from_header = hosts.next().and_then(|host| host.to_str().ok());
    if hosts.next().is_some() {
        return Err("two Host headers".to_owned());
    }
    let host = request.uri().authority().map(|authority| authority.as_str()).or(from_header);
    let host = host.ok_or("a Host header is missing")?;
    if !is_ours(&door.config, host) {
        return Err("this Host is not the door's; add it to the door's `hosts` if it should be".to_owned());
    }
    for origin in request.headers().get_all(header::ORIGIN) {
        let site = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        if site.is_none_or(|(_, site)| site != host) {
            return Err("pages of other sites are not let in".to_owned());
        }
    }
    Ok(())
}

fn is_ours(config: &DoorConfig, authority: &str) -> bool {
    // The port is no secret and proxies change it: the name alone decides.
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let listed = |host: &String| host.eq_ignore_ascii_case(bare) || host.eq_ignore_ascii_case(authority);
    if bare.eq_ignore_ascii_case("localhost") || config.hosts.iter().any(listed) {
        return true;
    }
    // Rebinding takes a name. Who listens on every address may be called by any of them.
    let listen = config.listen.ip();
    let address = bare.parse::<IpAddr>();
    address.is_ok_and(|address| address.is_loopback() || address == listen || listen.is_unspecified())
}

fn access(door: &Door, headers: &HeaderMap) -> Option<Access> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = Zeroizing::new(base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?);
    // The user may be anything: phoenixd looks at the password alone.
    let colon = decoded.iter().position(|b| *b == b':')?;
    let password = &decoded[colon + 1..];
    // Both are compared, whichever it is, so that the time tells nothing.
    let full = door.config.password.is(password);
    let limited = door.config.limited_password.as_ref().map(|limited| limited.is(password));
    if full.into() {
        Some(Access::Full)
    } else {
        limited.filter(|limited| bool::from(*limited)).map(|_| Access::Limited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phoenixd::Secret;

    #[track_caller]
    fn check(listen: &str, authority: &str, want: bool) {
        let config = DoorConfig::new(listen.parse().unwrap(), Secret::new("x"));
        assert_eq!(is_ours(&config, authority), want, "`{authority}` at {listen}");
    }

    #[test]
    fn a_door_is_called_by_loopback_names_or_its_own_address() {
        check("192.0.2.7:9740", "192.0.2.7:9740", true);
        check("192.0.2.7:9740", "localhost:9740", true);
        check("192.0.2.7:9740", "[::1]:9740", true);
        check("192.0.2.7:9740", "192.0.2.8:9740", false);
        check("192.0.2.7:9740", "evil.example:9740", false);
    }

    #[test]
    fn a_door_on_every_address_is_called_by_any_but_by_no_name() {
        check("0.0.0.0:9740", "192.0.2.8:9740", true);
        check("[::]:9740", "[2001:db8::1]:9740", true);
        check("0.0.0.0:9740", "evil.example:9740", false);
    }
}
