//! What earlier processes and other programs have left open: it is looked up, never paid for again, and never in the way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use farebox_client::import::Program;
use farebox_client::{Brought, Engine, EngineConfig, PurchaseRow, Recovery};
use farebox_lightning::{Outcome, Pay, PayError, PayFacts, PayRequest};
use farebox_protocol::{Msat, PaymentHash};
use futures_util::{FutureExt as _, future::BoxFuture};
use support::mint::Draft;
use support::{Mood, Shop, WalletDouble, World, get, told};

/// A wallet that proves nothing and loses its first order: what it was asked for stays unknown.
fn lossy(world: &World) -> Arc<WalletDouble> {
    let mut wallet = WalletDouble::new(world.net.clone()).in_mood(Mood::Lost);
    wallet.facts.refuses_paid_hash = false;
    Arc::new(wallet)
}

/// Buys something and never hears how that ended. The process is gone then.
async fn left_open(world: &World, shop: &Shop) -> PaymentHash {
    let engine = world.engine_with(lossy(world));
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "payment_unknown unknown");
    let hash = engine.purchases().await.unwrap()[0].payment_hash;
    engine.close(Duration::from_secs(5)).await;
    hash
}

/// The payment arrived after all.
fn arrives(world: &World, hash: &PaymentHash) {
    fs::write(world.net.path().join(format!("paid/{hash}")), "").unwrap();
}

async fn until(engine: &Engine, state: &str) -> PurchaseRow {
    loop {
        let row = engine.purchases().await.unwrap().remove(0);
        if row.state == state {
            return row;
        }
        tokio::task::yield_now().await;
    }
}

/// A wallet that never answers.
struct Silent(PayFacts);

impl Pay for Silent {
    fn facts(&self) -> PayFacts {
        self.0.clone()
    }

    fn pay(&self, _: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        std::future::pending().boxed()
    }

    fn lookup(&self, _: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        std::future::pending().boxed()
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        std::future::pending().boxed()
    }
}

#[tokio::test]
async fn what_an_earlier_process_left_open_is_looked_up_by_the_next_without_being_asked() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let hash = left_open(&world, &shop).await;
    arrives(&world, &hash);
    let engine = world.engine();
    assert_eq!(until(&engine, "paid").await.payment_hash, hash);
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(world.net.payments().len(), 0, "nothing was paid besides");
    assert_eq!(engine.verify_receipts(vec![]).await.unwrap().broken, []);
}

#[tokio::test]
async fn a_wallet_that_does_not_answer_delays_no_free_request_and_no_end() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    left_open(&world, &shop).await;
    let free = Shop::with(&world.net, |till, _| till.serve("free")).await;
    let engine = world.engine_with(Arc::new(Silent(lossy(&world).facts.clone())));
    assert_eq!(told(engine.fetch(get(&free.url("/"))).await).await, "200 free");
    assert!(engine.close(Duration::from_secs(5)).await, "looking up stops when the engine is closed");
}

#[tokio::test]
async fn what_was_written_off_and_paid_all_the_same_is_recovered() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let engine = world.engine_with(lossy(&world));
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "payment_unknown unknown");
    let hash = engine.purchases().await.unwrap()[0].payment_hash;
    assert!(engine.write_off(hash).await.unwrap());
    let recovered = engine.recover(None).await.unwrap();
    assert_eq!(recovered.len(), 1);
    assert!(matches!(recovered[0].outcome, Recovery::NotPaid(_)), "{recovered:?}");
    arrives(&world, &hash);
    let recovered = engine.recover(None).await.unwrap();
    assert_eq!((recovered[0].outcome.clone(), recovered[0].purchase.state), (Recovery::Paid, "paid"));
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(engine.recover(None).await.unwrap().len(), 0);
    assert_eq!(engine.recover(Some(hash)).await.unwrap()[0].outcome, Recovery::Paid);
}

#[tokio::test]
async fn another_wallet_is_told_from_the_one_that_paid() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    left_open(&world, &shop).await;
    let mut other = WalletDouble::new(world.net.clone());
    other.facts.wallet = farebox_lightning::WalletId("other".to_owned());
    let engine = world.engine_with(Arc::new(other));
    let recovered = engine.recover(None).await.unwrap();
    let Recovery::Unknown(why) = &recovered[0].outcome else { panic!("{recovered:?}") };
    assert!(why.contains("double"), "{why}");
    let without = Engine::open(EngineConfig { wallet: None, ..world.config() }).unwrap();
    let recovered = without.recover(None).await.unwrap();
    assert_eq!(recovered[0].outcome, Recovery::Unknown("there is no wallet to ask".to_owned()));
}

/// What lnget leaves behind when it is killed while it pays.
fn pending_file(directory: &Path, draft: &Draft, shop: &Shop) -> PathBuf {
    let macaroon = draft.macaroon(&shop.till.root_key, &["services=svc:0".to_owned()]).to_bytes();
    let mut file = u32::try_from(macaroon.len()).unwrap().to_be_bytes().to_vec();
    file.extend(macaroon);
    file.extend(draft.payment_hash().as_bytes());
    file.extend([0; 32 + 8 + 8]);
    file.extend(1_699_999_999_000_000_000_i64.to_be_bytes());
    let path = directory.join("l402.token.pending");
    fs::write(&path, file).unwrap();
    path
}

#[tokio::test]
async fn what_another_program_would_have_paid_twice_is_recovered_and_not_paid() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let draft = shop.till.draft(100);
    let file = pending_file(world.directory.path(), &draft, &shop);
    let before = fs::read(&file).unwrap();
    let origin = shop.url.parse().unwrap();
    let haul = Program::Aperture.read(&file, Some(&origin)).unwrap();
    let engine = world.engine();
    assert_eq!(engine.plan_import(haul.found.clone()).await.unwrap(), [Brought::Pending]);
    assert_eq!(engine.purchases().await.unwrap().len(), 0, "a plan changes nothing");
    assert_eq!(engine.import(haul.found.clone(), "aperture").await.unwrap(), [Brought::Pending]);
    assert_eq!(engine.purchases().await.unwrap()[0].state, "unknown");
    // As long as nobody knows, nothing else is bought there.
    let error = engine.fetch(get(&shop.url("/"))).await.unwrap_err();
    assert_eq!(error.code(), "payment_unknown");
    assert!(error.to_string().contains("aperture began it"), "{error}");

    arrives(&world, &draft.payment_hash());
    let recovered = engine.recover(None).await.unwrap();
    assert_eq!((recovered[0].outcome.clone(), recovered[0].purchase.state), (Recovery::Paid, "paid"));
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(world.net.payments().len(), 0);
    assert_eq!(engine.import(haul.found, "aperture").await.unwrap(), [Brought::Held]);
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn another_programs_payment_can_be_written_off_and_bought_anew() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let draft = shop.till.draft(100);
    let file = pending_file(world.directory.path(), &draft, &shop);
    let origin = shop.url.parse().unwrap();
    let engine = world.engine();
    engine.import(Program::Aperture.read(&file, Some(&origin)).unwrap().found, "aperture").await.unwrap();
    assert!(engine.write_off(draft.payment_hash()).await.unwrap());
    assert!(!engine.write_off(draft.payment_hash()).await.unwrap());
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(world.net.payments().len(), 1);
    // Nor is that one lost, should it have been made after all.
    let hash = draft.payment_hash();
    assert!(matches!(engine.recover(Some(hash)).await.unwrap()[0].outcome, Recovery::NotPaid(_)));
    arrives(&world, &hash);
    let recovered = engine.recover(None).await.unwrap();
    assert_eq!(recovered.iter().map(|one| one.purchase.payment_hash).collect::<Vec<_>>(), [hash]);
    assert_eq!((recovered[0].outcome.clone(), recovered[0].purchase.state), (Recovery::Paid, "paid"));
}

#[tokio::test]
async fn what_another_program_has_bought_serves_here_without_a_payment() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let draft = shop.till.draft(100);
    let token = draft.macaroon(&shop.till.root_key, &["services=svc:0".to_owned()]).to_base64();
    let line = format!("L402 {token}:{}", *draft.preimage().expose_hex());
    let origin = shop.url.parse().unwrap();
    let haul = Program::read_own_text(&line, Some(&origin)).unwrap();
    let engine = world.engine();
    assert_eq!(engine.import(haul.found, "lnget").await.unwrap(), [Brought::New]);
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!((shop.minted(), world.net.payments().len()), (0, 0));
    assert_eq!(engine.purchases().await.unwrap()[0].state, "honoured");
}
