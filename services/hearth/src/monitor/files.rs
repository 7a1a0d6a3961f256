// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The limit of open files: raised once, here, and inherited by gateway and spawner. A gateway that runs into it in
//! the middle of a burst can neither accept nor run anything.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;

/// What the gateway holds of one sandbox: its socket, seven cgroup files, a counter, and while it runs both ends of
/// three pipes.
const PER_SANDBOX: u64 = 15;

/// The database, the runtimes, sockets to the other processes, files of a deploy.
const BESIDE: u64 = 256;

/// Why the limit is too low.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    /// It cannot be read or set.
    #[error("cannot set the limit of open files")]
    Limit(#[from] Errno),
    /// Neither raised nor enough.
    #[error(
        "the limit of open files is {hard}, and {needed} are needed for so many connections and sandboxes"
    )]
    TooLow {
        /// The hard limit.
        hard: u64,
        /// What the settings can use.
        needed: u64,
    },
}

/// Raises the soft limit to the hard one, and both where the settings need more.
pub(super) fn raise(config: &Config) -> Result<(), FilesError> {
    let needed = needed(config);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.max(needed);
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted) {
        // Above the hard limit only with CAP_SYS_RESOURCE, which a container may lack.
        Err(Errno::EPERM) => Err(FilesError::TooLow { hard, needed }),
        other => Ok(other?),
    }
}

fn needed(config: &Config) -> u64 {
    u64::from(config.connections_max) + PER_SANDBOX * u64::from(config.sandboxes_max) + BESIDE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags};

    #[test]
    fn the_default_settings_fit_into_the_hard_limit_that_service_managers_set() {
        let config = Config::load(&Flags::default(), None, &Environment::default()).unwrap();
        // systemd's DefaultLimitNOFILE.
        assert!(needed(&config) < 524_288);
    }
}
