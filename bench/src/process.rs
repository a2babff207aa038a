//! Child processes: started, waited for until they listen, measured, and ended with their owner.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};

/// A running program that ends when this is dropped.
pub(crate) struct Program {
    child: Child,
    name: String,
}

impl Program {
    /// Starts `command` and waits until it accepts connections at `address`.
    pub(crate) fn start(mut command: Command, address: SocketAddr) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().with_context(|| {
            format!("cannot start `{name}`; install it, for example with `apt install nginx haproxy`")
        })?;
        let mut program = Self { child, name };
        for _ in 0..200 {
            if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
                return Ok(program);
            }
            if let Some(status) = program.child.try_wait()? {
                bail!("`{}` ended at once: {status}", program.name);
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("`{}` does not listen at {address} after 10 s", program.name)
    }

    /// Does `work` and says how much CPU time this process and its children used meanwhile.
    pub(crate) fn cpu_while<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
        let before = self.cpu()?;
        let done = work()?;
        Ok((done, self.cpu()?.saturating_sub(before)))
    }

    /// Does `work` and says how much memory this process and its children held at most meanwhile, in bytes.
    pub(crate) fn peak_while<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut peak = self.resident()?;
                while !is_over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(20));
                    peak = peak.max(self.resident()?);
                }
                anyhow::Ok(peak)
            });
            let done = work();
            is_over.store(true, Ordering::Relaxed);
            let peak = watcher.join().map_err(|_| anyhow!("the watcher panicked"))?;
            Ok((done?, peak?))
        })
    }

    fn cpu(&self) -> Result<Duration> {
        let mut ticks = 0;
        for pid in self.family()? {
            ticks += ticks_of(pid).unwrap_or_default();
        }
        // The kernel counts in ticks of 10 ms (USER_HZ is 100 on every Linux that farebox runs on).
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Resident memory of this process and its children, in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        let mut pages = 0;
        for pid in self.family()? {
            let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
            pages += statm.split_whitespace().nth(1).unwrap_or("0").parse::<u64>()?;
        }
        Ok(pages * 4096)
    }

    fn family(&self) -> Result<Vec<u32>> {
        let mut pids = vec![self.child.id()];
        let mut next = 0;
        while let Some(pid) = pids.get(next).copied() {
            next += 1;
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            for child in children.split_whitespace() {
                pids.push(child.parse()?);
            }
        }
        Ok(pids)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // nginx's workers end with their master only when it is asked to, not when it is killed.
        let asked = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status();
        for _ in 0..100 {
            if asked.is_err() || matches!(self.child.try_wait(), Ok(Some(_))) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How much CPU time a process has used so far.
#[cfg(feature = "challenge")]
pub(crate) fn cpu_of(pid: u32) -> Result<Duration> {
    let ticks = ticks_of(pid).with_context(|| format!("process {pid} has ended"))?;
    Ok(Duration::from_millis(ticks * 10))
}

/// User and system time of one process, in ticks. The name, in parentheses, may hold spaces.
fn ticks_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// An address on loopback that is free now.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
