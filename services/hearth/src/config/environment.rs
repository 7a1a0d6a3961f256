// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The process's environment, read once. The only place that reads it.

use std::collections::BTreeMap;

use nix::unistd::{Gid, Uid, User};

/// A copy of the variables that Hearth knows about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

/// Who typed the command: under sudo not the user that runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Their user id.
    pub(crate) uid: Uid,
    /// Their main group.
    pub(crate) gid: Gid,
    /// Their name, for the supplementary groups and `USER`.
    pub(crate) name: String,
    /// Their home directory.
    pub(crate) home: std::path::PathBuf,
}

impl Environment {
    /// Reads it. Values that are not UTF-8 are left out: no setting of Hearth can have one.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place where the environment is read"
    )]
    pub(crate) fn read() -> Self {
        const OTHERS: [&str; 6] = [
            "SUDO_UID",
            "RUST_LOG",
            "CARGO_TARGET_DIR",
            "PATH",
            "HOME",
            "XDG_DATA_HOME",
        ];
        let known = |name: &str| name.starts_with("HEARTH_") || OTHERS.contains(&name);
        let mut values = BTreeMap::new();
        for (name, _) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| known(name)) else {
                continue;
            };
            if let Ok(value) = std::env::var(name) {
                values.insert(name.to_owned(), value);
            }
        }
        Self(values)
    }

    /// A variable's value; an empty one counts as not set.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    /// The user behind sudo, where there is one that exists and is not root itself.
    pub(crate) fn sudo_caller(&self) -> Option<Caller> {
        if !Uid::effective().is_root() {
            return None;
        }
        let uid: u32 = self.get("SUDO_UID")?.parse().ok()?;
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten()?;
        (!user.uid.is_root()).then_some(Caller {
            uid: user.uid,
            gid: user.gid,
            name: user.name,
            home: user.dir,
        })
    }

    #[cfg(test)]
    pub(crate) fn of(values: &[(&str, &str)]) -> Self {
        Self(
            values
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }
}
