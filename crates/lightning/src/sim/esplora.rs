//! An Esplora server over the simulated chain, on 127.0.0.1: the routes that LDK and BDK ask, no more. Its address is all
//! that a node needs, be it in this process or in another.
//!
//! It has a thread and a runtime of its own: it must answer while a caller on a single-threaded runtime waits for a node,
//! and it must outlive the test that started it.

mod json;

use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use bitcoin::hashes::sha256;
use bitcoin::{BlockHash, MerkleBlock, OutPoint, Transaction, Txid, consensus};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::chain::{self, Chain};

/// How many transactions one answer holds. BDK asks for the next page when it gets this many.
const PAGE: usize = 25;
/// How many blocks `/blocks` tells of.
const BLOCKS: u32 = 10;

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct EsploraServer {
    addr: SocketAddr,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl EsploraServer {
    /// Serves `chain` on a free port of the loopback interface.
    pub fn start(chain: Arc<Chain>) -> io::Result<Self> {
        Self::start_on(std::net::TcpListener::bind("127.0.0.1:0")?, chain)
    }

    /// Serves `chain` to whoever connects to `listener`.
    pub fn start_on(listener: std::net::TcpListener, chain: Arc<Chain>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serve = move || {
            let served = runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                tokio::select! {
                    served = axum::serve(listener, routes(chain)) => served,
                    () = stopped => Ok(()),
                }
            });
            if let Err(error) = served {
                tracing::error!(%error, "the simulated chain's server ended");
            }
        };
        let thread = thread::Builder::new().name("farebox-esplora".into()).spawn(serve)?;
        Ok(Self { addr, stop, thread: Some(thread) })
    }

    /// The address to give to a node, such as `http://127.0.0.1:3002`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for EsploraServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It ends at its next poll; a panic in it has been reported already.
            let _ = thread.join();
        }
    }
}

type Shared = State<Arc<Chain>>;

fn routes(chain: Arc<Chain>) -> Router {
    Router::new()
        .route("/blocks/tip/hash", get(tip_hash))
        .route("/blocks/tip/height", get(tip_height))
        .route("/blocks", get(newest_blocks))
        .route("/blocks/{height}", get(blocks_from))
        .route("/block-height/{height}", get(block_hash))
        .route("/block/{hash}/header", get(block_header))
        .route("/block/{hash}/status", get(block_status))
        .route("/tx/{txid}", get(tx))
        .route("/tx/{txid}/raw", get(tx_raw))
        .route("/tx/{txid}/status", get(tx_status))
        .route("/tx/{txid}/merkleblock-proof", get(merkle_block))
        .route("/tx/{txid}/outspend/{vout}", get(outspend))
        .route("/scripthash/{hash}/txs", get(script_txs))
        .route("/scripthash/{hash}/txs/chain/{last}", get(script_txs_after))
        .route("/fee-estimates", get(fee_estimates))
        .route("/tx", post(submit))
        .with_state(chain)
}

/// The chain knows no such thing. To the client this is an answer, not a failure.
struct Unknown;

impl IntoResponse for Unknown {
    fn into_response(self) -> Response {
        (StatusCode::NOT_FOUND, "not found").into_response()
    }
}

type Answer<T> = Result<T, Unknown>;

fn parse<T: FromStr>(text: &str) -> Answer<T> {
    text.parse().map_err(|_| Unknown)
}

async fn tip_hash(State(chain): Shared) -> String {
    chain.state().tip().block_hash().to_string()
}

async fn tip_height(State(chain): Shared) -> String {
    chain.height().to_string()
}

async fn newest_blocks(State(chain): Shared) -> Response {
    let state = chain.state();
    Json(json::blocks(&state, state.height(), BLOCKS)).into_response()
}

async fn blocks_from(State(chain): Shared, Path(height): Path<u32>) -> Answer<Response> {
    let state = chain.state();
    if height > state.height() {
        return Err(Unknown);
    }
    Ok(Json(json::blocks(&state, height, BLOCKS)).into_response())
}

async fn block_hash(State(chain): Shared, Path(height): Path<u32>) -> Answer<String> {
    let state = chain.state();
    Ok(state.block(height).ok_or(Unknown)?.block_hash().to_string())
}

async fn block_header(State(chain): Shared, Path(hash): Path<String>) -> Answer<String> {
    let hash: BlockHash = parse(&hash)?;
    let state = chain.state();
    let block = state.height_of(&hash).and_then(|height| state.block(height)).ok_or(Unknown)?;
    Ok(consensus::encode::serialize_hex(&block.header))
}

async fn block_status(State(chain): Shared, Path(hash): Path<String>) -> Answer<Response> {
    let hash: BlockHash = parse(&hash)?;
    let state = chain.state();
    let height = state.height_of(&hash).ok_or(Unknown)?;
    let next_best = state.block(height + 1).map(|block| block.block_hash().to_string());
    Ok(Json(json!({ "in_best_chain": true, "height": height, "next_best": next_best })).into_response())
}

async fn tx(State(chain): Shared, Path(txid): Path<String>) -> Answer<Response> {
    let txid: Txid = parse(&txid)?;
    let state = chain.state();
    Ok(Json(json::tx(&state, state.entry(&txid).ok_or(Unknown)?)).into_response())
}

async fn tx_raw(State(chain): Shared, Path(txid): Path<String>) -> Answer<Vec<u8>> {
    let txid: Txid = parse(&txid)?;
    let state = chain.state();
    Ok(consensus::serialize(&state.entry(&txid).ok_or(Unknown)?.tx))
}

async fn tx_status(State(chain): Shared, Path(txid): Path<String>) -> Answer<Response> {
    let txid: Txid = parse(&txid)?;
    let state = chain.state();
    Ok(Json(json::status(&state, state.entry(&txid).ok_or(Unknown)?.height)).into_response())
}

async fn merkle_block(State(chain): Shared, Path(txid): Path<String>) -> Answer<String> {
    let txid: Txid = parse(&txid)?;
    let state = chain.state();
    let height = state.entry(&txid).and_then(|entry| entry.height).ok_or(Unknown)?;
    let block = state.block(height).ok_or(Unknown)?;
    let proof = MerkleBlock::from_block_with_predicate(block, |candidate| *candidate == txid);
    Ok(consensus::encode::serialize_hex(&proof))
}

async fn outspend(State(chain): Shared, Path((txid, vout)): Path<(String, u32)>) -> Answer<Response> {
    let txid: Txid = parse(&txid)?;
    let state = chain.state();
    let outpoint = OutPoint { txid, vout };
    state.output(&outpoint).ok_or(Unknown)?;
    let answer = match state.spending(&outpoint) {
        None => json!({ "spent": false }),
        Some((spender, vin)) => {
            let height = state.entry(&spender).and_then(|entry| entry.height);
            let status = json::status(&state, height);
            json!({ "spent": true, "txid": spender.to_string(), "vin": vin, "status": status })
        }
    };
    Ok(Json(answer).into_response())
}

async fn script_txs(State(chain): Shared, Path(hash): Path<String>) -> Answer<Response> {
    let hash: sha256::Hash = parse(&hash)?;
    let state = chain.state();
    let history = state.history(&hash);
    let unconfirmed = history.iter().filter(|txid| !in_block(&state, txid)).count();
    Ok(page(&state, &history[..history.len().min(unconfirmed + PAGE)]))
}

async fn script_txs_after(
    State(chain): Shared,
    Path((hash, last)): Path<(String, String)>,
) -> Answer<Response> {
    let hash: sha256::Hash = parse(&hash)?;
    let last: Txid = parse(&last)?;
    let state = chain.state();
    let confirmed: Vec<Txid> =
        state.history(&hash).into_iter().filter(|txid| in_block(&state, txid)).collect();
    let start = confirmed.iter().position(|txid| *txid == last).map_or(0, |at| at + 1);
    let end = confirmed.len().min(start + PAGE);
    Ok(page(&state, &confirmed[start..end]))
}

fn in_block(state: &chain::State, txid: &Txid) -> bool {
    state.entry(txid).is_some_and(|entry| entry.height.is_some())
}

fn page(state: &chain::State, txids: &[Txid]) -> Response {
    let txs: Vec<_> =
        txids.iter().filter_map(|txid| state.entry(txid)).map(|entry| json::tx(state, entry)).collect();
    Json(txs).into_response()
}

/// One satoshi per virtual byte for every target: an empty chain is in no hurry.
async fn fee_estimates() -> Response {
    Json(json!({ "1": 1.0, "6": 1.0, "144": 1.0, "1008": 1.0 })).into_response()
}

async fn submit(State(chain): Shared, body: String) -> Response {
    let tx: Transaction = match consensus::encode::deserialize_hex(body.trim()) {
        Ok(tx) => tx,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("TX decode failed: {error}")).into_response(),
    };
    match chain.submit(tx) {
        Ok(txid) => txid.to_string().into_response(),
        Err(refused) => {
            tracing::debug!(%refused, "transaction refused");
            (StatusCode::BAD_REQUEST, format!("sendrawtransaction RPC error: {refused}")).into_response()
        }
    }
}
