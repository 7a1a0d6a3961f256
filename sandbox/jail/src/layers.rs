// SPDX-License-Identifier: Apache-2.0 OR MIT
//! OverlayFS (Documentation/filesystems/overlayfs.rst of the kernel): how a file tree that many sandboxes share
//! becomes one sandbox's own.
//!
//! Locks, leases, inotify and dnotify are kept per inode. A bind mount shows the shared inode itself, so that two
//! tenants could talk, or watch each other, through a lock on a file that both can only read. Each overlay has inodes
//! of its own over the same pages: nothing meets, and memory is still shared. Its mount table names no path of the
//! host either: the root of a bind mount is a path of the host's file system, that of an overlay is `/`, and what it
//! lies over is said as it was named here, relative to the tree.
//!
//! Each costs some tens of microseconds; `tests/sandbox/timing.rs` prints what creation and bind take with them.

use std::{
    ffi::CStr,
    os::fd::{BorrowedFd, OwnedFd},
};

use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    mount::{MsFlags, mount},
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, chdir, fchownat, mkdir},
};

use crate::{
    failure::{Failure, at},
    mounts::Scratch,
    sys,
};

/// An empty directory beside those that hold the trees: an overlay without an upper layer wants two lower ones.
pub(crate) const NOTHING: &str = "nothing";

/// The tree itself, and [`NOTHING`], which is two directories above every tree: `DATA/trees/ID`, `DATA/bases/NAME`.
const READ_ONLY_LAYERS: &CStr = c".:../../nothing";

/// A detached mount of a tree, with `attributes` (`libc::MOUNT_ATTR_*`), that nothing can be written to: it has no
/// layer for that. The working directory is the tree afterwards.
pub(crate) fn read_only(tree: &CStr, attributes: u64) -> Result<OwnedFd, Failure> {
    chdir(tree).map_err(at("enter the tree"))?;
    let options = [(c"source", c"tree"), (c"lowerdir", READ_ONLY_LAYERS)];
    sys::mount::new_filesystem(c"overlay", &options, attributes)
        .map_err(at("lay a tree under a mount"))
}

/// Inodes that a writable root takes from its scratch before a function has written anything: three parts, five kept
/// places, and two that the kernel makes below `work`.
pub(crate) const WRITABLE_INODES: u64 = 10;

/// The part of the scratch that the function sees as its scratch; as all paths here, relative to the base tree.
const SCRATCH_PART: &CStr = c"scratch/tmp/tmp";

const UPPER: &CStr = c"scratch/tmp/upper";
const WORK: &CStr = c"scratch/tmp/work";

const WRITABLE_LAYERS: [(&CStr, &CStr); 4] = [
    (c"source", c"tree"),
    (c"lowerdir", c"."),
    (c"upperdir", UPPER),
    (c"workdir", WORK),
];

/// Places that stay root's in a writable root. Its directory has the sticky bit, so that they cannot be moved,
/// removed or replaced by a link: the spawner mounts at paths that lead through them.
const KEPT: [&CStr; 5] = [
    c"scratch/tmp/upper/proc",
    c"scratch/tmp/upper/dev",
    c"scratch/tmp/upper/function",
    c"scratch/tmp/upper/scratch",
    c"scratch/tmp/upper/scratch/tmp",
];

/// A root that can be written, and the part of its scratch that is to be mounted in it.
pub(crate) struct Writable {
    pub(crate) root: OwnedFd,
    pub(crate) scratch: OwnedFd,
}

/// As [`read_only`], and what is written goes to a fresh scratch of this size; the base's files belong to the
/// sandbox's user, by a mount that shows them so (`owners`: the user namespace that says how).
///
/// To be called in the sandbox's own mount namespace: what the layers lie on is mounted over the base tree there, and
/// goes with the old root.
pub(crate) fn writable(
    base: &CStr,
    owners: BorrowedFd<'_>,
    scratch: &Scratch,
    attributes: u64,
) -> Result<Writable, Failure> {
    let lower = sys::mount::copy_of(base).map_err(at("copy the base tree's mount"))?;
    sys::mount::map_owners(&lower, owners).map_err(at("give the base tree another owner"))?;
    sys::mount::attach(&lower, base).map_err(at("mount the base tree"))?;
    chdir(base).map_err(at("enter the tree"))?;
    let options = scratch.options();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let (tmpfs, options) = (Some("scratch"), Some(options.as_str()));
    mount(tmpfs, "scratch/tmp", Some("tmpfs"), flags, options).map_err(at("mount scratch"))?;
    divide(scratch)?;
    let root = sys::mount::new_filesystem(c"overlay", &WRITABLE_LAYERS, attributes)
        .map_err(at("lay a tree under a mount"))?;
    let scratch = sys::mount::copy_of(SCRATCH_PART).map_err(at("copy the scratch's mount"))?;
    Ok(Writable { root, scratch })
}

fn divide(scratch: &Scratch) -> Result<(), Failure> {
    let before = umask(Mode::empty());
    let divided = make_parts(scratch);
    umask(before);
    divided
}

fn make_parts(scratch: &Scratch) -> Result<(), Failure> {
    let make = |path: &CStr, mode| {
        let mode = Mode::from_bits_truncate(mode);
        mkdir(path, mode).map_err(at("divide the scratch"))
    };
    make(SCRATCH_PART, 0o1777)?;
    let user = scratch.ids.user;
    let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
    fchownat(AT_FDCWD, SCRATCH_PART, user, group, AtFlags::empty())
        .map_err(at("give the scratch its owner"))?;
    // What the root directory of the overlay is.
    make(UPPER, 0o1777)?;
    make(WORK, 0o700)?;
    KEPT.into_iter().try_for_each(|path| make(path, 0o755))
}
