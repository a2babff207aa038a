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

use super::{Door, refuse};

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
    if !is_ours(door, host) {
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

fn is_ours(door: &Door, authority: &str) -> bool {
    // The port is no secret and proxies change it: the name alone decides.
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    match bare.parse::<IpAddr>() {
        Ok(address) if address.is_loopback() || address == door.config.listen.ip() => true,
        _ => {
            bare.eq_ignore_ascii_case("localhost")
                || door
                    .config
                    .hosts
                    .iter()
                    .any(|host| host.eq_ignore_ascii_case(bare) || host.eq_ignore_ascii_case(authority))
        }
    }
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
