//! Making blocks: a coinbase, a witness commitment, and enough work for regtest, which is about two tries.

use bitcoin::absolute::LockTime;
use bitcoin::block::{Header, Version};
use bitcoin::hashes::Hash;
use bitcoin::opcodes::all::OP_RETURN;
use bitcoin::script::PushBytesBuf;
use bitcoin::{
    Amount, Block, CompactTarget, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn, TxMerkleNode,
    TxOut, Witness, script, transaction,
};

/// The block reward. Regtest halves every 150 blocks; the simulation doesn't, so that wallets can be funded for ever.
const REWARD: Amount = Amount::from_int_btc(50);
/// The easiest target that consensus knows: the highest bits of regtest.
const EASIEST: u32 = 0x207f_ffff;
/// Announces a witness commitment (BIP 141).
const COMMITMENT_TAG: [u8; 4] = [0xaa, 0x21, 0xa9, 0xed];

/// A valid block after `previous` that pays reward and `fees` to `miner`.
pub(super) fn build(
    previous: &Header,
    height: u32,
    time: u32,
    txs: Vec<Transaction>,
    fees: Amount,
    miner: &Script,
) -> Block {
    let header = Header {
        version: Version::from_consensus(0x2000_0000),
        prev_blockhash: previous.block_hash(),
        merkle_root: TxMerkleNode::all_zeros(),
        time,
        bits: CompactTarget::from_consensus(EASIEST),
        nonce: 0,
    };
    let mut txdata = vec![coinbase(height, REWARD + fees, miner)];
    txdata.extend(txs);
    let mut block = Block { header, txdata };
    commit_to_witnesses(&mut block);
    block.header.merkle_root =
        block.compute_merkle_root().expect("a block with a coinbase has a merkle root");
    let target = block.header.target();
    while block.header.validate_pow(target).is_err() {
        block.header.nonce += 1;
    }
    block
}

fn coinbase(height: u32, value: Amount, miner: &Script) -> Transaction {
    // BIP 34 wants the height first; the bytes after it keep the script above its minimum of two bytes.
    let script_sig = script::Builder::new().push_int(i64::from(height)).push_slice(b"farebox").into_script();
    let input = TxIn {
        previous_output: OutPoint::null(),
        script_sig,
        sequence: Sequence::MAX,
        witness: Witness::from_slice(&[[0; 32]]),
    };
    let output = TxOut { value, script_pubkey: miner.to_owned() };
    Transaction {
        version: transaction::Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![input],
        output: vec![output],
    }
}

fn commit_to_witnesses(block: &mut Block) {
    let root = block.witness_root().expect("a block with a coinbase has a witness root");
    let commitment = Block::compute_witness_commitment(&root, &[0; 32]);
    let mut data = PushBytesBuf::from(COMMITMENT_TAG);
    data.extend_from_slice(commitment.as_byte_array()).expect("36 bytes fit in one push");
    let script_pubkey: ScriptBuf =
        script::Builder::new().push_opcode(OP_RETURN).push_slice(data).into_script();
    block.txdata[0].output.push(TxOut { value: Amount::ZERO, script_pubkey });
}
