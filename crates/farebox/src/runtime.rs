//! What commands that talk to the network share: the runtime they run on, the signals that end them, and the order in which
//! selling ends.

use std::{convert::Infallible, future::Future};

use anyhow::Context as _;
use farebox_gateway::{Gateway, GatewayError};
use farebox_paywall::Paywall;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs a command's future to its end. The gateway's workers have runtimes of their own; this one waits.
pub(crate) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    // Two providers could be compiled in by somebody else's feature; ours is chosen before anyone asks.
    // Err means that it is already chosen, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(future)
}

/// Cancels `stop` at the first SIGINT or SIGTERM. A second one ends the process at once, as people expect who press
/// Ctrl-C again.
///
/// From this call on signals are caught, so make it before anyone is told that the program is ready; then run what it
/// returns beside the work. It ends only when signals can't be caught.
pub(crate) fn stop_on_signal(stop: CancellationToken) -> impl Future<Output = anyhow::Result<Infallible>> {
    let caught = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    async move {
        let (mut interrupt, mut terminate) = caught.context("cannot catch signals")?;
        let mut asked = false;
        loop {
            tokio::select! {
                Some(()) = interrupt.recv() => {}
                Some(()) = terminate.recv() => {}
            }
            if asked {
                tracing::warn!("told to stop a second time; leaving requests in flight behind");
                std::process::exit(1);
            }
            asked = true;
            tracing::info!("stopping; requests in flight may finish");
            stop.cancel();
        }
    }
}

/// Says at each SIGHUP what to do instead, as nothing is read again then; uncaught, it would end the process at once. Like
/// [`stop_on_signal`], it catches from this call on.
pub(crate) fn pass_over_hang_ups() -> impl Future<Output = anyhow::Result<Infallible>> {
    let caught = signal(SignalKind::hangup());
    async move {
        let mut hang_up = caught.context("cannot catch signals")?;
        while hang_up.recv().await.is_some() {
            tracing::warn!(
                "SIGHUP is passed over: the configuration is read at the start only, so restart farebox to change it; \
                 certificates are read again by themselves when their files change"
            );
        }
        std::future::pending().await
    }
}

/// Sells until `stop` is cancelled. The order of the end: requests in flight first, then the books, which they write to. The
/// node, which the books follow, is the caller's to stop after that.
pub(crate) async fn sell(
    gateway: Gateway,
    paywall: &Paywall,
    stop: &CancellationToken,
) -> Result<(), GatewayError> {
    let drained = CancellationToken::new();
    let listeners = async {
        let outcome = gateway.run(stop.clone()).await;
        drained.cancel();
        outcome
    };
    let books = async {
        paywall.run(drained.clone()).await;
        // Books that ended by themselves keep nothing any more: then nothing may be sold either.
        stop.cancel();
    };
    tokio::join!(listeners, books).0
}
