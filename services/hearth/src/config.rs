// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Configuration: flags, environment and an optional file meet here and nowhere else.
//!
//! ```text
//! --queue-wait 2s  ▸  HEARTH_QUEUE_WAIT=2s  ▸  queue_wait = "2s" in the --config file  ▸  the default
//! ```
//!
//! [`SETTINGS`] has one row per setting; the flag, the variable, the key, the help text and the default follow from it.
//! Everything is text until [`Config::check`] has looked at all of it and said everything that is wrong.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_jail::host::Level;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

mod environment;
mod settings;
mod value;

pub(crate) use environment::{Caller, Environment};
pub(crate) use settings::{Flags, Setting};
pub(crate) use value::parse_duration;

/// Where root's instance keeps everything; another user's: [`default_data_dir`].
pub(crate) const DATA_DIR_DEFAULT: &str = "/var/lib/hearth";

/// Loopback: reachable from this machine only, until the operator says otherwise.
pub(crate) const LISTEN_DEFAULT: &str = "127.0.0.1:8080";

/// Where client commands look for a server.
pub(crate) const URL_DEFAULT: &str = "http://127.0.0.1:8080";

/// A connection costs the gateway at most a few header buffers (about 32 KiB) while idle: 4,096 are 128 MiB.
const CONNECTIONS_DEFAULT: &str = "4096";

/// An idle sandbox costs the kernel 378 KiB (measured): 256 are under 100 MiB.
const SANDBOXES_DEFAULT: &str = "256";

/// One burst of as many first calls on a core, until the next skeletons are made, some 3 ms each.
const SKELETONS_DEFAULT: &str = "4";

/// At 64 clients per function, four bursts; beyond that a client does better to hear 429 and come back.
const QUEUE_LEN_DEFAULT: &str = "256";

/// Longer than the slowest start of a sandbox by three orders, shorter than most clients' own timeouts (10 s and more).
const QUEUE_WAIT_DEFAULT: &str = "5s";

/// Ten times the default limit of an invocation's time; service managers kill after 90 s.
const DRAIN_DEFAULT: &str = "30s";

/// Their listeners travel to the gateway in one packet, which takes 253 fds.
const SHARDS_MAX: u16 = 128;

/// More than this many connections do not fit under the usual hard limit of open files (1,048,576), with their pipes.
const CONNECTIONS_MAX: u32 = 200_000;

/// Each sandbox has two host ids out of the instance's block.
const SANDBOXES_MAX: u32 = 4_000;

/// A thousand kept ready for every kind of function and core are sandboxes that nobody else may have.
const SKELETONS_MAX: u32 = 1_000;

/// A queue longer than this is memory, not service.
const QUEUE_LEN_MAX: u32 = 100_000;

/// The longest host name (RFC 1035 section 2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// A limit on waiting that is an hour is none.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Every setting of `hearth serve`, in the order of `--help`.
pub(crate) const SETTINGS: [Setting; 13] = [
    Setting {
        key: "listen",
        value: "ADDR:PORT",
        help: "Where to answer HTTP; port 0 picks a free one",
        default: LISTEN_DEFAULT,
    },
    Setting {
        key: "data_dir",
        value: "DIR",
        help: "Where functions, state and the management key are kept; auto is /var/lib/hearth as root, else hearth in $XDG_DATA_HOME or ~/.local/share",
        default: "auto",
    },
    Setting {
        key: "insecure",
        value: "BOOL",
        help: "Allow an address that other machines can reach, without keys and TLS",
        default: "false",
    },
    Setting {
        key: "allow_host",
        value: "NAMES",
        help: "Names, separated by commas, under which this server may be called beside localhost and addresses",
        default: "",
    },
    Setting {
        key: "shards",
        value: "N",
        help: "Event loops, each with its own share of the pool; auto is one per core",
        default: "auto",
    },
    Setting {
        key: "max_connections",
        value: "N",
        help: "HTTP connections at once; further ones wait in the listen queue",
        default: CONNECTIONS_DEFAULT,
    },
    Setting {
        key: "max_sandboxes",
        value: "N",
        help: "Sandboxes at once, busy and waiting together",
        default: SANDBOXES_DEFAULT,
    },
    Setting {
        key: "skeletons",
        value: "N",
        help: "Sandboxes kept ready for functions that have none yet, per kind of function and core; 0 is none",
        default: SKELETONS_DEFAULT,
    },
    Setting {
        key: "queue_len",
        value: "N",
        help: "Invocations that wait for a sandbox, per function; more are answered 429",
        default: QUEUE_LEN_DEFAULT,
    },
    Setting {
        key: "queue_wait",
        value: "DURATION",
        help: "How long an invocation waits for a sandbox before it is answered 429",
        default: QUEUE_WAIT_DEFAULT,
    },
    Setting {
        key: "drain_timeout",
        value: "DURATION",
        help: "How long running invocations may take to end after SIGTERM",
        default: DRAIN_DEFAULT,
    },
    Setting {
        key: "min_isolation",
        value: "LEVEL",
        help: "Refuse to start below this level of isolation: full, rootless, or auto: full as root, else rootless",
        default: "auto",
    },
    Setting {
        key: "log_format",
        value: "FORMAT",
        help: "text, json, or auto: text on a terminal, JSON otherwise",
        default: "auto",
    },
];

/// How `hearth serve` is to run: checked, no more text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Where to listen.
    pub(crate) listen: SocketAddr,
    /// The data directory, absolute.
    pub(crate) data_dir: PathBuf,
    /// Names that requests may be addressed to.
    pub(crate) allowed_hosts: Vec<String>,
    /// Event loops.
    pub(crate) shards: u16,
    /// HTTP connections at once.
    pub(crate) connections_max: u32,
    /// Sandboxes at once.
    pub(crate) sandboxes_max: u32,
    /// Sandboxes without a function yet, per kind and shard.
    pub(crate) skeletons: u32,
    /// Waiting invocations per function.
    pub(crate) queue_len_max: u32,
    /// How long one waits.
    pub(crate) queue_wait_max: Duration,
    /// How long running ones may take after SIGTERM.
    pub(crate) drain_max: Duration,
    /// The lowest isolation level that is good enough.
    pub(crate) least_level: Level,
    /// What is logged, and how.
    pub(crate) log: Logging,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Logging {
    /// How log lines look.
    pub(crate) format: LogFormat,
    /// Which there are, as `tracing` takes it.
    pub(crate) filter: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LogFormat {
    /// Text where stderr is a terminal, else JSON.
    Auto,
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// Everything that is wrong with a configuration, one sentence each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Problems(pub(crate) Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is not usable")?;
        for problem in &self.0 {
            write!(f, "\n  - {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// All [`Problems`] at once.
    pub(crate) fn load(
        flags: &Flags,
        file: Option<&Path>,
        environment: &Environment,
    ) -> Result<Self, Problems> {
        let file = file.map(Path::to_path_buf);
        let file = file.or_else(|| environment.get("HEARTH_CONFIG").map(PathBuf::from));
        let read = file.as_deref().map(settings::read_file);
        let (file, problems) = read.unwrap_or_default();
        let mut layers = value::Layers {
            flags,
            environment,
            file: &file,
            problems,
        };
        let config = Self::check(&mut layers);
        if layers.problems.0.is_empty() {
            Ok(config)
        } else {
            Err(layers.problems)
        }
    }

    /// Says everything that is wrong, not just the first thing; where something is, the value returned means nothing.
    fn check(layers: &mut value::Layers<'_>) -> Self {
        let listen = layers
            .parse(
                "listen",
                "an address with a port, like 127.0.0.1:8080",
                |text| text.parse().ok(),
            )
            .unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        let insecure = layers
            .parse("insecure", "true or false", |text| {
                text.parse::<bool>().ok()
            })
            .unwrap_or_default();
        if !listen.ip().is_loopback() && !insecure {
            layers.problems.0.push(format!(
                "other machines can reach {listen}, and there is no TLS yet: listen on 127.0.0.1, or say --insecure"
            ));
        }
        let data_dir = layers
            .parse("data_dir", "a path", |text| Some(PathBuf::from(text)))
            .filter(|path| path != Path::new("auto"))
            .unwrap_or_else(|| default_data_dir(layers.environment));
        let data_dir = std::path::absolute(data_dir).unwrap_or_default();
        let expected = "full, rootless or auto";
        let least_level = layers.parse("min_isolation", expected, |text| match text {
            "full" => Some(Level::Full),
            "rootless" => Some(Level::Rootless),
            "auto" if geteuid().is_root() => Some(Level::Full),
            "auto" => Some(Level::Rootless),
            _ => None,
        });
        // Where there is a problem, the stricter.
        let least_level = least_level.unwrap_or(Level::Full);
        let format = layers
            .parse("log_format", "auto, text or json", |text| match text {
                "auto" => Some(LogFormat::Auto),
                "text" => Some(LogFormat::Text),
                "json" => Some(LogFormat::Json),
                _ => None,
            })
            .unwrap_or(LogFormat::Auto);
        Self {
            listen,
            data_dir,
            allowed_hosts: allowed_hosts(layers),
            shards: shards(layers),
            connections_max: layers.count("max_connections", CONNECTIONS_MAX),
            sandboxes_max: layers.count("max_sandboxes", SANDBOXES_MAX),
            skeletons: skeletons(layers),
            least_level,
            queue_len_max: layers.count("queue_len", QUEUE_LEN_MAX),
            queue_wait_max: layers.duration("queue_wait", WAIT_MAX),
            drain_max: layers.duration("drain_timeout", WAIT_MAX),
            log: Logging {
                format,
                filter: layers
                    .environment
                    .get("RUST_LOG")
                    .unwrap_or("info")
                    .to_owned(),
            },
        }
    }
}

/// Root's, or that of the XDG Base Directory Specification; where not even a home is known, root's, which is then refused
/// with its reason.
pub(crate) fn default_data_dir(environment: &Environment) -> PathBuf {
    let data_home = environment.get("XDG_DATA_HOME").map(PathBuf::from);
    let home = environment
        .get("HOME")
        .map(|home| Path::new(home).join(".local/share"));
    match data_home.or(home) {
        Some(data) if !geteuid().is_root() => data.join("hearth"),
        _ => PathBuf::from(DATA_DIR_DEFAULT),
    }
}

fn allowed_hosts(layers: &mut value::Layers<'_>) -> Vec<String> {
    let is_name = |name: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        !name.is_empty() && name.len() <= HOST_BYTES_MAX && name.bytes().all(allowed)
    };
    let expected = "a list of host names without ports, like example.org,www.example.org";
    let names = layers.parse("allow_host", expected, |text| {
        let names = text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        let names: Vec<String> = names.map(str::to_ascii_lowercase).collect();
        names.iter().all(|name| is_name(name)).then_some(names)
    });
    names.unwrap_or_default()
}

fn skeletons(layers: &mut value::Layers<'_>) -> u32 {
    let expected = format!("a whole number from 0 to {SKELETONS_MAX}");
    let count = layers.parse("skeletons", &expected, |text| {
        text.parse().ok().filter(|n| *n <= SKELETONS_MAX)
    });
    count.unwrap_or_default()
}

fn shards(layers: &mut value::Layers<'_>) -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let expected = format!("auto or a whole number from 1 to {SHARDS_MAX}");
    let count = layers.parse("shards", &expected, |text| match text {
        "auto" => Some(u16::try_from(cores).unwrap_or(SHARDS_MAX).min(SHARDS_MAX)),
        number => number.parse().ok().filter(|n| (1..=SHARDS_MAX).contains(n)),
    });
    count.unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(
        flags: &[(&'static str, &str)],
        variables: &[(&str, &str)],
    ) -> Result<Config, Problems> {
        let flags = Flags::of(flags);
        Config::load(&flags, None, &Environment::of(variables))
    }

    #[test]
    fn the_defaults_are_a_usable_configuration() {
        let config = load(&[], &[]).unwrap();
        assert_eq!(config.listen.to_string(), LISTEN_DEFAULT);
        assert_eq!(config.data_dir, Path::new(DATA_DIR_DEFAULT));
        assert_eq!(config.drain_max, Duration::from_secs(30));
    }

    #[test]
    fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hearth.toml");
        std::fs::write(&file, "queue_len = 1\nshards = 1\nqueue_wait = \"1s\"\n").unwrap();
        let flags = Flags::of(&[("queue_len", "3")]);
        let environment = Environment::of(&[("HEARTH_QUEUE_LEN", "2"), ("HEARTH_SHARDS", "2")]);
        let config = Config::load(&flags, Some(&file), &environment).unwrap();
        assert_eq!((config.queue_len_max, config.shards), (3, 2));
        assert_eq!(config.queue_wait_max, Duration::from_secs(1));
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hearth.toml");
        std::fs::write(&file, "no_such_key = 1\nqueue_wait = \"soon\"\n").unwrap();
        let flags = Flags::of(&[("listen", "nowhere"), ("max_sandboxes", "0")]);
        let environment = Environment::of(&[("HEARTH_DRAIN_TIMEOUT", "-1s")]);
        let problems = Config::load(&flags, Some(&file), &environment).unwrap_err();
        let text = problems.to_string();
        for part in [
            "no_such_key",
            "queue_wait",
            "--listen",
            "--max-sandboxes",
            "HEARTH_DRAIN_TIMEOUT",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn an_address_that_others_can_reach_needs_insecure() {
        let open = ("listen", "0.0.0.0:80");
        assert!(load(&[open], &[]).is_err());
        assert!(load(&[open, ("insecure", "true")], &[]).is_ok());
        assert!(load(&[open], &[("HEARTH_INSECURE", "true")]).is_ok());
        assert!(load(&[("listen", "[::1]:80")], &[]).is_ok());
    }

    #[test]
    fn host_names_are_a_list_without_ports() {
        let config = load(&[("allow_host", "Example.org, a.b")], &[]).unwrap();
        assert_eq!(config.allowed_hosts, ["example.org", "a.b"]);
        assert!(load(&[("allow_host", "example.org:80")], &[]).is_err());
        assert!(load(&[], &[]).unwrap().allowed_hosts.is_empty());
    }

    #[test]
    fn there_may_be_no_skeletons_but_not_without_end() {
        assert_eq!(load(&[], &[]).unwrap().skeletons, 4);
        assert_eq!(load(&[("skeletons", "0")], &[]).unwrap().skeletons, 0);
        assert!(load(&[("skeletons", "1001")], &[]).is_err());
    }

    #[test]
    fn no_flag_or_variable_lowers_the_isolation_level_below_what_a_user_can_reach() {
        for level in ["none", "refused", "broken", ""] {
            assert!(load(&[("min_isolation", level)], &[]).is_err(), "{level}");
        }
        let rootless = load(&[], &[("HEARTH_MIN_ISOLATION", "rootless")]).unwrap();
        assert_eq!(rootless.least_level, Level::Rootless);
        let default = load(&[], &[]).unwrap().least_level;
        assert_eq!(default == Level::Full, geteuid().is_root());
    }
}
