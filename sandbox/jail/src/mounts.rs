// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Mounts made and changed from outside, by the spawner, in a sandbox that runs: the function's files at bind, a fresh
//! scratch between invocations. Nothing inside could make them, and nothing inside is waited for.
//!
//! Every path used inside leads over the read-only base tree, or over directories of a writable root that are root's
//! and cannot be moved (`layers`), or over a mount that was made here: no process of the sandbox can have put a
//! symbolic link in the way.

use std::{
    ffi::{CStr, CString},
    fs::File,
    os::fd::BorrowedFd,
};

use hearth_protocol::{
    init::ScratchUse,
    spawner::{Root, SandboxLimits},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns},
    sys::statfs::statfs,
    unistd::chdir,
};

use crate::{
    failure::{Failure, at},
    idmap::Ids,
    layers, sys,
};

/// Where a function's files are.
pub(crate) const FUNCTION: &CStr = c"/function";

/// Where scratch is; `/tmp` and its like are links to it.
pub(crate) const SCRATCH: &CStr = c"/scratch/tmp";

/// The size of one scratch file system, and who owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scratch {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Inodes, the root directory's included.
    pub(crate) inodes: u64,
    /// Whose.
    pub(crate) ids: Ids,
}

impl Scratch {
    /// With a root that can be written, for what the function writes there, too.
    pub(crate) fn new(limits: &SandboxLimits, ids: Ids, root: Root) -> Self {
        let own = match root {
            Root::ReadOnly => 0,
            Root::Writable => layers::WRITABLE_INODES,
        };
        Self {
            bytes: limits.scratch_bytes,
            inodes: limits.scratch_inodes + own,
            ids,
        }
    }

    /// As tmpfs(5) wants them. Huge pages never: one byte written would be charged as two megabytes.
    pub(crate) fn options(&self) -> String {
        let Self {
            bytes,
            inodes,
            ids: Ids { user, .. },
        } = self;
        format!("size={bytes},nr_inodes={inodes},mode=1777,uid={user},gid={user},huge=never")
    }

    fn detached(&self) -> Result<std::os::fd::OwnedFd, Failure> {
        let bytes = number(self.bytes);
        let inodes = number(self.inodes);
        let user = number(self.ids.user.into());
        let options = [
            (c"source", c"scratch"),
            (c"size", bytes.as_c_str()),
            (c"nr_inodes", inodes.as_c_str()),
            (c"mode", c"1777"),
            (c"uid", user.as_c_str()),
            (c"gid", user.as_c_str()),
            (c"huge", c"never"),
        ];
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        sys::mount::new_filesystem(c"tmpfs", &options, attributes)
            .map_err(at("make a scratch file system"))
    }
}

fn number(value: u64) -> CString {
    // Digits hold no NUL.
    CString::new(value.to_string()).unwrap_or_default()
}

/// Mounts `tree` read-only at `/function`, and gives scratch another size, where either is asked for.
pub(crate) fn bind(
    sandbox: BorrowedFd<'_>,
    home: &Home,
    tree: Option<&CStr>,
    resized: Option<&Scratch>,
) -> Result<(), Failure> {
    if tree.is_none() && resized.is_none() {
        return Ok(());
    }
    // Everything that can be made outside is, so that the time inside is two system calls.
    let files = tree.map(read_only_view).transpose()?;
    let options = resized.map(Scratch::options);
    home.visit(sandbox, || {
        if let Some(files) = &files {
            sys::mount::attach(files, FUNCTION).map_err(at("mount the function's files"))?;
        }
        if let Some(options) = &options {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            let options = Some(options.as_str());
            mount(None::<&str>, SCRATCH, None::<&str>, flags, options)
                .map_err(at("give scratch its size"))?;
        }
        Ok(())
    })
}

fn read_only_view(tree: &CStr) -> Result<std::os::fd::OwnedFd, Failure> {
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let view = layers::read_only(tree, attributes);
    // Or the tree could not be unmounted or removed from where it is; every path that the spawner uses is absolute.
    chdir("/").map_err(at("leave the tree"))?;
    view
}

/// Replaces scratch by an empty one; gives what the old one held.
///
/// EBUSY where a process still uses the old one: it is not renewed then, and the sandbox must not be reused.
pub(crate) fn renew(
    sandbox: BorrowedFd<'_>,
    home: &Home,
    scratch: &Scratch,
) -> Result<ScratchUse, Failure> {
    let fresh = scratch.detached()?;
    home.visit(sandbox, || {
        let held = scratch_use().map_err(at("measure scratch"))?;
        umount2(SCRATCH, MntFlags::UMOUNT_NOFOLLOW).map_err(at("unmount scratch"))?;
        sys::mount::attach(&fresh, SCRATCH).map_err(at("mount scratch"))?;
        Ok(held)
    })
}

/// What the scratch mount of the caller's mount namespace holds beyond its empty state.
pub(crate) fn scratch_use() -> nix::Result<ScratchUse> {
    let found = statfs(SCRATCH)?;
    Ok(ScratchUse {
        blocks: found.blocks() - found.blocks_free(),
        // The root directory is there when nothing else is.
        inodes: (found.files() - found.files_free()).saturating_sub(1),
    })
}

/// The spawner's own mount namespace: the way back.
#[derive(Debug)]
pub(crate) struct Home(File);

impl Home {
    /// Opens it; to be called once, when the spawner is in its final mount namespace.
    pub(crate) fn open() -> Result<Self, Failure> {
        File::open("/proc/self/ns/mnt")
            .map(Self)
            .map_err(crate::failure::io_at("open the mount namespace"))
    }

    /// Runs `action` in the sandbox's mount namespace, and comes back whatever it says. The working directory is `/`
    /// afterwards; the spawner uses absolute paths only.
    fn visit<T>(
        &self,
        sandbox: BorrowedFd<'_>,
        action: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        setns(sandbox, CloneFlags::CLONE_NEWNS)
            .map_err(at("enter the sandbox's mount namespace"))?;
        let outcome = action();
        if let Err(errno) = setns(&self.0, CloneFlags::CLONE_NEWNS) {
            // A spawner that is stuck in a tenant's mount namespace must not act again: its death destroys every
            // sandbox (PDEATHSIG), and the monitor starts another.
            crate::spawner::die("cannot leave a sandbox's mount namespace", errno);
        }
        outcome
    }
}
