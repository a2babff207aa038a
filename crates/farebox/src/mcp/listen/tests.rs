//! Agents that don't read, over real sockets.

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use super::*;

const WHAT_A_TEST_TAKES: Duration = Duration::from_secs(20);

/// A session with an agent that is to read within `most`, and the agent's side of it.
fn begun(most: Option<Duration>) -> (UnixStream, TaskTracker, CancellationToken) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (tasks, stop, unread) = (TaskTracker::new(), CancellationToken::new(), Unread::default());
    let server = Server(Arc::new(Desk::for_tests()), Caller::default(), unread.clone());
    let (input, output) = theirs.into_split();
    let output = Patient::new(output, most, unread);
    tasks.spawn(session(server, input, output, stop.clone()));
    tasks.close();
    (ours, tasks, stop)
}

const HELLO: &[u8] = b"{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"initialize\",\"params\":{\"protocolVersion\":\"2025-06-18\",\
    \"capabilities\":{},\"clientInfo\":{\"name\":\"a test\",\"version\":\"0\"}}}\n\
    {\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n";

/// Asks until nothing more is taken, or nobody is there: how often. All run on this one thread, so where everybody has had their
/// turn many times nothing will change.
async fn ask_in_vain(agent: &mut UnixStream) -> usize {
    let (mut asked, mut idle, mut rest) = (0, 0, Vec::new());
    while idle < 2_000 {
        if rest.is_empty() {
            asked += 1;
            assert!(asked < 100_000, "everything is taken, and kept");
            rest = format!("{{\"jsonrpc\":\"2.0\",\"id\":{asked},\"method\":\"ping\"}}\n").into_bytes();
        }
        match agent.try_write(&rest) {
            Ok(bytes) => {
                rest.drain(..bytes);
                idle = 0;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                idle += 1;
                tokio::task::yield_now().await;
            }
            Err(_) => break,
        }
    }
    // The last one is not written to its end.
    asked - 1
}

#[tokio::test]
async fn nothing_more_is_read_of_an_agent_that_reads_nothing_and_all_is_answered_once_it_does() {
    let (mut agent, tasks, stop) = begun(None);
    agent.write_all(HELLO).await.unwrap();
    let asked = ask_in_vain(&mut agent).await;
    let (from, mut to) = agent.into_split();
    let mut lines = BufReader::new(from).lines();
    let mut answered = 0;
    while answered < asked {
        let line = timeout(WHAT_A_TEST_TAKES, lines.next_line()).await.expect("it goes on");
        answered += usize::from(!line.unwrap().unwrap().contains("\"id\":0,"));
    }
    _ = to.shutdown().await;
    stop.cancel();
    timeout(WHAT_A_TEST_TAKES, tasks.wait()).await.expect("it ends");
}

#[tokio::test]
async fn an_agent_that_reads_nothing_for_too_long_is_left() {
    let (mut agent, tasks, _stop) = begun(Some(Duration::from_millis(50)));
    agent.write_all(HELLO).await.unwrap();
    ask_in_vain(&mut agent).await;
    timeout(WHAT_A_TEST_TAKES, tasks.wait()).await.expect("it ends");
    let mut told = Vec::new();
    _ = agent.read_to_end(&mut told).await;
}

#[tokio::test]
async fn an_agent_that_reads_nothing_keeps_no_program_from_ending() {
    let (mut agent, tasks, stop) = begun(None);
    agent.write_all(HELLO).await.unwrap();
    ask_in_vain(&mut agent).await;
    stop.cancel();
    timeout(WHAT_A_TEST_TAKES, tasks.wait()).await.expect("it ends");
}
