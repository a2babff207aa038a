//! Where agents connect: standard input and output, a unix socket (and a bridge to it), or HTTP on this machine.
//!
//! A session is the same whichever way it came; what differs is who may open one. Over standard input that is whoever started
//! the program; at the socket, whom its permissions let in; over HTTP, who knows the secret.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, ErrorKind},
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use anyhow::Context as _;
use rmcp::{RoleServer, ServiceExt as _, transport::async_rw::AsyncRwTransport};
use rustix::fs::{Gid, Mode, chown};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Caller, Desk, MESSAGE_BYTES_MAX, Server, Settings, notes};

mod unread;
mod web;

use unread::Patient;
pub(crate) use unread::Unread;
pub(crate) use web::Web;

/// So many sessions are open at the socket at once, and so many of one user; more are closed as they come.
const SESSIONS_MAX: usize = 64;
const SESSIONS_EACH_MAX: usize = 32;
/// How long an agent may leave what it was told unread.
const UNREAD_MAX: Duration = Duration::from_secs(60);
/// How long sessions may take to end once the program is to.
const PARTING: Duration = Duration::from_secs(3);
/// The wait after a connection that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// One session over standard input and output.
pub(crate) async fn stdio(desk: Arc<Desk>, stop: CancellationToken) -> anyhow::Result<()> {
    let (input, output) = standard()?;
    let unread = Unread::default();
    // Whoever started the program may stop reading for as long as they like: they keep nobody else out.
    let output = Patient::new(output, None, unread.clone());
    session(Server(desk, Caller::default(), unread), input, output, stop).await
}

/// Carries messages between standard input and output and the socket, until either ends.
pub(crate) async fn bridge(path: &Path) -> anyhow::Result<()> {
    let socket = UnixStream::connect(path).await.with_context(|| {
        format!("`farebox mcp --listen unix:{0}` can't be reached at `{0}`", path.display())
    })?;
    let (mut input, mut output) = standard()?;
    let (mut from, mut to) = socket.into_split();
    let asking = async {
        tokio::io::copy(&mut input, &mut to).await?;
        to.shutdown().await?;
        // The answers to what was asked are still to come.
        std::future::pending::<io::Result<()>>().await
    };
    let answering = async {
        tokio::io::copy(&mut from, &mut output).await?;
        output.flush().await
    };
    tokio::select! {
        ended = asking => ended,
        ended = answering => ended,
    }
    .context("the connection broke off")
}

/// A socket, private to its owner or open to one group.
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Makes the socket. One that nobody listens at any more is replaced.
    pub(crate) fn bind(path: &Path, group: Option<u32>) -> anyhow::Result<Self> {
        if let Some(group) = group {
            guarded(path, group)?;
        }
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot use `{}`", path.display())),
            Ok(old) => {
                anyhow::ensure!(old.file_type().is_socket(), "`{}` is there and no socket", path.display());
                anyhow::ensure!(
                    std::os::unix::net::UnixStream::connect(path).is_err(),
                    "somebody listens at `{}` already",
                    path.display()
                );
                fs::remove_file(path).with_context(|| format!("cannot replace `{}`", path.display()))?;
            }
        }
        // Nobody else gets in before the permissions are what they should be.
        let usual = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(usual);
        let listener = bound.with_context(|| format!("cannot listen at `{}`", path.display()))?;
        let socket = Self { listener, path: path.to_owned() };
        if let Some(directory) = farebox_client::policy::open_to_all(path)? {
            anyhow::bail!(
                "everybody can write to `{}` and so put another socket there; run `chmod o-w` on it",
                directory.display()
            );
        }
        if let Some(group) = group {
            chown(path, None, Some(Gid::from_raw(group)))
                .with_context(|| format!("cannot give `{}` to group {group}", path.display()))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        }
        Ok(socket)
    }

    /// One session for each connection.
    pub(crate) async fn run(self, desk: Arc<Desk>, stop: CancellationToken) -> anyhow::Result<()> {
        let (sessions, seats) = (TaskTracker::new(), Arc::new(Semaphore::new(SESSIONS_MAX)));
        let mut of_each: HashMap<u32, Arc<Semaphore>> = HashMap::new();
        loop {
            let (stream, _) = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Files may have run out; some come back as sessions end.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                        continue;
                    }
                },
                () = stop.cancelled() => break,
            };
            let Ok(caller) = stream.peer_cred() else {
                tracing::warn!("the system doesn't say who connects; the connection is closed");
                continue;
            };
            let (uid, pid) = (caller.uid(), caller.pid());
            let of_one = of_each.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(SESSIONS_EACH_MAX)));
            let seat = (Arc::clone(of_one).try_acquire_owned(), Arc::clone(&seats).try_acquire_owned());
            let (Ok(_), Ok(_)) = &seat else {
                tracing::warn!(uid, pid, "too many sessions; this one is closed");
                continue;
            };
            tracing::info!(uid, pid, "an agent has connected");
            let Settings { files, wallet, .. } = &*desk.settings;
            notes::of_caller(uid, files, wallet).into_iter().for_each(|note| desk.note(note));
            let (unread, stop) = (Unread::default(), stop.clone());
            let server = Server(Arc::clone(&desk), Caller(Some(uid)), unread.clone());
            sessions.spawn(async move {
                let (input, output) = stream.into_split();
                let output = Patient::new(output, Some(UNREAD_MAX), unread);
                if let Err(error) = session(server, input, output, stop).await {
                    tracing::info!(uid, pid, error = %format!("{error:#}"), "a session has ended");
                }
                drop(seat);
            });
        }
        sessions.close();
        sessions.wait().await;
        Ok(())
    }
}

/// Whether this group can't put something else where the socket will be: it would be given to them, whatever it is by then.
fn guarded(path: &Path, group: u32) -> anyhow::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let facts = fs::metadata(directory).with_context(|| format!("cannot use `{}`", directory.display()))?;
    anyhow::ensure!(
        [0, rustix::process::geteuid().as_raw()].contains(&facts.uid()),
        "`{}` belongs to somebody else, who could put another socket there; choose another directory",
        directory.display()
    );
    let is_theirs = facts.gid() == group && facts.mode() & 0o1020 == 0o0020;
    anyhow::ensure!(
        !is_theirs,
        "group {group} can write to `{}` and so put another socket there; run `chmod g-w` on it",
        directory.display()
    );
    Ok(())
}

impl Drop for Socket {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.path);
    }
}

/// One session, until the agent ends it or `stop` does.
async fn session<R, W>(server: Server, input: R, output: W, stop: CancellationToken) -> anyhow::Result<()>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let input = Bounded { input, unread: server.2.clone(), line_bytes: 0, out: Vec::new(), told: 0 };
    let transport = AsyncRwTransport::<RoleServer, _, _>::new_server(input, output)
        .with_max_line_length(MESSAGE_BYTES_MAX + INSTEAD.len());
    let running = tokio::select! {
        running = server.serve(transport) => running.context("the agent did not begin a session")?,
        () = stop.cancelled() => return Ok(()),
    };
    let end = running.cancellation_token();
    let mut waiting = Box::pin(running.waiting());
    tokio::select! {
        ended = &mut waiting => {
            ended?;
        }
        () = stop.cancelled() => {
            end.cancel();
            // One that reads nothing would keep the others waiting.
            if let Ok(ended) = timeout(PARTING, waiting).await {
                ended?;
            }
        }
    }
    Ok(())
}

/// What is left of a message that is too long: an end by which it is none, and a message that is answered with an error.
const INSTEAD: &[u8] = b"\0\n{\"jsonrpc\":\"2.0\"}\n";

/// Input in which no line is longer than a message may be. The transport would pass a longer one over without a word, and
/// whoever sent it would wait for ever. It waits while its agent doesn't read.
struct Bounded<R> {
    input: R,
    unread: Unread,
    /// The length of the line so far.
    line_bytes: usize,
    /// What has been read, and how much of it was handed on.
    out: Vec<u8>,
    told: usize,
}

impl<R> Bounded<R> {
    fn take(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let end = piece.iter().position(|byte| *byte == b'\n');
            let (line, rest) = piece.split_at(end.map_or(piece.len(), |end| end + 1));
            let before = self.line_bytes;
            self.line_bytes = before.saturating_add(line.len());
            if self.line_bytes <= MESSAGE_BYTES_MAX {
                self.out.extend_from_slice(line);
            } else if before <= MESSAGE_BYTES_MAX {
                self.out.extend_from_slice(INSTEAD);
            }
            if end.is_some() {
                self.line_bytes = 0;
            }
            piece = rest;
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Bounded<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.told == this.out.len() {
            ready!(this.unread.poll_may_ask(cx))?;
            let mut piece = [0; 8 << 10];
            let mut read = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.input).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.unread.said(read.filled().len());
            (this.out, this.told) = (Vec::new(), 0);
            this.take(read.filled());
        }
        let rest = this.out.get(this.told..).unwrap_or_default();
        let most = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..most]);
        this.told += most;
        Poll::Ready(Ok(()))
    }
}

/// Standard input and output as what can be awaited. A read that waits can't be broken off: whoever leaves before the input ends
/// leaves by [`std::process::exit`].
fn standard() -> io::Result<(tokio::fs::File, tokio::fs::File)> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    Ok((tokio::fs::File::from_std(File::from(input)), tokio::fs::File::from_std(File::from(output))))
}

#[cfg(test)]
mod tests;
