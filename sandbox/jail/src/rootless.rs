// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The one outer user namespace of an instance that an ordinary user starts (user_namespaces(7), newuidmap(1)).
//!
//! Its root is the user, and its other ids are a range that `/etc/subuid` and `/etc/subgid` give to the user. From there on
//! the same code builds the same walls: each sandbox has its own pair of ids out of that range, and a user namespace of its
//! own inside this one. A map of the user's id alone would leave all sandboxes and the gateway with one uid between them;
//! where there is no range, Hearth is refused.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::{Gid, Pid, Uid, User, getegid, geteuid, getpid, setgroups, setresgid, setresuid},
};

use crate::{
    cgroup,
    instance::BLOCK_IDS,
    socket,
    sys::{self, clone::Cloned},
};

/// The set-user-id helpers that write maps with ids that are not the caller's.
const HELPERS: [(&str, &str); 2] = [("newuidmap", "/etc/subuid"), ("newgidmap", "/etc/subgid")];

/// Where they are looked for: not in PATH, which is whose who starts Hearth.
const HELPER_DIRECTORIES: [&str; 3] = ["/usr/bin", "/bin", "/usr/local/bin"];

/// As many ids as distributions give to a user; more would be of no use.
const IDS_MAX: u32 = 65_536;

/// Why the user namespace was not made.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    /// Neither in the usual directories.
    #[error("cannot find {helper} (Debian: apt-get install uidmap)")]
    NoHelper {
        /// newuidmap or newgidmap.
        helper: &'static str,
    },
    /// No range for this user, or a short one.
    #[error("{file} gives fewer than {BLOCK_IDS} ids to user {user}")]
    NoIds {
        /// The file.
        file: &'static str,
        /// The user's name or number.
        user: String,
    },
    /// A step failed.
    #[error("cannot {step}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        source: Errno,
    },
    /// The helpers ended badly, and said on stderr why.
    #[error("cannot map the ids {first} to {last}: see the lines above")]
    Refused {
        /// Of the range.
        first: u32,
        /// Of the range.
        last: u32,
    },
    /// The cgroup that it was started in cannot be left.
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
}

/// Whether this is an ordinary user, who has to [`enter`] first.
#[must_use]
pub fn is_needed() -> bool {
    !geteuid().is_root()
}

/// Leaves the cgroup that the calling process was started in for one below it, where it is alone in that: for who starts an
/// instance as its child, which could not divide a cgroup that holds both. The process must have one thread.
///
/// # Errors
/// Where there is no cgroup to divide; the instance will say so, too, with the remedy.
pub fn make_room() -> Result<(), RootlessError> {
    Ok(cgroup::settle()?)
}

/// Makes the calling process root of a new user namespace, and leaves the cgroup that it was started in for one beside its
/// sandboxes', where it was alone in that. The process must have one thread.
///
/// # Errors
/// [`RootlessError`]; a process whose namespace has no map can do nothing and must end.
pub fn enter() -> Result<(), RootlessError> {
    cgroup::settle()?;
    enter_namespace()
}

/// As [`enter`], and stays in its cgroup.
pub(crate) fn enter_namespace() -> Result<(), RootlessError> {
    let ids = Ids::of_this_user()?;
    let (ours, theirs) = socket::pair().map_err(step("make a socket"))?;
    // The helpers have to be outside: inside they would have no privilege over the host's ids.
    let mapper = match sys::clone::fork_into(0, None).map_err(step("fork"))? {
        Cloned::Child => {
            drop(ours);
            sys::clone::exit_now(ids.map_when_told(&theirs))
        }
        Cloned::Parent { pid, .. } => pid,
    };
    drop(theirs);
    unshare(CloneFlags::CLONE_NEWUSER).map_err(step("make a user namespace"))?;
    socket::send_waiting(ours.as_fd(), &[GO]).map_err(step("ask for the id maps"))?;
    match waitpid(mapper, None).map_err(step("wait for the id maps"))? {
        WaitStatus::Exited(_, 0) => {}
        _ => {
            return Err(RootlessError::Refused {
                first: ids.users.first,
                last: ids.users.first + (ids.count - 1),
            });
        }
    }
    let (root, root_group) = (Uid::from_raw(0), Gid::from_raw(0));
    // The user's own groups would stay otherwise, as ids that have no name in here.
    setgroups(&[]).map_err(step("drop supplementary groups"))?;
    setresgid(root_group, root_group, root_group).map_err(step("set the gid"))?;
    setresuid(root, root, root).map_err(step("set the uid"))
}

/// Whether a map could be asked for; changes nothing.
pub(crate) fn look_up() -> Result<(), RootlessError> {
    Ids::of_this_user().map(drop)
}

/// The one packet to the mapper.
const GO: u8 = b'G';

fn step(step: &'static str) -> impl Fn(Errno) -> RootlessError {
    move |source| RootlessError::Step { step, source }
}

/// Everything that the maps need, looked up before the namespace exists.
struct Ids {
    process: Pid,
    own: (u32, u32),
    users: Line,
    groups: Line,
    count: u32,
    helpers: [PathBuf; 2],
}

impl Ids {
    fn of_this_user() -> Result<Self, RootlessError> {
        let [users, groups] = HELPERS.map(|(_, file)| range_of_this_user(file));
        let (users, groups) = (users?, groups?);
        let [uid_helper, gid_helper] = HELPERS.map(|(name, _)| find_helper(name));
        Ok(Self {
            process: getpid(),
            own: (geteuid().as_raw(), getegid().as_raw()),
            users,
            groups,
            count: users.count.min(groups.count).min(IDS_MAX),
            helpers: [uid_helper?, gid_helper?],
        })
    }

    /// The mapper's life; its exit status.
    fn map_when_told(&self, told: &OwnedFd) -> i32 {
        let mut packet = [0_u8; 1];
        // Ended without a word: the parent could not make the namespace, and has said so.
        if nix::unistd::read(told, &mut packet) != Ok(1) {
            return 1;
        }
        let maps = [(self.own.0, self.users), (self.own.1, self.groups)];
        for (helper, (own, range)) in self.helpers.iter().zip(maps) {
            // Root inside is the user, and the rest of the range follows it.
            let numbers = [0, own, 1, 1, range.first, self.count];
            let status = Command::new(helper)
                .arg(self.process.to_string())
                .args(numbers.map(|number| number.to_string()))
                .env_clear()
                .stdin(Stdio::null())
                .status();
            if !status.is_ok_and(|status| status.success()) {
                return 1;
            }
        }
        0
    }
}

fn find_helper(helper: &'static str) -> Result<PathBuf, RootlessError> {
    let mut places = HELPER_DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(helper));
    places
        .find(|path| path.is_file())
        .ok_or(RootlessError::NoHelper { helper })
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    first: u32,
    count: u32,
}

fn range_of_this_user(file: &'static str) -> Result<Line, RootlessError> {
    let uid = geteuid();
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            let source = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            return Err(step("read the users' ranges of ids")(source));
        }
    };
    let number = uid.to_string();
    let owners = [name.as_deref().unwrap_or(&number), &number];
    largest_range(&text, &owners).ok_or_else(|| RootlessError::NoIds {
        file,
        user: owners[0].to_owned(),
    })
}

/// `name:first:count` (subuid(5)), the name also as a number; of several the largest, where it holds one block.
fn largest_range(text: &str, owners: &[&str]) -> Option<Line> {
    let line = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let first: u32 = fields.next()?.trim().parse().ok()?;
        let count: u32 = fields.next()?.trim().parse().ok()?;
        first.checked_add(count)?;
        owners.contains(&owner).then_some(Line { first, count })
    };
    let ranges = text.lines().filter_map(line);
    ranges
        .filter(|range| BLOCK_IDS <= range.count)
        .max_by_key(|range| range.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_of_the_user_is_taken_and_nobody_else_s() {
        let text = "ann:100000:65536\nbob:165536:8192\n1001:300000:65536\nbob:4294900000:99999\n";
        let of = |owners: &[&str]| largest_range(text, owners).map(|line| line.first);
        assert_eq!(of(&["bob", "1001"]), Some(300_000));
        assert_eq!(of(&["bob", "1002"]), Some(165_536));
        assert_eq!(of(&["eve", "1003"]), None);
        assert_eq!(largest_range("bob:1:100\n", &["bob"]), None);
    }
}
