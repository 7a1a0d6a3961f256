// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The new mount API (mount_setattr(2), open_tree(2), fsopen(2), move_mount(2)): mounts as descriptors, so that they
//! can be made in one mount namespace and attached in another.

use std::{
    ffi::CStr,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use super::{checked, fds::adopt};

fn fd_of(result: libc::c_long) -> nix::Result<OwnedFd> {
    let number = checked(result)?;
    Ok(adopt(RawFd::try_from(number).unwrap_or(-1)))
}

/// A detached copy of the mount at `path`, without what is mounted below it.
pub(crate) fn copy_of(path: &CStr) -> nix::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    // SAFETY: open_tree(2) reads the NUL-terminated `path` and takes integers.
    fd_of(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// open_tree(2): make a copy instead of a reference.
const OPEN_TREE_CLONE: libc::c_uint = 1;

/// Shows a detached mount's files with the ids that `owners`, a user namespace, maps theirs to (Linux 5.12, and a
/// file system that takes part; for one that lies under an overlay 5.19).
pub(crate) fn map_owners(mount: &OwnedFd, owners: BorrowedFd<'_>) -> nix::Result<()> {
    change(
        mount,
        &libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: owners.as_raw_fd().cast_unsigned().into(),
        },
    )
}

/// Sets attributes (`libc::MOUNT_ATTR_*`) on a detached mount.
pub(crate) fn restrict(mount: &OwnedFd, attributes: u64) -> nix::Result<()> {
    change(
        mount,
        &libc::mount_attr {
            attr_set: attributes,
            attr_clr: 0,
            propagation: 0,
            userns_fd: 0,
        },
    )
}

fn change(mount: &OwnedFd, change: &libc::mount_attr) -> nix::Result<()> {
    // SAFETY: mount_setattr(2) reads the empty path and `change`, whose size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(change),
            size_of::<libc::mount_attr>(),
        )
    };
    checked(result).map(drop)
}

/// A new file system of type `fs_type` with string options, as a detached mount with `attributes`.
pub(crate) fn new_filesystem(
    fs_type: &CStr,
    options: &[(&CStr, &CStr)],
    attributes: u64,
) -> nix::Result<OwnedFd> {
    // SAFETY: fsopen(2) reads the NUL-terminated name and takes an integer.
    let context =
        fd_of(unsafe { libc::syscall(libc::SYS_fsopen, fs_type.as_ptr(), FSOPEN_CLOEXEC) })?;
    for (key, value) in options {
        configure(&context, FSCONFIG_SET_STRING, Some((key, value)))?;
    }
    configure(&context, FSCONFIG_CMD_CREATE, None)?;
    // SAFETY: fsmount(2) takes a descriptor and integers.
    fd_of(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            attributes,
        )
    })
}

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

fn configure(
    context: &OwnedFd,
    command: libc::c_uint,
    option: Option<(&CStr, &CStr)>,
) -> nix::Result<()> {
    let (key, value) = option.map_or((std::ptr::null(), std::ptr::null()), |(key, value)| {
        (key.as_ptr(), value.as_ptr())
    });
    // SAFETY: fsconfig(2) reads two NUL-terminated strings where the command takes them; null pointers are what the
    // create command wants.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            key,
            value,
            0,
        )
    };
    checked(result).map(drop)
}

/// Attaches a detached mount at `path`, which is not followed where it is a symbolic link.
pub(crate) fn attach(mount: &OwnedFd, path: &CStr) -> nix::Result<()> {
    // SAFETY: move_mount(2) reads two NUL-terminated strings and takes integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    checked(result).map(drop)
}

const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
