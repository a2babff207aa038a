//! Blocks and transactions as Esplora writes them. Clients fail on a missing field, so all that they declare is here.

use bitcoin::Amount;
use serde_json::{Value, json};

use crate::sim::chain::{Entry, State};

/// Up to `count` blocks from `from` downwards.
pub(super) fn blocks(state: &State, from: u32, count: u32) -> Vec<Value> {
    (from.saturating_sub(count - 1)..=from).rev().filter_map(|height| block(state, height)).collect()
}

fn block(state: &State, height: u32) -> Option<Value> {
    let block = state.block(height)?;
    let header = &block.header;
    Some(json!({
        "id": block.block_hash().to_string(),
        "height": height,
        "version": header.version.to_consensus(),
        "timestamp": header.time,
        "tx_count": block.txdata.len(),
        "size": block.total_size(),
        "weight": block.weight().to_wu(),
        "merkle_root": header.merkle_root.to_string(),
        "previousblockhash": (height > 0).then(|| header.prev_blockhash.to_string()),
        "mediantime": header.time,
        "nonce": header.nonce,
        "bits": header.bits.to_consensus(),
        "difficulty": header.difficulty_float(),
    }))
}

/// Whether a transaction is in a block, and in which.
pub(super) fn status(state: &State, height: Option<u32>) -> Value {
    match height.and_then(|height| Some((height, state.block(height)?))) {
        None => json!({ "confirmed": false }),
        Some((height, block)) => json!({
            "confirmed": true,
            "block_height": height,
            "block_hash": block.block_hash().to_string(),
            "block_time": block.header.time,
        }),
    }
}

/// A transaction with the outputs that it spends.
pub(super) fn tx(state: &State, entry: &Entry) -> Value {
    let tx = &entry.tx;
    let coinbase = tx.is_coinbase();
    let mut paid_in = Amount::ZERO;
    let mut inputs = Vec::new();
    for input in &tx.input {
        let spent = state.output(&input.previous_output);
        paid_in += spent.map_or(Amount::ZERO, |output| output.value);
        let prevout = spent.map(|output| {
            json!({
                "value": output.value.to_sat(),
                "scriptpubkey": output.script_pubkey.to_hex_string(),
            })
        });
        inputs.push(json!({
            "txid": input.previous_output.txid.to_string(),
            "vout": input.previous_output.vout,
            "prevout": prevout,
            "scriptsig": input.script_sig.to_hex_string(),
            "witness": input.witness.iter().map(hex::encode).collect::<Vec<_>>(),
            "sequence": input.sequence.to_consensus_u32(),
            "is_coinbase": coinbase,
        }));
    }
    let outputs: Vec<Value> = tx
        .output
        .iter()
        .map(|output| {
            json!({
                "value": output.value.to_sat(),
                "scriptpubkey": output.script_pubkey.to_hex_string(),
            })
        })
        .collect();
    let paid_out: Amount = tx.output.iter().map(|output| output.value).sum();
    let fee = if coinbase { Amount::ZERO } else { paid_in.checked_sub(paid_out).unwrap_or(Amount::ZERO) };
    json!({
        "txid": tx.compute_txid().to_string(),
        "version": tx.version.0,
        "locktime": tx.lock_time.to_consensus_u32(),
        "vin": inputs,
        "vout": outputs,
        "size": tx.total_size(),
        "weight": tx.weight().to_wu(),
        "fee": fee.to_sat(),
        "status": status(state, entry.height),
    })
}
