//! The rules that LDK's behaviour depends on, and the file.

use bitcoin::absolute::LockTime;
use bitcoin::{Sequence, TxIn, Witness, transaction};

use super::*;

/// Pays nobody; scripts aren't run here.
fn script(tag: u8) -> ScriptBuf {
    ScriptBuf::from_bytes(vec![0x51, tag])
}

/// A chain with one coin of 50 bitcoin that can be spent.
fn funded() -> (Arc<Chain>, OutPoint) {
    let chain = Chain::in_memory();
    chain.mine(1, &script(1)).unwrap();
    let txid = chain.state().block(1).unwrap().txdata[0].compute_txid();
    chain.mine(100, &script(0)).unwrap();
    (chain, OutPoint { txid, vout: 0 })
}

fn spend(coin: OutPoint, sat: u64) -> Transaction {
    Transaction {
        version: transaction::Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: coin,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::new(),
        }],
        output: vec![TxOut { value: Amount::from_sat(sat), script_pubkey: script(2) }],
    }
}

fn output_of(tx: &Transaction) -> OutPoint {
    OutPoint { txid: tx.compute_txid(), vout: 0 }
}

const COIN: u64 = 5_000_000_000;

#[test]
fn a_mined_coin_can_be_spent_after_a_hundred_blocks() {
    let chain = Chain::in_memory();
    chain.mine(1, &script(1)).unwrap();
    let coin = output_of(&chain.state().block(1).unwrap().txdata[0].clone());
    chain.mine(98, &script(0)).unwrap();
    assert_eq!(chain.submit(spend(coin, COIN)), Err(Refused::Immature));
    chain.mine(1, &script(0)).unwrap();
    chain.submit(spend(coin, COIN)).unwrap();
    chain.mine(1, &script(0)).unwrap();
    assert_eq!(chain.waiting(), 0);
    assert_eq!(chain.submit(spend(coin, COIN - 1)), Err(Refused::MissingOrSpent));
}

#[test]
fn a_transaction_that_is_known_is_taken_again() {
    let (chain, coin) = funded();
    let tx = spend(coin, COIN);
    assert_eq!(chain.submit(tx.clone()), chain.submit(tx.clone()));
    chain.mine(1, &script(0)).unwrap();
    assert_eq!(chain.submit(tx.clone()), Ok(tx.compute_txid()));
}

#[test]
fn a_higher_fee_pushes_out_a_transaction_and_what_builds_on_it() {
    let (chain, coin) = funded();
    let first = spend(coin, COIN - 1_000);
    let child = spend(output_of(&first), COIN - 2_000);
    chain.submit(first.clone()).unwrap();
    chain.submit(child.clone()).unwrap();
    assert_eq!(chain.submit(spend(coin, COIN - 2_000)), Err(Refused::InsufficientFee));
    chain.submit(spend(coin, COIN - 2_001)).unwrap();
    assert_eq!(chain.waiting(), 1);
    assert_eq!(chain.submit(child), Err(Refused::MissingOrSpent));
}

#[test]
fn locks_are_waited_for() {
    let (chain, coin) = funded();
    let height = chain.height();
    let mut later = spend(coin, COIN);
    later.lock_time = LockTime::from_height(height + 1).unwrap();
    assert_eq!(chain.submit(later.clone()), Err(Refused::NotFinal));
    chain.mine(1, &script(0)).unwrap();
    chain.submit(later.clone()).unwrap();
    let mut relative = spend(output_of(&later), COIN);
    relative.input[0].sequence = Sequence::from_height(2);
    assert_eq!(
        chain.submit(relative.clone()),
        Err(Refused::NotFinal),
        "two blocks after one that isn't mined"
    );
    chain.mine(1, &script(0)).unwrap();
    assert_eq!(chain.submit(relative.clone()), Err(Refused::NotFinal));
    chain.mine(1, &script(0)).unwrap();
    chain.submit(relative).unwrap();
}

#[test]
fn nonsense_is_refused() {
    let (chain, coin) = funded();
    assert_eq!(chain.submit(spend(coin, COIN + 1)), Err(Refused::Overspends));
    assert_eq!(chain.submit(spend(OutPoint { vout: 9, ..coin }, 1)), Err(Refused::MissingOrSpent));
    let mut twice = spend(coin, 1);
    twice.input.push(twice.input[0].clone());
    assert_eq!(chain.submit(twice), Err(Refused::Malformed("inputs-duplicate")));
    let mut empty = spend(coin, 1);
    empty.output.clear();
    assert_eq!(chain.submit(empty), Err(Refused::Malformed("empty")));
    assert_eq!(chain.submit(spend(OutPoint::null(), 1)), Err(Refused::Malformed("coinbase")));
}

#[test]
fn blocks_are_valid_and_their_times_never_run_ahead() {
    let (chain, coin) = funded();
    chain.submit(spend(coin, COIN - 7)).unwrap();
    chain.mine(100, &script(0)).unwrap();
    let state = chain.state();
    let mut previous = state.block(0).unwrap();
    for height in 1..=state.height() {
        let block = state.block(height).unwrap();
        assert_eq!(block.header.prev_blockhash, previous.block_hash());
        assert!(block.header.validate_pow(block.header.target()).is_ok());
        assert!(block.check_merkle_root() && block.check_witness_commitment());
        // Up to 16, consensus wants an opcode where the library expects bytes.
        if height > 16 {
            assert_eq!(block.bip34_block_height(), Ok(u64::from(height)));
        }
        assert!(block.header.time > previous.header.time);
        previous = block;
    }
    assert!(u64::from(state.tip().header.time) <= SystemClock.now().secs() + 60);
    let reward = state.block(102).unwrap().txdata[0].output[0].value;
    assert_eq!(reward, Amount::from_sat(COIN + 7), "the miner has the fee");
}

#[test]
fn a_chain_in_a_file_comes_back_without_what_was_torn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chain");
    let chain = Chain::open(&path).unwrap();
    chain.mine(5, &script(1)).unwrap();
    let tip = chain.state().tip().block_hash();
    drop(chain);
    let whole = std::fs::read(&path).unwrap();
    for torn in [&whole[..3], &whole[..whole.len() / 5 - 1]] {
        std::fs::write(&path, [&whole[..], torn].concat()).unwrap();
        let chain = Chain::open(&path).unwrap();
        assert_eq!((chain.height(), chain.state().tip().block_hash()), (5, tip));
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let chain = Chain::open(&path).unwrap();
    assert_eq!(chain.height(), 4);
    chain.mine(1, &script(1)).unwrap();
    drop(chain);
    assert_eq!(Chain::open(&path).unwrap().height(), 5);
}

#[test]
fn a_file_that_is_no_chain_of_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chain");
    Chain::open(&path).unwrap().mine(2, &script(1)).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let second = &whole[whole.len() / 2..];
    std::fs::write(&path, second).unwrap();
    assert!(matches!(Chain::open(&path), Err(ChainError::NotAChain(1))));
}
