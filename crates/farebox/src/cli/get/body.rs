//! Where the body goes: standard output, a file, or memory. Never changed, never cut.

use std::{
    fs,
    io::{self, ErrorKind, IsTerminal as _, Write},
    path::Path,
};

use anyhow::Context as _;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};

/// More than this isn't put into a JSON object.
const MEMORY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where the body goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    Stdout,
    File(&'a Path),
    Memory,
}

/// What has been taken.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) length: u64,
    /// Only from [`Place::Memory`].
    pub(super) kept: Vec<u8>,
}

/// Takes the whole body to its place.
pub(super) async fn take(response: reqwest::Response, place: Place<'_>, shown: bool) -> anyhow::Result<Body> {
    match place {
        Place::Stdout => {
            // A bar among the text that is printed would spoil both.
            let bar = shown && !io::stdout().is_terminal();
            copy(response, &mut io::stdout().lock(), bar).await
        }
        Place::File(path) => to_file(response, path, shown).await,
        Place::Memory => {
            let mut kept = Bounded(Vec::new());
            let body = copy(response, &mut kept, false).await?;
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

/// Writes to a file beside `path` and renames it, so that what stands at `path` is always complete.
async fn to_file(response: reqwest::Response, path: &Path, shown: bool) -> anyhow::Result<Body> {
    let unwritable = || format!("cannot write `{}`", path.display());
    let mut file = beside(path).with_context(unwritable)?;
    let body = copy(response, &mut file, shown).await?;
    let old = fs::metadata(path).ok();
    if let Some(old) = old.as_ref().filter(|old| old.is_file()) {
        // A file that only its owner may read stays so.
        file.as_file().set_permissions(old.permissions()).with_context(unwritable)?;
    }
    file.as_file().sync_all().with_context(unwritable)?;
    if old.is_some_and(|old| !old.is_file()) {
        // `/dev/null`, a pipe: written to, not replaced.
        fs::copy(file.path(), path).with_context(unwritable)?;
        return Ok(body);
    }
    file.persist(path).map_err(|error| error.error).with_context(unwritable)?;
    Ok(body)
}

/// A new file in the directory of `path`; it goes away unless it is kept.
fn beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".farebox-get-");
    // The mode that a plain new file would get; the umask is taken off by the system.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(directory.unwrap_or(Path::new(".")))
}

async fn copy(mut response: reqwest::Response, to: &mut impl Write, shown: bool) -> anyhow::Result<Body> {
    let bar = bar(response.content_length(), shown);
    let mut body = Body::default();
    loop {
        let chunk: Option<Bytes> =
            response.chunk().await.map_err(reqwest::Error::without_url).context("the answer broke off")?;
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
