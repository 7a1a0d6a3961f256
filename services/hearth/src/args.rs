// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{DATA_DIR_DEFAULT, Flags, URL_DEFAULT};

/// Runs untrusted functions, native or WebAssembly, behind HTTP and real walls.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Try it:
  sudo hearth up functions                      serve every function folder in ./functions
  hearth invoke NAME --data FILE                call one
  curl --data-binary @FILE http://127.0.0.1:8080/invoke/NAME

Exit codes: 0 done, 1 the function or the request failed, 2 wrong usage or configuration,
3 no server answers, 4 not allowed, 5 Hearth cannot start here.";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve, and deploy every function folder in DIR; deploy again when one changes
    Up(Up),
    /// Serve the functions deployed so far
    Serve(Serve),
    /// Run a function once, without a server: FILE in, result on stdout
    Run(Run),
    /// Deploy the function folder DIR
    Deploy(Deploy),
    /// Call a function: FILE in, result on stdout
    Invoke(Invoke),
    /// Find out which system calls a function needs, and write a profile of no others
    Learn(Learn),
    /// Say what this host gives, what is missing, and how to get it
    Doctor(Doctor),
    /// List the deployed functions
    Ls(Listing),
    /// Describe a function
    Describe(OfFunction),
    /// Show what a function wrote to stderr, one JSON object per invocation
    Logs(Logs),
    /// Show the facts about one invocation
    Receipt(Receipt),
    /// Show what the kernel says about a live sandbox of a function
    Isolation(OfFunction),
    /// Remove a function
    Rm(Remove),
    /// A process of `hearth serve`; started by it only
    #[command(hide = true)]
    Role {
        /// Which.
        role: RoleName,
    },
}

/// A process of `hearth serve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// Parses what strangers send.
    Gateway,
    /// Makes sandboxes.
    Spawner,
}

impl RoleName {
    /// As on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Spawner => "spawner",
        }
    }
}

/// `hearth serve`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Only check the configuration and this host
    #[arg(long)]
    pub(crate) check: bool,
    /// End when this process, the parent, ends.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) parent: Option<u32>,
}

/// Where a server's configuration comes from.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    pub(crate) flags: Flags,
    /// A TOML file with these settings: `max_sandboxes = 64` [env: HEARTH_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `hearth up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Its direct children that hold a function.toml are deployed
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

/// `hearth run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The function folder
    pub(crate) dir: PathBuf,
    /// The input; - is stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Do not run the manifest's build command
    #[arg(long)]
    pub(crate) no_build: bool,
}

/// How to reach the server.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Where the server is
    #[arg(long, value_name = "URL", help = format!("Where the server is [default: {URL_DEFAULT}] [env: HEARTH_URL]"))]
    pub(crate) url: Option<String>,
    /// Where the key file is, without HEARTH_KEY
    #[arg(long, value_name = "DIR", help = format!("The server's data directory, for its key file, unless HEARTH_KEY is set [default: {DATA_DIR_DEFAULT} as root, else hearth in $XDG_DATA_HOME or ~/.local/share] [env: HEARTH_DATA_DIR]"))]
    pub(crate) data_dir: Option<PathBuf>,
}

/// How a listing is printed.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hearth deploy`.
#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// The function folder: function.toml and the entry file, or what builds it
    pub(crate) dir: PathBuf,
    /// Check only; change nothing on the server
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not run the manifest's build command
    #[arg(long)]
    pub(crate) no_build: bool,
    #[command(flatten)]
    pub(crate) server: Server,
}

/// `hearth invoke`.
#[derive(Debug, Args)]
pub(crate) struct Invoke {
    /// The function
    pub(crate) name: String,
    /// The input; - is stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) server: Server,
}

/// `hearth learn`.
#[derive(Debug, Args)]
pub(crate) struct Learn {
    /// The function
    pub(crate) name: String,
    /// An input that it is called with; can be given several times
    #[arg(long = "event", value_name = "FILE")]
    pub(crate) events: Vec<PathBuf>,
    /// How often the events are repeated while it is observed, from 1 to 100
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) rounds: u32,
    /// Observe whatever else calls it for so long, like 30s or 5m
    #[arg(long = "for", value_name = "DURATION")]
    pub(crate) time: Option<String>,
    /// Call it by POST at /fn/NAME with this after it, like /world?lang=en, not at /invoke/NAME
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// Where the profile is written [default: NAME.seccomp.json]
    #[arg(long, value_name = "FILE", conflicts_with = "into")]
    pub(crate) output: Option<PathBuf>,
    /// Write it into this function folder, as seccomp.json
    #[arg(long, value_name = "DIR")]
    pub(crate) into: Option<PathBuf>,
    /// If the replay holds: set seccomp = "learned" in the folder's function.toml, and deploy it
    #[arg(long, requires = "into")]
    pub(crate) enforce: bool,
    #[command(flatten)]
    pub(crate) output_format: Output,
    #[command(flatten)]
    pub(crate) server: Server,
}

/// `hearth doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `hearth ls`.
#[derive(Debug, Args)]
pub(crate) struct Listing {
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) server: Server,
}

/// `hearth describe` and `hearth isolation`.
#[derive(Debug, Args)]
pub(crate) struct OfFunction {
    /// The function
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) server: Server,
}

/// `hearth logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The function
    pub(crate) name: String,
    /// Only of this invocation
    #[arg(long, value_name = "ID")]
    pub(crate) invocation: Option<String>,
    #[command(flatten)]
    pub(crate) server: Server,
}

/// `hearth receipt`.
#[derive(Debug, Args)]
pub(crate) struct Receipt {
    /// The invocation, from the answer's Hearth-Invocation header
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) server: Server,
}

/// `hearth rm`.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The function
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) server: Server,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn no_help_text_is_wider_than_100_columns() {
        let mut command = Arguments::command();
        for line in command.render_long_help().to_string().lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}
