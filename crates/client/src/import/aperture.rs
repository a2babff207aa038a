//! The token files of aperture's client, which lnget and loop have inside: big-endian, one token a file, the paid one as
//! `l402.token`, one that was about to be paid for as `l402.token.pending`; older ones are called `lsat`.

use std::{fs, io, path::Path};

use farebox_protocol::{Macaroon, Msat, PaymentHash, Preimage, Scheme, Timestamp};

use super::{ENTRIES_MAX, Entry, ImportError, Place, Sieve, Unfit, bytes_of};

/// A macaroon has at most this many bytes, and what stands behind it exactly [`TAIL`].
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Hash, preimage, amount, fee, time.
const TAIL: usize = 32 + 32 + 8 + 8 + 8;

/// The paid ones first.
const NAMES: [&str; 4] = ["l402.token", "lsat.token", "l402.token.pending", "lsat.token.pending"];

const NETWORKS: [&str; 6] = ["mainnet", "testnet", "testnet4", "signet", "regtest", "simnet"];

/// lnget's directory of directories, or one of these.
pub(super) fn read_lnget(path: &Path, sieve: &mut Sieve<'_>) -> Result<(), ImportError> {
    if path.is_file() || has_token(path) {
        let place = path.is_dir().then(|| domain_of(path)).flatten();
        return read_in(path, || place.clone().map_or(Place::Unknown, Place::Host), sieve);
    }
    for directory in directories_in(path)? {
        let domain = domain_of(&directory);
        if has_token(&directory) {
            read_in(&directory, || domain.clone().map_or(Place::Unknown, Place::Host), sieve)?;
        }
    }
    Ok(())
}

/// One store, or one file of it.
pub(super) fn read_store(path: &Path, sieve: &mut Sieve<'_>) -> Result<(), ImportError> {
    read_in(path, || Place::Unknown, sieve)
}

/// loop's directory, of one network or of all.
pub(super) fn read_loop(path: &Path, sieve: &mut Sieve<'_>) -> Result<(), ImportError> {
    if path.is_file() || has_token(path) {
        return read_store(path, sieve);
    }
    fs::metadata(path).map_err(|source| ImportError::Io { path: path.display().to_string(), source })?;
    for network in NETWORKS.map(|name| path.join(name)) {
        if has_token(&network) {
            read_store(&network, sieve)?;
        }
    }
    Ok(())
}

fn has_token(directory: &Path) -> bool {
    NAMES.iter().any(|name| directory.join(name).symlink_metadata().is_ok())
}

fn read_in(path: &Path, place: impl Fn() -> Place, sieve: &mut Sieve<'_>) -> Result<(), ImportError> {
    fs::metadata(path).map_err(|source| ImportError::Io { path: path.display().to_string(), source })?;
    let files = match path.is_dir() {
        true => {
            NAMES.iter().map(|name| path.join(name)).filter(|file| file.symlink_metadata().is_ok()).collect()
        }
        false => vec![path.to_owned()],
    };
    for file in files {
        let name = file.display().to_string();
        // What a link in a store leads to is none of its tokens; who names a link means what it leads to.
        if file != path && file.symlink_metadata().is_ok_and(|found| !found.is_file()) {
            sieve.skip(name, Unfit::NotAFile);
            continue;
        }
        match bytes_of(&file, FILE_BYTES_MAX) {
            Ok(bytes) => match parse(&bytes, name.clone(), place()) {
                Ok(entry) => sieve.take(entry),
                Err(reason) => sieve.skip(name, reason),
            },
            Err(ImportError::TooLarge { .. }) => sieve.skip(name, Unfit::NotATokenFile("it is too long")),
            Err(ImportError::Io { source, .. }) => sieve.skip(name, Unfit::Unreadable(source.to_string())),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One file.
pub(super) fn parse(bytes: &[u8], name: String, place: Place) -> Result<Entry, Unfit> {
    let wrong = Unfit::NotATokenFile;
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(wrong("it is too short"))?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if rest.len() != length.saturating_add(TAIL) {
        return Err(wrong("its length is not what it says"));
    }
    let (macaroon, tail) = rest.split_at(length);
    let macaroon = Macaroon::from_bytes(macaroon).map_err(|_| wrong("its macaroon can't be read"))?;
    let take = |from: usize| tail.get(from..from + 8).and_then(|part| <[u8; 8]>::try_from(part).ok());
    let bytes_at = |from: usize| tail.get(from..from + 32).and_then(|part| <[u8; 32]>::try_from(part).ok());
    let short = wrong("it is too short");
    let (Some(hash), Some(preimage)) = (bytes_at(0), bytes_at(32)) else { return Err(short) };
    let (Some(amount), Some(fee), Some(created)) = (take(64), take(72), take(80)) else { return Err(short) };
    let is_pending = preimage == [0; 32];
    // What is pending has cost nothing yet, as far as its file knows.
    let money = |bytes| (!is_pending).then(|| Msat::new(u64::from_be_bytes(bytes)));
    let nanos = i64::from_be_bytes(created);
    Ok(Entry {
        name,
        place,
        scheme: Scheme::L402,
        token: macaroon.to_base64(),
        payment_hash: Some(PaymentHash::from_bytes(hash)),
        preimage: (!is_pending).then(|| Preimage::from_bytes(preimage)),
        amount: money(amount),
        fee: money(fee),
        bought_at: u64::try_from(nanos).ok().map(|nanos| Timestamp::from_secs(nanos / 1_000_000_000)),
    })
}

/// The domain of one of lnget's directories: in a file beside the token, or in the directory's own name.
fn domain_of(directory: &Path) -> Option<String> {
    let marker = directory.join(".domain");
    if marker.symlink_metadata().is_ok_and(|found| found.is_file()) {
        let bytes = bytes_of(&marker, 1_024).ok()?;
        return Some(std::str::from_utf8(&bytes).ok()?.trim().to_owned());
    }
    let name = directory.file_name()?.to_str()?;
    Some(match name.rsplit_once('_') {
        Some((host, port)) => format!("{host}:{port}"),
        None => name.to_owned(),
    })
}

/// In the order of their names, so that two runs tell the same.
fn directories_in(path: &Path) -> Result<Vec<std::path::PathBuf>, ImportError> {
    let failed = |source: io::Error| ImportError::Io { path: path.display().to_string(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
        if found.len() > ENTRIES_MAX {
            let (path, most) = (path.display().to_string(), ENTRIES_MAX as u64);
            return Err(ImportError::TooLarge { path, most, unit: "directories" });
        }
    }
    found.sort();
    Ok(found)
}
