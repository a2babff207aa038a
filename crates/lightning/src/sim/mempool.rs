//! Which transactions the simulated chain takes: the consensus rules that LDK's behaviour depends on, without running
//! scripts. Inputs, maturity, relative and absolute locks, value, replacement by fee; no relay policy beyond that.

use std::collections::HashSet;

use bitcoin::absolute::{Height, LockTime};
use bitcoin::relative;
use bitcoin::{Amount, OutPoint, Sequence, Transaction, Txid};

use super::chain::State;

/// Blocks before a coinbase output can be spent.
const MATURITY: u32 = 100;

/// Why a transaction was not taken. The texts are the ones bitcoind uses, since clients match on some of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// No inputs, no outputs, a coinbase, or one input twice.
    #[error("bad-txns: {0}")]
    Malformed(&'static str),
    /// An input is unknown or spent by a transaction in a block.
    #[error("bad-txns-inputs-missingorspent")]
    MissingOrSpent,
    /// An input is a coinbase output that is too young.
    #[error("bad-txns-premature-spend-of-coinbase")]
    Immature,
    /// Its lock time, or the relative lock of an input, has not passed.
    #[error("non-final")]
    NotFinal,
    /// More goes out than comes in.
    #[error("bad-txns-in-belowout")]
    Overspends,
    /// Another transaction in the mempool spends the same input and pays at least as much.
    #[error("insufficient fee, rejecting replacement")]
    InsufficientFee,
}

/// What a transaction pays, and whom it pushes out.
pub(super) struct Accepted {
    pub(super) fee: Amount,
    pub(super) evicted: HashSet<Txid>,
}

/// Judges a transaction for the next block.
pub(super) fn judge(state: &State, tx: &Transaction) -> Result<Accepted, Refused> {
    check_shape(tx)?;
    let mut paid_in = Amount::ZERO;
    let mut conflicts = HashSet::new();
    for input in &tx.input {
        let outpoint = input.previous_output;
        let previous = state.entry(&outpoint.txid).ok_or(Refused::MissingOrSpent)?;
        let output = previous.tx.output.get(outpoint.vout as usize).ok_or(Refused::MissingOrSpent)?;
        check_age(state, tx, input.sequence, previous.height, previous.tx.is_coinbase())?;
        if let Some(spender) = state.spender(&outpoint) {
            let in_block = state.entry(&spender).is_some_and(|entry| entry.height.is_some());
            if in_block {
                return Err(Refused::MissingOrSpent);
            }
            conflicts.insert(spender);
        }
        paid_in = paid_in.checked_add(output.value).ok_or(Refused::Overspends)?;
    }
    check_lock_time(state, tx)?;
    let paid_out = sum(tx.output.iter().map(|output| output.value)).ok_or(Refused::Overspends)?;
    let fee = paid_in.checked_sub(paid_out).ok_or(Refused::Overspends)?;
    let evicted = state.with_descendants(conflicts);
    let displaced = sum(evicted.iter().map(|txid| state.fee(txid))).ok_or(Refused::InsufficientFee)?;
    if !evicted.is_empty() && fee <= displaced {
        return Err(Refused::InsufficientFee);
    }
    // A transaction that spends what it pushes out has no input left.
    if tx.input.iter().any(|input| evicted.contains(&input.previous_output.txid)) {
        return Err(Refused::MissingOrSpent);
    }
    Ok(Accepted { fee, evicted })
}

fn check_shape(tx: &Transaction) -> Result<(), Refused> {
    if tx.input.is_empty() || tx.output.is_empty() {
        return Err(Refused::Malformed("empty"));
    }
    if tx.is_coinbase() {
        return Err(Refused::Malformed("coinbase"));
    }
    let distinct: HashSet<OutPoint> = tx.input.iter().map(|input| input.previous_output).collect();
    if distinct.len() < tx.input.len() {
        return Err(Refused::Malformed("inputs-duplicate"));
    }
    Ok(())
}

/// Coinbase maturity and BIP 68 relative locks. Locks by time are refused: LDK makes none.
fn check_age(
    state: &State,
    tx: &Transaction,
    sequence: Sequence,
    mined_at: Option<u32>,
    coinbase: bool,
) -> Result<(), Refused> {
    let next = state.height() + 1;
    let age = next - mined_at.unwrap_or(next);
    if coinbase && age < MATURITY {
        return Err(Refused::Immature);
    }
    if tx.version.0 < 2 {
        return Ok(());
    }
    match sequence.to_relative_lock_time() {
        None => Ok(()),
        Some(relative::LockTime::Blocks(blocks)) if u32::from(blocks.value()) <= age => Ok(()),
        Some(_) => Err(Refused::NotFinal),
    }
}

fn check_lock_time(state: &State, tx: &Transaction) -> Result<(), Refused> {
    if tx.input.iter().all(|input| input.sequence == Sequence::MAX) {
        return Ok(());
    }
    let passed = match tx.lock_time {
        LockTime::Blocks(height) => height <= Height::from_consensus(state.height()).unwrap_or(Height::MAX),
        LockTime::Seconds(time) => time.to_consensus_u32() <= state.tip().header.time,
    };
    if passed { Ok(()) } else { Err(Refused::NotFinal) }
}

fn sum(amounts: impl Iterator<Item = Amount>) -> Option<Amount> {
    amounts.into_iter().try_fold(Amount::ZERO, Amount::checked_add)
}
