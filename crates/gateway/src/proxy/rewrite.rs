//! The path as the upstream knows it, and the way back in its redirects.
//!
//! What is decided on is the path that was asked for; this changes it afterwards, by whole segments, so that what was in
//! normal form stays in it and nothing that a client writes leads out of the prefix that was put in front. `Location` is
//! read back, as every upstream says there what it knows; cookies and bodies are not.

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_LOCATION, LOCATION},
    uri::PathAndQuery,
};

use super::failure::Failure;
use crate::config::{Rewrite, UpstreamConfig, UpstreamHost, UpstreamScheme};

/// How one request's path was changed, which is what its answer's `Location` is read back by.
pub(super) struct Way {
    is_stripped: bool,
    /// The host that was asked for, where the upstream may name it in a path that needs to be changed back.
    asked: Option<HeaderValue>,
}

/// The target as the upstream knows it. Without a rewrite it is left as it is, and nothing is copied.
pub(super) fn forth(
    rewrite: &Rewrite,
    target: PathAndQuery,
    asked: &HeaderValue,
) -> Result<(PathAndQuery, Way), Failure> {
    if *rewrite == Rewrite::default() {
        return Ok((target, Way { is_stripped: false, asked: None }));
    }
    let rest = rewrite.strip_prefix.as_ref().and_then(|prefix| prefix.strip(target.path()));
    let way = Way { is_stripped: rest.is_some(), asked: Some(asked.clone()) };
    let added = rewrite.add_prefix.as_ref().map_or("", |prefix| prefix.stem());
    let rest = rest.unwrap_or(target.path());
    let mut whole = [added, rest].concat();
    if whole.is_empty() {
        whole.push('/');
    }
    if let Some(query) = target.query() {
        whole.push('?');
        whole.push_str(query);
    }
    // Two normal paths make one, unless it has grown too long.
    let target =
        PathAndQuery::try_from(whole).map_err(|_| Failure::Path(farebox_paywall::PathError::TooLong))?;
    Ok((target, way))
}

/// Puts what an answer says of its own whereabouts into the client's words.
pub(super) fn back(
    way: &Way,
    rewrite: &Rewrite,
    upstream: &UpstreamConfig,
    status: StatusCode,
    headers: &mut HeaderMap,
) {
    let translate = |headers: &mut HeaderMap, name: HeaderName| {
        let said = headers.get(&name).and_then(|value| value.to_str().ok());
        let said = said.and_then(|said| way.homeward(said, rewrite, upstream));
        if let Some(value) = said.and_then(|said| HeaderValue::try_from(said).ok()) {
            headers.insert(name, value);
        }
    };
    // Other answers have none, and are most.
    if status.is_redirection() || status == StatusCode::CREATED {
        translate(headers, LOCATION);
    }
    if way.asked.is_some() {
        translate(headers, CONTENT_LOCATION);
    }
}

impl Way {
    /// A location in the client's words; none where it is so already, or is somebody else's.
    fn homeward(&self, said: &str, rewrite: &Rewrite, upstream: &UpstreamConfig) -> Option<String> {
        let (origin, rest) = split(said)?;
        let kept = if origin.is_empty() || self.is_own(origin, upstream) {
            // Relative to the origin that was asked, whatever that was on the outside.
            ""
        } else {
            self.is_asked(origin).then_some(origin)?
        };
        let (path, more) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        // What lies outside of the added prefix has no name on this side.
        let path = rewrite.add_prefix.as_ref().map_or(Some(path), |added| added.strip(path))?;
        let stripped = rewrite.strip_prefix.as_ref().filter(|_| self.is_stripped);
        let path = [stripped.map_or("", |prefix| prefix.stem()), path].concat();
        let path = if path.is_empty() { "/" } else { &path };
        // `//name` would be another host's.
        if path.starts_with("//") || path.starts_with("/\\") {
            return None;
        }
        Some([kept, path, more].concat()).filter(|home| home != said)
    }

    /// Whether it is the origin under which the upstream knows itself.
    fn is_own(&self, origin: &str, upstream: &UpstreamConfig) -> bool {
        let origin = plain(origin);
        let named = match &upstream.host {
            UpstreamHost::Named(name) => Some(name),
            UpstreamHost::Own | UpstreamHost::Asked => None,
        };
        upstream.urls.iter().any(|url| {
            let scheme = if url.scheme() == UpstreamScheme::Https { "https" } else { "http" };
            let mut names = [Some(url.authority()), named].into_iter().flatten();
            names.any(|name| plain(&format!("{scheme}://{name}")) == origin)
        })
    }

    fn is_asked(&self, origin: &str) -> bool {
        let asked = self.asked.as_ref().and_then(|asked| asked.to_str().ok());
        let named = origin.split_once("://").map(|(_, authority)| authority);
        asked.zip(named).is_some_and(|(asked, named)| asked.eq_ignore_ascii_case(named))
    }
}

/// Origin (empty for the one that was asked) and the rest. Nothing for a path relative to the request's own, for another
/// protocol, and for `//host`.
fn split(said: &str) -> Option<(&str, &str)> {
    if said.starts_with('/') {
        return (!said.starts_with("//")).then_some(("", said));
    }
    let (scheme, rest) = said.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let end = said.len() - rest.len() + rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    Some(said.split_at(end))
}

/// An origin in lower case without its usual port.
fn plain(origin: &str) -> String {
    let lower = origin.to_ascii_lowercase();
    let usual = if lower.starts_with("https:") { ":443" } else { ":80" };
    lower.strip_suffix(usual).map(str::to_owned).unwrap_or(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(strip: &str, add: &str) -> Rewrite {
        let prefix = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        Rewrite { strip_prefix: prefix(strip), add_prefix: prefix(add) }
    }

    #[track_caller]
    fn check_forth(strip: &str, add: &str, asked: &'static str, want: &str) {
        let host = HeaderValue::from_static("a.org");
        let (got, _) = forth(&rewrite(strip, add), PathAndQuery::from_static(asked), &host).unwrap();
        assert_eq!(got.as_str(), want, "{asked} -{strip} +{add}");
        assert_eq!(farebox_paywall::normalise(got.path()).unwrap(), got.path());
    }

    #[track_caller]
    fn check_back(strip: &str, add: &str, asked: &'static str, said: &'static str, want: &str) {
        let rewrite = rewrite(strip, add);
        let host = HeaderValue::from_static("a.org");
        let (_, way) = forth(&rewrite, PathAndQuery::from_static(asked), &host).unwrap();
        let mut headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(said))]);
        let upstream = UpstreamConfig::new("http://app:3000".parse().unwrap());
        back(&way, &rewrite, &upstream, StatusCode::FOUND, &mut headers);
        assert_eq!(headers[LOCATION], want, "{said} -{strip} +{add}");
    }

    #[test]
    fn a_prefix_is_taken_off_by_whole_segments_and_another_put_in_front() {
        check_forth("", "", "/v1/users?q=/v1", "/v1/users?q=/v1");
        check_forth("/v1", "", "/v1/users?q=/v1", "/users?q=/v1");
        check_forth("/v1", "", "/v1?x", "/?x");
        check_forth("/v1", "", "/v1/", "/");
        check_forth("/v1", "", "/v10", "/v10");
        check_forth("/v1", "", "/v1/v1", "/v1");
        check_forth("/", "", "/x", "/x");
        check_forth("", "/api", "/users", "/api/users");
        check_forth("", "/api", "/", "/api/");
        check_forth("", "/", "/x", "/x");
        check_forth("/v1", "/api/v2", "/v1/users", "/api/v2/users");
        check_forth("/v1", "/api", "/v1", "/api");
        check_forth("/v1", "/api", "/v1/", "/api/");
        // Another prefix of the same service: only what is added is.
        check_forth("/v1", "/api", "/health", "/api/health");
    }

    #[test]
    fn a_redirect_is_read_back() {
        check_back("/v1", "/api", "/v1/x", "/api/login?next=/api#f", "/v1/login?next=/api#f");
        check_back("/v1", "/api", "/v1/x", "/api", "/v1");
        check_back("/v1", "/api", "/health", "/api/login", "/login");
        check_back("/v1", "", "/v1/x", "/login", "/v1/login");
        check_back("", "/api", "/x", "http://APP:3000/api/login", "/login");
        check_back("", "/api", "/x", "https://a.org/api/login", "https://a.org/login");
        check_back("", "", "/x", "http://app:3000/login?q", "/login?q");
        check_back("", "", "/x", "http://app:3000", "/");
    }

    #[test]
    fn a_redirect_to_elsewhere_stays() {
        for said in [
            "/login",
            "login",
            "?page=2",
            "../x",
            "//app:3000/x",
            "https://app:3000/x",
            "http://app/x",
            "http://app:3000.evil/x",
            "http://app:3000@evil/x",
            "http://app:3000//evil/x",
            "http://app:3000/\\evil",
            "https://a.org/x",
            "mailto:a@b",
        ] {
            check_back("", "", "/x", said, said);
        }
        // No client could ask for it.
        check_back("", "/api", "/x", "/login", "/login");
        check_back("", "/api", "/x", "/api//evil", "/api//evil");
    }

    #[test]
    fn a_name_that_the_upstream_is_told_is_its_own() {
        let mut upstream = UpstreamConfig::new("h2c://10.0.0.9:50051".parse().unwrap());
        upstream.host = UpstreamHost::Named("inner.example".parse().unwrap());
        let none = Rewrite::default();
        let host = HeaderValue::from_static("a.org");
        let (_, way) = forth(&none, PathAndQuery::from_static("/"), &host).unwrap();
        for (said, want) in [
            ("http://inner.example/x", Some("/x")),
            ("http://10.0.0.9:50051/x", Some("/x")),
            ("https://inner.example/x", None),
        ] {
            assert_eq!(way.homeward(said, &none, &upstream).as_deref(), want, "{said}");
        }
    }
}
