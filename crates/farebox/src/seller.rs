//! Where a seller's things lie, for all commands that look at the books beside a gateway or change something in them.

use std::path::PathBuf;

use anyhow::Context as _;
use farebox_paywall::receipt::SellerName;
use farebox_protocol::Network;

use crate::{config, state};

/// The flags that say where the state directory is.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The state directory of the gateway [default: the one in the configuration]
    #[arg(long, value_name = "DIR", help_heading = "Books")]
    state_dir: Option<PathBuf>,
    /// The configuration of the gateway
    #[arg(
        long,
        value_name = "FILE",
        default_value = "farebox.yaml",
        conflicts_with = "state_dir",
        help_heading = "Books"
    )]
    config: PathBuf,
}

/// The flags that say which books to look at.
#[derive(Debug, clap::Args)]
pub(crate) struct Books {
    #[command(flatten)]
    place: Place,
    /// The books themselves: a copy, say, or a backup
    #[arg(long, value_name = "FILE", conflicts_with_all = ["state_dir", "config"], help_heading = "Books")]
    books: Option<PathBuf>,
}

impl Place {
    /// The state directory, which is there.
    pub(crate) fn directory(&self) -> anyhow::Result<PathBuf> {
        let directory = match &self.state_dir {
            Some(directory) => directory.clone(),
            None => {
                let file = self.config.display();
                anyhow::ensure!(
                    self.config.exists(),
                    "there is no `{file}`; name the gateway's configuration with --config, or its directory with --state-dir"
                );
                config::check(&self.config).state_dir.with_context(|| {
                    format!("`{file}` does not tell where the books are; name the directory with --state-dir")
                })?
            }
        };
        anyhow::ensure!(
            directory.is_dir(),
            "there is no state directory `{}`; name the gateway's with --state-dir",
            directory.display()
        );
        Ok(directory)
    }

    /// The network that the configuration names, where it is asked at all.
    pub(crate) fn network(&self) -> Option<Network> {
        if self.state_dir.is_some() { None } else { config::check(&self.config).network }
    }

    /// Whom receipts name by the configuration, where it is asked at all.
    pub(crate) fn seller(&self) -> Option<SellerName> {
        if self.state_dir.is_some() { None } else { config::check(&self.config).seller }
    }
}

impl Books {
    /// The file with the books, whether or not it is there.
    pub(crate) fn path(&self) -> anyhow::Result<PathBuf> {
        match &self.books {
            Some(books) => Ok(books.clone()),
            None => Ok(state::books(&self.place.directory()?)),
        }
    }
}
