//! `farebox mcp`: tools by which an agent buys, under the policy of the person whose money it is.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::Arc,
};

use anyhow::Context as _;
use farebox_client::HttpConfig;
use farebox_protocol::Msat;
use tokio_util::sync::CancellationToken;

use super::Usage;
use crate::{
    buyer::{self, Asked, Files},
    logging,
    mcp::{
        Desk, Folder, Settings,
        listen::{self, Socket, Web},
        notes,
    },
    runtime, state,
    wallet::WalletFlags,
};

/// Let an agent fetch and pay, by the Model Context Protocol
///
/// What may be paid is what the policy says, which is read again for every call; an agent can see the limits and lower them for
/// a call, never raise them, and never agree to a payment. Without --listen or --connect the agent's program starts this and
/// speaks to it over standard input and output.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An agent that runs as you could also change the policy or use the wallet without farebox. To keep it
from that, run it as another user, and let it reach farebox through a socket that a group of the two
may use:

  you:        farebox mcp --listen unix:/run/farebox/mcp.sock --group agents --files /srv/agents
  the agent:  farebox mcp --connect unix:/run/farebox/mcp.sock

The second needs no wallet, journal or policy, and can read none of them.

Examples:
  farebox mcp
  farebox mcp --label research --max-cost 100sat --files ./downloads
  farebox mcp --listen 127.0.0.1:9741
  farebox policy init        # the rules
  farebox approve            # what waits for your word")]
pub(crate) struct Args {
    /// Wait for agents at unix:PATH or, over HTTP, at an address like 127.0.0.1:9741
    #[arg(long, value_name = "WHERE", conflicts_with = "connect")]
    listen: Option<Where>,
    /// Only pass messages on, from standard input and output to a socket
    #[arg(long, value_name = "unix:PATH")]
    connect: Option<Where>,
    /// Who else may use the socket and read the files: a group of this machine, by name or number
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Listen on an address that isn't loopback; agents and secret then travel unencrypted
    #[arg(long, requires = "listen")]
    allow_remote: bool,
    /// A name by which HTTP requests may call this machine, besides those of loopback (may be repeated)
    #[arg(long = "host", value_name = "NAME", requires = "listen")]
    hosts: Vec<String>,
    /// The file with the secret that HTTP requests bear, made if it isn't there [default: farebox/mcp.secret in
    /// $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, value_name = "FILE", requires = "listen")]
    secret_file: Option<PathBuf>,

    /// The directory into which agents may have answers put; without it, nowhere
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    files: Option<PathBuf>,
    /// Let a new file replace an old one
    #[arg(long, requires = "files", help_heading = "Files")]
    overwrite: bool,
    /// The longest body that is passed on rather than put into a file, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=16 << 20),
          help_heading = "Files")]
    inline_max: u32,
    /// The longest body that is put into a file, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30, help_heading = "Files")]
    file_max: u64,

    /// The highest price of a payment. It lowers what the policy allows and never raises it
    #[arg(long, value_name = "AMOUNT", help_heading = "Money")]
    max_cost: Option<Msat>,
    /// The highest routing fee on top of the price
    #[arg(long, value_name = "AMOUNT", help_heading = "Money")]
    max_fee: Option<Msat>,
    /// On whose behalf: a name that rules of the policy may look at
    #[arg(long, value_name = "NAME", env = "FAREBOX_LABEL", help_heading = "Money")]
    label: Option<String>,
    #[command(flatten)]
    wallet: WalletFlags,
    #[command(flatten)]
    buyer: Files,
}

/// Where agents connect.
#[derive(Clone, Debug)]
enum Where {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl FromStr for Where {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some("") => Err("write the path of a socket after `unix:`"),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| "write `unix:PATH` or an address like `127.0.0.1:9741`"),
        }
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    logging::start("info")?;
    let done = runtime::block_on(async {
        let done = work(args).await;
        if let Err(error) = &done {
            eprintln!("error: {error:#}");
        }
        // A read of standard input that still waits would keep the runtime from ending.
        std::process::exit(match &done {
            Ok(()) => 0,
            Err(error) if error.is::<Usage>() => 2,
            Err(_) => 1,
        })
    });
    done.map(|never: std::convert::Infallible| match never {})
}

async fn work(args: Args) -> anyhow::Result<()> {
    if let Some(place) = &args.connect {
        let Where::Unix(path) = place else {
            return Err(Usage("--connect takes unix:PATH; HTTP needs nothing in between".to_owned()).into());
        };
        return listen::bridge(path).await;
    }
    if let Some(Where::Tcp(address)) = &args.listen
        && !address.ip().is_loopback()
        && (!args.allow_remote || args.hosts.is_empty())
    {
        return Err(Usage(format!(
            "`{address}` can be reached from elsewhere; listen on 127.0.0.1, or say --allow-remote, and with --host by which \
             names requests call this machine"
        ))
        .into());
    }
    let stop = CancellationToken::new();
    let signals = runtime::stop_on_signal(stop.clone());
    let group = args.group.as_deref().map(group).transpose()?;
    let folder = args.files.as_deref().map(|path| Folder::open(path, args.overwrite, group)).transpose()?;
    let secret_file = args.secret_file;
    let settings = Settings {
        files: args.buyer,
        wallet: args.wallet,
        asked: Asked { max_cost: args.max_cost, max_fee: args.max_fee },
        label: args.label,
        folder,
        file_bytes_max: args.file_max,
        inline_bytes_max: usize::try_from(args.inline_max).unwrap_or(usize::MAX),
        http: HttpConfig::default(),
    };
    let own_notes = notes::of_this_user(&settings.files, &settings.wallet);
    let desk = Arc::new(Desk::new(settings));
    let agents = async {
        match args.listen {
            None => {
                own_notes.into_iter().for_each(|note| desk.note(note));
                listen::stdio(Arc::clone(&desk), stop.clone()).await
            }
            // Whoever connects is looked at as they do.
            Some(Where::Unix(path)) => {
                let socket = Socket::bind(&path, group)?;
                tracing::info!(socket = %path.display(), "waiting for agents");
                socket.run(Arc::clone(&desk), stop.clone()).await
            }
            Some(Where::Tcp(address)) => {
                own_notes.into_iter().for_each(|note| desk.note(note));
                let secret = secret_path(secret_file)?;
                let web = Web::bind(address, args.hosts, &secret).await?;
                let url = format!("http://{}/mcp", web.address()?);
                tracing::info!(%url, secret = %secret.display(), "waiting for agents, who bear the secret in this file");
                web.run(Arc::clone(&desk), stop.clone()).await
            }
        }
    };
    let done = tokio::select! {
        done = agents => done,
        uncaught = signals => uncaught.map(|never| match never {}),
    };
    desk.close().await;
    done
}

fn secret_path(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path);
    }
    let directory = buyer::data_dir().context("there is no home directory; say where with --secret-file")?;
    state::make_private(&directory)?;
    Ok(directory.join("mcp.secret"))
}

/// The number of a group.
fn group(named: &str) -> anyhow::Result<u32> {
    if let Ok(number) = named.parse() {
        return Ok(number);
    }
    let path = Path::new("/etc/group");
    let groups =
        std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    number_of(named, &groups)
        .with_context(|| format!("there is no group `{named}` in `{}`; give its number", path.display()))
}

fn number_of(named: &str, groups: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut parts = line.split(':');
        let (name, _, number) = (parts.next()?, parts.next()?, parts.next()?);
        (name == named).then(|| number.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_agents_connect_is_a_socket_or_an_address() {
        assert!(matches!("unix:/run/a b".parse(), Ok(Where::Unix(path)) if path == Path::new("/run/a b")));
        assert!(matches!("127.0.0.1:0".parse(), Ok(Where::Tcp(_))));
        for text in ["", "unix:", "localhost:1", "/run/socket", "127.0.0.1"] {
            assert!(text.parse::<Where>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_group_is_found_by_its_name() {
        let groups = "root:x:0:\nagents:x:1001:a,b\nbroken\n";
        assert_eq!(number_of("agents", groups), Some(1001));
        assert_eq!(number_of("agent", groups), None);
        assert_eq!(number_of("broken", groups), None);
    }
}
