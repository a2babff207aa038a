//! The services as a request sees them: one immutable snapshot, swapped whole when the configuration changes.
//!
//! Services are tried in the order in which they were configured and the first match wins, as in the reference
//! gateway: what is written above is what is asked first. The price of that simple rule is that a service can hide one
//! below it, so a route that can never be reached is an error when the snapshot is made, never a surprise later.

#[cfg(test)]
mod careless_tests;

use std::{collections::HashSet, sync::Arc};

use farebox_paywall::{PathError, PathPattern, forward::service_label};
use farebox_protocol::ServiceName;
use http::{
    HeaderName, HeaderValue, Method,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};

use crate::{
    addresses::Welcome,
    config::ServiceRoute,
    matcher::{Loose, PathPrefix, begins_folded, is_odd},
    metrics::{Metrics, ServiceMetrics},
    proxy::may_be_written,
    upstream::{Upstream, UpstreamError},
};

/// All services, in the order in which they are tried.
pub(crate) struct Services {
    routes: Vec<Arc<Route>>,
    /// The same for each worker, in the same order: see [`Route::copy`].
    copies: Vec<Vec<Arc<Route>>>,
    /// Whether an upstream that doesn't tell capitals from small letters could be asked for more than was decided on. Where
    /// what is configured differs by nothing else, the upstream does tell them apart.
    is_folded: bool,
    /// Whether a path without any capitals may be another one's in other letters.
    has_capitals: bool,
}

/// One service and all that is needed to serve it.
pub(crate) struct Route {
    pub(crate) config: ServiceRoute,
    /// Who may ask for it.
    pub(crate) welcome: Welcome,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) metrics: Arc<ServiceMetrics>,
    /// The service's name, as upstreams are told.
    pub(crate) label: HeaderValue,
    /// What upstreams are told may be written to them as it is.
    pub(crate) may_be_written: bool,
}

/// Why a list of services can't be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServicesError {
    /// Two services of one name: a token for the one would open the other.
    #[error("there are two services `{0}`; a token is sold by name, so give each its own")]
    Duplicate(ServiceName),
    /// Something in a service can never match, since another is asked first.
    #[error(
        "service `{service}` never gets {requests}: `{by}` stands above it and takes them all; move or narrow one"
    )]
    Unreachable {
        /// Which service.
        service: ServiceName,
        /// What it was meant to get.
        requests: String,
        /// The service above it.
        by: ServiceName,
    },
    /// The paywall can't sell it.
    #[error(transparent)]
    Unsellable(#[from] farebox_paywall::ServiceError),
    /// A header that farebox or the connection to the upstream owns.
    #[error(
        "service `{service}` sets the header `{header}`, which is not the operator's to set; leave it out"
    )]
    Header {
        /// Which service.
        service: ServiceName,
        /// Which header.
        header: HeaderName,
    },
    /// A path that is meant to be free would be refused.
    #[error(
        "service `{service}` has the free path `{path}`, which some servers read as another; write it without `;`, final \
         dots and needless encoding"
    )]
    FreePath {
        /// Which service.
        service: ServiceName,
        /// The path.
        path: PathPattern,
    },
    /// It takes a prefix off its paths that none of them begins with.
    #[error(
        "service `{service}` strips `{prefix}`, which none of its path prefixes begins with or leads to; correct one of them"
    )]
    Strip {
        /// Which service.
        service: ServiceName,
        /// What it strips.
        prefix: PathPrefix,
    },
    /// Its upstream can't be set up.
    #[error("service `{service}`: {error}")]
    Upstream {
        /// Which service.
        service: ServiceName,
        /// What is wrong.
        error: UpstreamError,
    },
}

impl Services {
    /// Judges the configured services side by side and makes a snapshot of them. Upstreams that are the same as one of
    /// `known`, or as each other's, are one: they keep their connections and what is known of their addresses.
    pub(crate) fn new(
        configured: Vec<ServiceRoute>,
        metrics: &Metrics,
        workers: usize,
        mut known: Vec<Arc<Upstream>>,
    ) -> Result<Self, ServicesError> {
        judge(&configured)?;
        let is_folded = !is_one_outcome(&configured) && !tells_letters_apart(&configured);
        let has_capitals = places(&configured).any(|place| place.bytes().any(|b| b.is_ascii_uppercase()));
        let mut route = |config: ServiceRoute| -> Result<_, ServicesError> {
            let name = &config.service.name;
            let upstream = Upstream::new(&config.upstream, workers, &known)
                .map_err(|error| ServicesError::Upstream { service: name.clone(), error })?;
            known.push(upstream.clone());
            let metrics = metrics.service(name.as_str());
            let welcome = Welcome::new(&config.clients);
            let label = service_label(&config.service.name);
            let may_be_written = may_be_written(&config.upstream, &config.headers);
            Ok(Arc::new(Route { config, welcome, upstream, metrics, label, may_be_written }))
        };
        let routes: Vec<_> = configured.into_iter().map(&mut route).collect::<Result<_, _>>()?;
        let copies =
            (0..workers).map(|_| routes.iter().map(|route| Arc::new(route.copy())).collect()).collect();
        Ok(Self { routes, copies, is_folded, has_capitals })
    }

    /// The service that a request is for. `host` is normalised (empty if the request has none), and so is `path`.
    pub(crate) fn find(&self, host: &str, path: &str, method: &Method) -> Option<&Arc<Route>> {
        self.routes.iter().find(|route| route.config.matcher.matches(host, path, method))
    }

    /// The same, unless a server that reads paths less strictly than we do would take this one for something dearer, or for
    /// something that isn't served: which of the two is asked for, and paid for, would be a guess.
    pub(crate) fn find_clearly(
        &self,
        worker: usize,
        host: &str,
        path: &str,
        method: &Method,
    ) -> Result<Option<Arc<Route>>, PathError> {
        let Some(found) = self.find(host, path, method) else { return Ok(None) };
        let is_odd = is_odd(path);
        // Capitals of ours count as much as those of the request, which may also show only once they are decoded.
        let has_capitals = || self.has_capitals || is_odd || path.bytes().any(|b| b.is_ascii_uppercase());
        let is_folded = self.is_folded && has_capitals();
        if is_odd || is_folded {
            let other = match if is_odd { Loose::read(path) } else { Loose::Same } {
                Loose::Same => None,
                Loose::Other(other) => Some(other),
                Loose::Climbs => return Err(PathError::TwoServices),
            };
            let is_free = found.config.service.is_free(path);
            let is_dearer = |route: Option<&Arc<Route>>, costs: &dyn Fn(&Route) -> bool| {
                route.is_none_or(|route| (is_free || !Arc::ptr_eq(route, found)) && costs(route))
            };
            if let Some(other) = &other
                && (is_dearer(self.find(host, other, method), &|route| !route.config.service.is_free(other))
                    || found.is_stricter(path, |limited| limited.matches(other)))
            {
                return Err(PathError::TwoServices);
            }
            let asked = path;
            let path = other.as_deref().unwrap_or(path);
            let matches = |route: &&Arc<Route>| route.config.matcher.matches_folded(host, path, method);
            if is_folded
                && (is_dearer(self.routes.iter().find(matches), &|route| !route.is_free_folded(path))
                    || found.is_stricter(asked, |limited| matches_folded(limited, path)))
            {
                return Err(PathError::TwoServices);
            }
        }
        let at = self.routes.iter().position(|route| Arc::ptr_eq(route, found));
        Ok(at.map(|at| self.copies[worker][at].clone()))
    }

    /// All of them, in the order in which they are tried.
    pub(crate) fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The upstreams of all services, each once.
    pub(crate) fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let mut upstreams: Vec<Arc<Upstream>> = Vec::with_capacity(self.routes.len());
        for route in &self.routes {
            if !upstreams.iter().any(|known| Arc::ptr_eq(known, &route.upstream)) {
                upstreams.push(route.upstream.clone());
            }
        }
        upstreams
    }

    /// Lets go of connections of this worker that nobody has used for a while.
    pub(crate) fn prune(&self, worker: usize) {
        for route in &self.routes {
            route.upstream.prune(worker);
        }
    }
}

impl Route {
    /// Whether a path costs nothing where letters may be small or capital.
    fn is_free_folded(&self, path: &str) -> bool {
        self.config.service.is_free(path)
            || self.config.service.free_paths.iter().any(|free| matches_folded(free, path))
    }

    /// Whether another reading of a path is limited by a rule that this one is not, or closed to those without a token.
    fn is_stricter(&self, path: &str, is_other: impl Fn(&PathPattern) -> bool) -> bool {
        let service = &self.config.service;
        let is_slower = service.rate_limits.iter().any(|limit| {
            limit.paths.iter().any(&is_other) && !limit.paths.iter().any(|limited| limited.matches(path))
        });
        is_slower || !service.sells_nothing(path) && service.no_challenge_paths.iter().any(is_other)
    }
}

/// Whether a path is one of these where letters may be small or capital.
fn matches_folded(pattern: &PathPattern, path: &str) -> bool {
    let pattern = pattern.to_string();
    match pattern.strip_suffix("/*") {
        Some(stem) => path.len() > stem.len() && begins_folded(path, stem),
        None => path.eq_ignore_ascii_case(&pattern),
    }
}

/// Whether every path has the same price, and no rule of its own.
fn is_one_outcome(configured: &[ServiceRoute]) -> bool {
    if limited(configured).next().is_some() {
        return false;
    }
    match configured {
        [only] => {
            let service = &only.service;
            only.matcher.path_prefixes.is_empty()
                && (service.free_paths.is_empty() || service.auth == farebox_paywall::Auth::Off)
        }
        all => all.iter().all(|route| route.service.auth == farebox_paywall::Auth::Off),
    }
}

/// All paths that are configured.
fn places(configured: &[ServiceRoute]) -> impl Iterator<Item = String> {
    let prefixes = configured.iter().flat_map(|route| &route.matcher.path_prefixes).map(ToString::to_string);
    let free = configured.iter().flat_map(|route| &route.service.free_paths);
    prefixes.chain(free.chain(limited(configured)).map(ToString::to_string))
}

/// The paths that have a rate of their own, or are closed to those without a token.
fn limited(configured: &[ServiceRoute]) -> impl Iterator<Item = &PathPattern> {
    configured.iter().flat_map(|route| {
        let service = &route.service;
        service.rate_limits.iter().flat_map(|limit| &limit.paths).chain(&service.no_challenge_paths)
    })
}

/// Whether one configured path is another's, or its beginning, but for capitals.
fn tells_letters_apart(configured: &[ServiceRoute]) -> bool {
    let stem = |text: String| text.trim_end_matches('*').trim_end_matches('/').to_owned();
    let texts: Vec<String> = places(configured).map(stem).collect();
    let differ = |(a, b): (&String, &String)| begins_folded(a, b) && !a.starts_with(b.as_str());
    texts.iter().flat_map(|a| texts.iter().map(move |b| (a, b))).any(differ)
}

impl Route {
    /// The same for one worker alone, down to what its requests count their references in: two cores that write to one
    /// of those wait for each other, and that would be the most of what finding a service costs.
    fn copy(&self) -> Self {
        let mut config = self.config.clone();
        config.service.name = config.service.name.as_str().parse().expect("it was a name before");
        for (_, value) in &mut config.headers {
            *value = unshared(value);
        }
        let welcome = Welcome::new(&config.clients);
        let label = unshared(&self.label);
        Self {
            config,
            welcome,
            upstream: self.upstream.clone(),
            metrics: self.metrics.clone(),
            label,
            may_be_written: self.may_be_written,
        }
    }
}

/// The same value in memory of its own.
pub(crate) fn unshared(value: &HeaderValue) -> HeaderValue {
    let mut copy = HeaderValue::from_bytes(value.as_bytes()).expect("it was a value before");
    copy.set_sensitive(value.is_sensitive());
    copy
}

fn judge(configured: &[ServiceRoute]) -> Result<(), ServicesError> {
    let mut names = HashSet::new();
    for (at, route) in configured.iter().enumerate() {
        let name = &route.service.name;
        if !names.insert(name) {
            return Err(ServicesError::Duplicate(name.clone()));
        }
        route.service.validate()?;
        let is_odd = |free: &&PathPattern| Loose::read(free.to_string().trim_end_matches('*')) != Loose::Same;
        if let Some(path) = route.service.free_paths.iter().find(is_odd) {
            return Err(ServicesError::FreePath { service: name.clone(), path: path.clone() });
        }
        if let Some((header, _)) = route.headers.iter().find(|(header, _)| is_reserved(header)) {
            return Err(ServicesError::Header { service: name.clone(), header: header.clone() });
        }
        if let Some(prefix) = route.rewrite.strip_prefix.as_ref().filter(|prefix| !touches(prefix, route)) {
            return Err(ServicesError::Strip { service: name.clone(), prefix: prefix.clone() });
        }
        if let Some((requests, by)) = first_hidden(route, &configured[..at]) {
            return Err(ServicesError::Unreachable { service: name.clone(), requests, by });
        }
    }
    Ok(())
}

/// Whether any path of a route can begin with this prefix.
fn touches(prefix: &PathPrefix, route: &ServiceRoute) -> bool {
    let ours = &route.matcher.path_prefixes;
    ours.is_empty() || ours.iter().any(|own| prefix.matches(own.as_str()) || own.matches(prefix.as_str()))
}

/// Headers that frame a message or name the buyer.
fn is_reserved(header: &HeaderName) -> bool {
    [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, TE, TRAILER, UPGRADE].contains(header)
        || header.as_str().replace('_', "-").starts_with("farebox-")
}

/// The first of a route's alternatives that an earlier route takes altogether.
fn first_hidden(route: &ServiceRoute, earlier: &[ServiceRoute]) -> Option<(String, ServiceName)> {
    let matcher = &route.matcher;
    for host in alternatives(&matcher.hosts) {
        for prefix in alternatives(&matcher.path_prefixes) {
            for method in alternatives(&matcher.methods) {
                if let Some(by) = earlier.iter().find(|other| other.matcher.covers(host, prefix, method)) {
                    let requests = format!(
                        "{} requests for host `{}` and path `{}`",
                        method.map_or("any", Method::as_str),
                        host.map_or("*".to_owned(), ToString::to_string),
                        prefix.map_or("/".to_owned(), ToString::to_string),
                    );
                    return Some((requests, by.service.name.clone()));
                }
            }
        }
    }
    None
}

/// Each of a list, or the one alternative "any" of an empty one.
fn alternatives<T>(list: &[T]) -> impl Iterator<Item = Option<&T>> {
    list.is_empty().then_some(None).into_iter().chain(list.iter().map(Some))
}

#[cfg(test)]
mod tests {
    use farebox_paywall::Service;
    use farebox_protocol::{Msat, Offer};

    use super::*;
    use crate::{Matcher, UpstreamConfig};

    fn route(name: &str, hosts: &[&str], prefixes: &[&str], methods: &[Method]) -> ServiceRoute {
        let service = Service::new(name.parse().unwrap(), Msat::new(1000), Offer::Forever);
        let matcher = Matcher {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            path_prefixes: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            methods: methods.to_vec(),
        };
        ServiceRoute {
            matcher,
            ..ServiceRoute::new(service, UpstreamConfig::new("http://app".parse().unwrap()))
        }
    }

    pub(super) fn services(routes: Vec<ServiceRoute>) -> Result<Services, ServicesError> {
        Services::new(routes, &Metrics::new(1), 1, Vec::new())
    }

    #[track_caller]
    fn check_error(routes: Vec<ServiceRoute>, want: &str) {
        let error = services(routes).err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(error, want);
    }

    #[test]
    fn the_first_match_wins() {
        let services = services(vec![
            route("admin", &["api.example.com"], &["/admin"], &[]),
            route("write", &["*.example.com"], &[], &[Method::POST, Method::PUT]),
            route("read", &[], &[], &[]),
        ])
        .unwrap();
        let name = |host: &str, path: &str, method: Method| {
            services.find(host, path, &method).map(|route| route.config.service.name.to_string())
        };
        assert_eq!(name("api.example.com", "/admin/x", Method::POST).as_deref(), Some("admin"));
        assert_eq!(name("api.example.com", "/administrator", Method::POST).as_deref(), Some("write"));
        assert_eq!(name("other.org", "/admin", Method::POST).as_deref(), Some("read"));
        assert_eq!(name("", "/", Method::GET).as_deref(), Some("read"));
    }

    #[test]
    fn nothing_matches_by_accident() {
        let services = services(vec![route("api", &["api.example.com"], &["/v1"], &[Method::GET])]).unwrap();
        assert!(services.find("api.example.com", "/v1", &Method::GET).is_some());
        assert!(services.find("api.example.com", "/v2", &Method::GET).is_none());
        assert!(services.find("example.com", "/v1", &Method::GET).is_none());
        assert!(services.find("api.example.com", "/v1", &Method::POST).is_none());
    }

    #[test]
    fn a_service_that_is_never_reached_is_refused_by_name() {
        check_error(
            vec![route("all", &[], &[], &[]), route("lost", &["a.org"], &["/x"], &[Method::GET])],
            "service `lost` never gets GET requests for host `a.org` and path `/x`: `all` stands above it and takes \
             them all; move or narrow one",
        );
        check_error(
            vec![
                route("v1", &["*.a.org"], &["/v1"], &[]),
                route("both", &["x.a.org"], &["/v2", "/v1/users"], &[]),
            ],
            "service `both` never gets any requests for host `x.a.org` and path `/v1/users`: `v1` stands above it and \
             takes them all; move or narrow one",
        );
    }

    #[test]
    fn a_wider_service_below_a_narrower_one_is_fine() {
        assert!(services(vec![route("a", &["a.org"], &["/v1"], &[]), route("b", &[], &["/"], &[])]).is_ok());
        assert!(
            services(vec![route("a", &[], &["/v1"], &[Method::GET]), route("b", &[], &["/v1"], &[])]).is_ok()
        );
    }

    #[test]
    fn a_header_that_frames_the_message_is_not_the_operators_to_set() {
        let mut service = route("api", &[], &[], &[]);
        service.headers = vec![(HOST, http::HeaderValue::from_static("other"))];
        check_error(
            vec![service],
            "service `api` sets the header `host`, which is not the operator's to set; leave it out",
        );
    }

    fn is_clear(services: &Services, path: &str) -> bool {
        services.find_clearly(0, "", path, &Method::GET).is_ok()
    }

    fn with_free(mut route: ServiceRoute, free: &[&str]) -> ServiceRoute {
        route.service.free_paths = free.iter().map(|free| free.parse().unwrap()).collect();
        route
    }

    #[test]
    fn a_path_that_a_careless_server_takes_for_something_dearer_is_refused() {
        let off = |mut route: ServiceRoute| {
            route.service.auth = farebox_paywall::Auth::Off;
            route
        };
        let two =
            services(vec![route("dear", &[], &["/dear"], &[]), off(route("rest", &[], &[], &[]))]).unwrap();
        let free = services(vec![with_free(route("all", &[], &[], &[]), &["/free/*", "/health"])]).unwrap();
        for path in ["/DEAR/x", "/Dear", "/dear.", "/%2564ear", "/x/%252e%252e/dear", "/DEAR%3Bx"] {
            assert!(!is_clear(&two, path), "{path}");
        }
        for path in ["/dear/X", "/x/DEAR", "/DEARLY", "/a%20b", "/x;y", "/dear/x;y", "/x."] {
            assert!(is_clear(&two, path), "{path}");
        }
        for path in ["/free/%252e%252e/x", "/free/..%252fx", "/x/%252e%252e/y"] {
            assert!(!is_clear(&free, path), "{path}");
        }
        for path in ["/free/X", "/FREE/x", "/health;x", "/free%252Fx", "/free/a;b"] {
            assert!(is_clear(&free, path), "{path}");
        }
        // A part of the upstream is all that is served.
        let part = services(vec![off(route("part", &[], &["/part"], &[]))]).unwrap();
        assert!(!is_clear(&part, "/part/..%252fx"));
        assert!(is_clear(&part, "/part/X;y"));
    }

    #[test]
    fn a_path_is_dear_however_its_letters_are_written_and_whoever_wrote_them() {
        let off = |mut route: ServiceRoute| {
            route.service.auth = farebox_paywall::Auth::Off;
            route
        };
        let services =
            services(vec![route("dear", &[], &["/Dear", "/api"], &[]), off(route("rest", &[], &[], &[]))])
                .unwrap();
        // The operator wrote the capitals; or they show only once they are decoded.
        for path in ["/dear", "/dear/x", "/DEAR", "/%2541pi", "/dear;x"] {
            assert!(!is_clear(&services, path), "{path}");
        }
        // Some drop parameters before they decode, and some know no ends but those of the path.
        for path in ["/api;%252Fx/y", "/api;%23/y", "/x%23/%252e%252e/api"] {
            assert!(!is_clear(&services, path), "{path}");
        }
        for path in ["/Dear", "/Dear/X", "/api/Dear", "/rest", "/x/dear", "/x%23y", "/x%3Fy"] {
            assert!(is_clear(&services, path), "{path}");
        }
    }

    #[test]
    fn no_spelling_of_a_limited_path_gets_past_its_limit() {
        let mut all = route("all", &[], &[], &[]);
        all.service.rate_limits = vec![farebox_paywall::RateLimit {
            by: farebox_paywall::LimitBy::Client,
            rate: farebox_paywall::Rate::per_second(std::num::NonZeroU32::MIN),
            burst: None,
            paths: vec!["/search".parse().unwrap(), "/Slow/*".parse().unwrap()],
        }];
        let services = services(vec![all]).unwrap();
        for path in ["/search;x", "/search.", "/SEARCH", "/%2573earch", "/Slow;x/y", "/slow/y", "/%2573LOW/y"]
        {
            assert!(!is_clear(&services, path), "{path}");
        }
        for path in ["/search", "/Slow", "/Slow/X;y", "/slow", "/research", "/Other", "/x;y", "/x/SEARCH"] {
            assert!(is_clear(&services, path), "{path}");
        }
    }

    #[test]
    fn no_spelling_of_a_closed_path_passes_for_one_that_is_sold() {
        let mut all = route("all", &[], &[], &[]);
        all.service.no_challenge_paths = vec!["/internal/*".parse().unwrap()];
        let services = services(vec![all]).unwrap();
        let find = |path| services.find_clearly(0, "", path, &Method::GET);
        for path in ["/INTERNAL/x", "/internal%252Fx", "/%2569nternal/x"] {
            assert!(find(path).is_err(), "{path}");
        }
        for path in ["/internal/x", "/internally", "/Other"] {
            assert!(find(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn where_letters_are_told_apart_capitals_are_another_path() {
        let services = services(vec![
            route("upper", &[], &["/Users"], &[]),
            route("lower", &[], &["/users/admin"], &[]),
        ])
        .unwrap();
        assert!(is_clear(&services, "/Users/x"));
        assert!(is_clear(&services, "/users/admin/X"));
    }

    #[test]
    fn a_prefix_that_no_path_begins_with_is_not_stripped_in_vain() {
        let with = |prefixes: &[&str]| {
            let mut service = route("api", &[], prefixes, &[]);
            service.rewrite.strip_prefix = Some("/v1".parse().unwrap());
            service
        };
        check_error(
            vec![with(&["/v2", "/v10"])],
            "service `api` strips `/v1`, which none of its path prefixes begins with or leads to; correct one of them",
        );
        for fine in [&[][..], &["/"], &["/v1"], &["/v1/users", "/v2"], &["/v2", "/v1"]] {
            assert!(services(vec![with(fine)]).is_ok(), "{fine:?}");
        }
    }

    #[test]
    fn a_free_path_that_no_request_could_have_is_refused() {
        for (path, is_fine) in [("/a%20b", true), ("/docs/*", true), ("/a;b/*", false), ("/%40me", false)] {
            let route = with_free(route("api", &[], &[], &[]), &[path]);
            assert_eq!(services(vec![route]).is_ok(), is_fine, "{path}");
        }
    }

    #[test]
    fn two_services_of_one_name_are_refused() {
        check_error(
            vec![route("api", &["a.org"], &[], &[]), route("api", &["b.org"], &[], &[])],
            "there are two services `api`; a token is sold by name, so give each its own",
        );
    }
}
