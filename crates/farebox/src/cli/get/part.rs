//! A file that is fetched in more than one go: what has come so far lies beside it as `FILE.part`, and in `FILE.part.json` what
//! it is a part of.
//!
//! The rule: bytes of two versions of a resource never meet in one file. A part is gone on with only if the server names the
//! version by a strong validator, is asked for the rest on condition that it still is that version (`If-Range`), and says in
//! its answer that it sends just that. Everything else begins anew. The part is locked while somebody writes it, and one that
//! another user has put there is not touched.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use farebox_client::RequestBody;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How often a part that somebody else has just finished or thrown away is looked for again.
const TRIES: usize = 8;
/// Notes are not longer.
const NOTES_BYTES_MAX: u64 = 64 * 1024;

/// What a part is a part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    /// The hash of the request: its address, whose query may be a secret, and its headers, by which a server may choose what it
    /// sends.
    address: String,
    /// The hash of who has answered: behind a redirect, what is named alike in two places may be two things.
    #[serde(default)]
    place: String,
    validator: Validator,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoding: Option<String>,
    /// The length of the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
}

/// By what a server names a version of a resource, so that two that are named alike are alike byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Validator {
    Etag(String),
    LastModified(String),
}

/// A part that lies there.
#[derive(Debug)]
struct Begun {
    file: File,
    notes: Notes,
    /// Where to go on. In a part that is complete the last byte is asked for once more: nobody else knows whether it still is.
    start: u64,
}

/// A file to be fetched.
#[derive(Debug)]
pub(super) struct Download<'a> {
    path: &'a Path,
    address: String,
    can_resume: bool,
    /// The caller wants a part.
    is_ranged: bool,
    begun: Option<Begun>,
}

/// What an answer is to a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The rest.
    Rest,
    /// All of it.
    Whole,
    /// Nothing to go by: it must be asked for anew, as if nothing had come yet.
    Useless,
    /// A part is there, and this is not more of it.
    Other,
}

/// A part that is being written.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) file: File,
    /// How much of it was there.
    pub(super) start: u64,
    /// The length of the whole.
    pub(super) length: Option<u64>,
    path: PathBuf,
    notes: PathBuf,
}

impl<'a> Download<'a> {
    /// Begins with nothing, or, with `go_on`, with what an earlier download has left.
    pub(super) fn new(
        path: &'a Path,
        request: &http::Request<RequestBody>,
        go_on: bool,
    ) -> anyhow::Result<Self> {
        let is_a_file = fs::metadata(path).map_or(true, |old| old.is_file());
        let is_ranged = request.headers().contains_key(header::RANGE);
        let can_resume =
            is_a_file && request.method() == Method::GET && request.body().is_empty() && !is_ranged;
        anyhow::ensure!(
            can_resume || !go_on,
            "only a GET without a body and without a Range of its own, into a file, can be gone on with; leave out -C"
        );
        let address = address(request);
        let mut download = Self { path, address, can_resume, is_ranged, begun: None };
        if go_on {
            download.begun = download.begun()?;
        }
        Ok(download)
    }

    fn begun(&self) -> anyhow::Result<Option<Begun>> {
        let path = beside(self.path, ".part");
        let Some(file) =
            open(&path, false).with_context(|| format!("cannot go on with `{}`", path.display()))?
        else {
            return Ok(None);
        };
        let Some(notes) = Notes::read(&beside(self.path, ".part.json")) else { return Ok(None) };
        let there = file.metadata()?.len();
        let start = notes.length.map_or(there, |length| there.min(length.saturating_sub(1)));
        let is_of_it = notes.address == self.address && notes.length.is_none_or(|length| there <= length);
        Ok((is_of_it && start > 0).then_some(Begun { file, notes, start }))
    }

    /// Forgets what is there.
    pub(super) fn begin_anew(&mut self) {
        self.begun = None;
    }

    /// Asks for the rest only, if there is a beginning and it still is one of the same thing.
    pub(super) fn ask(&self, request: &mut http::Request<RequestBody>) -> anyhow::Result<()> {
        let Some(Begun { notes, start, .. }) = &self.begun else { return Ok(()) };
        let (Validator::Etag(version) | Validator::LastModified(version)) = &notes.validator;
        let headers = request.headers_mut();
        headers.insert(header::RANGE, HeaderValue::from_str(&format!("bytes={start}-"))?);
        headers.insert(header::IF_RANGE, HeaderValue::from_str(version)?);
        Ok(())
    }

    /// What this answer is to what [`Self::ask`] asked for.
    pub(super) fn judge(&self, status: StatusCode, headers: &HeaderMap, url: &Url) -> Answer {
        let Some(begun) = &self.begun else {
            // Nobody has asked for a part.
            let is_part = status == StatusCode::PARTIAL_CONTENT && !self.is_ranged;
            return if is_part { Answer::Other } else { Answer::Whole };
        };
        match status {
            StatusCode::OK => Answer::Whole,
            StatusCode::PARTIAL_CONTENT if begun.is_gone_on_with(headers, url) => Answer::Rest,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Answer::Useless,
            _ => Answer::Other,
        }
    }

    /// A part to write this answer to. `None`: it can't be gone on with later, or somebody else is at it.
    pub(super) fn part(
        self,
        answer: Answer,
        status: StatusCode,
        headers: &HeaderMap,
        url: &Url,
    ) -> anyhow::Result<Option<Part>> {
        let (path, notes_path) = (beside(self.path, ".part"), beside(self.path, ".part.json"));
        if let (Answer::Rest, Some(Begun { mut file, notes, start })) = (answer, self.begun) {
            file.set_len(start)?;
            file.seek(SeekFrom::Start(start))?;
            let length = notes.length.or_else(|| range(headers).map(|range| range.length));
            return Ok(Some(Part { file, start, length, path, notes: notes_path }));
        }
        if !self.can_resume || status != StatusCode::OK {
            return Ok(None);
        }
        let Some(validator) = Validator::of(headers) else { return Ok(None) };
        let Ok(Some(file)) = open(&path, true) else { return Ok(None) };
        // The old part goes before its notes do, and the new one comes after its own: at no time are there bytes beside
        // notes about others.
        file.set_len(0)?;
        let length = one(headers, &header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let encoding = one(headers, &header::CONTENT_ENCODING).map(str::to_owned);
        let notes = Notes { address: self.address, place: place(url), validator, encoding, length };
        if notes.write(&notes_path).is_err() {
            // Something else has the name. What was paid for comes all the same.
            _ = fs::remove_file(&path);
            return Ok(None);
        }
        Ok(Some(Part { file, start: 0, length, path, notes: notes_path }))
    }
}

impl Notes {
    /// The notes here; `None` where there are none that are ours.
    fn read(path: &Path) -> Option<Self> {
        let mut text = String::new();
        open(path, false).ok()??.take(NOTES_BYTES_MAX).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut written = tempfile::NamedTempFile::new_in(directory(path))?;
        written.write_all(&serde_json::to_vec(self)?)?;
        written.persist(path)?;
        Ok(())
    }
}

impl Begun {
    /// Whether the answer with these headers, from there, is the rest of this very thing.
    fn is_gone_on_with(&self, headers: &HeaderMap, url: &Url) -> bool {
        let Some(range) = range(headers) else { return false };
        let is_rest = range.first == self.start
            && range.last.checked_add(1) == Some(range.length)
            && self.notes.length.is_none_or(|length| length == range.length);
        // A server may not know `If-Range`; what it says of its version counts.
        let is_same = match &self.notes.validator {
            Validator::Etag(etag) => one(headers, &header::ETAG) == Some(etag),
            Validator::LastModified(moment) => {
                one(headers, &header::LAST_MODIFIED).is_none_or(|now| now == moment)
                    && !headers.contains_key(header::ETAG)
            }
        };
        let is_there = self.notes.place == place(url);
        is_there
            && is_rest
            && is_same
            && one(headers, &header::CONTENT_ENCODING) == self.notes.encoding.as_deref()
    }
}

impl Part {
    /// Puts the complete part where it belongs.
    pub(super) fn finish(self, path: &Path) -> io::Result<()> {
        let Self { file, path: part, notes, .. } = self;
        file.sync_all()?;
        fs::rename(&part, path)?;
        _ = fs::remove_file(notes);
        Ok(())
    }

    /// Throws it away: nothing was written, or what was written is wrong.
    pub(super) fn discard(self) {
        _ = fs::remove_file(&self.path);
        _ = fs::remove_file(&self.notes);
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Validator {
    /// The strong validator in these headers, if there is one.
    fn of(headers: &HeaderMap) -> Option<Self> {
        if let Some(etag) = one(headers, &header::ETAG)
            && etag.len() >= 2
            && etag.starts_with('"')
            && etag.ends_with('"')
        {
            return Some(Self::Etag(etag.to_owned()));
        }
        // Good to the second: of what changed in the very second of the answer there may be two versions.
        let (modified, now) = (one(headers, &header::LAST_MODIFIED)?, one(headers, &header::DATE)?);
        (modified != now && !headers.contains_key(header::ETAG))
            .then(|| Self::LastModified(modified.to_owned()))
    }
}

/// `Content-Range: bytes first-last/length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
    length: u64,
}

fn range(headers: &HeaderMap) -> Option<Range> {
    let (unit, range) = one(headers, &header::CONTENT_RANGE)?.trim().split_once(' ')?;
    let (range, length) = range.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let range = Range { first: number(first)?, last: number(last)?, length: number(length)? };
    (unit.eq_ignore_ascii_case("bytes") && range.first <= range.last).then_some(range)
}

/// The value of a header that is there once.
fn one<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// What tells requests apart.
fn address(request: &http::Request<RequestBody>) -> String {
    let mut hash = Sha256::new();
    hash.update(request.uri().to_string());
    for (name, value) in request.headers() {
        hash.update(b"\n");
        hash.update(name);
        hash.update(b":");
        hash.update(value);
    }
    hex::encode(hash.finalize())
}

/// What tells places apart: all of an address but the query, in which some servers sign each answer anew.
fn place(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    hex::encode(Sha256::digest(url.as_str()))
}

/// `FILE` and what is put behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The directory of a file.
pub(super) fn directory(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens a part and locks it. `None`: there is none, and none is to be made.
fn open(path: &Path, make: bool) -> io::Result<Option<File>> {
    for _ in 0..TRIES {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        // A link that leads nowhere is not followed to make a file there.
        let made = if make { options.clone().create_new(true).open(path) } else { options.open(path) };
        let file = match made {
            Ok(file) => file,
            Err(error) if make && error.kind() == ErrorKind::AlreadyExists => match options.open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            },
            Err(error) if !make && error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::Error::other("another program is writing it")),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        match is_still(&file, path) {
            Ok(true) => return Ok(Some(file)),
            // Whoever had it has put it in its place meanwhile, where nothing must be written any more.
            Ok(false) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("it comes and goes"))
}

/// Whether this file of our own still has this name.
#[cfg(unix)]
fn is_still(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let (open, named) = (file.metadata()?, fs::symlink_metadata(path)?);
    if !named.is_file() || open.uid() != rustix::process::geteuid().as_raw() || open.nlink() > 1 {
        return Err(io::Error::other("it is a link, or somebody else's file; remove it"));
    }
    Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
}

#[cfg(not(unix))]
fn is_still(_: &File, path: &Path) -> io::Result<bool> {
    Ok(fs::symlink_metadata(path)?.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| {
            (header::HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn only_what_names_a_version_for_sure_is_a_validator() {
        let strong = Some(Validator::Etag("\"a\"".to_owned()));
        let earlier = Some(Validator::LastModified("Sun, 06 Nov 1994 08:49:37 GMT".to_owned()));
        let now = ("date", "Sun, 06 Nov 1994 08:50:00 GMT");
        let modified = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        for (lines, want) in [
            (vec![("etag", "\"a\"")], &strong),
            (vec![("etag", "\"a\""), modified, now], &strong),
            (vec![("etag", "W/\"a\"")], &None),
            (vec![("etag", "a")], &None),
            (vec![("etag", "\"")], &None),
            (vec![("etag", "W/\"a\""), modified, now], &None),
            (vec![modified, now], &earlier),
            (vec![modified], &None),
            (vec![modified, ("date", "Sun, 06 Nov 1994 08:49:37 GMT")], &None),
            (vec![], &None),
        ] {
            assert_eq!(Validator::of(&headers(&lines)), *want, "{lines:?}");
        }
    }

    #[test]
    fn the_rest_is_only_what_says_that_it_is_the_rest_of_this() {
        let url = Url::parse("https://a.example/b?c").unwrap();
        let place = place(&url);
        let notes = |validator, length| Notes {
            address: String::new(),
            place: place.clone(),
            validator,
            encoding: None,
            length,
        };
        let judge = |notes: Notes, status: u16, lines: &[(&str, &str)]| {
            let begun = Some(Begun { file: tempfile::tempfile().unwrap(), notes, start: 5 });
            let path = Path::new("x");
            let download =
                Download { path, address: String::new(), can_resume: true, is_ranged: false, begun };
            download.judge(StatusCode::from_u16(status).unwrap(), &headers(lines), &url)
        };
        let etag = || Validator::Etag("\"a\"".to_owned());
        let moment = || Validator::LastModified("then".to_owned());
        let range = ("content-range", "bytes 5-9/10");
        use Answer::{Other, Rest, Useless, Whole};
        for (notes, status, lines, want) in [
            (notes(etag(), Some(10)), 206, vec![range, ("etag", "\"a\"")], Rest),
            (notes(etag(), None), 206, vec![range, ("etag", "\"a\"")], Rest),
            (notes(etag(), Some(10)), 206, vec![range], Useless),
            (notes(etag(), Some(10)), 206, vec![range, ("etag", "\"b\"")], Useless),
            (notes(etag(), Some(10)), 206, vec![range, ("etag", "W/\"a\"")], Useless),
            (notes(etag(), Some(10)), 206, vec![("etag", "\"a\"")], Useless),
            (notes(etag(), Some(11)), 206, vec![range, ("etag", "\"a\"")], Useless),
            (
                notes(etag(), Some(10)),
                206,
                vec![("content-range", "bytes 4-9/10"), ("etag", "\"a\"")],
                Useless,
            ),
            (
                notes(etag(), Some(10)),
                206,
                vec![("content-range", "bytes 5-8/10"), ("etag", "\"a\"")],
                Useless,
            ),
            (notes(etag(), None), 206, vec![("content-range", "bytes 5-9/*"), ("etag", "\"a\"")], Useless),
            (notes(etag(), None), 206, vec![("content-range", "lines 5-9/10"), ("etag", "\"a\"")], Useless),
            (notes(etag(), None), 206, vec![range, range, ("etag", "\"a\"")], Useless),
            (notes(etag(), None), 206, vec![range, ("etag", "\"a\""), ("content-encoding", "gzip")], Useless),
            (notes(moment(), None), 206, vec![range], Rest),
            (notes(moment(), None), 206, vec![range, ("last-modified", "then")], Rest),
            (notes(moment(), None), 206, vec![range, ("last-modified", "now")], Useless),
            (notes(moment(), None), 206, vec![range, ("etag", "\"a\"")], Useless),
            (notes(etag(), None), 200, vec![], Whole),
            (notes(etag(), None), 416, vec![("content-range", "bytes */5")], Useless),
            (notes(etag(), None), 404, vec![], Other),
            (notes(etag(), None), 503, vec![], Other),
            (notes(etag(), None), 204, vec![], Other),
        ] {
            assert_eq!(judge(notes.clone(), status, &lines), want, "{notes:?} {status} {lines:?}");
        }
    }

    #[test]
    fn a_part_is_written_by_one_at_a_time_and_never_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.part");
        assert!(open(&path, false).unwrap().is_none());
        let held = open(&path, true).unwrap().unwrap();
        assert_eq!(open(&path, true).unwrap_err().to_string(), "another program is writing it");
        drop(held);
        assert!(open(&path, false).unwrap().is_some());
        #[cfg(unix)]
        {
            let other = directory.path().join("other");
            fs::write(&other, "mine").unwrap();
            for (name, target) in [("a.part", other.as_path()), ("b.part", Path::new("nowhere"))] {
                let link = directory.path().join(name);
                std::os::unix::fs::symlink(target, &link).unwrap();
                assert!(open(&link, true).is_err(), "{name}");
            }
            fs::hard_link(&other, directory.path().join("c.part")).unwrap();
            assert!(open(&directory.path().join("c.part"), true).is_err());
            assert_eq!(fs::read(&other).unwrap(), b"mine");
            assert!(!directory.path().join("nowhere").exists());
        }
    }
}
