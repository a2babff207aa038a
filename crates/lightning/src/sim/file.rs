//! The chain's file: every block, in order, each as a length and its consensus encoding. A record that was torn by a
//! crash can only be the last one; it is cut off.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use bitcoin::{Block, consensus};

/// An open block file, positioned at its end.
#[derive(Debug)]
pub(super) struct BlockFile(File);

impl BlockFile {
    /// Opens or creates the file and reads the blocks in it.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<Block>)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut blocks = Vec::new();
        let mut whole = 0;
        while let Some((block, end)) = read_record(&bytes, whole) {
            blocks.push(block);
            whole = end;
        }
        file.set_len(whole as u64)?;
        file.seek(SeekFrom::End(0))?;
        Ok((Self(file), blocks))
    }

    /// Appends a block; it is on disk when this returns.
    pub(super) fn append(&mut self, block: &Block) -> io::Result<()> {
        let body = consensus::serialize(block);
        let len = u32::try_from(body.len()).expect("a block is far smaller than 4 GB");
        let mut record = len.to_le_bytes().to_vec();
        record.extend_from_slice(&body);
        self.0.write_all(&record)?;
        self.0.sync_data()
    }
}

/// The record at `start` and where it ends; `None` when it isn't whole.
fn read_record(bytes: &[u8], start: usize) -> Option<(Block, usize)> {
    let (len, rest) = bytes.get(start..)?.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    let block = consensus::deserialize(rest.get(..len)?).ok()?;
    Some((block, start + 4 + len))
}
