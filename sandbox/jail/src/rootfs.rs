// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The file tree that a sandbox has as its root, built once, from inside, before the sandbox has a user namespace.
//! What is mounted later is mounted from outside: `mounts`.
//!
//! ```text
//! /              the base tree, read-only, with inodes of this sandbox's own (`layers`)
//! ├─ proc        processes only (subset=pid), own ones only, read-only
//! ├─ dev         five devices and five links, read-only
//! ├─ scratch/tmp tmpfs, the only place that can be written, unless the root can
//! └─ function    empty until the sandbox is bound
//! ```

use std::{
    ffi::CStr,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, fstat, makedev, mknod, umask},
    unistd::{chdir, pivot_root, symlinkat},
};

use crate::{
    failure::{Failure, at, broken},
    ground::Ground,
    layers,
    mounts::Scratch,
    sys,
    walls::{Raise, Wall, Walls},
};

/// Makes `base` the root of the calling process's mount namespace, with everything above, and leaves no way back to the
/// old one. The namespace must be private (the spawner's is, and a copy of it is).
///
/// With `owners` it can be written: [`layers::writable`].
pub(crate) fn enter<W: Walls>(
    base: &CStr,
    scratch: &Scratch,
    owners: Option<BorrowedFd<'_>>,
    ground: Ground,
) -> Result<(), Failure> {
    let part = mount_base::<W>(base, scratch, owners)?;
    // Again: the mount lies over the directory that was entered to make it.
    chdir(base).map_err(at("enter the base tree"))?;
    mount_proc()?;
    fill_dev(ground)?;
    match part {
        None => mount_scratch(scratch)?,
        Some(part) => {
            sys::mount::attach(&part, c"scratch/tmp").map_err(at("mount scratch"))?;
        }
    }
    pivot::<W>()?;
    chdir("/").map_err(at("enter the new root"))
}

fn pivot<W: Walls>() -> Result<(), Failure> {
    if !W::stands(Wall::Root) {
        return pivot_root(".", "var").map_err(at("pivot into the base tree"));
    }
    // Puts the old root on top of the new one, which saves a directory for it; then it is taken away.
    pivot_root(".", ".").map_err(at("pivot into the base tree"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("detach the old root"))
}

/// Gives what is to be mounted as scratch where that is a part of what the root is made of.
fn mount_base<W: Walls>(
    base: &CStr,
    scratch: &Scratch,
    owners: Option<BorrowedFd<'_>>,
) -> Result<Option<OwnedFd>, Failure> {
    let guarded = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let attributes = match owners {
        _ if !W::stands(Wall::MountFlags) => 0,
        Some(_) => guarded,
        None => guarded | libc::MOUNT_ATTR_RDONLY,
    };
    let (root, part) = match owners {
        Some(owners) => {
            let layers::Writable { root, scratch } =
                layers::writable(base, owners, scratch, attributes)?;
            (root, Some(scratch))
        }
        None => (layers::read_only(base, attributes)?, None),
    };
    // pivot_root(2) wants a mount point: the mount lies over the directory it came from, in this namespace only.
    sys::mount::attach(&root, base).map_err(at("mount the base tree"))?;
    Ok(part)
}

/// With `subset=pid` none of the files exist that others have to mask: no `/proc/sys`, `kcore`, `keys`, `timer_list`,
/// `sysrq-trigger`, `net`. With `hidepid=invisible` init, which is not dumpable, is not even listed. Read-only:
/// nothing under `/proc/self` can be written either; `/proc/self/fd/N` leads to the file's own mount and still can.
fn mount_proc() -> Result<(), Failure> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("proc"),
        "proc",
        Some("proc"),
        flags,
        Some("hidepid=invisible,subset=pid"),
    )
    .map_err(at("mount proc"))
}

/// The host's path, major, minor (Documentation/admin-guide/devices.txt of the kernel).
const DEVICES: [(&CStr, u64, u64); 5] = [
    (c"/dev/null", 1, 3),
    (c"/dev/zero", 1, 5),
    (c"/dev/full", 1, 7),
    (c"/dev/random", 1, 8),
    (c"/dev/urandom", 1, 9),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("/scratch/tmp", "dev/shm"),
];

/// A tmpfs of the sandbox's own: a lock taken on `/dev/null` is not seen by another tenant. The one mount without
/// `nodev`, read-only once it is filled. Only the host's root can make a device: in a user namespace the host's own are
/// mounted, each over an empty file, and share their locks.
fn fill_dev(ground: Ground) -> Result<(), Failure> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    // Ten entries and the root directory; nothing in it has content, links of this length live in their inodes.
    let options = Some("mode=0755,size=4k,nr_inodes=16");
    mount(Some("dev"), "dev", Some("tmpfs"), flags, options).map_err(at("mount /dev"))?;
    let before = umask(Mode::empty());
    for (host_path, major, minor) in DEVICES {
        let device = makedev(major, minor);
        match ground {
            Ground::Host => make_device(host_path, device)?,
            Ground::UserNamespace => mount_device(host_path, device)?,
        }
    }
    umask(before);
    for (target, path) in LINKS {
        symlinkat(target, nix::fcntl::AT_FDCWD, path).map_err(at("make a link in /dev"))?;
    }
    let sealed = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, "dev", None::<&str>, sealed, None::<&str>)
        .map_err(at("make /dev read-only"))
}

/// The same path below the working directory, which is the base tree.
fn below_base(host_path: &CStr) -> &CStr {
    let bytes = host_path.to_bytes_with_nul();
    CStr::from_bytes_with_nul(bytes.strip_prefix(b"/").unwrap_or(bytes)).unwrap_or(host_path)
}

fn make_device(host_path: &CStr, device: libc::dev_t) -> Result<(), Failure> {
    let everyone = Mode::from_bits_truncate(0o666);
    mknod(below_base(host_path), SFlag::S_IFCHR, everyone, device).map_err(at("make a device node"))
}

fn mount_device(host_path: &CStr, device: libc::dev_t) -> Result<(), Failure> {
    let copy = sys::mount::copy_of(host_path).map_err(at("copy a device's mount"))?;
    // Of what was copied, not of the path: whatever lies there, only the very device comes in.
    let found = fstat(&copy).map_err(at("look at a device"))?;
    let is_character = found.st_mode & libc::S_IFMT == libc::S_IFCHR;
    if !is_character || found.st_rdev != device {
        return Err(broken("find the host's devices"));
    }
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    sys::mount::restrict(&copy, attributes).map_err(at("make a device's mount read-only"))?;
    let place = below_base(host_path);
    let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    drop(open(place, new, Mode::empty()).map_err(at("make a device's place"))?);
    sys::mount::attach(&copy, place).map_err(at("mount a device"))
}

fn mount_scratch(scratch: &Scratch) -> Result<(), Failure> {
    let options = scratch.options();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("scratch"),
        "scratch/tmp",
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )
    .map_err(at("mount scratch"))
}

/// Whether the old root is out of reach: `..` of the root is the root, and the mount below it is gone.
pub(crate) fn is_closed(base: &CStr) -> Result<bool, Failure> {
    let inode = |path: &Path| {
        nix::sys::stat::stat(path)
            .map(|stat| (stat.st_dev, stat.st_ino))
            .map_err(at("look at the root"))
    };
    let root = inode(Path::new("/"))?;
    let above = inode(Path::new("/.."))?;
    let host_path = nix::sys::stat::stat(base);
    Ok(root == above && host_path.is_err())
}
