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
};

use bytes::Bytes;
use farebox_client::{Approve, Engine, EngineConfig, Question, RequestBody, policy::Policy};
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
