//! A regtest chain in memory, optionally kept in a file. It checks transactions as `mempool` says, mines on demand and
//! answers what an Esplora server is asked. One branch only: it never reorganises.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use bitcoin::constants::genesis_block;
use bitcoin::hashes::{Hash, sha256};
use bitcoin::{Amount, Block, BlockHash, Network, OutPoint, Script, ScriptBuf, Transaction, TxOut, Txid};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::block;
use super::file::BlockFile;
use super::mempool::{self, Refused};
use crate::clock::{Clock, SystemClock};

/// How far in the past a new chain begins, so that a few hundred blocks fit before the present.
const HEAD_START_SECS: u64 = 7_200;

/// The simulated chain. Share it in an `Arc`.
#[derive(Debug)]
pub struct Chain {
    state: Mutex<State>,
    height: watch::Sender<u32>,
}

/// Why the chain's file can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The file can't be read or written.
    #[error("the chain file can't be used: {0}")]
    File(#[from] std::io::Error),
    /// The file holds blocks that don't follow each other from regtest's first.
    #[error(
        "the chain file holds a block at height {0} that doesn't follow the one before; it is not a farebox chain"
    )]
    NotAChain(u32),
}

/// A transaction that the chain knows, in a block or waiting for one.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) tx: Transaction,
    pub(super) height: Option<u32>,
}

/// Everything the chain knows.
#[derive(Debug)]
pub(super) struct State {
    blocks: Vec<Block>,
    heights: HashMap<BlockHash, u32>,
    txs: HashMap<Txid, Entry>,
    by_script: HashMap<sha256::Hash, Vec<Txid>>,
    spent: HashMap<OutPoint, (Txid, u32)>,
    mempool: Vec<Txid>,
    file: Option<BlockFile>,
}

impl Chain {
    /// A new chain that lives as long as this value.
    pub fn in_memory() -> Arc<Self> {
        Self::of(State::genesis())
    }

    /// The chain kept in `path`, or a new one there. What is mined later is on disk before `mine` returns; the mempool
    /// isn't kept, as nodes broadcast again. One process at a time.
    pub fn open(path: &Path) -> Result<Arc<Self>, ChainError> {
        let (file, blocks) = BlockFile::open(path)?;
        let mut state = State::genesis();
        for block in blocks {
            if block.header.prev_blockhash != state.tip().block_hash() {
                return Err(ChainError::NotAChain(state.height() + 1));
            }
            state.append(block);
        }
        state.file = Some(file);
        Ok(Self::of(state))
    }

    fn of(state: State) -> Arc<Self> {
        let (height, _) = watch::channel(state.height());
        Arc::new(Self { state: Mutex::new(state), height })
    }

    /// The height of the newest block.
    pub fn height(&self) -> u32 {
        self.state().height()
    }

    /// Tells the height now and whenever a block has been mined: the hook for those who follow the chain.
    pub fn heights(&self) -> watch::Receiver<u32> {
        self.height.subscribe()
    }

    /// How many transactions wait for a block.
    pub fn waiting(&self) -> usize {
        self.state().mempool.len()
    }

    /// Mines `count` blocks that pay to `miner`; the first takes all waiting transactions. Answers the new height.
    pub fn mine(&self, count: u32, miner: &Script) -> Result<u32, ChainError> {
        let mut state = self.state();
        for _ in 0..count {
            state.mine_one(miner, SystemClock.now().secs())?;
        }
        let height = state.height();
        self.height.send_replace(height);
        Ok(height)
    }

    /// Offers a transaction to the mempool. One that is already known is taken again.
    pub fn submit(&self, tx: Transaction) -> Result<Txid, Refused> {
        self.state().submit(tx)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn genesis() -> Self {
        let mut state = Self {
            blocks: Vec::new(),
            heights: HashMap::new(),
            txs: HashMap::new(),
            by_script: HashMap::new(),
            spent: HashMap::new(),
            mempool: Vec::new(),
            file: None,
        };
        state.append(genesis_block(Network::Regtest));
        state
    }

    pub(super) fn height(&self) -> u32 {
        u32::try_from(self.blocks.len() - 1).expect("no chain is that long")
    }

    pub(super) fn tip(&self) -> &Block {
        self.blocks.last().expect("the first block is always there")
    }

    pub(super) fn block(&self, height: u32) -> Option<&Block> {
        self.blocks.get(height as usize)
    }

    pub(super) fn height_of(&self, hash: &BlockHash) -> Option<u32> {
        self.heights.get(hash).copied()
    }

    pub(super) fn entry(&self, txid: &Txid) -> Option<&Entry> {
        self.txs.get(txid)
    }

    /// The transaction and input that spend an output.
    pub(super) fn spending(&self, outpoint: &OutPoint) -> Option<(Txid, u32)> {
        self.spent.get(outpoint).copied()
    }

    pub(super) fn spender(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.spending(outpoint).map(|(txid, _)| txid)
    }

    /// The output that an input spends, if the chain knows it.
    pub(super) fn output(&self, outpoint: &OutPoint) -> Option<&TxOut> {
        self.entry(&outpoint.txid)?.tx.output.get(outpoint.vout as usize)
    }

    /// The transactions that pay to or spend from a script, newest first, those without a block before all others.
    pub(super) fn history(&self, script: &sha256::Hash) -> Vec<Txid> {
        let mut txids = self.by_script.get(script).cloned().unwrap_or_default();
        txids.reverse();
        txids.sort_by_key(|txid| {
            let height = self.entry(txid).and_then(|entry| entry.height);
            std::cmp::Reverse(height.unwrap_or(u32::MAX))
        });
        txids
    }

    /// What a transaction in the mempool pays, or nothing for any other.
    pub(super) fn fee(&self, txid: &Txid) -> Amount {
        let Some(entry) = self.entry(txid) else { return Amount::ZERO };
        let inputs = entry.tx.input.iter().filter_map(|input| self.output(&input.previous_output));
        let paid_in: Amount = inputs.map(|output| output.value).sum();
        let paid_out: Amount = entry.tx.output.iter().map(|output| output.value).sum();
        paid_in.checked_sub(paid_out).unwrap_or(Amount::ZERO)
    }

    /// These transactions and all in the mempool that build on them.
    pub(super) fn with_descendants(&self, mut txids: HashSet<Txid>) -> HashSet<Txid> {
        // The mempool is in order of arrival, so a parent always comes before its children.
        for txid in &self.mempool {
            let Some(entry) = self.entry(txid) else { continue };
            if entry.tx.input.iter().any(|input| txids.contains(&input.previous_output.txid)) {
                txids.insert(*txid);
            }
        }
        txids
    }

    fn submit(&mut self, tx: Transaction) -> Result<Txid, Refused> {
        let txid = tx.compute_txid();
        if self.txs.contains_key(&txid) {
            return Ok(txid);
        }
        let accepted = mempool::judge(self, &tx)?;
        tracing::debug!(%txid, fee = %accepted.fee, evicted = accepted.evicted.len(), "transaction taken");
        self.evict(&accepted.evicted);
        self.index(txid, Entry { tx, height: None });
        self.mempool.push(txid);
        Ok(txid)
    }

    fn evict(&mut self, txids: &HashSet<Txid>) {
        if txids.is_empty() {
            return;
        }
        self.mempool.retain(|txid| !txids.contains(txid));
        self.spent.retain(|_, (spender, _)| !txids.contains(spender));
        for history in self.by_script.values_mut() {
            history.retain(|txid| !txids.contains(txid));
        }
        self.txs.retain(|txid, _| !txids.contains(txid));
    }

    fn mine_one(&mut self, miner: &Script, now: u64) -> Result<(), ChainError> {
        let previous = self.tip().header;
        let begin = now.saturating_sub(HEAD_START_SECS);
        let height = self.height() + 1;
        // A block a second from two hours ago until the chain has caught up with the clock: headers must not run ahead of it.
        let time = if self.height() == 0 { begin } else { u64::from(previous.time) + 1 };
        let time = if height > 150 { time.max(now) } else { time };
        let fees: Amount = self.mempool.iter().map(|txid| self.fee(txid)).sum();
        let txs =
            self.mempool.iter().filter_map(|txid| self.entry(txid)).map(|entry| entry.tx.clone()).collect();
        let time = u32::try_from(time).expect("block times fit until 2106");
        let block = block::build(&previous, height, time, txs, fees, miner);
        if let Some(file) = &mut self.file {
            file.append(&block)?;
        }
        self.append(block);
        Ok(())
    }

    fn append(&mut self, block: Block) {
        let height = u32::try_from(self.blocks.len()).expect("no chain is that long");
        self.heights.insert(block.block_hash(), height);
        for tx in &block.txdata {
            self.index(tx.compute_txid(), Entry { tx: tx.clone(), height: Some(height) });
        }
        self.mempool.clear();
        self.blocks.push(block);
    }

    /// Adds a transaction to all indexes, or moves it into its block.
    fn index(&mut self, txid: Txid, entry: Entry) {
        if let Some(known) = self.txs.get_mut(&txid) {
            known.height = entry.height;
            return;
        }
        let mut scripts: HashSet<ScriptBuf> =
            entry.tx.output.iter().map(|output| output.script_pubkey.clone()).collect();
        let inputs = entry.tx.input.iter().filter(|_| !entry.tx.is_coinbase());
        for (vin, input) in inputs.enumerate() {
            if let Some(output) = self.output(&input.previous_output) {
                scripts.insert(output.script_pubkey.clone());
            }
            let vin = u32::try_from(vin).expect("a transaction has fewer inputs than that");
            self.spent.insert(input.previous_output, (txid, vin));
        }
        for script in scripts {
            let key = sha256::Hash::hash(script.as_bytes());
            self.by_script.entry(key).or_default().push(txid);
        }
        self.txs.insert(txid, entry);
    }
}

#[cfg(test)]
mod tests;
