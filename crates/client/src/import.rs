//! Credentials that another program has bought, as that program keeps them.
//!
//! A file is read as what it is, a stranger's: bounded, checked entry by entry, never changed. What holds, the proof for its
//! payment and the payment for its token, comes out as [`Found`]; what doesn't is told by name and reason and left out.
//! Nothing here touches the journal, and no text holds a secret.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use farebox_protocol::{Macaroon, Msat, PaymentHash, Preimage, Scheme, Timestamp};
use zeroize::Zeroizing;

use crate::Origin;
use crate::pass::{TokenFacts, can_be_sent, facts_of};

mod aperture;
mod database;
mod json;
#[cfg(test)]
mod tests;

pub use json::write as write_tokens;

/// Who wrote the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Program {
    /// lnget: a directory for each domain.
    Lnget,
    /// Anything with aperture's client in it: one token a directory.
    Aperture,
    /// loop: such a directory for each network, or what `loop listauth` prints.
    Loop,
    /// Fewsats' libraries and command: SQLite.
    Fewsats,
    /// L402sdk: SQLite.
    L402sdk,
    /// Alby's libraries and command: JSON.
    Alby,
    /// farebox itself: what `tokens export` writes.
    Farebox,
}

/// A credential, checked as far as it can be without its seller.
#[derive(Clone)]
#[non_exhaustive]
pub struct Found {
    /// Where in the source it was.
    pub name: String,
    /// Where it was bought.
    pub origin: Origin,
    /// The path that it was bought for, where that is known.
    pub path: Option<String>,
    /// The scheme that its seller speaks.
    pub scheme: Scheme,
    /// The token. Together with the proof it is a secret.
    pub token: String,
    /// The payment.
    pub payment_hash: PaymentHash,
    /// The proof of it; `None` where the program was about to pay and never knew how that ended.
    pub preimage: Option<Preimage>,
    /// What it cost, where that is known.
    pub amount: Option<Msat>,
    /// What the route cost, where that is known.
    pub fee: Option<Msat>,
    /// When it was bought, where that is known.
    pub bought_at: Option<Timestamp>,
}

/// Something in the source that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// Where in the source it is.
    pub name: String,
    /// Why.
    pub reason: Unfit,
}

/// What a source holds.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Haul {
    /// What can be used, once for each payment.
    pub found: Vec<Found>,
    /// What can't.
    pub skipped: Vec<Skipped>,
}

/// Why an entry is left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// A file of one token that isn't one.
    #[error("it is no token file: {0}")]
    NotATokenFile(&'static str),
    /// The entry isn't built as it should be.
    #[error("{0}")]
    Shape(&'static str),
    /// The proof belongs to another payment.
    #[error("its preimage is not of its payment")]
    OtherPreimage,
    /// The token waits for another payment.
    #[error("its token commits to another payment")]
    OtherToken,
    /// The token can't stand in a header.
    #[error("its token can't be sent in a header")]
    Unsendable,
    /// Nobody has written down who sold it.
    #[error("nothing tells which server sold it; name it with --origin")]
    NoOrigin,
    /// The place isn't one.
    #[error("where it was bought is no http or https address")]
    BadOrigin,
    /// It is not what was asked for.
    #[error("it is of `{0}`, not of the server that was named")]
    OtherOrigin(String),
    /// Another one for the same place is newer.
    #[error("the same place has a newer one")]
    Older,
    /// A link, a device, a pipe.
    #[error("it is not a plain file")]
    NotAFile,
    /// It can't be read at all.
    #[error("it can't be read: {0}")]
    Unreadable(String),
}

/// Why a source can't be read at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file or directory.
    #[error("`{path}` can't be read")]
    Io {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It isn't what that program writes.
    #[error("`{path}` is not what {program} writes: {what}")]
    Format {
        /// Which file.
        path: String,
        /// Who is said to have written it.
        program: &'static str,
        /// What is wrong.
        what: String,
    },
    /// More than anybody's tokens take.
    #[error("`{path}` has more than {most} {unit}; that is no token store")]
    TooLarge {
        /// Which.
        path: String,
        /// The most.
        most: u64,
        /// Of what.
        unit: &'static str,
    },
}

/// So many entries are read from one source.
const ENTRIES_MAX: usize = 10_000;

/// The longest JSON that is read.
const JSON_BYTES_MAX: u64 = 16 << 20;

impl Program {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lnget => "lnget",
            Self::Aperture => "aperture",
            Self::Loop => "loop",
            Self::Fewsats => "fewsats",
            Self::L402sdk => "l402sdk",
            Self::Alby => "alby",
            Self::Farebox => "farebox",
        }
    }

    /// Where it keeps its tokens, if everybody's are in one place.
    pub fn usual_place(self, home: &Path) -> Option<PathBuf> {
        match self {
            Self::Lnget => Some(home.join(".lnget/tokens")),
            Self::Loop => Some(home.join(".loop")),
            Self::Fewsats => Some(home.join("credentials.db")),
            Self::Aperture | Self::L402sdk | Self::Alby | Self::Farebox => None,
        }
    }

    /// Reads what it keeps at `path`. `origin` says who sold what has no place written beside it, and is the only one that
    /// counts where there is one. Blocks.
    pub fn read(self, path: &Path, origin: Option<&Origin>) -> Result<Haul, ImportError> {
        let mut sieve = Sieve { origin, haul: Haul::default() };
        match self {
            Self::Lnget => aperture::read_lnget(path, &mut sieve)?,
            Self::Aperture => aperture::read_store(path, &mut sieve)?,
            Self::Loop if path.is_file() && looks_like_json(path) => {
                json::read_loop(&json_of(path)?, &self.format(path), &mut sieve)?;
            }
            Self::Loop => aperture::read_loop(path, &mut sieve)?,
            Self::Fewsats => database::read_fewsats(path, &self.format(path), &mut sieve)?,
            Self::L402sdk => database::read_l402sdk(path, &self.format(path), &mut sieve)?,
            Self::Alby => json::read_alby(&json_of(path)?, &self.format(path), &mut sieve)?,
            Self::Farebox => json::read_own(&json_of(path)?, &self.format(path), &mut sieve)?,
        }
        Ok(sieve.haul.without_doubles())
    }

    /// Reads what farebox has exported, from a text instead of a file.
    pub fn read_own_text(text: &str, origin: Option<&Origin>) -> Result<Haul, ImportError> {
        let mut sieve = Sieve { origin, haul: Haul::default() };
        json::read_own(text, &Self::Farebox.format(Path::new("-")), &mut sieve)?;
        Ok(sieve.haul.without_doubles())
    }

    /// What makes an error about the format of this file.
    fn format(self, path: &Path) -> Format {
        Format { path: path.display().to_string(), program: self.name() }
    }
}

/// A file and who is said to have written it.
struct Format {
    path: String,
    program: &'static str,
}

impl Format {
    fn wrong(&self, what: impl ToString) -> ImportError {
        ImportError::Format { path: self.path.clone(), program: self.program, what: what.to_string() }
    }
}

/// An entry, as read and not yet believed.
struct Entry {
    name: String,
    place: Place,
    scheme: Scheme,
    token: String,
    /// As written; where only a proof is, the payment follows from it.
    payment_hash: Option<PaymentHash>,
    preimage: Option<Preimage>,
    amount: Option<Msat>,
    fee: Option<Msat>,
    bought_at: Option<Timestamp>,
}

/// What an entry says about where it was bought.
enum Place {
    Unknown,
    /// A host, perhaps with a port, without a scheme.
    Host(String),
    /// A whole address.
    Url(String),
}

/// Lets through what holds.
struct Sieve<'a> {
    origin: Option<&'a Origin>,
    haul: Haul,
}

impl Sieve<'_> {
    fn skip(&mut self, name: impl Into<String>, reason: Unfit) {
        self.haul.skipped.push(Skipped { name: name.into(), reason });
    }

    fn take(&mut self, entry: Entry) {
        let name = entry.name.clone();
        match self.check(entry) {
            Ok(found) => self.haul.found.push(found),
            Err(reason) => self.skip(name, reason),
        }
    }

    fn is_full(&self) -> bool {
        self.haul.found.len().saturating_add(self.haul.skipped.len()) >= ENTRIES_MAX
    }

    fn check(&self, entry: Entry) -> Result<Found, Unfit> {
        let Entry { name, place, scheme, token, payment_hash, preimage, amount, fee, bought_at } = entry;
        if !can_be_sent(&token) {
            return Err(Unfit::Unsendable);
        }
        let committed = facts(&token).payment_hash;
        let proven = preimage.as_ref().map(Preimage::payment_hash);
        let payment_hash = payment_hash
            .or(proven)
            .or(committed)
            .ok_or(Unfit::Shape("it has neither a payment hash nor a preimage"))?;
        if proven.is_some_and(|proven| proven != payment_hash) {
            return Err(Unfit::OtherPreimage);
        }
        if committed.is_some_and(|committed| committed != payment_hash) {
            return Err(Unfit::OtherToken);
        }
        let (origin, path) = self.place(place)?;
        Ok(Found { name, origin, path, scheme, token, payment_hash, preimage, amount, fee, bought_at })
    }

    fn place(&self, place: Place) -> Result<(Origin, Option<String>), Unfit> {
        match place {
            Place::Unknown => Ok((self.origin.cloned().ok_or(Unfit::NoOrigin)?, None)),
            Place::Host(host) => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
                if host.is_empty() || host.len() > 300 || !host.bytes().all(plain) {
                    return Err(Unfit::BadOrigin);
                }
                let over = |scheme: &str| format!("{scheme}://{host}").parse::<Origin>();
                let tls = over("https").map_err(|_| Unfit::BadOrigin)?;
                match self.origin {
                    None => Ok((tls, None)),
                    Some(named) if *named == tls || over("http").is_ok_and(|clear| *named == clear) => {
                        Ok((named.clone(), None))
                    }
                    Some(_) => Err(Unfit::OtherOrigin(tls.to_string())),
                }
            }
            Place::Url(text) => {
                let url = reqwest::Url::parse(&text).map_err(|_| Unfit::BadOrigin)?;
                let origin = Origin::of(&url).ok_or(Unfit::BadOrigin)?;
                if self.origin.is_some_and(|named| *named != origin) {
                    return Err(Unfit::OtherOrigin(origin.to_string()));
                }
                Ok((origin, Some(url.path().to_owned())))
            }
        }
    }
}

impl Haul {
    /// One of each payment: a proof counts more than none.
    fn without_doubles(mut self) -> Self {
        let mut kept: Vec<Found> = Vec::new();
        let mut at = std::collections::HashMap::new();
        for found in self.found {
            match at.entry(found.payment_hash) {
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(kept.len());
                    kept.push(found);
                }
                std::collections::hash_map::Entry::Occupied(taken) => {
                    if let Some(earlier) = kept.get_mut(*taken.get())
                        && earlier.preimage.is_none()
                    {
                        *earlier = found;
                    }
                }
            }
        }
        self.found = kept;
        self
    }
}

impl Found {
    /// What the token says of itself, where it can be read.
    pub(crate) fn facts(&self) -> TokenFacts {
        facts(&self.token)
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found")
            .field("name", &self.name)
            .field("origin", &self.origin)
            .field("payment_hash", &self.payment_hash)
            .field("is_paid", &self.preimage.is_some())
            .finish_non_exhaustive()
    }
}

fn facts(token: &str) -> TokenFacts {
    let macaroon = Macaroon::from_base64(token).or_else(|_| Macaroon::from_hex(token));
    macaroon.as_ref().map(facts_of).unwrap_or_default()
}

/// A preimage in hexadecimal digits; nothing, or all zeros, is none.
fn preimage_of(text: &str) -> Result<Option<Preimage>, Unfit> {
    let text = text.trim();
    if text.is_empty() || (text.len() == 64 && text.bytes().all(|b| b == b'0')) {
        return Ok(None);
    }
    Preimage::from_hex(text).map(Some).map_err(|_| Unfit::Shape("its preimage is not 64 hexadecimal digits"))
}

/// A moment as programs write it: seconds since 1970, or `2026-11-22T18:05:00Z` with any fraction and offset.
fn moment_of(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if let Ok(secs) = text.parse::<u64>() {
        return Some(Timestamp::from_secs(secs));
    }
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let in_range = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !in_range || !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0..=60).contains(&second) {
        return None;
    }
    let rest = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit()).trim();
    let offset = match rest.as_bytes() {
        [] | [b'Z'] => 0,
        [sign @ (b'+' | b'-'), ..] => {
            let at = |range: std::ops::Range<usize>| rest.get(range)?.parse::<i64>().ok();
            let minutes = at(1..3)? * 60 + at(4..6)?;
            if *sign == b'+' { minutes * 60 } else { -minutes * 60 }
        }
        _ => return None,
    };
    // Days since 1970, counted from March, so that a leap day is the last of its year.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    let secs = days * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    u64::try_from(secs).ok().map(Timestamp::from_secs)
}

/// A plain file, whole, if it has at most `most` bytes.
fn bytes_of(path: &Path, most: u64) -> Result<Zeroizing<Vec<u8>>, ImportError> {
    let failed = |source| ImportError::Io { path: path.display().to_string(), source };
    // Asked before it is opened: opening a pipe would wait for its other end.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a plain file")));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    let file = fs::File::open(path).map_err(failed)?;
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(ImportError::TooLarge { path: path.display().to_string(), most, unit: "bytes" });
    }
    Ok(bytes)
}

fn json_of(path: &Path) -> Result<Zeroizing<String>, ImportError> {
    let mut bytes = bytes_of(path, JSON_BYTES_MAX)?;
    let text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| ImportError::Io {
        path: path.display().to_string(),
        source: io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()),
    })?;
    Ok(Zeroizing::new(text))
}

fn looks_like_json(path: &Path) -> bool {
    let mut start = [0; 64];
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut start)).unwrap_or(0);
    start[..read].iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| matches!(b, b'[' | b'{'))
}
