// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Host ids for one instance: a block of user and group ids that nobody else on the host uses.
//!
//! A block is held by binding an abstract Unix socket that is named for it (unix(7)): the kernel gives the name to one
//! holder only, and takes it back when the holder dies, however it dies. The names are per network namespace; instances
//! in several containers on one host are kept apart by where they begin to search, which their random ids decide.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use nix::unistd::{Gid, Uid};

use super::{InstanceError, at};

/// Ids in one block: the gateway's, one that stays unused so that pairs begin even, and 4,095 pairs for sandboxes.
pub(crate) const BLOCK_IDS: u32 = 8192;

/// Blocks lie above systemd's container range (it ends at 0x6fffffff) and below 2^31, where some programs take an id
/// for negative: systemd's documentation calls this range unused.
const RANGE_FIRST: u32 = 0x7000_0000;
const RANGE_BLOCKS: u32 = (0x7fff_0000 - RANGE_FIRST) / BLOCK_IDS;

/// How many blocks are tried. A host has a handful of instances; beyond that something holds names on purpose.
const TRIES_MAX: u32 = 64;

/// How deep the gateway's directory can be nested before Hearth takes it for damaged.
const STATE_DEPTH_MAX: usize = 8;

/// A block of host ids; each number is both a user and a group id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdBlock {
    /// The lowest.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl IdBlock {
    /// The gateway's user and group id.
    #[must_use]
    pub fn gateway(self) -> u32 {
        self.first
    }

    /// How many pairs for sandboxes there are.
    #[must_use]
    pub fn pairs(self) -> u32 {
        self.count.saturating_sub(2) / 2
    }

    /// The first of the two ids of the pair with this index.
    #[must_use]
    pub fn pair(self, index: u32) -> Option<u32> {
        (index < self.pairs()).then(|| self.first + 2 + 2 * index)
    }
}

/// A claimed block: nobody else gets it while this value lives.
#[derive(Debug)]
pub struct IdClaim {
    /// The ids.
    pub block: IdBlock,
    _name: OwnedFd,
}

/// Claims the preferred block, or the first free one from where the instance's id points.
pub(super) fn claim(instance: &str, preferred: Option<u32>) -> Result<IdClaim, InstanceError> {
    let range = Range::here()?;
    let taken = match range.outside {
        None => taken()?,
        // Who else has ids of this range has made a range of its own from the same line of /etc/subuid.
        Some(_) => Vec::new(),
    };
    let start = u32::from_str_radix(instance, 16).unwrap_or(0) % range.blocks;
    let searched = (0..TRIES_MAX.min(range.blocks))
        .map(|step| range.first + (start + step) % range.blocks * BLOCK_IDS);
    let in_range = |first: &u32| {
        let offset = first.checked_sub(range.first);
        offset.is_some_and(|offset| offset % BLOCK_IDS == 0 && offset / BLOCK_IDS < range.blocks)
    };
    let mut problem = String::from("every block that was tried is held by another instance");
    for first in preferred.into_iter().filter(in_range).chain(searched) {
        if let Some(owner) = taken.iter().find(|owner| owner.overlaps(first)) {
            problem = format!("{} names {first} to {}", owner.file, first + BLOCK_IDS - 1);
            continue;
        }
        if let Some(name) = hold(range.on_host(first))? {
            let block = IdBlock {
                first,
                count: BLOCK_IDS,
            };
            refuse_unmapped(block)?;
            return Ok(IdClaim { block, _name: name });
        }
    }
    Err(InstanceError::NoIds {
        count: BLOCK_IDS,
        problem,
    })
}

/// Where blocks may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    blocks: u32,
    /// What the first is on the host, where that is another number: in the user namespace of an ordinary user.
    outside: Option<u32>,
}

impl Range {
    fn here() -> Result<Self, InstanceError> {
        let read = |file: &str| fs::read_to_string(file).map_err(at("read", Path::new(file)));
        let (users, groups) = (read("/proc/self/uid_map")?, read("/proc/self/gid_map")?);
        Self::of(&users, &groups).ok_or_else(|| InstanceError::NoIds {
            count: BLOCK_IDS,
            problem: "this user namespace maps too few; give the user a line of 65536 in /etc/subuid and /etc/subgid"
                .into(),
        })
    }

    /// Of the host's user namespace the usual one; else the largest that both maps have alike.
    fn of(users: &str, groups: &str) -> Option<Self> {
        let (users, groups) = (lines_of_map(users), lines_of_map(groups));
        if users == [(0, 0, u32::MAX)] {
            return Some(Self {
                first: RANGE_FIRST,
                blocks: RANGE_BLOCKS,
                outside: None,
            });
        }
        let both = users.iter().filter(|line| groups.contains(line));
        let (first, outside, count) = *both.max_by_key(|(_, _, count)| *count)?;
        let blocks = count / BLOCK_IDS;
        (0 < blocks).then_some(Self {
            first,
            blocks,
            outside: Some(outside),
        })
    }

    /// The host's number of an id of this range.
    fn on_host(self, id: u32) -> u32 {
        self.outside
            .map_or(id, |outside| outside + (id - self.first))
    }
}

/// Inside, outside, count of every line (user_namespaces(7)); one that is none names nobody.
fn lines_of_map(text: &str) -> Vec<(u32, u32, u32)> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    };
    text.lines().filter_map(line).collect()
}

/// Binds the block's name; None where somebody else has it.
fn hold(first: u32) -> Result<Option<OwnedFd>, InstanceError> {
    let failed = |errno: Errno| InstanceError::NoIds {
        count: BLOCK_IDS,
        problem: format!("their socket cannot be made: {}", errno.desc()),
    };
    let name = format!("hearth-ids-{first}");
    let address = UnixAddr::new_abstract(name.as_bytes()).map_err(failed)?;
    let fd = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed)?;
    match bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address) {
        Ok(()) => Ok(Some(fd)),
        Err(Errno::EADDRINUSE) => Ok(None),
        Err(errno) => Err(failed(errno)),
    }
}

/// Ids that some file of the host already gives to somebody.
struct Taken {
    file: &'static str,
    first: u64,
    count: u64,
}

impl Taken {
    fn overlaps(&self, first: u32) -> bool {
        let first = u64::from(first);
        first < self.first + self.count && self.first < first + u64::from(BLOCK_IDS)
    }
}

/// What `/etc` says: single ids of users and groups, and ranges of subordinate ids. Lines that do not parse name nobody.
fn taken() -> Result<Vec<Taken>, InstanceError> {
    let mut taken = Vec::new();
    for (file, is_range) in [
        ("/etc/passwd", Lines::Single),
        ("/etc/group", Lines::Single),
        ("/etc/subuid", Lines::Range),
        ("/etc/subgid", Lines::Range),
    ] {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at("read", Path::new(file))(error)),
        };
        taken.extend(text.lines().filter_map(|line| is_range.read(file, line)));
    }
    Ok(taken)
}

#[derive(Clone, Copy)]
enum Lines {
    /// `name:password:id:…`
    Single,
    /// `name:first:count`
    Range,
}

impl Lines {
    fn read(self, file: &'static str, line: &str) -> Option<Taken> {
        let fields: Vec<&str> = line.split(':').collect();
        let number = |index: usize| fields.get(index)?.trim().parse().ok();
        let (first, count) = match self {
            Self::Single => (number(2)?, 1),
            Self::Range => (number(1)?, number(2)?),
        };
        Some(Taken { file, first, count })
    }
}

/// In a container with user ids of its own, only some ids exist.
fn refuse_unmapped(block: IdBlock) -> Result<(), InstanceError> {
    for file in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let text = fs::read_to_string(file).map_err(at("read", Path::new(file)))?;
        let holds = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse::<u64>);
            let (Some(Ok(inside)), Some(Ok(_)), Some(Ok(count))) =
                (numbers.next(), numbers.next(), numbers.next())
            else {
                return false;
            };
            let end = u64::from(block.first) + u64::from(block.count);
            inside <= u64::from(block.first) && end <= inside + count
        };
        if !text.lines().any(holds) {
            return Err(InstanceError::NoIds {
                count: block.count,
                problem: format!(
                    "{file} maps no {} to {}: run Hearth in the host's user namespace",
                    block.first,
                    block.first + block.count - 1
                ),
            });
        }
    }
    Ok(())
}

/// Makes `id` the owner of a directory and all in it. The files were written by an unprivileged process, so nothing is
/// followed: descriptors, not paths; links of either kind are refused.
pub(super) fn give(directory: &Path, id: u32) -> Result<(), InstanceError> {
    let mut pending = vec![(directory.to_owned(), 0)];
    while let Some((path, depth)) = pending.pop() {
        let file = open_unfollowed(&path)?;
        let metadata = file.metadata().map_err(at("inspect", &path))?;
        let single = metadata.is_file() && metadata.nlink() == 1;
        if !(metadata.is_dir() && depth <= STATE_DEPTH_MAX || single) {
            return Err(InstanceError::Unsafe {
                path,
                problem: "it is not a plain file or directory of Hearth's; remove it".into(),
            });
        }
        if metadata.uid() != id || metadata.gid() != id {
            nix::unistd::fchown(&file, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)))
                .map_err(|errno| at("change the owner of", &path)(errno.into()))?;
        }
        if metadata.is_dir() {
            pending.extend(children(&path)?.into_iter().map(|path| (path, depth + 1)));
        }
    }
    Ok(())
}

fn open_unfollowed(path: &Path) -> Result<File, InstanceError> {
    fs::OpenOptions::new()
        .read(true)
        // Not following links, and not waiting for the other end of a named pipe.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(at("open", path))
}

fn children(path: &Path) -> Result<Vec<PathBuf>, InstanceError> {
    fs::read_dir(path)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .map_err(at("list", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_instances_never_share_a_block_and_a_dead_one_s_is_free_again() {
        let first = claim("00000001", None).unwrap();
        let second = claim("00000001", None).unwrap();
        assert_ne!(first.block, second.block);
        let freed = first.block.first;
        assert_ne!(claim("00000002", Some(freed)).unwrap().block.first, freed);
        drop(first);
        assert_eq!(claim("00000002", Some(freed)).unwrap().block.first, freed);
    }

    #[test]
    fn a_block_that_the_host_gives_to_somebody_is_passed_over() {
        let line = Lines::Range
            .read("/etc/subuid", "joe:1879048000:65536")
            .unwrap();
        assert!(line.overlaps(RANGE_FIRST));
        assert!(!line.overlaps(RANGE_FIRST + 16 * BLOCK_IDS));
        let line = Lines::Single
            .read("/etc/passwd", "joe:x:1879048199:100::/:/bin/sh")
            .unwrap();
        assert!(line.overlaps(RANGE_FIRST));
        assert!(Lines::Single.read("/etc/passwd", "+::::::").is_none());
    }

    #[test]
    fn blocks_come_from_what_a_user_namespace_maps_and_are_held_by_the_host_s_number() {
        let whole = "         0          0 4294967295\n";
        let host = Range::of(whole, whole).unwrap();
        assert_eq!((host.first, host.outside), (RANGE_FIRST, None));
        assert_eq!(host.on_host(RANGE_FIRST + 5), RANGE_FIRST + 5);
        let users = "0 1000 1\n1 100000 65536\n";
        let own = Range::of(users, users).unwrap();
        assert_eq!((own.first, own.blocks), (1, 8));
        assert_eq!(own.on_host(1 + BLOCK_IDS), 100_000 + BLOCK_IDS);
        // A block is both user and group ids, so both maps must have it, and alike.
        assert_eq!(Range::of(users, "0 1000 1\n1 200000 65536\n"), None);
        assert_eq!(Range::of("0 1000 1\n", "0 1000 1\n"), None);
    }

    #[test]
    fn pairs_do_not_overlap_and_end_with_the_block() {
        let block = IdBlock {
            first: RANGE_FIRST,
            count: BLOCK_IDS,
        };
        let last = block.pair(block.pairs() - 1).unwrap();
        assert_eq!(block.pair(0), Some(RANGE_FIRST + 2));
        assert_eq!(block.pair(1), Some(RANGE_FIRST + 4));
        assert!(last + 1 < block.first + block.count);
        assert_eq!(block.pair(block.pairs()), None);
    }

    #[test]
    fn a_planted_link_in_the_state_directory_is_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let (state, target) = (parent.path().join("state"), parent.path().join("target"));
        fs::create_dir(&state).unwrap();
        fs::write(&target, "x").unwrap();
        let own = fs::metadata(&target).unwrap().uid();
        std::os::unix::fs::symlink(&target, state.join("a")).unwrap();
        assert!(give(&state, own).is_err());
        fs::remove_file(state.join("a")).unwrap();
        fs::hard_link(&target, state.join("a")).unwrap();
        assert!(give(&state, own).is_err());
        fs::remove_file(state.join("a")).unwrap();
        fs::write(state.join("a"), "x").unwrap();
        give(&state, own).unwrap();
    }
}
