//! The body of a request that the engine sends: bytes that are kept, or a file that is read each time.
//!
//! A purchase sends its request more than once, so what is sent must be there more than once. Of a file no more is in memory
//! than is on its way: each attempt opens it anew and reads it as it goes out. That it is still the same file, as long as it was
//! and not written to since, is looked at before each attempt, and so before anything is paid. What stands in it is not compared.
//! What is kept goes out in pieces as well, and may be kept in pieces: nobody needs it in one, and joining them takes twice the room.

use std::{
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tokio::fs::File;
use tokio_util::io::poll_read_buf;

use crate::http::Progress;

/// So much of a file is read at once.
const PIECE_BYTES: usize = 64 * 1024;

/// The body of a request that can be sent more than once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RequestBody(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Bytes(Bytes),
    Pieces(Arc<[Bytes]>),
    File(Arc<Source>),
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    version: Version,
}

/// What tells a file from another by the same name, and from what it was before somebody wrote to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    bytes: u64,
    written_at: Option<SystemTime>,
    #[cfg(unix)]
    place: (u64, u64),
}

impl RequestBody {
    /// The file at `path` as it is now. It is read whenever the request is sent, and must stay as it is until that is answered.
    /// Blocks for a moment.
    ///
    /// What is no file, such as a pipe, can't be read twice: an error of the kind [`io::ErrorKind::InvalidInput`].
    pub fn file(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        // Opening a pipe would wait for whoever writes to it.
        if !fs::metadata(&path)?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no file, so it can't be read twice",
            ));
        }
        let version = Version::of(&fs::File::open(&path)?.metadata()?);
        Ok(Self(Kind::File(Arc::new(Source { path, version }))))
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.length() == 0
    }

    /// How many bytes there are to send.
    pub fn length(&self) -> u64 {
        match &self.0 {
            Kind::Bytes(bytes) => bytes.len() as u64,
            Kind::Pieces(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
            Kind::File(source) => source.version.bytes,
        }
    }

    /// All of it, where it is kept in one piece.
    pub fn kept(&self) -> Option<&Bytes> {
        match &self.0 {
            Kind::Bytes(bytes) => Some(bytes),
            Kind::Pieces(_) | Kind::File(_) => None,
        }
    }

    /// Where it is read from.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Bytes(_) | Kind::Pieces(_) => None,
            Kind::File(source) => Some(&source.path),
        }
    }

    /// Whether it can be sent, as far as anybody can know before it is.
    pub(crate) async fn is_there(&self) -> bool {
        match &self.0 {
            Kind::Bytes(_) | Kind::Pieces(_) => true,
            Kind::File(source) => source.open().await.is_ok(),
        }
    }

    /// All of it, for one attempt. `progress` is told of each piece that is taken.
    pub(crate) async fn begin(&self, progress: &Progress) -> Result<reqwest::Body, ReadError> {
        let from = match &self.0 {
            Kind::Bytes(bytes) => Outlet::Kept([bytes.clone()].into()),
            Kind::Pieces(pieces) => Outlet::Kept(pieces.iter().cloned().collect()),
            Kind::File(source) => Outlet::File(source.open().await?),
        };
        Ok(reqwest::Body::wrap(Sending { from, left: self.length(), progress: progress.clone() }))
    }
}

impl Default for RequestBody {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl From<Bytes> for RequestBody {
    fn from(bytes: Bytes) -> Self {
        Self(Kind::Bytes(bytes))
    }
}

impl From<Vec<Bytes>> for RequestBody {
    /// These pieces, one behind the other.
    fn from(pieces: Vec<Bytes>) -> Self {
        Self(Kind::Pieces(pieces.into()))
    }
}

/// Why a file can't be sent, or not to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("it can't be read")]
    Io(#[from] io::Error),
    #[error("it has changed since the request was made")]
    Changed,
    #[error("it became shorter while it was sent")]
    Shorter,
}

impl ReadError {
    /// Whether this is what has ended an attempt.
    pub(crate) fn is_behind(error: &(dyn std::error::Error + 'static)) -> bool {
        std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<Self>())
    }
}

impl Source {
    async fn open(&self) -> Result<Reading, ReadError> {
        let file = File::open(&self.path).await?;
        if Version::of(&file.metadata().await?) != self.version {
            return Err(ReadError::Changed);
        }
        Ok(Reading { file, room: BytesMut::new() })
    }
}

impl Version {
    fn of(facts: &fs::Metadata) -> Self {
        Self {
            bytes: facts.len(),
            written_at: facts.modified().ok(),
            #[cfg(unix)]
            place: (std::os::unix::fs::MetadataExt::dev(facts), std::os::unix::fs::MetadataExt::ino(facts)),
        }
    }
}

/// A body on its way out: as much of it as was announced.
struct Sending {
    from: Outlet,
    left: u64,
    progress: Progress,
}

/// Where it comes from.
enum Outlet {
    /// What is left of what is kept.
    Kept(std::collections::VecDeque<Bytes>),
    File(Reading),
}

/// A file that is being read.
struct Reading {
    file: File,
    room: BytesMut,
}

impl Outlet {
    /// The next piece, no longer than what is read of a file at once.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, ReadError>> {
        match self {
            Self::Kept(pieces) => Poll::Ready(loop {
                let Some(first) = pieces.front_mut() else { break Err(ReadError::Shorter) };
                if first.is_empty() {
                    pieces.pop_front();
                    continue;
                }
                break Ok(first.split_to(first.len().min(PIECE_BYTES)));
            }),
            Self::File(Reading { file, room }) => {
                room.reserve(PIECE_BYTES);
                let read = ready!(poll_read_buf(Pin::new(file), cx, room));
                Poll::Ready(match read {
                    Ok(0) => Err(ReadError::Shorter),
                    Ok(_) => Ok(room.split().freeze()),
                    Err(error) => Err(error.into()),
                })
            }
        }
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let mut piece = ready!(this.from.poll(cx))?;
        // Of a file that has grown, no more than was announced.
        piece.truncate(usize::try_from(this.left).unwrap_or(usize::MAX));
        this.left -= piece.len() as u64;
        this.progress.add(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, time::Duration};

    use http_body_util::BodyExt as _;

    use super::*;

    /// A file of so many bytes, no two pieces of which are the same, and a body of it.
    fn file(bytes: u32) -> (tempfile::NamedTempFile, Vec<u8>, RequestBody) {
        let text: Vec<u8> = (0..bytes / 4).flat_map(u32::to_le_bytes).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&text).unwrap();
        let body = RequestBody::file(file.path()).unwrap();
        (file, text, body)
    }

    async fn open(body: &RequestBody) -> Result<Sending, ReadError> {
        let Kind::File(source) = &body.0 else { panic!("{body:?}") };
        let progress = Progress::new(body.length());
        source.open().await.map(|file| Sending { from: Outlet::File(file), left: body.length(), progress })
    }

    #[tokio::test]
    async fn a_file_goes_out_whole_as_often_as_it_takes() {
        let (_file, text, body) = file(330_000);
        // The second attempt begins before the first has ended.
        let mut first = open(&body).await.unwrap();
        assert!(first.frame().await.unwrap().is_ok());
        let second = open(&body).await.unwrap();
        assert_eq!(http_body::Body::size_hint(&second).exact(), Some(text.len() as u64));
        assert_eq!(second.collect().await.unwrap().to_bytes(), text);
        let rest = first.collect().await.unwrap().to_bytes();
        assert!(text.ends_with(&rest) && rest.len() < text.len());
        assert!(body.is_there().await);
    }

    #[tokio::test]
    async fn a_file_that_has_changed_in_any_way_is_not_sent() {
        let replaced = |path: &Path| {
            let before = fs::metadata(path).unwrap();
            let other = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
            fs::copy(path, other.path()).unwrap();
            other.as_file().set_modified(before.modified().unwrap()).unwrap();
            other.persist(path).unwrap();
        };
        let written = |path: &Path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(file.metadata().unwrap().modified().unwrap() + Duration::from_secs(1)).unwrap();
        };
        let longer =
            |path: &Path| fs::File::options().append(true).open(path).unwrap().write_all(b"!").unwrap();
        let gone = |path: &Path| fs::remove_file(path).unwrap();
        let changes: [&dyn Fn(&Path); 4] = [&replaced, &written, &longer, &gone];
        for (number, change) in changes.into_iter().enumerate() {
            let (file, _, body) = file(64);
            assert!(body.is_there().await);
            let path = file.path().to_owned();
            change(&path);
            // What was put in its place is not ours to delete.
            _ = file.keep();
            let begun = body.begin(&Progress::new(body.length())).await;
            assert!(!body.is_there().await && begun.is_err(), "{number}");
            _ = fs::remove_file(path);
        }
    }

    #[tokio::test]
    async fn what_changes_under_way_is_as_long_as_announced_or_an_error() {
        let (grown, text, body) = file(64);
        let sending = open(&body).await.unwrap();
        grown.as_file().write_all(b"and more").unwrap();
        assert_eq!(sending.collect().await.unwrap().to_bytes(), text);

        let (cut, _, body) = file(64);
        let sending = open(&body).await.unwrap();
        cut.as_file().set_len(10).unwrap();
        let error = sending.collect().await.unwrap_err();
        assert!(matches!(error, ReadError::Shorter), "{error:?}");
    }

    #[tokio::test]
    async fn what_is_kept_goes_out_piece_by_piece_and_each_is_told() {
        let long = Bytes::from(vec![7; 150_000]);
        for body in [
            RequestBody::from(long.clone()),
            RequestBody::from(vec![long.slice(..100_000), Bytes::new(), long.slice(100_000..)]),
        ] {
            assert_eq!((body.length(), body.is_empty()), (150_000, false));
            for _ in 0..2 {
                let sending = body.begin(&Progress::new(body.length())).await.unwrap();
                assert_eq!(http_body::Body::size_hint(&sending).exact(), Some(150_000));
                let mut sending = std::pin::pin!(sending);
                let mut whole = Vec::new();
                while let Some(frame) = sending.frame().await {
                    let piece = frame.unwrap().into_data().unwrap();
                    assert!(piece.len() <= PIECE_BYTES);
                    whole.extend_from_slice(&piece);
                }
                assert_eq!(whole, long);
            }
        }
        assert!(RequestBody::from(Vec::new()).is_empty());
    }

    #[test]
    fn what_can_not_be_read_twice_is_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let error = RequestBody::file(directory.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = RequestBody::file(directory.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
