//! Where the body goes: standard output, a file, or memory. Never changed, never cut.

use std::{
    fs,
    io::{self, ErrorKind, IsTerminal as _, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{self, Instant};

use super::part::{Part, directory};

/// More than this isn't put into a JSON object.
const MEMORY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where the body goes.
#[derive(Debug)]
pub(super) enum Place<'a> {
    Stdout,
    /// A file, and the part of it that may be gone on with.
    File(&'a Path, Option<Part>),
    Memory,
}

/// What has been taken.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// The length of the whole, what was there already included.
    pub(super) length: u64,
    /// How much of it was there already.
    pub(super) start: u64,
    /// Only from [`Place::Memory`].
    pub(super) kept: Vec<u8>,
}

/// The body did not come to its end.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) error: anyhow::Error,
    /// What can be gone on with, and how long it is.
    pub(super) part: Option<(PathBuf, u64)>,
}

impl<E: Into<anyhow::Error>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self { error: error.into(), part: None }
    }
}

/// The caller wanted to wait no longer.
#[derive(Debug, thiserror::Error)]
#[error("the time is up (--max-time)")]
pub(super) struct TimeUp;

/// Prints the status and the headers, as HTTP/1.1 has them.
pub(super) fn print_head(response: &reqwest::Response) -> anyhow::Result<()> {
    let mut head = format!("{:?} {}\r\n", response.version(), response.status()).into_bytes();
    for (name, value) in response.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    match io::stdout().lock().write_all(&head) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write the answer"),
    }
}

/// Takes the whole body to its place.
pub(super) async fn take(
    response: reqwest::Response,
    place: Place<'_>,
    shown: bool,
    deadline: Option<Instant>,
) -> Result<Body, Broken> {
    match place {
        Place::Stdout => {
            // A bar among the text that is printed would spoil both.
            let bar = shown && !io::stdout().is_terminal();
            Ok(copy(response, &mut io::stdout().lock(), 0, bar, deadline).await?)
        }
        Place::File(path, Some(part)) => to_part(response, path, part, shown, deadline).await,
        Place::File(path, None) => Ok(to_file(response, path, shown, deadline).await?),
        Place::Memory => {
            let mut kept = Bounded(Vec::new());
            let body = copy(response, &mut kept, 0, false, deadline).await?;
            Ok(Body { kept: kept.0, ..body })
        }
    }
}

/// Finds out whether [`Place::File`] can be written, before anything is paid for what goes there.
pub(super) fn check_writable(path: &Path) -> anyhow::Result<()> {
    let unwritable = || format!("cannot write `{}`", path.display());
    match fs::metadata(path) {
        Ok(old) if old.is_dir() => Err(io::Error::from(ErrorKind::IsADirectory)).with_context(unwritable),
        // A device or a pipe: opening it may wait for a reader, so it is left alone until there is something to write.
        Ok(old) if !old.is_file() => Ok(()),
        // The rename would replace a file that its owner has made read-only.
        Ok(_) => fs::OpenOptions::new().write(true).open(path).map(drop).with_context(unwritable),
        Err(_) => beside(path).map(drop).with_context(unwritable),
    }
}

/// Writes to the part and puts it in its place, so that what stands at `path` is always complete. A part that isn't stays.
async fn to_part(
    response: reqwest::Response,
    path: &Path,
    mut part: Part,
    shown: bool,
    deadline: Option<Instant>,
) -> Result<Body, Broken> {
    let unwritable = || format!("cannot write `{}`", path.display());
    keep_mode(&part.file, path).with_context(unwritable)?;
    let copied = copy(response, &mut part.file, part.start, shown, deadline).await;
    let there = part.file.metadata().with_context(unwritable)?.len();
    match (copied, part.length) {
        (Ok(_), Some(length)) if there != length => {
            part.discard();
            Err(anyhow::anyhow!("`{}` came to {there} bytes, and {length} were promised", path.display())
                .into())
        }
        (Ok(body), _) => {
            part.finish(path).with_context(unwritable)?;
            Ok(body)
        }
        (Err(error), _) if there == 0 => {
            part.discard();
            Err(error.into())
        }
        (Err(error), length) => {
            let part = part.path().to_owned();
            let of = length.map(|length| format!(" of {length}")).unwrap_or_default();
            let error = error.context(format!(
                "{there} bytes{of} are in `{}`; the same call with `-C -` goes on from there",
                part.display()
            ));
            Err(Broken { error, part: Some((part, there)) })
        }
    }
}

/// Writes to a file beside `path` and renames it. What is no file, like `/dev/null` or a pipe, is written to as it is.
async fn to_file(
    response: reqwest::Response,
    path: &Path,
    shown: bool,
    deadline: Option<Instant>,
) -> anyhow::Result<Body> {
    let unwritable = || format!("cannot write `{}`", path.display());
    if fs::metadata(path).is_ok_and(|old| !old.is_file()) {
        let mut place = fs::OpenOptions::new().write(true).open(path).with_context(unwritable)?;
        return copy(response, &mut place, 0, shown, deadline).await;
    }
    let mut file = beside(path).with_context(unwritable)?;
    keep_mode(file.as_file(), path).with_context(unwritable)?;
    let body = copy(response, &mut file, 0, shown, deadline).await?;
    file.as_file().sync_all().with_context(unwritable)?;
    file.persist(path).map_err(|error| error.error).with_context(unwritable)?;
    Ok(body)
}

/// A file that only its owner may read stays so when it is replaced, and so is what will replace it from the first byte.
fn keep_mode(file: &fs::File, path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(old) => file.set_permissions(old.permissions()),
        Err(_) => Ok(()),
    }
}

/// A new file in the directory of `path`; it goes away unless it is kept.
fn beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".farebox-get-");
    // The mode that a plain new file would get; the umask is taken off by the system.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(directory(path))
}

/// `start`: so much of the whole is there already.
async fn copy(
    mut response: reqwest::Response,
    to: &mut impl Write,
    start: u64,
    shown: bool,
    deadline: Option<Instant>,
) -> anyhow::Result<Body> {
    let bar = bar(response.content_length().map(|rest| start.saturating_add(rest)), shown);
    let mut body = Body { length: start, start, ..Body::default() };
    loop {
        let chunk = match deadline {
            Some(deadline) => time::timeout_at(deadline, response.chunk()).await.map_err(|_| TimeUp)?,
            None => response.chunk().await,
        };
        let chunk = chunk.map_err(reqwest::Error::without_url).context("the answer broke off")?;
        let Some(chunk) = chunk else { break };
        body.length += chunk.len() as u64;
        bar.set_position(body.length);
        match to.write_all(&chunk) {
            // A reader that has had enough (`| head`) is no error.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            written => written.context("cannot write the answer")?,
        }
    }
    match to.flush() {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        flushed => flushed.context("cannot write the answer")?,
    }
    bar.finish_and_clear();
    Ok(body)
}

fn bar(length: Option<u64>, shown: bool) -> ProgressBar {
    if !shown || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match length {
        Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{spinner} {bytes} {bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    length.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_style(style)
}

/// Memory, up to a point.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MEMORY_BYTES_MAX {
            return Err(io::Error::other(
                "the body is too large for a JSON object; write it to a file with -o",
            ));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
