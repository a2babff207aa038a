//! What a request for something free costs a buyer: the same client with and without the engine, one request after the other
//! over one connection. Nothing is held, as for most of what a program asks for; what is held costs a look into the journal.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use bytes::Bytes;
use farebox_client::{Engine, EngineConfig, HttpConfig, PayExt as _, Proxy, tower::PayLayer};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy, client::legacy::connect::HttpConnector, rt::TokioExecutor};
use tokio::{runtime::Runtime, time::Instant};
use tower::{Layer as _, Service, ServiceExt as _};

use crate::{
    Setting,
    figures::{Figure, figure, taking_turns},
    programs::Wire,
    table::Row,
    upstream::Upstream,
};

/// Who asks.
enum Subject {
    Reqwest,
    Fetch,
    SendPaid,
    Hyper,
    Layer,
}

/// What they ask with.
struct Buyer {
    engine: Engine,
    own: reqwest::Client,
    url: String,
}

/// Measures all clients, those of one library taking turns.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let upstream = Upstream::start(Wire::Http1)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let journal = tempfile::tempdir()?;
    let buyer = Buyer::new(&journal.path().join("journal.sqlite"), upstream.address)?;
    let measure = |subject: &Subject| buyer.measure(subject, setting, &runtime);
    let mut rows = taking_turns(
        "client",
        &[Subject::Reqwest, Subject::Fetch, Subject::SendPaid],
        Subject::name,
        measure,
    )?;
    rows.extend(taking_turns("client", &[Subject::Hyper, Subject::Layer], Subject::name, measure)?);
    runtime.block_on(buyer.engine.close(setting.time));
    Ok(rows)
}

impl Subject {
    fn name(&self) -> &'static str {
        match self {
            Self::Reqwest => "reqwest",
            Self::Fetch => "Engine::fetch",
            Self::SendPaid => "reqwest, send_paid",
            Self::Hyper => "hyper-util",
            Self::Layer => "hyper-util, PayLayer",
        }
    }
}

impl Buyer {
    fn new(journal: &std::path::Path, address: SocketAddr) -> Result<Self> {
        let http = HttpConfig { proxy: Proxy::None, ..HttpConfig::default() };
        let engine = Engine::open(EngineConfig { http, ..EngineConfig::new(journal) })?;
        _ = rustls::crypto::ring::default_provider().install_default();
        let own =
            reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { engine, own, url: format!("http://{address}/") })
    }

    fn measure(&self, subject: &Subject, setting: &Setting, runtime: &Runtime) -> Result<Vec<Figure>> {
        let Self { engine, own, url } = self;
        let hyper: legacy::Client<HttpConnector, _> =
            legacy::Client::builder(TokioExecutor::new()).build_http();
        let layer = PayLayer::new(engine.clone()).layer(
            legacy::Client::builder(TokioExecutor::new()).build_http::<farebox_client::tower::Replay<_>>(),
        );
        runtime.block_on(async {
            let started = Instant::now();
            let mut requests = 0_u32;
            while started.elapsed() < setting.time {
                for _ in 0..100 {
                    let status = match subject {
                        Subject::Reqwest => read(own.get(url).send().await?).await?,
                        Subject::SendPaid => read(own.get(url).send_paid(engine).await?.response).await?,
                        Subject::Fetch => {
                            let request = Request::get(url).body(Bytes::new())?;
                            read(engine.fetch(request).await?.response).await?
                        }
                        Subject::Hyper => ask(hyper.clone(), url).await?,
                        Subject::Layer => ask(layer.clone(), url).await?,
                    };
                    ensure!(status == StatusCode::OK, "the upstream answers {status}");
                }
                requests += 100;
            }
            let micros = started.elapsed().as_secs_f64() * 1e6 / f64::from(requests);
            let what = if matches!(subject, Subject::Hyper | Subject::Layer) {
                "time, hyper"
            } else {
                "time, reqwest"
            };
            Ok(vec![figure(what, "us/request", micros)])
        })
    }
}

/// Reads an answer to its end.
async fn read(response: reqwest::Response) -> Result<StatusCode> {
    let status = response.status();
    response.bytes().await?;
    Ok(status)
}

/// The same by a service.
async fn ask<S, R>(service: S, url: &str) -> Result<StatusCode>
where
    S: Service<Request<Empty<Bytes>>, Response = http::Response<R>, Error: Into<anyhow::Error>>,
    R: http_body::Body<Error: std::fmt::Debug>,
{
    let answer = service.oneshot(Request::get(url).body(Empty::new())?).await.map_err(Into::into)?;
    let status = answer.status();
    ensure!(answer.into_body().collect().await.is_ok(), "the answer broke off");
    Ok(status)
}
