// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What Hearth stands on: the host's own user namespace, as its root, or one that an ordinary user made around it
//! (`rootless`). In the second every wall goes up by the same steps; what root of the host alone can do is done otherwise
//! where this is asked, and named in [`Ground::lacking`].

use std::fs;

use crate::failure::{Failure, io_at};
use hearth_protocol::spawner::Level;

/// Whose root the spawner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    /// The host's.
    Host,
    /// That of a user namespace with some of the host's ids.
    UserNamespace,
}

impl Ground {
    /// Of the calling process, by its own id map: only the host's user namespace maps every id to itself
    /// (user_namespaces(7)).
    pub(crate) fn current() -> Result<Self, Failure> {
        let step = "read the own id map";
        let text = fs::read_to_string("/proc/self/uid_map").map_err(io_at(step))?;
        Ok(Self::of(&text))
    }

    fn of(map: &str) -> Self {
        if map.split_whitespace().eq(EVERY_ID) {
            Self::Host
        } else {
            Self::UserNamespace
        }
    }

    /// The best that can be reached on it.
    pub(crate) fn level(self) -> Level {
        match self {
            Self::Host => Level::Full,
            Self::UserNamespace => Level::Rootless,
        }
    }

    /// What the level lacks, each in a sentence for a reader.
    pub(crate) fn lacking(self) -> &'static [&'static str] {
        match self {
            Self::Host => &[],
            Self::UserNamespace => &ROOTLESS_LACKS,
        }
    }
}

/// Of 2^32 the last, -1, is none.
const EVERY_ID: [&str; 3] = ["0", "0", "4294967295"];

/// What differs from the level `full`.
const ROOTLESS_LACKS: [&str; 5] = [
    "the namespaces belong to one user namespace of an ordinary user, not to the host's",
    "the five devices are the host's own files: a lock on one of them is seen by every sandbox",
    "no root that can be written: the host's files cannot be given another owner from a user namespace",
    "the ids come from the user's range in /etc/subuid, which the user's other containers share",
    "the spawner has the user's rights on the host, and the host lets this user make user namespaces",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_map_of_every_id_to_itself_is_the_host_s() {
        assert_eq!(
            Ground::of("         0          0 4294967295\n"),
            Ground::Host
        );
        for map in [
            "",
            "0 1000 1\n",
            "0 100000 65536\n",
            "0 0 4294967294\n",
            "0 0 65536\n65536 65536 4294901759\n",
        ] {
            assert_eq!(Ground::of(map), Ground::UserNamespace, "{map:?}");
        }
        assert!(Ground::Host.lacking().is_empty() && !Ground::UserNamespace.lacking().is_empty());
    }
}
