//! `farebox completions`.

use std::{io, process::ExitCode};

use clap::CommandFactory;

use super::Cli;

/// Print the script that teaches a shell to complete farebox's commands
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(farebox completions bash)
  farebox completions zsh > ~/.zfunc/_farebox
  farebox completions fish > ~/.config/fish/completions/farebox.fish")]
pub(crate) struct Args {
    /// Which shell
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Into memory first: the generator panics when the reader of a pipe has gone.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "farebox", &mut script);
    let mut out = io::stdout();
    match io::Write::write_all(&mut out, &script) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
