//! The two threads that own a connection each. SQLite blocks, so it must not run on the threads that serve requests.
//!
//! Both queues have a bound; whoever finds one full waits, within its caller's timeout. A future that is dropped takes
//! nothing back: what was queued is still written.

use std::{io, thread};

use futures_util::future::BoxFuture;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::StoreError;

/// How many jobs may wait.
const QUEUED_MAX: usize = 1_024;

/// How many jobs share one commit.
const GROUP_MAX: usize = 256;

/// Does its work in a transaction, or passes on why there is none.
type Write = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Written + Send>;
type Read = Box<dyn FnOnce(&Connection) + Send>;

/// A job that has run but isn't committed.
struct Written {
    /// Why its changes must be undone.
    failed: Option<StoreError>,
    /// Tells the waiting caller, with the error that kept the commit from happening.
    tell: Box<dyn FnOnce(Option<StoreError>) + Send>,
}

/// The thread that writes.
pub(super) struct Writer {
    thread: Thread<Write>,
}

/// The thread that reads.
pub(super) struct Reader {
    thread: Thread<Read>,
}

struct Thread<J> {
    /// Emptied to end the thread.
    jobs: Option<mpsc::Sender<J>>,
    handle: Option<thread::JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(mut connection: Connection) -> Result<Self, StoreError> {
        let thread = Thread::start("books-writer", move |mut jobs| {
            let mut group = Vec::with_capacity(GROUP_MAX);
            while let Some(first) = jobs.blocking_recv() {
                group.push(first);
                while group.len() < GROUP_MAX
                    && let Ok(job) = jobs.try_recv()
                {
                    group.push(job);
                }
                commit(&mut connection, group.drain(..));
            }
        })?;
        Ok(Self { thread })
    }

    /// Runs a job inside a transaction; done when that is on the disk. An error undoes this job alone.
    pub(super) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        let (tell, told) = oneshot::channel();
        let write: Write = Box::new(move |connection| {
            let outcome = connection.and_then(job);
            let failed = outcome.as_ref().err().cloned();
            // Nobody may be waiting any more; the work stands all the same.
            let tell = move |uncommitted: Option<StoreError>| {
                let _ = tell.send(outcome.and_then(|done| uncommitted.map_or(Ok(done), Err)));
            };
            Written { failed, tell: Box::new(tell) }
        });
        Box::pin(self.thread.run(write, told))
    }
}

impl Reader {
    pub(super) fn start(connection: Connection) -> Result<Self, StoreError> {
        let thread = Thread::start("books-reader", move |mut jobs: mpsc::Receiver<Read>| {
            while let Some(job) = jobs.blocking_recv() {
                job(&connection);
            }
        })?;
        Ok(Self { thread })
    }

    /// Runs a query.
    pub(super) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        let (tell, told) = oneshot::channel();
        let read: Read = Box::new(move |connection| {
            let _ = tell.send(job(connection));
        });
        Box::pin(self.thread.run(read, told))
    }
}

impl<J: Send + 'static> Thread<J> {
    fn start(name: &str, work: impl FnOnce(mpsc::Receiver<J>) + Send + 'static) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel(QUEUED_MAX);
        let failed =
            |error: io::Error| StoreError::Failed(format!("cannot start the thread `{name}`: {error}"));
        let handle =
            thread::Builder::new().name(name.to_owned()).spawn(move || work(queue)).map_err(failed)?;
        Ok(Self { jobs: Some(jobs), handle: Some(handle) })
    }

    async fn run<T>(&self, job: J, told: oneshot::Receiver<Result<T, StoreError>>) -> Result<T, StoreError> {
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        told.await.map_err(|_| StoreError::Closed)?
    }
}

impl<J> Drop for Thread<J> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(handle) = self.handle.take() {
            // A panic over there has been printed there.
            let _ = handle.join();
        }
    }
}

/// Runs jobs in one transaction, each undone alone when it fails, and tells all of them what became of it.
fn commit(connection: &mut Connection, jobs: impl ExactSizeIterator<Item = Write>) {
    let mut written = Vec::with_capacity(GROUP_MAX);
    let uncommitted = group(connection, jobs, &mut written).err();
    for job in written {
        (job.tell)(uncommitted.clone());
    }
}

fn group(
    connection: &mut Connection,
    mut jobs: impl ExactSizeIterator<Item = Write>,
    written: &mut Vec<Written>,
) -> Result<(), StoreError> {
    // One without company needs no ground to go back to, which would keep a copy of every page that it changes.
    let step = if jobs.len() == 1 { lone_step } else { step };
    let mut run = || {
        let books = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for job in jobs.by_ref() {
            step(&books, job, written)?;
        }
        Ok(books.commit()?)
    };
    let done: Result<(), StoreError> = run();
    if let Err(error) = &done {
        // Whoever has not had a turn is told why, too.
        written.extend(jobs.map(|job| job(Err(error.clone()))));
    }
    done
}

fn lone_step(books: &Connection, job: Write, written: &mut Vec<Written>) -> Result<(), StoreError> {
    let done = job(Ok(books));
    let failed = done.failed.clone();
    written.push(done);
    // The whole transaction is undone.
    failed.map_or(Ok(()), Err)
}

fn step(books: &Connection, job: Write, written: &mut Vec<Written>) -> Result<(), StoreError> {
    let ground = books.execute_batch("SAVEPOINT job").map(|()| books).map_err(StoreError::from);
    let done = job(ground);
    let failed = done.failed.clone();
    written.push(done);
    match failed {
        None => books.execute_batch("RELEASE job")?,
        // A full disk may have undone the whole transaction already; then nothing in it has happened.
        Some(error) if books.is_autocommit() => return Err(error),
        Some(_) => books.execute_batch("ROLLBACK TO job; RELEASE job")?,
    }
    Ok(())
}
