//! The path of one request, from top to bottom: what is asked for, whose it is, whether it may pass, what the upstream
//! gets, what the client gets back.
//!
//! What a paid request costs here, over HTTP/1.1 and on a kept upstream connection. It parses its host and path (one
//! pass when they are plain); its credential only when these bytes are new to this worker, else they are found by a
//! hash and compared, and the caveats are judged once for the same question in the same second (each time where
//! capabilities are configured); with `forward_credential`, it is read each time. Besides what hyper does it allocates
//! three times: its own future, the exchange with the upstream and the answer's body, one box each. With a rewrite, the
//! path once more. The header map is moved, never copied, is looked through once on each way (`headers`), and values that
//! stay the same for a token, a service or a connection are shared; what we tell of who asks and who pays is kept in writing
//! (`telling`). One timer is put off for the answer's head, and one set for its body if that is not there yet. It locks its
//! worker's own pool, timers and proofs, what its upstream connection has written last and is to write next, and what was
//! told of its connection last: nothing that others contend for, and the counts of references it changes are its worker's
//! own (`services.rs`). It awaits: the paywall (which for a pass has nothing to wait for), a connection where none is free,
//! and the upstream. It makes four system calls, two reads and two writes, and its share of a wait. What is counted costs a
//! little more, in `meter`; others only ask whether it is.

mod access;
mod body;
mod desk;
pub(crate) mod failure;
mod forwarded;
mod headers;
mod kept;
mod meter;
mod patience;
mod rewrite;
mod target;
mod telling;
mod upgrade;

use std::{convert::Infallible, mem, net::IpAddr, panic::AssertUnwindSafe, pin::pin, sync::Arc};

use farebox_paywall::{
    Admission, Answer, Code, Pass, store::accounts::StoredAnswer, tell_freebie, without_choice,
};
use farebox_protocol::strip_credentials;
use futures_util::{FutureExt, future::BoxFuture};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, ORIGIN},
    request::Parts,
};
use hyper::body::{Body as _, Incoming};
use tokio::sync::oneshot;

use self::{
    access::Account, body::Streamed, desk::Desk, failure::Failure, forwarded::Client, headers::Survey,
    meter::Arriving, patience::Patience, rewrite::Way, upgrade::Tunnel,
};
pub(crate) use self::{
    body::{Body, RequestBody},
    kept::Kept,
    telling::{Lines, may_be_written},
    upgrade::Asked,
};
use crate::{
    config::UpstreamHost,
    cors::{Cors, is_preflight},
    listen::InFlight,
    services::Route,
    upstream::{Outgoing, SendError, With},
    worker::Worker,
};

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) ip: IpAddr,
    /// The same, as it goes into headers.
    pub(crate) text: HeaderValue,
    pub(crate) is_tls: bool,
    /// What its headers say of the client is its own word, also at an address that is believed: a proxy that didn't say
    /// whose connection it hands over has put nothing into the conversation either.
    pub(crate) speaks_for_itself: bool,
    /// What the upstream was told of it last.
    told: telling::Told,
}

impl Peer {
    pub(crate) fn new(ip: IpAddr, is_tls: bool) -> Self {
        let ip = ip.to_canonical();
        let text = HeaderValue::try_from(ip.to_string()).expect("an address is digits, dots and colons");
        Self { ip, text, is_tls, speaks_for_itself: false, told: telling::Told::default() }
    }
}

/// An answer that does not come from the upstream.
enum Own {
    Paywall(Answer),
    /// What was answered before.
    Replay(Arc<StoredAnswer>),
    Preflight(Response<Body>),
    /// To somebody who asks the seller, not a service.
    Desk(Response<Body>),
    Failure(Failure),
    /// None as yet: it is to be answered also if nobody waits for that.
    Kept(Box<Admitted>),
}

/// How far a request has come.
enum Stage {
    Arrived(Incoming),
    Admitted(Box<Admitted>),
}

/// A request that may pass, ready to be sent on.
struct Admitted {
    route: Arc<Route>,
    patience: Patience,
    outgoing: Outgoing,
    way: Way,
}

impl From<Failure> for Own {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// What must be known of a request to answer it in its own way, whatever becomes of it.
struct Manner {
    /// What there is among its headers.
    said: Survey,
    is_grpc: bool,
    /// Over HTTP/2 hyper sends a body if there is one, and a client that gets it breaks off.
    is_head: bool,
    is_grpc_web: bool,
    origin: Option<HeaderValue>,
}

/// Answers one request. A defect in the code behind it becomes a 500 and harms nothing else.
///
/// The request is taken apart once, here, and lent from then on: each `async fn` that took it would have room for another
/// copy and move it there.
pub(crate) fn answer(
    request: Request<Incoming>,
    peer: Arc<Peer>,
    in_flight: InFlight,
    worker: Arc<Worker>,
) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
    let said = Survey::of(request.headers());
    // No CONNECT is answered in gRPC's way, whose 200 would say yes to it.
    let is_grpc =
        said.has(Survey::CONTENT_TYPE) && is_grpc(request.headers()) && request.method() != Method::CONNECT;
    let is_grpc_web = is_grpc && !is_native_grpc(request.headers());
    let is_head = request.method() == Method::HEAD;
    let origin = if said.has(Survey::ORIGIN) { request.headers().get(ORIGIN).cloned() } else { None };
    let manner = Manner { said, is_grpc, is_grpc_web, is_head, origin };
    let mut account = Account::open(&request, &peer, &worker);
    let (mut parts, body) = request.into_parts();
    Box::pin(async move {
        let stage = Stage::Arrived(body);
        let handled = handle(&mut parts, stage, &manner, &peer, &mut account, &worker);
        let mut response = match AssertUnwindSafe(handled).catch_unwind().await {
            Ok(Ok(response)) => response,
            Ok(Err(Own::Kept(admitted))) => {
                let (tell, told) = oneshot::channel();
                let tasks = worker.clone();
                tasks.tasks.spawn(async move {
                    let stage = Stage::Admitted(admitted);
                    let handled = handle(&mut parts, stage, &manner, &peer, &mut account, &worker);
                    let response = match AssertUnwindSafe(handled).catch_unwind().await {
                        Ok(Ok(response)) => response,
                        Ok(Err(own)) => answer_ourselves(own, &manner, &mut account),
                        Err(_) => defect(&manner, &mut account),
                    };
                    // Nobody may be there for it. Then its body is read all the same.
                    let _ = tell.send(account.close(response, in_flight));
                });
                // It is only dropped together with this connection.
                return Ok(told.await.unwrap_or_else(|_| Failure::Defect.response(false)));
            }
            Ok(Err(own)) => answer_ourselves(own, &manner, &mut account),
            Err(_) => defect(&manner, &mut account),
        };
        if let Some(tunnel) = response.body_mut().take_tunnel() {
            account.answered(response.status());
            tunnel.open(account, in_flight, &worker);
            return Ok(response);
        }
        Ok(account.close(response, in_flight))
    })
}

fn defect(manner: &Manner, account: &mut Account) -> Response<Body> {
    account.worker().shared.metrics.panics.increment(1);
    answer_ourselves(Own::Failure(Failure::Defect), manner, account)
}

fn answer_ourselves(own: Own, manner: &Manner, account: &mut Account) -> Response<Body> {
    let mut response = match own {
        Own::Preflight(response) => return response,
        Own::Desk(response) if manner.is_head => response.map(|_| Body::empty()),
        Own::Desk(response) => response,
        Own::Paywall(answer) => answer.into_response().map(Body::full),
        Own::Replay(answer) => {
            let mut response = meter::replay(&answer, manner.is_head);
            if let Some(route) = account.route() {
                route.config.cors.open_forwarded(manner.origin.as_ref(), response.headers_mut());
            }
            return response;
        }
        Own::Failure(failure) => {
            account.failed(&failure);
            let response = failure.response(manner.is_grpc);
            if manner.is_head { response.map(|_| Body::empty()) } else { response }
        }
        Own::Kept(_) => Failure::Defect.response(manner.is_grpc),
    };
    if manner.is_grpc_web {
        // The same answer under the name that its clients know.
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc-web"));
    }
    // What is nobody's is no secret, and a page may know why it was refused.
    let cors = account.route().map_or(&Cors::Any, |route| &route.config.cors);
    cors.open_own(manner.origin.as_ref(), response.headers_mut());
    response
}

async fn handle(
    parts: &mut Parts,
    stage: Stage,
    manner: &Manner,
    peer: &Peer,
    account: &mut Account,
    worker: &Worker,
) -> Result<Response<Body>, Own> {
    let Admitted { route, patience, outgoing, way } = match stage {
        Stage::Arrived(body) => {
            let admitted = admit(parts, body, manner, peer, account, worker).await?;
            if account.is_kept() {
                return Err(Own::Kept(Box::new(admitted)));
            }
            admitted
        }
        Stage::Admitted(admitted) => *admitted,
    };
    let upgrade = outgoing.upgrade.clone();
    let with = With::default();
    let sending = pin!(route.upstream.send(worker, outgoing, account.started(), &with));
    let waited = patience.head(&worker.timers, sending).await;
    // A call that says nothing for long may be one that has nothing to say.
    if matches!(waited, Err(Failure::UpstreamTimeout)) && !manner.is_grpc {
        route.upstream.is_late(&with);
    }
    let (mut answer, lease) = waited?;
    route.metrics.upstream_answered(worker.index, account.took());

    // What the client gets.
    let switched = match &upgrade {
        Some(asked) => asked.agreed(&mut answer).map_err(Failure::Upstream)?,
        None => None,
    };
    let (mut head, body) = answer.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS && switched.is_none() {
        return Err(Failure::Upstream(SendError::Switched).into());
    }
    let found = Survey::of(&head.headers);
    if found.has(Survey::NEIGHBOURS) && !headers::is_plainly_coded(&head.headers) {
        return Err(Failure::Upstream(SendError::Coding).into());
    }
    headers::strip_neighbours(&mut head.headers, found);
    account.begins(head.status, &mut head.headers);
    if account.has_for_nothing(head.status) {
        tell_freebie(&mut head.headers);
    }
    rewrite::back(&way, &route.config.rewrite, route.upstream.config(), head.status, &mut head.headers);
    account.keeps(head.status, &head.headers);
    let (cors, origin) = (&route.config.cors, manner.origin.as_ref());
    if found.has(Survey::CORS) {
        cors.open_forwarded(origin, &mut head.headers);
    } else {
        cors.open_silent(origin, &mut head.headers);
    }
    if let (Some(upstream), Some(asked)) = (switched, upgrade) {
        account.becomes_tunnel();
        return Ok(Tunnel::answer(&asked, head, upstream, lease, route.clone()));
    }
    let body = if account.is_preflight() {
        // Browsers read its headers only, and an upstream that makes no difference of methods would give its goods away.
        head.headers.remove(CONTENT_LENGTH);
        Body::empty()
    } else {
        let ends_in_trailers = parts.version == Version::HTTP_2 && is_native_grpc(&head.headers);
        Body::streamed(Streamed::new(body, lease, patience, ends_in_trailers))
    };
    // What the upstream's connection knows of it, besides what it says, is not for the client's.
    head.version = Version::default();
    head.extensions.clear();
    Ok(Response::from_parts(head, body))
}

/// The part before anything is sent: what it needs makes way for what comes after, in the same room.
async fn admit(
    parts: &mut Parts,
    body: Incoming,
    manner: &Manner,
    peer: &Peer,
    account: &mut Account,
    worker: &Worker,
) -> Result<Admitted, Own> {
    let shared = &worker.shared;

    refuse_header_flood(parts, shared.config.limits.header_count_max)?;
    // What is asked for: one host, one path, one way to read them.
    let host = target::take_host(parts)?;
    let target = target::take_path(parts)?;
    let path = target.path();
    account.path(path);
    let client = forwarded::client(peer, &parts.headers, &shared.config.trusted_proxies);
    account.client(client.ip);
    if !shared.guests.is_welcome(client.ip) {
        return Err(Failure::Client.into());
    }

    // Whose money it is doesn't depend on a service, and no service is charged for the question.
    if let Some(desk) = Desk::at(path) {
        account.asks();
        // Boxed, so that the futures of all other requests have no room for it.
        return Err(Own::Desk(Box::pin(desk.answer(shared, parts, target.query(), body)).await));
    }

    // `Upgrade` is between neighbours.
    let may_ask = manner.said.has(Survey::NEIGHBOURS) || parts.method == Method::CONNECT;
    if may_ask && !headers::is_plainly_coded(&parts.headers) {
        return Err(Failure::Coding.into());
    }
    let upgrade = if may_ask { upgrade::asked(parts, &body)? } else { None };

    // Whose it is. The request keeps this route to its end, whatever is configured meanwhile.
    let found = shared
        .services
        .load()
        .find_clearly(worker.index, host.name(), path, &parts.method)
        .map_err(Failure::Path)?;
    let route = found.ok_or(Failure::NoService)?;
    account.routed(route.clone());
    if !route.welcome.is_for(client.ip) {
        return Err(Failure::Client.into());
    }
    refuse_what_cannot_be_served(parts, &body, &route)?;
    let upgrade = upgrade.map_or(Ok(None), |asked| asked.on(&route))?;
    let mut body = Arriving::new(body);

    // Whether it may pass.
    let mut pass = if is_preflight(&parts.method, &parts.headers) && body.is_end_stream() {
        account.decided(Code::Preflight);
        if !route.config.cors.is_upstreams() {
            return Err(Own::Preflight(route.config.cors.preflight(&parts.headers)));
        }
        let service = route.config.service.name.clone();
        Pass::preflight(service)
    } else {
        let question = farebox_paywall::Request {
            service: &route.config.service,
            method: &parts.method,
            path,
            client: client.ip,
            query: target.query(),
            headers: &parts.headers,
            grpc: manner.is_grpc,
        };
        let admission = match shared.paywall.admit_keyed(&question).await {
            Ok(admission) => admission,
            Err(hash) if upgrade.is_none() && !manner.is_grpc => {
                let once = meter::Once { hash, target: &target, version: parts.version, route: &route };
                Box::pin(once.admit(&question, &mut body, &shared.paywall)).await?
            }
            // Calls and tunnels have no end to wait for before they begin.
            Err(_) => Box::pin(shared.paywall.admit(&question)).await,
        };
        account.decided(admission.code());
        match admission {
            Admission::Pass(pass, bill) => {
                account.owes(bill);
                pass
            }
            Admission::Answer(answer) => return Err(Own::Paywall(answer)),
        }
    };

    account.uses(pass.freebie.take());

    // What the upstream gets.
    if account.is_counted() {
        // Boxed, as is what else only some requests go through: all others' futures would have room for it.
        Box::pin(account.prepare(&mut body, parts)).await?;
    }
    let patience = Patience::new(&route, &body, &parts.headers, manner.is_grpc, account.started());
    let preserved = match &route.upstream.config().host {
        UpstreamHost::Asked => Some(&host.value).filter(|host| !host.is_empty()).cloned(),
        UpstreamHost::Named(name) => HeaderValue::from_str(name.as_str()).ok(),
        UpstreamHost::Own => None,
    };
    let target = without_choice(&target).unwrap_or(target);
    let (target, way) = rewrite::forth(&route.config.rewrite, target, &host.value)?;
    let lines = dress(&mut parts.headers, manner.said, &route, &pass, &client, peer, host.value);
    let body = RequestBody::new(body, parts.version, &route, patience.upload(), account.departure());
    let mut request = Request::new(body);
    *request.method_mut() = mem::take(&mut parts.method);
    *request.uri_mut() = Uri::from(target);
    *request.headers_mut() = mem::take(&mut parts.headers);
    Ok(Admitted { route, patience, outgoing: Outgoing { request, host: preserved, upgrade, lines }, way })
}

/// Over HTTP/1.1 hyper counts while it reads; over HTTP/2 it only adds up their length. Cookies come there in crumbs, which
/// are one line.
fn refuse_header_flood(parts: &Parts, max: usize) -> Result<(), Failure> {
    let crumbs = || parts.headers.get_all(COOKIE).iter().count();
    if parts.headers.len() <= max || parts.headers.len() - crumbs() < max {
        return Ok(());
    }
    Err(Failure::TooManyHeaders { max })
}

/// Requests that could only fail later, and should not be paid for first.
fn refuse_what_cannot_be_served(parts: &Parts, body: &Incoming, route: &Route) -> Result<(), Failure> {
    // Methods are told apart by case, but not by every upstream: `post` must not pass where `POST` is dear.
    let is_spelled_oddly = parts.method.as_str().bytes().any(|byte| byte.is_ascii_lowercase());
    if is_spelled_oddly || matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(Failure::Method(parts.method.clone()));
    }
    match (route.config.request_bytes_max, body.size_hint().lower()) {
        (Some(max), bytes) if bytes > max => Err(Failure::BodyTooLarge { max }),
        _ => Ok(()),
    }
}

/// Makes the headers those of the request to the upstream. The operator's own come last, so that nothing that the client
/// sends, in `Connection` least of all, changes them. What is to be written besides them is returned.
fn dress(
    headers: &mut HeaderMap,
    found: Survey,
    route: &Arc<Route>,
    pass: &Pass,
    client: &Client,
    peer: &Peer,
    host: HeaderValue,
) -> Option<Lines> {
    let credential = headers::credential_for(route.config.forward_credential, headers, pass);
    if found.has(Survey::AUTHORIZATION) && pass.is_credential_alone() && !found.has(Survey::METADATA) {
        headers.remove(AUTHORIZATION);
    } else if found.has(Survey::AUTHORIZATION) || found.has(Survey::METADATA) {
        strip_credentials(headers);
    }
    headers::strip(headers, found, client.is_vouched_for);
    let lines = telling::tell(headers, route, pass, client, peer, host);
    if let Some(credential) = credential {
        // One line and no second one: there are servers that answer 400 to two.
        headers.insert(AUTHORIZATION, credential);
    }
    headers::strip_lookalikes(headers, &route.config.headers);
    for (name, value) in &route.config.headers {
        headers.insert(name, value.clone());
    }
    lines
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Whether the end of a stream is told in HTTP/2 trailers. In gRPC-Web it stands in the body.
fn is_native_grpc(headers: &HeaderMap) -> bool {
    is_grpc(headers)
        && headers.get(CONTENT_TYPE).is_some_and(|kind| !kind.as_bytes().starts_with(b"application/grpc-web"))
}
