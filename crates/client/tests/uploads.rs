//! Files as bodies of requests: read when they are sent, as often as that is; and what it costs that one changes meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::{
    fs,
    future::{Future, ready},
    io::Write as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use farebox_client::{
    Approve, Engine, EngineConfig, Fault, HttpConfig, Question, RequestBody, RequestError, Silent,
    policy::Policy,
};
use parking_lot::Mutex;
use support::shop::{Asked, Till, redirect};
use support::{Shop, World, told};

/// Longer than what is read at once.
fn text() -> Vec<u8> {
    (0..300_000_u32).map(|number| u8::try_from(number % 251).unwrap()).collect()
}

fn file(world: &World) -> PathBuf {
    let path = world.directory.path().join("upload");
    fs::write(&path, text()).unwrap();
    path
}

fn put(url: &str, path: &Path) -> http::Request<RequestBody> {
    http::Request::put(url).body(RequestBody::file(path).unwrap()).unwrap()
}

fn grow(path: &Path) {
    fs::File::options().append(true).open(path).unwrap().write_all(b"!").unwrap();
}

/// Sells, and keeps what was sent.
fn keeping(
    seen: &Arc<Mutex<Vec<Bytes>>>,
) -> impl Fn(&Till, &Asked) -> axum::response::Response + Send + Sync + 'static {
    let seen = Arc::clone(seen);
    move |till, asked| {
        assert_eq!(asked.headers["content-length"], asked.bytes.to_string());
        seen.lock().push(asked.body.clone());
        match till.paid(&asked.headers) {
            Some(_) => till.serve("goods"),
            None => till.challenge("svc", 100),
        }
    }
}

#[tokio::test]
async fn a_file_arrives_whole_each_time_it_is_sent() {
    let (world, seen) = (World::new(), Arc::default());
    let seller = Shop::with(&world.net, keeping(&seen)).await;
    let to = seller.url("/there");
    let guide = Shop::with(&world.net, move |_, _| redirect(307, &to)).await;
    let request = put(&guide.url("/"), &file(&world));
    assert_eq!(told(world.engine().fetch(request).await).await, "200 goods");
    assert_eq!(*seen.lock(), [text(), text()]);
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn a_file_that_has_changed_by_the_time_of_the_price_buys_nothing() {
    let (world, seen) = (World::new(), Arc::default());
    let path = file(&world);
    let (sell, changing) = (keeping(&seen), path.clone());
    let shop = Shop::with(&world.net, move |till, asked| {
        if asked.bytes == 300_000 {
            grow(&changing);
        }
        sell(till, asked)
    })
    .await;
    let engine = world.engine();
    assert_eq!(told(engine.fetch(put(&shop.url("/"), &path)).await).await, "body_gone none");
    assert_eq!((world.net.payments().len(), seen.lock().len()), (0, 1));
    // As it is now it can be sent.
    assert_eq!(told(engine.fetch(put(&shop.url("/"), &path)).await).await, "200 goods");
}

/// A server that takes connections and does nothing with them, or reads all that comes and never answers.
async fn silent(reads: bool) -> (String, tokio::task::JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if reads {
                _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
            kept.push(stream);
        }
    });
    (url, serving)
}

#[tokio::test]
async fn silence_is_told_with_how_far_the_upload_had_come() {
    let world = World::new();
    let http = HttpConfig { idle_timeout: Duration::from_millis(200), ..world.config().http };
    let engine = Engine::open(EngineConfig { http, ..world.config() }).unwrap();
    let path = world.directory.path().join("upload");
    // Longer than what any socket takes by itself.
    fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    for reads in [false, true] {
        let (url, _serving) = silent(reads).await;
        let error = engine.fetch(put(&url, &path)).await.unwrap_err();
        assert_eq!((error.code(), error.retryable()), ("network", true));
        let Fault::Request(RequestError::Silent { source, .. }) = error.fault() else { panic!("{error:?}") };
        match source {
            Silent::Sending { sent, length, .. } if !reads => {
                assert!(*length == 64 << 20 && (1..64 << 20).contains(sent), "{source}");
            }
            Silent::Answering(_) if reads => {}
            _ => panic!("{source}"),
        }
    }
}

/// Agrees, and writes to a file meanwhile.
struct Writing(PathBuf);

impl Approve for Writing {
    fn ask(&self, _: Question) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        grow(&self.0);
        Box::pin(ready(true))
    }
}

#[tokio::test]
async fn what_was_bought_for_a_file_that_changed_then_is_there_for_the_next_request() {
    let (world, seen) = (World::new(), Arc::default());
    let shop = Shop::with(&world.net, keeping(&seen)).await;
    let path = file(&world);
    let config = EngineConfig {
        policy: Arc::new(Policy::parse("otherwise: ask").unwrap()),
        approver: Some(Arc::new(Writing(path.clone()))),
        ..world.config()
    };
    let engine = Engine::open(config).unwrap();
    assert_eq!(told(engine.fetch(put(&shop.url("/"), &path)).await).await, "body spent");
    assert_eq!(seen.lock().len(), 1);
    assert_eq!(told(engine.fetch(put(&shop.url("/"), &path)).await).await, "200 goods");
    assert_eq!((world.net.payments().len(), seen.lock()[1].len()), (1, 300_001));
}
